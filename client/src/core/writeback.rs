//! From frozen generations to committed ones: the queue, and the jobs that pack many files into chunks. Pure.
//!
//! Jobs are built from the queue in its order and run at the same time, but a generation commits only after those of its
//! inode before it (R8). While small jobs are under way, what else is to be flushed gathers in the queue and shares the next
//! job: group commit for small files.

use super::packer::PlannedChunk;
use super::time::Moment;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX};
use holdfast_common::{InodeId, Pauses};
use holdfast_proto::meta::{ChunkRecord, Extent};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Most bytes of one job: four chunks.
const JOB_BYTES_MAX: usize = 4 * CHUNK_BYTES_MAX as usize;
/// Generations of one job at most: as many files as one commit answers for.
const JOB_GENERATIONS_MAX: usize = 512;
/// A job below this is small; fewer of them run at once, so that more files share one.
const SMALL_JOB_BYTES: usize = 1 << 20;
/// Weights: at most 4 large or 2 small jobs at once.
const JOB_PERMITS: u32 = 4;
const LARGE_JOB_PERMITS: u32 = 1;
const SMALL_JOB_PERMITS: u32 = 2;
/// Pause before what was refused is written anew; doubles.
const REWRITE_PAUSE: Duration = Duration::from_millis(20);
const REWRITE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// One generation in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) inode: InodeId,
    pub(crate) generation: u64,
    pub(crate) bytes: usize,
    pub(crate) pieces_count: usize,
}

/// A job, over all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobId(u64);

/// Event that a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobState {
    /// Until so many chunks are durable.
    Writing { left: usize },
    /// For the generations and changes before its own.
    Ready,
    /// For the table's answer.
    Committing,
    /// To be written anew: not before then, not before so many questions for attributes are answered, and if `groups` not
    /// before the groups are known anew.
    Refused { until: Moment, questions: usize, groups: bool },
}

/// Generations on their way together.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) works: Vec<Work>,
    pub(crate) plan: Vec<PlannedChunk>,
    /// The chunks of the plan, as they become durable.
    pub(crate) chunks: Vec<Option<ChunkRecord>>,
    pub(crate) state: JobState,
    weight: u32,
    pauses: Pauses,
}

impl Job {
    /// The extents of each work, in the order of works.
    pub(crate) fn extents(&self) -> Vec<Vec<Extent>> {
        let mut files = vec![Vec::new(); self.works.len()];
        for (planned, record) in self.plan.iter().zip(self.chunks.iter().flatten()) {
            for extent in &planned.extents {
                files[extent.file].push(Extent {
                    file_offset: extent.file_offset.0,
                    length_bytes: u64::from(extent.length_bytes),
                    chunk: record.chunk,
                    chunk_offset: extent.chunk_offset,
                });
            }
        }
        files
    }

    /// Until when it waits to be written anew, if only time is wanting.
    fn rests_until(&self) -> Option<Moment> {
        match self.state {
            JobState::Refused { until, questions: 0, groups: false } => Some(until),
            JobState::Refused { .. } | JobState::Writing { .. } | JobState::Ready | JobState::Committing => None,
        }
    }

    /// The pause before the next attempt.
    pub(crate) fn next_pause(&mut self) -> Duration {
        self.pauses.next_pause()
    }
}

/// The queue and the jobs of one mount.
#[derive(Debug)]
pub(crate) struct WriteBack {
    queue: VecDeque<Work>,
    jobs: BTreeMap<JobId, Job>,
    next_job: u64,
    permits: u32,
}

impl Default for WriteBack {
    fn default() -> Self {
        Self { queue: VecDeque::new(), jobs: BTreeMap::new(), next_job: 0, permits: JOB_PERMITS }
    }
}

impl WriteBack {
    pub(crate) fn push(&mut self, work: Work) {
        self.queue.push_back(work);
    }

    /// The next job that may run now.
    pub(crate) fn start_job(&mut self) -> Option<(JobId, &mut Job)> {
        let bytes: usize = self.queue.iter().take(JOB_GENERATIONS_MAX).map(|work| work.bytes).sum();
        let weight = if bytes < SMALL_JOB_BYTES { SMALL_JOB_PERMITS } else { LARGE_JOB_PERMITS };
        if self.queue.is_empty() || self.permits < weight {
            return None;
        }
        self.permits -= weight;
        let works = self.take_works();
        let id = JobId(self.next_job);
        self.next_job += 1;
        let job = Job {
            works,
            plan: Vec::new(),
            chunks: Vec::new(),
            state: JobState::Writing { left: 0 },
            weight,
            pauses: Pauses::new(REWRITE_PAUSE, REWRITE_PAUSE_MAX),
        };
        Some((id, self.jobs.entry(id).or_insert(job)))
    }

    /// Takes from the front of the queue what fits one job, but always one generation, and never two of one inode: the
    /// second waits for the first to be committed, which would then wait for its own job.
    fn take_works(&mut self) -> Vec<Work> {
        let mut works: Vec<Work> = Vec::new();
        let mut inodes = BTreeSet::new();
        let (mut bytes, mut pieces_count) = (0, 0);
        while let Some(next) = self.queue.front() {
            bytes += next.bytes;
            pieces_count += next.pieces_count;
            let full =
                bytes > JOB_BYTES_MAX || pieces_count > COMMIT_EXTENTS_MAX / 2 || works.len() >= JOB_GENERATIONS_MAX;
            if (full && !works.is_empty()) || !inodes.insert(next.inode) {
                break;
            }
            works.extend(self.queue.pop_front());
        }
        works
    }

    pub(crate) fn job(&mut self, id: JobId) -> Option<&mut Job> {
        self.jobs.get_mut(&id)
    }

    /// Jobs that wait for their turn to commit, the oldest first.
    pub(crate) fn ready(&self) -> Vec<JobId> {
        self.jobs.iter().filter(|(_, job)| job.state == JobState::Ready).map(|(id, _)| *id).collect()
    }

    /// Refused jobs whose pause is over and whose questions are answered.
    pub(crate) fn rested(&self, now: Moment) -> Vec<JobId> {
        self.jobs
            .iter()
            .filter(|(_, job)| job.rests_until().is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The groups are known anew: no job need wait for them.
    pub(crate) fn groups_learnt(&mut self) {
        for job in self.jobs.values_mut() {
            if let JobState::Refused { groups, .. } = &mut job.state {
                *groups = false;
            }
        }
    }

    /// Time at which [`WriteBack::rested`] has another one.
    pub(crate) fn wake(&self) -> Option<Moment> {
        self.jobs.values().filter_map(Job::rests_until).min()
    }

    pub(crate) fn end(&mut self, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.permits += job.weight;
        Some(job)
    }

    /// Forgets everything, after the session was lost.
    pub(crate) fn clear(&mut self) {
        *self = Self { next_job: self.next_job, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(inode: u64, generation: u64, bytes: usize) -> Work {
        Work { inode: InodeId(inode), generation, bytes, pieces_count: 1 }
    }

    fn works(back: &mut WriteBack) -> Vec<(u64, u64)> {
        back.start_job()
            .map(|(_, job)| job.works.iter().map(|w| (w.inode.0, w.generation)).collect())
            .unwrap_or_default()
    }

    #[test]
    fn small_files_share_a_job_and_two_generations_of_one_do_not() {
        let mut back = WriteBack::default();
        for work in [work(1, 0, 10), work(2, 0, 10), work(1, 1, 10), work(3, 0, 10)] {
            back.push(work);
        }
        assert_eq!(works(&mut back), [(1, 0), (2, 0)]);
        assert_eq!(works(&mut back), [(1, 1), (3, 0)]);
    }

    #[test]
    fn two_small_or_four_large_jobs_run_at_once() {
        let mut back = WriteBack::default();
        (0..6).for_each(|inode| back.push(work(inode, 0, JOB_BYTES_MAX)));
        let ids: Vec<_> = std::iter::from_fn(|| back.start_job().map(|(id, _)| id)).collect();
        assert_eq!(ids.len(), 4);
        back.end(ids[0]);
        assert_eq!(works(&mut back), [(4, 0)]);
        let mut back = WriteBack::default();
        (0..3).for_each(|generation| back.push(work(1, generation, 10)));
        assert_eq!(std::iter::from_fn(|| back.start_job().map(|_| ())).count(), 2);
    }

    #[test]
    fn a_job_is_bounded_by_its_bytes_pieces_and_generations_and_never_empty() {
        let mut back = WriteBack::default();
        back.push(work(1, 0, JOB_BYTES_MAX * 2));
        back.push(work(2, 0, JOB_BYTES_MAX));
        back.push(work(3, 0, 1));
        assert_eq!(works(&mut back), [(1, 0)], "one that is too large goes alone");
        assert_eq!(works(&mut back), [(2, 0)]);
        let mut back = WriteBack::default();
        for inode in 1..=3 {
            back.push(Work { pieces_count: COMMIT_EXTENTS_MAX / 4, ..work(inode, 0, 10) });
        }
        assert_eq!(works(&mut back), [(1, 0), (2, 0)], "half of what a commit takes, as cutting adds some");
        let mut back = WriteBack::default();
        (0..JOB_GENERATIONS_MAX as u64 + 5).for_each(|inode| back.push(work(inode, 0, 1)));
        assert_eq!((works(&mut back).len(), works(&mut back).len()), (JOB_GENERATIONS_MAX, 5));
    }
}
