//! What this client knows and holds of one inode: the newest attributes, written data on its way to the cluster, and
//! the cached extent map.
//!
//! Written data passes three states. *Dirty*: in memory, taking writes. *Frozen*: a numbered generation that will not
//! change, waiting for or in a flush job. *Committed*: the table maps it, the memory is free. Generations commit in
//! their order, and a generation holds ascending offsets, so that a crash never shows a byte of a file without those
//! that the application wrote before it at lower offsets.

use crate::dirty::{DirtyMap, FrozenRanges, Overlay};
use crate::extent_map::{ExtentMap, MappedRange};
use crate::questions::newest;
use crate::{Error, WriteAt};
use bytes::Bytes;
use holdfast_common::InodeId;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX, FILE_BYTES_MAX};
use holdfast_proto::meta::{Attr, ChunkRecord, Extent, FileMap};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes of one generation at most: four chunks, one commit.
const GENERATION_BYTES_MAX: usize = 4 * CHUNK_BYTES_MAX as usize;
/// Ranges of one generation at most: half a commit, as cutting at chunk ends adds some.
const GENERATION_PIECES_MAX: usize = COMMIT_EXTENTS_MAX / 2;

/// How long an inode that was created here is taken to have no extended attributes still.
const PRISTINE_FOR: Duration = Duration::from_secs(1);

/// A generation on its way.
#[derive(Debug, Clone)]
pub(crate) struct Frozen {
    pub(crate) generation: u64,
    pub(crate) ranges: Arc<FrozenRanges>,
    pub(crate) mtime_ns: i64,
    pub(crate) kill_suid_sgid: bool,
    /// What its writes were charged of the quota.
    pub(crate) charged_bytes: u64,
}

#[derive(Debug)]
struct State {
    attributes: Attr,
    dirty: DirtyMap,
    dirty_since: Option<Instant>,
    mtime_ns: i64,
    kill_suid_sgid: bool,
    /// What the writes that are dirty now were charged of the quota.
    charged_bytes: u64,
    flushing: VecDeque<Frozen>,
    next_generation: u64,
    extents: ExtentMap,
    extents_version: u64,
    /// Until then it is [pristine](Inode::is_pristine).
    pristine_until: Option<Instant>,
    error: Option<Error>,
}

/// How much to freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// Only what fills chunks.
    FullChunks,
    /// Everything.
    All,
}

/// One inode in use by this client.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) id: InodeId,
    state: Mutex<State>,
    /// Notified whenever a generation ends.
    progress: Notify,
}

/// What a read finds without the network.
#[derive(Debug)]
pub(crate) enum Found {
    /// The map of this offset is not known: ask the table from there on.
    MapUnknown { offset: u64 },
    /// At or behind the end of the file.
    End,
    /// Nothing unflushed in the range: these parts of chunks; between them holes.
    Mapped { length_bytes: u64, ranges: Vec<MappedRange> },
    /// Unflushed data, and these parts of chunks where it has gaps.
    Mixed { overlay: Overlay, ranges: Vec<MappedRange> },
}

impl Inode {
    pub(crate) fn new(attributes: Attr) -> Self {
        Self {
            id: InodeId(attributes.inode),
            state: Mutex::new(State {
                extents_version: attributes.data_version,
                attributes,
                dirty: DirtyMap::default(),
                dirty_since: None,
                mtime_ns: 0,
                kill_suid_sgid: false,
                charged_bytes: 0,
                flushing: VecDeque::new(),
                next_generation: 0,
                extents: ExtentMap::default(),
                pristine_until: None,
                error: None,
            }),
            progress: Notify::new(),
        }
    }

    /// Takes in attributes from the table and answers them as this client's user must see them. An answer that was
    /// overtaken by one of our own commits is not believed in what that commit changed.
    pub(crate) fn refresh(&self, mut fresh: Attr) -> Attr {
        let mut state = self.state.lock();
        if !is_untouched(&fresh) {
            state.pristine_until = None;
        }
        if fresh.data_version >= state.attributes.data_version {
            state.attributes = fresh;
            if state.flushing.is_empty() && fresh.data_version != state.extents_version {
                state.extents.clear();
                state.extents_version = fresh.data_version;
            }
        } else {
            fresh = newest(fresh, &state.attributes);
        }
        state.overlay_attributes(&mut fresh);
        fresh
    }

    /// It was created here just now, unless `attributes` show that somebody has changed it since: setting an extended
    /// attribute moves the time of change, and no two operations have the same time.
    pub(crate) fn created(&self, attributes: &Attr) {
        if is_untouched(attributes) {
            self.state.lock().pristine_until = Some(Instant::now() + PRISTINE_FOR);
        }
    }

    /// Whether it was created here a moment ago, and is not known to have got extended attributes since.
    pub(crate) fn is_pristine(&self) -> bool {
        self.state.lock().pristine_until.is_some_and(|until| Instant::now() < until)
    }

    /// It may have extended attributes from now on.
    pub(crate) fn spoil(&self) {
        self.state.lock().pristine_until = None;
    }

    /// The size as this client's user sees it.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.state.lock().size_bytes()
    }

    /// Attributes as last known, with what is unflushed.
    pub(crate) fn attributes(&self) -> Attr {
        let state = self.state.lock();
        let mut attributes = state.attributes;
        state.overlay_attributes(&mut attributes);
        attributes
    }

    pub(crate) fn truncate_generation(&self) -> u64 {
        self.state.lock().attributes.truncate_generation
    }

    /// Writes into the dirty map. Answers the bytes that it replaced there, and the bytes now dirty.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`], with nothing changed.
    pub(crate) fn write(
        &self,
        at: WriteAt,
        data: Bytes,
        mtime_ns: i64,
        kill_suid_sgid: bool,
    ) -> Result<Written, Error> {
        let mut state = self.state.lock();
        // Chosen under the lock under which it is taken in: of two appends the second stands behind the first.
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End { .. } => state.size_bytes(),
        };
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Error::FileTooLarge);
        }
        let replaced_bytes = state.dirty.write(offset, data);
        state.mtime_ns = state.mtime_ns.max(mtime_ns);
        state.kill_suid_sgid |= kill_suid_sgid;
        let first = state.dirty_since.is_none();
        state.dirty_since.get_or_insert_with(Instant::now);
        let (dirty_bytes, pieces_count) = (state.dirty.bytes(), state.dirty.pieces_count());
        Ok(Written { replaced_bytes, dirty_bytes, pieces_count, first })
    }

    /// What a write that is about to be taken in was charged of the quota.
    pub(crate) fn charged(&self, bytes: u64) {
        self.state.lock().charged_bytes += bytes;
    }

    /// Since when there is dirty data.
    pub(crate) fn dirty_since(&self) -> Option<Instant> {
        self.state.lock().dirty_since
    }

    /// Turns dirty data into generations, in their order. `None` of them if there is nothing (to fill a chunk).
    pub(crate) fn freeze(&self, how: Freeze) -> Vec<Frozen> {
        let mut state = self.state.lock();
        let mut frozen = Vec::new();
        loop {
            let chunk = CHUNK_BYTES_MAX as usize;
            let limit = match how {
                Freeze::All => GENERATION_BYTES_MAX,
                Freeze::FullChunks if state.dirty.pieces_count() >= GENERATION_PIECES_MAX => GENERATION_BYTES_MAX,
                Freeze::FullChunks => (state.dirty.bytes() / chunk * chunk).min(GENERATION_BYTES_MAX),
            };
            if limit == 0 || state.dirty.is_empty() {
                break;
            }
            let ranges = state.dirty.take(limit, GENERATION_PIECES_MAX);
            let charged = if state.dirty.is_empty() { u64::MAX } else { ranges.charge() }.min(state.charged_bytes);
            state.charged_bytes -= charged;
            let generation = state.next_generation;
            state.next_generation += 1;
            let part = Frozen {
                generation,
                ranges: Arc::new(ranges),
                mtime_ns: state.mtime_ns,
                kill_suid_sgid: std::mem::take(&mut state.kill_suid_sgid),
                charged_bytes: charged,
            };
            state.flushing.push_back(part.clone());
            frozen.push(part);
        }
        if state.dirty.is_empty() {
            state.dirty_since = None;
        }
        frozen
    }

    /// One past the newest generation: what a flush that begins now waits for.
    pub(crate) fn frozen_through(&self) -> u64 {
        self.state.lock().next_generation
    }

    /// Whether there is anything dirty or on its way.
    pub(crate) fn is_clean(&self) -> bool {
        let state = self.state.lock();
        state.dirty.is_empty() && state.flushing.is_empty()
    }

    /// Waits until every generation below `through` has ended.
    pub(crate) async fn wait_through(&self, through: u64) {
        loop {
            let notified = self.progress.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.state.lock().flushing.front().is_none_or(|f| f.generation >= through) {
                return;
            }
            notified.await;
        }
    }

    /// Ends a generation that the table has mapped.
    pub(crate) fn committed(
        &self,
        generation: u64,
        attributes: Option<Attr>,
        chunks: &[ChunkRecord],
        extents: &[Extent],
    ) {
        let mut state = self.state.lock();
        if let Some(attributes) = attributes {
            // Our commit alone moved the version by one: the cached map plus our extents is the new map.
            if attributes.data_version == state.extents_version + 1 {
                state.extents.commit(chunks, extents);
            } else {
                state.extents.clear();
            }
            state.extents_version = attributes.data_version;
            if attributes.data_version >= state.attributes.data_version {
                state.attributes = attributes;
            }
        }
        state.flushing.retain(|f| f.generation != generation);
        drop(state);
        self.progress.notify_waiters();
    }

    /// Ends a generation whose data is lost; the error sticks until it was reported (R22).
    pub(crate) fn lost(&self, generation: u64, error: Error) {
        let mut state = self.state.lock();
        state.flushing.retain(|f| f.generation != generation);
        state.error.get_or_insert(error);
        drop(state);
        self.progress.notify_waiters();
    }

    /// Drops what is dirty; answers the bytes given up.
    pub(crate) fn drop_dirty(&self, error: Error) -> usize {
        let mut state = self.state.lock();
        state.charged_bytes = 0;
        let bytes = state.dirty.bytes();
        if bytes > 0 {
            state.dirty = DirtyMap::default();
            state.dirty_since = None;
            state.error.get_or_insert(error);
        }
        bytes
    }

    /// The lost write to report, once.
    pub(crate) fn take_error(&self) -> Result<(), Error> {
        self.state.lock().error.take().map_or(Ok(()), Err)
    }

    /// Learns a part of the map, unless it is older than what is known.
    pub(crate) fn learn_map(&self, attributes: Attr, map: &FileMap) {
        let mut state = self.state.lock();
        if attributes.data_version < state.extents_version {
            return;
        }
        if attributes.data_version != state.extents_version {
            state.extents.clear();
            state.extents_version = attributes.data_version;
        }
        state.extents.learn(map);
        if attributes.data_version >= state.attributes.data_version {
            state.attributes = attributes;
        }
    }

    /// Forgets the cached map, after it turned out to be stale.
    pub(crate) fn forget_map(&self) {
        self.state.lock().extents.clear();
    }

    /// What is at `offset`, at most `length_bytes` of it.
    pub(crate) fn find(&self, offset: u64, length_bytes: u64) -> Found {
        let state = self.state.lock();
        let end = state.size_bytes().min(offset.saturating_add(length_bytes));
        if offset >= end {
            return Found::End;
        }
        let untouched = !state.dirty.touches(offset, end)
            && state.flushing.iter().all(|f| f.ranges.end() <= offset || f.ranges.ranges[0].0 >= end);
        // Behind the committed size there is nothing to ask the table for.
        let mapped_end = end.min(state.attributes.size_bytes);
        if untouched {
            if let Some(unknown) = state.extents.first_unknown(offset, mapped_end) {
                return Found::MapUnknown { offset: unknown };
            }
            return Found::Mapped { length_bytes: end - offset, ranges: state.extents.ranges(offset, end) };
        }
        let mut overlay = Overlay::new(usize::try_from(end - offset).expect("a read fits memory"));
        state.dirty.overlay(offset, &mut overlay);
        for frozen in state.flushing.iter().rev() {
            frozen.ranges.overlay(offset, &mut overlay);
        }
        let mut ranges = Vec::new();
        for (from, to) in overlay.gaps() {
            let (from, to) = (offset + from as u64, (offset + to as u64).min(mapped_end));
            if from >= to {
                continue;
            }
            if let Some(unknown) = state.extents.first_unknown(from, to) {
                return Found::MapUnknown { offset: unknown };
            }
            ranges.extend(state.extents.ranges(from, to));
        }
        Found::Mixed { overlay, ranges }
    }
}

/// What a write did to the dirty map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) replaced_bytes: usize,
    pub(crate) dirty_bytes: usize,
    pub(crate) pieces_count: usize,
    /// The inode had nothing dirty before.
    pub(crate) first: bool,
}

impl State {
    fn size_bytes(&self) -> u64 {
        let flushing = self.flushing.iter().map(|f| f.ranges.end()).max().unwrap_or(0);
        self.attributes.size_bytes.max(flushing).max(self.dirty.end())
    }

    fn overlay_attributes(&self, attributes: &mut Attr) {
        if self.dirty.is_empty() && self.flushing.is_empty() {
            return;
        }
        if self.kill_suid_sgid || self.flushing.iter().any(|f| f.kill_suid_sgid) {
            attributes.mode = without_suid_sgid(attributes.mode);
        }
        attributes.size_bytes = attributes.size_bytes.max(self.size_bytes());
        attributes.mtime_ns = attributes.mtime_ns.max(self.mtime_ns);
        attributes.ctime_ns = attributes.ctime_ns.max(self.mtime_ns);
    }
}

/// Nothing has changed it since its creation.
fn is_untouched(attributes: &Attr) -> bool {
    attributes.btime_ns != 0 && attributes.ctime_ns == attributes.btime_ns
}

/// What a write by an unprivileged caller leaves of a mode, as the table does it: sgid without group execution is
/// mandatory locking's mark and stays.
fn without_suid_sgid(mode: u32) -> u32 {
    let sgid = if mode & 0o010 == 0 { 0 } else { 0o2000 };
    mode & !(0o4000 | sgid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode() -> Inode {
        Inode::new(Attr { inode: 5, ..Attr::default() })
    }

    fn bytes(length: usize) -> Bytes {
        Bytes::from(vec![1; length])
    }

    #[test]
    fn only_full_chunks_are_frozen_while_a_file_streams() {
        let inode = inode();
        inode.write(WriteAt::Offset(0), bytes(1000), 1, false).unwrap();
        assert!(inode.freeze(Freeze::FullChunks).is_empty());
        inode.write(WriteAt::Offset(1000), bytes(CHUNK_BYTES_MAX as usize), 2, false).unwrap();
        let frozen = inode.freeze(Freeze::FullChunks);
        assert_eq!(frozen.len(), 1);
        assert_eq!(frozen[0].ranges.bytes(), CHUNK_BYTES_MAX as usize);
        assert_eq!(inode.freeze(Freeze::All)[0].ranges.bytes(), 1000);
    }

    #[test]
    fn an_append_goes_behind_what_is_dirty_frozen_and_committed() {
        let inode = Inode::new(Attr { inode: 5, size_bytes: 10, ..Attr::default() });
        for _ in 0..3 {
            inode.write(WriteAt::End { believed: 0 }, bytes(10), 1, false).unwrap();
            inode.freeze(Freeze::All);
        }
        assert_eq!(inode.size_bytes(), 40);
        let full = Inode::new(Attr { inode: 6, size_bytes: FILE_BYTES_MAX - 5, ..Attr::default() });
        assert_eq!(full.write(WriteAt::End { believed: 0 }, bytes(6), 1, false).err(), Some(Error::FileTooLarge));
        assert_eq!(full.size_bytes(), FILE_BYTES_MAX - 5);
    }

    #[test]
    fn attributes_that_our_own_commit_overtook_do_not_shrink_the_file() {
        let inode = inode();
        inode.write(WriteAt::Offset(0), bytes(100), 50, false).unwrap();
        let frozen = inode.freeze(Freeze::All);
        let stale = Attr { inode: 5, ..Attr::default() };
        inode.committed(
            frozen[0].generation,
            Some(Attr { inode: 5, size_bytes: 100, mtime_ns: 50, data_version: 1, ..Attr::default() }),
            &[],
            &[],
        );
        let seen = inode.refresh(stale);
        assert_eq!((seen.size_bytes, seen.mtime_ns), (100, 50));
    }

    #[test]
    fn suid_is_gone_from_the_write_on_not_from_its_flush_on() {
        let inode = Inode::new(Attr { inode: 5, mode: 0o6755, ..Attr::default() });
        inode.write(WriteAt::Offset(0), bytes(1), 1, true).unwrap();
        assert_eq!(inode.attributes().mode, 0o755);
        inode.freeze(Freeze::All);
        assert_eq!(inode.attributes().mode, 0o755);
        assert_eq!(without_suid_sgid(0o6745), 0o2745);
    }

    #[test]
    fn only_a_file_that_nobody_changed_since_its_creation_is_pristine() {
        let attributes = |ctime_ns| Attr { inode: 5, btime_ns: 7, ctime_ns, ..Attr::default() };
        let of = |btime_ns, ctime_ns| {
            let attributes = Attr { btime_ns, ..attributes(ctime_ns) };
            let inode = Inode::new(attributes);
            assert!(!inode.is_pristine(), "it was only opened");
            inode.created(&attributes);
            inode
        };
        assert!(of(7, 7).is_pristine() && !of(7, 8).is_pristine());
        let spoilt = of(7, 7);
        spoilt.spoil();
        assert!(!spoilt.is_pristine());
        let changed = of(7, 7);
        changed.refresh(attributes(8));
        assert!(!changed.is_pristine());
        let old = of(7, 7);
        old.state.lock().pristine_until = Some(Instant::now());
        assert!(!old.is_pristine());
    }

    #[test]
    fn a_lost_write_is_reported_once() {
        let inode = inode();
        inode.write(WriteAt::Offset(0), bytes(100), 50, false).unwrap();
        let frozen = inode.freeze(Freeze::All);
        inode.lost(frozen[0].generation, Error::NoSpace);
        assert_eq!(inode.take_error(), Err(Error::NoSpace));
        assert_eq!(inode.take_error(), Ok(()));
        assert_eq!(inode.size_bytes(), 0);
    }

    #[test]
    fn what_is_unflushed_is_read_before_what_is_mapped() {
        let inode = inode();
        inode.write(WriteAt::Offset(0), Bytes::from_static(b"frozen"), 1, false).unwrap();
        inode.freeze(Freeze::All);
        inode.write(WriteAt::Offset(2), Bytes::from_static(b"DI"), 1, false).unwrap();
        let Found::Mixed { overlay, ranges } = inode.find(0, 100) else { panic!("unflushed data") };
        assert!(ranges.is_empty());
        assert_eq!(&overlay.finish()[..], b"frDIen");
    }

    #[tokio::test]
    async fn a_flush_waits_for_the_generations_before_it_only() {
        let inode = inode();
        inode.write(WriteAt::Offset(0), bytes(10), 1, false).unwrap();
        let first = inode.freeze(Freeze::All)[0].generation;
        let through = inode.frozen_through();
        inode.write(WriteAt::Offset(10), bytes(10), 1, false).unwrap();
        inode.freeze(Freeze::All);
        inode.committed(first, None, &[], &[]);
        inode.wait_through(through).await;
        assert!(!inode.is_clean());
    }
}
