//! A client's reads, from a table at hand.

use super::*;
use crate::core::testing::{Rig, VOLUME, assignment, create, unlink};
use crate::table::FEATURE_LEVEL;
use holdfast_common::limits::SHARDS_MAX;
use holdfast_proto::control::TableAssignment;
use holdfast_proto::meta::mutation;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, Configure, GetAttr, GetGroups, GroupSlot, GroupState, Lookup, Open, RaiseFeatureLevel,
    SetGroupState, StatFs, VacateSlot,
};
use holdfast_transport::HEADER_BYTES_MAX;
use prost::Message;
use std::collections::BTreeMap;

fn read(rig: &mut Rig, session: u64, op: Op) -> ReadResponse {
    let request = ReadRequest { volume: VOLUME.0, incarnation: 1, session, op: Some(op) };
    answer(&mut rig.view(), &request, Ok(()))
}

fn open(inode: u64) -> Op {
    Op::Open(Open { inode })
}

#[test]
fn nothing_is_answered_without_the_barrier() {
    let mut rig = Rig::configured();
    let request = ReadRequest { volume: VOLUME.0, incarnation: 1, session: 0, op: Some(Op::StatFs(StatFs {})) };
    let mut refused = |why| answer(&mut rig.view(), &request, Err(why));
    let moved = refused(ReadError::NotLeader { leader: Some(NodeId(2)) });
    assert_eq!((moved.code(), moved.leader.as_str(), moved.stat), (Code::NotLeader, "there:1", None));
    assert_eq!(refused(ReadError::Overloaded).code(), Code::Unavailable);
    assert_eq!(refused(ReadError::Stopped).code(), Code::TableStopped);
    assert_eq!(not_led(&NotLed::By(None), &rig.known).code(), Code::NotLeader);
}

#[test]
fn a_read_of_another_life_of_the_table_is_refused() {
    let mut rig = Rig::assigned();
    let op = Some(Op::GetAttr(GetAttr { inode: 1 }));
    let request = ReadRequest { volume: VOLUME.0, incarnation: 1, session: 0, op };
    assert_eq!(answer(&mut rig.view(), &request, Ok(())).code(), Code::Unavailable);
    let mut rig = Rig::configured();
    assert_eq!(answer(&mut rig.view(), &request, Ok(())).attr.unwrap().inode, 1);
    let other = ReadRequest { incarnation: 2, ..request.clone() };
    assert_eq!(answer(&mut rig.view(), &other, Ok(())).code(), Code::NoSuchVolume);
    let nothing = ReadRequest { op: None, ..request };
    assert_eq!(answer(&mut rig.view(), &nothing, Ok(())).code(), Code::Invalid);
}

#[test]
fn an_opened_file_is_not_reaped_and_one_that_is_being_reaped_is_not_opened() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    let inode = rig.mutate(session, create(b"f", false)).attr.unwrap().inode;
    assert_eq!(read(&mut rig, session, open(inode)).attr.unwrap().inode, inode);
    rig.mutate(session, unlink(b"f"));
    assert!(rig.attendance.choose_orphans(&[InodeId(inode)]).is_empty());
    let released = KeepAlive { released: vec![inode], ..KeepAlive::default() };
    assert!(!read(&mut rig, session, Op::KeepAlive(released)).attach_needed);
    assert_eq!(rig.attendance.choose_orphans(&[InodeId(inode)]), [inode]);
    assert_eq!(read(&mut rig, session, open(inode)).code(), Code::Stale);
}

#[test]
fn an_open_of_what_is_not_there_registers_nothing() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    assert_eq!(read(&mut rig, session, open(99)).code(), Code::Stale);
    assert_eq!(rig.attendance.choose_orphans(&[InodeId(99)]), [99]);
    assert_eq!(read(&mut rig, 55, open(1)).code(), Code::SessionExpired);
    assert_eq!(read(&mut rig, 55, Op::KeepAlive(KeepAlive::default())).code(), Code::SessionExpired);
}

#[test]
fn a_new_leader_asks_for_the_list_of_open_files() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    rig.term = rig.term.next();
    assert!(read(&mut rig, session, Op::KeepAlive(KeepAlive::default())).attach_needed);
    let term = read(&mut rig, session, Op::KeepAlive(KeepAlive::default())).term;
    assert_eq!(term, rig.term.0);
    let late = KeepAlive { attach: true, open: vec![], attach_term: Some(term - 1), ..KeepAlive::default() };
    assert!(read(&mut rig, session, Op::KeepAlive(late)).attach_needed);
    let attach = KeepAlive { attach: true, open: vec![5], attach_term: Some(term), ..KeepAlive::default() };
    assert!(!read(&mut rig, session, Op::KeepAlive(attach)).attach_needed);
    assert!(rig.attendance.choose_orphans(&[InodeId(5)]).is_empty());
}

#[test]
fn free_space_is_what_the_disks_leave_and_versions_follow_addresses() {
    let mut rig = Rig::configured();
    rig.learn(TableAssignment { available_bytes: 77, ..assignment() });
    assert_eq!(read(&mut rig, 0, Op::StatFs(StatFs {})).stat.unwrap().available_bytes, 77);
    let session = rig.open_session(b"a");
    let versions = |rig: &mut Rig| {
        let alive = read(rig, session, Op::KeepAlive(KeepAlive::default()));
        (alive.groups_version, alive.groups_changes, alive.nodes_version)
    };
    let former = versions(&mut rig);
    assert_eq!(versions(&mut rig), former);
    let nodes =
        vec![holdfast_proto::control::Endpoint { node: 3, address: "new:1".into(), alive: true, ..Default::default() }];
    rig.known.learn(&holdfast_proto::control::HeartbeatResponse { nodes, ..Default::default() }, 0);
    let next = versions(&mut rig);
    assert!(next.0 != former.0 && next.1 == former.1 && next.2 != former.2);
    let lookup = Op::Lookup(Lookup { parent: 1, name: b"x"[..].into() });
    assert_eq!(read(&mut rig, session, lookup).code(), Code::NotFound);
}

const GROUPS_COUNT: u64 = 20_000;

fn apply(rig: &mut Rig, op: mutation::Op) {
    assert_eq!(rig.apply_own(op).code, 0);
}

/// A volume that has these groups, as many shards in each as its code has.
fn volume_of(groups: Vec<BlockGroup>) -> Rig {
    let mut rig = Rig::assigned();
    let shards_count = u32::try_from(groups[0].slots.len()).unwrap();
    let (volume, data_shards, parity_shards) = (VOLUME.0, shards_count - 2, 2);
    let configure = Configure { volume, incarnation: 1, data_shards, parity_shards, ..Configure::default() };
    apply(&mut rig, mutation::Op::Configure(configure));
    apply(&mut rig, mutation::Op::RaiseFeatureLevel(RaiseFeatureLevel { level: FEATURE_LEVEL }));
    apply(&mut rig, mutation::Op::AddGroups(AddGroups { groups }));
    rig
}

/// A group of 4+2 in a cluster of a thousand disks.
fn ordinary(group: u64) -> BlockGroup {
    let slots = (1..=6).map(|i| GroupSlot { disk: 1_000 + (group + i) % 900, node: 2_000 + i }).collect();
    BlockGroup { group, epoch: 1, slots, state: 0, used_bytes: 0, capacity_bytes: 32 << 30 }
}

/// A group with the longest record there is: of the widest code, and the largest numbers.
fn longest(group: u64) -> BlockGroup {
    let slots = (0..SHARDS_MAX).map(|_| GroupSlot { disk: u64::MAX, node: u64::MAX }).collect();
    BlockGroup { group: u64::MAX / 2 + group, epoch: u64::MAX / 2, slots, capacity_bytes: u64::MAX, ..ordinary(1) }
}

/// The groups that changed behind a cursor, which moves on, and the bytes of all answers.
fn fetch_groups(rig: &mut Rig, cursor: &mut (u64, u64)) -> (BTreeMap<u64, BlockGroup>, usize) {
    let (mut fetched, mut total_bytes) = (BTreeMap::new(), 0);
    loop {
        let page = read(rig, 0, Op::GetGroups(GetGroups { since: Some(cursor.0), after_group: cursor.1 }));
        let bytes = page.encoded_len();
        assert!(bytes < usize::try_from(HEADER_BYTES_MAX).unwrap(), "a page of {bytes} bytes fits no frame");
        total_bytes += bytes;
        *cursor = (page.next_since, page.next_after_group);
        for group in page.groups {
            let twice = fetched.insert(group.group, group);
            assert!(twice.is_none(), "{twice:?} came twice");
        }
        if !page.more_groups {
            return (fetched, total_bytes);
        }
    }
}

/// All of them in one answer fit no frame from some 15,000 groups on: such a volume could not be mounted.
#[test]
fn twenty_thousand_groups_reach_a_client_each_once_in_answers_that_fit_a_frame_and_then_only_those_that_changed() {
    let make: [fn(u64) -> BlockGroup; 2] = [ordinary, longest];
    for make in make {
        let mut rig = volume_of((1..=GROUPS_COUNT).map(make).collect());
        let mut cursor = (0, 0);
        let (fetched, total_bytes) = fetch_groups(&mut rig, &mut cursor);
        assert!(fetched == (1..=GROUPS_COUNT).map(|id| (make(id).group, make(id))).collect(), "{} came", fetched.len());
        assert!(total_bytes > usize::try_from(HEADER_BYTES_MAX).unwrap(), "one frame would have held them");
        assert!(fetch_groups(&mut rig, &mut cursor).0.is_empty());
        let [vacated, full, added] = [7, GROUPS_COUNT, GROUPS_COUNT + 1].map(make);
        let vacate = VacateSlot { group: vacated.group, epoch: vacated.epoch, slot: 3 };
        apply(&mut rig, mutation::Op::VacateSlot(vacate));
        let state = GroupState::GroupFull.into();
        apply(&mut rig, mutation::Op::SetGroupState(SetGroupState { group: full.group, state }));
        apply(&mut rig, mutation::Op::AddGroups(AddGroups { groups: vec![added.clone()] }));
        let (changed, _) = fetch_groups(&mut rig, &mut cursor);
        assert!(changed.keys().copied().eq([vacated.group, full.group, added.group]), "{:?}", changed.keys());
        assert_eq!((changed[&vacated.group].slots[3].disk, changed[&full.group].state), (0, state));
        assert!(fetch_groups(&mut rig, &mut cursor).0.is_empty());
    }
}
