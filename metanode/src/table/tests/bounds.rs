//! One entry takes away a bounded number of extents; what is left is dead, and shows nowhere.

use super::{Fixture, ROOT, chunk, file_commit};
use crate::table::FEATURE_LEVEL;
use crate::table::dead::PiecesMax;
use holdfast_common::{ChunkId, FileOffset};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Code, Commit, Extent, Fallocate, FallocateMode, FileCommit, FreeDead, Kind, ReapOrphans, SetAttr, Unlink,
};

const PIECES: u64 = 10_000;
const BOUND: usize = 4096;

/// A file of so many extents of one byte, two bytes apart.
fn badly_split() -> (Fixture, u64) {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    for first in (0..PIECES).step_by(BOUND) {
        let id = fixture.reserve_chunk();
        let extent = |i| Extent { file_offset: 2 * i, length_bytes: 1, chunk: id, chunk_offset: 0 };
        let extents: Vec<Extent> = (first..PIECES.min(first + BOUND as u64)).map(extent).collect();
        let commit = FileCommit { extents, size_at_least: 2 * PIECES, ..file_commit(inode, 0, 1, id) };
        fixture.ok(Op::Commit(Commit { chunks: vec![chunk(id, 10)], files: vec![commit] }));
    }
    (fixture, inode)
}

fn resize(inode: u64, size_bytes: u64) -> Op {
    Op::SetAttr(SetAttr { inode, size_bytes: Some(size_bytes), ..SetAttr::default() })
}

fn extents(fixture: &Fixture, inode: u64) -> Vec<(u64, u64)> {
    let (_, map) = fixture.table.read_map(inode.into(), FileOffset(0), u64::MAX, 0).unwrap();
    map.extents.iter().map(|extent| (extent.file_offset, extent.length_bytes)).collect()
}

/// Frees what is dead; answers in how many entries, none of which took away more than the bound.
fn free(fixture: &mut Fixture) -> usize {
    let mut entries = 0;
    while let Some(inode) = fixture.table.inodes_with_dead(1).first() {
        let before = fixture.table.extents.len();
        fixture.lead(Op::FreeDead(FreeDead { inodes: vec![inode.0], max_extents: u32::MAX }));
        assert!(before - fixture.table.extents.len() <= BOUND);
        entries += 1;
    }
    entries
}

#[test]
fn truncating_a_badly_split_file_takes_one_bounded_entry_and_no_old_byte_shows() {
    let (mut fixture, inode) = badly_split();
    fixture.ok(resize(inode, 1));
    assert_eq!((fixture.attr(inode).size_bytes, fixture.table.extents.len()), (1, 10_000));
    fixture.ok(resize(inode, 1 << 30));
    assert_eq!(extents(&fixture, inode), [(0, 1)]);
    let id = fixture.reserve_chunk();
    let late = FileCommit { truncate_generation: 2, ..file_commit(inode, 100, 50, id) };
    assert_eq!(fixture.commit_one(chunk(id, 50), late), Code::Ok);
    assert_eq!(extents(&fixture, inode), [(0, 1), (100, 50)]);
    assert_eq!(free(&mut fixture), 3);
    assert_eq!(extents(&fixture, inode), [(0, 1), (100, 50)]);
    assert_eq!((fixture.table.extents.len(), fixture.attr(inode).mapped_bytes), (2, 4096));
}

#[test]
fn a_commit_over_a_badly_split_range_takes_one_bounded_entry() {
    let (mut fixture, inode) = badly_split();
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 19_000), file_commit(inode, 1, 19_000, id)), Code::Ok);
    assert!(fixture.table.extents.len() >= 10_000);
    let seen = extents(&fixture, inode);
    assert_eq!((seen[0], seen[1], seen[2], seen.len()), ((0, 1), (1, 19_000), (19_002, 1), 501));
    assert_eq!(free(&mut fixture), 3);
    assert_eq!(extents(&fixture, inode), seen);
    let freed = fixture.table.freed_chunks(i64::MAX, (0, ChunkId(0)), 9);
    assert_eq!((freed.len(), fixture.table.extents.len()), (1, 501), "the middle one of three chunks");
}

#[test]
fn a_hole_in_a_badly_split_file_is_one_at_once_and_zeros_are_charged() {
    for (mode, pages) in [(FallocateMode::PunchHole, 1), (FallocateMode::ZeroRange, 5)] {
        let (mut fixture, inode) = badly_split();
        let (length_bytes, mode) = (2 * PIECES, mode.into());
        fixture.ok(Op::Fallocate(Fallocate { inode, offset: 1, length_bytes, mode, ..Fallocate::default() }));
        assert_eq!(extents(&fixture, inode), [(0, 1)]);
        free(&mut fixture);
        assert_eq!((fixture.attr(inode).mapped_bytes, extents(&fixture, inode).len()), (pages * 4096, 1));
    }
}

#[test]
fn allocated_pages_in_many_intervals_go_in_bounded_entries_and_the_operation_waits_for_the_last() {
    const PAGE: u64 = 4096;
    let file = |level| {
        let mut fixture = Fixture::at_level(level, 0);
        fixture.table.pieces_max = PiecesMax(2);
        let inode = fixture.create(ROOT, b"f", Kind::File);
        for i in 0..100 {
            let page = Fallocate { inode, offset: 2 * i * PAGE, length_bytes: PAGE, ..Fallocate::default() };
            fixture.ok(Op::Fallocate(page));
        }
        (fixture, inode)
    };
    let fallocate = |inode, mode: FallocateMode| {
        let whole = Fallocate { inode, length_bytes: 200 * PAGE, mode: mode.into(), ..Fallocate::default() };
        Op::Fallocate(whole)
    };
    let operations: [(&dyn Fn(u64) -> Op, u64); 3] = [
        (&|inode| resize(inode, PAGE), 1),
        (&|inode| fallocate(inode, FallocateMode::PunchHole), 0),
        (&|inode| fallocate(inode, FallocateMode::ZeroRange), 200),
    ];
    for (operation, pages) in operations {
        let (mut fixture, inode) = file(FEATURE_LEVEL);
        let size_bytes = fixture.attr(inode).size_bytes;
        let command = fixture.next_command(operation(inode));
        for left in [68, 36, 4] {
            assert_eq!(fixture.table.apply(&command).unwrap().code(), Code::Unavailable);
            fixture.table.check().unwrap();
            assert_eq!(fixture.attr(inode).mapped_bytes / PAGE, left);
            assert_eq!(fixture.attr(inode).size_bytes, size_bytes, "it has not happened yet");
        }
        assert_eq!(fixture.table.apply(&command).unwrap().code(), Code::Ok);
        fixture.table.check().unwrap();
        assert_eq!(fixture.attr(inode).mapped_bytes / PAGE, pages);
        // As tables of lower levels have always done it.
        let (mut fixture, inode) = file(2);
        fixture.ok(operation(inode));
        assert_eq!(fixture.attr(inode).mapped_bytes / PAGE, pages);
    }
}

#[test]
fn a_deleted_file_goes_with_what_is_dead_in_it() {
    let (mut fixture, inode) = badly_split();
    fixture.ok(resize(inode, 1));
    let id = fixture.reserve_chunk();
    let late = FileCommit { truncate_generation: 1, ..file_commit(inode, 100, 50, id) };
    assert_eq!(fixture.commit_one(chunk(id, 50), late), Code::Ok);
    fixture.ok(Op::Unlink(Unlink { parent: ROOT, name: b"f"[..].into(), directory: false }));
    while fixture.table.get_attr(inode.into()).is_ok() {
        fixture.lead(Op::ReapOrphans(ReapOrphans { inodes: vec![inode], max_extents: 4000 }));
    }
    assert_eq!((fixture.table.extents.len(), fixture.table.fresh.len(), fixture.table.dead.len()), (0, 0, 0));
    assert_eq!(fixture.table.stat_fs().used_bytes, 0);
}

/// As tables of level 0 have always done it.
#[test]
fn before_level_1_nothing_is_left_dead() {
    let (mut fixture, inode) = badly_split();
    fixture.table.counters.feature_level = 0;
    fixture.ok(resize(inode, 1));
    assert_eq!((fixture.table.extents.len(), fixture.table.dead.len()), (1, 0));
}
