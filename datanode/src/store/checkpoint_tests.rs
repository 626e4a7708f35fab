//! What a checkpoint costs those who wait for the index, and that it is right though the store goes on meanwhile.

use std::sync::Arc;
use std::time::Instant;

use holdfast_common::{ChunkId, Epoch, GroupId, Nonce};

use super::Store;
use super::index::{Entry, Index, Location, SegmentState};
use super::segment::{SegmentHeader, SegmentKind};
use super::tests::{BULK, DISK, SMALL, alone, commit_one, delete, fresh, key, options, payload, put_one, read, settle};
use super::types::{ChunkKey, ShardKey, Stripe};

#[test]
fn a_checkpoint_written_while_the_store_went_on_gives_the_same_index_with_the_scan_from_it() {
    let (disk, mut store) = fresh();
    store.write_checkpoints_elsewhere();
    (1..=60).for_each(|chunk| put_one(&mut store, chunk, if chunk % 3 == 0 { BULK } else { SMALL }));
    commit_one(&mut store, delete(&[3, 4])).unwrap();
    store.checkpoint_wanted = true;
    let frozen = store.plan_checkpoint().unwrap();
    store.checkpoint_wanted = true;
    assert!(store.plan_checkpoint().is_none(), "one at a time");
    // Deletes of shards that it calls live, punches, compaction of segments that it knows, new shards.
    commit_one(&mut store, delete(&(5..=50).collect::<Vec<_>>())).unwrap();
    settle(&mut store);
    (61..=70).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    let written = frozen.write();
    store.end_checkpoint(&frozen, written).unwrap();
    settle(&mut store);
    disk.lose_unsynced();
    let (opened, report) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    assert!(report.checkpoint_used && report.records_count > 0 && report.damaged_bytes == 0, "{report:?}");
    disk.lose_file("checkpoint");
    let (scanned, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    for store in [opened, scanned] {
        assert_eq!(store.reader().status().shards_count, 2 + 10 + 10);
        for chunk in [1, 2].into_iter().chain(51..=70) {
            let bytes = if chunk % 3 == 0 && chunk <= 60 { BULK } else { SMALL };
            assert_eq!(read(&store.reader(), chunk, 1, bytes).unwrap(), payload(chunk, 1, bytes));
        }
    }
}

/// Interleaving: the last record of a segment was punched, and a checkpoint was written; one start cannot read it, and appends into
/// the hole; the next start could read it.
#[test]
fn a_checkpoint_that_one_start_could_not_use_is_used_by_none() {
    let (disk, mut store) = fresh();
    (1..=2).for_each(|chunk| put_one(&mut store, chunk, BULK));
    commit_one(&mut store, delete(&[2])).unwrap();
    settle(&mut store);
    store.checkpoint().unwrap();
    drop(store);
    disk.flip("checkpoint", 77);
    let (mut store, report) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    assert!(!report.checkpoint_used);
    put_one(&mut store, 3, BULK);
    drop(store);
    if disk.root().list().unwrap().iter().any(|name| name == "checkpoint") {
        disk.flip("checkpoint", 77);
    }
    let (store, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    for chunk in [1, 3] {
        assert_eq!(read(&store.reader(), chunk, 1, BULK).unwrap(), payload(chunk, 1, BULK));
    }
}

fn many(count: u64) -> Index {
    let mut index = Index::default();
    let header =
        |number| SegmentHeader { number, kind: SegmentKind::Small, generation: 1, disk: DISK, size_bytes: 1 << 40 };
    (0..100).for_each(|number| drop(index.segments.insert(number, SegmentState::empty(&header(number)))));
    let stripe =
        Arc::new(Stripe { group: GroupId(1), epoch: Epoch(1), data_shards: 4, parity_shards: 2, slots: [0; 6].into() });
    for number in 1..=count {
        let chunk = ChunkKey { chunk: ChunkId(number), ..key(1).chunk };
        let segment = u32::try_from(number % 100).unwrap();
        let at = Location { segment, offset: number * 8704, bytes: 8704 };
        let stripe = stripe.clone();
        let entry =
            Entry { at, version: number, nonce: Nonce(1), shard_length_bytes: 8192, chunk_length_bytes: 8192, stripe };
        index.insert_shard(ShardKey { chunk, shard: 1 }, entry);
    }
    index
}

/// Not a test of time: it says what it measured. `cargo test --profile tests -p holdfast-datanode --lib -- --ignored --nocapture shards`.
#[test]
#[ignore = "a measurement, not a claim: prints how long the lock was held; run it with --ignored --nocapture"]
fn how_long_the_index_of_a_million_shards_is_locked_for_a_checkpoint() {
    let index = many(1_000_000);
    let begun = Instant::now();
    let copy = std::hint::black_box(&index).clone();
    let frozen = begun.elapsed();
    let begun = Instant::now();
    let bytes = super::checkpoint::encode(&copy, DISK, 1, 2, 3);
    let encoded = begun.elapsed();
    println!(
        "locked {frozen:?} for the copy; {encoded:?} to encode {} MB, which f335d94 did under the lock",
        bytes.len() >> 20
    );
}
