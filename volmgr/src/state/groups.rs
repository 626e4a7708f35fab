//! Block groups given to volumes: named by the table, so that a retry is answered with the same ones.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::{DiskId, GroupId, Incarnation, NodeId, VolumeId};
use holdfast_proto::cluster::{AllocateGroups, ClusterReply, GroupRecord, MemberRecord};

use super::{ClusterState, Member, Refusal};

/// A block group as records carry it.
pub(super) fn group_record(group: GroupId, members: &[Member]) -> GroupRecord {
    let members = members.iter().map(|m| MemberRecord { disk: m.disk.0, node: m.node.0 }).collect();
    GroupRecord { group: group.0, members }
}

/// A block group's members as the state keeps them.
pub(super) fn members_of(record: &GroupRecord) -> Vec<Member> {
    record.members.iter().map(|m| Member { disk: DiskId(m.disk), node: NodeId(m.node) }).collect()
}

impl ClusterState {
    pub(super) fn allocate_groups(&mut self, command: AllocateGroups) -> Result<ClusterReply, Refusal> {
        let volume = VolumeId(command.volume);
        self.living_volume(volume, Incarnation(command.incarnation))?;
        let info = self.volumes.get(&volume).ok_or(Refusal::NoSuchVolumeId(volume))?;
        let mut next = info.next_group;
        let mut fresh = BTreeMap::new();
        let mut answer = Vec::with_capacity(command.groups.len());
        for record in &command.groups {
            let group = GroupId(record.group);
            if let Some(members) = info.groups.get(&group) {
                answer.push(group_record(group, members));
                continue;
            }
            if group != next {
                return Err(Refusal::GroupGap(group));
            }
            let members = members_of(record);
            self.check_members(group, &members, info.code.width())?;
            answer.push(record.clone());
            fresh.insert(group, members);
            next = GroupId(group.0 + 1);
        }
        let info = self.living_volume(volume, Incarnation(command.incarnation))?;
        info.groups.append(&mut fresh);
        info.next_group = next;
        Ok(ClusterReply { volume: volume.0, groups: answer, ..ClusterReply::default() })
    }

    fn check_members(&self, group: GroupId, members: &[Member], width: usize) -> Result<(), Refusal> {
        let distinct: BTreeSet<DiskId> = members.iter().map(|m| m.disk).collect();
        let known = |m: &Member| self.nodes.get(&m.node).is_some_and(|n| n.disks.contains_key(&m.disk));
        if members.len() == width && distinct.len() == width && members.iter().all(known) {
            Ok(())
        } else {
            Err(Refusal::BadMembers(group))
        }
    }

    /// Count of block groups by member disk, over all volumes.
    #[must_use]
    pub fn groups_per_disk(&self) -> BTreeMap<DiskId, u64> {
        let mut counts = BTreeMap::new();
        for member in self.volumes.values().flat_map(|v| v.groups.values().flatten()) {
            *counts.entry(member.disk).or_default() += 1;
        }
        counts
    }

    /// Count of tables by metanode.
    #[must_use]
    pub fn tables_per_node(&self) -> BTreeMap<NodeId, u64> {
        let mut counts = BTreeMap::new();
        for node in self.volumes.values().flat_map(|v| v.replicas.iter()) {
            *counts.entry(*node).or_default() += 1;
        }
        counts
    }
}
