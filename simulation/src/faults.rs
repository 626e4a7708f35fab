//! Faults of a run: which, when, and how many. Never more than Raft and the code mode tolerate for good.

mod disks;
mod leaders;
mod mishaps;
mod silence;
mod space;

use holdfast_common::{NodeId, Random};
use holdfast_storage::simulated::Faults;

use crate::clock::{MS, SECOND};
use crate::machines::{CLIENTS, DATANODES, METANODES, VOLMGR, client_node};
use crate::plan::Later;
use crate::world::{Fate, Heal, World};

/// A client has written something by then.
const AWAY_AFTER_NS: u64 = 4 * SECOND;
/// Percent of faults that are about who leads.
const LEADER_PERCENT: u64 = 15;
/// Size of a disk with room for everything.
const ROOMY_BYTES: u64 = 1 << 40;
/// More operations than a run has.
const FAR: u64 = 1 << 60;

/// Calls of the world upon this module.
pub(crate) const FATE: Fate = Fate {
    strike,
    come,
    snapshot_arrives: leaders::snapshot_arrives,
    snapshot_installed: leaders::snapshot_installed,
    recovered: mishaps::recovered,
    metanode_ended: mishaps::withdraw_copies,
};

/// Something that was planned happens, if things still go wrong.
fn come(world: &mut World, later: Later) {
    if !world.plan.on {
        return;
    }
    match later {
        Later::Cut { pairs, duration, refused: true } => refuse(world, pairs, duration),
        Later::Cut { pairs, duration, refused: false } => cut_for(world, pairs, duration),
        Later::Die { node, restart_delay } if world.lives(node) => world.kill_for(node, restart_delay),
        Later::Die { .. } => {}
        Later::Mishap(step) => mishaps::take(world, step),
        Later::Silence(part) => silence::go_on(world, part),
        Later::Blow(node, blow) => disks::go_on(world, node, blow),
        Later::Space(node, space) => space::change(world, node, space),
    }
}

/// Begins the time of faults.
pub(crate) fn begin(world: &mut World) {
    world.plan.on = true;
    world.network.loss_percent = world.plan.loss_percent;
    world.network.slow_percent = world.random.below(3);
    world.network.doubled_percent = world.random.below(4);
    for node in METANODES.into_iter().chain(DATANODES).chain([VOLMGR]) {
        world.machines[&node].disk.set_faults(world.plan.disk_faults(node));
    }
    let delay = world.random.below(2 * SECOND);
    world.fault_after(delay);
    mishaps::begin(world);
    disks::begin(world);
    space::begin(world);
    if world.plan.long {
        world.plan.away_at = Some(world.now + AWAY_AFTER_NS);
    }
}

/// Ends it: everything that was cut, lost or slow is well again. What rotted stays so.
pub(crate) fn end(world: &mut World) {
    world.plan.on = false;
    mishaps::withdraw_copies(world);
    world.network.cut.clear();
    world.network.refused.clear();
    (world.network.loss_percent, world.network.slow_percent, world.network.doubled_percent) = (0, 0, 0);
    for machine in world.machines.values() {
        machine.disk.set_faults(Faults { operation_ns: 20_000, ..Faults::default() });
        machine.disk.fail_no_more();
        machine.disk.set_capacity(ROOMY_BYTES);
        machine.disk.die_after(FAR);
    }
    let nodes: Vec<NodeId> = world.machines.keys().copied().collect();
    nodes.into_iter().for_each(|node| world.resume(node));
    // A disk that failed must not serve after a restart.
    let failed = world.plan.bad_disk.filter(|node| world.role(*node).is_some_and(|role| role.shards().is_none()));
    if let Some(node) = failed {
        world.kill(node);
    }
}

/// The pairs of two machines that cannot talk at all.
fn both_ways(one: NodeId, other: NodeId) -> [(NodeId, NodeId); 2] {
    [(one, other), (other, one)]
}

fn any(random: &mut Random) -> NodeId {
    match random.below(10) {
        0..=3 => METANODES[random.index(METANODES.len())],
        4..=6 => DATANODES[random.index(DATANODES.len())],
        7..=8 => client_node(random.index(CLIENTS)),
        _ => VOLMGR,
    }
}

/// The metanode that leads the table more often than not, else any.
fn important(world: &mut World) -> NodeId {
    let leader = METANODES.into_iter().find(|node| world.leads(*node));
    let mut node = any(&mut world.random);
    while world.plan.long && METANODES.contains(&node) {
        // A lease is counted anew by each new leader: no session would ever be expired.
        node = any(&mut world.random);
    }
    leader.filter(|_| !world.plan.long && world.random.chance(30)).unwrap_or(node)
}

/// One fault, and the next.
fn strike(world: &mut World) {
    if !world.plan.on {
        return;
    }
    if world.now < world.plan.quiet_until {
        return world.fault_after(world.plan.quiet_until - world.now);
    }
    if world.plan.away_at.is_some_and(|at| world.now >= at) {
        world.plan.away_at = None;
        silence::begin(world);
    }
    let leader = METANODES.into_iter().find(|node| world.leads(*node)).filter(|_| !world.plan.long);
    if let Some(leader) = leader.filter(|_| world.random.chance(LEADER_PERCENT)) {
        leaders::befall(world, leader);
        let delay = world.random.below(world.plan.interval_ns) + 5 * SECOND;
        return world.fault_after(delay);
    }
    let node = important(world);
    match world.random.below(13) {
        0..=2 => die(world, node),
        3..=4 => isolate(world, node),
        5 => cut_one(world),
        6..=7 => {
            let duration = duration(world);
            world.pause(node, duration);
        }
        8 => jump(world, node),
        9 => {
            let other = any(&mut world.random);
            world.close_connections(node, other);
        }
        10 => {
            world.network.loss_percent = 30;
            let delay = world.random.below(3 * SECOND);
            world.heal_after(delay, Heal::Loss);
        }
        11 => {
            // As above: no session would ever be expired.
            let leader = METANODES.into_iter().find(|node| world.leads(*node) && !world.plan.long);
            leader.into_iter().for_each(|leader| leaders::depose(world, leader));
        }
        _ => cut_down(world),
    }
    let delay = world.random.below(world.plan.interval_ns) + 10 * MS;
    world.fault_after(delay);
}

/// A pause or cut: mostly short; in long runs sometimes longer than a lease.
fn duration(world: &mut World) -> u64 {
    if world.plan.long && world.random.one_in(4) {
        return 30 * SECOND + world.random.below(20 * SECOND);
    }
    world.random.below(5 * SECOND) + 20 * MS
}

/// At once, or in one of its disk's next operations.
fn die(world: &mut World, node: NodeId) {
    if !world.lives(node) {
        return;
    }
    if world.random.chance(50) {
        world.kill(node);
    } else {
        let operations = world.random.below(12);
        world.machines[&node].disk.die_after(operations);
    }
}

/// Nobody reaches a machine, or it reaches nobody, or both.
fn isolate(world: &mut World, node: NodeId) {
    let others: Vec<NodeId> = world.machines.keys().copied().filter(|other| *other != node).collect();
    let way = world.random.below(3);
    let mut pairs = Vec::new();
    for other in others {
        if way != 1 {
            pairs.push((node, other));
        }
        if way != 0 {
            pairs.push((other, node));
        }
    }
    world.coverage.partitions += 1;
    world.coverage.one_way_partitions += u64::from(way != 2);
    cut(world, pairs);
}

fn cut_one(world: &mut World) {
    let (one, other) = (any(&mut world.random), any(&mut world.random));
    world.coverage.partitions += 1;
    cut(world, both_ways(one, other).to_vec());
}

fn cut(world: &mut World, pairs: Vec<(NodeId, NodeId)>) {
    let duration = duration(world);
    cut_for(world, pairs, duration);
}

fn cut_for(world: &mut World, pairs: Vec<(NodeId, NodeId)>, duration: u64) {
    world.network.cut.add(&pairs);
    world.heal_after(duration, Heal::Link(pairs));
}

/// Cuts these for a while; who calls learns it at once, and looks for another leader instead of waiting for this one.
fn refuse(world: &mut World, pairs: Vec<(NodeId, NodeId)>, duration: u64) {
    world.network.refused.add(&pairs);
    world.heal_after(duration, Heal::Refused(pairs.clone()));
    for (caller, to) in &pairs {
        world.close_connections(*caller, *to);
    }
    cut_for(world, pairs, duration);
}

/// The wall clock is set.
fn jump(world: &mut World, node: NodeId) {
    let by = i64::try_from(world.random.below(2 * 3600 * SECOND)).unwrap_or(0) - 3_600_000_000_000;
    if let Some(machine) = world.machines.get_mut(&node) {
        machine.clock.set_wall(by);
        world.coverage.clock_jumps += 1;
    }
}

/// Several datanodes at once: more than the code mode reads around.
fn cut_down(world: &mut World) {
    for node in DATANODES {
        if world.random.chance(50) {
            die(world, node);
        }
    }
}
