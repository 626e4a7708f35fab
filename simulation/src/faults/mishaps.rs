//! What befalls the whole disk of a metanode: it is lost, or an older image of it is started in its place. Once in a run.
//!
//! A copy from an older image has forgotten what its node voted and acknowledged since. The volume manager refuses it once it
//! hears of it; until then only the other metanodes can know better, and only those that heard a later start of the node since
//! their own start. So a copy is begun when the one metanode that it reaches has, and ends when a metanode starts anew. And its
//! node has started twice since the image: a copy is the start after the one in its image, which nobody can tell from the
//! node's own.

use holdfast_common::NodeId;
use holdfast_storage::SimulatedDisk;

use super::{both_ways, cut_for, leaders, refuse};
use crate::clock::{MS, SECOND};
use crate::disk::format_log;
use crate::machine::{Image, Superblock};
use crate::machines::{METANODES, VOLMGR};
use crate::plan::{Later, Mishap, Step};
use crate::world::World;

/// A leader that is cut off is deposed within this, and the others have written something.
const PARTED_NS: u64 = 4 * SECOND;
/// What was sent to a process has come by then.
const UNDER_WAY_NS: u64 = SECOND;
/// A copy gives its vote within this.
const ALONE_NS: u64 = 6 * SECOND;
/// The volume manager has refused a copy that reaches it within this, if it lives.
const REFUSED_NS: u64 = 5 * SECOND;
const AGAIN_NS: u64 = 300 * MS;

/// Plans it.
pub(super) fn begin(world: &mut World) {
    let Some(mishap) = world.plan.mishap else { return };
    let node = METANODES[world.random.index(METANODES.len())];
    match mishap {
        Mishap::LogLost => {
            let delay = 2 * SECOND + world.random.below(world.plan.faults_ns / 2);
            world.later(delay, Later::Mishap(Step::LoseLog(node)));
        }
        Mishap::OlderCopy => {
            let Some(machine) = world.machines.get_mut(&node) else { return };
            machine.image = Some(Image { disk: machine.disk.fork(), superblock: machine.superblock });
            for delay in [500 * MS, 2 * SECOND] {
                world.later(delay, Later::Die { node, restart_delay: 100 * MS });
            }
            world.later(3 * SECOND, Later::Mishap(Step::Part(node)));
        }
    }
}

pub(super) fn take(world: &mut World, step: Step) {
    match step {
        Step::LoseLog(node) => lose_log(world, node),
        Step::Part(node) => part(world, node),
        Step::Replace { replaced, hearer, life } => replace(world, replaced, hearer, life),
        Step::Withdraw => withdraw_copies(world),
    }
}

fn again(world: &mut World, step: Step) {
    world.later(AGAIN_NS, Later::Mishap(step));
}

/// A metanode dies, and its next start finds an empty disk.
fn lose_log(world: &mut World, node: NodeId) {
    if !world.lives(node) {
        return again(world, Step::LoseLog(node));
    }
    world.kill(node);
    let (seed, faults) = (world.random.bits(), world.plan.disk_faults(node));
    let Some(machine) = world.machines.get_mut(&node) else { return };
    let disk = SimulatedDisk::new(seed);
    format_log(&disk, machine.superblock.log).expect("a new disk");
    disk.set_faults(faults);
    let lost = std::mem::replace(&mut machine.disk, disk);
    machine.is_log_lost = true;
    world.coverage.add_disk(&lost.counts());
    world.coverage.lost_logs += 1;
}

/// A metanode that lost its log has all of its tables back.
pub(crate) fn recovered(world: &mut World, node: NodeId) {
    let Some(machine) = world.machines.get_mut(&node) else { return };
    let Superblock { generation, log, recovering } = machine.superblock;
    machine.superblock = Superblock { generation, log: recovering.unwrap_or(log), recovering: None };
    world.coverage.recovered_metanodes += 1;
}

/// The leader, which has heard of the last start of the node, is parted from the others: they go on without it, and one client
/// with them.
fn part(world: &mut World, replaced: NodeId) {
    let leader = METANODES.into_iter().find(|node| world.leads(*node) && *node != replaced);
    let hearer = leader.filter(|leader| knows_better(world, replaced, *leader));
    let Some((hearer, other)) = hearer.and_then(|hearer| Some((hearer, third(replaced, hearer)?))) else {
        return again(world, Step::Part(replaced));
    };
    let (stays, goes) = leaders::choose_clients(world);
    let whole = PARTED_NS + UNDER_WAY_NS + ALONE_NS;
    world.plan.quiet_until = world.now + whole + REFUSED_NS;
    cut_for(world, both_ways(hearer, replaced).to_vec(), PARTED_NS);
    cut_for(world, both_ways(hearer, other).to_vec(), whole);
    refuse(world, [both_ways(stays, replaced), both_ways(stays, other), both_ways(goes, hearer)].concat(), whole);
    let life = world.machines[&hearer].life;
    world.later(PARTED_NS, Later::Mishap(Step::Replace { replaced, hearer, life }));
}

/// Whether the volume manager and a metanode know of a later start of a node than its copy will be, and all three are well.
fn knows_better(world: &World, replaced: NodeId, hearer: NodeId) -> bool {
    let machine = &world.machines[&replaced];
    let generation = machine.superblock.generation;
    let well = METANODES.into_iter().all(|node| world.machines[&node].is_awake());
    let volmgr = world.machines[&VOLMGR].role.as_ref();
    let registered = volmgr.and_then(|role| role.registered_start(replaced));
    let is_older = machine.image.as_ref().is_some_and(|image| registered > Some(image.superblock.generation + 1));
    well && is_older && world.machines[&hearer].heard.get(&replaced) == Some(&generation)
}

/// The metanode that is neither.
fn third(one: NodeId, other: NodeId) -> Option<NodeId> {
    METANODES.into_iter().find(|node| *node != one && *node != other)
}

/// The node dies, and its copy is started where only the former leader reaches it, and the volume manager later.
fn replace(world: &mut World, replaced: NodeId, hearer: NodeId, life: u64) {
    let is_same = world.machines[&hearer].life == life && !world.leads(hearer);
    let Some(other) = third(replaced, hearer).filter(|_| is_same && knows_better(world, replaced, hearer)) else {
        return;
    };
    world.kill_for(replaced, UNDER_WAY_NS);
    let faults = world.plan.disk_faults(replaced);
    let Some(machine) = world.machines.get_mut(&replaced) else { return };
    let Some(image) = machine.image.take() else { return };
    image.disk.lose_power(&mut world.random);
    image.disk.set_faults(faults);
    machine.original = Some(machine.exchange(image));
    world.coverage.older_copies += 1;
    cut_for(world, both_ways(replaced, VOLMGR).to_vec(), UNDER_WAY_NS + ALONE_NS);
    cut_for(world, both_ways(replaced, other).to_vec(), UNDER_WAY_NS + ALONE_NS + REFUSED_NS);
    world.later(UNDER_WAY_NS + ALONE_NS + REFUSED_NS, Later::Mishap(Step::Withdraw));
}

/// Ends the copies that run, and lets their nodes start from their own directories.
pub(crate) fn withdraw_copies(world: &mut World) {
    for node in METANODES {
        let Some(original) = world.machines.get_mut(&node).and_then(|machine| machine.original.take()) else {
            continue;
        };
        if world.lives(node) {
            world.kill(node);
        }
        world.lose_messages(node);
        let Some(machine) = world.machines.get_mut(&node) else { continue };
        let copy = machine.exchange(original);
        world.coverage.add_disk(&copy.disk.counts());
    }
}
