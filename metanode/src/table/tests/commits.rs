//! Commits, the life of chunks, and block groups.

use super::{Fixture, ROOT, chunk, file_commit, group};
use crate::table::Table;
use holdfast_common::limits::CAPABILITY_XATTR;
use holdfast_common::{ChunkId, FileOffset, GroupId};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, ChunkRecord, Code, Commit, Extent, Fallocate, FileCommit, ForgetChunks, GroupState, Kind,
    RaiseFeatureLevel, ReapOrphans, SetAttr, SetGroupState, SetXattr, Unlink, VacateSlot,
};
use std::collections::BTreeMap;

fn freed(fixture: &Fixture) -> Vec<u64> {
    let freed = fixture.table.freed_chunks(i64::MAX, (0, ChunkId(0)), usize::MAX);
    freed.iter().map(|freed| freed.record.chunk).collect()
}

fn extents(fixture: &Fixture, inode: u64) -> Vec<(u64, u64, u64, u32)> {
    let (_, map) = fixture.table.read_map(inode.into(), FileOffset(0), u64::MAX, 0).unwrap();
    map.extents.iter().map(|e| (e.file_offset, e.length_bytes, e.chunk, e.chunk_offset)).collect()
}

#[test]
fn an_extent_is_split_at_byte_precision_and_a_covered_one_frees_its_chunk() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let (old, new) = (fixture.reserve_chunk(), fixture.reserve_chunk());
    assert_eq!(fixture.commit_one(chunk(old, 100), file_commit(inode, 10, 100, old)), Code::Ok);
    assert_eq!(fixture.commit_one(chunk(new, 7), file_commit(inode, 31, 7, new)), Code::Ok);
    assert_eq!(extents(&fixture, inode), [(10, 21, old, 0), (31, 7, new, 0), (38, 72, old, 28)]);
    let last = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(last, 4096), file_commit(inode, 0, 110, last)), Code::Ok);
    assert_eq!(extents(&fixture, inode), [(0, 110, last, 0)]);
    assert_eq!(freed(&fixture), [old, new]);
    assert_eq!(fixture.attr(inode).mapped_bytes, 4096);
}

#[test]
fn a_commit_of_many_files_is_atomic_per_file() {
    let mut fixture = Fixture::new();
    let good = fixture.create(ROOT, b"good", Kind::File);
    let truncated = fixture.create(ROOT, b"truncated", Kind::File);
    let directory = fixture.create(ROOT, b"directory", Kind::Directory);
    fixture.ok(Op::SetAttr(SetAttr { inode: truncated, size_bytes: Some(5), ..SetAttr::default() }));
    let (id, unused) = (fixture.reserve_chunk(), fixture.reserve_chunk());
    let files = vec![
        file_commit(good, 0, 10, id),
        file_commit(truncated, 0, 10, unused),
        file_commit(directory, 0, 10, unused),
        file_commit(999, 0, 10, unused),
        file_commit(good, 5, 20, 777),
    ];
    let response = fixture.ok(Op::Commit(Commit { chunks: vec![chunk(id, 10), chunk(unused, 10)], files }));
    let codes: Vec<Code> = response.commits.iter().map(|commit| commit.code()).collect();
    assert_eq!(codes, [Code::Ok, Code::Truncated, Code::Invalid, Code::Stale, Code::Invalid]);
    assert_eq!(fixture.attr(truncated).size_bytes, 5);
    assert_eq!(extents(&fixture, good), [(0, 10, id, 0)]);
    assert_eq!(freed(&fixture), [unused], "a chunk that no file took is deleted");
}

/// A truncates by another mount, B writes on: B's commit must be able to go on under the new truncate generation (R9).
#[test]
fn a_refused_file_of_a_commit_is_answered_with_its_present_attributes() {
    for level in [0, 1] {
        let mut fixture = Fixture::at_level(level, 0);
        let inode = fixture.create(ROOT, b"f", Kind::File);
        fixture.ok(Op::SetAttr(SetAttr { inode, size_bytes: Some(5), ..SetAttr::default() }));
        let (id, lost) = (fixture.reserve_chunk(), fixture.reserve_chunk());
        let new = |chunk| FileCommit { truncate_generation: 1, ..file_commit(inode, 0, 10, chunk) };
        let files = vec![new(id), file_commit(inode, 0, 10, id), new(lost), file_commit(999, 0, 10, id), new(777)];
        let chunks = vec![chunk(id, 10), ChunkRecord { epoch: 9, ..chunk(lost, 10) }];
        let results = fixture.ok(Op::Commit(Commit { chunks, files })).commits;
        let codes: Vec<Code> = results.iter().map(|result| result.code()).collect();
        assert_eq!(codes, [Code::Ok, Code::Truncated, Code::RewriteChunk, Code::Stale, Code::Invalid]);
        let now = Some(fixture.attr(inode));
        let refused = now.filter(|_| level >= 1);
        let attrs: Vec<_> = results.iter().map(|result| result.attr).collect();
        assert_eq!(attrs, [now, refused, refused, None, refused], "level {level}");
    }
}

#[test]
fn extents_outside_chunk_or_file_are_refused() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let extent =
        |file_offset, length_bytes, chunk, chunk_offset| Extent { file_offset, length_bytes, chunk, chunk_offset };
    let max = holdfast_common::limits::FILE_BYTES_MAX;
    for (list, size, code) in [
        (vec![(0, 11, 0)], 11, Code::Invalid),
        (vec![(0, 5, 6)], 5, Code::Invalid),
        (vec![(0, 0, 0)], 5, Code::Invalid),
        (vec![(0, 5, u32::MAX)], 5, Code::Invalid),
        (vec![(0, u64::MAX, 0)], 5, Code::Invalid),
        (vec![(5, 5, 0), (0, 5, 5)], 10, Code::Invalid),
        (vec![(0, 5, 0), (4, 5, 0)], 10, Code::Invalid),
        (vec![(0, 5, 0)], 4, Code::Invalid),
        (vec![(u64::MAX, 5, 0)], 4, Code::FileTooLarge),
        (vec![(0, 5, 0)], max + 1, Code::FileTooLarge),
        (vec![(max - 4, 5, 0)], max, Code::FileTooLarge),
    ] {
        let id = fixture.reserve_chunk();
        let extents = list.iter().map(|&(at, length, from)| extent(at, length, id, from)).collect();
        let file = FileCommit { extents, size_at_least: size, ..file_commit(inode, 0, 1, id) };
        assert_eq!(fixture.commit_one(chunk(id, 10), file), code, "{list:?}");
        assert_eq!(fixture.attr(inode).size_bytes, 0);
    }
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 10), file_commit(inode, max - 10, 10, id)), Code::Ok);
}

#[test]
fn a_chunk_of_impossible_geometry_is_refused() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let id = fixture.reserve_chunk();
    let sound = chunk(id, 10);
    let slots = |slots: &[u8]| bytes::Bytes::copy_from_slice(slots);
    for wrong in [
        ChunkRecord { data_shards: 0, slots: slots(&[0, 1]), ..sound.clone() },
        ChunkRecord { data_shards: 5, slots: slots(&[0, 1, 2, 3, 4, 5, 6]), ..sound.clone() },
        ChunkRecord { parity_shards: 1, slots: slots(&[0, 1]), ..sound.clone() },
        ChunkRecord { slots: slots(&[0, 1]), ..sound.clone() },
        ChunkRecord { slots: slots(&[0, 1, 1]), ..sound.clone() },
        ChunkRecord { slots: slots(&[0, 1, 6]), ..sound.clone() },
        ChunkRecord { slots: slots(&[0, 1, 255]), ..sound.clone() },
        ChunkRecord { length_bytes: 0, ..sound.clone() },
        ChunkRecord { length_bytes: 4097, ..sound.clone() },
        ChunkRecord { shard_length_bytes: 100, ..sound.clone() },
        ChunkRecord { shard_length_bytes: 8192, ..sound.clone() },
    ] {
        assert_eq!(fixture.commit_one(wrong.clone(), file_commit(inode, 0, 1, id)), Code::Invalid, "{wrong:?}");
    }
    for stale in [ChunkRecord { group: 2, ..sound.clone() }, ChunkRecord { epoch: 2, ..sound.clone() }] {
        assert_eq!(fixture.commit_one(stale, file_commit(inode, 0, 1, id)), Code::RewriteChunk);
    }
    assert_eq!(fixture.commit_one(sound, file_commit(inode, 0, 1, id)), Code::Ok);
}

#[test]
fn a_commit_that_names_a_vacated_slot_is_refused_and_others_are_not() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let vacate = VacateSlot { group: 1, epoch: 1, slot: 3 };
    assert_eq!(fixture.lead(Op::VacateSlot(vacate)).code(), Code::Ok);
    assert_eq!(fixture.lead(Op::VacateSlot(vacate)).code(), Code::Changed);
    let (named, spared) = (fixture.reserve_chunk(), fixture.reserve_chunk());
    assert_eq!(fixture.commit_one(chunk(named, 9), file_commit(inode, 0, 9, named)), Code::RewriteChunk);
    assert_eq!(freed(&fixture), [named], "its other shards are deleted");
    let record = ChunkRecord { slots: vec![0, 1, 5].into(), ..chunk(spared, 9) };
    assert_eq!(fixture.commit_one(record, file_commit(inode, 0, 9, spared)), Code::Ok);
    assert_eq!(fixture.table.groups()[0].slots[3].disk, 0);
}

/// Interleaving: commit, overwrite, delete on the datanodes, forget; then a late commit of the same chunk. Taking it
/// would map a file to shards that are gone.
#[test]
fn a_forgotten_chunk_never_comes_back() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 9), file_commit(inode, 0, 9, id)), Code::Ok);
    fixture.ok(Op::SetAttr(SetAttr { inode, size_bytes: Some(0), ..SetAttr::default() }));
    assert_eq!(freed(&fixture), [id]);
    let late = FileCommit { truncate_generation: 1, ..file_commit(inode, 0, 9, id) };
    assert_eq!(fixture.commit_one(chunk(id, 9), late.clone()), Code::RewriteChunk);
    fixture.lead(Op::ForgetChunks(ForgetChunks { chunks: vec![id, 12_345], disks: vec![] }));
    assert_eq!(fixture.table.chunk_record(ChunkId(id)), None);
    assert_eq!(fixture.commit_one(chunk(id, 9), late), Code::RewriteChunk);
}

#[test]
fn live_chunks_are_never_forgotten() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 9), file_commit(inode, 0, 9, id)), Code::Ok);
    fixture.lead(Op::ForgetChunks(ForgetChunks { chunks: vec![id], disks: vec![] }));
    assert!(fixture.table.chunk_record(ChunkId(id)).is_some());
}

#[test]
fn punching_a_hole_cuts_bytes_and_keeps_the_pages_that_are_still_touched() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 16384), file_commit(inode, 0, 16384, id)), Code::Ok);
    let punch = Fallocate { inode, offset: 4095, length_bytes: 8194, mode: 1, keep_size: true, ..Fallocate::default() };
    let attr = fixture.ok(Op::Fallocate(punch)).attr.unwrap();
    assert_eq!((attr.mapped_bytes, attr.size_bytes, attr.truncate_generation), (8192, 16384, 1));
    assert_eq!(extents(&fixture, inode), [(0, 4095, id, 0), (12289, 4095, id, 12289)]);
    assert_eq!(fixture.commit_one(chunk(id, 16384), file_commit(inode, 0, 1, id)), Code::Truncated, "R9");
}

#[test]
fn orphans_are_reaped_in_bounded_steps() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    for i in 0..5 {
        let id = fixture.reserve_chunk();
        assert_eq!(fixture.commit_one(chunk(id, 9), file_commit(inode, i * 9, 9, id)), Code::Ok);
    }
    fixture.ok(Op::Unlink(Unlink { parent: ROOT, name: b"f"[..].into(), directory: false }));
    let reap = Op::ReapOrphans(ReapOrphans { inodes: vec![inode], max_extents: 2 });
    for left in [3, 1] {
        fixture.lead(reap.clone());
        assert_eq!(extents(&fixture, inode).len(), left);
    }
    fixture.lead(reap);
    assert_eq!(fixture.table.get_attr(inode.into()), Err(Code::Stale));
    assert_eq!(freed(&fixture).len(), 5);
    assert_eq!(fixture.table.stat_fs().used_bytes, 0);
}

#[test]
fn what_has_a_name_is_never_reaped() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    fixture.lead(Op::ReapOrphans(ReapOrphans { inodes: vec![inode, ROOT], max_extents: 99 }));
    assert_eq!(fixture.attr(inode).nlink, 1);
}

#[test]
fn groups_added_twice_are_there_once_and_full_ones_are_found() {
    let mut fixture = Fixture::new();
    let small = holdfast_proto::meta::BlockGroup { capacity_bytes: 10, ..group(2) };
    for _ in 0..2 {
        let added = fixture.lead(Op::AddGroups(AddGroups { groups: vec![group(1), small.clone()] }));
        assert_eq!(added.code(), Code::Ok);
    }
    let capacity = fixture.table.capacity();
    assert_eq!((capacity.open_bytes, capacity.next_group.0, capacity.groups_count), ((1 << 30) + 10, 3, 2));
    assert!(fixture.table.groups_to_switch().is_empty());
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let id = fixture.reserve_chunk();
    let record = ChunkRecord { group: 2, ..chunk(id, 10) };
    assert_eq!(fixture.commit_one(record, file_commit(inode, 0, 10, id)), Code::Ok);
    assert_eq!(fixture.table.groups_to_switch(), [(2.into(), GroupState::GroupFull)]);
    let short = holdfast_proto::meta::BlockGroup { slots: vec![], ..group(3) };
    assert_eq!(fixture.lead(Op::AddGroups(AddGroups { groups: vec![short] })).code(), Code::Invalid);
}

#[test]
fn a_file_whose_content_or_owner_changes_loses_its_capabilities() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"program", Kind::File);
    let get = |fixture: &Fixture, name: &[u8]| fixture.table.get_xattr(inode.into(), name).map(|value| value.len());
    let chown = SetAttr { inode, uid: Some(1), ..SetAttr::default() };
    let truncate = SetAttr { inode, size_bytes: Some(0), ..SetAttr::default() };
    let chmod = SetAttr { inode, mode: Some(0o755), ..SetAttr::default() };
    let id = fixture.reserve_chunk();
    let commit = Commit { chunks: vec![chunk(id, 10)], files: vec![file_commit(inode, 0, 10, id)] };
    let punch = Fallocate { inode, length_bytes: 4096, mode: 1, keep_size: true, ..Fallocate::default() };
    for op in [Op::Commit(commit), Op::SetAttr(chown), Op::Fallocate(punch), Op::SetAttr(truncate)] {
        for name in [CAPABILITY_XATTR, b"user.kept"] {
            let (name, value) = (name.to_vec().into(), b"value".as_slice().into());
            fixture.ok(Op::SetXattr(SetXattr { inode, name, value, ..SetXattr::default() }));
        }
        fixture.ok(Op::SetAttr(chmod));
        assert_eq!(get(&fixture, CAPABILITY_XATTR), Ok(5));
        fixture.ok(op);
        assert_eq!(get(&fixture, CAPABILITY_XATTR), Err(Code::NoData));
        assert_eq!(get(&fixture, b"user.kept"), Ok(5));
    }
}

#[test]
fn the_time_of_a_write_never_lies_in_the_future_nor_goes_back() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let written = |fixture: &mut Fixture, mtime_ns| {
        let id = fixture.reserve_chunk();
        let file = FileCommit { mtime_ns, ..file_commit(inode, 0, 9, id) };
        assert_eq!(fixture.commit_one(chunk(id, 9), file), Code::Ok);
        (fixture.attr(inode).mtime_ns, fixture.attr(inode).ctime_ns)
    };
    let (mtime, ctime) = written(&mut fixture, i64::MAX);
    assert_eq!((mtime, ctime), (fixture.time_ns, fixture.time_ns));
    let (mtime, ctime) = written(&mut fixture, 3);
    assert!(mtime < ctime && ctime == fixture.time_ns);
}

/// A client's copy of the groups, kept up to date by cursor.
struct Groups {
    known: BTreeMap<u64, BlockGroup>,
    cursor: (u64, GroupId),
}

impl Groups {
    /// Counts the pages that it took.
    fn catch_up(&mut self, table: &Table) -> (usize, usize) {
        let (mut pages, mut groups) = (0, 0);
        loop {
            let page = table.groups_since(self.cursor);
            let bytes: usize = page.groups.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes < 512 << 10, "a page of {bytes} bytes");
            (pages, groups) = (pages + 1, groups + page.groups.len());
            self.cursor = page.cursor;
            self.known.extend(page.groups.into_iter().map(|group| (group.group, group)));
            if !page.more {
                let all = table.groups().into_iter().map(|group| (group.group, group)).collect();
                assert!(self.known == all, "the client's groups are not the table's");
                return (pages, groups);
            }
        }
    }
}

/// Some 15,000 groups did not fit one frame, and every change made every client fetch all of them.
#[test]
fn groups_come_in_pages_and_later_only_those_that_changed() {
    let mut fixture = Fixture::new();
    let add = |range: std::ops::Range<u64>| Op::AddGroups(AddGroups { groups: range.map(group).collect() });
    fixture.lead(add(2..20_001));
    let mut client = Groups { known: BTreeMap::new(), cursor: (0, GroupId(0)) };
    assert_eq!(client.catch_up(&fixture.table), (20, 20_000));
    assert_eq!(client.catch_up(&fixture.table), (1, 0));
    fixture.lead(Op::VacateSlot(VacateSlot { group: 7, epoch: 1, slot: 3 }));
    fixture.lead(Op::SetGroupState(SetGroupState { group: 9, state: GroupState::GroupFull.into() }));
    fixture.lead(add(20_001..20_003));
    assert_eq!(client.catch_up(&fixture.table), (1, 4));
    let mut image = Vec::new();
    fixture.table.freeze().write_to(&mut image).unwrap();
    let next_leader = Table::restore(&mut image.as_slice()).unwrap();
    assert_eq!(client.catch_up(&next_leader), (1, 0), "the cursor holds with every leader");
}

#[test]
fn what_changed_before_changes_were_recorded_is_fetched_whole() {
    let mut fixture = Fixture::at_level(0, 0);
    let mut client = Groups { known: BTreeMap::new(), cursor: (0, GroupId(0)) };
    assert_eq!(client.catch_up(&fixture.table), (1, 1));
    fixture.lead(Op::VacateSlot(VacateSlot { group: 1, epoch: 1, slot: 3 }));
    fixture.lead(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 1 }));
    assert_eq!(client.catch_up(&fixture.table), (1, 1));
    fixture.lead(Op::VacateSlot(VacateSlot { group: 1, epoch: 2, slot: 4 }));
    assert_eq!(client.catch_up(&fixture.table), (1, 1));
    assert_eq!(client.catch_up(&fixture.table), (1, 0));
}
