//! A client's reads, from a table at hand.

use super::*;
use crate::core::testing::{Rig, VOLUME, assignment, create, unlink};
use holdfast_proto::control::TableAssignment;
use holdfast_proto::meta::{GetAttr, Lookup, Open, StatFs};

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
