//! This client's state of one inode: the newest attributes, written data on its way to the cluster, and
//! the cached extent map. Pure.
//!
//! Written data passes three states. *Dirty*: in memory, taking writes. *Frozen*: a numbered generation that will not
//! change, waiting for or in a flush job. *Committed*: the table maps it, the memory is free. Generations commit in
//! their order, and a generation holds ascending offsets, so that a crash never shows a byte of a file without those
//! that the application wrote before it at lower offsets.

use super::admission::Charges;
use super::dirty::{DirtyMap, FrozenRanges};
use super::effects::{OpId, PlanPiece};
use super::extent_map::ExtentMap;
use super::naming::Name;
use super::plan::Plan;
use super::questions::newest;
use super::sabotage::Sabotage;
use super::time::Moment;
use crate::{Error, WriteAt};
use bytes::Bytes;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX, FILE_BYTES_MAX};
use holdfast_common::{FileOffset, InodeId};
use holdfast_proto::meta::{Attr, ChunkRecord, Extent, FileMap};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one generation at most: four chunks, one commit.
const GENERATION_BYTES_MAX: usize = 4 * CHUNK_BYTES_MAX as usize;
/// Ranges of one generation at most: half a commit, as cutting at chunk ends adds some.
const GENERATION_PIECES_MAX: usize = COMMIT_EXTENTS_MAX / 2;
/// Time for which an inode that was created here is taken to have no extended attributes.
const PRISTINE_FOR: Duration = Duration::from_secs(1);

/// A generation of written data on its way to the disks.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) generation: u64,
    pub(crate) ranges: Arc<FrozenRanges>,
    pub(crate) mtime_ns: i64,
    pub(crate) kill_suid_sgid: bool,
    /// Bytes of quota that its writes were charged.
    pub(crate) charged_bytes: u64,
}

/// Part of the dirty data that is to be flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// Only data that fills chunks.
    FullChunks,
    All,
}

/// Result of a look for data without the network.
#[derive(Debug)]
pub(crate) enum Found {
    /// The map of this offset is not known: it is to be asked for from there on.
    MapUnknown { offset: FileOffset },
    /// Everything; nothing at or behind the end of the file.
    Pieces(Vec<PlanPiece>),
}

/// Waits for generations to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    Op(OpId),
    /// A handle that was closed: the table is told only when nothing needs the inode any more.
    Release,
}

/// Change of the dirty map by a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) replaced_bytes: usize,
    pub(crate) dirty_bytes: usize,
    pub(crate) pieces_count: usize,
    /// The inode had nothing dirty before.
    pub(crate) first: bool,
}

/// Data that was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) bytes: usize,
    pub(crate) charged_bytes: u64,
}

/// A lost write that is to be told by fsync.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) error: Error,
    /// A close has told it: the end of the mount need not.
    pub(crate) was_heard: bool,
}

impl Loss {
    pub(crate) fn new(error: &Error) -> Self {
        Self { error: error.clone(), was_heard: false }
    }
}

#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) id: InodeId,
    /// Name by which it was opened last, if that is known.
    pub(crate) name: Option<Name>,
    attributes: Attr,
    pub(crate) handles: BTreeSet<u64>,
    dirty: DirtyMap,
    dirty_since: Option<Moment>,
    mtime_ns: i64,
    kill_suid_sgid: bool,
    /// Quota charged for the writes that are dirty now.
    charges: Charges,
    flushing: VecDeque<Frozen>,
    next_generation: u64,
    map: ExtentMap,
    /// The data version that the map is of. It is believed only while that is the newest one.
    map_version: u64,
    /// Until then it is [pristine](Inode::is_pristine).
    pristine_until: Option<Moment>,
    /// A lost write that no fsync has told of: each handle that is opened tells it, too.
    pub(crate) loss: Option<Loss>,
    /// Each waits for all generations below a number to end.
    waiters: Vec<(u64, Waiter)>,
    /// Its first generation is being committed.
    pub(crate) committing: bool,
    /// Operations that wait for the map, from any offset.
    pub(crate) map_waiters: Vec<OpId>,
    /// A part of the map was asked for and not answered yet.
    pub(crate) map_asked: bool,
    /// A session was lost since the attributes were learnt: they may be older than what the table has taken from it.
    doubtful: bool,
    sabotage: Sabotage,
}

impl Inode {
    pub(crate) fn new(attributes: Attr, sabotage: Sabotage) -> Self {
        Self {
            id: InodeId(attributes.inode),
            name: None,
            map_version: attributes.data_version,
            attributes,
            handles: BTreeSet::new(),
            dirty: DirtyMap::default(),
            dirty_since: None,
            mtime_ns: 0,
            kill_suid_sgid: false,
            charges: Charges::default(),
            flushing: VecDeque::new(),
            next_generation: 0,
            map: ExtentMap::default(),
            pristine_until: None,
            loss: None,
            waiters: Vec::new(),
            committing: false,
            map_waiters: Vec::new(),
            map_asked: false,
            doubtful: false,
            sabotage,
        }
    }

    /// Takes in attributes from the table and answers them as this client's user must see them. An answer that was
    /// overtaken by another is not believed in what that one says of the content.
    pub(crate) fn refresh(&mut self, fresh: Attr) -> Attr {
        if !is_untouched(&fresh) {
            self.pristine_until = None;
        }
        if self.sabotage == Sabotage::OlderAnswersBelieved {
            self.attributes.data_version = 0;
        }
        let mut fresh = newest(fresh, &self.attributes);
        if fresh.data_version >= self.attributes.data_version {
            self.attributes = fresh;
        }
        self.overlay_attributes(&mut fresh);
        fresh
    }

    /// It was opened by this name.
    pub(crate) fn opened_as(&mut self, name: Option<Name>) {
        self.name = name.or(self.name.take());
    }

    /// It was created here just now, unless `attributes` show that somebody has changed it since: setting an extended
    /// attribute moves the time of change, and no two operations have the same time.
    pub(crate) fn created(&mut self, attributes: &Attr, now: Moment) {
        if is_untouched(attributes) {
            self.pristine_until = Some(now + PRISTINE_FOR);
        }
    }

    /// Whether it was created here a moment ago, and is not known to have got extended attributes since.
    pub(crate) fn is_pristine(&self, now: Moment) -> bool {
        self.pristine_until.is_some_and(|until| now < until)
    }

    /// It may have extended attributes from now on.
    pub(crate) fn spoil(&mut self) {
        self.pristine_until = None;
    }

    /// Its size and map are not believed before the table has told them again.
    pub(crate) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Whether its size and map wait to be told again.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Size as this client's user sees it: with what is not flushed yet.
    pub(crate) fn size_bytes(&self) -> u64 {
        let flushing = self.flushing.iter().map(|f| f.ranges.end()).max().unwrap_or_default();
        self.attributes.size_bytes.max(flushing.0).max(self.dirty.end().0)
    }

    /// Attributes as last known, with what is unflushed.
    pub(crate) fn attributes(&self) -> Attr {
        let mut attributes = self.attributes;
        self.overlay_attributes(&mut attributes);
        attributes
    }

    fn overlay_attributes(&self, attributes: &mut Attr) {
        if self.is_clean() {
            return;
        }
        if self.kill_suid_sgid || self.flushing.iter().any(|f| f.kill_suid_sgid) {
            attributes.mode = without_suid_sgid(attributes.mode);
        }
        attributes.size_bytes = attributes.size_bytes.max(self.size_bytes());
        attributes.mtime_ns = attributes.mtime_ns.max(self.mtime_ns);
        attributes.ctime_ns = attributes.ctime_ns.max(self.mtime_ns);
    }

    pub(crate) fn truncate_generation(&self) -> u64 {
        self.attributes.truncate_generation
    }

    /// Offset of a write; the end is taken when the data is.
    pub(crate) fn offset_of(&self, at: WriteAt) -> FileOffset {
        match at {
            WriteAt::Offset(offset) => FileOffset(offset),
            WriteAt::End { .. } => FileOffset(self.size_bytes()),
        }
    }

    /// Takes data in.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`], with nothing changed.
    pub(crate) fn write(
        &mut self,
        offset: FileOffset,
        data: Bytes,
        mtime_ns: i64,
        kill_suid_sgid: bool,
        charged_bytes: u64,
        now: Moment,
    ) -> Result<Written, Error> {
        if offset.0.checked_add(data.len() as u64).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Error::FileTooLarge);
        }
        self.charges.add(offset, data.len() as u64, charged_bytes);
        let replaced_bytes = self.dirty.write(offset, data);
        self.mtime_ns = self.mtime_ns.max(mtime_ns);
        self.kill_suid_sgid |= kill_suid_sgid;
        let first = self.dirty_since.is_none();
        self.dirty_since.get_or_insert(now);
        let (dirty_bytes, pieces_count) = (self.dirty.bytes(), self.dirty.pieces_count());
        Ok(Written { replaced_bytes, dirty_bytes, pieces_count, first })
    }

    /// Time of the first write that is dirty still.
    pub(crate) fn dirty_since(&self) -> Option<Moment> {
        self.dirty_since
    }

    /// Turns dirty data into generations, and answers their numbers. None of them if there is nothing (to fill a chunk).
    pub(crate) fn freeze(&mut self, how: Freeze) -> std::ops::Range<u64> {
        let first = self.next_generation;
        loop {
            let chunk = CHUNK_BYTES_MAX as usize;
            let limit = match how {
                Freeze::All => GENERATION_BYTES_MAX,
                Freeze::FullChunks if self.dirty.pieces_count() >= GENERATION_PIECES_MAX => GENERATION_BYTES_MAX,
                Freeze::FullChunks => (self.dirty.bytes() / chunk * chunk).min(GENERATION_BYTES_MAX),
            };
            if limit == 0 || self.dirty.is_empty() {
                break;
            }
            let ranges = self.dirty.take(limit, GENERATION_PIECES_MAX);
            let charged_bytes = self.charges.take((!self.dirty.is_empty()).then(|| ranges.end()));
            self.flushing.push_back(Frozen {
                generation: self.next_generation,
                ranges: Arc::new(ranges),
                mtime_ns: self.mtime_ns,
                kill_suid_sgid: std::mem::take(&mut self.kill_suid_sgid),
                charged_bytes,
            });
            self.next_generation += 1;
        }
        if self.dirty.is_empty() {
            self.dirty_since = None;
        }
        first..self.next_generation
    }

    /// A generation that has not ended.
    pub(crate) fn frozen(&self, generation: u64) -> Option<&Frozen> {
        self.flushing.iter().find(|f| f.generation == generation)
    }

    /// Whether the generation is the next to be committed.
    pub(crate) fn is_next(&self, generation: u64) -> bool {
        self.flushing.front().is_some_and(|f| f.generation == generation)
    }

    /// One past the newest generation: what a flush that begins now waits for.
    pub(crate) fn frozen_through(&self) -> u64 {
        self.next_generation
    }

    /// Whether every generation below has ended.
    pub(crate) fn has_ended(&self, through: u64) -> bool {
        self.flushing.front().is_none_or(|f| f.generation >= through)
    }

    /// Has somebody told when every generation below has ended.
    pub(crate) fn wait(&mut self, through: u64, waiter: Waiter) {
        self.waiters.push((through, waiter));
    }

    /// Takes out the waiters whose wait is over.
    pub(crate) fn take_waiters(&mut self) -> Vec<Waiter> {
        let oldest = self.flushing.front().map_or(u64::MAX, |f| f.generation);
        let mut over = Vec::new();
        self.waiters.retain(|(through, waiter)| {
            let ends = *through <= oldest;
            over.extend(ends.then_some(*waiter));
            !ends
        });
        over
    }

    /// Whether there is nothing dirty nor on its way.
    pub(crate) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.flushing.is_empty()
    }

    /// Whether nobody has it open and nothing of it is under way.
    pub(crate) fn is_unused(&self) -> bool {
        self.handles.is_empty() && self.is_clean() && self.map_waiters.is_empty()
    }

    /// Ends a generation that the table has mapped; what it held.
    pub(crate) fn committed(
        &mut self,
        generation: u64,
        attributes: Option<Attr>,
        chunks: &[ChunkRecord],
        extents: &[Extent],
    ) -> Dropped {
        if let Some(attributes) = attributes {
            // Our commit alone moved the version by one: the cached map plus our extents is the new map.
            if attributes.data_version == self.map_version + 1 {
                self.map.commit(chunks, extents);
                self.map_version = attributes.data_version;
            }
            if attributes.data_version >= self.attributes.data_version {
                self.attributes = attributes;
                self.doubtful = false;
            }
        }
        self.end(generation)
    }

    /// Ends a generation and returns what it held.
    pub(crate) fn end(&mut self, generation: u64) -> Dropped {
        let Some(at) = self.flushing.iter().position(|f| f.generation == generation) else { return Dropped::default() };
        self.flushing.remove(at).map_or(Dropped::default(), |frozen| Dropped {
            bytes: frozen.ranges.bytes(),
            charged_bytes: frozen.charged_bytes,
        })
    }

    /// Drops everything that is not committed, dirty and frozen; what it held.
    pub(crate) fn drop_unflushed(&mut self) -> Dropped {
        let mut dropped = Dropped { bytes: self.dirty.bytes(), charged_bytes: self.charges.take(None) };
        if self.sabotage != Sabotage::FrozenWrittenUnderNext {
            for frozen in self.flushing.drain(..) {
                dropped.bytes += frozen.ranges.bytes();
                dropped.charged_bytes += frozen.charged_bytes;
            }
        }
        self.dirty = DirtyMap::default();
        (self.dirty_since, self.kill_suid_sgid) = (None, false);
        self.committing = false;
        dropped
    }

    /// Learns a part of the map, unless it is older than what is known.
    pub(crate) fn learn_map(&mut self, attributes: Attr, map: &FileMap) {
        let is_older =
            attributes.data_version < self.map_version || attributes.data_version < self.attributes.data_version;
        if is_older && self.sabotage != Sabotage::OlderMapsBelieved {
            return;
        }
        if attributes.data_version != self.map_version {
            self.map.clear();
            self.map_version = attributes.data_version;
        }
        self.map.learn(map);
        self.attributes = attributes;
        self.doubtful = false;
    }

    /// Forgets the cached map, after it turned out to be stale or too large.
    pub(crate) fn forget_map(&mut self) {
        self.map.clear();
    }

    pub(crate) fn map_bytes(&self) -> usize {
        self.map.held_bytes()
    }

    /// Finds what is at `offset`, at most `length_bytes` of it.
    pub(crate) fn find(&mut self, offset: FileOffset, length_bytes: u64) -> Found {
        if self.doubtful {
            return Found::MapUnknown { offset };
        }
        let end = FileOffset(self.size_bytes().min(offset.0.saturating_add(length_bytes)));
        if offset >= end {
            return Found::Pieces(Vec::new());
        }
        let mut plan = Plan::new(offset, end);
        for (start, bytes) in self.dirty.parts(offset, end) {
            plan.put_bytes(start, &bytes);
        }
        for frozen in self.flushing.iter().rev() {
            for (start, bytes) in frozen.ranges.parts(offset, end) {
                plan.put_bytes(start, &bytes);
            }
        }
        // Behind the committed size there is nothing to ask the table for.
        let mapped_end = end.min(FileOffset(self.attributes.size_bytes));
        let is_current = self.map_version == self.attributes.data_version;
        for (from, to) in plan.gaps() {
            let to = to.min(mapped_end);
            if from >= to {
                continue;
            }
            let unknown = if is_current { self.map.first_unknown(from, to) } else { Some(from) };
            if let Some(offset) = unknown {
                return Found::MapUnknown { offset };
            }
            self.map.ranges(from, to).iter().for_each(|range| plan.put_mapped(range));
        }
        Found::Pieces(plan.finish())
    }
}

/// Nothing has changed it since its creation.
fn is_untouched(attributes: &Attr) -> bool {
    attributes.btime_ns != 0 && attributes.ctime_ns == attributes.btime_ns
}

/// The mode after a write by an unprivileged caller, as the table changes it: sgid without group execution is mandatory
/// locking's mark and stays.
fn without_suid_sgid(mode: u32) -> u32 {
    let sgid = if mode & 0o010 == 0 { 0 } else { 0o2000 };
    mode & !(0o4000 | sgid)
}

#[cfg(test)]
mod tests;
