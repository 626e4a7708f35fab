//! Reads: what is asked of the table, by whom and how often, and what is believed of its answers. Searches for data and holes.

use super::super::effects::{Call, PlanPiece, Reading, Send};
use super::super::*;
use super::bench::{APPEND, BOTH, Bench, mutate_says, question_of, read_says};
use crate::{OpenMode, Whence, WriteAt};
use holdfast_common::FileOffset;
use holdfast_proto::meta::{ChunkRecord, Code, Extent, FileMap, GetAttr, ReadMap};
use std::time::Duration;

const PAGE: u64 = 4096;

fn plan(bench: &mut Bench, handle: FileHandle, offset: u64, length_bytes: u64) -> OpId {
    bench.begin(Call::Plan { handle, offset: FileOffset(offset), length_bytes, reading: Reading::Wanted })
}

/// Sources of the bytes, a letter a page: a chunk by its number, `w` written here, `.` a hole.
fn pages(bench: &mut Bench, op: OpId) -> Option<String> {
    let pieces = match bench.told.remove(&op)? {
        Ok(Answer::Plan(pieces, _)) => pieces,
        other => panic!("no plan: {other:?}"),
    };
    let piece = |piece: PlanPiece| match piece {
        PlanPiece::Bytes(bytes) => "w".repeat(bytes.len() / 4096),
        PlanPiece::Zeros(count) => ".".repeat(usize::try_from(count / PAGE).unwrap()),
        PlanPiece::Chunk { chunk, length_bytes, .. } => {
            chunk.chunk.to_string().repeat(usize::try_from(length_bytes / PAGE).unwrap())
        }
    };
    Some(pieces.into_iter().map(piece).collect())
}

/// A part of a map: chunk and page of each page that is mapped.
fn map(from: u64, count: u64, mapped: &[(u64, u64)]) -> Option<FileMap> {
    let extent = |(page, chunk): &(u64, u64)| Extent {
        file_offset: page * PAGE,
        length_bytes: PAGE,
        chunk: *chunk,
        chunk_offset: 0,
    };
    let record = |(_, chunk): &(u64, u64)| ChunkRecord { chunk: *chunk, ..ChunkRecord::default() };
    Some(FileMap {
        offset: from * PAGE,
        covered_bytes: count * PAGE,
        extents: mapped.iter().map(extent).collect(),
        chunks: mapped.iter().map(record).collect(),
    })
}

/// A file of so many pages that the table has and this mount has open.
fn file(bench: &mut Bench, pages: u64) -> FileHandle {
    bench.attributes(5).size_bytes = pages * PAGE;
    bench.attributes(5).data_version = 1;
    bench.open(5, BOTH)
}

fn answer_map(bench: &mut Bench, send: &Send, map: Option<FileMap>) {
    let attr = Some(*bench.attributes(5));
    bench.read(send, ReadResponse { attr, map, ..ReadResponse::default() });
}

fn asked(send: &Send) -> &ReadMap {
    let read_request::Op::ReadMap(op) = question_of(send) else { panic!("{send:?}") };
    op
}

#[test]
fn readers_of_one_file_share_a_question_and_what_is_known_is_not_asked_for() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 8);
    let ops = [plan(&mut bench, handle, 0, 2 * PAGE), plan(&mut bench, handle, 4 * PAGE, 4 * PAGE)];
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 8, &[(0, 1), (5, 2)]));
    assert_eq!(ops.map(|op| pages(&mut bench, op)), [Some("1.".into()), Some(".2..".into())]);
    let again = plan(&mut bench, handle, PAGE, 5 * PAGE);
    assert_eq!(pages(&mut bench, again).as_deref(), Some("....2"));
    let behind = plan(&mut bench, handle, 6 * PAGE, 100 * PAGE);
    assert_eq!(pages(&mut bench, behind).as_deref(), Some(".."), "a read ends with the file");
    let nothing = plan(&mut bench, handle, 8 * PAGE, PAGE);
    assert_eq!(pages(&mut bench, nothing).as_deref(), Some(""));
    assert_eq!(bench.count("ReadMap"), 0);
}

#[test]
fn a_map_that_comes_in_parts_is_asked_for_from_where_it_ends() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 8);
    let op = plan(&mut bench, handle, 2 * PAGE, 6 * PAGE);
    for (from, count, next) in [(2, 2, 4), (4, 1, 5), (5, 3, 8)] {
        let send = bench.take("ReadMap");
        assert_eq!(asked(&send).offset, from * PAGE);
        answer_map(&mut bench, &send, map(from, count, &[(from, from)]));
        assert_eq!(bench.told.contains_key(&op), next == 8);
    }
    assert_eq!(pages(&mut bench, op).as_deref(), Some("2.45.."));
}

#[test]
fn what_is_written_here_is_read_before_what_is_mapped_and_behind_the_tables_end_without_it() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 4);
    bench.written(handle, 6 * PAGE, 4096);
    let behind = plan(&mut bench, handle, 4 * PAGE, 3 * PAGE);
    assert_eq!(pages(&mut bench, behind).as_deref(), Some("..w"), "no question");
    bench.written(handle, PAGE, 2 * 4096);
    let inside = plan(&mut bench, handle, PAGE, 2 * PAGE);
    assert_eq!(pages(&mut bench, inside).as_deref(), Some("ww"), "no question");
    let all = plan(&mut bench, handle, 0, 100 * PAGE);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 4, &[(0, 1), (1, 2), (3, 3)]));
    assert_eq!(pages(&mut bench, all).as_deref(), Some("1ww3..w"));
}

#[test]
fn a_handle_that_was_not_opened_for_reading_reads_nothing_and_so_does_one_that_is_closed() {
    let mut bench = Bench::mounted();
    let writing = bench.open(5, OpenMode { read: false, ..BOTH });
    let op = plan(&mut bench, writing, 0, 1);
    assert_eq!(bench.done(op), Some(Err(Error::BadHandle)));
    let handle = file(&mut bench, 1);
    // The file had no page when it was opened first.
    let op = plan(&mut bench, handle, 0, 1);
    let release = bench.release(handle);
    assert_eq!(bench.done(release), Some(Ok(())));
    assert_eq!(bench.done(op), Some(Err(Error::BadHandle)));
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 1, &[]));
    assert!(bench.told.is_empty());
}

/// A chunk was freed since its place was learnt (R5).
#[test]
fn a_read_that_starts_over_asks_for_the_map_anew() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 2);
    let op = plan(&mut bench, handle, 0, 2 * PAGE);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 2, &[(0, 1)]));
    assert_eq!(pages(&mut bench, op).as_deref(), Some("1."));
    let again =
        bench.begin(Call::Plan { handle, offset: FileOffset(0), length_bytes: 2 * PAGE, reading: Reading::Again });
    bench.attributes(5).data_version = 2;
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 2, &[(0, 7)]));
    assert_eq!(pages(&mut bench, again).as_deref(), Some("7."));
}

#[test]
fn a_map_of_an_older_version_is_asked_for_anew_and_not_believed() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 2);
    let first = plan(&mut bench, handle, 0, 2 * PAGE);
    let old = bench.take("ReadMap");
    // Another mount writes; this one hears of it by a stat, before the older answer arrives.
    let older = *bench.attributes(5);
    bench.attributes(5).data_version = 2;
    let stat = bench.begin(Call::Ask(read_request::Op::GetAttr(GetAttr { inode: 5 })));
    let send = bench.take("GetAttr");
    let attr = Some(*bench.attributes(5));
    bench.read(&send, ReadResponse { attr, ..ReadResponse::default() });
    assert_eq!(bench.done(stat), Some(Ok(())));
    bench.read(&old, ReadResponse { attr: Some(older), map: map(0, 2, &[(0, 1)]), ..ReadResponse::default() });
    assert!(!bench.told.contains_key(&first));
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 2, &[(0, 2)]));
    assert_eq!(pages(&mut bench, first).as_deref(), Some("2."));
}

#[test]
fn a_reader_waits_for_a_commit_of_its_own_mount_which_tells_the_map() {
    for refused in [false, true] {
        let mut bench = Bench::mounted();
        let handle = bench.open(5, BOTH);
        bench.written(handle, 0, 4096);
        bench.fsync(handle);
        bench.store_all();
        let commit = bench.take("Commit");
        // The table knows more of the file than this mount has written.
        bench.attributes(5).size_bytes = 2 * PAGE;
        bench.attributes(5).data_version = 3;
        let attr = *bench.attributes(5);
        bench.core.files.see(attr);
        let op = plan(&mut bench, handle, 0, 2 * PAGE);
        assert_eq!(bench.count("ReadMap"), 0, "the answer would be old before it is used");
        if refused {
            bench.mutated(&commit, mutate_says(Code::NoSpace));
        } else {
            bench.committed(&commit);
        }
        let send = bench.take("ReadMap");
        answer_map(&mut bench, &send, map(0, 2, &[(1, 9)]));
        assert_eq!(pages(&mut bench, op).as_deref(), Some(".9"));
    }
}

#[test]
fn after_its_own_commit_a_mount_asks_for_no_map() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 4096);
    bench.fsync(handle);
    let chunk = bench.puts[0].record.chunk;
    bench.settle();
    let op = plan(&mut bench, handle, 0, PAGE);
    assert_eq!(pages(&mut bench, op), Some(chunk.to_string()));
}

#[test]
fn a_refused_question_is_told_to_all_who_wait_and_the_next_reader_asks_again() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 2);
    let ops = [plan(&mut bench, handle, 0, PAGE), plan(&mut bench, handle, PAGE, PAGE)];
    let send = bench.take("ReadMap");
    bench.read(&send, read_says(Code::NotFound));
    for op in ops {
        assert!(matches!(bench.done(op), Some(Err(Error::Refused { code: Code::NotFound, .. }))));
    }
    let op = plan(&mut bench, handle, 0, PAGE);
    let send = bench.take("ReadMap");
    bench.read(&send, ReadResponse::default());
    assert!(bench.done(op).unwrap().is_err(), "an answer without a map is none");
}

/// Dropped: the reader that had the question asked is gone.
#[test]
fn an_abandoned_reader_leaves_its_question_to_the_others() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 2);
    let ops = [plan(&mut bench, handle, 0, PAGE), plan(&mut bench, handle, PAGE, PAGE)];
    bench.abandon(ops[0]);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 2, &[(1, 4)]));
    assert_eq!(pages(&mut bench, ops[1]).as_deref(), Some("4"));
    assert!(bench.told.is_empty());
}

// After a lost session: what is known may be older than what the table took of it.

#[test]
fn a_map_that_was_asked_for_under_a_lost_session_is_asked_for_again() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 1);
    let op = plan(&mut bench, handle, 0, PAGE);
    let old = bench.take("ReadMap");
    bench.expire();
    answer_map(&mut bench, &old, map(0, 1, &[(0, 1)]));
    assert!(!bench.told.contains_key(&op));
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 1, &[(0, 2)]));
    assert_eq!(pages(&mut bench, op).as_deref(), Some("2"));
}

#[test]
fn after_a_lost_session_known_maps_and_ends_are_asked_for_again() {
    let mut bench = Bench::mounted();
    let (handle, appending) = (file(&mut bench, 1), bench.open(5, APPEND));
    let op = plan(&mut bench, handle, 0, PAGE);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 1, &[(0, 1)]));
    assert_eq!(pages(&mut bench, op).as_deref(), Some("1"));
    bench.expire();
    // A commit of the former session was applied: the file is longer than this mount knows.
    bench.attributes(5).size_bytes = 3 * PAGE;
    bench.attributes(5).data_version = 2;
    let append = bench.write_at(appending, WriteAt::End { believed: PAGE }, 4096);
    let reader = plan(&mut bench, handle, 0, 100 * PAGE);
    assert_eq!(bench.done(append), None, "it would be written over what is there");
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 3, &[(0, 1), (2, 2)]));
    assert_eq!(bench.done(append), Some(Ok(())));
    assert_eq!(pages(&mut bench, reader).as_deref(), Some("1.2"));
    let all = plan(&mut bench, handle, 0, 100 * PAGE);
    assert_eq!(pages(&mut bench, all).as_deref(), Some("1.2w"));
}

#[test]
fn a_reader_does_not_wait_for_a_commit_of_a_lost_session() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 2);
    bench.written(handle, 0, 4096);
    bench.fsync(handle);
    bench.store_all();
    bench.take("Commit");
    bench.expire();
    let op = plan(&mut bench, handle, 0, 2 * PAGE);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 2, &[(1, 3)]));
    assert_eq!(pages(&mut bench, op).as_deref(), Some(".3"));
}

// Searches.

fn seek(bench: &mut Bench, handle: FileHandle, page: u64, whence: Whence) -> OpId {
    bench.begin(Call::Seek { handle, offset: FileOffset(page * PAGE), whence })
}

fn found(bench: &mut Bench, op: OpId) -> Result<u64, Error> {
    match bench.told.remove(&op).expect("it has ended") {
        Ok(Answer::Offset(offset)) => Ok(offset.0 / PAGE),
        Ok(other) => panic!("no offset: {other:?}"),
        Err(error) => Err(error),
    }
}

#[test]
fn data_and_holes_are_found_over_parts_of_a_map() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 9);
    // Data in pages 2, 3 and 6; the table answers three pages at a time.
    let mapped = [(2, 1), (3, 1), (6, 2)];
    let cases = [
        (0, Whence::Data, Ok(2)),
        (2, Whence::Data, Ok(2)),
        (4, Whence::Data, Ok(6)),
        (7, Whence::Data, Err(Error::NoSuchOffset)),
        (9, Whence::Data, Err(Error::NoSuchOffset)),
        (0, Whence::Hole, Ok(0)),
        (2, Whence::Hole, Ok(4)),
        (6, Whence::Hole, Ok(7)),
        (8, Whence::Hole, Ok(8)),
        (9, Whence::Hole, Err(Error::NoSuchOffset)),
    ];
    for (page, whence, wanted) in cases {
        let op = seek(&mut bench, handle, page, whence);
        while !bench.told.contains_key(&op) {
            let send = bench.take("ReadMap");
            let from = asked(&send).offset / PAGE;
            let part: Vec<_> = mapped.into_iter().filter(|(page, _)| (from..from + 3).contains(page)).collect();
            answer_map(&mut bench, &send, map(from, 3, &part));
        }
        assert_eq!(found(&mut bench, op), wanted, "from page {page}: {whence:?}");
    }
}

#[test]
fn a_file_that_is_full_has_its_hole_at_the_end() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 2);
    let op = seek(&mut bench, handle, 0, Whence::Hole);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 100, &[(0, 1), (1, 1)]));
    assert_eq!(found(&mut bench, op), Ok(2));
}

#[test]
fn a_search_waits_for_what_was_written_before_it() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 0);
    bench.written(handle, PAGE, 4096);
    let op = seek(&mut bench, handle, 0, Whence::Data);
    assert_eq!(bench.count("ReadMap"), 0);
    bench.settle();
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(0, 2, &[(1, 1)]));
    assert_eq!(found(&mut bench, op), Ok(1));
}

/// A table that covers nothing, again and again.
#[test]
fn a_search_that_comes_no_further_ends() {
    let mut bench = Bench::mounted();
    let handle = file(&mut bench, 4);
    let op = seek(&mut bench, handle, 1, Whence::Data);
    let send = bench.take("ReadMap");
    answer_map(&mut bench, &send, map(1, 0, &[]));
    assert_eq!(found(&mut bench, op), Err(Error::NoSuchOffset));
    let op = seek(&mut bench, handle, 1, Whence::Data);
    let send = bench.take("ReadMap");
    bench.abandon(op);
    answer_map(&mut bench, &send, map(1, 3, &[]));
    assert!(bench.told.is_empty() && bench.sends.is_empty());
    bench.later(Duration::from_secs(1));
}
