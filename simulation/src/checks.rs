//! Checks of a cluster that has come to rest.

use std::collections::BTreeSet;

use holdfast_common::LogIndex;
use holdfast_metanode::Table;

use crate::coverage::Coverage;
use crate::machines::{DATANODES, METANODES};
use crate::world::World;

/// Whether every replica has applied all that anybody has.
pub(crate) fn replicas_agree(world: &World) -> bool {
    let last = world.truth.lock().log.last();
    METANODES.into_iter().all(|node| world.role(node).is_some_and(|role| role.applied() == last))
}

/// Whether nothing waits to be freed, deleted or collected any more.
pub(crate) fn all_forgotten(world: &World) -> bool {
    let truth = world.truth.lock();
    let table = truth.log.table();
    table.freed_chunks(i64::MAX, Default::default(), 1).is_empty()
        && table.orphans(Default::default(), 1).is_empty()
        && table.inodes_with_dead(1).is_empty()
        && table.sessions().is_empty()
        && table.floor() == table.next_chunk()
        && debtor(world, table).is_none()
        && METANODES.into_iter().all(|node| world.role(node).is_some_and(|role| role.other_tables() == 0))
        && shards_wait(world).is_none()
}

/// A member that owes something and could settle it. A disk that failed for good owes for ever.
fn debtor(world: &World, table: &Table) -> Option<String> {
    let has_disk = |node| world.role(node).is_some_and(|role| role.shards().is_some());
    let members = table.members().into_iter().filter(|(node, _)| has_disk(*node));
    members.filter(|(_, disk)| table.owed(*disk).is_some()).map(|(node, _)| format!("{node} owes deletions")).next()
}

/// A disk that still has a shard. In the end every chunk is below the floor and none is live: whether it was committed once, or
/// burnt, late, or given up, its shards are gone.
fn shards_wait(world: &World) -> Option<String> {
    // A disk that loses writes may have lost a tombstone.
    DATANODES.into_iter().filter(|node| !world.plan.is_lost(*node)).find_map(|node| {
        let left = world.role(node)?.shards()?.into_iter().next()?;
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
    for group in table.groups() {
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
    let others: usize = METANODES.into_iter().filter_map(|node| Some(world.role(node)?.other_tables())).sum();
    let table = truth.log.table();
    let freed = table.freed_chunks(i64::MAX, Default::default(), 100).len();
    let orphans = table.orphans(Default::default(), 100).len();
    let sessions = table.sessions().len();
    let (programs, mounted, left) = (truth.programs, truth.mounted(), truth.left);
    let last = truth.log.last();
    let shards = shards_wait(world).unwrap_or_else(|| "no shard left".to_owned());
    let debts = debtor(world, table).unwrap_or_else(|| "nobody owes".to_owned());
    let (floor, next_chunk) = (table.floor(), table.next_chunk());
    format!(
        "{}; {last} entries, {sessions} sessions, {orphans} orphans, {freed} freed chunks, {programs} programs, {mounted} \
         mounted, {left} left, floor {floor} of {next_chunk}, {others} replicas of deleted volumes, {debts}, {shards}",
        applied.join("; ")
    )
}

/// Counts of a run, from all that counted.
pub(crate) fn coverage(world: &World) -> Coverage {
    let mut coverage = world.coverage;
    let truth = world.truth.lock();
    coverage.operations = truth.operations;
    coverage.entries = truth.log.last() - LogIndex::ZERO;
    coverage.repeated_mutations = truth.names.repeated();
    coverage.session_expiries = truth.expiries;
    coverage.told_losses = truth.told_losses;
    coverage.taken_over = truth.takeovers.settled().len() as u64;
    coverage.narrowed_stripes = truth.narrowed;
    coverage.reaped_orphans = truth.reaped;
    coverage.nameless_files = truth.nameless;
    coverage.truncated_by_another = truth.meddled;
    coverage.over_quota = truth.over_quota;
    coverage.refused_growth = truth.room.refused_growth;
    (coverage.volumes_made, coverage.volumes_deleted) = (truth.volumes.made, truth.volumes.deleted);
    let chunks = &truth.chunks;
    coverage.forgotten_chunks = chunks.forgotten;
    coverage.rewritten_chunks = chunks.rewritten;
    coverage.burnt_commits = truth.burnt_commits;
    coverage.floors = chunks.floors;
    (coverage.debts, coverage.settled_debts) = (chunks.debts, chunks.settled);
    coverage.collected_orphans = chunks.orphans;
    (coverage.compared_shards, coverage.refused_puts) = (truth.shards.compared, truth.shards.refused);
    coverage.leader_changes = truth.leaders.iter().collect::<BTreeSet<_>>().len() as u64;
    coverage.held_creates = truth.held_creates;
    coverage.snapshots_installed = truth.installed;
    coverage.refused_starts = truth.refused_starts;
    for machine in world.machines.values() {
        coverage.add_disk(&machine.disk.counts());
    }
    coverage
}
