//! What a mount does by itself: its session, keep-alives, groups and addresses, quota that nobody needs.

use super::super::effects::{Call, Send};
use super::super::*;
use super::bench::{BOTH, Bench, LEASE, change_of, metanode, mutate_says, number_of, question_of, settings};
use holdfast_proto::meta::{BlockGroup, Code, GetAttr, NodeAddress, OpenSession};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_nanos(1);

fn session_of(send: &Send) -> &OpenSession {
    let mutation::Op::OpenSession(op) = change_of(send) else { panic!("{send:?}") };
    op
}

fn ask(bench: &mut Bench) -> OpId {
    bench.begin(Call::Ask(read_request::Op::GetAttr(GetAttr { inode: 5 })))
}

fn house(bench: &mut Bench, send: &Send) {
    let answer = bench.house_answer(send);
    bench.answer(send.attempt, Ok(answer));
}

// Mounting.

#[test]
fn a_mount_stands_when_session_groups_and_addresses_are_known() {
    let mut bench = Bench::unmounted(settings());
    bench.held = vec!["OpenSession", "GetGroups", "GetNodes"];
    let (start, question) = (bench.begin(Call::Start), ask(&mut bench));
    let open = bench.take("OpenSession");
    assert_eq!((&session_of(&open).client_key[..], number_of(&open)), (&b"key"[..], (0, 0)));
    assert_eq!(bench.count("GetAttr"), 0, "no question without a session");
    house(&mut bench, &open);
    let asked = bench.take("GetAttr");
    assert!(matches!(&asked.request, effects::Wire::Read(read) if read.session == 1));
    for name in ["GetGroups", "GetNodes"] {
        assert_eq!(bench.done(start), None);
        let send = bench.take(name);
        house(&mut bench, &send);
    }
    assert_eq!(bench.done(start), Some(Ok(())));
    assert_eq!(bench.done(question), None);
}

#[test]
fn a_refused_mount_is_told_and_not_tried_again_at_once() {
    for refused in ["OpenSession", "GetGroups", "GetNodes"] {
        let mut bench = Bench::unmounted(settings());
        bench.held = vec![refused];
        let start = bench.begin(Call::Start);
        let send = bench.take(refused);
        match &send.request {
            effects::Wire::Mutate(_) => bench.mutated(&send, mutate_says(Code::Invalid)),
            effects::Wire::Read(_) => bench.read(&send, super::bench::read_says(Code::Invalid)),
        }
        assert!(matches!(bench.done(start), Some(Err(Error::Refused { code: Code::Invalid, .. }))), "{refused}");
        bench.later(Duration::from_millis(999));
        assert_eq!(bench.count(refused), 0);
    }
}

// Keep-alives.

#[test]
fn a_keep_alive_goes_every_second_and_only_one_is_under_way() {
    let mut bench = Bench::mounted();
    bench.held = vec!["KeepAlive"];
    bench.later(SECOND - MOMENT);
    assert_eq!(bench.count("KeepAlive"), 0);
    bench.later(MOMENT);
    assert_eq!(bench.count("KeepAlive"), 1);
    bench.later(SECOND * 10);
    let slow = bench.take("KeepAlive");
    house(&mut bench, &slow);
    assert_eq!(bench.count("KeepAlive"), 1, "the next one was due");
}

/// Never: no keep-alive is answered for longer than the lease.
#[test]
fn a_session_that_is_not_answered_is_unsure_which_is_said_once_and_keeps_what_is_dirty() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.held = vec!["KeepAlive"];
    bench.written(handle, 0, 10);
    let unsure = |bench: &Bench| bench.notes.iter().filter(|note| matches!(note, Note::SessionUnsure(_))).count();
    bench.later(LEASE - MOMENT);
    assert_eq!(unsure(&bench), 0);
    bench.later(LEASE * 3);
    assert_eq!(unsure(&bench), 1);
    assert_eq!(bench.core.unflushed(), [InodeId(5)]);
    bench.held.clear();
    // Late: it was sent longer ago than a lease, and says nothing of the present.
    let send = bench.take("KeepAlive");
    house(&mut bench, &send);
    bench.later(SECOND);
    assert_eq!(unsure(&bench), 1);
    bench.settle();
    bench.assert_empty();
    assert_eq!(bench.core.session_id(), SessionId(1), "the same session goes on");
    bench.held = vec!["KeepAlive"];
    bench.later(LEASE * 2);
    assert_eq!(unsure(&bench), 2);
}

#[test]
fn a_new_leader_that_wants_the_whole_list_gets_it_once() {
    let mut bench = Bench::mounted();
    bench.open(5, BOTH);
    bench.held = vec!["KeepAlive"];
    bench.later(SECOND);
    let send = bench.take("KeepAlive");
    let known = ReadResponse { groups_changes: 1, nodes_version: 1, ..ReadResponse::default() };
    let wanted = ReadResponse { attach_needed: true, term: 9, ..known };
    bench.read(&send, wanted.clone());
    let list = bench.take("KeepAlive");
    let read_request::Op::KeepAlive(told) = question_of(&list) else { panic!("{list:?}") };
    assert_eq!((told.attach, told.attach_term, &told.open), (true, Some(9), &vec![5]));
    bench.read(&list, wanted);
    assert_eq!(bench.count("KeepAlive"), 0, "it was told; a leader that is not content waits for the next");
}

#[test]
fn a_floor_that_a_keep_alive_tells_makes_a_writer_leave_its_ids() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 10);
    bench.fsync(handle);
    bench.settle();
    bench.held = vec!["KeepAlive"];
    bench.later(SECOND);
    let send = bench.take("KeepAlive");
    bench.read(&send, ReadResponse { floor: 3000, groups_changes: 1, nodes_version: 1, ..ReadResponse::default() });
    bench.written(handle, 0, 10);
    bench.fsync(handle);
    assert_eq!(bench.take_put().record.chunk, 3000);
}

// Groups and addresses.

#[test]
fn groups_are_asked_for_when_a_keep_alive_speaks_of_others_and_once_at_a_time() {
    let mut bench = Bench::mounted();
    bench.held = vec!["GetGroups"];
    bench.groups_changes = 2;
    bench.later(SECOND * 5);
    bench.step(effects::Input::DoubtGroups);
    let send = bench.take("GetGroups");
    bench.groups[0].epoch = 9;
    house(&mut bench, &send);
    assert_eq!(bench.core.members.group(holdfast_common::GroupId(1)).map(|group| group.epoch), Some(9));
    bench.later(SECOND * 5);
    assert_eq!(bench.count("GetGroups"), 0, "they are known");
    bench.step(effects::Input::DoubtGroups);
    assert_eq!(bench.count("GetGroups"), 1);
}

#[test]
fn pages_of_groups_and_of_addresses_are_asked_for_to_their_ends() {
    let mut bench = Bench::mounted();
    bench.held = vec!["GetGroups", "GetNodes"];
    bench.step(effects::Input::DoubtGroups);
    let first = bench.take("GetGroups");
    let group = |group| BlockGroup { group, ..bench.groups[0].clone() };
    let (second_group, third_group) = (group(2), group(3));
    let page = ReadResponse { more_groups: true, next_since: 4, next_after_group: 2, ..ReadResponse::default() };
    bench.read(&first, ReadResponse { groups: vec![second_group], groups_changes: 5, ..page });
    let second = bench.take("GetGroups");
    let read_request::Op::GetGroups(asked) = question_of(&second) else { panic!("{second:?}") };
    assert_eq!((asked.since, asked.after_group), (Some(4), 2));
    assert!(bench.core.members.is_behind(5, 1), "not before the last page");
    bench.read(&second, ReadResponse { groups: vec![third_group], groups_changes: 6, ..ReadResponse::default() });
    assert_eq!(bench.core.members.open_groups().len(), 3);
    let node = |node: u64| NodeAddress { node, address: "127.0.0.1:9".into(), ..NodeAddress::default() };
    let first = bench.take("GetNodes");
    let page = ReadResponse { nodes: vec![node(11)], more_nodes: true, nodes_version: 7, ..ReadResponse::default() };
    bench.read(&first, page);
    let second = bench.take("GetNodes");
    let read_request::Op::GetNodes(asked) = question_of(&second) else { panic!("{second:?}") };
    assert_eq!(asked.after_node, 11);
    // It has changed between the pages: what is known is as of the first.
    bench.read(&second, ReadResponse { nodes: vec![node(12)], nodes_version: 8, ..ReadResponse::default() });
    assert!(bench.core.members.is_behind(6, 8) && !bench.core.members.is_behind(6, 7));
}

#[test]
fn a_refusal_of_groups_lets_them_be_asked_for_again() {
    let mut bench = Bench::mounted();
    bench.held = vec!["GetGroups"];
    bench.step(effects::Input::DoubtGroups);
    let send = bench.take("GetGroups");
    bench.read(&send, super::bench::read_says(Code::Invalid));
    bench.step(effects::Input::DoubtGroups);
    assert_eq!(bench.count("GetGroups"), 1);
}

#[test]
fn the_volume_manager_is_asked_at_most_once_a_second_and_by_one_at_a_time() {
    let mut bench = Bench::mounted();
    ask(&mut bench);
    let fail_all = |bench: &mut Bench| {
        for send in std::mem::take(&mut bench.sends) {
            bench.unanswered(&send);
        }
    };
    bench.held = vec!["KeepAlive"];
    fail_all(&mut bench);
    assert_eq!(bench.volmgr_asked, 1);
    for _ in 0..50 {
        bench.later(SECOND / 10);
        fail_all(&mut bench);
    }
    assert_eq!(bench.volmgr_asked, 1, "it has not answered yet");
    bench.step(effects::Input::Endpoints(Vec::new()));
    for _ in 0..50 {
        bench.later(SECOND / 10);
        fail_all(&mut bench);
        bench.step(effects::Input::Endpoints(Vec::new()));
    }
    assert!((5..=7).contains(&bench.volmgr_asked), "{} times", bench.volmgr_asked);
}

#[test]
fn a_replica_that_moved_is_asked_where_the_volume_manager_says() {
    let mut bench = Bench::mounted();
    ask(&mut bench);
    let mut asked = Vec::new();
    let moved = std::net::SocketAddr::from(([127, 0, 0, 9], 9));
    let endpoint = holdfast_proto::control::Endpoint { node: 2, address: moved.to_string(), ..Default::default() };
    bench.step(effects::Input::Endpoints(vec![endpoint]));
    for _ in 0..4 {
        let send = bench.take("GetAttr");
        asked.push(send.to);
        bench.unanswered(&send);
        bench.later(SECOND);
    }
    assert_eq!(asked, [metanode(1), moved, metanode(3), metanode(1)]);
}

// Sessions that are lost.

#[test]
fn a_lost_session_is_followed_by_another_under_a_key_of_its_own() {
    let mut bench = Bench::with(Settings { client_key: vec![7; 600], ..settings() });
    bench.held = vec!["OpenSession"];
    let mut keys = Vec::new();
    for session in 1..4 {
        bench.expire();
        assert!(bench.notes.contains(&Note::SessionLost(SessionId(session))));
        assert_eq!(bench.core.session_id(), SessionId(0));
        let open = bench.take("OpenSession");
        let key = session_of(&open).client_key.clone();
        assert_eq!((key.len(), &key[..512]), (520, &[7; 512][..]));
        keys.push(key);
        house(&mut bench, &open);
        assert_eq!(bench.core.session_id(), SessionId(session + 1));
    }
    keys.dedup();
    assert_eq!(keys.len(), 3, "two mounts of one key would end each other's sessions for ever");
}

#[test]
fn a_mount_that_stood_asks_for_a_session_again_and_again_with_a_pause() {
    let mut bench = Bench::mounted();
    bench.held = vec!["OpenSession"];
    bench.expire();
    let question = ask(&mut bench);
    for _ in 0..5 {
        let open = bench.take("OpenSession");
        bench.mutated(&open, mutate_says(Code::TooBig));
        bench.later(SECOND - MOMENT);
        assert_eq!((bench.count("OpenSession"), bench.count("GetAttr")), (0, 0));
        bench.later(MOMENT);
    }
    let open = bench.take("OpenSession");
    house(&mut bench, &open);
    let send = bench.take("GetAttr");
    bench.read(&send, ReadResponse::default());
    assert_eq!(bench.done(question), Some(Ok(())), "a question waits for the next session");
}

/// Late, twice: more than one request hears of the end, some after the next session has begun.
#[test]
fn the_end_of_a_session_is_one_end() {
    let mut bench = Bench::mounted();
    ask(&mut bench);
    ask(&mut bench);
    let sends: Vec<_> = bench.sends.drain(..).collect();
    for send in &sends {
        bench.read(send, super::bench::read_says(Code::SessionExpired));
    }
    let lost = bench.notes.iter().filter(|note| matches!(note, Note::SessionLost(_))).count();
    assert_eq!((lost, bench.core.session_id(), bench.count("GetAttr")), (1, SessionId(2), 2));
}

#[test]
fn changes_under_way_end_with_their_session() {
    let mut bench = Bench::mounted();
    let change = mutation::Op::CloseSession(holdfast_proto::meta::CloseSession {});
    let ops = [bench.begin(Call::Mutate(change.clone())), bench.begin(Call::Mutate(change.clone()))];
    let late: Vec<_> = bench.sends.drain(..).collect();
    bench.expire();
    assert!(ops.iter().all(|op| bench.done(*op) == Some(Err(Error::SessionLost))));
    late.iter().for_each(|send| bench.mutated(send, mutate_says(Code::Ok)));
    let next = bench.begin(Call::Mutate(change));
    let send = bench.take("CloseSession");
    assert_eq!(number_of(&send), (2, 1), "numbers begin anew");
    bench.mutated(&send, mutate_says(Code::Ok));
    assert_eq!(bench.done(next), Some(Ok(())));
}

// Quota.

#[test]
fn quota_goes_back_when_nothing_is_dirty_and_never_beside_a_raise() {
    let mut bench = Bench::with(Settings { limited: true, ..settings() });
    let handle = bench.open(5, BOTH);
    let op = bench.write(handle, 0, 10);
    let raise = bench.take("ReserveQuota");
    bench.mutated(&raise, MutateResponse { reserved_bytes: 64 << 20, ..MutateResponse::default() });
    assert_eq!(bench.done(op), Some(Ok(())));
    bench.later(SECOND * 3);
    assert_eq!(bench.count("ReserveQuota"), 0, "something is dirty");
    bench.settle();
    bench.later(SECOND);
    let back = bench.take("ReserveQuota");
    assert!(matches!(change_of(&back), mutation::Op::ReserveQuota(op) if op.bytes == 0));
    let op = bench.write(handle, 0, 10);
    bench.later(SECOND);
    assert_eq!((bench.count("ReserveQuota"), bench.done(op)), (0, None), "sent again, it would take the raise back");
    bench.mutated(&back, MutateResponse::default());
    let raise = bench.take("ReserveQuota");
    assert!(matches!(change_of(&raise), mutation::Op::ReserveQuota(op) if op.bytes > 0));
    bench.mutated(&raise, MutateResponse { reserved_bytes: 64 << 20, ..MutateResponse::default() });
    assert_eq!(bench.done(op), Some(Ok(())));
}

/// Dropped: the writer that a raise was asked for is gone, and the raise is not answered.
#[test]
fn quota_does_not_go_back_while_a_raise_of_it_is_under_way() {
    let mut bench = Bench::with(Settings { limited: true, ..settings() });
    let handle = bench.open(5, BOTH);
    let op = bench.write(handle, 0, 10);
    let raise = bench.take("ReserveQuota");
    bench.mutated(&raise, MutateResponse { reserved_bytes: 8192, ..MutateResponse::default() });
    assert_eq!(bench.done(op), Some(Ok(())));
    bench.fsync(handle);
    bench.settle();
    let large = bench.write(handle, 0, 100_000);
    let raise = bench.take("ReserveQuota");
    bench.abandon(large);
    bench.later(SECOND * 3);
    assert_eq!(bench.count("ReserveQuota"), 0, "two changes of it could pass each other");
    bench.mutated(&raise, MutateResponse { reserved_bytes: 64 << 20, ..MutateResponse::default() });
    bench.later(SECOND);
    let back = bench.take("ReserveQuota");
    assert!(matches!(change_of(&back), mutation::Op::ReserveQuota(op) if op.bytes == 0));
}

#[test]
fn a_mount_without_a_limit_never_speaks_of_quota() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 10);
    bench.later(SECOND * 3);
    bench.settle();
    bench.later(SECOND * 3);
    assert_eq!(bench.count("ReserveQuota"), 0);
}
