//! What differs when a rule is broken: each claim is shown with the rule and without it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::{ChunkId, Nonce, Random, SessionId};
use holdfast_storage::{SimulatedDisk, simulated::Fault};

use super::recover::create;
use super::segment::file_name;
use super::tests::{
    BULK, DISK, SMALL, Survival, VOLUME, alone, commit_one, delete, delete_named, key, options, payload, put, put_one,
    read, settle,
};
use super::types::{Done, Request, SessionKey, ShardError};
use super::{Sabotage, Store, StoreOptions};

fn open(disk: &SimulatedDisk, sabotage: Sabotage) -> Store {
    Store::open(disk.root(), DISK, StoreOptions { sabotage, ..options() }, alone()).unwrap().0
}

/// Runs a scenario on a new disk without sabotage and with it, and gives both results.
fn both<T>(sabotage: Sabotage, scenario: impl Fn(&SimulatedDisk, Store) -> T) -> (T, T) {
    let run = |sabotage| {
        let disk = SimulatedDisk::default();
        create(&*disk.root()).unwrap();
        let store = open(&disk, sabotage);
        scenario(&disk, store)
    };
    (run(Sabotage::None), run(sabotage))
}

/// Chunk 1 as a start without sabotage serves it after the loss of everything that was not synced.
fn after_power_loss(disk: &SimulatedDisk, bytes: usize) -> Result<Bytes, ShardError> {
    let next = Survival::Nothing.of(disk, &mut Random::new(1));
    read(&open(&next, Sabotage::None).reader(), 1, 1, bytes)
}

fn place_of(store: &Store, chunk: u64) -> (String, u64) {
    let state = store.shared.state.read();
    let at = state.index.get(&key(chunk)).unwrap().at;
    (file_name(state.segments[&at.segment].header.kind, at.segment), at.offset)
}

#[test]
fn a_put_answered_before_its_sync_is_lost_by_a_crash() {
    for bytes in [SMALL, BULK] {
        let found = both(Sabotage::AnswerPutBeforeSync, |disk, mut store| {
            put_one(&mut store, 1, bytes);
            after_power_loss(disk, bytes)
        });
        assert_eq!(found, (Ok(payload(1, 1, bytes)), Err(ShardError::NotFound)));
    }
}

#[test]
fn a_delete_answered_before_its_sync_is_taken_back_by_a_crash() {
    let found = both(Sabotage::AnswerDeleteBeforeSync, |disk, mut store| {
        put_one(&mut store, 1, SMALL);
        assert_eq!(commit_one(&mut store, delete(&[1])), Ok(Done { deleted_count: 1, kept_count: 0 }));
        after_power_loss(disk, SMALL)
    });
    assert_eq!(found, (Err(ShardError::NotFound), Ok(payload(1, 1, SMALL))));
}

#[test]
fn d6_a_sync_that_is_retried_calls_good_what_is_lost() {
    let found = both(Sabotage::RetryFailedSync, |disk, mut store| {
        put_one(&mut store, 2, SMALL);
        disk.fail_next(Fault::Sync);
        let answer = commit_one(&mut store, Request::Put(put(1, 1, SMALL)));
        let survived = answer.is_ok().then(|| after_power_loss(disk, SMALL).is_ok());
        (answer, survived)
    });
    assert_eq!(found, ((Err(ShardError::DiskFailed), None), (Ok(Done::default()), Some(false))));
}

#[test]
fn d6_a_failure_that_is_not_written_down_is_forgotten_by_a_restart() {
    let found = both(Sabotage::ForgetFailure, |disk, mut store| {
        disk.fail_next(Fault::Sync);
        assert_eq!(commit_one(&mut store, Request::Put(put(1, 1, SMALL))), Err(ShardError::DiskFailed));
        Store::open(disk.root(), DISK, options(), alone()).is_ok()
    });
    assert_eq!(found, (false, true));
}

#[test]
fn r1_another_shard_under_the_same_name_takes_the_first_ones_place() {
    for bytes in [SMALL, BULK] {
        let found = both(Sabotage::OverwriteOtherShard, |disk, mut store| {
            put_one(&mut store, 1, bytes);
            let answer = commit_one(&mut store, Request::Put(put(1, 2, bytes)));
            (answer, read(&store.reader(), 1, 2, bytes).is_ok(), after_power_loss(disk, bytes).is_ok())
        });
        assert_eq!(found, ((Err(ShardError::Conflict), false, true), (Ok(Done::default()), true, false)));
    }
}

#[test]
fn r1_a_read_of_another_attempt_is_answered() {
    let found = both(Sabotage::ServeAnyNonce, |_, mut store| {
        put_one(&mut store, 1, SMALL);
        read(&store.reader(), 1, 2, SMALL)
    });
    assert_eq!(found, (Err(ShardError::NotFound), Ok(payload(1, 1, SMALL))));
}

#[test]
fn r1_a_delete_of_another_attempt_takes_the_shard() {
    let found = both(Sabotage::DeleteAnyNonce, |_, mut store| {
        put_one(&mut store, 1, SMALL);
        commit_one(&mut store, delete_named(&[(1, 2)]))
    });
    let (kept, deleted) = (Done { deleted_count: 0, kept_count: 1 }, Done { deleted_count: 1, kept_count: 0 });
    assert_eq!(found, (Ok(kept), Ok(deleted)));
}

#[test]
fn r4_a_put_below_the_floor_is_taken() {
    let found = both(Sabotage::IgnoreFloor, |_, mut store| {
        commit_one(&mut store, Request::SetFloor { volume: VOLUME, floor: ChunkId(5) }).unwrap();
        commit_one(&mut store, Request::Put(put(4, 1, SMALL)))
    });
    assert_eq!(found, (Err(ShardError::BelowFloor(ChunkId(5))), Ok(Done::default())));
}

#[test]
fn r5_a_hole_is_made_while_a_reader_is_still_there() {
    let found = both(Sabotage::PunchUnderReaders, |_, mut store| {
        put_one(&mut store, 1, BULK);
        commit_one(&mut store, delete(&[1])).unwrap();
        let segment = store.shared.state.read().segments[&1].clone();
        let punched = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reading = segment.readers.read();
            let work = scope.spawn(|| {
                store.maintain(true);
                punched.store(true, Ordering::Release);
            });
            // Long enough for a hole that does not wait; one that waits does so for the end of the scope.
            let deadline = std::time::Instant::now() + Duration::from_millis(200);
            while !punched.load(Ordering::Acquire) && std::time::Instant::now() < deadline {
                std::thread::yield_now();
            }
            let under_reader = punched.load(Ordering::Acquire);
            drop(reading);
            work.join().unwrap();
            under_reader
        })
    });
    assert_eq!(found, (false, true));
}

/// A checkpoint calls a shard live; the shard is deleted and punched, its tombstone released, the tombstone's segment used
/// again; then the old checkpoint is all that says anything about the shard.
#[test]
fn r7_a_segment_recycled_before_a_checkpoint_brings_a_deleted_shard_back() {
    let back = [Sabotage::None, Sabotage::RecycleBeforeCheckpoint].map(|sabotage| {
        let disk = SimulatedDisk::default();
        create(&*disk.root()).unwrap();
        let rare = StoreOptions { checkpoint_records: 10_000, sabotage, ..options() };
        let (mut store, _) = Store::open(disk.root(), DISK, rare, alone()).unwrap();
        put_one(&mut store, 1, BULK);
        store.checkpoint().unwrap();
        commit_one(&mut store, delete(&[1])).unwrap();
        (101..=160).for_each(|chunk| put_one(&mut store, chunk, SMALL));
        commit_one(&mut store, delete(&(101..=130).collect::<Vec<_>>())).unwrap();
        settle(&mut store);
        let next = Survival::Nothing.of(&disk, &mut Random::new(1));
        let listed = open(&next, Sabotage::None).reader().list(&VOLUME, ChunkId(0), 1).unwrap().0;
        listed[0].0.chunk.chunk == ChunkId(1)
    });
    assert_eq!(back, [false, true]);
}

#[test]
fn d8_a_damaged_page_leaves_the_node() {
    let found = both(Sabotage::ServeUnverified, |disk, mut store| {
        put_one(&mut store, 1, SMALL);
        let (file, offset) = place_of(&store, 1);
        disk.flip(&file, offset + 4096 + 700);
        let range = super::types::ReadRange {
            key: key(1),
            nonce: Nonce(1),
            offset: 0,
            length_bytes: u32::try_from(SMALL).unwrap(),
        };
        store.reader().read(&range).map(|data| data.bytes == payload(1, 1, SMALL))
    });
    assert_eq!(found, (Err(ShardError::Corrupt), Ok(false)));
}

#[test]
fn r6_a_record_without_its_payload_is_taken_by_recovery() {
    for bytes in [SMALL, BULK] {
        let opened = [Sabotage::None, Sabotage::AcceptTorn].map(|sabotage| {
            let disk = SimulatedDisk::default();
            create(&*disk.root()).unwrap();
            let mut store = open(&disk, Sabotage::None);
            put_one(&mut store, 1, bytes);
            // As a crash leaves the last record of which a sector did not arrive.
            let (file, offset) = place_of(&store, 1);
            disk.flip(&file, offset + 4096 + 700);
            let next = Survival::All.of(&disk, &mut Random::new(1));
            read(&open(&next, sabotage).reader(), 1, 1, bytes)
        });
        assert_eq!(opened, [Err(ShardError::NotFound), Err(ShardError::Corrupt)]);
    }
}

#[test]
fn r29_a_put_uses_what_another_session_has_reserved() {
    let taken = [Sabotage::None, Sabotage::IgnoreReservations].map(|sabotage| {
        let disk = SimulatedDisk::default();
        create(&*disk.root()).unwrap();
        let limited = StoreOptions { limit_bytes: Some(2 << 20), sabotage, ..options() };
        let (mut store, _) = Store::open(disk.root(), DISK, limited, alone()).unwrap();
        let session = SessionKey { session: SessionId(1), ..SessionKey::NOBODY };
        store.reader().reserve(session, 8 << 20, Duration::from_secs(30)).unwrap();
        commit_one(&mut store, Request::Put(put(1, 1, BULK)))
    });
    assert_eq!(taken, [Err(ShardError::NoSpace), Ok(Done::default())]);
}

#[test]
fn r29_a_change_that_finds_no_room_fails_the_disk() {
    let found = both(Sabotage::NoRoomFails, |disk, mut store| {
        disk.fail_next(Fault::Write(libc::ENOSPC));
        let answer = commit_one(&mut store, Request::SetFloor { volume: VOLUME, floor: ChunkId(1) });
        (answer, store.is_failed())
    });
    assert_eq!(found, ((Err(ShardError::NoSpace), false), (Err(ShardError::DiskFailed), true)));
}

#[test]
fn r3_a_put_of_a_deleted_volume_is_taken_and_its_space_stays() {
    let found = both(Sabotage::PutAfterDrop, |_, mut store| {
        commit_one(&mut store, Request::DropVolume { volume: VOLUME }).unwrap();
        settle(&mut store);
        let answer = commit_one(&mut store, Request::Put(put(1, 1, SMALL)));
        settle(&mut store);
        (answer, store.reader().status().shards_count)
    });
    assert_eq!(found, ((Err(ShardError::Dropped), 0), (Ok(Done::default()), 1)));
}
