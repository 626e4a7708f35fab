//! The threads of one disk: one that writes, with group commit over a bounded queue, and a few that read. Nothing here
//! runs on a tokio worker; callers wait for a oneshot.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_common::DiskId;
use holdfast_storage::durable::DirectoryLock;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::store::segment::Segment;
use crate::store::types::{Outcome, Request, ShardError};
use crate::store::{Reader, Store, make_segment};

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
/// How long an idle writer sleeps between looks at upkeep.
const IDLE_SLEEP: Duration = Duration::from_secs(1);

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

/// A disk in service.
pub(crate) struct Disk {
    pub(crate) id: DiskId,
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
    pub(crate) fn start(id: DiskId, store: Store, lock: Option<DirectoryLock>) -> std::io::Result<Arc<Self>> {
        let reader = store.reader();
        let (writes, reads) = (Arc::new(WriteSide::default()), Arc::new(ReadSide::default()));
        let mut threads = Vec::new();
        let writer = Writer { store, side: writes.clone(), prepared: mpsc::channel(), preparing: None, _lock: lock };
        let named = |name: String| std::thread::Builder::new().name(name);
        threads.push(named(format!("disk{id}-write")).spawn(move || writer.run())?);
        for _ in 0..READ_THREADS {
            let side = reads.clone();
            threads.push(named(format!("disk{id}-read")).spawn(move || side.run())?);
        }
        Ok(Arc::new(Self { id, reader, writes, reads, threads: Mutex::new(threads) }))
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
        self.writes.push(Job { request, bytes, deadline, reply })?;
        // The writer is gone only when the node stops.
        answer.await.unwrap_or(Err(ShardError::Busy))
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

struct Writer {
    store: Store,
    side: Arc<WriteSide>,
    prepared: (mpsc::Sender<Prepared>, mpsc::Receiver<Prepared>),
    preparing: Option<JoinHandle<()>>,
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
            sleep = if idle { IDLE_SLEEP } else { IDLE_AFTER };
        }
        if let Some(preparing) = self.preparing.take() {
            let _ = preparing.join();
            self.adopt_prepared();
        }
        if !self.store.is_failed() && self.store.checkpoint().is_err() {
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
        for (outcome, reply) in self.store.commit(&requests).into_iter().zip(replies) {
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

    fn adopt_prepared(&mut self) {
        while let Ok(made) = self.prepared.1.try_recv() {
            self.preparing = None;
            self.store.add_spare(made);
        }
    }
}
