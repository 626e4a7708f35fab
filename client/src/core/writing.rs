//! Takes data in, and brings chunks to their members.

use super::admission::{Granted, charge, is_counted};
use super::admission::{OVERHEAD_DIVISOR, QUOTA_SLACK_BYTES, SPACE_LEASE, SPACE_SLACK_BYTES, SPACE_TIMEOUT};
use super::effects::{Answer, Note, OpId, PutChunk, Reserve, WriteId};
use super::inode::Freeze;
use super::operations::{State, Then};
use super::pending::{PendingWrite, Share, Space};
use super::sabotage::Sabotage;
use super::writeback::JobId;
use super::writes::{self, AfterFull, Ended, Put};
use super::{Asker, Core};
use crate::{CallFailed, Error, FileHandle, WriteAt};
use bytes::Bytes;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX, FILE_BYTES_MAX, PAGE_BYTES};
use holdfast_common::{ChunkId, FileOffset, GroupId};
use holdfast_proto::data::{DiskGrant, DiskReservation, PutShardResponse};
use holdfast_proto::meta::{ChunkRecord, Code, MutateResponse, ReadResponse, ReserveQuota, mutation};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A shard's deadline is 8 times the 99th percentile (R16) within these. The floor is above R16's 50 ms, because one
/// machine that carries a whole cluster stalls longer than that in a sync without anybody being ill.
const SHARD_DEADLINE_MIN: Duration = Duration::from_millis(500);
pub(super) const SHARD_DEADLINE_MAX: Duration = Duration::from_secs(5);
/// Pause when too few members are usable, or one has too much to do.
const MEMBERS_PAUSE: Duration = Duration::from_millis(100);
/// Dirty pieces of one file from which on it is flushed although they do not fill a chunk.
const DIRTY_PIECES_MAX: usize = COMMIT_EXTENTS_MAX / 2;

/// Next step of a waiting write.
enum Step {
    Admitted,
    Waits,
    Fails(Error),
}

impl Core {
    pub(super) fn begin_write(
        &mut self,
        op: OpId,
        handle: FileHandle,
        at: WriteAt,
        data: Bytes,
        mtime_ns: i64,
        kill_suid_sgid: bool,
    ) -> Result<(), Error> {
        let file = self.files.file(handle)?;
        if !file.mode.write {
            return Err(Error::BadHandle);
        }
        let at = match at {
            WriteAt::End { believed } if !file.mode.append => WriteAt::Offset(believed),
            at => at,
        };
        let length = data.len() as u64;
        // Where an append begins in its page is not known yet; it touches as many pages as from the last byte of one.
        let charged_from = match at {
            WriteAt::Offset(offset) => FileOffset(offset),
            WriteAt::End { .. } => FileOffset(u64::from(PAGE_BYTES) - 1),
        };
        if charged_from.0.checked_add(length).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Error::FileTooLarge);
        }
        if length == 0 {
            self.finish(op, Ok(Answer::Done));
            return Ok(());
        }
        let charge_bytes = if self.quota.limited { charge(charged_from, length) } else { 0 };
        let (space, share) = (Space::Fresh, Share::Fresh);
        let write = PendingWrite { handle, at, data, mtime_ns, kill_suid_sgid, charge_bytes, space, share };
        self.set(op, State::Writing(Box::new(write)));
        self.writers.push_back(op);
        Ok(())
    }

    /// Admits waiting writes in their order.
    pub(super) fn admit_writers(&mut self) {
        while let Some(op) = self.writers.front().copied() {
            let Some(mut write) = self.take_write(op) else {
                self.writers.pop_front();
                continue;
            };
            match self.admit(op, &mut write) {
                Step::Waits => return self.set(op, State::Writing(write)),
                Step::Admitted => {
                    self.writers.pop_front();
                    self.take_in(op, *write);
                }
                Step::Fails(error) => {
                    self.writers.pop_front();
                    self.finish(op, Err(error));
                }
            }
        }
    }

    fn take_write(&mut self, op: OpId) -> Option<Box<PendingWrite>> {
        let state = &mut self.operations.get_mut(&op)?.state;
        match std::mem::replace(state, State::Starting) {
            State::Writing(write) => Some(write),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Whether the write has all it needs; asks for the first thing it has not.
    fn admit(&mut self, op: OpId, write: &mut PendingWrite) -> Step {
        if !self.memory.fits(write.data.len()) {
            self.freeze_everything();
            return Step::Waits;
        }
        if let Some(inode) = self.end_unknown(write.handle, write.at) {
            self.ask_map(inode, FileOffset(0));
            return Step::Waits;
        }
        match self.find_space(write) {
            Step::Admitted => self.find_quota(op, write),
            other => other,
        }
    }

    fn find_space(&mut self, write: &mut PendingWrite) -> Step {
        let needed = (self.memory.used_bytes() + write.data.len()) as u64;
        if write.space == Space::Unknown || self.cover.covers(needed, self.now) {
            return Step::Admitted;
        }
        match write.space {
            Space::Fresh => {
                self.ask_space(needed);
                write.space = Space::Asked;
                Step::Waits
            }
            Space::Asked | Space::AskedAgain if self.reserving_space => Step::Waits,
            // It was covered, and waited for something else until that was too old to be relied on.
            Space::Asked | Space::AskedAgain if !self.cover.is_fresh(self.now) => {
                self.ask_space(needed);
                Step::Waits
            }
            Space::Asked => {
                self.freeze_everything();
                write.space = Space::Flushing;
                self.find_space(write)
            }
            Space::Flushing if self.memory.used_bytes() > 0 => Step::Waits,
            Space::Flushing => {
                self.ask_space(needed);
                write.space = Space::AskedAgain;
                Step::Waits
            }
            Space::AskedAgain => Step::Fails(Error::NoSpace),
            Space::Unknown => Step::Admitted,
        }
    }

    /// Asks every disk of the open groups for reservations.
    fn ask_space(&mut self, needed: u64) {
        if std::mem::replace(&mut self.reserving_space, true) {
            return;
        }
        let share = (needed + SPACE_SLACK_BYTES) / u64::from(self.settings.code.k());
        let wanted_bytes = share + share / OVERHEAD_DIVISOR;
        let mut disks: BTreeMap<SocketAddr, BTreeSet<u64>> = BTreeMap::new();
        let open: Vec<GroupId> = self.members.open_groups().to_vec();
        for group in open.iter().filter_map(|id| self.members.group(*id)) {
            for member in self.members.all(group) {
                disks.entry(member.address).or_default().insert(member.disk.0);
            }
        }
        let disks = disks.into_iter().map(|(address, disks)| {
            (address, disks.into_iter().map(|disk| DiskReservation { disk, wanted_bytes }).collect())
        });
        self.out.reserve = Some(Reserve {
            session: self.session_id(),
            disks: disks.collect(),
            lease: SPACE_LEASE,
            timeout: SPACE_TIMEOUT,
        });
    }

    pub(super) fn granted(&mut self, grants: &[(IpAddr, DiskGrant)]) {
        self.reserving_space = false;
        let known = self.cover.granted(grants, self.settings.code, self.now);
        // Only the first writer asks.
        if known == Granted::Unknown
            && let Some(op) = self.writers.front()
            && let Some(State::Writing(write)) = self.operations.get_mut(op).map(|operation| &mut operation.state)
        {
            write.space = Space::Unknown;
        }
    }

    fn find_quota(&mut self, op: OpId, write: &mut PendingWrite) -> Step {
        if self.quota.fits(write.charge_bytes) {
            return Step::Admitted;
        }
        match write.share {
            // Another change of the reservation is under way: this one follows its answer.
            Share::Fresh if self.quota_asked => {}
            Share::Fresh => {
                write.share = Share::AskedMore;
                self.ask_quota(op, write.charge_bytes + QUOTA_SLACK_BYTES);
            }
            Share::Flushing if self.quota.charged_bytes() == 0 => {
                let inode = match self.files.opened(write.handle) {
                    Ok((_, inode)) => inode,
                    Err(error) => return Step::Fails(error),
                };
                let (id, from) = (inode.id, inode.offset_of(write.at).0);
                let at = FileOffset(from - from % u64::from(PAGE_BYTES));
                write.share = Share::Counting { at, unmapped: 0 };
                let length = write.data.len() as u64 + u64::from(PAGE_BYTES) * 2;
                self.ask_map_for(op, id, at, length);
            }
            Share::AskedMore | Share::Asked | Share::Flushing | Share::Counting { .. } | Share::AskedExactly => {}
        }
        Step::Waits
    }

    fn ask_quota(&mut self, op: OpId, more_bytes: u64) {
        let bytes = self.quota.charged_bytes() + more_bytes;
        let flushed_before = self.quota.flushed_bytes();
        let asker = Asker::Quota { op, flushed_before };
        self.quota_asked = true;
        self.mutate(mutation::Op::ReserveQuota(ReserveQuota { bytes }), asker);
    }

    fn pending(&mut self, op: OpId) -> Option<&mut PendingWrite> {
        match self.operations.get_mut(&op).map(|operation| &mut operation.state) {
            Some(State::Writing(write)) => Some(write),
            _ => None,
        }
    }

    pub(super) fn quota_answered(&mut self, op: OpId, flushed_before: u64, answer: Result<MutateResponse, Error>) {
        self.quota_asked = false;
        let refused = match answer {
            Ok(response) => {
                self.quota.raised(response.reserved_bytes, flushed_before);
                false
            }
            Err(Error::Refused { code: Code::Quota, .. }) => true,
            Err(error) => return self.fail(op, error),
        };
        let Some(write) = self.pending(op) else { return };
        let (share, charge_bytes) = (write.share, write.charge_bytes);
        match share {
            // Raised, and yet too little: commits crossed it.
            Share::AskedMore | Share::Asked | Share::AskedExactly if !refused => write.share = Share::Fresh,
            Share::AskedMore => {
                write.share = Share::Asked;
                self.ask_quota(op, charge_bytes);
            }
            Share::Asked => {
                write.share = Share::Flushing;
                self.freeze_everything();
            }
            Share::AskedExactly => self.fail(op, Error::Quota),
            Share::Fresh | Share::Flushing | Share::Counting { .. } => {}
        }
    }

    /// A part of the map tells how much of the write is mapped already.
    pub(super) fn exact_charge(&mut self, op: OpId, response: &ReadResponse) {
        let page = u64::from(PAGE_BYTES);
        let Some(write) = self.pending(op) else { return };
        let (handle, write_at, length) = (write.handle, write.at, write.data.len() as u64);
        let Share::Counting { at: FileOffset(mut at), mut unmapped } = write.share else { return };
        let inode = match self.files.opened(handle) {
            Ok((_, inode)) => inode,
            Err(error) => return self.fail(op, error),
        };
        let (id, from) = (inode.id, inode.offset_of(write_at).0);
        let end = (from + length).next_multiple_of(page);
        let Some(map) = &response.map else { return self.fail(op, super::missing()) };
        if end < at {
            // The file was cut meanwhile, and an append goes elsewhere: it is counted anew.
            if let Some(write) = self.pending(op) {
                write.share = Share::Fresh;
            }
            return;
        }
        let covered_to = map.offset.saturating_add(map.covered_bytes).max(at + page);
        for extent in &map.extents {
            let first = (extent.file_offset / page * page).clamp(at, end);
            unmapped += first - at;
            at = (extent.file_offset + extent.length_bytes).next_multiple_of(page).clamp(first, end);
        }
        let stop = (covered_to / page * page).clamp(at, end);
        unmapped += stop - at;
        if stop < end {
            if let Some(write) = self.pending(op) {
                write.share = Share::Counting { at: FileOffset(stop), unmapped };
            }
            return self.ask_map_for(op, id, FileOffset(stop), end - stop);
        }
        if let Some(write) = self.pending(op) {
            (write.share, write.charge_bytes) = (Share::AskedExactly, unmapped);
        }
        if unmapped > 0 && !self.quota_asked {
            self.ask_quota(op, unmapped);
        } else if unmapped > 0
            && let Some(write) = self.pending(op)
        {
            // Counted again behind the change that is under way.
            write.share = Share::Flushing;
        }
    }

    /// Ends an operation that waits for something it will not get.
    pub(super) fn fail(&mut self, op: OpId, error: Error) {
        self.writers.retain(|waiting| *waiting != op);
        self.finish(op, Err(error));
    }

    /// Takes the data of an admitted write in, in the same step: nobody can take what it was promised.
    fn take_in(&mut self, op: OpId, write: PendingWrite) {
        let PendingWrite { handle, at, data, mtime_ns, kill_suid_sgid, charge_bytes, .. } = write;
        let (length, now) = (data.len(), self.now);
        let (file, inode) = match self.files.opened(handle) {
            Ok(opened) => opened,
            Err(error) => return self.finish(op, Err(error)),
        };
        let (id, sync) = (inode.id, file.mode.sync);
        let offset = inode.offset_of(at);
        let written = match inode.write(offset, data, mtime_ns, kill_suid_sgid, charge_bytes, now) {
            Ok(written) => written,
            Err(error) => return self.finish(op, Err(error)),
        };
        self.memory.take(length);
        self.memory.give_back(written.replaced_bytes);
        self.quota.charge(charge_bytes);
        if written.first {
            self.dirty.insert((now, id));
        }
        if is_counted(offset, length as u64, charge_bytes) {
            // Which of its pages it was charged for is not known: what is written later goes into other generations.
            self.freeze(id, Freeze::All);
        } else if written.dirty_bytes >= CHUNK_BYTES_MAX as usize || written.pieces_count >= DIRTY_PIECES_MAX {
            self.freeze(id, Freeze::FullChunks);
        }
        if self.memory.is_pressed() {
            self.freeze_everything();
        }
        if sync {
            self.flush(op, id, Then::Report { handle, closing: false });
        } else {
            self.finish(op, Ok(Answer::Done));
        }
    }

    /// Starts an attempt at a chunk, or waits for what it lacks.
    pub(super) fn attempt(&mut self, id: WriteId) {
        let Some(length_bytes) = self.writes.get(id).map(|write| write.length_bytes) else { return };
        let Some(chunk) = self.session.next_chunk(self.now) else {
            self.writes.without_id.insert(id);
            return self.reserve_chunks();
        };
        let code = self.settings.code;
        let Some(mut stripe) = writes::choose_stripe(&self.members, code, chunk, length_bytes, self.now) else {
            self.ask_groups();
            return self.pause_write(id);
        };
        let mut parity_shards = u32::from(stripe.geometry.parity_shards());
        if self.settings.sabotage == Sabotage::ParityNarrowed {
            parity_shards = stripe.widen(code, length_bytes);
        }
        let record = ChunkRecord {
            chunk: chunk.0,
            nonce: self.draw(),
            group: stripe.group.group,
            epoch: stripe.group.epoch,
            length_bytes,
            data_shards: u32::from(stripe.geometry.data_shards()),
            parity_shards,
            slots: stripe.members.iter().map(|member| member.slot).collect::<Vec<u8>>().into(),
            shard_length_bytes: stripe.geometry.shard_length_bytes(),
        };
        let pieces = self.writes.get(id).map(|write| write.pieces.clone()).unwrap_or_default();
        let mut awaited = stripe.members.clone();
        if self.settings.sabotage == Sabotage::CommitsBeforeDurable {
            awaited.truncate(1);
        }
        self.writes.put(id, record.clone(), awaited);
        self.out.puts.push(PutChunk {
            write: id,
            record,
            geometry: stripe.geometry,
            members: stripe.members,
            pieces,
            session: self.session_id(),
            timeout: (self.put_latency.estimate() * 8).clamp(SHARD_DEADLINE_MIN, SHARD_DEADLINE_MAX),
        });
    }

    pub(super) fn resume_writes(&mut self) {
        while let Some((at, id)) = self.writes.paused.first().copied().filter(|(at, _)| *at <= self.now) {
            self.writes.paused.remove(&(at, id));
            self.attempt(id);
        }
    }

    /// The next attempt waits: for members, or for room.
    fn pause_write(&mut self, id: WriteId) {
        self.writes.paused.insert((self.now + MEMBERS_PAUSE, id));
    }

    /// Goes on with a write whose attempt met a full disk. What is out of reach is waited for, not taken for full.
    fn go_on_without_full(&mut self, id: WriteId, job: JobId) {
        let least = 1 + usize::from(self.settings.code.m());
        let (members, now) = (&self.members, self.now);
        let is_ignored = self.settings.sabotage == Sabotage::RoomElsewhereIgnored;
        match self.writes.after_full(id, |full| !is_ignored && members.have_room(least, full, now)) {
            AfterFull::Again => self.attempt(id),
            AfterFull::Later => self.pause_write(id),
            AfterFull::Lost => self.lose_job(job, &Error::NoSpace),
        }
    }

    /// Takes note of a member's answer at once: others know it before the slowest has answered.
    pub(super) fn put_answered(
        &mut self,
        id: WriteId,
        chunk: ChunkId,
        shard: u8,
        elapsed: Duration,
        answer: &Result<PutShardResponse, CallFailed>,
    ) {
        let Some(member) = self.writes.awaited(id, chunk, shard) else { return };
        let said = writes::judge(answer);
        match said {
            Put::Stored => {
                self.put_latency.add(elapsed);
                self.members.works(member.disk);
            }
            Put::Full => self.members.full(member.disk, self.now),
            Put::Failed => {
                if answer.is_err() {
                    self.put_latency.add(elapsed);
                }
                self.members.failed(member.disk, self.now);
            }
            Put::BelowFloor => self.session.leave_chunks(),
            Put::Misplaced => self.ask_groups(),
            Put::Busy => {}
        }
        if said != Put::Stored {
            let detail = answer.as_ref().map_or_else(ToString::to_string, |response| response.detail.clone());
            self.note(Note::Again(format!(
                "chunk {chunk}, disk {} at {}: {said:?} {detail}",
                member.disk, member.address
            )));
        }
        let (job, index) = match self.writes.get(id) {
            Some(write) => (write.job, write.index),
            None => return,
        };
        match self.writes.answered(id, shard, said) {
            None => {}
            Some(Ended::Written(record)) => self.chunk_written(job, index, record),
            Some(Ended::Burnt(Put::Full)) => self.go_on_without_full(id, job),
            Some(Ended::Burnt(Put::Busy | Put::Misplaced)) => self.pause_write(id),
            Some(Ended::Burnt(Put::Stored | Put::Failed | Put::BelowFloor)) => {
                if self.settings.sabotage == Sabotage::BurntChunkUsedAgain {
                    self.session.use_again(chunk);
                }
                self.attempt(id);
            }
        }
    }
}
