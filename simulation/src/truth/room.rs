//! Want of room: whose disks become full, and what that excuses.

use holdfast_common::NodeId;
use holdfast_proto::meta::{BlockGroup, GroupSlot};

use crate::machines::CODE;

/// Knowledge of full disks.
#[derive(Default)]
pub(crate) struct Room {
    /// Machines whose disks become full now and then.
    pub(crate) full_disks: Vec<NodeId>,
    /// Requests of clients that a table refused for want of space.
    pub(crate) refused_growth: u64,
}

impl Room {
    /// Whether some group may be left with too few disks with room: then a client may lose what it has taken in (R16).
    pub(crate) fn may_run_out(&self, groups: &[BlockGroup]) -> bool {
        let has_room = |slot: &&GroupSlot| !self.full_disks.contains(&NodeId(slot.node));
        groups.iter().any(|group| group.slots.iter().filter(has_room).count() < 1 + CODE.1 as usize)
    }
}
