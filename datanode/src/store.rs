//! The shard store over one disk: segment files that describe themselves, and an index that is a cache of them (D8).
//!
//! One [`Store`] writes, on one thread; any number of [`Reader`]s read beside it. All file operations go through
//! [`Directory`], so that tests can crash the store at every one of them. The order that makes it safe:
//! 1. a batch of requests is appended, every touched segment synced, only then indexed and answered (D6);
//! 2. a delete is a tombstone first; space goes when it is durable and running readers have left (R5);
//! 3. a segment is recycled after its live records were copied, synced, and a checkpoint no longer needs it.
//!
//! A failed sync or write takes the disk out of service for good (D6), over restarts too; being full does not, nor does a
//! missing descriptor. A place that cannot be read is the damage of what stands there.

mod batch;
pub(crate) mod checkpoint;
mod commit;
mod failure;
mod fields;
pub(crate) mod index;
mod maintain;
mod read;
mod record;
pub(crate) mod recover;
mod sabotage;
mod scan;
pub(crate) mod segment;
mod shared;
pub(crate) mod space;
pub(crate) mod surroundings;
pub(crate) mod types;
pub(crate) mod units;
pub(crate) mod volumes;

#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod naming_tests;
#[cfg(test)]
mod sabotage_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::batch::AlignedBuffer;
use self::index::{Index, Phase, SegmentState};
pub use self::sabotage::Sabotage;
use self::segment::{DATA_START, Segment, SegmentHeader, SegmentKind, file_name, write_header};
pub(crate) use self::shared::Shared;
use self::space::Budget;
use self::types::{SessionKey, ShardError, VolumeKey};
use self::units::to_usize;
use self::volumes::Volumes;
use holdfast_storage::{BLOCK_BYTES, Directory, is_no_space, is_out_of_descriptors};

/// Zeros are written ahead in pieces of this size.
const ZERO_PIECE_BYTES: u64 = 1 << 20;
/// Pause before a spare segment or a checkpoint is tried again that found no room.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// Sizes and habits of a store. Tests make them small.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Length of the first segment of small shards; each next one is twice as long.
    pub small_segment_bytes_min: u64,
    /// Greatest length of a segment of small shards.
    pub small_segment_bytes_max: u64,
    /// Length of a bulk segment; sparse.
    pub bulk_segment_bytes: u64,
    /// An artificial size of the disk, counted in bytes of shard records.
    pub limit_bytes: Option<u64>,
    /// A checkpoint is due after this many records, and a quarter of the shards on the disk.
    pub checkpoint_records: u64,
    /// A rule to break; none but in the simulation.
    pub sabotage: Sabotage,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            small_segment_bytes_min: 4 << 20,
            small_segment_bytes_max: 64 << 20,
            bulk_segment_bytes: 1 << 30,
            limit_bytes: None,
            checkpoint_records: 20_000,
            sabotage: Sabotage::None,
        }
    }
}

/// State that readers share with the writer.
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) segments: BTreeMap<u32, Arc<Segment>>,
    pub(crate) volumes: Volumes,
}

/// Append position of one kind of segment.
#[derive(Clone)]
pub(crate) struct Cursor {
    pub(crate) segment: Arc<Segment>,
    pub(crate) append: u64,
    /// Bytes of the page of `append` that stand before it; `None` until it was read or written.
    tail: Option<Vec<u8>>,
}

impl Cursor {
    pub(crate) fn new(segment: Arc<Segment>, append: u64) -> Self {
        Self { segment, append, tail: None }
    }

    /// Bytes of the page of `append` that stand before it.
    pub(crate) fn tail_bytes(&self) -> usize {
        to_usize(self.append % BLOCK_BYTES)
    }

    /// Makes sure that what the page of `append` holds before it is known.
    ///
    /// # Errors
    /// Any I/O error.
    pub(crate) fn read_tail(&mut self) -> std::io::Result<()> {
        if self.tail.is_none() {
            let mut tail = vec![0; self.tail_bytes()];
            self.segment.file.read_exact_at(self.append - tail.len() as u64, &mut tail)?;
            self.tail = Some(tail);
        }
        Ok(())
    }

    /// Writes records, which stand in `buffer` behind room for what their first page holds already, and advances.
    /// Whole pages are written, zeros behind the last record: of a page that is not in the page cache the kernel would
    /// have to read what is not overwritten. What was durable in the first page is written again as it was.
    ///
    /// # Errors
    /// Any I/O error; the cursor then stays where it was.
    pub(crate) fn write_pages(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let (start, page) = (self.tail_bytes(), to_usize(BLOCK_BYTES));
        self.read_tail()?;
        buffer[..start].copy_from_slice(&self.tail.take().unwrap_or_default());
        let end = buffer.len();
        buffer.resize(end.next_multiple_of(page), 0);
        self.segment.file.write_at(self.append - start as u64, buffer)?;
        self.tail = Some(buffer[end / page * page..end].to_vec());
        self.append += (end - start) as u64;
        Ok(())
    }
}

/// The writing end of a disk's store. One thread owns it.
pub(crate) struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: StoreOptions,
    /// Number of the next append.
    pub(crate) next_sequence: u64,
    /// Number up to which every append is durable.
    pub(crate) durable_sequence: u64,
    pub(crate) next_segment: u32,
    pub(crate) small: Option<Cursor>,
    pub(crate) bulk: Option<Cursor>,
    pub(crate) spares: VecDeque<Arc<Segment>>,
    pub(crate) spare_planned: bool,
    /// Some upkeep waits for room, which is said once.
    pub(crate) upkeep_waits: bool,
    /// Neither a spare segment nor a checkpoint is planned before: the last one found no room or no descriptor.
    pub(crate) pauses_until: Duration,
    /// The removal of a segment may not be durable: no checkpoint may forget the segment before.
    pub(crate) removal_unsynced: bool,
    pub(crate) dropping: VecDeque<VolumeKey>,
    pub(crate) records_since_checkpoint: u64,
    /// Whether upkeep writes checkpoints itself, rather than leave them to another thread.
    pub(crate) checkpoints_here: bool,
    pub(crate) checkpoint_wanted: bool,
    /// Another thread writes one.
    pub(crate) checkpoint_runs: bool,
    pub(crate) bulk_buffer: AlignedBuffer,
    pub(crate) compaction: Option<maintain::Compaction>,
}

/// The reading end; cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) shared: Arc<Shared>,
}

/// A disk's report to volume manager and clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Out of service after an I/O error, until the disk is formatted anew.
    pub failed: bool,
    /// Size of the disk: of the file system, or the configured limit if that is less.
    pub total_bytes: u64,
    /// Bytes that clients may still write; a share, if other disks of the process use the file system.
    pub available_bytes: u64,
    /// Bytes that clients could write if the file system were its own and nobody had reserved any.
    pub unreserved_bytes: u64,
    /// Bytes of its records of shards, with those that wait to be punched.
    pub used_bytes: u64,
    /// Shards that can be read.
    pub shards_count: u64,
    /// Bytes that no scan could explain (R6).
    pub damaged_bytes: u64,
    /// Reads that found damage since the start.
    pub corrupt_reads: u64,
    /// st_dev of its host; 0 for a disk with a limit of its own.
    pub file_system: u64,
}

impl Store {
    #[must_use]
    pub(crate) fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone() }
    }

    #[must_use]
    pub(crate) fn is_failed(&self) -> bool {
        self.shared.is_failed()
    }

    /// Whether the disk failed for good, and a place has the note of it.
    pub(crate) fn is_failure_noted(&self) -> bool {
        self.shared.is_failure_noted()
    }

    pub(crate) fn take_sequence(&mut self) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        sequence
    }

    fn plan_segment(&mut self, kind: SegmentKind, size_bytes: u64) -> SegmentHeader {
        let number = self.next_segment;
        self.next_segment += 1;
        let generation = self.take_sequence();
        SegmentHeader { number, kind, generation, disk: self.shared.disk, size_bytes }
    }

    /// Segments double in length as they are needed; on a nearly full disk they stay short.
    fn next_small_bytes(&self) -> u64 {
        if !self.shared.budget(self.shared.now()).is_ok_and(|budget| budget.allows_compaction()) {
            return self.options.small_segment_bytes_min;
        }
        let state = self.shared.state.read();
        let small = state.index.segments.values().filter(|s| s.kind == SegmentKind::Small);
        let longest = small.map(|s| s.size_bytes).max().unwrap_or(self.options.small_segment_bytes_min / 2);
        (longest * 2).clamp(self.options.small_segment_bytes_min, self.options.small_segment_bytes_max)
    }

    /// A segment to be made ahead of need by [`make_segment`], on any thread, and then handed to [`Store::add_spare`].
    /// `None` when there is a spare one, or one is being made.
    pub(crate) fn plan_spare(&mut self) -> Option<SegmentHeader> {
        if !self.spares.is_empty() || self.spare_planned || self.is_failed() || self.pauses() {
            return None;
        }
        self.spare_planned = true;
        let size_bytes = self.next_small_bytes();
        Some(self.plan_segment(SegmentKind::Small, size_bytes))
    }

    /// Work that found no room or no descriptor is not tried again at once, which would keep the disk and a core busy.
    pub(crate) fn pause(&mut self) {
        self.pauses_until = self.shared.now() + SHORTAGE_PAUSE;
    }

    /// Whether such a pause goes on.
    pub(crate) fn pauses(&self) -> bool {
        self.shared.now() < self.pauses_until
    }

    /// The segment asked for by [`Store::plan_spare`] will not be made now.
    pub(crate) fn give_up_spare(&mut self, why: &std::io::Error) {
        self.spare_planned = false;
        tracing::warn!(disk = self.shared.disk.0, error = %why, "no segment is prepared");
    }

    pub(crate) fn directory(&self) -> Arc<dyn Directory> {
        self.shared.directory.clone()
    }

    /// The segment asked for by [`Store::plan_spare`] is ready, or could not be made.
    pub(crate) fn add_spare(&mut self, made: std::io::Result<Arc<Segment>>) {
        self.spare_planned = false;
        match made {
            Ok(segment) => {
                self.adopt(&segment, Phase::Spare);
                self.spares.push_back(segment);
            }
            Err(error) if is_no_space(&error) || is_out_of_descriptors(&error) => {
                self.pause();
                tracing::warn!(disk = self.shared.disk.0, %error, "no segment is prepared");
            }
            Err(error) => {
                self.shared.trouble("preparing a segment", &error);
            }
        }
    }

    fn adopt(&self, segment: &Arc<Segment>, phase: Phase) {
        let mut state = self.shared.state.write();
        let number = segment.header.number;
        state.index.segments.insert(number, SegmentState { phase, ..SegmentState::empty(&segment.header) });
        state.segments.insert(number, segment.clone());
    }

    /// Seals the open segment of a kind and opens the next.
    pub(crate) fn roll(&mut self, kind: SegmentKind) -> Result<(), ShardError> {
        let spare = if kind == SegmentKind::Small { self.spares.pop_front() } else { None };
        let segment = match spare {
            Some(spare) => spare,
            None => self.make_now(kind)?,
        };
        let cursor = if kind == SegmentKind::Small { &mut self.small } else { &mut self.bulk };
        let sealed = cursor.replace(Cursor::new(segment.clone(), DATA_START));
        let mut state = self.shared.state.write();
        if let Some(sealed) = sealed {
            let old = state.index.segment_mut(sealed.segment.header.number);
            old.phase = Phase::Sealed;
            old.append = sealed.append;
        }
        state.index.segment_mut(segment.header.number).phase = Phase::Open;
        Ok(())
    }

    fn make_now(&mut self, kind: SegmentKind) -> Result<Arc<Segment>, ShardError> {
        let size_bytes = match kind {
            SegmentKind::Small => self.next_small_bytes(),
            SegmentKind::Bulk => self.options.bulk_segment_bytes,
        };
        let header = self.plan_segment(kind, size_bytes);
        match make_segment(&*self.shared.directory, header, false) {
            Ok(segment) => {
                self.adopt(&segment, Phase::Spare);
                Ok(segment)
            }
            Err(error) => Err(self.shared.unchanged("making a segment", &error)),
        }
    }
}

/// Makes a segment file, durable with its name when this returns. With `zeroed`, its blocks are written, so that later
/// syncs of it touch no metadata (R31).
///
/// # Errors
/// Any I/O error; what was made of the file is then removed if it can be.
pub(crate) fn make_segment(
    directory: &dyn Directory,
    header: SegmentHeader,
    zeroed: bool,
) -> std::io::Result<Arc<Segment>> {
    let name = file_name(header.kind, header.number);
    let made = try_make_segment(directory, header, zeroed, &name);
    if made.is_err() {
        let _ = directory.remove(&name);
    }
    made
}

fn try_make_segment(
    directory: &dyn Directory,
    header: SegmentHeader,
    zeroed: bool,
    name: &str,
) -> std::io::Result<Arc<Segment>> {
    let file = directory.create(name)?;
    file.set_length(header.size_bytes)?;
    if zeroed {
        let zeros = AlignedBuffer::new(to_usize(ZERO_PIECE_BYTES));
        let mut offset = 0;
        while offset < header.size_bytes {
            let piece = ZERO_PIECE_BYTES.min(header.size_bytes - offset);
            file.write_direct(offset, zeros.bytes(to_usize(piece)))?;
            offset += piece;
        }
    }
    file.sync_data()?;
    write_header(&*file, &header)?;
    directory.sync_names()?;
    debug_assert!(header.size_bytes.is_multiple_of(BLOCK_BYTES));
    Ok(Segment::new(header, file))
}

impl DiskStatus {
    /// Status of a disk that was not opened.
    #[must_use]
    pub fn lost() -> Self {
        Self {
            failed: true,
            total_bytes: 0,
            available_bytes: 0,
            unreserved_bytes: 0,
            used_bytes: 0,
            shards_count: 0,
            damaged_bytes: 0,
            corrupt_reads: 0,
            file_system: 0,
        }
    }
}

impl Reader {
    /// Bytes that clients may still write: the disk's share, from the last look at the file system.
    #[must_use]
    pub(crate) fn available_bytes(&self) -> u64 {
        let used_bytes = self.shared.state.read().index.used_bytes();
        let space = self.shared.space.lock().space;
        let mut budget = Budget::new(&space, used_bytes, self.shared.limit_bytes);
        self.shared.book.fill(&mut budget, SessionKey::NOBODY, self.shared.now());
        budget.share()
    }

    #[must_use]
    pub(crate) fn status(&self) -> DiskStatus {
        let now = self.shared.now();
        let budget = self.shared.budget(now).ok().map(|mut budget| {
            self.shared.book.fill(&mut budget, SessionKey::NOBODY, now);
            budget
        });
        let failed = self.shared.is_failed();
        let state = self.shared.state.read();
        DiskStatus {
            failed,
            total_bytes: budget.map_or(0, |b| b.total_bytes()),
            available_bytes: if failed { 0 } else { budget.map_or(0, |b| b.share()) },
            unreserved_bytes: if failed { 0 } else { budget.map_or(0, |b| b.unreserved()) },
            used_bytes: state.index.used_bytes(),
            shards_count: state.index.shards_count(),
            damaged_bytes: state.index.damaged_bytes(),
            corrupt_reads: self.shared.corrupt_reads.load(Ordering::Relaxed),
            file_system: self.shared.shared_file_system(),
        }
    }

    /// Whether the disk is out of service.
    #[must_use]
    pub(crate) fn is_failed(&self) -> bool {
        self.shared.is_failed()
    }

    /// Takes the disk out of service until it is opened again.
    pub(crate) fn retire(&self, why: &str) {
        self.shared.retire(why);
    }

    /// Sets a session's reservation and says what was granted, and what is available to it beyond.
    ///
    /// # Errors
    /// [`ShardError::DiskFailed`].
    pub(crate) fn reserve(
        &self,
        session: SessionKey,
        wanted_bytes: u64,
        lease: Duration,
    ) -> Result<Granted, ShardError> {
        if self.is_failed() {
            return Err(ShardError::DiskFailed);
        }
        // Other processes write to the same file system, too: what is promised is looked at now.
        self.shared.doubt_space();
        let now = self.shared.now();
        let mut budget = self.shared.budget(now)?;
        let file_system_free_bytes = budget.unreserved();
        let granted_bytes = self.shared.book.reserve(budget, session, wanted_bytes, lease, now);
        let own = self.shared.book.fill(&mut budget, session, now);
        Ok(Granted {
            granted_bytes,
            available_bytes: budget.for_session(own).saturating_sub(own),
            file_system: self.shared.shared_file_system(),
            file_system_free_bytes,
        })
    }
}

/// Answer to a reservation, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Reserved for the session now.
    pub(crate) granted_bytes: u64,
    /// Free for it beyond that.
    pub(crate) available_bytes: u64,
    /// The file system whose free bytes disks of this host share; 0 if this disk has a limit of its own.
    pub(crate) file_system: u64,
    /// Bytes clients could write there if nobody had reserved any.
    pub(crate) file_system_free_bytes: u64,
}
