//! What the store makes of a disk or a machine that fails it: which failures are a request's, which a shard's, which the
//! disk's.

use std::sync::Arc;

use holdfast_common::ChunkId;
use holdfast_storage::simulated::faults::Fault;
use holdfast_storage::{Directory, RealDirectory, descriptors};

use super::recover::create;
use super::segment::SegmentKind;
use super::tests::{BULK, DISK, SMALL, VOLUME, commit_one, fresh, options, payload, put, put_one, read};
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
        let (store, report) = Store::open(disk.fork().root(), DISK, options()).unwrap();
        assert_eq!((report.damaged_bytes, report.torn_count), (0, 0));
        assert_eq!(read(&store.reader(), 3, 1, bytes).unwrap(), payload(3, 1, bytes));
    }
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
    let (mut store, _) = Store::open(directory.clone(), DISK, options.clone()).unwrap();
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
    let (mut store, report) = Store::open(directory, DISK, options).unwrap();
    assert_eq!((report.records_count, report.damaged_bytes), (SEGMENTS, 0));
    check(&store);
    put_one(&mut store, SEGMENTS + 1, BULK);
}
