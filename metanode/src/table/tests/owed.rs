//! The floor, and what disks owe of chunks that were forgotten without them.

use super::persistence::image;
use super::{Fixture, ROOT, chunk, file_commit};
use crate::table::Table;
use crate::table::snapshot::RestoreError;
use holdfast_common::proof::ShardName;
use holdfast_common::{ChunkId, DiskId, Nonce};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, ForgetChunks, Kind, RaiseFloor, SetAttr, Swept, VacateSlot};

/// A file of one chunk, and the chunk's id.
fn written(fixture: &mut Fixture, name: &'static [u8]) -> (u64, u64) {
    let (inode, id) = (fixture.create(ROOT, name, Kind::File), fixture.reserve_chunk());
    assert_eq!(fixture.commit_one(chunk(id, 9), file_commit(inode, 0, 9, id)), Code::Ok);
    (inode, id)
}

/// A chunk that is freed.
fn freed(fixture: &mut Fixture, name: &'static [u8]) -> u64 {
    let (inode, id) = written(fixture, name);
    fixture.ok(Op::SetAttr(SetAttr { inode, size_bytes: Some(0), ..SetAttr::default() }));
    id
}

fn forget(fixture: &mut Fixture, chunk: u64, disks: &[u64]) {
    let op = Op::ForgetChunks(ForgetChunks { chunks: vec![chunk], disks: disks.to_vec() });
    assert_eq!(fixture.lead(op).code(), Code::Ok);
}

fn raise(fixture: &mut Fixture, floor: u64) {
    assert_eq!(fixture.lead(Op::RaiseFloor(RaiseFloor { floor })).code(), Code::Ok);
}

fn swept(disk: u64, floor: u64, owed_entries: u64) -> Op {
    Op::Swept(Swept { disk, floor, owed_entries })
}

fn owes(fixture: &Fixture, disk: u64) -> Option<(u64, u64)> {
    fixture.table.owed(DiskId(disk)).map(|owed| (owed.chunk.0, owed.entries))
}

#[test]
fn a_disk_owes_the_highest_chunk_forgotten_without_it_until_it_was_compared_above() {
    let mut fixture = Fixture::new();
    let (low, high) = (freed(&mut fixture, b"a"), freed(&mut fixture, b"b"));
    forget(&mut fixture, high, &[4, 6]);
    forget(&mut fixture, low, &[4]);
    assert_eq!([owes(&fixture, 4), owes(&fixture, 6), owes(&fixture, 1)], [Some((high, 2)), Some((high, 1)), None]);
    raise(&mut fixture, high);
    assert_eq!(fixture.lead(swept(4, high, 2)).code(), Code::Ok);
    assert_eq!(owes(&fixture, 4), Some((high, 2)), "what it owes is not below the floor");
    raise(&mut fixture, high + 1);
    assert_eq!(fixture.lead(swept(4, high + 1, 2)).code(), Code::Ok);
    assert_eq!([owes(&fixture, 4), owes(&fixture, 6)], [None, Some((high, 1))]);
    assert_eq!(fixture.lead(swept(4, high + 1, 0)).code(), Code::Ok, "settling twice is harmless");
}

/// Interleaving: a disk's page is read and its shard left, because its chunk is freed and not forgotten yet; the chunk is
/// forgotten without the disk; then the comparison ends.
#[test]
fn what_was_forgotten_while_a_disk_was_compared_it_owes_on() {
    let mut fixture = Fixture::new();
    let (early, late) = (freed(&mut fixture, b"a"), freed(&mut fixture, b"b"));
    forget(&mut fixture, late, &[4]);
    raise(&mut fixture, late + 1);
    let began_with = owes(&fixture, 4).unwrap().1;
    forget(&mut fixture, early, &[4]);
    fixture.lead(swept(4, late + 1, began_with));
    assert_eq!(owes(&fixture, 4), Some((late, 2)));
}

#[test]
fn a_comparison_below_what_is_not_the_floor_is_refused() {
    let mut fixture = Fixture::new();
    let id = freed(&mut fixture, b"a");
    forget(&mut fixture, id, &[4]);
    assert_eq!(fixture.lead(swept(4, id + 1, 1)).code(), Code::Invalid);
    assert_eq!(owes(&fixture, 4), Some((id, 1)));
}

/// R26: builds of lower levels know no debts.
#[test]
fn before_level_2_nobody_owes() {
    for level in [0, 1] {
        let mut fixture = Fixture::at_level(level, 0);
        let id = freed(&mut fixture, b"a");
        let with_disks = {
            let mut other = Fixture { table: fixture.table.clone(), ..fixture };
            forget(&mut other, id, &[4]);
            other.table
        };
        forget(&mut fixture, id, &[]);
        assert!(with_disks == fixture.table && with_disks.digest() == fixture.table.digest());
        assert_eq!(fixture.lead(swept(4, 0, 0)).code(), Code::Invalid);
    }
}

#[test]
fn debts_are_in_the_digest_and_in_snapshots() {
    let mut fixture = Fixture::new();
    let id = freed(&mut fixture, b"a");
    let (before, mut without) = (fixture.table.digest(), fixture.table.clone());
    forget(&mut fixture, id, &[4]);
    let restored = Table::restore(&mut image(&fixture.table).as_slice()).unwrap();
    assert!(restored == fixture.table && restored.digest() == fixture.table.digest() && before != restored.digest());
    restored.check().unwrap();
    without.owed = restored.owed;
    without.counters.feature_level = 1;
    assert!(without.check().is_err());
    let refused = Table::restore(&mut image(&without).as_slice());
    assert!(matches!(refused, Err(RestoreError::Malformed(_))), "{refused:?}");
}

#[test]
fn a_chunk_places_its_shards_on_its_members_by_nonce_until_it_is_forgotten() {
    let mut fixture = Fixture::new();
    let (inode, id) = written(&mut fixture, b"a");
    let name = ShardName { chunk: ChunkId(id), shard: 1, nonce: Nonce(id * 31) };
    let placed = |fixture: &Fixture| fixture.table.places(&name, DiskId(4));
    assert!(placed(&fixture));
    let others =
        [ShardName { shard: 0, ..name }, ShardName { nonce: Nonce(1), ..name }, ShardName { shard: 3, ..name }];
    assert!(others.iter().all(|other| !fixture.table.places(other, DiskId(4))));
    assert!(
        !fixture.table.places(&name, DiskId(1))
            && !fixture.table.places(&ShardName { chunk: ChunkId(999), ..name }, DiskId(4))
    );
    fixture.ok(Op::SetAttr(SetAttr { inode, size_bytes: Some(0), ..SetAttr::default() }));
    assert!(placed(&fixture), "freed, not forgotten");
    forget(&mut fixture, id, &[]);
    assert!(!placed(&fixture));
}

#[test]
fn a_vacant_slot_places_on_any_disk() {
    let mut fixture = Fixture::new();
    let (_, id) = written(&mut fixture, b"a");
    let name = ShardName { chunk: ChunkId(id), shard: 1, nonce: Nonce(id * 31) };
    fixture.lead(Op::VacateSlot(VacateSlot { group: 1, epoch: 1, slot: 3 }));
    assert!(fixture.table.places(&name, DiskId(4)) && fixture.table.places(&name, DiskId(77)));
    assert!(!fixture.table.members().iter().any(|(_, disk)| disk.0 == 4));
    assert_eq!(fixture.table.members().len(), 5);
}
