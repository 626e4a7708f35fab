//! Faults of the metanode that leads: it is cut off from the other metanodes alone, while a client still reaches it and
//! another client reaches only them; it is paused for longer than its lease meanwhile; or the follower that its lease rests
//! upon starts anew and is asked for its vote. And a metanode dies while it takes in a snapshot.

use holdfast_common::NodeId;

use super::{both_ways, cut_for, refuse};
use crate::clock::{MS, SECOND};
use crate::machines::{METANODES, client_node};
use crate::plan::Later;
use crate::world::World;

/// Percent of snapshots in which their receiver dies, and as many in which it dies right after.
const DIES_INSTALLING_PERCENT: u64 = 30;
/// Within this many operations of its disk.
const INSTALL_OPERATIONS: u64 = 12;

/// Does something to the leader.
pub(super) fn befall(world: &mut World, leader: NodeId) {
    let followers: Vec<NodeId> = METANODES.into_iter().filter(|node| *node != leader).collect();
    let first = world.random.index(2);
    let pair = (followers[first], followers[1 - first]);
    world.coverage.deposed_leaders += 1;
    if world.random.chance(50) { divide(world, leader, pair) } else { usurp(world, leader, pair) }
}

/// The client that will reach the leader alone, and the one that will reach all metanodes but the leader.
pub(super) fn choose_clients(world: &mut World) -> (NodeId, NodeId) {
    let stays = world.random.index(2);
    (client_node(stays), client_node(1 - stays))
}

/// The leader and the other metanodes cannot talk.
pub(super) fn part(world: &mut World, leader: NodeId, duration: u64) {
    let others = METANODES.into_iter().filter(|other| *other != leader);
    let pairs = others.flat_map(|other| both_ways(leader, other)).collect();
    cut_for(world, pairs, duration);
}

/// They cannot for a moment, and clients reach all of them.
pub(super) fn depose(world: &mut World, leader: NodeId) {
    world.coverage.partitions += 1;
    let duration = world.random.below(5 * SECOND) + 20 * MS;
    part(world, leader, duration);
}

fn divide(world: &mut World, leader: NodeId, others: (NodeId, NodeId)) {
    let (stays, goes) = choose_clients(world);
    let duration = 3 * SECOND + world.random.below(5 * SECOND);
    let pairs = [both_ways(stays, others.0), both_ways(stays, others.1), both_ways(goes, leader)];
    refuse(world, pairs.concat(), duration);
    part(world, leader, duration);
    if world.random.chance(50) {
        let pause = 500 * MS + world.random.below(4 * SECOND);
        world.pause(leader, pause);
    }
}

/// One follower, which has all that the leader has, hears no more of it and asks for votes. Then the other one, on which the
/// leader's lease rests, starts anew and hears no more of the leader either.
fn usurp(world: &mut World, leader: NodeId, (usurper, voter): (NodeId, NodeId)) {
    let (stays, goes) = choose_clients(world);
    // Nothing new is written while the usurper is away: it would not be elected.
    let after = 1500 * MS + world.random.below(2 * SECOND);
    refuse(world, both_ways(stays, leader).to_vec(), after);
    refuse(world, both_ways(goes, leader).to_vec(), after + 3 * SECOND);
    let (pairs, duration) = (both_ways(leader, usurper).to_vec(), after + 2 * SECOND);
    world.later(400 * MS, Later::Cut { pairs, duration, refused: false });
    let restart_delay = 20 * MS + world.random.below(200 * MS);
    let pairs = both_ways(leader, voter).to_vec();
    world.later(after, Later::Cut { pairs, duration: 2 * SECOND, refused: false });
    world.later(after, Later::Die { node: voter, restart_delay });
    let pairs = [both_ways(stays, usurper), both_ways(stays, voter)].concat();
    world.later(after, Later::Cut { pairs, duration: 2 * SECOND, refused: true });
}

/// A metanode is about to take a snapshot in.
pub(super) fn snapshot_arrives(world: &mut World, node: NodeId) {
    if world.plan.on && world.random.chance(DIES_INSTALLING_PERCENT) {
        let operations = world.random.below(INSTALL_OPERATIONS);
        world.machines[&node].disk.die_after(operations);
    }
}

/// A metanode has taken a snapshot in, and nothing that follows it yet.
pub(super) fn snapshot_installed(world: &mut World, node: NodeId) {
    if world.plan.on && world.lives(node) && world.random.chance(DIES_INSTALLING_PERCENT) {
        world.kill(node);
    }
}
