//! Write-back: what is frozen when, what is committed when, and what becomes of what was refused or lost.

use super::super::effects::{Call, Reading, Send};
use super::super::flush::DIRTY_AGE_MAX;
use super::super::*;
use super::bench::{BOTH, Bench, change_of, commit_of, mutate_says, number_of, settings};
use holdfast_common::limits::CHUNK_BYTES_MAX;
use holdfast_common::{DiskId, FileOffset};
use holdfast_proto::data::Status;
use holdfast_proto::meta::{Code, CommitResult, SetAttr};
use std::time::Duration;

const CHUNK: usize = CHUNK_BYTES_MAX as usize;
const MOMENT: Duration = Duration::from_nanos(1);
const PAUSE: Duration = Duration::from_millis(20);

fn lost(bench: &Bench) -> Vec<(u64, u64, Error)> {
    let lost = bench.notes.iter().filter_map(|note| match note {
        Note::Lost { inode, bytes, error } => Some((inode.0, *bytes, error.clone())),
        _ => None,
    });
    lost.collect()
}

/// A file of which 100 bytes are durable, and their commit.
fn committing(bench: &mut Bench) -> (FileHandle, Send) {
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 100);
    bench.fsync(handle);
    bench.store_all();
    (handle, bench.take("Commit"))
}

#[test]
fn written_data_is_on_its_way_after_a_second_and_not_before() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 100);
    bench.later(DIRTY_AGE_MAX / 2);
    // A later write does not make it any younger.
    bench.written(handle, 4096, 100);
    bench.later(DIRTY_AGE_MAX / 2 - MOMENT);
    assert!(bench.puts.is_empty());
    bench.later(MOMENT);
    assert_eq!(bench.puts.len(), 1);
    bench.settle();
    bench.assert_empty();
    // The next second begins with the next write.
    bench.written(handle, 0, 100);
    bench.later(DIRTY_AGE_MAX - MOMENT);
    assert!(bench.puts.is_empty());
}

#[test]
fn a_commit_waits_for_every_shard_of_every_chunk() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, CHUNK + 1);
    let fsync = bench.fsync(handle);
    // A full chunk goes when it is full: the rest is a generation of its own.
    assert_eq!(bench.puts.len(), 2);
    let (first, second) = (bench.puts.remove(0), bench.puts.remove(0));
    for put in [&first, &second] {
        for shard in (0u8..).take(put.members.len()) {
            let before = bench.count("Commit");
            bench.put_says(put, shard, Status::Ok);
            let last = usize::from(shard) + 1 == put.members.len();
            assert_eq!(bench.count("Commit") - before, usize::from(last && put.write == first.write));
        }
    }
    assert_eq!(bench.done(fsync), None);
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

/// Late: the second generation is durable long before the first.
#[test]
fn generations_of_a_file_are_committed_in_their_order() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 2 << 20);
    let first_sync = bench.fsync(handle);
    bench.written(handle, 0, 1 << 20);
    let second_sync = bench.fsync(handle);
    let (first, second) = (bench.puts.remove(0), bench.puts.remove(0));
    bench.store(&second);
    assert_eq!(bench.count("Commit"), 0);
    bench.store(&first);
    let commit = bench.take("Commit");
    assert_eq!(commit_of(&commit).chunks, [first.record]);
    bench.committed(&commit);
    assert_eq!((bench.done(first_sync), bench.done(second_sync)), (Some(Ok(())), None));
    let commit = bench.take("Commit");
    assert_eq!(commit_of(&commit).chunks, [second.record]);
    bench.committed(&commit);
    assert_eq!(bench.done(second_sync), Some(Ok(())));
    bench.assert_empty();
}

/// Lost: it may have been executed or not, so it is asked again by the same number and answered once.
#[test]
fn a_commit_without_an_answer_is_sent_again_under_its_number() {
    let mut bench = Bench::mounted();
    let (handle, first) = committing(&mut bench);
    bench.unanswered(&first);
    assert_eq!(bench.count("Commit"), 0, "not without a pause");
    bench.later(Duration::from_secs(1));
    let second = bench.take("Commit");
    assert_eq!(number_of(&first), number_of(&second));
    assert_eq!(change_of(&first), change_of(&second));
    // Late: the first attempt's answer is nobody's.
    bench.mutated(&first, mutate_says(Code::NotFound));
    assert_eq!(bench.core.unflushed(), [InodeId(5)]);
    bench.committed(&second);
    bench.mutated(&second, mutate_says(Code::NotFound));
    bench.assert_empty();
    let fsync = bench.fsync(handle);
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

/// Another mount has truncated one of two files that share a commit.
#[test]
fn of_a_shared_commit_only_the_refused_file_is_written_anew_and_under_what_holds_now() {
    let mut bench = Bench::mounted();
    let handles = [bench.open(5, BOTH), bench.open(6, BOTH)];
    bench.written(handles[0], 0, 100);
    bench.written(handles[1], 0, 200);
    let sync = bench.begin(Call::Sync);
    bench.store_all();
    let commit = bench.take("Commit");
    assert_eq!(commit_of(&commit).files.len(), 2, "small files share a commit");
    bench.attributes(5).truncate_generation = 3;
    bench.commit_says(&commit, &[Code::Truncated, Code::Ok]);
    assert_eq!(bench.core.unflushed(), [InodeId(5)]);
    // Neither the pause alone nor the attributes alone are enough.
    let question = bench.take("GetAttr");
    bench.later(PAUSE * 2);
    assert!(bench.puts.is_empty(), "it is not known under what to write");
    let attr = bench.files.get(&5).copied();
    bench.read(&question, ReadResponse { attr, ..ReadResponse::default() });
    let put = bench.take_put();
    assert_eq!(put.pieces.iter().map(bytes::Bytes::len).sum::<usize>(), 100);
    assert_ne!(put.record.chunk, commit_of(&commit).chunks[0].chunk, "an id is one attempt's");
    bench.store(&put);
    let again = bench.take("Commit");
    let files: Vec<_> = commit_of(&again).files.iter().map(|file| (file.inode, file.truncate_generation)).collect();
    assert_eq!(files, [(5, 3)]);
    assert_eq!(bench.done(sync), None);
    bench.committed(&again);
    assert_eq!(bench.done(sync), Some(Ok(())));
    bench.assert_empty();
}

#[test]
fn what_was_refused_with_its_attributes_waits_for_the_pause_alone_which_doubles_to_a_second() {
    let mut bench = Bench::mounted();
    let (_, mut commit) = committing(&mut bench);
    let mut pause = PAUSE;
    for round in 1..10u64 {
        bench.attributes(5).truncate_generation = round;
        let attr = bench.files.get(&5).copied();
        let commits = vec![CommitResult { code: Code::Truncated.into(), attr }];
        bench.mutated(&commit, MutateResponse { commits, ..MutateResponse::default() });
        assert_eq!(bench.count("GetAttr"), 0);
        bench.later(pause - MOMENT);
        assert!(bench.puts.is_empty(), "round {round}");
        bench.later(MOMENT);
        assert_eq!(bench.puts.len(), 1, "round {round}");
        bench.store_all();
        commit = bench.take("Commit");
        assert_eq!(commit_of(&commit).files[0].truncate_generation, round);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// A slot was vacated, or the floor raised.
#[test]
fn a_chunk_that_cannot_be_used_is_written_anew_with_other_ids_when_the_groups_are_known_anew() {
    let mut bench = Bench::mounted();
    let (handle, commit) = committing(&mut bench);
    bench.held = vec!["GetGroups", "ReserveChunks"];
    bench.commit_says(&commit, &[Code::RewriteChunk]);
    let question = bench.take("GetAttr");
    let attr = bench.files.get(&5).copied();
    bench.read(&question, ReadResponse { attr, ..ReadResponse::default() });
    bench.later(Duration::from_secs(5));
    assert_eq!(bench.count("ReserveChunks"), 0, "it is not written before the groups are known");
    let groups = bench.take("GetGroups");
    let answer = bench.house_answer(&groups);
    bench.answer(groups.attempt, Ok(answer));
    assert!(bench.puts.is_empty(), "the ids of before are left");
    let ids = bench.take("ReserveChunks");
    let first_chunk = 77_000;
    bench.mutated(&ids, MutateResponse { first_chunk, ..MutateResponse::default() });
    let put = bench.take_put();
    assert_eq!(put.record.chunk, first_chunk);
    bench.store(&put);
    bench.settle();
    let fsync = bench.fsync(handle);
    assert_eq!(bench.done(fsync), Some(Ok(())));
    bench.assert_empty();
}

#[test]
fn a_file_that_a_commits_answer_does_not_speak_of_is_written_anew() {
    let mut bench = Bench::mounted();
    let (_, commit) = committing(&mut bench);
    bench.mutated(&commit, MutateResponse::default());
    assert_eq!((bench.core.unflushed(), lost(&bench)), (vec![InodeId(5)], vec![]));
    let question = bench.take("GetAttr");
    let attr = bench.files.get(&5).copied();
    bench.read(&question, ReadResponse { attr, ..ReadResponse::default() });
    bench.later(PAUSE);
    assert_eq!(bench.puts.len(), 1);
}

#[test]
fn a_file_that_is_gone_ends_its_data_and_nobody_is_told() {
    for code in [Code::NotFound, Code::Stale] {
        let mut bench = Bench::mounted();
        let (handle, commit) = committing(&mut bench);
        bench.commit_says(&commit, &[code]);
        bench.assert_empty();
        assert!(lost(&bench).is_empty());
        let fsync = bench.fsync(handle);
        assert_eq!(bench.done(fsync), Some(Ok(())));
    }
}

#[test]
fn data_that_the_table_refuses_for_good_is_lost_and_told_once_by_each_handle() {
    for (whole, code, errno) in [
        (false, Code::NoSpace, libc::ENOSPC),
        (true, Code::NoSpace, libc::ENOSPC),
        (false, Code::Quota, libc::EDQUOT),
        (true, Code::Quota, libc::EDQUOT),
    ] {
        let mut bench = Bench::mounted();
        let (handle, commit) = committing(&mut bench);
        let other = bench.open(5, BOTH);
        if whole {
            bench.mutated(&commit, mutate_says(code));
        } else {
            bench.commit_says(&commit, &[code]);
        }
        bench.assert_empty();
        assert_eq!(lost(&bench).len(), 1);
        assert_eq!((lost(&bench)[0].0, lost(&bench)[0].1), (5, 100));
        for handle in [handle, other] {
            let (first, second) = (bench.fsync(handle), bench.fsync(handle));
            // The fsync that waited for it has told the first handle already.
            let told = bench.done(first).unwrap();
            assert_eq!(told.is_err(), handle == other);
            assert!(told.is_ok() || told.unwrap_err().errno() == errno);
            assert_eq!(bench.done(second), Some(Ok(())));
        }
    }
}

/// Of the whole commit, or of one file: nobody knows what became of it, so that fsync fails and the map is asked for anew.
#[test]
fn an_unknown_code_is_no_success_of_a_commit() {
    const NO_CODE: i32 = 999;
    for whole in [false, true] {
        let mut bench = Bench::mounted();
        let handle = bench.open(5, BOTH);
        bench.written(handle, 0, 100);
        let fsync = bench.fsync(handle);
        bench.store_all();
        let commit = bench.take("Commit");
        let code = if whole { NO_CODE } else { 0 };
        let commits = vec![CommitResult { code: NO_CODE, attr: None }];
        bench.mutated(&commit, MutateResponse { code, commits, ..MutateResponse::default() });
        let error = Error::Unknown { what: "code", number: NO_CODE };
        assert_eq!(lost(&bench), [(5, 100, error.clone())]);
        assert_eq!(bench.done(fsync), Some(Err(error)));
        bench.assert_empty();
        bench.later(Duration::from_secs(10));
        assert_eq!(bench.count("Commit"), 0, "it is not sent again");
        let call = Call::Plan { handle, offset: FileOffset(0), length_bytes: 10, reading: Reading::Wanted };
        bench.begin(call);
        assert_eq!(bench.count("ReadMap"), 1);
    }
}

#[test]
fn closing_tells_of_a_lost_write_and_leaves_it_to_be_told() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 100);
    bench.expire();
    for closing in [true, true, false] {
        let flush = bench.begin(Call::Flush { handle, closing });
        assert_eq!(bench.done(flush), Some(Err(Error::SessionLost)));
    }
    let flush = bench.begin(Call::Flush { handle, closing: true });
    assert_eq!(bench.done(flush), Some(Ok(())));
}

/// Whatever a generation is at when its session is lost: dirty, on its way, durable, committing, refused.
#[test]
fn nothing_of_a_lost_session_reaches_the_next_one() {
    for phase in 0..5 {
        let mut bench = Bench::mounted();
        let handle = bench.open(5, BOTH);
        if phase == 2 {
            // A change that waits for an answer holds the commit back.
            let op = mutation::Op::SetAttr(SetAttr { inode: 5, mode: Some(0o600), ..SetAttr::default() });
            bench.begin(Call::Barrier { inode: InodeId(5), op });
        }
        bench.written(handle, 0, 100);
        let fsync = (phase > 0).then(|| bench.fsync(handle));
        let put = (phase > 0).then(|| bench.take_put());
        put.iter().filter(|_| phase > 1).for_each(|put| bench.store(put));
        let commit = (phase > 2).then(|| bench.take("Commit"));
        commit.iter().filter(|_| phase == 4).for_each(|commit| bench.commit_says(commit, &[Code::Truncated]));
        bench.expire();
        assert_eq!(lost(&bench), [(5, 100, Error::SessionLost)], "phase {phase}");
        if let Some(fsync) = fsync {
            assert_eq!(bench.done(fsync), Some(Err(Error::SessionLost)), "phase {phase}");
        }
        // Late: what was under way is answered now.
        put.iter().for_each(|put| bench.store(put));
        commit.iter().for_each(|commit| bench.mutated(commit, MutateResponse::default()));
        bench.later(Duration::from_secs(10));
        assert!(bench.puts.is_empty() && bench.count("Commit") == 0, "phase {phase}");
        assert_eq!(bench.core.memory.used_bytes(), 0);
        // The next session is as good as the first.
        bench.written(handle, 0, 10);
        let fsync = bench.fsync(handle);
        bench.settle();
        let told = bench.done(fsync).unwrap();
        assert_eq!(told.is_err(), phase == 0, "phase {phase}: nobody had been told");
        bench.assert_empty();
    }
}

#[test]
fn a_commit_waits_for_a_change_of_its_inode_and_the_next_change_for_the_commit() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    let change = |mode| mutation::Op::SetAttr(SetAttr { inode: 5, mode: Some(mode), ..SetAttr::default() });
    let first = bench.begin(Call::Barrier { inode: InodeId(5), op: change(1) });
    let under_way = bench.take("SetAttr");
    bench.written(handle, 0, 100);
    let second = bench.begin(Call::Barrier { inode: InodeId(5), op: change(2) });
    bench.store_all();
    assert_eq!((bench.count("Commit"), bench.count("SetAttr")), (0, 0));
    let attr = bench.files.get(&5).copied();
    bench.mutated(&under_way, MutateResponse { attr, ..MutateResponse::default() });
    assert_eq!(bench.done(first), Some(Ok(())));
    let commit = bench.take("Commit");
    assert_eq!(bench.count("SetAttr"), 0, "what was written before it is not committed");
    bench.committed(&commit);
    let under_way = bench.take("SetAttr");
    assert_eq!(change_of(&under_way), &change(2));
    bench.mutated(&under_way, MutateResponse { attr, ..MutateResponse::default() });
    assert_eq!(bench.done(second), Some(Ok(())));
    bench.assert_empty();
}

#[test]
fn a_commit_takes_along_the_quota_that_its_writes_were_charged_and_nothing_without_a_limit() {
    for limited in [false, true] {
        let mut bench = Bench::with(Settings { limited, ..settings() });
        let handle = bench.open(5, BOTH);
        let op = bench.write(handle, 4000, 200);
        if limited {
            let raise = bench.take("ReserveQuota");
            bench.mutated(&raise, MutateResponse { reserved_bytes: 1 << 20, ..MutateResponse::default() });
        }
        assert_eq!(bench.done(op), Some(Ok(())));
        bench.fsync(handle);
        bench.store_all();
        let commit = bench.take("Commit");
        let file = &commit_of(&commit).files[0];
        assert_eq!((file.quota_bytes, file.size_at_least, file.mtime_ns), (u64::from(limited) * 8192, 4200, 5));
        bench.committed(&commit);
        bench.assert_empty();
    }
}

#[test]
fn an_abandoned_fsync_leaves_the_flush_to_go_on() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 100);
    let (first, second) = (bench.fsync(handle), bench.fsync(handle));
    bench.abandon(first);
    bench.store_all();
    let commit = bench.take("Commit");
    bench.committed(&commit);
    assert_eq!((bench.done(first), bench.done(second)), (None, Some(Ok(()))));
    bench.assert_empty();
}

/// A chunk that waits for ids or for members when its session is lost.
#[test]
fn a_chunk_that_waits_is_gone_with_its_session() {
    for waits_for_ids in [true, false] {
        let mut bench = Bench::mounted();
        let handle = bench.open(5, BOTH);
        if waits_for_ids {
            bench.held = vec!["ReserveChunks"];
        } else {
            (1..=5).for_each(|disk| bench.step(effects::Input::Unanswered { disk: DiskId(disk) }));
        }
        bench.written(handle, 0, 100);
        bench.fsync(handle);
        assert!(bench.puts.is_empty());
        bench.expire();
        bench.held.clear();
        bench.sends.clear();
        bench.later(Duration::from_secs(10));
        assert!(bench.puts.is_empty(), "it belongs to the lost session (R22)");
        let writes = &bench.core.writes;
        assert!(writes.paused.is_empty() && writes.without_id.is_empty());
        bench.assert_empty();
    }
}
