//! Each rule that a simulation may break is broken by it: the same operations end otherwise.

use super::{Fixture, ROOT, chunk, command, create, file_commit};
use crate::sabotage::Sabotage;
use holdfast_common::proof::ShardName;
use holdfast_common::{ChunkId, DiskId, Nonce};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Commit, ForgetChunks, Kind, MutateResponse, RaiseFloor, ReserveChunks, SetAttr, Swept, Unlink, VacateSlot,
};

/// An operation whose result a broken rule may leave inconsistent.
fn unchecked(fixture: &mut Fixture, op: Op) -> MutateResponse {
    let command = fixture.next_command(op);
    fixture.table.apply(&command).unwrap()
}

fn commit_code(fixture: &mut Fixture, id: u64, inode: u64, offset: u64) -> i32 {
    let op = Commit { chunks: vec![chunk(id, 9)], files: vec![file_commit(inode, offset, 9, id)] };
    unchecked(fixture, Op::Commit(op)).commits[0].code
}

/// A file with one chunk in two places, and the chunk's id.
fn shared(fixture: &mut Fixture) -> (u64, u64) {
    let (inode, id) = (fixture.create(ROOT, b"f", Kind::File), fixture.reserve_chunk());
    assert_eq!([commit_code(fixture, id, inode, 0), commit_code(fixture, id, inode, 9)], [0, 0]);
    (inode, id)
}

fn truncate(inode: u64, size_bytes: u64) -> Op {
    Op::SetAttr(SetAttr { inode, size_bytes: Some(size_bytes), ..SetAttr::default() })
}

fn assert_shows<T: PartialEq + std::fmt::Debug>(rule: Sabotage, scenario: impl Fn(&mut Fixture) -> T) {
    let run = |rule| {
        let mut fixture = Fixture::with_quota(8 << 10);
        fixture.table.break_rule(rule);
        scenario(&mut fixture)
    };
    assert_ne!(run(Sabotage::None), run(rule), "{rule:?}");
}

#[test]
fn a_repeated_request_is_applied_again() {
    assert_shows(Sabotage::RepliesForgotten, |fixture| {
        let command = fixture.next_command(create(ROOT, b"f", Kind::File));
        [(); 2].map(|()| fixture.table.apply(&command).unwrap().code)
    });
}

#[test]
fn time_goes_back() {
    assert_shows(Sabotage::TimeGoesBack, |fixture| {
        fixture.table.apply(&command(super::configure(8 << 10), 5, 0, 0)).unwrap();
        fixture.table.last_time_ns() > 1_000
    });
}

#[test]
fn a_commit_from_before_a_truncation_lands() {
    assert_shows(Sabotage::TruncatedCommitsTaken, |fixture| {
        let (inode, id) = (fixture.create(ROOT, b"f", Kind::File), fixture.reserve_chunk());
        fixture.ok(truncate(inode, 5));
        commit_code(fixture, id, inode, 0)
    });
}

#[test]
fn a_commit_below_the_floor_is_taken() {
    assert_shows(Sabotage::CommitsBelowFloorTaken, |fixture| {
        let (inode, id) = (fixture.create(ROOT, b"f", Kind::File), fixture.reserve_chunk());
        fixture.lead(Op::RaiseFloor(RaiseFloor { floor: id + 1 }));
        commit_code(fixture, id, inode, 0)
    });
}

/// A chunk that was freed and forgotten without a disk, which is then compared below or above it: whether the disk owes.
fn owes(fixture: &mut Fixture, compared_above: u64) -> bool {
    let (inode, id) = (fixture.create(ROOT, b"f", Kind::File), fixture.reserve_chunk());
    assert_eq!(commit_code(fixture, id, inode, 0), 0);
    unchecked(fixture, truncate(inode, 0));
    fixture.lead(Op::ForgetChunks(ForgetChunks { chunks: vec![id], disks: vec![4] }));
    let floor = id + compared_above;
    fixture.lead(Op::RaiseFloor(RaiseFloor { floor }));
    fixture.lead(Op::Swept(Swept { disk: 4, floor, owed_entries: 1 }));
    fixture.table.owed(DiskId(4)).is_some()
}

#[test]
fn what_disks_owe_is_not_written_or_settled_above_the_floor() {
    assert_shows(Sabotage::OwedNotWritten, |fixture| owes(fixture, 0));
    assert_shows(Sabotage::SweptClearsAll, |fixture| owes(fixture, 0));
}

#[test]
fn shards_of_a_freed_chunk_count_as_orphans() {
    assert_shows(Sabotage::FreedChunksOrphaned, |fixture| {
        let (inode, id) = (fixture.create(ROOT, b"f", Kind::File), fixture.reserve_chunk());
        commit_code(fixture, id, inode, 0);
        unchecked(fixture, truncate(inode, 0));
        fixture.table.places(&ShardName { chunk: ChunkId(id), shard: 0, nonce: Nonce(id * 31) }, DiskId(1))
    });
}

#[test]
fn ids_are_given_twice() {
    assert_shows(Sabotage::ChunkIdsGivenTwice, |fixture| {
        let reserve =
            |fixture: &mut Fixture| unchecked(fixture, Op::ReserveChunks(ReserveChunks { count: 1 })).first_chunk;
        reserve(fixture) == reserve(fixture)
    });
}

#[test]
fn a_freed_chunk_is_named_again() {
    assert_shows(Sabotage::FreedChunksTakenAgain, |fixture| {
        let (inode, id) = shared(fixture);
        fixture.ok(Op::Unlink(Unlink { parent: ROOT, name: b"f"[..].into(), directory: false }));
        let orphan = holdfast_proto::meta::ReapOrphans { inodes: vec![inode], max_extents: 9 };
        fixture.lead(Op::ReapOrphans(orphan));
        let other = fixture.create(ROOT, b"g", Kind::File);
        commit_code(fixture, id, other, 0)
    });
}

#[test]
fn a_vacated_slot_is_named() {
    assert_shows(Sabotage::VacatedSlotsTaken, |fixture| {
        let (inode, id) = (fixture.create(ROOT, b"f", Kind::File), fixture.reserve_chunk());
        fixture.lead(Op::VacateSlot(VacateSlot { group: 1, epoch: 1, slot: 3 }));
        commit_code(fixture, id, inode, 0)
    });
}

#[test]
fn a_chunk_is_freed_with_the_first_of_its_references() {
    assert_shows(Sabotage::SharedChunksFreed, |fixture| {
        let (inode, _) = shared(fixture);
        unchecked(fixture, truncate(inode, 9));
        fixture.table.freed_chunks(i64::MAX, (0, ChunkId(0)), 9).len()
    });
}

#[test]
fn the_quota_is_ignored() {
    assert_shows(Sabotage::QuotaIgnored, |fixture| {
        let inode = fixture.create(ROOT, b"f", Kind::File);
        [0, 4096, 8192].map(|offset| {
            let id = fixture.reserve_chunk();
            commit_code(fixture, id, inode, offset)
        })
    });
}
