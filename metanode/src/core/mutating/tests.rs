//! A client's mutation, from its request to its answer.

use super::*;
use crate::core::testing::{Rig, VOLUME, assignment, create, unlink};
use holdfast_proto::control::TableAssignment;
use holdfast_proto::meta::{ExpireSessions, Fallocate};
use holdfast_proto::record::TableCommand;

fn command(bytes: &Bytes) -> TableCommand {
    TableCommand::decode(bytes.as_ref()).unwrap()
}

#[test]
fn a_request_is_stamped_and_keeps_its_place_among_others() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    let request = rig.request(session, create(b"f", false));
    let (encoded, note) = begin(&mut rig.view(), request.clone()).unwrap();
    let command = command(&encoded);
    assert_eq!((command.session, command.sequence, command.time_ns), (session, request.sequence, 5));
    assert_eq!((command.mutation, note), (request.mutation, Note::Nothing));
}

#[test]
fn what_is_not_for_this_table_or_not_a_clients_does_not_reach_the_log() {
    let mut rig = Rig::assigned();
    let request = rig.request(1, create(b"f", false));
    let refused = |rig: &mut Rig, request| begin(&mut rig.view(), request).unwrap_err();
    assert_eq!(refused(&mut rig, request.clone()), Code::Unavailable, "before its first entry");
    let mut rig = Rig::configured();
    assert_eq!(refused(&mut rig, MutateRequest { incarnation: 2, ..request.clone() }), Code::NoSuchVolume);
    assert_eq!(refused(&mut rig, MutateRequest { mutation: None, ..request }), Code::Invalid);
    let expire = rig.request(1, Op::ExpireSessions(ExpireSessions { sessions: vec![1] }));
    assert_eq!(refused(&mut rig, expire), Code::Invalid);
}

#[test]
fn an_allocation_carries_what_heartbeats_know_whatever_the_client_wrote() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    let stamped = |rig: &mut Rig| {
        let request = rig.request(session, Op::Fallocate(Fallocate { available_bytes: Some(1), ..Default::default() }));
        let (encoded, _) = begin(&mut rig.view(), request).unwrap();
        match command(&encoded).mutation.unwrap().op.unwrap() {
            Op::Fallocate(op) => op.available_bytes,
            other => panic!("{other:?}"),
        }
    };
    rig.learn(TableAssignment { available_bytes: 77, ..assignment() });
    assert_eq!(stamped(&mut rig), Some(77));
    rig.known.forget_table(VOLUME);
    assert_eq!(stamped(&mut rig), Some(64 << 30), "what its groups could take");
}

#[test]
fn a_created_file_is_open_and_a_session_that_left_has_nothing_open() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    let inode = rig.mutate(session, create(b"f", true)).attr.unwrap().inode;
    rig.mutate(session, unlink(b"f"));
    assert!(rig.attendance.choose_orphans(&[InodeId(inode)]).is_empty());
    let closed = rig.mutate(session, Op::CloseSession(holdfast_proto::meta::CloseSession {}));
    assert_eq!(closed.code(), Code::Ok);
    assert_eq!(rig.attendance.choose_orphans(&[InodeId(inode)]), [inode]);
}

#[test]
fn a_create_that_was_never_answered_holds_up_reaping_until_it_is_let_go() {
    let mut rig = Rig::configured();
    let session = rig.open_session(b"a");
    let request = rig.request(session, create(b"f", true));
    let (_, note) = begin(&mut rig.view(), request).unwrap();
    let orphan = InodeId(99);
    assert!(rig.attendance.choose_orphans(&[orphan]).is_empty());
    let refused = end(&mut rig.view(), &note, Err(ProposeError::Unknown)).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(rig.attendance.choose_orphans(&[orphan]).is_empty());
    let_go(&mut rig.view(), &note);
    assert_eq!(rig.attendance.choose_orphans(&[orphan]), [99]);
}

#[test]
fn a_refusal_of_consensus_becomes_a_code_and_names_the_leader() {
    let mut rig = Rig::configured();
    let mut refused = |why| *end(&mut rig.view(), &Note::Nothing, Err(why)).unwrap_err();
    let moved = refused(ProposeError::NotLeader { leader: Some(NodeId(2)) });
    assert_eq!((moved.code(), moved.leader.as_str()), (Code::NotLeader, "there:1"));
    assert_eq!(refused(ProposeError::NotLeader { leader: None }).leader, "");
    assert_eq!(refused(ProposeError::Overloaded).code(), Code::Unavailable);
    assert_eq!(refused(ProposeError::NoSpace).code(), Code::NoSpace);
    assert_eq!(refused(ProposeError::TooLarge).code(), Code::Invalid);
    assert_eq!(refused(ProposeError::Stopped).code(), Code::TableStopped);
    assert_eq!(not_led(&NotLed::Stopped, &rig.known).code(), Code::TableStopped);
    assert_eq!(not_led(&NotLed::By(Some(NodeId(2))), &rig.known).leader, "there:1");
}
