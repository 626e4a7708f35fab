//! Full disks: others take the space that a machine's disk has left, all or nearly all, and give it back later, all or a part.

use holdfast_common::NodeId;

use super::ROOMY_BYTES;
use crate::clock::SECOND;
use crate::plan::{Later, Space};
use crate::world::World;

/// Longest time until a disk is full for the first time, and that it stays so.
const TAKEN_AFTER_NS_MAX: u64 = 8 * SECOND;
const TAKEN_NS_MAX: u64 = 10 * SECOND;
/// Longest time until it is full again.
const GIVEN_BACK_NS_MAX: u64 = 6 * SECOND;
/// Bytes that others leave: none, less than a segment, and some segments.
const LEFT_BYTES: [u64; 4] = [0, 16 << 10, 300 << 10, 2 << 20];
/// Bytes that they give back, where it is not everything.
const BACK_BYTES: u64 = 4 << 20;

/// Plans it.
pub(super) fn begin(world: &mut World) {
    if !world.plan.full_disks.is_empty() {
        let may_lack: Vec<NodeId> = world.plan.full_disks.iter().copied().chain(world.plan.bad_disk).collect();
        let mut truth = world.truth.lock();
        let groups = truth.log.table().groups();
        truth.room.begin(&may_lack, &groups);
    }
    for node in world.plan.full_disks.clone() {
        let delay = world.random.below(TAKEN_AFTER_NS_MAX);
        world.later(delay, Later::Space(node, Space::Taken));
    }
}

pub(super) fn change(world: &mut World, node: NodeId, space: Space) {
    let disk = &world.machines[&node].disk;
    let (next, after_ns_max) = match space {
        Space::Taken => {
            let left_bytes = LEFT_BYTES[world.random.index(LEFT_BYTES.len())];
            disk.set_capacity(disk.allocated_bytes() + left_bytes);
            world.coverage.full_disks += 1;
            (Space::GivenBack, TAKEN_NS_MAX)
        }
        Space::GivenBack => {
            let is_part = world.random.chance(50);
            disk.set_capacity(if is_part { disk.allocated_bytes() + BACK_BYTES } else { ROOMY_BYTES });
            (Space::Taken, GIVEN_BACK_NS_MAX)
        }
    };
    let delay = world.random.below(after_ns_max);
    world.later(delay, Later::Space(node, next));
}
