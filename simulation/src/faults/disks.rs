//! Faults of the one datanode and the one metanode whose syncs fail. Soon after a failed sync the machine loses its power, as a
//! dying controller takes its host along: writes that the sync should have covered are lost, whatever later syncs say (D6). A
//! metanode that keeps the rule has ended by then, mostly.

use holdfast_common::NodeId;
use holdfast_storage::simulated::Fault;

use crate::clock::{MS, SECOND};
use crate::plan::{Blow, Later};
use crate::world::World;

/// The disk has something to lose by then.
const AFTER_NS: u64 = 3 * SECOND;
/// The machine outlives the sync by this, at most.
const OUTLIVES_NS_MAX: u64 = 800 * MS;
const AGAIN_NS: u64 = 300 * MS;

/// Plans it, for disks that keep what they promised until then.
pub(super) fn begin(world: &mut World) {
    for node in [world.plan.failing(), world.plan.failing_log].into_iter().flatten() {
        let delay = AFTER_NS + world.random.below(world.plan.faults_ns - AFTER_NS);
        world.later(delay, Later::Blow(node, Blow::Sync));
    }
}

pub(super) fn go_on(world: &mut World, node: NodeId, blow: Blow) {
    match blow {
        // Its process has died for another reason.
        Blow::Sync if !world.lives(node) => world.later(AGAIN_NS, Later::Blow(node, blow)),
        Blow::Sync => {
            world.coverage.failing_syncs += 1;
            world.machines[&node].disk.fail_next(Fault::Sync);
            let delay = world.random.below(OUTLIVES_NS_MAX);
            world.later(delay, Later::Blow(node, Blow::Power));
        }
        Blow::Power if world.lives(node) => world.kill_by_power(node),
        Blow::Power => {}
    }
}
