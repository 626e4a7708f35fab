//! Claims about the store on a quiet disk, on a failing one and on a damaged one. Crashes have a file of their own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::{ChunkId, DiskId, Epoch, GroupId, Incarnation, Nonce, SessionId, VolumeId};

use super::recover::create;
use super::space::Shelves;
use super::surroundings::Surroundings;
use super::types::{
    ChunkKey, Done, Put, ReadRange, Request, SessionKey, ShardError, ShardKey, ShardMeta, ShardName, Stripe, VolumeKey,
};
use super::{Reader, Sabotage, Store, StoreOptions, make_segment};
use holdfast_common::Random;
use holdfast_storage::{RealDirectory, SimulatedDisk, simulated::Fault};

mod failing;
mod spares;

pub(crate) const DISK: DiskId = DiskId(7);
pub(crate) const VOLUME: VolumeKey = VolumeKey { volume: VolumeId(3), incarnation: Incarnation(1) };

/// Fate of writes that were not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survival {
    /// A killed process: the page cache lives.
    All,
    /// Power lost: nothing that was not synced.
    Nothing,
    /// Power lost: anything by chance.
    Some,
}

impl Survival {
    /// The disk as the next start finds it.
    pub(crate) fn of(self, disk: &SimulatedDisk, random: &mut Random) -> SimulatedDisk {
        let next = disk.fork();
        match self {
            Self::All => {}
            Self::Nothing => next.lose_unsynced(),
            Self::Some => next.lose_power(random),
        }
        next
    }
}

pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        small_segment_bytes_min: 192 << 10,
        small_segment_bytes_max: 256 << 10,
        bulk_segment_bytes: 5 << 20,
        limit_bytes: None,
        checkpoint_records: 50,
        sabotage: Sabotage::None,
    }
}

/// The surroundings of a store that shares nothing, at a time that stands still.
pub(crate) fn alone() -> Surroundings {
    Surroundings { clock: Arc::new(|| Duration::ZERO), shelves: Shelves::default(), witness: None }
}

pub(crate) fn open(disk: &SimulatedDisk) -> Store {
    Store::open(disk.root(), DISK, options(), alone()).unwrap().0
}

pub(crate) fn fresh() -> (SimulatedDisk, Store) {
    let disk = SimulatedDisk::default();
    create(&*disk.root()).unwrap();
    let store = open(&disk);
    (disk, store)
}

pub(crate) fn key(chunk: u64) -> ShardKey {
    ShardKey { chunk: ChunkKey { volume: VOLUME, chunk: ChunkId(chunk) }, shard: 1 }
}

/// The content of a shard follows from its name and nonce.
pub(crate) fn payload(chunk: u64, nonce: u64, bytes: usize) -> Bytes {
    let mut random = Random::new(chunk << 32 | nonce);
    (0..bytes / 8).flat_map(|_| random.bits().to_le_bytes()).collect::<Vec<u8>>().into()
}

pub(crate) fn put(chunk: u64, nonce: u64, bytes: usize) -> Put {
    let payload = payload(chunk, nonce, bytes);
    let key = key(chunk);
    let meta = ShardMeta {
        key,
        nonce: Nonce(nonce),
        stripe: Stripe {
            group: GroupId(5),
            epoch: Epoch(2),
            data_shards: 4,
            parity_shards: 2,
            slots: (0..6).map(|n| (n + u8::try_from(chunk % 6).unwrap()) % 6).collect(),
        },
        chunk_length_bytes: u32::try_from(bytes).unwrap(),
        shard_length_bytes: u32::try_from(bytes).unwrap(),
        page_checksums: key.place().page_checksums(0, &payload).into(),
    };
    meta.check().unwrap();
    Put { meta, payload, session: SessionKey::NOBODY }
}

pub(crate) fn delete(chunks: &[u64]) -> Request {
    Request::Delete { volume: VOLUME, chunks: chunks.iter().copied().map(ChunkId).collect(), shards: Vec::new() }
}

/// Deletes attempts at the shards that [`put`] makes.
pub(crate) fn delete_named(attempts: &[(u64, u64)]) -> Request {
    let name = |(chunk, nonce): &(u64, u64)| ShardName { chunk: ChunkId(*chunk), shard: 1, nonce: Nonce(*nonce) };
    Request::Delete { volume: VOLUME, chunks: Vec::new(), shards: attempts.iter().map(name).collect() }
}

pub(crate) fn read(reader: &Reader, chunk: u64, nonce: u64, bytes: usize) -> Result<Bytes, ShardError> {
    let length_bytes = u32::try_from(bytes).unwrap();
    let range = ReadRange { key: key(chunk), nonce: Nonce(nonce), offset: 0, length_bytes };
    reader.read(&range).map(|data| {
        assert_eq!(key(chunk).place().verify(0, &data.bytes, &data.page_checksums), Ok(()));
        data.bytes
    })
}

pub(crate) fn commit_one(store: &mut Store, request: Request) -> Result<Done, ShardError> {
    store.commit(&[request])[0]
}

pub(crate) fn put_one(store: &mut Store, chunk: u64, bytes: usize) {
    assert_eq!(commit_one(store, Request::Put(put(chunk, 1, bytes))), Ok(Done::default()));
}

pub(crate) fn settle(store: &mut Store) {
    while store.maintain(true) {}
}

pub(crate) const SMALL: usize = 8 << 10;
pub(crate) const BULK: usize = 128 << 10;

#[test]
fn what_was_put_is_read_back_whole_and_in_ranges() {
    let (_disk, mut store) = fresh();
    for (chunk, bytes) in [(1, 4096), (2, SMALL), (3, 60 << 10), (4, 64 << 10), (5, BULK), (6, 4 << 20)] {
        put_one(&mut store, chunk, bytes);
        let reader = store.reader();
        assert_eq!(read(&reader, chunk, 1, bytes).unwrap(), payload(chunk, 1, bytes));
        let last = u32::try_from(bytes).unwrap() - 4096;
        let range = ReadRange { key: key(chunk), nonce: Nonce(1), offset: last, length_bytes: 4096 };
        assert_eq!(reader.read(&range).unwrap().bytes, payload(chunk, 1, bytes).slice(bytes - 4096..));
        let beyond = ReadRange { length_bytes: 8192, ..range };
        assert!(matches!(reader.read(&beyond), Err(ShardError::Invalid(_))));
        let crooked = ReadRange { offset: 17, ..range };
        assert!(matches!(reader.read(&crooked), Err(ShardError::Invalid(_))));
    }
    assert_eq!(store.reader().status().shards_count, 6);
}

#[test]
fn a_shard_of_another_nonce_is_not_found() {
    let (_disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    assert_eq!(read(&store.reader(), 1, 2, SMALL), Err(ShardError::NotFound));
    assert_eq!(read(&store.reader(), 2, 1, SMALL), Err(ShardError::NotFound));
}

#[test]
fn r1_the_same_shard_twice_is_fine_and_another_content_conflicts() {
    for bytes in [SMALL, BULK] {
        let (_disk, mut store) = fresh();
        let same = Request::Put(put(1, 1, bytes));
        let other = Request::Put(put(1, 2, bytes));
        let outcomes = store.commit(&[same.clone(), same.clone(), other.clone()]);
        assert_eq!(outcomes, [Ok(Done::default()), Ok(Done::default()), Err(ShardError::Conflict)]);
        let used_bytes = store.reader().status().used_bytes;
        let outcomes = store.commit(&[same, other]);
        assert_eq!(outcomes, [Ok(Done::default()), Err(ShardError::Conflict)]);
        assert_eq!(store.reader().status().used_bytes, used_bytes);
        assert_eq!(read(&store.reader(), 1, 1, bytes).unwrap(), payload(1, 1, bytes));
    }
}

#[test]
fn a_payload_that_does_not_match_its_checksums_leaves_no_trace() {
    for bytes in [SMALL, BULK] {
        let (_disk, mut store) = fresh();
        let mut bad = put(1, 1, bytes);
        let mut wrong = bad.payload.to_vec();
        wrong[5000] ^= 1;
        bad.payload = wrong.into();
        let mut short = put(3, 1, bytes);
        short.payload = short.payload.slice(..4096);
        let requests = [Request::Put(bad), Request::Put(put(2, 1, bytes)), Request::Put(short)];
        let outcomes = store.commit(&requests);
        assert!(matches!(outcomes[0], Err(ShardError::Invalid(_))));
        assert_eq!(outcomes[1], Ok(Done::default()));
        assert!(matches!(outcomes[2], Err(ShardError::Invalid(_))));
        assert_eq!(read(&store.reader(), 1, 1, bytes), Err(ShardError::NotFound));
        assert_eq!(read(&store.reader(), 2, 1, bytes).unwrap(), payload(2, 1, bytes));
    }
}

#[test]
fn a_delete_takes_every_shard_named_and_deleting_what_is_not_there_is_fine() {
    let (_disk, mut store) = fresh();
    (1..=4).for_each(|chunk| put_one(&mut store, chunk, if chunk % 2 == 0 { SMALL } else { BULK }));
    assert_eq!(commit_one(&mut store, delete(&[1, 2, 9])), Ok(Done { deleted_count: 2, kept_count: 0 }));
    assert_eq!(commit_one(&mut store, delete(&[1, 2, 9])), Ok(Done::default()));
    let reader = store.reader();
    for chunk in [1, 2] {
        assert_eq!(read(&reader, chunk, 1, 4096), Err(ShardError::NotFound));
    }
    let (listed, end) = reader.list(&VOLUME, ChunkId(0), 10).unwrap();
    assert!(end);
    assert_eq!(listed.iter().map(|(key, _)| key.chunk.chunk.0).collect::<Vec<_>>(), [3, 4]);
    let (listed, end) = reader.list(&VOLUME, ChunkId(0), 1).unwrap();
    assert_eq!((listed.len(), end), (1, false));
    assert!(reader.list(&VOLUME, ChunkId(3), 1).unwrap().1);
}

#[test]
fn a_put_and_a_delete_of_one_chunk_in_one_batch_happen_in_order() {
    let (disk, mut store) = fresh();
    let requests =
        [Request::Put(put(1, 1, SMALL)), delete(&[1]), Request::Put(put(1, 2, SMALL)), delete(&[2]), delete(&[2])];
    let outcomes = store.commit(&requests);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(outcomes[1], Ok(Done { deleted_count: 1, kept_count: 0 }));
    assert_eq!(read(&store.reader(), 1, 2, SMALL).unwrap(), payload(1, 2, SMALL));
    let store = open(&Survival::Nothing.of(&disk, &mut Random::new(1)));
    assert_eq!(read(&store.reader(), 1, 2, SMALL).unwrap(), payload(1, 2, SMALL));
}

#[test]
fn deleted_bulk_shards_give_their_space_back_and_stay_deleted_without_their_tombstone() {
    let (disk, mut store) = fresh();
    (1..=8).for_each(|chunk| put_one(&mut store, chunk, BULK));
    let name = disk.root().list().unwrap().into_iter().find(|name| name.starts_with("bulk")).unwrap();
    let before = disk.stored_bytes(&name);
    commit_one(&mut store, delete(&[1, 2, 3, 4, 5, 6, 7])).unwrap();
    assert!(store.shared.state.read().index.tombstones.len() == 7);
    settle(&mut store);
    assert!(disk.stored_bytes(&name) < before / 7);
    assert!(store.shared.state.read().index.tombstones.is_empty());
    let store = open(&Survival::Nothing.of(&disk, &mut Random::new(1)));
    assert_eq!(store.reader().status().shards_count, 1);
    assert_eq!(read(&store.reader(), 8, 1, BULK).unwrap(), payload(8, 1, BULK));
}

#[test]
fn compaction_keeps_what_lives_and_gives_back_the_rest() {
    let (disk, mut store) = fresh();
    for round in 0..20 {
        for chunk in round * 50 + 1..=round * 50 + 50 {
            put_one(&mut store, chunk, SMALL);
        }
        let dead: Vec<u64> = (round * 50 + 1..=round * 50 + 50).filter(|chunk| chunk % 10 != 0).collect();
        commit_one(&mut store, delete(&dead)).unwrap();
        settle(&mut store);
    }
    let check = |store: &Store| {
        assert_eq!(store.reader().status().shards_count, 100);
        for chunk in (10..=1000).step_by(10) {
            assert_eq!(read(&store.reader(), chunk, 1, SMALL).unwrap(), payload(chunk, 1, SMALL));
        }
    };
    check(&store);
    let segments = disk.root().list().unwrap().into_iter().filter(|name| name.starts_with("small")).count();
    assert!(segments < 14, "100 live shards of 8 KiB need 4 to 8 segments of 256 KiB, not {segments}");
    let crashed = Survival::Nothing.of(&disk, &mut Random::new(3));
    check(&open(&crashed));
    crashed.lose_file("checkpoint");
    check(&open(&crashed));
}

/// The copies that there was no room for are of records that the compaction had taken off its list already.
#[test]
fn a_compaction_that_met_a_full_disk_is_done_again() {
    let (disk, mut store) = fresh();
    let segments = || disk.root().list().unwrap().into_iter().filter(|name| name.starts_with("small")).count();
    for chunk in 1..=300 {
        put_one(&mut store, chunk, SMALL);
    }
    let full = segments();
    commit_one(&mut store, delete(&(1..=300).filter(|chunk| chunk % 10 != 0).collect::<Vec<_>>())).unwrap();
    disk.fail_next(Fault::Write(libc::ENOSPC));
    store.maintain(false);
    assert!(store.upkeep_waits, "there was no room for the copies");
    settle(&mut store);
    assert_eq!(store.reader().status().damaged_bytes, 0, "what was not copied counts as damaged");
    assert!(segments() < full / 2, "{} of {full} segments are left for 30 shards", segments());
    for chunk in (10..=300).step_by(10) {
        assert_eq!(read(&store.reader(), chunk, 1, SMALL).unwrap(), payload(chunk, 1, SMALL));
    }
}

#[test]
fn floors_and_drops_are_remembered() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 5, SMALL);
    put_one(&mut store, 6, BULK);
    commit_one(&mut store, Request::SetFloor { volume: VOLUME, floor: ChunkId(10) }).unwrap();
    commit_one(&mut store, Request::SetFloor { volume: VOLUME, floor: ChunkId(4) }).unwrap();
    let mut store = open(&Survival::Nothing.of(&disk, &mut Random::new(1)));
    assert_eq!(commit_one(&mut store, Request::Put(put(9, 1, SMALL))), Err(ShardError::BelowFloor(ChunkId(10))));
    put_one(&mut store, 10, SMALL);
    assert_eq!(read(&store.reader(), 5, 1, SMALL).unwrap(), payload(5, 1, SMALL));

    let (disk, mut store) = fresh();
    put_one(&mut store, 5, SMALL);
    put_one(&mut store, 6, BULK);
    commit_one(&mut store, Request::DropVolume { volume: VOLUME }).unwrap();
    assert_eq!(read(&store.reader(), 5, 1, SMALL), Err(ShardError::Dropped));
    for survival in [Survival::Nothing, Survival::All] {
        let mut store = open(&survival.of(&disk, &mut Random::new(1)));
        assert_eq!(commit_one(&mut store, Request::Put(put(50, 1, SMALL))), Err(ShardError::Dropped));
        settle(&mut store);
        let status = store.reader().status();
        assert_eq!((status.shards_count, status.used_bytes), (0, 0));
    }
}

#[test]
fn a_reservation_keeps_space_for_its_session() {
    let disk = SimulatedDisk::default();
    create(&*disk.root()).unwrap();
    let limited = StoreOptions { limit_bytes: Some(2 << 20), ..options() };
    let (mut store, _) = Store::open(disk.root(), DISK, limited, alone()).unwrap();
    let reader = store.reader();
    let granted = reader
        .reserve(SessionKey { session: SessionId(1), ..SessionKey::NOBODY }, 8 << 20, Duration::from_secs(30))
        .unwrap();
    assert!(granted.granted_bytes < 2 << 20 && granted.granted_bytes > 1 << 20);
    assert_eq!(granted.available_bytes, 0);
    assert_eq!(commit_one(&mut store, Request::Put(put(1, 1, BULK))), Err(ShardError::NoSpace));
    let own = Put { session: SessionKey { session: SessionId(1), ..SessionKey::NOBODY }, ..put(1, 1, BULK) };
    assert_eq!(commit_one(&mut store, Request::Put(own)), Ok(Done::default()));
    assert_eq!(
        reader
            .reserve(SessionKey { session: SessionId(1), ..SessionKey::NOBODY }, 0, Duration::from_secs(30))
            .unwrap()
            .granted_bytes,
        0
    );
    put_one(&mut store, 2, BULK);
}

#[test]
fn a_flipped_bit_of_the_payload_or_the_header_is_never_served() {
    for bytes in [SMALL, BULK] {
        for (what, at) in [("header", 30), ("checksums", 130), ("payload", 4096 + 700)] {
            let (disk, mut store) = fresh();
            put_one(&mut store, 1, bytes);
            put_one(&mut store, 2, bytes);
            let location = store.shared.state.read().index.get(&key(1)).unwrap().at;
            let state = store.shared.state.read();
            let name = super::segment::file_name(state.segments[&location.segment].header.kind, location.segment);
            drop(state);
            disk.flip(&name, location.offset + at);
            assert_eq!(read(&store.reader(), 1, 1, bytes), Err(ShardError::Corrupt), "{what}");
            assert_eq!(store.reader().status().corrupt_reads, 1);
            assert_eq!(read(&store.reader(), 2, 1, bytes).unwrap(), payload(2, 1, bytes));
            if what == "header" {
                // R6: the scan cannot explain it, and a later durable record says that it is no torn tail.
                put_one(&mut store, 3, bytes);
                let crashed = Survival::All.of(&disk, &mut Random::new(1));
                let (store, report) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
                assert_eq!(report.damaged_bytes, location.bytes);
                assert_eq!(read(&store.reader(), 1, 1, bytes), Err(ShardError::NotFound));
                assert_eq!(read(&store.reader(), 2, 1, bytes).unwrap(), payload(2, 1, bytes));
            }
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_dropped_and_everything_found_by_the_scan() {
    let (disk, mut store) = fresh();
    (1..=30).for_each(|chunk| put_one(&mut store, chunk, if chunk % 3 == 0 { BULK } else { SMALL }));
    commit_one(&mut store, delete(&[3, 4, 5])).unwrap();
    store.checkpoint().unwrap();
    let crashed = Survival::Nothing.of(&disk, &mut Random::new(1));
    let (_, report) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
    assert!(report.checkpoint_used);
    assert_eq!(report.records_count, 0);
    crashed.flip("checkpoint", 77);
    let (store, report) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
    assert!(!report.checkpoint_used);
    assert_eq!(report.records_count, 31);
    assert_eq!(store.reader().status().shards_count, 27);
}

#[test]
fn bytes_of_a_segments_former_life_never_pass() {
    let (disk, mut store) = fresh();
    (1..=20).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    commit_one(&mut store, delete(&(1..=20).collect::<Vec<_>>())).unwrap();
    (21..=60).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    settle(&mut store);
    let recycled = store.spares.front().expect("the first segment was recycled").clone();
    assert_eq!(recycled.header.number, 1);
    let crashed = Survival::Nothing.of(&disk, &mut Random::new(1));
    crashed.lose_file("checkpoint");
    let (store, report) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
    assert_eq!((report.damaged_bytes, report.torn_count), (0, 0));
    assert_eq!(store.reader().status().shards_count, 40);
    assert!(store.spares.iter().any(|spare| spare.header.number == 1));
}

#[test]
fn a_segment_of_a_newer_version_is_refused_with_its_name() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    let file = disk.root().open("small-0000000001.seg").unwrap();
    let mut sector = store.small.as_ref().unwrap().segment.header.encode();
    sector[4] = 2;
    let crc = holdfast_common::checksum::crc32c(&sector[..508]);
    sector[508..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(0, &sector).unwrap();
    let error = Store::open(disk.root(), DISK, options(), alone()).err().unwrap();
    assert!(error.to_string().contains("small-0000000001.seg was made by a newer version"), "{error}");
}

#[test]
fn a_real_directory_keeps_shards_over_restarts_with_and_without_checkpoint() {
    let temporary = tempfile::tempdir().unwrap();
    let directory: Arc<dyn holdfast_storage::Directory> = Arc::new(RealDirectory::new(temporary.path()));
    create(&*directory).unwrap();
    let (mut store, _) = Store::open(directory.clone(), DISK, options(), alone()).unwrap();
    let spare = store.plan_spare().unwrap();
    assert!(store.plan_spare().is_none());
    store.add_spare(make_segment(&*directory, spare, true));
    (1..=60).for_each(|chunk| put_one(&mut store, chunk, if chunk % 3 == 0 { BULK } else { SMALL }));
    commit_one(&mut store, delete(&(1..=30).collect::<Vec<_>>())).unwrap();
    settle(&mut store);
    store.checkpoint().unwrap();
    (61..=70).for_each(|chunk| put_one(&mut store, chunk, BULK));
    drop(store);
    for with_checkpoint in [true, false] {
        if !with_checkpoint {
            std::fs::remove_file(temporary.path().join("checkpoint")).unwrap();
        }
        let (store, report) = Store::open(directory.clone(), DISK, options(), alone()).unwrap();
        assert_eq!((report.damaged_bytes, report.torn_count), (0, 0));
        assert_eq!(report.checkpoint_used, with_checkpoint);
        assert_eq!(store.reader().status().shards_count, 40);
        for chunk in 31..=70 {
            let bytes = if chunk % 3 == 0 || chunk > 60 { BULK } else { SMALL };
            assert_eq!(read(&store.reader(), chunk, 1, bytes).unwrap(), payload(chunk, 1, bytes));
        }
    }
}

#[test]
fn r5_readers_never_see_bytes_that_are_being_deleted_or_moved() {
    let temporary = tempfile::tempdir().unwrap();
    let directory: Arc<dyn holdfast_storage::Directory> = Arc::new(RealDirectory::new(temporary.path()));
    create(&*directory).unwrap();
    let (mut store, _) = Store::open(directory, DISK, options(), alone()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let served = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (reader, done, served) = (store.reader(), &done, &served);
            scope.spawn(move || {
                let mut random = Random::new(thread);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let chunk = 1 + random.below(40);
                    let bytes = if chunk.is_multiple_of(2) { SMALL } else { BULK };
                    for nonce in reader.list(&VOLUME, ChunkId(chunk - 1), 1).unwrap().0.iter().map(|(_, e)| e.nonce.0) {
                        match read(&reader, chunk, nonce, bytes) {
                            Ok(content) => {
                                assert!(content == payload(chunk, nonce, bytes), "chunk {chunk} nonce {nonce}");
                                served.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            }
                            Err(error) => assert_eq!(error, ShardError::NotFound, "chunk {chunk}"),
                        }
                    }
                }
            });
        }
        let mut nonce = 0;
        let deadline = std::time::Instant::now() + Duration::from_millis(600);
        let unread = || served.load(std::sync::atomic::Ordering::Relaxed) == 0;
        // On a busy machine the readers may not have had a turn yet.
        while std::time::Instant::now() < deadline || (unread() && deadline.elapsed() < Duration::from_secs(60)) {
            nonce += 1;
            let of = |chunk: u64| if chunk.is_multiple_of(2) { SMALL } else { BULK };
            let puts: Vec<Request> = (1..=40).map(|chunk| Request::Put(put(chunk, nonce, of(chunk)))).collect();
            assert!(store.commit(&puts).iter().all(Result::is_ok));
            let dead: Vec<u64> = (1..=40).collect();
            commit_one(&mut store, delete(&dead)).unwrap();
            settle(&mut store);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(store.reader().status().corrupt_reads, 0);
    assert!(served.into_inner() > 0, "nothing was read, so nothing was shown");
}
