//! Want of room: whose disks become full, and what that excuses.

use std::collections::BTreeSet;

use holdfast_common::NodeId;
use holdfast_proto::meta::{BlockGroup, GroupSlot};

use crate::machines::CODE;

/// Knowledge of full disks.
#[derive(Default)]
pub(crate) struct Room {
    /// Machines whose disks may be full or out of service by now.
    pub(crate) may_lack: BTreeSet<NodeId>,
    /// Requests of clients that a table refused for want of space.
    pub(crate) refused_growth: u64,
}

impl Room {
    /// Whether every group may have been left with too few disks with room: then a client may lose what it has taken in (R16).
    pub(crate) fn may_run_out(&self, groups: &[BlockGroup]) -> bool {
        let has_room = |slot: &&GroupSlot| !self.may_lack.contains(&NodeId(slot.node));
        groups.iter().all(|group| group.slots.iter().filter(has_room).count() < 1 + CODE.1 as usize)
    }
}
