use super::*;
use holdfast_common::DiskId;
use holdfast_common::Random;
use holdfast_proto::meta::{GroupSlot, GroupState, NodeAddress};
use holdfast_transport::RpcError;

fn code() -> CodeMode {
    CodeMode::new(2, 1).unwrap()
}

/// Groups of these disks; disk n is on node n, and group numbers ascend from 1.
fn members(groups: &[&[u64]]) -> Members {
    let mut members = Members::default();
    let slots = |disks: &[u64]| disks.iter().map(|disk| GroupSlot { disk: *disk, node: *disk }).collect();
    let group = |(group, disks): (u64, &&[u64])| BlockGroup { group, slots: slots(disks), ..BlockGroup::default() };
    members.learn_groups((1..).zip(groups).map(group).collect());
    let node = |node| NodeAddress { node, address: "127.0.0.1:9".into(), alive: true, ..NodeAddress::default() };
    members.learn_nodes(&(1..=20).map(node).collect::<Vec<_>>());
    members
}

fn chosen(members: &Members, chunk: u64, length_bytes: u32) -> Option<(u64, Vec<u64>)> {
    let stripe = choose_stripe(members, code(), ChunkId(chunk), length_bytes, Moment(0))?;
    assert_eq!(stripe.members.len(), stripe.geometry.shards_count());
    Some((stripe.group.group, stripe.members.iter().map(|member| member.disk.0).collect()))
}

#[test]
fn groups_take_turns() {
    let members = members(&[&[1, 2, 3], &[4, 5, 6], &[7, 8, 9]]);
    let groups: Vec<_> = (0..6).filter_map(|chunk| chosen(&members, chunk, 1 << 20)).map(|(group, _)| group).collect();
    assert_eq!(groups, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn a_group_with_too_few_members_gives_way_to_one_that_takes_the_whole_stripe() {
    let mut members = members(&[&[1, 2, 3], &[4, 5, 6]]);
    members.failed(DiskId(2), Moment(0));
    for chunk in 0..10 {
        assert_eq!(chosen(&members, chunk, 1 << 20).map(|(group, _)| group), Some(2));
    }
    members.failed(DiskId(5), Moment(0));
    let narrow = choose_stripe(&members, code(), ChunkId(0), 1 << 20, Moment(0)).unwrap();
    assert_eq!((narrow.geometry.data_shards(), narrow.geometry.parity_shards()), (1, 1));
    [1, 3, 4, 6].into_iter().for_each(|disk| members.failed(DiskId(disk), Moment(0)));
    assert_eq!(chosen(&members, 0, 1 << 20), None);
}

#[test]
fn without_an_open_group_there_is_no_stripe() {
    assert_eq!(chosen(&Members::default(), 7, 10), None);
    let mut members = members(&[&[1, 2, 3]]);
    let group = BlockGroup::clone(members.group(holdfast_common::GroupId(1)).unwrap());
    members.learn_groups(vec![BlockGroup { state: GroupState::GroupFull.into(), ..group }]);
    assert_eq!(chosen(&members, 7, 10), None);
}

/// Whatever fails: a stripe has distinct usable members of one group, in their slots, as many as the geometry says, and there is
/// one as long as any group has more than the parity's members.
#[test]
fn a_stripe_is_of_usable_members() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut members = members(&[&[1, 2, 3, 4], &[3, 4, 5, 6], &[6, 7, 8]]);
        let failed: BTreeSet<u64> = (1..=8).filter(|_| random.chance(40)).collect();
        failed.iter().for_each(|disk| members.failed(DiskId(*disk), Moment(0)));
        let usable = |group: &u64| {
            let group = members.group(holdfast_common::GroupId(*group)).unwrap();
            group.slots.iter().filter(|slot| !failed.contains(&slot.disk)).count()
        };
        let widest = (1..=3).map(|group| usable(&group)).max().unwrap();
        let length_bytes = u32::try_from(random.below(4 << 20)).unwrap() + 1;
        let stripe = choose_stripe(&members, code(), ChunkId(random.bits()), length_bytes, Moment(0));
        assert_eq!(stripe.is_some(), widest > 1, "seed {seed}");
        let Some(stripe) = stripe else { continue };
        let wanted = if length_bytes > 64 << 10 { 2.min(widest - 1) } else { 1 };
        assert_eq!(usize::from(stripe.geometry.data_shards()), wanted, "seed {seed}: as wide as may be");
        let mut disks = BTreeSet::new();
        for member in &stripe.members {
            assert_eq!(stripe.group.slots[usize::from(member.slot)].disk, member.disk.0, "seed {seed}");
            assert!(!failed.contains(&member.disk.0) && disks.insert(member.disk), "seed {seed}");
        }
    }
}

#[test]
fn an_answer_says_what_is_to_blame() {
    let said = |status: Status| judge(&Ok(PutShardResponse { status: status.into(), ..PutShardResponse::default() }));
    let cases = [
        (Status::Ok, Put::Stored),
        (Status::NoSpace, Put::Full),
        (Status::BelowFloor, Put::BelowFloor),
        (Status::WrongDisk, Put::Misplaced),
        (Status::Busy, Put::Busy),
        (Status::DiskFailed, Put::Failed),
        (Status::Conflict, Put::Failed),
    ];
    cases.into_iter().for_each(|(status, put)| assert_eq!(said(status), put, "{status:?}"));
    assert_eq!(judge(&Err(RpcError::Deadline.into())), Put::Failed);
    let unknown = PutShardResponse { status: 999, ..PutShardResponse::default() };
    assert_eq!(judge(&Ok(unknown)), Put::Failed, "of a status that this version does not know");
}
