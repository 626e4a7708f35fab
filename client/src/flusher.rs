//! From frozen generations to committed ones: packs many files into chunks, writes the chunks, commits.
//!
//! One task builds jobs from the queue in its order; jobs run at the same time, but a generation commits only after
//! those of its inode before it (R8). While small jobs are under way, what else is to be flushed gathers in the queue
//! and shares the next job: group commit for small files.

use crate::Error;
use crate::chunk_writer::ChunkWriter;
use crate::inode::{Freeze, Frozen, Inode};
use crate::metadata::Metadata;
use crate::packer::{PlannedChunk, pack};
use crate::quota::Quota;
use crate::space::Space;
use bytes::Bytes;
use holdfast_common::InodeId;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX};
use holdfast_proto::meta::{ChunkRecord, Code, Commit, CommitResult, Extent, FileCommit, mutation};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// Bytes of one job at most: four chunks.
const JOB_BYTES_MAX: usize = 4 * CHUNK_BYTES_MAX as usize;
/// Generations of one job at most: as many files as one commit answers for.
const JOB_GENERATIONS_MAX: usize = 512;
/// A job below this is small; fewer of them run at once, so that more files share one.
const SMALL_JOB_BYTES: usize = 1 << 20;
/// Weights: at most 4 large or 2 small jobs at once.
const JOB_PERMITS: u32 = 4;
const LARGE_JOB_PERMITS: u32 = 1;
const SMALL_JOB_PERMITS: u32 = 2;
/// Data held in memory at most this long after it was written (D6 allows 5 s after close).
const DIRTY_AGE_MAX: Duration = Duration::from_secs(3);
/// How often ages are looked at.
const AGE_INTERVAL: Duration = Duration::from_millis(500);
/// A job whose commit was refused with "write the chunk anew" is repeated at most this often.
const REWRITES_MAX: u32 = 5;

/// One generation in the queue.
#[derive(Debug, Clone)]
struct Work {
    inode: Arc<Inode>,
    frozen: Frozen,
}

/// Memory for dirty data, in bytes; writers wait here when it is used up.
#[derive(Debug)]
pub(crate) struct DirtyBudget {
    total_bytes: usize,
    free: Semaphore,
}

impl DirtyBudget {
    pub(crate) fn new(total_bytes: usize) -> Self {
        Self { total_bytes, free: Semaphore::new(total_bytes) }
    }

    /// Waits for room for a write of `bytes`.
    pub(crate) async fn take(&self, bytes: usize) {
        let count = u32::try_from(bytes.min(self.total_bytes)).expect("a write is not 4 GiB long");
        self.free.acquire_many(count).await.expect("never closed").forget();
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.free.add_permits(bytes);
    }

    /// Bytes taken now.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.free.available_permits()) as u64
    }

    /// Less than half is free: time to flush whatever is dirty.
    pub(crate) fn is_pressed(&self) -> bool {
        self.free.available_permits() < self.total_bytes / 2
    }
}

/// The write-back machinery of one mount.
pub(crate) struct Flusher {
    metadata: Arc<Metadata>,
    chunks: Arc<ChunkWriter>,
    pub(crate) budget: DirtyBudget,
    pub(crate) quota: Arc<Quota>,
    pub(crate) space: Space,
    queue: Mutex<VecDeque<Work>>,
    wake: Notify,
    /// Inodes with dirty data.
    dirty: Mutex<HashMap<InodeId, Arc<Inode>>>,
    permits: Arc<Semaphore>,
    stopped: AtomicBool,
}

impl Flusher {
    pub(crate) fn new(
        metadata: Arc<Metadata>,
        chunks: Arc<ChunkWriter>,
        quota: Arc<Quota>,
        space: Space,
        dirty_bytes: usize,
    ) -> Self {
        Self {
            metadata,
            chunks,
            budget: DirtyBudget::new(dirty_bytes),
            quota,
            space,
            queue: Mutex::default(),
            wake: Notify::new(),
            dirty: Mutex::default(),
            permits: Arc::new(Semaphore::new(JOB_PERMITS as usize)),
            stopped: AtomicBool::new(false),
        }
    }

    /// The inode has something dirty now.
    pub(crate) fn note_dirty(&self, inode: &Arc<Inode>) {
        self.dirty.lock().insert(inode.id, Arc::clone(inode));
    }

    /// Freezes and queues. Freezing and queueing are one step, so that generations are queued in their order.
    pub(crate) fn freeze(&self, inode: &Arc<Inode>, how: Freeze) {
        let mut queue = self.queue.lock();
        let frozen = inode.freeze(how);
        let queued = !frozen.is_empty();
        queue.extend(frozen.into_iter().map(|frozen| Work { inode: Arc::clone(inode), frozen }));
        drop(queue);
        if inode.dirty_since().is_none() {
            self.forget_if_clean(inode);
        }
        if queued {
            self.wake.notify_one();
        }
    }

    /// A write between the look and the removal puts the inode back itself, as it then is the first one dirty.
    fn forget_if_clean(&self, inode: &Arc<Inode>) {
        let mut dirty = self.dirty.lock();
        if inode.dirty_since().is_none() {
            dirty.remove(&inode.id);
        }
    }

    /// Makes everything written to the inode before this call visible and durable, and reports a lost write.
    pub(crate) async fn flush(&self, inode: &Arc<Inode>) -> Result<(), Error> {
        self.freeze(inode, Freeze::All);
        inode.wait_through(inode.frozen_through()).await;
        inode.take_error()
    }

    /// Starts flushing all that is dirty.
    pub(crate) fn freeze_everything(&self) {
        let inodes: Vec<_> = self.dirty.lock().values().cloned().collect();
        for inode in inodes {
            self.freeze(&inode, Freeze::All);
        }
    }

    /// Flushes all that is dirty, and waits. Errors stay with their inodes.
    pub(crate) async fn flush_everything(&self) {
        let inodes: Vec<_> = self.dirty.lock().values().cloned().collect();
        let queued: Vec<_> = self.queue.lock().iter().map(|w| Arc::clone(&w.inode)).collect();
        self.freeze_everything();
        for inode in inodes.into_iter().chain(queued) {
            inode.wait_through(inode.frozen_through()).await;
        }
        // Jobs under way hold their permits until they have ended.
        let _all = self.permits.acquire_many(JOB_PERMITS).await.expect("never closed");
    }

    /// Gives up all dirty data; every inode concerned reports it (D5: never silently lost).
    pub(crate) fn drop_everything(&self) {
        let inodes: Vec<_> = self.dirty.lock().drain().map(|(_, inode)| inode).collect();
        for inode in inodes {
            self.budget.give_back(inode.drop_dirty(Error::SessionLost));
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Builds and starts jobs until stopped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut ages = tokio::time::interval(AGE_INTERVAL);
        ages.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.stopped.load(Ordering::Acquire) {
            tokio::select! {
                () = self.wake.notified() => {}
                _ = ages.tick() => self.freeze_old(),
            }
            while let Some(weight) = self.next_weight() {
                let permit = Arc::clone(&self.permits).acquire_many_owned(weight).await.expect("never closed");
                let job = self.next_job();
                let flusher = Arc::clone(&self);
                tokio::spawn(async move {
                    flusher.run_job(job).await;
                    drop(permit);
                });
            }
        }
    }

    fn freeze_old(&self) {
        let now = Instant::now();
        let old: Vec<_> = self
            .dirty
            .lock()
            .values()
            .filter(|i| i.dirty_since().is_some_and(|since| now.duration_since(since) > DIRTY_AGE_MAX))
            .cloned()
            .collect();
        for inode in old {
            self.freeze(&inode, Freeze::All);
        }
    }

    fn next_weight(&self) -> Option<u32> {
        let queue = self.queue.lock();
        let bytes: usize = queue.iter().take(JOB_GENERATIONS_MAX).map(|w| w.frozen.ranges.bytes()).sum();
        match bytes {
            0 => None,
            b if b < SMALL_JOB_BYTES => Some(SMALL_JOB_PERMITS),
            _ => Some(LARGE_JOB_PERMITS),
        }
    }

    /// Takes from the front of the queue what fits one job, but always one generation, and never two of one inode: the
    /// second waits for the first to be committed, which would then wait for its own job.
    fn next_job(&self) -> Vec<Work> {
        let mut queue = self.queue.lock();
        let mut job: Vec<Work> = Vec::new();
        let mut inodes = HashSet::new();
        let (mut bytes, mut extents) = (0, 0);
        while let Some(next) = queue.front() {
            bytes += next.frozen.ranges.bytes();
            extents += next.frozen.ranges.ranges.len();
            let full = bytes > JOB_BYTES_MAX || extents > COMMIT_EXTENTS_MAX / 2 || job.len() >= JOB_GENERATIONS_MAX;
            if (full && !job.is_empty()) || !inodes.insert(next.inode.id) {
                break;
            }
            job.extend(queue.pop_front());
        }
        job
    }

    async fn run_job(&self, mut job: Vec<Work>) {
        let mut rewrites = 0;
        while !job.is_empty() {
            job = match self.try_job(&job).await {
                Ok(again) if again.is_empty() || rewrites < REWRITES_MAX => again,
                Ok(again) => {
                    self.give_up(&again, &Error::WriteLost("the table refused its chunks again and again".to_owned()));
                    return;
                }
                Err(error) => {
                    self.give_up(&job, &error);
                    return;
                }
            };
            rewrites += 1;
        }
    }

    fn give_up(&self, job: &[Work], error: &Error) {
        for work in job {
            tracing::warn!(inode = %work.inode.id, %error, "written data is lost");
            work.inode.lost(work.frozen.generation, error.clone());
            self.release(work);
        }
    }

    fn release(&self, work: &Work) {
        let bytes = work.frozen.ranges.bytes();
        self.budget.give_back(bytes);
        self.space.flushed(bytes);
        self.quota.flushed(work.frozen.charged_bytes);
    }

    /// Writes and commits; answers the generations that must be written anew.
    async fn try_job(&self, job: &[Work]) -> Result<Vec<Work>, Error> {
        let plan = pack(job.iter().map(|w| w.frozen.ranges.ranges.as_slice()));
        let chunks = self.write_chunks(&plan).await?;
        for work in job {
            work.inode.wait_through(work.frozen.generation).await;
        }
        let commit = self.commit_of(job, &plan, &chunks);
        let extents: Vec<Vec<Extent>> = commit.files.iter().map(|f| f.extents.clone()).collect();
        let response = self.metadata.mutate(mutation::Op::Commit(commit)).await?;
        let mut again = Vec::new();
        for ((work, result), extents) in job.iter().zip(response.commits).zip(extents) {
            if !self.take_result(work, result, &chunks, &extents) {
                again.push(work.clone());
            }
        }
        Ok(again)
    }

    /// Answers whether the generation has ended.
    fn take_result(&self, work: &Work, result: CommitResult, chunks: &[ChunkRecord], extents: &[Extent]) -> bool {
        let code = result.code();
        match code {
            Code::Ok => {
                work.inode.committed(work.frozen.generation, result.attr, chunks, extents);
                self.release(work);
                true
            }
            // Somebody truncated meanwhile, or the chunk cannot be used: written anew, under what holds now.
            Code::Truncated | Code::RewriteChunk => {
                if let Some(attributes) = result.attr {
                    work.inode.refresh(attributes);
                }
                false
            }
            code => {
                self.give_up(std::slice::from_ref(work), &Error::Refused { code, detail: "commit".to_owned() });
                true
            }
        }
    }

    async fn write_chunks(&self, plan: &[PlannedChunk]) -> Result<Vec<ChunkRecord>, Error> {
        let session = self.metadata.session();
        if let [only] = plan {
            return Ok(vec![self.chunks.write(&only.pieces, session).await?]);
        }
        let mut writes = JoinSet::new();
        for (index, chunk) in plan.iter().enumerate() {
            let writer = Arc::clone(&self.chunks);
            let pieces: Vec<Bytes> = chunk.pieces.clone();
            writes.spawn(async move { (index, writer.write(&pieces, session).await) });
        }
        let mut records: Vec<Option<ChunkRecord>> = vec![None; plan.len()];
        while let Some(joined) = writes.join_next().await {
            let (index, record) = joined.map_err(|e| Error::WriteLost(e.to_string()))?;
            records[index] = Some(record?);
        }
        Ok(records.into_iter().flatten().collect())
    }

    fn commit_of(&self, job: &[Work], plan: &[PlannedChunk], chunks: &[ChunkRecord]) -> Commit {
        let mut files: Vec<FileCommit> = job
            .iter()
            .map(|work| FileCommit {
                inode: work.inode.id.0,
                truncate_generation: work.inode.truncate_generation(),
                extents: Vec::new(),
                size_at_least: work.frozen.ranges.end(),
                mtime_ns: work.frozen.mtime_ns,
                quota_bytes: if self.quota.is_limited() { work.frozen.charged_bytes } else { 0 },
                kill_suid_sgid: work.frozen.kill_suid_sgid,
            })
            .collect();
        for (planned, record) in plan.iter().zip(chunks) {
            for extent in &planned.extents {
                files[extent.file].extents.push(Extent {
                    file_offset: extent.file_offset,
                    length_bytes: u64::from(extent.length_bytes),
                    chunk: record.chunk,
                    chunk_offset: extent.chunk_offset,
                });
            }
        }
        Commit { chunks: chunks.to_vec(), files }
    }
}
