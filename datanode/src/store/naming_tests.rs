//! Claims about deletes that name single attempts, and about tombstones that name whole chunks, as former builds wrote them.

use holdfast_common::{ChunkId, Nonce, Random};

use super::Store;
use super::batch::{Batch, Change, Payload};
use super::record::{Body, tombstone_bytes};
use super::segment::SegmentKind;
use super::tests::{
    BULK, SMALL, Survival, VOLUME, commit_one, delete, delete_named, fresh, key, open, payload, put, put_one, read,
    settle,
};
use super::types::{ChunkKey, Done, Outcome, Put, Request, ShardKey, ShardMeta, ShardName, Target};

/// Deletes a chunk by a tombstone of the first format.
pub(super) fn bury_whole_chunk(store: &mut Store, chunk: u64) -> Outcome {
    let mut batch = Batch::default();
    let targets = vec![Target { chunk: ChunkId(chunk), shard: None }];
    let (body, bytes) = (Body::Tombstone { volume: VOLUME, targets: targets.clone() }, tombstone_bytes(&targets));
    let (at, version) = store.append(&mut batch, SegmentKind::Small, None, bytes, &body, &Payload::None)?;
    let change = Change::Delete { volume: VOLUME, targets, kept_count: 0, version, at };
    batch.plan(SegmentKind::Small, change, Some(0));
    batch.deleted_chunks.insert(ChunkKey { volume: VOLUME, chunk: ChunkId(chunk) });
    batch.outcomes.push(None);
    store.finish(batch)[0]
}

/// Another shard of a chunk, of the same content.
fn sibling(chunk: u64, nonce: u64, shard: u8) -> Put {
    let Put { meta, payload, session } = put(chunk, nonce, SMALL);
    let key = ShardKey { shard, ..meta.key };
    let page_checksums = key.place().page_checksums(0, &payload).into();
    Put { meta: ShardMeta { key, page_checksums, ..meta }, payload, session }
}

fn numbers(store: &Store) -> Vec<(u64, u8)> {
    let (listed, _) = store.reader().list(&VOLUME, ChunkId(0), 100).unwrap();
    listed.iter().map(|(key, _)| (key.chunk.chunk.0, key.shard)).collect()
}

#[test]
fn r1_a_delete_takes_the_named_attempt_and_leaves_another_one() {
    for bytes in [SMALL, BULK] {
        let (disk, mut store) = fresh();
        (1..=3).for_each(|chunk| put_one(&mut store, chunk, bytes));
        let outcome = commit_one(&mut store, delete_named(&[(1, 1), (2, 7), (9, 1)]));
        assert_eq!(outcome, Ok(Done { deleted_count: 1, kept_count: 1 }));
        assert_eq!(numbers(&store), [(2, 1), (3, 1)]);
        let store = open(&Survival::Nothing.of(&disk, &mut Random::new(1)));
        assert_eq!(numbers(&store), [(2, 1), (3, 1)]);
        assert_eq!(read(&store.reader(), 2, 1, bytes).unwrap(), payload(2, 1, bytes));
    }
}

#[test]
fn a_delete_of_nothing_but_other_attempts_writes_nothing_and_says_so() {
    let (_disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    let before = store.next_sequence;
    assert_eq!(commit_one(&mut store, delete_named(&[(1, 2), (4, 1)])), Ok(Done { deleted_count: 0, kept_count: 1 }));
    assert_eq!(store.next_sequence, before);
}

#[test]
fn a_delete_by_name_leaves_the_other_shards_of_its_chunk() {
    let (disk, mut store) = fresh();
    for shard in 0..3 {
        commit_one(&mut store, Request::Put(sibling(1, 1, shard))).unwrap();
    }
    assert_eq!(commit_one(&mut store, delete_named(&[(1, 1)])), Ok(Done { deleted_count: 1, kept_count: 0 }));
    assert_eq!(numbers(&store), [(1, 0), (1, 2)]);
    settle(&mut store);
    let mut store = open(&Survival::Nothing.of(&disk, &mut Random::new(1)));
    assert_eq!(numbers(&store), [(1, 0), (1, 2)]);
    let names = [0, 2].map(|shard| ShardName { chunk: ChunkId(1), shard, nonce: Nonce(1) });
    let both = Request::Delete { volume: VOLUME, chunks: vec![ChunkId(1)], shards: names.to_vec() };
    let outcome = commit_one(&mut store, both);
    assert_eq!(outcome, Ok(Done { deleted_count: 2, kept_count: 0 }), "named twice, deleted once");
}

#[test]
fn r1_a_later_attempt_survives_the_tombstone_of_an_earlier_one() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    commit_one(&mut store, delete_named(&[(1, 1)])).unwrap();
    commit_one(&mut store, Request::Put(put(1, 2, SMALL))).unwrap();
    assert_eq!(commit_one(&mut store, delete_named(&[(1, 1)])), Ok(Done { deleted_count: 0, kept_count: 1 }));
    let store = open(&Survival::Nothing.of(&disk, &mut Random::new(1)));
    assert_eq!(read(&store.reader(), 1, 2, SMALL).unwrap(), payload(1, 2, SMALL));
}

#[test]
fn a_tombstone_of_the_first_format_takes_every_shard_of_its_chunk_and_no_later_one() {
    let (disk, mut store) = fresh();
    for shard in 0..3 {
        commit_one(&mut store, Request::Put(sibling(1, 1, shard))).unwrap();
    }
    put_one(&mut store, 2, BULK);
    assert_eq!(bury_whole_chunk(&mut store, 1), Ok(Done { deleted_count: 3, kept_count: 0 }));
    assert_eq!(bury_whole_chunk(&mut store, 2), Ok(Done { deleted_count: 1, kept_count: 0 }));
    commit_one(&mut store, Request::Put(sibling(1, 2, 2))).unwrap();
    let next = Survival::Nothing.of(&disk, &mut Random::new(1));
    let mut store = open(&next);
    assert_eq!(numbers(&store), [(1, 2)]);
    // Both formats of one chunk: the later one kills what the earlier one did not.
    commit_one(&mut store, delete(&[1])).unwrap();
    let store = open(&Survival::Nothing.of(&next, &mut Random::new(1)));
    assert!(numbers(&store).is_empty());
}

#[test]
fn a_tombstone_of_the_first_format_is_carried_on_by_compaction_in_its_own_format() {
    let (disk, mut store) = fresh();
    // The dead record stands in a segment that lives on, the tombstone in one that dies.
    (1..=24).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    assert!(bury_whole_chunk(&mut store, 1).is_ok());
    let former = store.small.as_ref().unwrap().segment.header.generation;
    (25..=60).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    commit_one(&mut store, delete(&(22..=50).collect::<Vec<_>>())).unwrap();
    settle(&mut store);
    let whole = |store: &Store| {
        let state = store.shared.state.read();
        state.index.tombstones.keys().filter(|grave| grave.target.shard.is_none()).count()
    };
    assert_eq!(whole(&store), 1);
    let state = store.shared.state.read();
    assert!(state.segments.values().all(|segment| segment.header.generation != former), "it was to be emptied");
    drop(state);
    let bare = Survival::Nothing.of(&disk, &mut Random::new(1));
    bare.lose_file("checkpoint");
    let scanned = open(&bare);
    assert_eq!(whole(&scanned), 1);
    assert!(!scanned.shared.state.read().index.shards_of(&key(1).chunk).any(|_| true));
}
