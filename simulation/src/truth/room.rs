//! Want of room: whose disks become full, and what that excuses.

use holdfast_common::NodeId;
use holdfast_proto::meta::{BlockGroup, GroupSlot};

use crate::machines::CODE;

/// Knowledge of full disks.
#[derive(Default)]
pub(crate) struct Room {
    /// Too few disks of every group keep room: a client may lose what it has taken in (R16).
    pub(crate) may_run_out: bool,
    /// Requests of clients that a table refused for want of space.
    pub(crate) refused_growth: u64,
}

impl Room {
    /// Disks of these machines may become full or go out of service from now on. Clients may not have heard of groups that are
    /// added later.
    pub(crate) fn begin(&mut self, may_lack: &[NodeId], groups: &[BlockGroup]) {
        let has_room = |slot: &&GroupSlot| !may_lack.contains(&NodeId(slot.node));
        let is_short = |group: &BlockGroup| group.slots.iter().filter(has_room).count() < 1 + CODE.1 as usize;
        self.may_run_out = groups.iter().all(is_short);
    }
}
