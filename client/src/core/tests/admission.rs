//! How writes are admitted: memory, space, quota, and their order.

use super::super::admission::SPACE_RENEW_AFTER;
use super::super::*;
use super::bench::{APPEND, BOTH, Bench, DEADLINE, commit_of, grants, mutate_says, question_of, settings};
use crate::{OpenMode, WriteAt};
use holdfast_common::limits::FILE_BYTES_MAX;
use holdfast_proto::meta::{Code, Extent, FileMap};
use std::time::Duration;

const MIB: usize = 1 << 20;
const PAGE: u64 = 4096;

fn small_memory() -> Settings {
    Settings { dirty_bytes: 2 * MIB, ..settings() }
}

fn limited() -> Settings {
    Settings { limited: true, ..settings() }
}

// Admission.

#[test]
fn a_writer_without_memory_waits_for_a_flush_and_none_overtakes_it() {
    let mut bench = Bench::with(small_memory());
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, MIB);
    assert!(bench.puts.is_empty(), "half of the memory is free");
    bench.written(handle, MIB as u64, MIB / 2);
    assert_eq!(bench.puts.len(), 1, "less than half is free: all that is dirty is on its way");
    let (large, small) = (bench.write(handle, 8 << 20, MIB), bench.write(handle, 16 << 20, 1));
    assert_eq!((bench.done(large), bench.done(small)), (None, None), "the small one has room, but not its turn");
    bench.settle();
    assert_eq!((bench.done(large), bench.done(small)), (Some(Ok(())), Some(Ok(()))));
}

#[test]
fn a_writer_that_does_not_fit_beside_what_is_dirty_has_it_flushed() {
    let mut bench = Bench::with(small_memory());
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, MIB - 1);
    assert!(bench.puts.is_empty());
    let large = bench.write(handle, 8 << 20, MIB + MIB / 2);
    assert_eq!((bench.done(large), bench.puts.len()), (None, 1), "at once, and not when it is old");
    bench.settle();
    assert_eq!(bench.done(large), Some(Ok(())));
}

#[test]
fn a_writer_that_gives_up_lets_the_next_one_in_at_once() {
    let mut bench = Bench::with(small_memory());
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, MIB + MIB / 2);
    let (large, small) = (bench.write(handle, 8 << 20, MIB), bench.write(handle, 16 << 20, 1));
    bench.abandon(large);
    assert_eq!(bench.done(small), Some(Ok(())));
    bench.settle();
    bench.later(Duration::from_secs(1));
    bench.settle();
    assert_eq!(bench.attributes(5).size_bytes, (16 << 20) + 1, "nothing of the first was taken in");
    bench.assert_empty();
}

/// Never: no member answers.
#[test]
fn a_writer_that_waits_in_vain_ends_at_its_deadline_and_says_what_was_wanting() {
    let mut bench = Bench::with(small_memory());
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, MIB + MIB / 2);
    let waiting = bench.write(handle, 8 << 20, MIB);
    bench.later(DEADLINE / 2);
    let later = bench.write(handle, 9 << 20, MIB);
    bench.later(DEADLINE / 2);
    let Some(Err(Error::TimedOut(why))) = bench.done(waiting) else { panic!("it has ended") };
    assert!(why.contains("memory"), "{why}");
    assert_eq!(bench.done(later), None);
    bench.settle();
    assert_eq!(bench.done(later), Some(Ok(())), "the next one's turn has come");
}

#[test]
fn a_write_that_overwrites_what_is_dirty_takes_no_more_memory() {
    let mut bench = Bench::with(small_memory());
    let handle = bench.open(5, BOTH);
    for _ in 0..50 {
        bench.written(handle, 100, MIB / 2);
    }
    assert_eq!((bench.core.memory.used_bytes(), bench.puts.len()), (MIB / 2, 0));
}

#[test]
fn where_an_append_goes_is_known_when_it_is_admitted() {
    let mut bench = Bench::with(small_memory());
    let (first, second) = (bench.open(5, APPEND), bench.open(5, BOTH));
    bench.written(second, 0, MIB + MIB / 2);
    let waiting = [bench.write_at(first, WriteAt::End { believed: 7 }, MIB), bench.write(second, 3 << 20, 10)];
    let last = bench.write_at(first, WriteAt::End { believed: 7 }, 5);
    bench.settle();
    assert!(waiting.iter().all(|op| bench.done(*op) == Some(Ok(()))));
    assert_eq!(bench.done(last), Some(Ok(())));
    bench.fsync(first);
    bench.settle();
    assert_eq!(bench.attributes(5).size_bytes, (3 << 20) + 15);
    // A handle that was not opened for appending writes where its caller believes the end.
    let believing = bench.write_at(second, WriteAt::End { believed: 7 }, 1);
    assert_eq!(bench.done(believing), Some(Ok(())));
    bench.fsync(second);
    bench.store_all();
    let commit = bench.take("Commit");
    assert_eq!(commit_of(&commit).files[0].extents[0].file_offset, 7);
}

#[test]
fn what_can_be_refused_at_once_is_and_takes_nothing() {
    let mut bench = Bench::mounted();
    let reading = bench.open(5, OpenMode { write: false, ..BOTH });
    let (writing, appending) = (bench.open(5, BOTH), bench.open(5, APPEND));
    let cases = [
        (bench.write(reading, 0, 1), Err(Error::BadHandle)),
        (bench.write(FileHandle(99), 0, 1), Err(Error::BadHandle)),
        (bench.write(writing, FILE_BYTES_MAX - 9, 10), Err(Error::FileTooLarge)),
        (bench.write(writing, u64::MAX, 10), Err(Error::FileTooLarge)),
        (bench.write(writing, 0, 0), Ok(())),
    ];
    for (op, outcome) in cases {
        assert_eq!(bench.done(op), Some(outcome));
    }
    assert_eq!(bench.core.held_bytes(), 0);
    bench.written(writing, FILE_BYTES_MAX - 10, 10);
    let beyond = bench.write_at(appending, WriteAt::End { believed: 0 }, 1);
    assert_eq!(bench.done(beyond), Some(Err(Error::FileTooLarge)), "where it goes is known only now");
    bench.fsync(writing);
    bench.settle();
    bench.assert_empty();
}

#[test]
fn a_synchronous_write_ends_with_its_commit() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, OpenMode { sync: true, ..BOTH });
    let op = bench.write(handle, 0, 10);
    bench.store_all();
    assert_eq!((bench.done(op), bench.count("Commit")), (None, 1));
    bench.settle();
    assert_eq!(bench.done(op), Some(Ok(())));
    let lost = bench.write(handle, 0, 10);
    bench.store_all();
    let commit = bench.take("Commit");
    bench.mutated(&commit, mutate_says(Code::NoSpace));
    assert!(bench.done(lost).unwrap().is_err());
    let fsync = bench.fsync(handle);
    assert_eq!(bench.done(fsync), Some(Ok(())), "it was told");
}

// Space.

#[test]
fn full_disks_are_asked_again_after_a_flush_and_then_it_is_said() {
    for freed in [false, true] {
        let mut bench = Bench::mounted();
        bench.free_bytes = Some(40 << 10);
        let handle = bench.open(5, BOTH);
        bench.written(handle, 0, 60 << 10);
        bench.free_bytes = None;
        let op = bench.write(handle, 1 << 20, MIB);
        let reserve = bench.reserves.remove(0);
        assert_eq!(reserve.disks.iter().map(|(_, disks)| disks.len()).sum::<usize>(), 5);
        // Another that comes meanwhile asks nobody, but waits.
        let second = bench.write(handle, 0, 1);
        assert!(bench.reserves.is_empty());
        let granted = grants(&reserve, 40 << 10);
        bench.step(effects::Input::Granted(granted));
        assert_eq!((bench.puts.len(), bench.reserves.len()), (1, 0), "what is dirty is flushed first");
        bench.settle();
        let reserve = bench.reserves.remove(0);
        // The write waits for the disks' answer; another step does not change that.
        bench.step(effects::Input::Tick);
        assert_eq!(bench.done(op), None);
        let granted = grants(&reserve, if freed { 1 << 30 } else { 40 << 10 });
        bench.step(effects::Input::Granted(granted));
        assert_eq!(bench.done(op), Some(if freed { Ok(()) } else { Err(Error::NoSpace) }));
        assert_eq!(bench.done(second), Some(Ok(())), "the small one has room");
    }
}

/// Without enough answers it is the put's deadline that finds other members, or none.
#[test]
fn a_write_is_not_held_up_by_disks_that_do_not_answer_for_their_space() {
    let mut bench = Bench::mounted();
    bench.free_bytes = None;
    let handle = bench.open(5, BOTH);
    let op = bench.write(handle, 0, 10);
    let reserve = bench.reserves.remove(0);
    let mut granted = grants(&reserve, 1 << 30);
    granted.truncate(1);
    bench.step(effects::Input::Granted(granted));
    assert_eq!(bench.done(op), Some(Ok(())));
    // It is asked again for the next one.
    let op = bench.write(handle, 0, 10);
    assert_eq!((bench.done(op), bench.reserves.len()), (None, 1));
}

#[test]
fn a_promise_of_space_serves_many_writes_until_it_is_old() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.free_bytes = None;
    let op = bench.write(handle, 0, 10);
    let reserve = bench.reserves.remove(0);
    bench.step(effects::Input::Granted(grants(&reserve, 1 << 40)));
    assert_eq!(bench.done(op), Some(Ok(())));
    for at in 0..20 {
        bench.written(handle, at << 20, MIB);
    }
    bench.later(Duration::from_secs(10));
    let op = bench.write(handle, 0, 10);
    assert_eq!((bench.done(op), bench.reserves.len()), (None, 1));
    bench.later(DEADLINE);
    assert!(matches!(bench.done(op), Some(Err(Error::TimedOut(why))) if why.contains("disks")));
}

#[test]
fn space_that_was_promised_to_a_lost_session_is_asked_for_anew() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 10);
    bench.free_bytes = None;
    bench.expire();
    let op = bench.write(handle, 0, 10);
    assert_eq!((bench.done(op), bench.reserves.len()), (None, 1));
    assert_eq!(bench.reserves[0].session, SessionId(2));
}

// Quota.

#[test]
fn quota_is_raised_in_steps_that_serve_many_writes() {
    let mut bench = Bench::with(limited());
    let handle = bench.open(5, BOTH);
    let (first, second) = (bench.write(handle, 0, 10), bench.write(handle, PAGE, 10));
    let raise = bench.take("ReserveQuota");
    assert_eq!(asked_bytes(&raise), PAGE + (64 << 20));
    bench.mutated(&raise, MutateResponse { reserved_bytes: asked_bytes(&raise), ..MutateResponse::default() });
    assert_eq!((bench.done(first), bench.done(second)), (Some(Ok(())), Some(Ok(()))));
    for at in 2..1000 {
        bench.written(handle, at * PAGE, 10);
    }
    assert_eq!(bench.count("ReserveQuota"), 0);
    assert_eq!(bench.core.quota.charged_bytes(), 1000 * PAGE);
    bench.fsync(handle);
    bench.settle();
    bench.assert_empty();
}

/// Where it begins in its page is known when it is admitted.
#[test]
fn an_append_is_charged_as_many_pages_as_it_may_touch() {
    let mut bench = Bench::with(limited());
    let handle = bench.open(5, APPEND);
    bench.write_at(handle, WriteAt::End { believed: 0 }, 2);
    assert_eq!(asked_bytes(&bench.take("ReserveQuota")), 2 * PAGE + (64 << 20));
}

fn asked_bytes(send: &effects::Send) -> u64 {
    let mutation::Op::ReserveQuota(op) = super::bench::change_of(send) else { panic!("{send:?}") };
    op.bytes
}

/// A limited mount whose quota is used up but for what the first write holds: the second write is refused with slack and
/// without, and what is dirty is flushed.
fn refused_twice(bench: &mut Bench) -> (FileHandle, OpId) {
    let handle = bench.open(5, BOTH);
    let first = bench.write(handle, 0, 10);
    let raise = bench.take("ReserveQuota");
    bench.mutated(&raise, MutateResponse { reserved_bytes: PAGE, ..MutateResponse::default() });
    assert_eq!(bench.done(first), Some(Ok(())));
    let second = bench.write(handle, 0, 3 * 4096);
    let raise = bench.take("ReserveQuota");
    assert_eq!(asked_bytes(&raise), 4 * PAGE + (64 << 20));
    bench.mutated(&raise, mutate_says(Code::Quota));
    let raise = bench.take("ReserveQuota");
    assert_eq!(asked_bytes(&raise), 4 * PAGE, "without slack");
    assert!(bench.puts.is_empty());
    bench.mutated(&raise, mutate_says(Code::Quota));
    assert_eq!((bench.puts.len(), bench.count("ReadMap")), (1, 0));
    bench.settle();
    (handle, second)
}

/// The map of a file of which these pages are mapped.
fn map(offset: u64, covered_bytes: u64, pages: &[(u64, u64)]) -> Option<FileMap> {
    let extent = |(page, count): &(u64, u64)| Extent {
        file_offset: page * PAGE,
        length_bytes: count * PAGE,
        chunk: 1,
        chunk_offset: 0,
    };
    Some(FileMap { offset, covered_bytes, extents: pages.iter().map(extent).collect(), chunks: Vec::new() })
}

#[test]
fn a_write_over_mapped_pages_needs_no_quota_and_one_over_a_hole_only_the_holes() {
    for (mapped, needed) in [(vec![(0, 3)], 0), (vec![(1, 1)], 2), (vec![(0, 1), (2, 9)], 1), (vec![], 3)] {
        let mut bench = Bench::with(limited());
        let (_, op) = refused_twice(&mut bench);
        let question = bench.take("ReadMap");
        bench.read(&question, ReadResponse { map: map(0, 5 * PAGE, &mapped), ..ReadResponse::default() });
        if needed > 0 {
            assert_eq!(bench.done(op), None);
            let raise = bench.take("ReserveQuota");
            assert_eq!(asked_bytes(&raise), needed * PAGE);
            bench.mutated(&raise, MutateResponse { reserved_bytes: needed * PAGE, ..MutateResponse::default() });
        }
        assert_eq!(bench.done(op), Some(Ok(())), "{mapped:?}");
        assert_eq!(bench.core.quota.charged_bytes(), needed * PAGE);
        // Which of its pages it was charged for is not known: a generation of its own takes them along.
        assert_eq!(bench.puts.len(), usize::from(0 < needed && needed < 3), "{mapped:?}");
        bench.settle();
        bench.later(Duration::from_secs(1));
        bench.settle();
        assert_eq!(bench.core.quota.charged_bytes(), 0);
    }
}

#[test]
fn a_map_that_comes_in_parts_is_counted_to_its_end() {
    let mut bench = Bench::with(limited());
    let (_, op) = refused_twice(&mut bench);
    let question = bench.take("ReadMap");
    bench.read(&question, ReadResponse { map: map(0, PAGE, &[(0, 1)]), ..ReadResponse::default() });
    let question = bench.take("ReadMap");
    let read_request::Op::ReadMap(asked) = question_of(&question) else { panic!("{question:?}") };
    assert_eq!((asked.offset, asked.length_bytes), (PAGE, 2 * PAGE));
    bench.read(&question, ReadResponse { map: map(PAGE, 2 * PAGE, &[(2, 1)]), ..ReadResponse::default() });
    let raise = bench.take("ReserveQuota");
    assert_eq!(asked_bytes(&raise), PAGE);
    bench.mutated(&raise, mutate_says(Code::Quota));
    assert_eq!(bench.done(op), Some(Err(Error::Quota)));
    assert_eq!(bench.core.writers.len(), 0);
}

#[test]
fn after_a_refusal_for_want_of_quota_there_is_a_way_back() {
    let mut bench = Bench::with(limited());
    let (handle, op) = refused_twice(&mut bench);
    let question = bench.take("ReadMap");
    bench.read(&question, ReadResponse { map: map(0, 5 * PAGE, &[]), ..ReadResponse::default() });
    let raise = bench.take("ReserveQuota");
    bench.mutated(&raise, mutate_says(Code::Quota));
    assert_eq!(bench.done(op), Some(Err(Error::Quota)));
    // Somebody deletes something.
    let op = bench.write(handle, 0, 3 * 4096);
    let raise = bench.take("ReserveQuota");
    let reserved_bytes = asked_bytes(&raise);
    bench.mutated(&raise, MutateResponse { reserved_bytes, ..MutateResponse::default() });
    assert_eq!(bench.done(op), Some(Ok(())));
    bench.fsync(handle);
    bench.settle();
    bench.assert_empty();
}

/// Dropped: the writer that asked for quota is gone when the answer comes.
/// Else the next input would find it by chance, a question about another file for instance, which is held to find nothing.
#[test]
fn a_promise_of_space_that_grows_too_old_under_a_waiting_writer_is_asked_for_anew() {
    let mut bench = Bench::with(limited());
    let handle = bench.open(5, BOTH);
    // Keep-alives fall due at whole seconds.
    bench.later(Duration::from_millis(300));
    let op = bench.write(handle, 0, 10);
    let raise = bench.take("ReserveQuota");
    bench.free_bytes = None;
    // From here on no request of its own falls due when the promise does.
    bench.later(Duration::from_millis(1300));
    bench.mutated(&raise, mutate_says(Code::Quota));
    bench.later(SPACE_RENEW_AFTER - Duration::from_millis(1301));
    assert!(bench.reserves.is_empty(), "the disks have promised enough");
    assert_eq!(bench.core.due, Some(bench.now + Duration::from_millis(1)), "it wakes for that");
    bench.later(Duration::from_millis(1));
    assert_eq!(bench.reserves.len(), 1);
    bench.abandon(op);
}

#[test]
fn quota_that_an_abandoned_writer_asked_for_serves_the_next() {
    let mut bench = Bench::with(limited());
    let handle = bench.open(5, BOTH);
    let (first, second) = (bench.write(handle, 0, 10), bench.write(handle, PAGE, 10));
    let raise = bench.take("ReserveQuota");
    bench.abandon(first);
    assert_eq!(bench.count("ReserveQuota"), 0, "one change of the reservation at a time");
    bench.mutated(&raise, MutateResponse { reserved_bytes: 64 << 20, ..MutateResponse::default() });
    assert_eq!(bench.done(second), Some(Ok(())));
    assert_eq!(bench.core.quota.charged_bytes(), PAGE);
}

#[test]
fn a_lost_session_takes_its_quota_along_and_a_waiting_writer_raises_that_of_the_next() {
    let mut bench = Bench::with(limited());
    let handle = bench.open(5, BOTH);
    let first = bench.write(handle, 0, 10);
    let raise = bench.take("ReserveQuota");
    bench.mutated(&raise, MutateResponse { reserved_bytes: 64 << 20, ..MutateResponse::default() });
    assert_eq!(bench.done(first), Some(Ok(())));
    bench.expire();
    let second = bench.write(handle, 0, 10);
    assert_eq!(bench.done(second), None);
    let raise = bench.take("ReserveQuota");
    assert_eq!((super::bench::number_of(&raise).0, asked_bytes(&raise)), (2, PAGE + (64 << 20)));
    bench.expire();
    assert_eq!(bench.done(second), Some(Err(Error::SessionLost)), "whether it was raised is not known");
    bench.mutated(&raise, MutateResponse { reserved_bytes: 64 << 20, ..MutateResponse::default() });
    assert!(!bench.core.quota.fits(1), "late: it was the former session's");
}
