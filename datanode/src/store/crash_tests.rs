//! The store is cut off at every file operation, and what a machine then finds is checked against what was promised:
//! every acknowledged put reads back whole, every acknowledged delete stays deleted, nothing else is ever served, and
//! the store always opens, with or without its checkpoint to the same shards.

use std::collections::BTreeMap;

use holdfast_common::ChunkId;

use super::naming_tests::bury_whole_chunk;
use super::tests::Survival;
use super::tests::{
    DISK, SMALL, VOLUME, alone, commit_one, delete, delete_named, fresh, key, open, options, payload, put, read,
};
use super::types::{Request, ShardError};
use super::{Store, make_segment};
use holdfast_common::Random;
use holdfast_storage::SimulatedDisk;

/// Chunks the workload uses: few, so that puts and deletes meet.
const CHUNKS: u64 = 24;

/// Content of a chunk: nonce and length of its shard.
type Content = Option<(u64, usize)>;

/// Promised contents of every chunk, and those possible besides because their requests were not answered.
#[derive(Clone, Default)]
struct Promises {
    acknowledged: BTreeMap<u64, Content>,
    possible: BTreeMap<u64, Vec<Content>>,
    floor: u64,
    floor_possible: u64,
    next_nonce: u64,
}

impl Promises {
    fn allows(&self, chunk: u64, content: Content) -> bool {
        self.acknowledged.get(&chunk).copied().flatten() == content
            || self.possible.get(&chunk).is_some_and(|possible| possible.contains(&content))
    }

    fn latest(&self, chunk: u64) -> Content {
        let pending = self.possible.get(&chunk).and_then(|p| p.last().copied());
        pending.unwrap_or_else(|| self.acknowledged.get(&chunk).copied().flatten())
    }
}

fn random_request(random: &mut Random, promises: &mut Promises) -> (Request, Vec<(u64, Content)>) {
    let chunk = promises.floor_possible + random.below(CHUNKS) + 1;
    match promises.latest(chunk) {
        None => {
            promises.next_nonce += 1;
            let nonce = promises.next_nonce;
            let pages = if random.chance(30) { 16 + random.below(8) } else { 1 + random.below(10) };
            let bytes = usize::try_from(pages).unwrap() * 4096;
            (Request::Put(put(chunk, nonce, bytes)), vec![(chunk, Some((nonce, bytes)))])
        }
        Some((nonce, bytes)) if random.chance(15) => {
            (Request::Put(put(chunk, nonce, bytes)), vec![(chunk, Some((nonce, bytes)))])
        }
        Some((nonce, _)) if random.chance(40) => (delete_named(&[(chunk, nonce)]), vec![(chunk, None)]),
        Some(_) => {
            let more = promises.floor_possible + random.below(CHUNKS) + 1;
            (delete(&[chunk, more]), vec![(chunk, None), (more, None)])
        }
    }
}

fn commit_some(store: &mut Store, random: &mut Random, promises: &mut Promises) {
    let mut requests = Vec::new();
    let mut effects = Vec::new();
    for _ in 0..=random.below(6) {
        let (request, effect) = random_request(random, promises);
        for (chunk, content) in &effect {
            promises.possible.entry(*chunk).or_default().push(*content);
        }
        requests.push(request);
        effects.push(effect);
    }
    let outcomes = store.commit(&requests);
    if outcomes.contains(&Err(ShardError::DiskFailed)) {
        // Parts of it may be answered already; what they say is among what is possible.
        for (outcome, effect) in outcomes.iter().zip(effects) {
            if outcome.is_ok() {
                for (chunk, content) in effect {
                    promises.acknowledged.insert(chunk, content);
                }
            }
        }
        return;
    }
    for ((outcome, effect), request) in outcomes.iter().zip(effects).zip(&requests) {
        assert!(outcome.is_ok(), "{outcome:?} for {request:?}");
        for (chunk, content) in effect {
            promises.acknowledged.insert(chunk, content);
        }
    }
    promises.possible.clear();
}

fn work(store: &mut Store, disk: &SimulatedDisk, random: &mut Random, promises: &mut Promises, steps: u64) {
    // Half of the time as another thread would write it: from an index that the store has left behind meanwhile.
    let elsewhere = random.chance(50);
    let mut frozen = None;
    if elsewhere {
        store.write_checkpoints_elsewhere();
    }
    for _ in 0..steps {
        match random.below(20) {
            0..=10 => commit_some(store, random, promises),
            11..=15 => {
                store.maintain(random.chance(50));
            }
            16 if !elsewhere => {
                let _ = store.checkpoint();
            }
            16 => match frozen.take() {
                None => {
                    store.checkpoint_wanted = true;
                    frozen = store.plan_checkpoint();
                }
                Some(earlier) => {
                    let written = earlier.write();
                    let _ = store.end_checkpoint(&earlier, written);
                }
            },
            17 if random.chance(10) => raise_floor(store, promises),
            17 => delete_in_the_first_format(store, random, promises),
            _ => {
                if let Some(header) = store.plan_spare() {
                    store.add_spare(make_segment(&*disk.root(), header, random.chance(50)));
                }
            }
        }
        if disk.is_dead() {
            return;
        }
    }
}

/// As a former build did it on the disk that this one opened.
fn delete_in_the_first_format(store: &mut Store, random: &mut Random, promises: &mut Promises) {
    let chunk = promises.floor_possible + random.below(CHUNKS) + 1;
    if store.is_failed() || promises.acknowledged.get(&chunk).copied().flatten().is_none() {
        return;
    }
    promises.possible.entry(chunk).or_default().push(None);
    if bury_whole_chunk(store, chunk).is_ok() {
        promises.acknowledged.insert(chunk, None);
        promises.possible.clear();
    }
}

fn raise_floor(store: &mut Store, promises: &mut Promises) {
    promises.floor_possible += 1;
    let floor = ChunkId(promises.floor_possible);
    if store.commit(&[Request::SetFloor { volume: VOLUME, floor }])[0].is_ok() {
        promises.floor = promises.floor_possible;
    }
}

/// Contents of a store as it lists them, each read back whole.
fn contents(store: &Store, context: &str) -> BTreeMap<u64, Content> {
    let reader = store.reader();
    let (listed, end) = reader.list(&VOLUME, ChunkId(0), usize::MAX).unwrap();
    assert!(end);
    let mut found = BTreeMap::new();
    for (shard, entry) in listed {
        let chunk = shard.chunk.chunk.0;
        assert_eq!(shard, key(chunk));
        let bytes = usize::try_from(entry.shard_length_bytes).unwrap();
        let served = read(&reader, chunk, entry.nonce.0, bytes);
        let right = served.as_ref().is_ok_and(|served| *served == payload(chunk, entry.nonce.0, bytes));
        assert!(right, "chunk {chunk} at {:?} gives {:?} {context}", entry.at, served.err());
        found.insert(chunk, Some((entry.nonce.0, bytes)));
    }
    found
}

/// Opens what a crash left and checks every promise. Returns the disk, the store and what is true now.
fn check(crashed: SimulatedDisk, mut promises: Promises, context: &str) -> (SimulatedDisk, Store, Promises) {
    // A second crash right after opening must change nothing, and neither must the loss of the checkpoint.
    let bare = Survival::All.of(&crashed, &mut Random::new(0));
    bare.lose_file("checkpoint");
    let (store, report) = Store::open(crashed.root(), DISK, options(), alone()).expect(context);
    assert_eq!((report.damaged_bytes, report.damaged_segments), (0, 0), "{context}");
    let found = contents(&store, context);
    for chunk in 1..=promises.floor_possible + CHUNKS {
        let content = found.get(&chunk).copied().flatten();
        let promised = promises.acknowledged.get(&chunk);
        let possible = promises.possible.get(&chunk);
        assert!(
            promises.allows(chunk, content),
            "chunk {chunk} holds {content:?}, acknowledged {promised:?}, possible {possible:?} {context}"
        );
    }
    assert_eq!(found.range(promises.floor_possible + CHUNKS + 1..).count(), 0, "{context}");
    let floor = store.shared.state.read().volumes.get(&VOLUME).floor.0;
    assert!(floor == promises.floor || floor == promises.floor_possible, "{context}");
    let (scanned, report) = Store::open(bare.root(), DISK, options(), alone()).expect(context);
    assert!(!report.checkpoint_used);
    assert_eq!((report.damaged_bytes, report.damaged_segments), (0, 0), "by scan {context}");
    assert_eq!(contents(&scanned, context), found, "by scan {context}");
    accounts(&store, context);
    accounts(&scanned, context);
    promises.acknowledged = found;
    promises.possible.clear();
    promises.floor = floor;
    promises.floor_possible = floor;
    (crashed, store, promises)
}

/// The index's sums agree with its parts, and no tombstone is kept that nothing pins.
fn accounts(store: &Store, context: &str) {
    let state = store.shared.state.read();
    let index = &state.index;
    let mut live: BTreeMap<u32, u64> = BTreeMap::new();
    for entry in index.volumes.values().flat_map(|shards| shards.values()) {
        *live.entry(entry.at.segment).or_default() += entry.at.bytes;
    }
    let shards_bytes: u64 = live.values().sum();
    let punch_bytes: u64 = index.punches.iter().map(|p| p.at.bytes).sum();
    assert_eq!(index.used_bytes(), shards_bytes + punch_bytes, "{context}");
    for record in index.tombstone_records.values() {
        *live.entry(record.at.segment).or_default() += record.at.bytes;
        assert!(!record.targets.is_empty(), "{context}");
    }
    for (number, segment) in &index.segments {
        assert_eq!(segment.live_bytes, live.get(number).copied().unwrap_or(0), "segment {number} {context}");
    }
    let mut pins: BTreeMap<_, u32> = BTreeMap::new();
    for segment in index.segments.values() {
        segment.pinned.iter().for_each(|grave| *pins.entry(*grave).or_default() += 1);
    }
    index.punches.iter().filter_map(|p| p.grave).for_each(|grave| *pins.entry(grave).or_default() += 1);
    for (grave, tombstone) in &index.tombstones {
        assert_eq!(Some(&tombstone.pins), pins.get(grave), "{grave:?} {context}");
    }
}

fn formatted() -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    super::recover::create(&*disk.root()).unwrap();
    disk
}

const SURVIVALS: [Survival; 3] = [Survival::Nothing, Survival::Some, Survival::All];

/// One workload, cut off at each of its operations in turn.
#[test]
fn a_crash_at_any_operation_breaks_no_promise() {
    let seed = seed(0x5eed_0001);
    let run = |cut: Option<u64>| {
        let disk = formatted();
        if let Some(cut) = cut {
            disk.die_after(cut - 1);
        }
        let mut random = Random::new(seed);
        let mut promises = Promises::default();
        if let Ok((mut store, _)) = Store::open(disk.root(), DISK, options(), alone()) {
            work(&mut store, &disk, &mut random, &mut promises, 90);
        }
        (disk, promises)
    };
    let operations = run(None).0.operations();
    assert!(operations > 300, "the workload is too small to mean anything: {operations}");
    for cut in 1..=operations {
        let (disk, promises) = run(Some(cut));
        // Chance everywhere; all or nothing at every other operation.
        let extreme = if cut.is_multiple_of(2) { Survival::All } else { Survival::Nothing };
        for survival in [Survival::Some, extreme] {
            let what = disk.last_operation();
            let context = format!("seed {seed:#x} cut at {cut} ({what}), surviving {survival:?}");
            let mut random = Random::new(seed ^ cut);
            check(survival.of(&disk, &mut random), promises.clone(), &context);
        }
    }
}

/// Many lives of one disk, each cut off somewhere, in recovery too.
#[test]
fn many_crashes_in_a_row_break_no_promise() {
    let seed = seed(0x5eed_0002);
    for number in 0..8 {
        let mut random = Random::new(seed + number);
        let mut disk = formatted();
        let mut promises = Promises::default();
        for life in 0..10 {
            let context = format!("seed {seed:#x} disk {number} life {life}");
            let survival = SURVIVALS[usize::try_from(random.below(3)).unwrap()];
            disk.die_after(random.below(250));
            if let Ok((mut store, _)) = Store::open(disk.root(), DISK, options(), alone()) {
                work(&mut store, &disk, &mut random, &mut promises, 120);
            }
            let crashed = survival.of(&disk, &mut random);
            if random.chance(30) {
                // Cut off while it recovers; the next start has to cope with that too.
                crashed.die_after(random.below(4));
                let _ = Store::open(crashed.root(), DISK, options(), alone());
                disk = survival.of(&crashed, &mut random);
            } else {
                disk = crashed;
            }
            let (checked, store, now) = check(disk, promises, &context);
            drop(store);
            disk = Survival::Nothing.of(&checked, &mut random);
            promises = now;
        }
    }
}

fn small(store: &mut Store, chunks: std::ops::RangeInclusive<u64>) {
    for chunk in chunks {
        assert!(store.commit(&[Request::Put(put(chunk, 1, 8192))])[0].is_ok());
    }
}

fn deleted(store: &mut Store, chunks: &[u64]) {
    assert!(store.commit(&[delete(chunks)])[0].is_ok());
}

/// The life of the segment that a chunk's shard stands in.
fn generation_of(store: &Store, chunk: u64) -> u64 {
    let state = store.shared.state.read();
    let number = state.index.get(&key(chunk)).unwrap().at.segment;
    state.segments[&number].header.generation
}

fn listed(store: &Store) -> Vec<u64> {
    contents(store, "").into_keys().collect()
}

/// The interleaving: a checkpoint calls a shard live; the shard is deleted, punched, its tombstone released; the
/// tombstone's segment is recycled; then the old checkpoint is all that is left to say anything about the shard.
#[test]
fn a_tombstone_outlives_every_checkpoint_that_calls_its_shard_live() {
    let scenario = |cut: u64| {
        let disk = formatted();
        let (mut store, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
        assert!(store.commit(&[Request::Put(put(1, 1, 128 << 10))])[0].is_ok());
        store.checkpoint().unwrap();
        deleted(&mut store, &[1]);
        // 20 shards fill a segment of 192 KiB, which the tombstone shares.
        small(&mut store, 101..=160);
        deleted(&mut store, &(101..=130).collect::<Vec<_>>());
        let before = store.shared.state.read().segments[&2].header.generation;
        disk.die_after(cut - 1);
        while store.maintain(true) {}
        let recycled = store.shared.state.read().segments.get(&2).is_none_or(|s| s.header.generation != before);
        (disk, recycled)
    };
    let (disk, recycled) = scenario(u64::MAX >> 1);
    assert!(recycled, "the tombstone's segment was to be recycled");
    let operations = disk.operations();
    for cut in 1..=operations {
        let disk = scenario(cut).0;
        if !disk.is_dead() {
            break;
        }
        for survival in SURVIVALS {
            let crashed = survival.of(&disk, &mut Random::new(cut));
            let (store, _) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
            assert_eq!(listed(&store), (131..=160).collect::<Vec<_>>(), "cut at {cut}, surviving {survival:?}");
        }
    }
}

/// The interleaving: a crash in a compaction leaves a shard twice; it is deleted; the first copy's segment is recycled
/// and then the tombstone's, while the second copy still stands in a segment that lives.
#[test]
fn a_tombstone_outlives_every_copy_that_a_compaction_made() {
    let disk = formatted();
    let (mut store, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    small(&mut store, 1..=30);
    let first = store.shared.state.read().index.get(&key(1)).unwrap().at.segment;
    // Shard 1 is the only one left of the first segment; its copy goes to the second.
    deleted(&mut store, &(2..=21).collect::<Vec<_>>());
    assert!(store.maintain(false));
    let second = store.shared.state.read().index.get(&key(1)).unwrap().at.segment;
    assert_ne!(first, second, "compaction was to copy shard 1");
    let crashed = Survival::All.of(&disk, &mut Random::new(1));
    let (mut store, _) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
    assert_eq!(store.shared.state.read().index.get(&key(1)).unwrap().at.segment, first);
    // The second segment fills up and lives on; the tombstone comes to stand in a third one that dies.
    small(&mut store, 201..=225);
    let third = store.small.as_ref().unwrap().segment.clone();
    assert!(third.header.number != second && third.header.number != first);
    deleted(&mut store, &[1]);
    small(&mut store, 301..=340);
    deleted(&mut store, &(301..=340).collect::<Vec<_>>());
    while store.maintain(true) {}
    let state = store.shared.state.read();
    let generation = |number: u32| state.segments.get(&number).map(|s| s.header.generation);
    assert_ne!(generation(third.header.number), Some(third.header.generation), "the third segment was to be recycled");
    assert!(generation(second).is_some(), "the second segment was to stay");
    drop(state);
    let expected = listed(&store);
    assert!(!expected.contains(&1));
    crashed.lose_file("checkpoint");
    let (store, _) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
    assert_eq!(listed(&store), expected);
}

/// A segment with a record that cannot be read is never freed, so the copies that compaction made of the others leave
/// their originals there for good, and tombstones have to outlive those.
#[test]
fn a_tombstone_outlives_originals_in_a_segment_kept_for_its_damage() {
    let disk = formatted();
    let (mut store, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    small(&mut store, 1..=30);
    let damaged = store.shared.state.read().index.get(&key(2)).unwrap().at;
    disk.flip(&super::segment::file_name(super::segment::SegmentKind::Small, damaged.segment), damaged.offset + 30);
    deleted(&mut store, &(3..=21).collect::<Vec<_>>());
    while store.maintain(true) {}
    assert_ne!(store.shared.state.read().index.get(&key(1)).unwrap().at.segment, damaged.segment);
    let copied_to = generation_of(&store, 1);
    deleted(&mut store, &[1]);
    let tombstone_at = store.small.as_ref().unwrap().segment.header.generation;
    // What was copied dies, and every segment that the tombstone stood in, one after the other.
    deleted(&mut store, &(22..=30).collect::<Vec<_>>());
    for round in 1..=5 {
        small(&mut store, round * 100 + 1..=round * 100 + 60);
        if round > 1 {
            deleted(&mut store, &(round * 100 - 99..=round * 100 - 40).collect::<Vec<_>>());
        }
        while store.maintain(true) {}
    }
    let state = store.shared.state.read();
    let generations: Vec<u64> = state.segments.values().map(|s| s.header.generation).collect();
    drop(state);
    assert!(!generations.contains(&copied_to), "the copy's segment was to be recycled");
    assert!(!generations.contains(&tombstone_at), "the tombstone's first segment was to be recycled");
    let crashed = Survival::Nothing.of(&disk, &mut Random::new(1));
    crashed.lose_file("checkpoint");
    let (store, _) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
    assert_eq!(listed(&store), (501..=560).collect::<Vec<_>>());
}

/// The seed is fixed, so that a run is repeatable; `HOLDFAST_SEED` overrides it. It is part of every message.
fn seed(default: u64) -> u64 {
    std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Interleaving: the process dies between the new name of the volumes file and its sync; the next one reads the new content, is asked
/// for the same floor, says that it has it, and the power fails.
#[test]
fn a_floor_that_a_start_found_and_that_was_confirmed_outlives_the_power() {
    let floor = |floor| Request::SetFloor { volume: VOLUME, floor: ChunkId(floor) };
    let mut seen = 0;
    for operations in 0..12 {
        let (disk, mut store) = fresh();
        disk.die_after(operations);
        let _ = commit_one(&mut store, floor(10));
        drop(store);
        disk.lose_process();
        let mut store = open(&disk);
        seen += u32::from(store.shared.state.read().volumes.get(&VOLUME).floor == ChunkId(10));
        commit_one(&mut store, floor(10)).unwrap();
        drop(store);
        disk.lose_unsynced();
        let mut store = open(&disk);
        let put = commit_one(&mut store, Request::Put(put(9, 1, SMALL)));
        assert_eq!(put, Err(ShardError::BelowFloor(ChunkId(10))), "after {operations} operations");
    }
    assert!(seen > 1, "some deaths came after the new name");
}
