//! Configuration, block groups and their membership (R12), freed chunks: what leaders propose.

use super::namespace::root_directory;
use super::records::{Group, Slot};
use super::{Broken, Configuration, Outcome, Table, broken};
use holdfast_common::limits::SHARDS_MAX;
use holdfast_common::{ChunkId, DiskId, Epoch, GroupId, Incarnation, InodeId, NodeId, VolumeId};
use holdfast_proto::meta::{
    AddGroups, BlockGroup, Code, Configure, ForgetChunks, GroupState, MutateResponse, SetGroupState, VacateSlot,
};

/// Room in a table's open block groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of data until the open block groups are full.
    pub open_bytes: u64,
    /// Id that the next block group has.
    pub next_group: GroupId,
    /// Block groups of any state.
    pub groups_count: u64,
}

impl Table {
    pub(super) fn configure(&mut self, op: &Configure, now_ns: i64) -> Outcome<MutateResponse> {
        let wanted = configuration(op)?;
        match &self.configuration {
            Some(present)
                if (present.volume, present.incarnation, present.data_shards, present.parity_shards)
                    != (wanted.volume, wanted.incarnation, wanted.data_shards, wanted.parity_shards) =>
            {
                return Err(Code::Invalid.into());
            }
            Some(_) => {}
            None => {
                self.inodes.insert(InodeId::ROOT, root_directory(now_ns));
            }
        }
        self.configuration = Some(wanted);
        Ok(MutateResponse::default())
    }

    /// Adds block groups that are not there yet: a retry brings the same ones.
    pub(super) fn add_groups(&mut self, op: &AddGroups) -> Outcome<MutateResponse> {
        let shards_count =
            self.configuration.as_ref().map_or(0, |c| usize::from(c.data_shards) + usize::from(c.parity_shards));
        let well_formed = |group: &BlockGroup| {
            group.group != 0
                && group.group < u64::MAX
                && group.slots.len() == shards_count
                && group.slots.iter().all(|slot| slot.disk != 0 && slot.node != 0)
        };
        if !op.groups.iter().all(well_formed) {
            return Err(Code::Invalid.into());
        }
        for group in &op.groups {
            let id = GroupId(group.group);
            self.counters.next_group = self.counters.next_group.max(id.0 + 1);
            if self.groups.contains(&id) {
                continue;
            }
            let since_epoch = Epoch(group.epoch);
            let slots = group
                .slots
                .iter()
                .map(|slot| Slot { disk: DiskId(slot.disk), node: NodeId(slot.node), since_epoch })
                .collect();
            let added = Group {
                epoch: since_epoch,
                slots,
                state: GroupState::GroupOpen,
                used_bytes: 0,
                capacity_bytes: group.capacity_bytes,
                changed: 0,
            };
            self.groups.insert(id, added);
            self.group_changes.insert((0, id), ());
            self.group_changed(id)?;
        }
        Ok(MutateResponse::default())
    }

    /// Membership or state of a block group changed: clients are to fetch it again.
    fn group_changed(&mut self, id: GroupId) -> Result<(), Broken> {
        self.counters.groups_version += 1;
        if self.feature_level() < 1 {
            return Ok(());
        }
        let version = self.counters.groups_version;
        let Some(mut group) = self.groups.get_mut(&id) else {
            return broken(format!("group {id} is not there"));
        };
        let former = std::mem::replace(&mut group.changed, version);
        drop(group);
        self.group_changes.remove(&(former, id));
        self.group_changes.insert((version, id), ());
        Ok(())
    }

    /// Compare-and-swap on the epoch, so that two reports of one failure vacate once.
    pub(super) fn vacate_slot(&mut self, op: &VacateSlot) -> Outcome<MutateResponse> {
        let mut group = self.groups.get_mut(&GroupId(op.group)).ok_or(Code::NotFound)?;
        let index = usize::try_from(op.slot).map_err(|_| Code::Invalid)?;
        let slot = group.slots.get(index).ok_or(Code::Invalid)?;
        if group.epoch != Epoch(op.epoch) || slot.disk.0 == 0 {
            return Err(Code::Changed.into());
        }
        group.epoch = group.epoch.next();
        let vacant = Slot { disk: DiskId(0), node: NodeId(0), since_epoch: group.epoch };
        let slots = group.slots.iter().enumerate().map(|(i, slot)| if i == index { vacant } else { *slot });
        let slots = slots.collect();
        group.slots = slots;
        drop(group);
        self.group_changed(GroupId(op.group))?;
        Ok(MutateResponse::default())
    }

    pub(super) fn set_group_state(&mut self, op: &SetGroupState) -> Outcome<MutateResponse> {
        let state = GroupState::try_from(op.state).map_err(|_| Code::Invalid)?;
        self.groups.get_mut(&GroupId(op.group)).ok_or(Code::NotFound)?.state = state;
        self.group_changed(GroupId(op.group))?;
        Ok(MutateResponse::default())
    }

    /// Their shards are deleted; what is not on the freed list is left alone.
    pub(super) fn forget_chunks(&mut self, op: &ForgetChunks) -> Outcome<MutateResponse> {
        for id in op.chunks.iter().copied().map(ChunkId) {
            if let Some(freed_ns) =
                self.chunks.get(&id).filter(|chunk| chunk.live_bytes == 0).map(|chunk| chunk.freed_ns)
            {
                self.freed.remove(&(freed_ns, id));
                self.forget_chunk(id)?;
            }
        }
        self.note_owed(op);
        Ok(MutateResponse::default())
    }

    fn forget_chunk(&mut self, id: ChunkId) -> Result<(), Broken> {
        let Some(chunk) = self.chunks.remove(&id) else {
            return broken(format!("chunk {id} is not there"));
        };
        let Some(mut group) = self.groups.get_mut(&chunk.group) else {
            return broken(format!("chunk {id} is in no group"));
        };
        match group.used_bytes.checked_sub(chunk.length_bytes.into()) {
            Some(rest) => group.used_bytes = rest,
            None => return broken(format!("group {} has fewer bytes than its chunks", chunk.group)),
        }
        Ok(())
    }

    /// Room in the open block groups.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        let open_bytes = self
            .groups
            .iter()
            .filter(|(_, group)| group.state == GroupState::GroupOpen)
            .map(|(_, group)| group.capacity_bytes.saturating_sub(group.used_bytes))
            .fold(0, u64::saturating_add);
        Capacity { open_bytes, next_group: GroupId(self.counters.next_group), groups_count: self.groups.len() as u64 }
    }

    /// Groups whose state no longer fits what they hold: open ones that are full, full ones that were emptied again by
    /// a quarter, so that a group does not go back and forth with every chunk.
    #[must_use]
    pub(crate) fn groups_to_switch(&self) -> Vec<(GroupId, GroupState)> {
        let wanted = |group: &Group| match group.state {
            GroupState::GroupOpen if group.used_bytes >= group.capacity_bytes => Some(GroupState::GroupFull),
            GroupState::GroupFull if group.used_bytes < group.capacity_bytes - group.capacity_bytes / 4 => {
                Some(GroupState::GroupOpen)
            }
            GroupState::GroupOpen | GroupState::GroupFull => None,
        };
        self.groups.iter().filter_map(|(id, group)| Some((*id, wanted(group)?))).collect()
    }
}

fn configuration(op: &Configure) -> Result<Configuration, Code> {
    let data_shards = u8::try_from(op.data_shards).map_err(|_| Code::Invalid)?;
    let parity_shards = u8::try_from(op.parity_shards).map_err(|_| Code::Invalid)?;
    if op.volume == 0 || data_shards == 0 || usize::from(data_shards) + usize::from(parity_shards) > SHARDS_MAX {
        return Err(Code::Invalid);
    }
    Ok(Configuration {
        volume: VolumeId(op.volume),
        incarnation: Incarnation(op.incarnation),
        data_shards,
        parity_shards,
        quota_bytes: op.quota_bytes,
        name: op.name.clone(),
    })
}
