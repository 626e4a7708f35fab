//! Upkeep of a disk beside serving: punching, compaction, recycling, dropped volumes, checkpoints. Small bounded steps
//! on the writer's thread, so that nothing changes under a step.

use std::collections::BTreeMap;

use super::batch::Copied;
use super::checkpoint::Frozen;
use super::index::{Location, Phase, Punch};
use super::record::{Body, tombstone_bytes};
use super::scan::{ScanError, read_header, scan};
use super::segment::{Segment, SegmentHeader, SegmentKind, file_name, write_header};
use super::types::ShardError;
use super::units::to_usize;
use super::{Sabotage, Store};
use holdfast_storage::BLOCK_BYTES;
use std::sync::Arc;

/// Punches of one step; they share a sync a segment.
const PUNCHES_PER_STEP: usize = 64;
/// Shards of a dropped volume removed from the index in one step.
const DROPS_PER_STEP: usize = 4096;
/// Bytes that compaction copies in one step: what a put may wait for.
const COPY_BYTES_PER_STEP: u64 = 1 << 20;
/// A segment is compacted when less than one part in this many of what was written to it is needed.
const COMPACT_LIVE_PART: u64 = 2;
/// An idle disk writes a checkpoint after this part of the appends that make a busy one do so.
const IDLE_CHECKPOINT_PART: u64 = 20;
/// Drained segments wait for a checkpoint until there are this many, or the disk is idle.
const DRAINED_SEGMENTS_MAX: usize = 4;
/// Recycled segments kept ready; more are removed, which gives their space back.
const SPARE_SEGMENTS_MAX: usize = 2;

/// A segment being emptied.
pub(crate) struct Compaction {
    segment: Arc<Segment>,
    /// Records still to look at, last first, with their sequence numbers.
    records: Vec<(Location, u64)>,
}

impl Store {
    /// Does one bounded piece of upkeep. True if there is more to do. `idle` says that nobody waits for the disk.
    pub(crate) fn maintain(&mut self, idle: bool) -> bool {
        if self.is_failed() {
            self.shared.note_failure_at_last();
            return false;
        }
        let mut waits = false;
        let done = self.maintain_step(idle, &mut waits);
        waits |= done == Err(ShardError::NoSpace);
        if waits && !self.upkeep_waits {
            tracing::warn!(disk = self.shared.disk.0, "upkeep waits for space");
        }
        // A step that did something did not look at everything.
        self.upkeep_waits = waits || (self.upkeep_waits && done == Ok(true));
        done.unwrap_or(false)
    }

    /// `waits` says whether some of it waits for space: the rest goes on, because it may give space back.
    fn maintain_step(&mut self, idle: bool, waits: &mut bool) -> Result<bool, ShardError> {
        for work in [Self::punch_some, Self::remove_dead_bulk, Self::remove_excess_spare, Self::drop_some] {
            if unless_full(work(self), waits)? {
                return Ok(true);
            }
        }
        let copied = unless_full(self.compact_some(), waits)?;
        let drained = self.drained();
        let due = self.checkpoint_due(idle)
            || drained.len() >= DRAINED_SEGMENTS_MAX
            || (idle && !copied && !drained.is_empty());
        if self.shared.sabotage == Sabotage::RecycleBeforeCheckpoint && !drained.is_empty() {
            return drained.iter().try_for_each(|number| self.recycle(*number)).map(|()| true);
        }
        if due && self.checkpoints_here {
            self.checkpoint()?;
            return Ok(true);
        }
        self.checkpoint_wanted |= due;
        Ok(copied)
    }

    /// The larger the index, the more a checkpoint costs, and the more appends it has to spare a start.
    fn checkpoint_due(&self, idle: bool) -> bool {
        let shards_count = self.shared.state.read().index.shards_count();
        let busy_limit = self.options.checkpoint_records + shards_count / 4;
        let limit = if idle { busy_limit / IDLE_CHECKPOINT_PART } else { busy_limit };
        self.records_since_checkpoint >= limit.max(1)
    }

    /// Whether upkeep should run between all batches, because deletes come faster than their space is given back.
    #[must_use]
    pub(crate) fn is_behind(&self) -> bool {
        self.shared.state.read().index.punches.len() > PUNCHES_PER_STEP * 4
    }

    /// Gives back the space of dead bulk records: readers leave, then the hole, then its sync, then the tombstones (R5).
    fn punch_some(&mut self) -> Result<bool, ShardError> {
        let (punches, segments) = {
            let mut state = self.shared.state.write();
            let punches = state.index.take_punches(PUNCHES_PER_STEP);
            let numbers = punches.iter().map(|p| p.at.segment);
            let segments: BTreeMap<u32, Arc<Segment>> =
                numbers.map(|number| (number, state.segments[&number].clone())).collect();
            (punches, segments)
        };
        if punches.is_empty() {
            return Ok(false);
        }
        if let Err(error) = self.shared.punch(&punches, &segments) {
            // A hole may be made twice, but none may be forgotten. Others may find the room that these did not.
            self.shared.state.write().index.give_back_punches(punches);
            return Err(error);
        }
        let mut state = self.shared.state.write();
        punches.iter().for_each(|punch| state.index.punched(punch));
        Ok(true)
    }

    /// Removes a full bulk segment that nothing lives in any more.
    fn remove_dead_bulk(&mut self) -> Result<bool, ShardError> {
        let dead = self.shared.state.read().index.segments.iter().find_map(|(number, segment)| {
            let empty = segment.live_bytes == 0 && segment.punches_count == 0 && segment.damaged_bytes == 0;
            (segment.kind == SegmentKind::Bulk && segment.phase == Phase::Sealed && empty).then_some(*number)
        });
        let Some(number) = dead else { return Ok(false) };
        self.remove_segment(number)?;
        Ok(true)
    }

    /// Removes one of more spare segments than are kept: one was being made while others were recycled, or a start found them.
    fn remove_excess_spare(&mut self) -> Result<bool, ShardError> {
        if self.spares.len() <= SPARE_SEGMENTS_MAX {
            return Ok(false);
        }
        let Some(spare) = self.spares.pop_back() else { return Ok(false) };
        let number = spare.header.number;
        let removed = self.remove_segment(number);
        if self.shared.state.read().segments.contains_key(&number) {
            self.spares.push_back(spare);
        }
        removed.map(|()| true)
    }

    /// Once its file has no name any more the segment is forgotten. Until that is durable no checkpoint may forget it, and the
    /// tombstones that the segment needs: a loss of power could bring the file back.
    fn remove_segment(&mut self, number: u32) -> Result<(), ShardError> {
        let Some(segment) = self.shared.state.write().segments.remove(&number) else { return Ok(()) };
        segment.drain_readers();
        let directory = &self.shared.directory;
        if let Err(error) = directory.remove(&file_name(segment.header.kind, number)) {
            self.shared.state.write().segments.insert(number, segment.clone());
            return Err(self.shared.unchanged("removing a segment", &error));
        }
        self.shared.state.write().index.forget_segment(number);
        self.shared.doubt_space();
        self.removal_unsynced = true;
        directory.sync_names().map_err(|error| self.shared.unchanged("removing a segment", &error))?;
        self.removal_unsynced = false;
        Ok(())
    }

    fn drop_some(&mut self) -> Result<bool, ShardError> {
        let Some(volume) = self.dropping.front().copied() else { return Ok(false) };
        if self.shared.state.write().index.drop_some(&volume, DROPS_PER_STEP) {
            self.dropping.pop_front();
        }
        Ok(true)
    }

    /// Copies some live records out of a mostly dead segment.
    fn compact_some(&mut self) -> Result<bool, ShardError> {
        if self.compaction.is_none() {
            self.compaction = self.choose_compaction()?;
        }
        let Some(compaction) = &mut self.compaction else { return Ok(false) };
        let segment = compaction.segment.clone();
        let mut copies = Vec::new();
        let mut bytes = 0;
        while bytes < COPY_BYTES_PER_STEP
            && let Some((at, version)) = compaction.records.pop()
        {
            let copied = match self.shared.copy_if_live(&segment, at, version) {
                Ok(copied) => copied,
                Err(error) => {
                    // What was taken off the list was not copied: the segment's turn starts over.
                    self.compaction = None;
                    return Err(error);
                }
            };
            bytes += copied.as_ref().map_or(0, |copy| copy.record_bytes);
            copies.extend(copied);
        }
        let finished = compaction.records.is_empty();
        if !copies.is_empty()
            && let Err(error) = self.commit_copies(&copies)
        {
            self.compaction = None;
            return Err(error);
        }
        if finished {
            self.compaction = None;
            let mut state = self.shared.state.write();
            let emptied = state.index.segment_mut(segment.header.number);
            // A record that could not be read stays, and keeps its segment as it is.
            if emptied.live_bytes == 0 {
                emptied.phase = Phase::Drained;
            } else {
                emptied.damaged_bytes += emptied.live_bytes;
            }
        }
        Ok(true)
    }

    fn choose_compaction(&self) -> Result<Option<Compaction>, ShardError> {
        let chosen = {
            let state = self.shared.state.read();
            let candidates = state.index.segments.iter().filter(|(_, s)| {
                s.kind == SegmentKind::Small
                    && s.phase == Phase::Sealed
                    && s.damaged_bytes == 0
                    && s.live_bytes < s.written_bytes() / COMPACT_LIVE_PART
            });
            let best = candidates.min_by_key(|(_, s)| s.live_bytes);
            best.map(|(number, s)| (state.segments[number].clone(), s.live_bytes))
        };
        let Some((segment, live_bytes)) = chosen else { return Ok(None) };
        if live_bytes > 0 && !self.shared.budget(self.shared.now())?.allows_compaction() {
            return Ok(None);
        }
        let found = if live_bytes == 0 { Vec::new() } else { self.shared.rescan(&segment)? };
        Ok(Some(Compaction { segment, records: found.into_iter().rev().collect() }))
    }

    fn drained(&self) -> Vec<u32> {
        let state = self.shared.state.read();
        state.index.segments.iter().filter(|(_, s)| s.phase == Phase::Drained).map(|(n, _)| *n).collect()
    }

    /// Makes a drained segment a spare one, or removes it. Only after a checkpoint that knows it as drained: an older
    /// one may still need a tombstone that stood here.
    fn recycle(&mut self, number: u32) -> Result<(), ShardError> {
        if self.spares.len() >= SPARE_SEGMENTS_MAX {
            return self.remove_segment(number);
        }
        let old = self.shared.state.read().segments[&number].clone();
        old.drain_readers();
        let header = SegmentHeader { generation: self.take_sequence(), ..old.header };
        // On failure the segment stays drained: what it holds is not needed.
        write_header(&*old.file, &header).map_err(|e| self.shared.unchanged("recycling a segment", &e))?;
        let segment = Segment::new(header, old.file.clone());
        self.shared.state.write().index.forget_segment(number);
        self.adopt(&segment, Phase::Spare);
        self.spares.push_back(segment);
        Ok(())
    }

    /// Has checkpoints written by another thread from now on: [`Store::plan_checkpoint`] says when.
    pub(crate) fn write_checkpoints_elsewhere(&mut self) {
        self.checkpoints_here = false;
    }

    /// A checkpoint that is due, to be written by [`Frozen::write`] on any thread, and then handed to
    /// [`Store::end_checkpoint`]. `None` while there is none to write or one is being written.
    pub(crate) fn plan_checkpoint(&mut self) -> Option<Frozen> {
        if !self.checkpoint_wanted || self.is_failed() || self.checkpoint_runs || self.pauses() {
            return None;
        }
        (self.checkpoint_wanted, self.checkpoint_runs) = (false, true);
        Some(self.freeze())
    }

    /// The checkpoint that was planned will not be written now.
    pub(crate) fn give_up_checkpoint(&mut self) {
        self.checkpoint_runs = false;
    }

    /// A copy of the index as it is now. Readers wait for it as long as for any look-up, the writer some milliseconds.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen {
            index: self.shared.state.read().index.clone(),
            directory: self.shared.directory.clone(),
            disk: self.shared.disk,
            durable_sequence: self.durable_sequence,
            next_sequence: self.next_sequence,
            next_segment: self.next_segment,
            drained: self.drained(),
            records_count: self.records_since_checkpoint,
            syncs_names_first: self.removal_unsynced,
        }
    }

    /// The checkpoint is written, or is not: the next start scans only from there on, and what it knows to be drained is used
    /// again.
    ///
    /// # Errors
    /// [`ShardError::NoSpace`] and [`ShardError::Busy`] leave the old one, or drained segments for the next one; anything else
    /// fails the disk.
    pub(crate) fn end_checkpoint(&mut self, frozen: &Frozen, written: std::io::Result<()>) -> Result<(), ShardError> {
        self.checkpoint_runs = false;
        let ended = self.adopt_checkpoint(frozen, written);
        if ended.is_err() {
            self.pause();
        }
        ended
    }

    fn adopt_checkpoint(&mut self, frozen: &Frozen, written: std::io::Result<()>) -> Result<(), ShardError> {
        match written {
            Ok(()) => self.records_since_checkpoint -= frozen.records_count,
            Err(error) => return Err(self.shared.unchanged("writing the checkpoint", &error)),
        }
        self.shared.state.write().index.forget_unused_stripes();
        let mut ended = Ok(());
        for number in &frozen.drained {
            match self.recycle(*number) {
                Ok(()) => {}
                Err(error @ (ShardError::NoSpace | ShardError::Busy)) => ended = Err(error),
                Err(error) => return Err(error),
            }
        }
        ended
    }

    /// Writes the checkpoint here and now.
    ///
    /// # Errors
    /// See [`Store::end_checkpoint`].
    pub(crate) fn checkpoint(&mut self) -> Result<(), ShardError> {
        if self.is_failed() {
            return Err(ShardError::DiskFailed);
        }
        let frozen = self.freeze();
        let written = frozen.write();
        self.end_checkpoint(&frozen, written)
    }
}

/// The outcome of a piece of upkeep; want of space is noted, and leaves it for later.
fn unless_full(done: Result<bool, ShardError>, waits: &mut bool) -> Result<bool, ShardError> {
    let is_full = done == Err(ShardError::NoSpace);
    *waits |= is_full;
    if is_full { Ok(false) } else { done }
}

impl super::Shared {
    fn punch(&self, punches: &[Punch], segments: &BTreeMap<u32, Arc<Segment>>) -> Result<(), ShardError> {
        if self.sabotage != Sabotage::PunchUnderReaders {
            segments.values().for_each(|segment| segment.drain_readers());
        }
        // The first block goes last: a record's header explains its bytes to a scan for as long as any of them is left.
        for first_block in [false, true] {
            for Punch { at, .. } in punches {
                let (offset, bytes) = match first_block {
                    true => (at.offset, BLOCK_BYTES),
                    false => (at.offset + BLOCK_BYTES, at.bytes - BLOCK_BYTES),
                };
                let punched = segments[&at.segment].file.punch(offset, bytes);
                punched.map_err(|e| self.unchanged("punching", &e))?;
            }
            for segment in segments.values() {
                segment.file.sync_data().map_err(|e| self.trouble("fdatasync", &e))?;
            }
        }
        Ok(())
    }

    fn rescan(&self, segment: &Segment) -> Result<Vec<(Location, u64)>, ShardError> {
        match scan(segment, super::segment::DATA_START) {
            Ok(found) => Ok(found.records.into_iter().map(|f| (f.at, f.header.version)).collect()),
            Err(ScanError::Io(error)) => self.skip(segment, &error).map(|()| Vec::new()),
            Err(ScanError::Unsupported) => Ok(Vec::new()),
        }
    }

    /// Leaves out what cannot be read: it is not copied, and keeps its segment.
    fn skip(&self, segment: &Segment, error: &std::io::Error) -> Result<(), ShardError> {
        match self.unread(&segment.header.number, error) {
            ShardError::Corrupt => Ok(()),
            other => Err(other),
        }
    }

    /// The record at `at` with its payload, if the index still points there.
    fn copy_if_live(&self, segment: &Segment, at: Location, version: u64) -> Result<Option<Copied>, ShardError> {
        let header = match read_header(segment, at.offset) {
            Ok(Some(header)) => header,
            Ok(None) | Err(ScanError::Unsupported) => return Ok(None),
            Err(ScanError::Io(error)) => return self.skip(segment, &error).map(|()| None),
        };
        match header.body {
            Body::Shard(meta) => {
                let live = self.state.read().index.get(&meta.key).is_some_and(|entry| entry.at == at);
                if !live {
                    return Ok(None);
                }
                let mut payload = vec![0; to_usize(meta.shard_length_bytes.into())];
                let read = segment.file.read_exact_at(at.offset + header.header_area_bytes, &mut payload);
                if let Err(error) = read {
                    return self.skip(segment, &error).map(|()| None);
                }
                let (from, record_bytes) = (at, at.bytes);
                Ok(Some(Copied { from, version, record_bytes, body: Body::Shard(meta), payload }))
            }
            Body::Tombstone { .. } => {
                let live = self.state.read().index.live_tombstone(version, &at);
                Ok(live.map(|(volume, targets)| Copied {
                    from: at,
                    version,
                    record_bytes: tombstone_bytes(&targets),
                    body: Body::Tombstone { volume, targets },
                    payload: Vec::new(),
                }))
            }
            Body::Filler => Ok(None),
        }
    }
}
