//! Operations from their beginning to their outcome: deadlines, callers that are gone, the order of changes, opens and closes.

use super::super::effects::{Call, Input, Send};
use super::super::*;
use super::bench::{BOTH, Bench, DEADLINE, Told, change_of, mutate_says, number_of, question_of, read_says};
use crate::{OpenMode, Whence};
use holdfast_common::FileOffset;
use holdfast_proto::meta::{Code, CreateNode, GetAttr, KeepAlive, Kind, SetAttr, SetXattr};
use std::time::Duration;

const FILE: InodeId = InodeId(5);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

fn chmod(mode: u32) -> mutation::Op {
    mutation::Op::SetAttr(SetAttr { inode: FILE.0, mode: Some(mode), ..SetAttr::default() })
}

fn barrier(bench: &mut Bench, mode: u32) -> OpId {
    bench.begin(Call::Barrier { inode: FILE, op: chmod(mode) })
}

fn ask(bench: &mut Bench) -> OpId {
    bench.begin(Call::Ask(read_request::Op::GetAttr(GetAttr { inode: FILE.0 })))
}

fn attributes(bench: &mut Bench) -> Option<Attr> {
    Some(*bench.attributes(FILE.0))
}

fn keep_alive(bench: &mut Bench) -> KeepAlive {
    bench.held = vec!["KeepAlive"];
    bench.later(KEEP_ALIVE);
    let send = bench.take("KeepAlive");
    let read_request::Op::KeepAlive(op) = question_of(&send).clone() else { panic!("{send:?}") };
    bench.held.clear();
    let answer = bench.house_answer(&send);
    bench.answer(send.attempt, Ok(answer));
    op
}

fn answer_open(bench: &mut Bench, send: &Send) {
    let attr = attributes(bench);
    bench.read(send, ReadResponse { attr, ..ReadResponse::default() });
}

fn opened(told: Option<Told>) -> FileHandle {
    match told {
        Some(Ok(Answer::Opened(_, handle))) => handle,
        other => panic!("not opened: {other:?}"),
    }
}

/// Never: whatever it waits for, an operation ends at its deadline and not before.
#[test]
fn every_operation_ends_by_its_deadline() {
    let calls: [fn(&mut Bench, FileHandle) -> Call; 7] = [
        |_, _| Call::Ask(read_request::Op::GetAttr(GetAttr { inode: FILE.0 })),
        |_, _| Call::Mutate(chmod(1)),
        |_, _| Call::Barrier { inode: FILE, op: chmod(1) },
        |_, _| Call::Open { inode: InodeId(6), mode: BOTH },
        |bench, handle| {
            bench.written(handle, 0, 10);
            Call::Flush { handle, closing: false }
        },
        |bench, handle| {
            bench.attributes(FILE.0).size_bytes = 100;
            let attr = *bench.attributes(FILE.0);
            bench.core.files.see(attr);
            Call::Plan { handle, offset: FileOffset(0), length_bytes: 10, reading: effects::Reading::Wanted }
        },
        |_, handle| Call::Seek { handle, offset: FileOffset(0), whence: crate::Whence::Data },
    ];
    for (index, call) in calls.into_iter().enumerate() {
        let mut bench = Bench::mounted();
        let handle = bench.open(FILE.0, BOTH);
        let call = call(&mut bench, handle);
        let op = bench.begin(call);
        bench.later(DEADLINE - Duration::from_nanos(1));
        assert!(!bench.told.contains_key(&op), "call {index}");
        bench.later(Duration::from_nanos(1));
        assert!(matches!(bench.done(op), Some(Err(Error::TimedOut(_)))), "call {index}");
        assert!(bench.core.operations.is_empty(), "call {index}");
        // Late: everything is answered.
        bench.settle();
        for send in std::mem::take(&mut bench.sends) {
            let attr = attributes(&mut bench);
            match &send.request {
                effects::Wire::Read(_) => bench.read(&send, ReadResponse { attr, ..ReadResponse::default() }),
                effects::Wire::Mutate(_) => bench.mutated(&send, MutateResponse { attr, ..MutateResponse::default() }),
            }
        }
        assert!(bench.told.is_empty(), "call {index}");
        // And the handle is as good as before.
        bench.written(handle, 0, 10);
        let fsync = bench.fsync(handle);
        bench.settle();
        assert_eq!(bench.done(fsync), Some(Ok(())), "call {index}");
    }
}

#[test]
fn an_operation_that_has_ended_is_not_ended_again_by_its_deadline() {
    let mut bench = Bench::mounted();
    let op = ask(&mut bench);
    let send = bench.take("GetAttr");
    bench.read(&send, read_says(Code::NotFound));
    assert!(matches!(bench.done(op), Some(Err(Error::Refused { code: Code::NotFound, .. }))));
    bench.later(DEADLINE * 2);
    assert!(bench.told.is_empty());
}

#[test]
fn a_question_that_nobody_waits_for_is_asked_no_more_and_a_change_is() {
    let mut bench = Bench::mounted();
    let (question, change) = (ask(&mut bench), bench.begin(Call::Mutate(chmod(1))));
    let sends = [bench.take("GetAttr"), bench.take("SetAttr")];
    bench.abandon(question);
    bench.abandon(change);
    sends.iter().for_each(|send| bench.unanswered(send));
    bench.later(Duration::from_secs(1));
    assert_eq!((bench.count("GetAttr"), bench.count("SetAttr")), (0, 1));
    let again = bench.take("SetAttr");
    assert_eq!(number_of(&again), number_of(&sends[1]));
    bench.mutated(&again, mutate_says(Code::Ok));
    assert!(bench.told.is_empty());
}

#[test]
fn an_operation_after_the_end_of_the_mount_fails_at_once() {
    let mut bench = Bench::mounted();
    let handle = bench.open(FILE.0, BOTH);
    let close = bench.begin(Call::Close);
    let send = bench.take("CloseSession");
    bench.mutated(&send, mutate_says(Code::Ok));
    assert_eq!(bench.done(close), Some(Ok(())));
    let calls = [Call::Sync, Call::Release { handle }, Call::Open { inode: FILE, mode: BOTH }, Call::Mutate(chmod(1))];
    for call in calls {
        let op = bench.begin(call);
        assert_eq!(bench.done(op), Some(Err(Error::SessionLost)));
    }
    bench.later(DEADLINE);
    assert!(bench.sends.is_empty(), "no keep-alive, no session, nothing");
}

// The order of changes of one inode.

#[test]
fn changes_of_an_inode_go_one_after_the_other_and_those_of_another_beside_them() {
    let mut bench = Bench::mounted();
    let ops = [1, 2, 3].map(|mode| barrier(&mut bench, mode));
    let other = SetAttr { inode: 6, ..SetAttr::default() };
    bench.begin(Call::Barrier { inode: InodeId(6), op: mutation::Op::SetAttr(other) });
    let at = bench.sends.iter().position(|send| change_of(send) == &mutation::Op::SetAttr(other));
    bench.sends.remove(at.expect("it waits for nobody"));
    for (op, mode) in ops.into_iter().zip([1, 2, 3]) {
        let send = bench.take("SetAttr");
        assert_eq!(change_of(&send), &chmod(mode));
        bench.mutated(&send, mutate_says(Code::Ok));
        assert_eq!(bench.done(op), Some(Ok(())));
    }
}

/// Dropped: one that waits for its turn takes none; one that was sent keeps it.
#[test]
fn an_abandoned_change_is_skipped_unless_it_was_sent() {
    let mut bench = Bench::mounted();
    let ops = [1, 2, 3].map(|mode| barrier(&mut bench, mode));
    bench.abandon(ops[0]);
    bench.abandon(ops[1]);
    let first = bench.take("SetAttr");
    assert_eq!(change_of(&first), &chmod(1));
    bench.unanswered(&first);
    bench.later(Duration::from_secs(1));
    let again = bench.take("SetAttr");
    assert_eq!(number_of(&again), number_of(&first), "the next one must not pass it");
    bench.mutated(&again, mutate_says(Code::Ok));
    let third = bench.take("SetAttr");
    assert_eq!(change_of(&third), &chmod(3));
    bench.mutated(&third, mutate_says(Code::Ok));
    assert_eq!(bench.done(ops[2]), Some(Ok(())));
    assert_eq!(bench.told.len(), 0);
}

#[test]
fn a_refused_change_and_one_of_a_lost_session_let_the_next_one_go() {
    let mut bench = Bench::mounted();
    let ops = [1, 2].map(|mode| barrier(&mut bench, mode));
    let send = bench.take("SetAttr");
    bench.mutated(&send, mutate_says(Code::NotPermitted));
    assert!(matches!(bench.done(ops[0]), Some(Err(Error::Refused { code: Code::NotPermitted, .. }))));
    bench.take("SetAttr");
    let third = barrier(&mut bench, 3);
    bench.expire();
    assert_eq!(bench.done(ops[1]), Some(Err(Error::SessionLost)));
    let send = bench.take("SetAttr");
    assert_eq!((number_of(&send), change_of(&send)), ((2, 1), &chmod(3)));
    bench.mutated(&send, mutate_says(Code::Ok));
    assert_eq!(bench.done(third), Some(Ok(())));
}

#[test]
fn a_change_waits_for_what_was_written_before_and_not_for_what_is_written_later() {
    let mut bench = Bench::mounted();
    let handle = bench.open(FILE.0, BOTH);
    bench.written(handle, 0, 10);
    let change = barrier(&mut bench, 1);
    bench.written(handle, 0, 20);
    assert_eq!(bench.count("SetAttr"), 0);
    bench.settle();
    let send = bench.take("SetAttr");
    let fsync = bench.fsync(handle);
    bench.store_all();
    assert_eq!(bench.count("Commit"), 0, "what is written later must not pass it");
    bench.mutated(&send, mutate_says(Code::Ok));
    assert_eq!(bench.done(change), Some(Ok(())));
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
    bench.assert_empty();
}

#[test]
fn a_sync_waits_for_all_files_and_a_flush_for_its_own() {
    let mut bench = Bench::mounted();
    let handles = [bench.open(5, BOTH), bench.open(6, BOTH), bench.open(7, BOTH)];
    bench.written(handles[0], 0, 2 << 20);
    let fsync = bench.fsync(handles[0]);
    bench.written(handles[1], 0, 2 << 20);
    let (sync, clean) = (bench.begin(Call::Sync), bench.fsync(handles[2]));
    assert_eq!(bench.done(clean), Some(Ok(())), "there is nothing of it");
    let (first, second) = (bench.puts.remove(0), bench.puts.remove(0));
    bench.store(&second);
    let commit = bench.take("Commit");
    bench.committed(&commit);
    assert_eq!((bench.done(fsync), bench.done(sync)), (None, None));
    bench.store(&first);
    let commit = bench.take("Commit");
    bench.committed(&commit);
    assert_eq!((bench.done(fsync), bench.done(sync)), (Some(Ok(())), Some(Ok(()))));
    let sync = bench.begin(Call::Sync);
    assert_eq!(bench.done(sync), Some(Ok(())));
}

// Opening and closing.

#[test]
fn a_release_is_told_after_the_last_handle_and_after_what_it_wrote_is_flushed() {
    let mut bench = Bench::mounted();
    let handles = [bench.open(FILE.0, BOTH), bench.open(FILE.0, BOTH)];
    bench.written(handles[1], 0, 10);
    let first = bench.release(handles[0]);
    let second = bench.release(handles[1]);
    assert_eq!((bench.done(first), bench.done(second)), (None, None));
    let op = bench.fsync(handles[0]);
    assert_eq!(bench.done(op), Some(Err(Error::BadHandle)));
    assert!(keep_alive(&mut bench).released.is_empty(), "an orphan would be freed under what is flushed");
    bench.settle();
    assert_eq!((bench.done(first), bench.done(second)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(keep_alive(&mut bench).released, [FILE.0]);
    assert!(keep_alive(&mut bench).released.is_empty(), "it is told once");
    assert_eq!(bench.core.files.inodes().count(), 0);
}

#[test]
fn a_handle_is_released_once() {
    let mut bench = Bench::mounted();
    let (handle, other) = (bench.open(FILE.0, BOTH), bench.open(FILE.0, BOTH));
    for outcome in [Ok(()), Err(Error::BadHandle)] {
        let op = bench.release(handle);
        assert_eq!(bench.done(op), Some(outcome));
    }
    assert!(keep_alive(&mut bench).released.is_empty(), "another has it open");
    bench.written(other, 0, 10);
}

/// Dropped: the open is answered when nobody waits for it, or its outcome finds nobody.
#[test]
fn an_open_that_nobody_takes_is_closed_again() {
    let mut bench = Bench::mounted();
    let op = bench.begin(Call::Open { inode: FILE, mode: BOTH });
    let send = bench.take("Open");
    bench.abandon(op);
    assert!(keep_alive(&mut bench).released.is_empty());
    answer_open(&mut bench, &send);
    assert_eq!(keep_alive(&mut bench).released, [FILE.0]);
    let op = bench.begin(Call::Open { inode: FILE, mode: BOTH });
    let send = bench.take("Open");
    answer_open(&mut bench, &send);
    let outcome = bench.told.remove(&op).unwrap();
    assert!(keep_alive(&mut bench).released.is_empty());
    bench.step(Input::Undelivered { outcome });
    assert_eq!(keep_alive(&mut bench).released, [FILE.0]);
    assert_eq!(bench.core.files.inodes().count(), 0);
}

#[test]
fn a_refused_open_leaves_nothing_behind() {
    let mut bench = Bench::mounted();
    let op = bench.begin(Call::Open { inode: FILE, mode: BOTH });
    let send = bench.take("Open");
    bench.read(&send, read_says(Code::NotFound));
    assert!(bench.done(op).unwrap().is_err());
    assert!(keep_alive(&mut bench).released.is_empty());
    assert_eq!(bench.core.files.inodes().count(), 0);
    // An answer without attributes is none.
    let op = bench.begin(Call::Open { inode: FILE, mode: BOTH });
    let send = bench.take("Open");
    bench.read(&send, ReadResponse::default());
    assert!(bench.done(op).unwrap().is_err());
}

/// Crossing: the release of the former handle is told while the next open is under way.
#[test]
fn an_open_that_crosses_the_release_of_the_same_file_is_asked_again() {
    let mut bench = Bench::mounted();
    let former = bench.open(FILE.0, BOTH);
    let op = bench.begin(Call::Open { inode: FILE, mode: BOTH });
    let send = bench.take("Open");
    bench.release(former);
    assert_eq!(keep_alive(&mut bench).released, [FILE.0]);
    answer_open(&mut bench, &send);
    assert!(!bench.told.contains_key(&op), "the leader may have taken the release in after the open");
    let again = bench.take("Open");
    answer_open(&mut bench, &again);
    opened(bench.told.remove(&op));
    assert!(keep_alive(&mut bench).released.is_empty());
}

#[test]
fn what_was_open_under_a_lost_session_is_told_to_the_next() {
    let mut bench = Bench::mounted();
    let handles = [bench.open(5, BOTH), bench.open(6, BOTH)];
    bench.release(handles[1]);
    bench.held = vec!["KeepAlive"];
    bench.expire();
    let is_of_the_next = |send: &Send| match &send.request {
        effects::Wire::Read(read) => read.session == 2 && matches!(read.op, Some(read_request::Op::KeepAlive(_))),
        effects::Wire::Mutate(_) => false,
    };
    let at = bench.sends.iter().position(is_of_the_next);
    let send = bench.sends.remove(at.expect("the new session begins with one"));
    let read_request::Op::KeepAlive(told) = question_of(&send) else { panic!("{send:?}") };
    assert_eq!((told.attach, &told.open, &told.released), (true, &vec![5], &vec![]));
}

#[test]
fn a_created_file_is_pristine_until_somebody_changes_it() {
    let mut bench = Bench::mounted();
    let created = Attr { inode: 9, kind: Kind::File.into(), btime_ns: 7, ctime_ns: 7, ..Attr::default() };
    let request = CreateNode { parent: 1, name: "file".into(), open: true, ..CreateNode::default() };
    let op = bench.begin(Call::Create { request, mode: BOTH });
    let send = bench.take("Create");
    bench.mutated(&send, MutateResponse { attr: Some(created), ..MutateResponse::default() });
    let handle = opened(bench.told.remove(&op));
    bench.written(handle, 0, 10);
    let now = bench.now;
    let seen = bench.core.created_attributes(InodeId(9), now).expect("it is new, and known with what was written");
    assert_eq!(seen.size_bytes, 10);
    assert_eq!(bench.core.name_of(InodeId(9)).map(|name| name.name), Some("file".into()));
}

/// Not answered yet, and yet not to be relied on: by whichever way it is set.
#[test]
fn a_created_file_is_not_pristine_from_the_setting_of_an_extended_attribute_on() {
    for waits_for_writes in [false, true] {
        let mut bench = Bench::mounted();
        let created = Attr { inode: 9, kind: Kind::File.into(), btime_ns: 7, ctime_ns: 7, ..Attr::default() };
        let op = bench.begin(Call::Create { request: CreateNode::default(), mode: BOTH });
        let send = bench.take("Create");
        bench.mutated(&send, MutateResponse { attr: Some(created), ..MutateResponse::default() });
        let handle = opened(bench.told.remove(&op));
        bench.written(handle, 0, 10);
        let set = mutation::Op::SetXattr(SetXattr { inode: 9, ..SetXattr::default() });
        let now = bench.now;
        assert!(bench.core.created_attributes(InodeId(9), now).is_some());
        let barrier = |op| Call::Barrier { inode: InodeId(9), op };
        bench.begin(if waits_for_writes { barrier(set) } else { Call::Mutate(set) });
        assert_eq!(bench.core.created_attributes(InodeId(9), now), None);
    }
}

#[test]
fn an_outcome_that_told_of_a_lost_write_and_was_not_heard_is_told_again() {
    let mut bench = Bench::mounted();
    let handle = bench.open(FILE.0, BOTH);
    bench.written(handle, 0, 10);
    bench.expire();
    let op = bench.fsync(handle);
    let outcome = bench.told.remove(&op).unwrap();
    assert!(matches!(outcome, Ok(Answer::Told(..))));
    bench.step(Input::Undelivered { outcome });
    assert_eq!(bench.core.untold(), [FILE]);
    for outcome in [Err(Error::SessionLost), Ok(())] {
        let op = bench.fsync(handle);
        assert_eq!(bench.done(op), Some(outcome));
    }
    assert!(bench.core.untold().is_empty());
}

/// As errseq does on Linux: nobody has seen it yet.
#[test]
fn a_write_that_is_lost_after_its_last_close_is_told_by_every_handle_until_an_fsync_has_told_it() {
    let mut bench = Bench::mounted();
    let handle = bench.open(FILE.0, BOTH);
    bench.written(handle, 0, 10);
    bench.release(handle);
    bench.expire();
    assert_eq!(bench.core.untold(), [FILE]);
    // A reader that closes without fsync takes nothing away, and its close does not fail for what others wrote.
    let reader = bench.open(FILE.0, OpenMode { write: false, ..BOTH });
    let closed = bench.begin(Call::Flush { handle: reader, closing: true });
    assert_eq!(bench.done(closed), Some(Ok(())));
    bench.release(reader);
    assert_eq!(bench.core.untold(), [FILE]);
    let (first, second) = (bench.open(FILE.0, BOTH), bench.open(FILE.0, BOTH));
    let ops = [bench.fsync(second), bench.fsync(first), bench.fsync(first), bench.fsync(second)];
    assert_eq!(ops.map(|op| bench.done(op).unwrap().is_err()), [true, true, false, false]);
    let later = bench.open(FILE.0, BOTH);
    let fsync = bench.fsync(later);
    assert_eq!(bench.done(fsync), Some(Ok(())), "it was told");
    for handle in [first, second, later] {
        bench.release(handle);
    }
    assert_eq!(bench.core.files.inodes().count(), 0);
}

#[test]
fn a_loss_that_only_closes_have_told_stays_for_the_next_fsync() {
    let mut bench = Bench::mounted();
    let handle = bench.open(FILE.0, BOTH);
    bench.written(handle, 0, 10);
    bench.expire();
    let closed = bench.begin(Call::Flush { handle, closing: true });
    assert_eq!(bench.done(closed), Some(Err(Error::SessionLost)));
    bench.release(handle);
    assert!(bench.core.untold().is_empty(), "the end of the mount need not tell it again");
    let next = bench.open(FILE.0, BOTH);
    let ops = [bench.fsync(next), bench.fsync(next)];
    assert_eq!(ops.map(|op| bench.done(op).unwrap().is_err()), [true, false]);
    assert!(bench.core.untold().is_empty());
}

/// Reading, looking for data and changing attributes look at the file, and tell nothing.
#[test]
fn only_fsync_takes_a_lost_write_from_a_handle() {
    let mut bench = Bench::mounted();
    let handle = bench.open(FILE.0, BOTH);
    bench.written(handle, 0, 10);
    bench.expire();
    for whence in [Whence::Data, Whence::Hole] {
        let seek = bench.begin(Call::Seek { handle, offset: FileOffset(0), whence });
        let send = bench.take("ReadMap");
        bench.read(&send, ReadResponse::default());
        assert_eq!(bench.done(seek), Some(Err(Error::NoSuchOffset)));
    }
    let change = barrier(&mut bench, 0o600);
    let send = bench.take("SetAttr");
    bench.mutated(&send, mutate_says(Code::Ok));
    assert_eq!(bench.done(change), Some(Ok(())));
    for told in [Err(Error::SessionLost), Ok(())] {
        let fsync = bench.fsync(handle);
        assert_eq!(bench.done(fsync), Some(told));
    }
}

/// Its kind's number may be of a newer version: whatever it is, it is no file, and the table is told that it is not open.
#[test]
fn an_inode_that_is_no_file_is_not_opened() {
    for kind in [999, Kind::Unknown.into(), Kind::Directory.into(), Kind::Fifo.into()] {
        let mut bench = Bench::mounted();
        let op = bench.begin(Call::Open { inode: FILE, mode: BOTH });
        let send = bench.take("Open");
        let attr = Some(Attr { kind, ..*bench.attributes(FILE.0) });
        bench.read(&send, ReadResponse { attr, ..ReadResponse::default() });
        assert_eq!(bench.done(op).unwrap().unwrap_err().errno(), libc::EIO, "kind {kind}");
        assert_eq!(bench.core.files.inodes().count(), 0);
        assert_eq!(keep_alive(&mut bench).released, [FILE.0]);
    }
}

/// A change of an unknown outcome: the size and the map are asked for anew.
#[test]
fn after_a_change_that_was_answered_with_an_unknown_code_the_inode_is_doubtful() {
    let mut bench = Bench::mounted();
    bench.open(FILE.0, BOTH);
    let op = barrier(&mut bench, 0o600);
    let send = bench.take("SetAttr");
    bench.mutated(&send, MutateResponse { code: 999, ..MutateResponse::default() });
    assert_eq!(bench.done(op).unwrap().unwrap_err().errno(), libc::EIO);
    assert!(bench.core.files.inode(FILE).unwrap().is_doubtful());
    let next = barrier(&mut bench, 0o640);
    let send = bench.take("SetAttr");
    bench.mutated(&send, mutate_says(Code::Ok));
    assert_eq!(bench.done(next), Some(Ok(())));
}
