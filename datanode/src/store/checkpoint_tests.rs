//! What a checkpoint costs those who wait for the index, and that it is right though the store goes on meanwhile.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use holdfast_common::{ChunkId, Epoch, GroupId, Nonce};
use holdfast_storage::{Directory, DiskFile, FileSystemSpace, SimulatedDisk};
use parking_lot::Mutex;

use super::Store;
use super::checkpoint::CHECKPOINT_FILE;
use super::index::{Entry, Index, Location, SegmentState};
use super::recover::create;
use super::segment::{SegmentHeader, SegmentKind};
use super::tests::{
    BULK, DISK, SMALL, alone, commit_one, delete, fresh, key, options, payload, put, put_one, read, settle,
};
use super::types::{ChunkKey, Done, Request, ShardKey, Stripe};
use crate::disk::Disk;

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

/// A directory in which the file of a checkpoint is only made when the test has let go of its end of `gate`. Everything else goes
/// on.
struct Gated {
    inner: Arc<dyn Directory>,
    /// Told of every checkpoint that comes to the gate.
    begun: mpsc::Sender<()>,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl Directory for Gated {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if name.starts_with(CHECKPOINT_FILE) {
            // Errors say that the test's ends are gone: the gate is open.
            let _ = self.begun.send(());
            let _ = self.gate.lock().recv();
        }
        self.inner.create(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.inner.sync_names()
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        self.inner.make_directory(name)
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.inner.directory(name)
    }

    fn space(&self) -> io::Result<FileSystemSpace> {
        self.inner.space()
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        self.inner.identity()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }
}

/// Longest wait for what must come, on a machine that stands still for a while.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for an answer of the disk.
async fn answered<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, answer).await.expect("it is answered though a checkpoint is being written")
}

/// The checkpoint is at its first file operation for as long as the test likes.
#[tokio::test]
async fn puts_deletes_and_reads_are_answered_while_a_checkpoint_is_being_written() {
    let simulated = SimulatedDisk::default();
    create(&*simulated.root()).unwrap();
    let ((begun, begins), (open_gate, gate)) = (mpsc::channel(), mpsc::channel());
    let directory = Arc::new(Gated { inner: simulated.root(), begun, gate: Mutex::new(gate) });
    let (store, _) = Store::open(directory, DISK, options(), alone()).unwrap();
    let disk = Disk::start(DISK, store, None, None).unwrap();
    let write = |request| answered(disk.write(request, Instant::now() + 2 * PATIENCE));
    // The last ones make it due, at 50 records and a quarter of the shards.
    for chunk in 1..=70 {
        assert_eq!(write(Request::Put(put(chunk, 1, SMALL))).await, Ok(Done::default()));
    }
    begins.recv_timeout(PATIENCE).expect("a checkpoint is due");
    // More than what makes the next one due, and segments of both kinds.
    for chunk in 71..=200 {
        let bytes = if chunk % 10 == 0 { BULK } else { SMALL };
        assert_eq!(write(Request::Put(put(chunk, 1, bytes))).await, Ok(Done::default()));
        let reads = disk.run(move |reader| (read(reader, 1, 1, SMALL), read(reader, chunk, 1, bytes)));
        assert_eq!(answered(reads).await, Ok((Ok(payload(1, 1, SMALL)), Ok(payload(chunk, 1, bytes)))));
    }
    assert_eq!(write(delete(&[2])).await.map(|done| done.deleted_count), Ok(1));
    assert_eq!(answered(disk.run(|reader| reader.status().shards_count)).await, Ok(199));
    assert_eq!(begins.try_recv(), Err(mpsc::TryRecvError::Empty), "one at a time");
    assert!(!simulated.root().list().unwrap().iter().any(|name| name.starts_with(CHECKPOINT_FILE)));
    drop(open_gate);
    disk.stop();
    let (store, report) = Store::open(simulated.root(), DISK, options(), alone()).unwrap();
    assert!(report.checkpoint_used && report.damaged_bytes == 0, "{report:?}");
    assert_eq!(store.reader().status().shards_count, 199);
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
