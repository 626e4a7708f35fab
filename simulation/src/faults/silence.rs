//! A client is silent for longer than its lease, in the midst of its work: it is cut off or paused. Some that are paused
//! have just sent a keep-alive, whose answer they take in when they go on, long after they were expired. Others speak again while
//! the entry that expires them waits in the log of a leader that is cut off from the other metanodes for a moment.

use std::time::Duration;

use holdfast_common::NodeId;
use holdfast_common::limits::SESSION_LEASE_MS;

use super::leaders::part;
use super::{both_ways, cut_for};
use crate::clock::{MS, SECOND};
use crate::machines::{CLIENTS, METANODES, client_node};
use crate::plan::{Later, Part};
use crate::world::World;

/// Leaders expire sessions that are silent for a lease and a tenth.
const SILENCE: Duration = Duration::from_millis(SESSION_LEASE_MS as u64 / 10 * 11);
/// What a client had asked for is answered within this.
const SETTLED_NS: u64 = 20 * SECOND;
/// A leader's lease outlasts this.
const PARTED_NS: u64 = SECOND;
/// Leaders look at the silent twice a second.
const PROPOSED_NS: u64 = 400 * MS;

/// Takes a client away.
pub(super) fn begin(world: &mut World) {
    let client = world.random.index(CLIENTS);
    let node = client_node(client);
    let duration = 36 * SECOND + world.random.below(12 * SECOND);
    if world.random.chance(50) {
        if world.truth.lock().demands.asks_before_silence {
            return world.pause_when_asking(node, duration);
        }
        world.pause(node, duration);
        return world.later(SETTLED_NS, Later::Silence(Part::Settled(client)));
    }
    let others: Vec<NodeId> = world.machines.keys().copied().filter(|other| *other != node).collect();
    cut_for(world, others.into_iter().flat_map(|other| both_ways(node, other)).collect(), duration);
}

pub(super) fn go_on(world: &mut World, at: Part) {
    let leader = METANODES.into_iter().find(|node| world.leads(*node));
    match at {
        Part::Settled(client) => {
            let heard = world.truth.lock().last_answered(client);
            let (Some(leader), Some(heard)) = (leader, heard) else { return };
            let due = heard + world.machines[&leader].clock.true_ns(SILENCE);
            world.later(due.saturating_sub(world.now), Later::Silence(Part::Due(client)));
        }
        Part::Due(client) => {
            let Some(leader) = leader else { return };
            part(world, leader, PARTED_NS);
            let delay = PROPOSED_NS + world.random.below(PARTED_NS - PROPOSED_NS);
            world.later(delay, Later::Silence(Part::Speak(client)));
        }
        Part::Speak(client) => world.resume(client_node(client)),
    }
}
