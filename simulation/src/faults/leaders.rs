//! What befalls the metanode that leads: it is cut off from the other metanodes alone, while a client still reaches it and
//! another client reaches only them; it is paused for longer than its lease meanwhile; or the follower that its lease rests
//! upon starts anew and is asked for its vote. And a metanode dies while it takes in a snapshot.

use holdfast_common::NodeId;

use super::SECOND;
use crate::cluster::{METANODES, client_node};
use crate::world::{Heal, Later, MS, World};

/// Percent of snapshots in which their receiver dies.
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

fn both_ways(one: NodeId, other: NodeId) -> [(NodeId, NodeId); 2] {
    [(one, other), (other, one)]
}

/// One client reaches the leader alone, the other client all metanodes but the leader.
fn part_clients(world: &mut World, leader: NodeId, others: (NodeId, NodeId)) -> Vec<(NodeId, NodeId)> {
    let stays = world.random.index(2);
    let (stays, goes) = (client_node(stays), client_node(1 - stays));
    let pairs = [both_ways(stays, others.0), both_ways(stays, others.1), both_ways(goes, leader)].concat();
    // They learn it at once, so that they look for a leader and do not wait for one.
    world.network.refused.extend(pairs.iter().copied());
    for (caller, to) in &pairs {
        world.close_connections(*caller, *to);
    }
    pairs
}

fn divide(world: &mut World, leader: NodeId, others: (NodeId, NodeId)) {
    let mut pairs = part_clients(world, leader, others);
    pairs.extend([both_ways(leader, others.0), both_ways(leader, others.1)].concat());
    let duration = 3 * SECOND + world.random.below(5 * SECOND);
    super::cut_for(world, pairs, duration);
    if world.random.chance(50) {
        let pause = 500 * MS + world.random.below(4 * SECOND);
        world.pause(leader, pause);
    }
}

/// One follower hears nothing of the leader and asks for votes; then the other one, which kept the leader's lease, starts anew
/// and hears no more of the leader either.
fn usurp(world: &mut World, leader: NodeId, (usurper, voter): (NodeId, NodeId)) {
    let mut pairs = part_clients(world, leader, (usurper, voter));
    pairs.extend(both_ways(leader, usurper));
    let duration = 7 * SECOND;
    super::cut_for(world, pairs, duration);
    let after = 3 * SECOND + world.random.below(2 * SECOND);
    let restart_delay = 20 * MS + world.random.below(300 * MS);
    let pairs = both_ways(leader, voter).to_vec();
    world.later(after, Later::Cut { pairs, duration: 2 * SECOND });
    world.later(after, Later::Die { node: voter, restart_delay });
}

/// A metanode is about to take a snapshot in.
pub(crate) fn snapshot_arrives(world: &mut World, node: NodeId) {
    if world.plan.on && world.random.chance(DIES_INSTALLING_PERCENT) {
        let operations = world.random.below(INSTALL_OPERATIONS);
        world.machines[&node].disk.die_after(operations);
    }
}

/// Something that was planned happens, if things still go wrong.
pub(crate) fn come(world: &mut World, later: Later) {
    if !world.plan.on {
        return;
    }
    match later {
        Later::Cut { pairs, duration } => {
            world.network.cut.extend(pairs.iter().copied());
            world.heal_after(duration, Heal::Link(pairs));
        }
        Later::Die { node, restart_delay } if world.lives(node) => world.kill_for(node, restart_delay),
        Later::Die { .. } => {}
    }
}
