//! What must hold when all has come to rest.

use std::collections::BTreeSet;

use crate::cluster::{DATANODES, METANODES};
use crate::coverage::Coverage;
use crate::truth::Truth;
use crate::world::World;

/// Whether every replica has applied all that anybody has.
pub(crate) fn replicas_agree(world: &World) -> bool {
    let last = world.truth.lock().log.last();
    METANODES.into_iter().all(|node| world.role(node).is_some_and(|role| role.applied() == last))
}

/// Whether nothing waits to be freed or deleted any more.
pub(crate) fn all_forgotten(world: &World) -> bool {
    let truth = world.truth.lock();
    let table = truth.log.table();
    let freed = table.freed_chunks(i64::MAX, Default::default(), 1);
    let waits = (!freed.is_empty() && !has_failed_disk(world)) || !table.orphans(Default::default(), 1).is_empty();
    !waits
        && table.inodes_with_dead(1).is_empty()
        && table.sessions().is_empty()
        && shards_wait(world, &truth).is_none()
}

/// Whether the table has written down that a member owes deletions.
pub(crate) fn somebody_owes(world: &World) -> bool {
    let truth = world.truth.lock();
    let table = truth.log.table();
    table.members().into_iter().any(|(_, disk)| table.owed(disk).is_some())
}

/// A disk that failed for good confirms no deletion.
fn has_failed_disk(world: &World) -> bool {
    DATANODES.into_iter().any(|node| world.role(node).is_none_or(|role| role.shards().is_none()))
}

/// A disk with a shard of a chunk that was committed once: all of those are freed by the end.
fn shards_wait(world: &World, truth: &Truth) -> Option<String> {
    // A disk that loses writes may have lost a tombstone.
    DATANODES.into_iter().filter(|node| !world.plan.is_lost(*node)).find_map(|node| {
        let role = world.role(node)?;
        let left = role.shards()?.into_iter().find(|chunk| truth.committed.contains(chunk))?;
        Some(format!("{node} still has a shard of chunk {left}"))
    })
}

/// Nothing of what was there is left.
pub(crate) fn nothing_is_left(world: &World) {
    let truth = world.truth.lock();
    let table = truth.log.table();
    table.check().unwrap_or_else(|error| panic!("the table's trees contradict each other: {error}"));
    let stat = table.stat_fs();
    assert_eq!((stat.inodes, stat.used_bytes), (1, 0), "inodes and bytes after everything was removed");
    assert_eq!(table.allocated_bytes(), 0, "allocated bytes after everything was removed");
    for group in table.groups().into_iter().filter(|_| !has_failed_disk(world)) {
        assert_eq!(group.used_bytes, 0, "bytes of group {} after everything was removed", group.group);
    }
}

/// A sentence on how things are, for what did not come about.
pub(crate) fn state(world: &World) -> String {
    let truth = world.truth.lock();
    let applied: Vec<String> = METANODES
        .into_iter()
        .map(|node| match world.role(node) {
            Some(role) => format!("{node} applied {}{}", role.applied(), if role.leads() { ", leads" } else { "" }),
            None => format!("{node} is dead"),
        })
        .collect();
    let table = truth.log.table();
    let freed = table.freed_chunks(i64::MAX, Default::default(), 100).len();
    let orphans = table.orphans(Default::default(), 100).len();
    let sessions = table.sessions().len();
    let (programs, mounted, left) = (truth.programs, truth.mounted(), truth.left);
    let last = truth.log.last();
    let shards = shards_wait(world, &truth).unwrap_or_else(|| "no shard left".to_owned());
    format!(
        "{}; {last} entries, {sessions} sessions, {orphans} orphans, {freed} freed chunks, {programs} programs, {mounted} \
         mounted, {left} left, {shards}",
        applied.join("; ")
    )
}

/// What happened, from everybody who counted.
pub(crate) fn coverage(world: &World) -> Coverage {
    let mut coverage = world.coverage;
    let truth = world.truth.lock();
    coverage.operations = truth.operations;
    coverage.entries = truth.log.last();
    coverage.repeated_mutations = truth.names.repeated();
    coverage.session_expiries = truth.expiries;
    coverage.told_losses = truth.told_losses;
    coverage.narrowed_stripes = truth.narrowed;
    coverage.forgotten_chunks = truth.forgotten;
    (coverage.compared_shards, coverage.refused_puts) = (truth.shards.compared, truth.shards.refused);
    coverage.floors = truth.floors;
    coverage.leader_changes = truth.leaders.iter().collect::<BTreeSet<_>>().len() as u64;
    coverage.snapshots_installed = truth.installed;
    for machine in world.machines.values() {
        coverage.add_disk(&machine.disk.counts());
    }
    coverage
}
