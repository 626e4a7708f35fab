//! Places of things: block groups, node addresses, and which disks failed lately and are avoided for a while. Pure.
//!
//! Groups and addresses come from the table's leader, which learns addresses from the volume manager. What the volume
//! manager thinks of a node is a preference: a member that it calls dead is used when there are too few others, because this
//! client may reach it all the same.

use super::time::Moment;
use holdfast_common::{DiskId, GroupId, NodeId};
use holdfast_proto::control::Endpoint;
use holdfast_proto::meta::{BlockGroup, ChunkRecord, GroupSlot, GroupState, NodeAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// First time a failing disk is left out; doubles with each further failure.
const AVOID_FIRST: Duration = Duration::from_millis(250);
/// Longest time a failing disk is left out: so long after its return it is used again at the latest.
const AVOID_MAX: Duration = Duration::from_secs(5);
/// Time for which a disk without space is not asked.
const FULL_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct NodePlace {
    address: SocketAddr,
    /// In the volume manager's opinion; `failed_disks` and `full_disks` likewise.
    alive: bool,
    failed_disks: Vec<u64>,
    full_disks: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failures: u32,
    avoid_until: Moment,
}

impl NodePlace {
    fn has_failed(&self, disk: DiskId) -> bool {
        self.failed_disks.contains(&disk.0)
    }

    fn is_full(&self, disk: DiskId) -> bool {
        self.full_disks.contains(&disk.0)
    }
}

/// Place of a shard: slot, disk, and the address to send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) slot: u8,
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    /// The volume manager thinks that node and disk serve.
    pub(crate) alive: bool,
    /// The volume manager thinks that the disk takes no more data.
    pub(crate) full: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Members {
    groups: BTreeMap<GroupId, Arc<BlockGroup>>,
    /// Groups that take chunks, in a stable order.
    open: Vec<GroupId>,
    nodes: BTreeMap<NodeId, NodePlace>,
    /// Place of the next page of groups: (last change, group) of the last one seen.
    pub(crate) cursor: (u64, u64),
    /// Every change of groups up to this number is known.
    changes: u64,
    /// Of addresses and liveness, as the table told them last: equal for equal ones, not ordered.
    nodes_version: u64,
    health: BTreeMap<DiskId, Health>,
    /// Disks that had no room for some write, and how long they are taken for full.
    full_until: BTreeMap<DiskId, Moment>,
}

impl Members {
    pub(crate) fn learn_endpoints(&mut self, endpoints: &[Endpoint]) {
        for endpoint in endpoints {
            if let Ok(address) = endpoint.address.parse() {
                let Endpoint { alive, failed_disks, full_disks, .. } = endpoint.clone();
                self.nodes.insert(NodeId(endpoint.node), NodePlace { address, alive, failed_disks, full_disks });
            }
        }
    }

    /// Learns a page of groups that changed.
    pub(crate) fn learn_groups(&mut self, groups: Vec<BlockGroup>) {
        for group in groups {
            let (id, open) = (GroupId(group.group), group.state == i32::from(GroupState::GroupOpen));
            match self.open.binary_search(&id) {
                Ok(at) if !open => drop(self.open.remove(at)),
                Err(at) if open => self.open.insert(at, id),
                Ok(_) | Err(_) => {}
            }
            self.groups.insert(id, Arc::new(group));
        }
    }

    /// Learns a page of addresses.
    pub(crate) fn learn_nodes(&mut self, nodes: &[NodeAddress]) {
        for node in nodes {
            if let Ok(address) = node.address.parse() {
                let NodeAddress { alive, failed_disks, full_disks, .. } = node.clone();
                self.nodes.insert(NodeId(node.node), NodePlace { address, alive, failed_disks, full_disks });
            }
        }
    }

    /// All pages of groups up to this change are known.
    pub(crate) fn knows_groups(&mut self, changes: u64) {
        self.changes = self.changes.max(changes);
    }

    /// All pages of addresses are known, as of this version.
    pub(crate) fn knows_nodes(&mut self, version: u64) {
        self.nodes_version = version;
    }

    /// Whether an answer speaks of groups or addresses that are not known.
    pub(crate) fn is_behind(&self, changes: u64, nodes_version: u64) -> bool {
        changes > self.changes || nodes_version != self.nodes_version
    }

    pub(crate) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.nodes.get(&node).map(|n| n.address)
    }

    pub(crate) fn open_groups(&self) -> &[GroupId] {
        &self.open
    }

    pub(crate) fn group(&self, group: GroupId) -> Option<&Arc<BlockGroup>> {
        self.groups.get(&group)
    }

    /// The members of a group that a new chunk may use now, best first (R12): with an address and not avoided. At least `wanted`
    /// of those thought alive and not full if there are so many; otherwise the others, too.
    pub(crate) fn usable(&self, group: &BlockGroup, wanted: usize, now: Moment) -> Vec<Member> {
        let mut members = self.all(group);
        members.retain(|member| !self.is_avoided(member.disk, now));
        let is_good = |member: &Member| member.alive && !member.full;
        if members.iter().filter(|member| is_good(member)).count() >= wanted {
            members.retain(is_good);
        }
        members
    }

    pub(crate) fn all(&self, group: &BlockGroup) -> Vec<Member> {
        (0u8..).zip(&group.slots).filter_map(|(slot, at)| self.member(slot, DiskId(at.disk), NodeId(at.node))).collect()
    }

    fn member(&self, slot: u8, disk: DiskId, node: NodeId) -> Option<Member> {
        let place = self.nodes.get(&node)?;
        let (alive, full) = (place.alive && !place.has_failed(disk), place.is_full(disk));
        (disk.0 != 0).then_some(Member { slot, disk, node, address: place.address, alive, full })
    }

    /// Place of shard `shard` of a chunk, if its slot and node are known.
    pub(crate) fn locate(&self, chunk: &ChunkRecord, shard: usize) -> Option<Member> {
        let slot = *chunk.slots.get(shard)?;
        let at = self.groups.get(&GroupId(chunk.group))?.slots.get(usize::from(slot))?;
        self.member(slot, DiskId(at.disk), NodeId(at.node))
    }

    /// Whether a read should turn to other members first.
    pub(crate) fn is_doubtful(&self, member: &Member, now: Moment) -> bool {
        !member.alive || self.is_avoided(member.disk, now)
    }

    fn is_avoided(&self, disk: DiskId, now: Moment) -> bool {
        self.health.get(&disk).is_some_and(|health| now < health.avoid_until)
    }

    pub(crate) fn failed(&mut self, disk: DiskId, now: Moment) {
        let entry = self.health.entry(disk).or_default();
        let pause = AVOID_FIRST.saturating_mul(1 << entry.failures.min(8)).min(AVOID_MAX);
        entry.failures = entry.failures.saturating_add(1);
        entry.avoid_until = now + pause;
    }

    pub(crate) fn full(&mut self, disk: DiskId, now: Moment) {
        self.health.entry(disk).or_default().avoid_until = now + FULL_PAUSE;
        self.full_until.insert(disk, now + FULL_PAUSE);
    }

    /// Whether some group has this many members, within reach or not, whose disks serve and are neither of these, which were full for
    /// one write, nor were full for any within the last second.
    pub(crate) fn have_room(&self, wanted: usize, full: &BTreeSet<DiskId>, now: Moment) -> bool {
        let was_full = |disk| full.contains(&disk) || self.full_until.get(&disk).is_some_and(|until| now < *until);
        let has_room = |slot: &&GroupSlot| {
            let disk = DiskId(slot.disk);
            // A node whose address is yet to be learnt may have room.
            let place = self.nodes.get(&NodeId(slot.node));
            disk.0 != 0 && !was_full(disk) && !place.is_some_and(|place| place.has_failed(disk) || place.is_full(disk))
        };
        let groups = self.open.iter().filter_map(|id| self.groups.get(id));
        groups.map(|group| group.slots.iter().filter(has_room).count()).any(|count| count >= wanted)
    }

    pub(crate) fn works(&mut self, disk: DiskId) {
        self.health.remove(&disk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> (Members, BlockGroup) {
        let mut members = Members::default();
        let group = BlockGroup {
            group: 1,
            slots: (1..=3).map(|i| GroupSlot { disk: i, node: 10 + i }).collect(),
            ..BlockGroup::default()
        };
        let nodes: Vec<_> = (11..=13).map(|node| address(node, node != 13)).collect();
        members.learn_groups(vec![group.clone()]);
        members.learn_nodes(&nodes);
        (members, group)
    }

    #[test]
    fn failing_disks_take_no_new_chunks_until_they_work() {
        let (mut members, group) = members();
        let slots = |members: &Members, at| members.usable(&group, 2, at).iter().map(|m| m.slot).collect::<Vec<_>>();
        let now = Moment(0);
        assert_eq!(slots(&members, now), [0, 1]);
        members.failed(DiskId(1), now);
        assert_eq!(slots(&members, now + AVOID_FIRST), [0, 1]);
        members.failed(DiskId(1), now);
        assert!(!slots(&members, now + AVOID_FIRST).contains(&0));
        members.works(DiskId(1));
        assert_eq!(slots(&members, now), [0, 1]);
    }

    fn address(node: u64, alive: bool) -> NodeAddress {
        NodeAddress { node, address: format!("127.0.0.1:{node}"), alive, ..NodeAddress::default() }
    }

    #[test]
    fn disks_that_are_out_of_service_or_full_are_left_out_while_enough_others_are_there() {
        let (mut members, group) = members();
        let failed = NodeAddress { failed_disks: vec![1], ..address(11, true) };
        let full = NodeAddress { full_disks: vec![2], ..address(12, true) };
        members.learn_nodes(&[failed, full, address(13, true)]);
        let disks = |wanted| members.usable(&group, wanted, Moment(0)).iter().map(|m| m.disk.0).collect::<Vec<_>>();
        assert_eq!((disks(1), disks(2)), (vec![3], vec![1, 2, 3]));
        let doubtful =
            members.all(&group).iter().map(|member| members.is_doubtful(member, Moment(0))).collect::<Vec<_>>();
        assert_eq!(doubtful, [true, false, false], "a full disk is read as any other");
    }

    #[test]
    fn a_member_that_the_volume_manager_calls_dead_is_used_when_too_few_are_left() {
        let (members, group) = members();
        let count = |wanted| members.usable(&group, wanted, Moment(0)).len();
        assert_eq!((count(2), count(3)), (2, 3));
    }

    #[test]
    fn groups_that_changed_take_the_place_of_what_was_known_of_them() {
        let (mut members, group) = members();
        assert_eq!(members.open_groups(), [GroupId(1)]);
        let full = BlockGroup { state: GroupState::GroupFull.into(), ..group.clone() };
        members.learn_groups(vec![full, BlockGroup { group: 2, ..group.clone() }]);
        assert_eq!(members.open_groups(), [GroupId(2)]);
        members.learn_groups(vec![group]);
        assert_eq!(members.open_groups(), [GroupId(1), GroupId(2)]);
        members.knows_groups(5);
        members.knows_nodes(9);
        assert!(!members.is_behind(4, 9) && !members.is_behind(5, 9));
        assert!(members.is_behind(6, 9) && members.is_behind(5, 8));
    }

    #[test]
    fn a_group_in_an_unknown_state_takes_no_new_chunks() {
        let (mut members, group) = members();
        members.learn_groups(vec![BlockGroup { state: 999, ..group }]);
        assert_eq!(members.open_groups(), []);
    }

    #[test]
    fn a_shard_is_located_through_its_chunks_slot_set() {
        let (members, _) = members();
        let chunk = ChunkRecord { group: 1, slots: vec![2, 0].into(), ..ChunkRecord::default() };
        assert_eq!(members.locate(&chunk, 0).map(|m| m.disk), Some(DiskId(3)));
        assert_eq!(members.locate(&chunk, 1).map(|m| m.disk), Some(DiskId(1)));
        assert_eq!(members.locate(&chunk, 2), None);
    }

    /// However often it fails: it is left out for at most so long, and one success makes it as good as new.
    #[test]
    fn a_disk_that_fails_again_and_again_is_looked_for_every_five_seconds() {
        let (mut members, group) = members();
        let mut now = Moment(0);
        let mut pauses = Vec::new();
        for _ in 0..50 {
            members.failed(DiskId(1), now);
            let back = |wait: &u32| !members.is_avoided(DiskId(1), now + Duration::from_millis(250) * *wait);
            let wait = (0..100).find(back).unwrap();
            pauses.push(250 * wait);
            now = now + Duration::from_millis(250) * wait;
        }
        assert_eq!(pauses[..6], [250, 500, 1000, 2000, 4000, 5000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 5000));
        members.works(DiskId(1));
        members.failed(DiskId(1), now);
        assert!(!members.is_avoided(DiskId(1), now + AVOID_FIRST));
        assert_eq!(members.usable(&group, 1, now + AVOID_FIRST).len(), 2);
    }

    #[test]
    fn a_full_disk_rests_for_a_second_and_has_not_failed() {
        let (mut members, _) = members();
        members.full(DiskId(1), Moment(0));
        assert!(members.is_avoided(DiskId(1), Moment(0)));
        let later = Moment(0) + FULL_PAUSE;
        assert!(!members.is_avoided(DiskId(1), later));
        members.failed(DiskId(1), later);
        assert!(!members.is_avoided(DiskId(1), later + AVOID_FIRST), "its first failure");
    }

    #[test]
    fn a_member_out_of_reach_may_have_room_and_a_full_or_failed_one_has_none() {
        let (mut members, mut group) = members();
        let (full, now) = (|disks: &[u64]| disks.iter().copied().map(DiskId).collect(), Moment(0));
        assert!(members.have_room(3, &full(&[]), now), "also the one that is dead");
        assert!(members.have_room(2, &full(&[1]), now) && !members.have_room(3, &full(&[1]), now));
        members.learn_nodes(&[NodeAddress { failed_disks: vec![2], ..address(12, true) }]);
        assert!(members.have_room(1, &full(&[1]), now) && !members.have_room(2, &full(&[1]), now));
        members.learn_nodes(&[NodeAddress { full_disks: vec![3], ..address(13, true) }]);
        assert!(!members.have_room(1, &full(&[1]), now));
        members.full(DiskId(1), now);
        assert!(!members.have_room(1, &full(&[]), now) && members.have_room(1, &full(&[]), now + FULL_PAUSE));
        members.full_until.clear();
        group.slots[0].node = 99;
        members.learn_groups(vec![group]);
        assert!(members.have_room(1, &full(&[]), now), "one whose address is not known yet");
    }

    #[test]
    fn a_vacant_slot_and_one_of_an_unknown_node_are_no_members() {
        let (mut members, mut group) = members();
        group.slots[0].disk = 0;
        group.slots[1].node = 99;
        members.learn_groups(vec![group.clone()]);
        let slots: Vec<_> = members.all(&group).iter().map(|member| member.slot).collect();
        assert_eq!(slots, [2], "slots keep their numbers");
        let chunk = ChunkRecord { group: 1, slots: vec![0, 1, 2, 7].into(), ..ChunkRecord::default() };
        let found = [0, 1, 2, 3, 4].map(|shard| members.locate(&chunk, shard).map(|member| member.disk.0));
        assert_eq!(found, [None, None, Some(3), None, None]);
        assert_eq!(members.locate(&ChunkRecord { group: 5, ..chunk }, 2), None);
    }

    #[test]
    fn an_address_that_cannot_be_read_leaves_the_known_one() {
        let (mut members, _) = members();
        let known = members.address(NodeId(11));
        members.learn_nodes(&[NodeAddress { address: "nowhere".into(), ..address(11, true) }]);
        members.learn_endpoints(&[Endpoint { node: 11, address: String::new(), ..Endpoint::default() }]);
        assert!(known.is_some() && members.address(NodeId(11)) == known);
    }
}
