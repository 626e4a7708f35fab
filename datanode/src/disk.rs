//! The threads of one disk: one that writes, with group commit over a bounded queue, and a few that read. Nothing here
//! runs on a tokio worker; callers wait for a oneshot.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_common::{DiskId, NodeId};
use holdfast_node::superblock::SuperblockError;
use holdfast_storage::{Directory, DirectoryLock};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::store::checkpoint::Frozen;
use crate::store::segment::Segment;
use crate::store::types::{Outcome, Request, ShardError};
use crate::store::{Reader, Store, make_segment};
use crate::superblock::DiskSuperblock;

/// Requests waiting for the writer; more are answered `Busy`.
pub const WRITE_QUEUE_MAX: usize = 4096;
/// Payload bytes waiting for the writer; more are answered `Busy`.
pub const WRITE_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Requests of one group commit.
const BATCH_REQUESTS_MAX: usize = 512;
/// Payload bytes of one group commit: what the first of a batch waits for beyond its own.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Reads waiting for a thread; more are answered `Busy`.
pub const READ_QUEUE_MAX: usize = 8192;
/// Threads that read from a disk.
const READ_THREADS: usize = 3;
/// With work waiting all the time, upkeep runs once in this many batches.
const BATCHES_PER_UPKEEP: u32 = 16;
/// A disk without requests for this long is idle.
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// Sleep of an idle writer between looks at upkeep.
const IDLE_SLEEP: Duration = Duration::from_secs(1);

/// Reason of a disk whose writer met a broken invariant.
const WRITER_PANICKED: &str = "its writer panicked; the next start of the node opens it again";

struct Job {
    request: Request,
    bytes: usize,
    deadline: Instant,
    reply: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct WriteQueue {
    jobs: VecDeque<Job>,
    bytes: usize,
    stopping: bool,
    /// A prepared segment waits for the writer.
    nudged: bool,
}

#[derive(Default)]
struct WriteSide {
    queue: Mutex<WriteQueue>,
    wake: Condvar,
}

type ReadJob = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct ReadSide {
    queue: Mutex<(VecDeque<ReadJob>, bool)>,
    wake: Condvar,
}

/// Directory of a disk, with the superblock that was there when it was opened.
pub(crate) struct Home {
    path: PathBuf,
    directory: Arc<dyn Directory>,
    identity: (u64, u64),
    superblock: DiskSuperblock,
}

/// Reason why a disk's directory is not the one that it was opened from.
#[derive(Debug, thiserror::Error)]
enum DiskLost {
    #[error("{} is gone", .0.display())]
    Gone(PathBuf),
    #[error("another directory is at {}", .0.display())]
    Replaced(PathBuf),
    #[error("{} is disk {disk} of node {node} now", path.display())]
    Taken { path: PathBuf, disk: DiskId, node: NodeId },
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
}

impl Home {
    /// Looks at what is there now. Blocks.
    ///
    /// # Errors
    /// The directory or its superblock cannot be read.
    pub(crate) fn of(path: &Path, directory: Arc<dyn Directory>) -> Result<Self, SuperblockError> {
        let io_error = |source| SuperblockError::Io { path: path.to_owned(), source };
        let identity = directory.identity().map_err(io_error)?;
        let superblock = DiskSuperblock::read(path)?;
        Ok(Self { path: path.to_owned(), directory, identity, superblock })
    }

    /// Looks whether it is still there: the store would serve on through open files for ever. Blocks.
    ///
    /// # Errors
    /// [`DiskLost`]. A directory or superblock that cannot be read says nothing.
    fn check(&self) -> Result<(), DiskLost> {
        let path = || self.path.clone();
        match self.directory.identity() {
            Ok(identity) if identity == self.identity => {}
            Ok(_) => return Err(DiskLost::Replaced(path())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(DiskLost::Gone(path())),
            Err(_) => return Ok(()),
        }
        match DiskSuperblock::read(&self.path) {
            Ok(found) if found == self.superblock => Ok(()),
            Ok(found) => Err(DiskLost::Taken { path: path(), disk: found.disk, node: found.node }),
            Err(error @ (SuperblockError::NotFormatted { .. } | SuperblockError::OtherKind { .. })) => {
                Err(error.into())
            }
            Err(_) => Ok(()),
        }
    }
}

pub(crate) struct Disk {
    pub(crate) id: DiskId,
    home: Option<Home>,
    reader: Reader,
    writes: Arc<WriteSide>,
    reads: Arc<ReadSide>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Disk {
    /// Starts the threads of an open store. The writer keeps the disk's lock until it has ended: a node that is dropped
    /// rather than shut down still writes its checkpoint.
    ///
    /// # Errors
    /// The system has no more threads.
    pub(crate) fn start(
        id: DiskId,
        store: Store,
        home: Option<Home>,
        lock: Option<DirectoryLock>,
    ) -> std::io::Result<Arc<Self>> {
        let reader = store.reader();
        let (writes, reads) = (Arc::new(WriteSide::default()), Arc::new(ReadSide::default()));
        let mut threads = Vec::new();
        let mut writer = Writer {
            store,
            side: writes.clone(),
            prepared: mpsc::channel(),
            preparing: None,
            written: mpsc::channel(),
            checkpointing: None,
            _lock: lock,
        };
        writer.store.write_checkpoints_elsewhere();
        let named = |name: String| std::thread::Builder::new().name(name);
        let (watched, side) = (reader.clone(), writes.clone());
        let write = move || {
            if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                watched.retire(WRITER_PANICKED);
                side.close();
            }
        };
        threads.push(named(format!("disk{id}-write")).spawn(write)?);
        for _ in 0..READ_THREADS {
            let side = reads.clone();
            threads.push(named(format!("disk{id}-read")).spawn(move || side.run())?);
        }
        Ok(Arc::new(Self { id, home, reader, writes, reads, threads: Mutex::new(threads) }))
    }

    /// Takes the disk out of service if its directory is gone or another. Blocks.
    pub(crate) fn look_at_home(&self) {
        if !self.reader.is_failed()
            && let Some(Err(why)) = self.home.as_ref().map(Home::check)
        {
            self.reader.retire(&why.to_string());
        }
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Queues a request and waits until it is durable or refused.
    pub(crate) async fn write(&self, request: Request, deadline: Instant) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let bytes = match &request {
            Request::Put(put) => put.payload.len(),
            Request::Delete { .. } | Request::SetFloor { .. } | Request::DropVolume { .. } => 0,
        };
        let pushed = self.writes.push(Job { request, bytes, deadline, reply });
        let outcome = match pushed {
            Ok(()) => answer.await.unwrap_or(Err(ShardError::Busy)),
            Err(error) => Err(error),
        };
        // A writer that is gone answers nobody: the node stops, or the disk is out of service.
        if outcome == Err(ShardError::Busy) && self.reader.is_failed() { Err(ShardError::DiskFailed) } else { outcome }
    }

    /// Runs `work` on a thread that may block on the disk.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<T, ShardError> {
        self.start_run(work)?.await.map_err(|_| ShardError::Busy)
    }

    /// Like [`Disk::run`], but it is queued when this returns, whether or not anybody waits.
    pub(crate) fn start_run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, ShardError> {
        let (reply, answer) = oneshot::channel();
        let reader = self.reader.clone();
        self.reads.push(Box::new(move || {
            let _ = reply.send(work(&reader));
        }))?;
        Ok(answer)
    }

    /// Finishes what is queued, writes a checkpoint and ends the threads. Blocks.
    pub(crate) fn stop(&self) {
        self.writes.queue.lock().stopping = true;
        self.writes.wake.notify_all();
        self.reads.queue.lock().1 = true;
        self.reads.wake.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!(disk = self.id.0, "a thread of the disk had panicked");
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.writes.queue.lock().stopping = true;
        self.writes.wake.notify_all();
        self.reads.queue.lock().1 = true;
        self.reads.wake.notify_all();
    }
}

impl WriteSide {
    fn push(&self, job: Job) -> Result<(), ShardError> {
        let mut queue = self.queue.lock();
        let full = queue.jobs.len() >= WRITE_QUEUE_MAX || queue.bytes + job.bytes > WRITE_QUEUE_BYTES_MAX;
        if full || queue.stopping {
            return Err(ShardError::Busy);
        }
        queue.bytes += job.bytes;
        queue.jobs.push_back(job);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    /// The next batch; empty when `sleep` passed, the writer was nudged or is to stop.
    fn take(&self, sleep: Duration) -> (Vec<Job>, bool) {
        let mut queue = self.queue.lock();
        if queue.jobs.is_empty() && !queue.stopping && !queue.nudged {
            self.wake.wait_for(&mut queue, sleep);
        }
        queue.nudged = false;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_REQUESTS_MAX
            && let Some(job) = queue.jobs.front()
            && (batch.is_empty() || bytes + job.bytes <= BATCH_BYTES_MAX)
        {
            bytes += job.bytes;
            batch.extend(queue.jobs.pop_front());
        }
        queue.bytes -= bytes;
        (batch, queue.stopping)
    }

    fn is_empty(&self) -> bool {
        let queue = self.queue.lock();
        queue.jobs.is_empty() && !queue.stopping
    }

    /// Refuses everything from now on, and lets go of what waits, which tells those who wait.
    fn close(&self) {
        let mut queue = self.queue.lock();
        queue.stopping = true;
        queue.bytes = 0;
        queue.jobs.clear();
    }

    fn nudge(&self) {
        self.queue.lock().nudged = true;
        self.wake.notify_one();
    }
}

impl ReadSide {
    fn push(&self, job: ReadJob) -> Result<(), ShardError> {
        let mut queue = self.queue.lock();
        if queue.0.len() >= READ_QUEUE_MAX || queue.1 {
            return Err(ShardError::Busy);
        }
        queue.0.push_back(job);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn run(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                while queue.0.is_empty() && !queue.1 {
                    self.wake.wait(&mut queue);
                }
                match queue.0.pop_front() {
                    Some(job) => job,
                    None => return,
                }
            };
            job();
        }
    }
}

type Prepared = std::io::Result<Arc<Segment>>;
/// A checkpoint, and whether it could be written.
type Written = (Frozen, std::io::Result<()>);

struct Writer {
    store: Store,
    side: Arc<WriteSide>,
    prepared: (mpsc::Sender<Prepared>, mpsc::Receiver<Prepared>),
    preparing: Option<JoinHandle<()>>,
    written: (mpsc::Sender<Written>, mpsc::Receiver<Written>),
    checkpointing: Option<JoinHandle<()>>,
    _lock: Option<DirectoryLock>,
}

impl Writer {
    fn run(mut self) {
        let mut last_request = Instant::now();
        let mut batches = 0;
        let mut sleep = Duration::ZERO;
        loop {
            let (batch, stopping) = self.side.take(sleep);
            if !batch.is_empty() {
                self.commit(batch);
                last_request = Instant::now();
                batches += 1;
            } else if stopping {
                break;
            }
            self.prepare_ahead();
            if batches % BATCHES_PER_UPKEEP == 0 || self.store.is_behind() {
                self.store.maintain(false);
            }
            let mut idle = last_request.elapsed() >= IDLE_AFTER;
            while self.side.is_empty() && self.store.maintain(idle) {
                idle = last_request.elapsed() >= IDLE_AFTER;
            }
            self.checkpoint_ahead();
            sleep = if idle { IDLE_SLEEP } else { IDLE_AFTER };
        }
        if let Some(preparing) = self.preparing.take() {
            let _ = preparing.join();
            self.adopt_prepared();
        }
        if let Some(checkpointing) = self.checkpointing.take() {
            let _ = checkpointing.join();
            self.adopt_written();
        }
        if self.store.is_failed() {
            // The last chance to write down why.
            self.store.maintain(true);
        } else if self.store.checkpoint().is_err() {
            tracing::warn!("no checkpoint could be written; the next start scans");
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let now = Instant::now();
        let (mut requests, mut replies) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            if job.deadline <= now {
                // Nobody waits for it any more, and nothing of it was done.
                let _ = job.reply.send(Err(ShardError::Busy));
                continue;
            }
            requests.push(job.request);
            replies.push(job.reply);
        }
        let committed = catch_unwind(AssertUnwindSafe(|| self.store.commit(&requests)));
        let outcomes = committed.unwrap_or_else(|panic| {
            // Before anybody is let go: who then asks why must find the disk out of service.
            self.store.reader().retire(WRITER_PANICKED);
            replies.drain(..).for_each(|reply| {
                let _ = reply.send(Err(ShardError::DiskFailed));
            });
            resume_unwind(panic)
        });
        for (outcome, reply) in outcomes.into_iter().zip(replies) {
            let _ = reply.send(outcome);
        }
    }

    /// Has the next segment of small shards filled with zeros before it is needed.
    fn prepare_ahead(&mut self) {
        self.adopt_prepared();
        let Some(header) = self.store.plan_spare() else { return };
        let (directory, sender) = (self.store.directory(), self.prepared.0.clone());
        let side = self.side.clone();
        let prepare = move || {
            let _ = sender.send(make_segment(&*directory, header, true));
            side.nudge();
        };
        match std::thread::Builder::new().name("disk-prepare".to_owned()).spawn(prepare) {
            Ok(thread) => self.preparing = Some(thread),
            // Without a thread the segment is made when it is needed, and its syncs are slower.
            Err(error) => self.store.give_up_spare(&error),
        }
    }

    /// Has a checkpoint written that is due, from a copy of the index: encoding millions of shards takes seconds.
    fn checkpoint_ahead(&mut self) {
        self.adopt_written();
        let Some(frozen) = self.store.plan_checkpoint() else { return };
        let (sender, side) = (self.written.0.clone(), self.side.clone());
        let write = move || {
            let written = frozen.write();
            let _ = sender.send((frozen, written));
            side.nudge();
        };
        match std::thread::Builder::new().name("disk-checkpoint".to_owned()).spawn(write) {
            Ok(thread) => self.checkpointing = Some(thread),
            Err(error) => {
                self.store.give_up_checkpoint();
                tracing::warn!(%error, "no checkpoint is written for now");
            }
        }
    }

    fn adopt_written(&mut self) {
        while let Ok((frozen, written)) = self.written.1.try_recv() {
            self.checkpointing = None;
            if let Err(error) = self.store.end_checkpoint(&frozen, written) {
                tracing::warn!(%error, "a checkpoint could not be written, or segments not be used again");
            }
        }
    }

    fn adopt_prepared(&mut self) {
        while let Ok(made) = self.prepared.1.try_recv() {
            self.preparing = None;
            self.store.add_spare(made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::recover::create;
    use crate::store::tests::{DISK, SMALL, alone, options, put, read};
    use holdfast_storage::SimulatedDisk;

    #[tokio::test]
    async fn a_panic_of_the_writer_takes_the_disk_out_and_answers_everybody() {
        let simulated = SimulatedDisk::default();
        create(&*simulated.root()).unwrap();
        let (store, _) = Store::open(simulated.root(), DISK, options(), alone()).unwrap();
        let disk = Disk::start(DISK, store, None, None).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        disk.write(Request::Put(put(1, 1, SMALL)), deadline).await.unwrap();
        // No caller can make such a header; the writer relies on it.
        let mut impossible = put(2, 1, SMALL);
        impossible.meta.stripe.slots = vec![0; 300].into();
        let late = disk.write(Request::Put(put(3, 1, SMALL)), deadline);
        let failing = disk.write(Request::Put(impossible), deadline);
        assert_eq!(tokio::join!(failing, late), (Err(ShardError::DiskFailed), Err(ShardError::DiskFailed)));
        assert_eq!(read(disk.reader(), 1, 1, SMALL), Err(ShardError::DiskFailed));
        assert!(disk.reader().status().failed);
        disk.stop();
        // What was answered is there after a restart, and no note keeps the disk from serving again.
        let (store, _) = Store::open(simulated.root(), DISK, options(), alone()).unwrap();
        assert!(read(&store.reader(), 1, 1, SMALL).is_ok());
    }
}
