//! Write-back: freezing, jobs, commits, and what becomes of data that was refused or lost.

use super::effects::Note;
use super::inode::{Dropped, Freeze, Inode, Waiter};
use super::packer::pack;
use super::sabotage::Sabotage;
use super::writeback::{Job, JobId, JobState, Work};
use super::{Asker, Core, code_of};
use crate::Error;
use holdfast_common::InodeId;
use holdfast_proto::meta::{
    ChunkRecord, Code, Commit, CommitResult, Extent, FileCommit, GetAttr, MutateResponse, ReadResponse, mutation,
    read_request,
};
use std::time::Duration;

/// Written data is on its way to the disks after this (D6).
pub(super) const DIRTY_AGE_MAX: Duration = Duration::from_secs(1);

impl Core {
    /// Freezes and queues, in one step, so that generations are queued in their order.
    pub(super) fn freeze(&mut self, id: InodeId, how: Freeze) {
        let Some(inode) = self.files.inode(id) else { return };
        let since = inode.dirty_since();
        let generations = inode.freeze(how);
        if let Some(since) = since.filter(|_| inode.dirty_since().is_none()) {
            self.dirty.remove(&(since, id));
        }
        self.queue(id, generations);
    }

    fn queue(&mut self, id: InodeId, generations: impl IntoIterator<Item = u64>) {
        let Some(inode) = self.files.inode(id) else { return };
        for generation in generations {
            if let Some(frozen) = inode.frozen(generation) {
                let (bytes, pieces_count) = (frozen.ranges.bytes(), frozen.ranges.ranges.len());
                self.writeback.push(Work { inode: id, generation, bytes, pieces_count });
            }
        }
    }

    /// Starts flushing all that is dirty.
    pub(super) fn freeze_everything(&mut self) {
        for (_, inode) in std::mem::take(&mut self.dirty) {
            self.freeze(inode, Freeze::All);
        }
    }

    pub(super) fn freeze_old(&mut self) {
        while let Some((_, inode)) = self.dirty.first().copied().filter(|(since, _)| *since + DIRTY_AGE_MAX <= self.now)
        {
            self.freeze(inode, Freeze::All);
        }
    }

    pub(super) fn start_jobs(&mut self) {
        while let Some((id, job)) = self.writeback.start_job() {
            let works = job.works.clone();
            self.write_job(id, &works);
        }
    }

    /// Packs the works into chunks and starts writing them.
    fn write_job(&mut self, id: JobId, works: &[Work]) {
        let frozen: Vec<_> = works
            .iter()
            .map(|work| {
                let inode = self.files.inode(work.inode);
                let ranges = inode.and_then(|inode| inode.frozen(work.generation).map(|frozen| frozen.ranges.clone()));
                ranges.unwrap_or_default()
            })
            .collect();
        let mut plan = pack(frozen.iter().map(|ranges| ranges.ranges.as_slice()));
        let mut writes = Vec::with_capacity(plan.len());
        for (index, chunk) in plan.iter_mut().enumerate() {
            writes.push(self.writes.begin(id, index, std::mem::take(&mut chunk.pieces), chunk.length_bytes));
        }
        if let Some(job) = self.writeback.job(id) {
            job.chunks = vec![None; plan.len()];
            job.state = JobState::Writing { left: plan.len() };
            job.plan = plan;
        }
        for write in writes {
            self.attempt(write);
        }
    }

    /// One of the job's chunks is durable.
    pub(super) fn chunk_written(&mut self, id: JobId, index: usize, record: ChunkRecord) {
        let Some(job) = self.writeback.job(id) else { return };
        let JobState::Writing { left } = job.state else { return };
        job.chunks[index] = Some(record);
        job.state = if left > 1 { JobState::Writing { left: left - 1 } } else { JobState::Ready };
    }

    /// Commits what is durable (R2), when nothing of its inodes stands before it.
    pub(super) fn commit_ready(&mut self) {
        for id in self.writeback.ready() {
            let Some(job) = self.writeback.job(id) else { continue };
            let works = job.works.clone();
            let may = works.iter().all(|work| {
                let is_next = self.files.inode(work.inode).is_none_or(|inode| inode.is_next(work.generation));
                is_next && !self.files.is_changing(work.inode)
            });
            if may {
                self.commit(id, &works);
            }
        }
    }

    fn commit(&mut self, id: JobId, works: &[Work]) {
        let limited = self.quota.limited;
        let mut files = Vec::with_capacity(works.len());
        for work in works {
            let inode = self.files.inode(work.inode).expect("an inode stays while something of it is unflushed");
            inode.committing = true;
            let truncate_generation = inode.truncate_generation();
            let frozen = inode.frozen(work.generation).expect("a generation stays until its job has ended it");
            files.push(FileCommit {
                inode: work.inode.0,
                truncate_generation,
                extents: Vec::new(),
                size_at_least: frozen.ranges.end().0,
                mtime_ns: frozen.mtime_ns,
                quota_bytes: if limited { frozen.charged_bytes } else { 0 },
                kill_suid_sgid: frozen.kill_suid_sgid,
            });
        }
        let Some(job) = self.writeback.job(id) else { return };
        for (file, extents) in files.iter_mut().zip(job.extents()) {
            file.extents = extents;
        }
        job.state = JobState::Committing;
        let chunks = job.chunks.iter().flatten().cloned().collect();
        self.mutate(mutation::Op::Commit(Commit { chunks, files }), Asker::Commit(id));
    }

    pub(super) fn commit_answered(&mut self, id: JobId, answer: Result<MutateResponse, Error>) {
        let Some(job) = self.writeback.job(id) else { return };
        let works = job.works.clone();
        let (extents, chunks) = (job.extents(), job.chunks.iter().flatten().cloned().collect::<Vec<_>>());
        for work in &works {
            if let Some(inode) = self.files.inode(work.inode) {
                inode.committing = false;
            }
        }
        let mut again = Vec::new();
        match answer {
            Ok(response) => {
                // A file without a result in the answer is written anew.
                let unsaid = CommitResult { code: Code::RewriteChunk.into(), attr: None };
                let results = response.commits.into_iter().chain(std::iter::repeat(unsaid));
                for ((work, result), extents) in works.iter().zip(results).zip(&extents) {
                    if !self.committed(work, &result, &chunks, extents) {
                        again.push((*work, result));
                    }
                }
            }
            Err(error) => works.iter().for_each(|work| self.lose(*work, &error)),
        }
        match self.writeback.job(id) {
            Some(job) if !again.is_empty() => {
                job.works = again.iter().map(|(work, _)| *work).collect();
                self.refused(id, &again);
            }
            _ => drop(self.writeback.end(id)),
        }
        works.iter().for_each(|work| self.progressed(work.inode));
    }

    /// Answers whether the generation has ended.
    fn committed(&mut self, work: &Work, result: &CommitResult, chunks: &[ChunkRecord], extents: &[Extent]) -> bool {
        let code = match code_of(result.code) {
            Ok(code) => code,
            Err(error) => {
                self.lose(*work, &error);
                return true;
            }
        };
        match code {
            Code::Ok => {
                let commit = |inode: &mut Inode| inode.committed(work.generation, result.attr, chunks, extents);
                let ended = self.files.change_map(work.inode, commit);
                self.release(ended.unwrap_or_default());
                true
            }
            // Somebody truncated meanwhile, or the chunk cannot be used: written anew, under what holds now.
            Code::Truncated | Code::RewriteChunk => false,
            // Nobody can read it any more.
            Code::NotFound | Code::Stale => {
                let ended = self.files.inode(work.inode).map(|inode| inode.end(work.generation));
                self.release(ended.unwrap_or_default());
                true
            }
            code => {
                self.lose(*work, &Error::Refused { code, detail: "commit".to_owned() });
                true
            }
        }
    }

    /// Arranges that what was refused is written anew: after a pause, when it is known what holds now: attributes,
    /// groups, chunk ids above the floor. A vacated slot, a raised floor or another mount's truncation cost a writer
    /// nothing but time.
    fn refused(&mut self, id: JobId, again: &[(Work, CommitResult)]) {
        let mut unknown = Vec::new();
        for (work, result) in again {
            match result.attr {
                Some(attributes) => drop(self.files.see(attributes)),
                None => unknown.push(work.inode),
            }
        }
        if again.iter().any(|(_, result)| code_of(result.code) == Ok(Code::RewriteChunk)) {
            self.session.leave_chunks();
            self.ask_groups();
        }
        if let Some(job) = self.writeback.job(id) {
            let until = self.now + job.next_pause();
            job.state = JobState::Refused { until, questions: unknown.len(), groups: self.groups_asked };
        }
        for inode in unknown {
            self.ask(read_request::Op::GetAttr(GetAttr { inode: inode.0 }), Asker::Refused(id));
        }
    }

    pub(super) fn refused_answered(&mut self, id: JobId, answer: Result<ReadResponse, Error>) {
        if let Some(attributes) = answer.ok().and_then(|response| response.attr) {
            self.files.see(attributes);
        }
        if let Some(JobState::Refused { questions, .. }) = self.writeback.job(id).map(|job| &mut job.state) {
            *questions = questions.saturating_sub(1);
        }
    }

    pub(super) fn rewrite_rested(&mut self) {
        for id in self.writeback.rested(self.now) {
            let works = self.writeback.job(id).map(|job: &mut Job| job.works.clone()).unwrap_or_default();
            self.write_job(id, &works);
        }
    }

    /// The disks are full: what the job holds is lost.
    pub(super) fn lose_job(&mut self, id: JobId, error: &Error) {
        self.writes.forget_job(id);
        for work in self.writeback.end(id).map(|job| job.works).unwrap_or_default() {
            self.lose(work, error);
            self.progressed(work.inode);
        }
    }

    fn lose(&mut self, work: Work, error: &Error) {
        let ended = self.files.inode(work.inode).map(|inode| inode.end(work.generation)).unwrap_or_default();
        self.release(ended);
        self.doubt_after(work.inode, error);
        self.files.lost(work.inode, error);
        self.note(Note::Lost { inode: work.inode, bytes: ended.bytes as u64, error: error.clone() });
    }

    /// After an answer that nobody understands it is not known whether the table has changed the inode: it is to tell its size and
    /// map again.
    pub(super) fn doubt_after(&mut self, id: InodeId, error: &Error) {
        if let (Error::Unknown { .. }, Some(inode)) = (error, self.files.inode(id)) {
            inode.doubt();
        }
    }

    /// Everything unflushed belongs to the session that has ended, and is lost with it (R22).
    pub(super) fn drop_unflushed(&mut self) {
        self.writeback.clear();
        self.writes.clear();
        self.dirty.clear();
        for id in self.unflushed() {
            let dropped = self.files.inode(id).map(|inode| inode.drop_unflushed()).unwrap_or_default();
            self.release(dropped);
            self.files.lost(id, &Error::SessionLost);
            if self.settings.sabotage == Sabotage::FrozenWrittenUnderNext {
                let through = self.files.inode(id).map_or(0, |inode| inode.frozen_through());
                self.queue(id, 0..through);
            }
            self.note(Note::Lost { inode: id, bytes: dropped.bytes as u64, error: Error::SessionLost });
            self.progressed(id);
        }
    }

    fn release(&mut self, ended: Dropped) {
        self.memory.give_back(ended.bytes);
        self.cover.flushed(ended.bytes);
        if self.quota.limited {
            self.quota.flush(ended.charged_bytes);
        }
    }

    /// Something of the inode has ended: whoever waited goes on.
    pub(super) fn progressed(&mut self, id: InodeId) {
        let Some(inode) = self.files.inode(id) else { return };
        let (waiters, readers) = (inode.take_waiters(), std::mem::take(&mut inode.map_waiters));
        for waiter in waiters {
            match waiter {
                Waiter::Op(op) => self.flushed(op),
                Waiter::Release => self.session.close(id),
            }
        }
        for op in readers {
            self.plan(op);
        }
        self.next_barrier(id);
        self.files.forget_unchanged(id);
        self.files.forget_unused(id);
    }
}
