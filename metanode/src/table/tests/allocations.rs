//! What fallocate sets aside is charged, shows, and is taken over by what is written.

use super::{Fixture, ROOT, chunk, file_commit};
use crate::table::Table;
use holdfast_common::FileOffset;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Code, Commit, Extent, Fallocate, FallocateMode, FileCommit, Kind, MutateResponse, ReapOrphans, SetAttr, Unlink,
};

const PAGE: u64 = 4096;

fn file(quota_pages: u64) -> (Fixture, u64) {
    let mut fixture = Fixture::with_quota(quota_pages * PAGE);
    let inode = fixture.create(ROOT, b"f", Kind::File);
    (fixture, inode)
}

fn allocate(inode: u64, offset: u64, length_bytes: u64) -> Fallocate {
    Fallocate { inode, offset, length_bytes, ..Fallocate::default() }
}

fn pages(fixture: &Fixture, inode: u64) -> u64 {
    assert_eq!(fixture.table.stat_fs().used_bytes, fixture.attr(inode).mapped_bytes);
    fixture.attr(inode).mapped_bytes / PAGE
}

fn truncate(inode: u64, size_bytes: u64) -> Op {
    Op::SetAttr(SetAttr { inode, size_bytes: Some(size_bytes), ..SetAttr::default() })
}

#[test]
fn fallocate_beyond_the_quota_is_refused_and_what_it_allocates_is_charged() {
    let (mut fixture, inode) = file(4);
    fixture.refused(Op::Fallocate(allocate(inode, 1, 4 * PAGE)), Code::Quota);
    fixture.ok(Op::Fallocate(allocate(inode, 1, 3 * PAGE)));
    assert_eq!((pages(&fixture, inode), fixture.attr(inode).size_bytes), (4, 3 * PAGE + 1));
    // What is charged already needs no more.
    fixture.ok(Op::Fallocate(allocate(inode, 0, 4 * PAGE)));
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 8192), file_commit(inode, PAGE, 8192, id)), Code::Ok);
    assert_eq!((pages(&fixture, inode), fixture.table.allocated_bytes()), (4, 2 * PAGE));
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 8192), file_commit(inode, 4 * PAGE, 1, id)), Code::Quota);
    let (_, map) = fixture.table.read_map(inode.into(), FileOffset(0), 4 * PAGE, 0).unwrap();
    assert_eq!(map.extents.len(), 1, "allocated pages are holes in the map");
}

/// Tried on f335d94: 4 EiB on 50 GiB said OK.
#[test]
fn fallocate_beyond_what_the_disks_have_is_refused_all_allocations_counted() {
    let (mut fixture, inode) = file(0);
    let left = |op, available_bytes| Op::Fallocate(Fallocate { available_bytes: Some(available_bytes), ..op });
    fixture.refused(left(allocate(inode, 0, 4 << 60), 50 << 30), Code::NoSpace);
    fixture.ok(left(allocate(inode, 0, 30 << 30), 50 << 30));
    fixture.refused(left(allocate(inode, 30 << 30, 30 << 30), 50 << 30), Code::NoSpace);
    fixture.ok(left(allocate(inode, 0, 30 << 30), 0));
    let zero = |inode| Fallocate { mode: FallocateMode::ZeroRange.into(), ..allocate(inode, 0, 60 << 30) };
    fixture.refused(left(zero(inode), 50 << 30), Code::NoSpace);
}

#[test]
fn truncating_punching_and_deleting_give_back_what_was_allocated() {
    let (mut fixture, inode) = file(0);
    fixture.ok(Op::Fallocate(Fallocate { keep_size: true, ..allocate(inode, 0, 10 * PAGE) }));
    assert_eq!((pages(&fixture, inode), fixture.attr(inode).size_bytes), (10, 0));
    let punch = Fallocate { mode: FallocateMode::PunchHole.into(), ..allocate(inode, PAGE + 1, 3 * PAGE) };
    fixture.ok(Op::Fallocate(punch));
    assert_eq!(pages(&fixture, inode), 8, "pages are given back whole");
    fixture.ok(truncate(inode, 6 * PAGE + 1));
    assert_eq!(pages(&fixture, inode), 8, "a longer file keeps what is behind its end");
    fixture.ok(truncate(inode, 6 * PAGE + 1));
    assert_eq!(pages(&fixture, inode), 5);
    fixture.ok(Op::Unlink(Unlink { parent: ROOT, name: b"f"[..].into(), directory: false }));
    let reap = Op::ReapOrphans(ReapOrphans { inodes: vec![inode], max_extents: 1 });
    fixture.lead(reap.clone());
    assert_eq!(pages(&fixture, inode), 3, "one interval of two");
    fixture.lead(reap);
    assert_eq!((fixture.table.allocated_bytes(), fixture.table.stat_fs().used_bytes), (0, 0));
}

#[test]
fn zeroing_a_range_unmaps_and_allocates_it() {
    let (mut fixture, inode) = file(4);
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 8192), file_commit(inode, 0, 8192, id)), Code::Ok);
    let zero = Fallocate { mode: FallocateMode::ZeroRange.into(), ..allocate(inode, 1, 3 * PAGE) };
    fixture.ok(Op::Fallocate(zero));
    assert_eq!((pages(&fixture, inode), fixture.table.allocated_bytes()), (4, 3 * PAGE));
    let (_, map) = fixture.table.read_map(inode.into(), FileOffset(0), 4 * PAGE, 0).unwrap();
    assert_eq!((map.extents.len(), map.extents[0].length_bytes), (1, 1));
}

#[test]
fn fallocate_does_what_it_did_as_long_as_the_level_is_0() {
    let mut fixture = Fixture::at_level(0, 4 * PAGE);
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let op = Fallocate { available_bytes: Some(0), ..allocate(inode, 0, 1 << 40) };
    assert_eq!(fixture.ok(Op::Fallocate(op)).covered_bytes, 0);
    assert_eq!((pages(&fixture, inode), fixture.attr(inode).size_bytes), (0, 1 << 40));
}

/// One entry must not walk over millions of pieces.
#[test]
fn a_badly_split_range_is_allocated_in_parts_that_the_client_asks_for() {
    let (mut fixture, inode) = file(0);
    for half in 0..2_u64 {
        let id = fixture.reserve_chunk();
        let extent =
            |i| Extent { file_offset: (half * 4096 + i) * 2 * PAGE, length_bytes: 1, chunk: id, chunk_offset: 0 };
        let extents: Vec<Extent> = (0..4096).map(extent).collect();
        let commit = FileCommit { extents, size_at_least: 16_384 * PAGE, ..file_commit(inode, 0, 1, id) };
        fixture.ok(Op::Commit(Commit { chunks: vec![chunk(id, 10)], files: vec![commit] }));
    }
    let (mut offset, mut rounds) = (0, 0);
    while offset < 16_384 * PAGE {
        let answer: MutateResponse = fixture.ok(Op::Fallocate(allocate(inode, offset, 16_384 * PAGE - offset)));
        offset += answer.covered_bytes;
        rounds += 1;
    }
    assert_eq!((rounds, pages(&fixture, inode)), (3, 16_384));
    let mut image = Vec::new();
    fixture.table.freeze().write_to(&mut image).unwrap();
    assert!(Table::restore(&mut image.as_slice()).unwrap() == fixture.table);
}
