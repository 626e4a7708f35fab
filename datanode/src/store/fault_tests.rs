//! What the store makes of a disk or a machine that fails it: which failures are a request's, which a shard's, which the
//! disk's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_common::{ChunkId, Random};
use holdfast_storage::simulated::{Fault, Faults};
use holdfast_storage::{Directory, RealDirectory, SimulatedDisk, descriptors};

use super::failure::{self, FAILED_FILE};
use super::recover::{OpenError, create};
use super::segment::{SegmentKind, file_name};
use super::surroundings::Surroundings;
use super::tests::{
    BULK, DISK, SMALL, Survival, VOLUME, alone, commit_one, delete, fresh, key, open, options, payload, put, put_one,
    read, settle,
};
use super::types::{Done, Request, ShardError};
use super::{Store, StoreOptions};

#[test]
fn a_missing_descriptor_fails_the_request_and_never_the_disk() {
    for (bytes, errno) in [(SMALL, libc::EMFILE), (BULK, libc::ENFILE)] {
        let (disk, mut store) = fresh();
        // Making the first segment, replacing the file of floors, writing, reading, replacing the checkpoint.
        disk.fail_next(Fault::Open(errno));
        assert_eq!(commit_one(&mut store, Request::Put(put(1, 1, bytes))), Err(ShardError::Busy));
        put_one(&mut store, 1, bytes);
        disk.fail_next(Fault::Open(errno));
        let floor = Request::SetFloor { volume: VOLUME, floor: ChunkId(1) };
        assert_eq!(commit_one(&mut store, floor.clone()), Err(ShardError::Busy));
        assert_eq!(commit_one(&mut store, floor), Ok(Done::default()));
        disk.fail_next(Fault::Write(errno));
        let requests = [Request::Put(put(2, 1, bytes)), Request::Put(put(3, 1, bytes))];
        assert_eq!(store.commit(&requests), [Err(ShardError::Busy); 2]);
        assert_eq!(store.commit(&requests), [Ok(Done::default()); 2]);
        disk.fail_next(Fault::Read(errno));
        assert_eq!(read(&store.reader(), 2, 1, bytes), Err(ShardError::Busy));
        disk.fail_next(Fault::Open(errno));
        assert_eq!(store.checkpoint(), Err(ShardError::Busy));
        let status = store.reader().status();
        assert_eq!((status.failed, status.shards_count, status.corrupt_reads), (false, 3, 0));
        // What was refused leaves nothing that a scan could call damage.
        let (store, report) = Store::open(disk.fork().root(), DISK, options(), alone()).unwrap();
        assert_eq!((report.damaged_bytes, report.torn_count), (0, 0));
        assert_eq!(read(&store.reader(), 3, 1, bytes).unwrap(), payload(3, 1, bytes));
    }
}

fn place_of(store: &Store, chunk: u64) -> (String, u64) {
    let state = store.shared.state.read();
    let at = state.index.get(&key(chunk)).unwrap().at;
    (file_name(state.segments[&at.segment].header.kind, at.segment), at.offset)
}

#[test]
fn a_read_error_is_that_shards_damage_and_never_the_disks() {
    for bytes in [SMALL, BULK] {
        for unreadable_at in [0, 4096] {
            let (disk, mut store) = fresh();
            (1..=3).for_each(|chunk| put_one(&mut store, chunk, bytes));
            let (file, offset) = place_of(&store, 2);
            disk.make_unreadable(&file, offset + unreadable_at, 512);
            assert_eq!(read(&store.reader(), 2, 1, bytes), Err(ShardError::Corrupt));
            let again = commit_one(&mut store, Request::Put(put(2, 1, bytes)));
            let expected = if unreadable_at == 0 { Err(ShardError::Corrupt) } else { Ok(Done::default()) };
            assert_eq!(again, expected, "the header says whether it is this shard");
            put_one(&mut store, 4, bytes);
            let status = store.reader().status();
            assert!(!status.failed && status.corrupt_reads > 0);
            // A start that scans meets the same place.
            let next = disk.fork();
            let (store, report) = Store::open(next.root(), DISK, options(), alone()).unwrap();
            assert_eq!(report.damaged_bytes > 0, unreadable_at == 0, "{report:?}");
            // The page of a small header is also the last one of the shard before.
            let before =
                if bytes == SMALL && unreadable_at == 0 { Err(ShardError::Corrupt) } else { Ok(payload(1, 1, bytes)) };
            assert_eq!(read(&store.reader(), 1, 1, bytes), before);
            for chunk in [3, 4] {
                assert_eq!(read(&store.reader(), chunk, 1, bytes).unwrap(), payload(chunk, 1, bytes));
            }
            let gone = if unreadable_at == 0 { ShardError::NotFound } else { ShardError::Corrupt };
            assert_eq!(read(&store.reader(), 2, 1, bytes), Err(gone));
        }
    }
}

#[test]
fn an_unreadable_last_record_is_damage_and_no_torn_tail() {
    for bytes in [SMALL, BULK] {
        let (disk, mut store) = fresh();
        (1..=2).for_each(|chunk| put_one(&mut store, chunk, bytes));
        let (file, offset) = place_of(&store, 2);
        disk.make_unreadable(&file, offset, 512);
        let (mut store, report) = Store::open(disk.fork().root(), DISK, options(), alone()).unwrap();
        assert!(report.damaged_bytes > 0 && report.torn_count == 0, "{report:?}");
        put_one(&mut store, 3, bytes);
        assert_eq!(read(&store.reader(), 3, 1, bytes).unwrap(), payload(3, 1, bytes));
        let whole = read(&store.reader(), 1, 1, bytes);
        assert!(whole.is_ok() || bytes == SMALL, "its last page is that of the unreadable header");
    }
}

#[test]
fn a_page_that_cannot_be_read_is_not_written_over() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    let (file, offset) = place_of(&store, 1);
    // The next record would begin in the page in which this one ends.
    let next = disk.fork();
    let (mut store, _) = Store::open(next.root(), DISK, options(), alone()).unwrap();
    next.make_unreadable(&file, offset + SMALL as u64, 512);
    put_one(&mut store, 2, SMALL);
    assert_ne!(place_of(&store, 2).0, file);
    assert!(!store.is_failed());
    assert_eq!(read(&store.reader(), 1, 1, SMALL), Err(ShardError::Corrupt));
}

#[test]
fn d6_a_failed_sync_is_remembered_by_the_disk_or_by_its_node() {
    for disk_takes_note in [true, false] {
        let (disk, node) = (SimulatedDisk::default(), SimulatedDisk::new(1));
        create(&*disk.root()).unwrap();
        let open = |disk: &SimulatedDisk| {
            let surroundings = Surroundings { witness: Some(node.root()), ..alone() };
            Store::open(disk.root(), DISK, options(), surroundings)
        };
        let (mut store, _) = open(&disk).unwrap();
        put_one(&mut store, 1, SMALL);
        disk.fail_next(Fault::Sync);
        if !disk_takes_note {
            disk.fail_all(Fault::Open(libc::EIO));
        }
        assert_eq!(commit_one(&mut store, Request::Put(put(2, 1, SMALL))), Err(ShardError::DiskFailed));
        disk.lose_unsynced();
        node.lose_unsynced();
        let error = open(&disk).err().unwrap();
        assert!(matches!(&error, OpenError::FailedBefore(why) if why.contains("fdatasync")), "{error}");
        // Carried to another node, only its own note speaks for it.
        assert_eq!(Store::open(disk.root(), DISK, options(), alone()).is_ok(), !disk_takes_note);
    }
}

/// The process dies after the failed sync and before it has written the failure down. The next one finds the shard in the page
/// cache, and its syncs say Ok.
#[test]
fn d6_what_a_failed_sync_left_in_the_page_cache_is_durable_when_the_next_start_answers_from_it() {
    for bytes in [SMALL, BULK] {
        let (disk, mut store) = fresh();
        put_one(&mut store, 1, bytes);
        disk.fail_next(Fault::Sync);
        disk.fail_all(Fault::Open(libc::EIO));
        let again = || Request::Put(put(2, 1, bytes));
        assert_eq!(commit_one(&mut store, again()), Err(ShardError::DiskFailed));
        drop(store);
        disk.fail_no_more();
        disk.lose_process();
        let (mut store, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
        assert_eq!(commit_one(&mut store, again()), Ok(Done::default()));
        drop(store);
        disk.lose_unsynced();
        let (store, report) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
        assert_eq!(report.damaged_bytes, 0);
        for chunk in [1, 2] {
            assert_eq!(read(&store.reader(), chunk, 1, bytes).unwrap(), payload(chunk, 1, bytes));
        }
    }
}

/// The same, of the header of a segment that is used again: without it the records behind it say nothing after a loss of power.
#[test]
fn d6_a_segment_whose_header_was_not_synced_is_used_by_the_next_start_with_a_durable_one() {
    let (disk, mut store) = fresh();
    store.write_checkpoints_elsewhere();
    (1..=60).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    commit_one(&mut store, delete(&(1..=50).collect::<Vec<_>>())).unwrap();
    settle(&mut store);
    let frozen = store.plan_checkpoint().unwrap();
    let written = frozen.write();
    disk.fail_next(Fault::Sync);
    disk.fail_all(Fault::Open(libc::EIO));
    assert_eq!(store.end_checkpoint(&frozen, written), Err(ShardError::DiskFailed));
    drop(store);
    disk.fail_no_more();
    disk.lose_process();
    let mut store = open(&disk);
    (101..=160).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    drop(store);
    disk.lose_unsynced();
    let store = open(&disk);
    for chunk in (51..=60).chain(101..=160) {
        assert_eq!(read(&store.reader(), chunk, 1, SMALL).unwrap(), payload(chunk, 1, SMALL));
    }
}

#[test]
fn a_failure_that_no_place_takes_is_written_down_as_soon_as_one_does() {
    let (disk, mut store) = fresh();
    disk.fail_all(Fault::Sync);
    assert_eq!(commit_one(&mut store, Request::Put(put(1, 1, SMALL))), Err(ShardError::DiskFailed));
    assert!(!store.maintain(true) && !store.is_failure_noted());
    disk.fail_no_more();
    assert!(!store.maintain(true) && store.is_failure_noted());
    disk.lose_unsynced();
    assert!(matches!(Store::open(disk.root(), DISK, options(), alone()), Err(OpenError::FailedBefore(_))));
}

#[test]
fn a_space_that_cannot_be_asked_for_and_a_read_error_leave_no_note() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    store.shared.doubt_space();
    disk.fail_next(Fault::Space);
    put_one(&mut store, 2, SMALL);
    disk.fail_next(Fault::Read(libc::EIO));
    assert_eq!(read(&store.reader(), 1, 1, SMALL), Err(ShardError::Corrupt));
    assert_eq!(read(&store.reader(), 1, 1, SMALL).unwrap(), payload(1, 1, SMALL));
    assert!(!disk.list().unwrap().contains(&FAILED_FILE.to_owned()));
}

/// Any write may be the one without space: also that of a header, when a segment is used again.
#[test]
fn a_disk_that_is_full_now_and_then_never_fails_and_loses_nothing() {
    let (mut refused_count, mut recycled_count) = (0, 0);
    for seed in 0..20 {
        let disk = SimulatedDisk::new(seed);
        create(&*disk.root()).unwrap();
        let mut store = open(&disk);
        disk.set_faults(Faults { no_space_ppm: 200_000, ..Faults::default() });
        let (mut held, mut deleted) = (Vec::new(), Vec::new());
        for chunk in 1..=400 {
            let bytes = if chunk % 20 == 0 { BULK } else { SMALL };
            match commit_one(&mut store, Request::Put(put(chunk, 1, bytes))) {
                Ok(_) => held.push((chunk, bytes)),
                Err(error) => assert_eq!((error, refused_count += 1), (ShardError::NoSpace, ()), "seed {seed}"),
            }
            if held.len() > 30 && commit_one(&mut store, delete(&[held[0].0])).is_ok() {
                deleted.push(held.remove(0));
            }
            store.maintain(chunk % 3 == 0);
            assert!(!store.is_failed(), "seed {seed}: its disk failed for want of space");
        }
        disk.set_faults(Faults::default());
        settle(&mut store);
        // Generations and numbers ascend together but where a segment is used again.
        let generations: Vec<u64> =
            store.shared.state.read().segments.values().map(|segment| segment.header.generation).collect();
        recycled_count += generations.windows(2).filter(|pair| pair[0] > pair[1]).count();
        for store in [store, open(&disk.fork())] {
            for (chunk, bytes) in &held {
                assert_eq!(
                    read(&store.reader(), *chunk, 1, *bytes).unwrap(),
                    payload(*chunk, 1, *bytes),
                    "seed {seed}"
                );
            }
            for (chunk, bytes) in &deleted {
                assert_eq!(read(&store.reader(), *chunk, 1, *bytes), Err(ShardError::NotFound), "seed {seed}");
            }
        }
    }
    assert!(refused_count > 100 && recycled_count > 10, "{refused_count} refused, {recycled_count} used again");
}

/// Upkeep that finds no room is done later, and the rest of it meanwhile.
#[test]
fn upkeep_without_room_takes_no_segment_twice_and_goes_on_with_the_rest() {
    for fault in [Fault::SyncNames, Fault::Remove, Fault::Punch].map(|fault| fault(libc::ENOSPC)) {
        let (disk, mut store) = fresh();
        let segments = || disk.root().list().unwrap().into_iter().filter(|name| name.starts_with("small")).count();
        (1..=300).for_each(|chunk| put_one(&mut store, chunk, SMALL));
        (301..=360).for_each(|chunk| put_one(&mut store, chunk, BULK));
        let full = segments();
        commit_one(&mut store, delete(&(1..=360).collect::<Vec<_>>())).unwrap();
        for _ in 0..200 {
            disk.fail_next(fault);
            store.maintain(false);
        }
        // The next checkpoint syncs the names.
        let rounds = if fault == Fault::SyncNames(libc::ENOSPC) { 1 } else { 3 };
        for _ in 0..rounds {
            disk.fail_no_more();
            let frozen = store.freeze();
            let written = frozen.write();
            disk.fail_all(fault);
            let ended = store.end_checkpoint(&frozen, written);
            assert!(matches!(ended, Ok(()) | Err(ShardError::NoSpace)), "{fault:?}: {ended:?}");
        }
        assert!(!store.is_failed(), "{fault:?}");
        disk.fail_no_more();
        if fault == Fault::SyncNames(libc::ENOSPC) {
            // A checkpoint forgets a segment only once the removal of its file is durable.
            let known = disk.bytes("checkpoint");
            disk.fail_next(fault);
            assert!(store.freeze().write().is_err() && disk.bytes("checkpoint") == known);
        }
        if fault == Fault::Punch(libc::ENOSPC) {
            assert!(segments() < full / 2, "holes without room hold up what would give room");
        }
        (401..=700).for_each(|chunk| put_one(&mut store, chunk, SMALL));
        // A loss of power takes some of the names along: deleted shards stay deleted, and those that were put are there.
        let survivors = (0..8).map(|seed| open(&Survival::Some.of(&disk, &mut Random::new(seed))));
        for mut store in [store].into_iter().chain(survivors) {
            settle(&mut store);
            for chunk in 401..=700 {
                assert_eq!(read(&store.reader(), chunk, 1, SMALL).unwrap(), payload(chunk, 1, SMALL), "{fault:?}");
            }
            for chunk in 1..=360 {
                let bytes = if chunk > 300 { BULK } else { SMALL };
                assert_eq!(read(&store.reader(), chunk, 1, bytes), Err(ShardError::NotFound), "{fault:?} {chunk}");
            }
        }
        assert!(segments() <= full + 3, "{fault:?}: {} segments", segments());
    }
}

#[test]
fn what_found_no_room_is_not_tried_again_at_once() {
    let disk = SimulatedDisk::default();
    create(&*disk.root()).unwrap();
    let clock = Arc::new(AtomicU64::new(0));
    let seconds = clock.clone();
    let surroundings =
        Surroundings { clock: Arc::new(move || Duration::from_secs(seconds.load(Ordering::Relaxed))), ..alone() };
    let (mut store, _) = Store::open(disk.root(), DISK, options(), surroundings).unwrap();
    assert!(store.plan_spare().is_some());
    store.add_spare(Err(std::io::Error::from_raw_os_error(libc::ENOSPC)));
    assert!(store.plan_spare().is_none());
    clock.store(1, Ordering::Relaxed);
    assert!(store.plan_spare().is_some());
    put_one(&mut store, 1, SMALL);
    let frozen = store.freeze();
    assert_eq!(
        store.end_checkpoint(&frozen, Err(std::io::Error::from_raw_os_error(libc::ENOSPC))),
        Err(ShardError::NoSpace)
    );
    store.write_checkpoints_elsewhere();
    store.checkpoint_wanted = true;
    assert!(store.plan_checkpoint().is_none());
    clock.store(2, Ordering::Relaxed);
    assert!(store.plan_checkpoint().is_some());
}

#[test]
fn golden_bytes_of_the_note_of_a_failure() {
    let bytes = failure::encode(DISK, "fdatasync: EIO");
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text, "4846666c010000000700000000000000666461746173796e633a2045494fe57b9f18");
}

/// Segments of the test below, and the descriptors it has for them.
const SEGMENTS: u64 = 3_000;
const DESCRIPTORS: u64 = 256;
/// Set in the process whose descriptors are limited.
const CHILD: &str = "HOLDFAST_FEW_DESCRIPTORS";

fn limit_descriptors() {
    let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    // SAFETY: the pointer is to an rlimit of ours, which the call only reads.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    assert_eq!(descriptors::raise_limit().unwrap(), DESCRIPTORS);
}

/// A store of three thousand segments in a process that may open 256 files.
#[test]
fn three_thousand_segments_are_written_read_and_opened_again_with_256_descriptors() {
    if std::env::var_os(CHILD).is_none() {
        let claim =
            "store::fault_tests::three_thousand_segments_are_written_read_and_opened_again_with_256_descriptors";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", claim, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    limit_descriptors();
    let temporary = tempfile::tempdir().unwrap();
    let share = descriptors::Descriptors::new(usize::try_from(DESCRIPTORS / 2).unwrap());
    let directory: Arc<dyn Directory> = Arc::new(RealDirectory::with_descriptors(temporary.path(), share.clone()));
    create(&*directory).unwrap();
    let options = StoreOptions { small_segment_bytes_min: 160 << 10, small_segment_bytes_max: 160 << 10, ..options() };
    let (mut store, _) = Store::open(directory.clone(), DISK, options.clone(), alone()).unwrap();
    for chunk in 1..=SEGMENTS {
        put_one(&mut store, chunk, 4096);
        store.roll(SegmentKind::Small).unwrap();
    }
    let check = |store: &Store| {
        for chunk in 1..=SEGMENTS {
            assert_eq!(read(&store.reader(), chunk, 1, 4096).unwrap(), payload(chunk, 1, 4096), "chunk {chunk}");
        }
        assert!(!store.is_failed() && share.open_count() <= usize::try_from(DESCRIPTORS / 2).unwrap());
    };
    check(&store);
    drop(store);
    let (mut store, report) = Store::open(directory, DISK, options, alone()).unwrap();
    assert_eq!((report.records_count, report.damaged_bytes), (SEGMENTS, 0));
    check(&store);
    put_one(&mut store, SEGMENTS + 1, BULK);
}

#[test]
fn a_directory_that_was_taken_away_leaves_no_note_that_outlives_the_process() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    assert!(store.plan_spare().is_some());
    store.add_spare(Err(std::io::Error::from_raw_os_error(libc::ENOENT)));
    assert_eq!(read(&store.reader(), 1, 1, SMALL), Err(ShardError::DiskFailed));
    drop(store);
    let (store, _) = Store::open(disk.root(), DISK, options(), alone()).unwrap();
    assert_eq!(read(&store.reader(), 1, 1, SMALL).unwrap(), payload(1, 1, SMALL));
}
