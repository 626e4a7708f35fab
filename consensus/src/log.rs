//! The shared write-ahead log of all Raft groups of a process (R23 to R25, docs/disk-format/log.md).
//!
//! It is written by one thread: `append` batches, then `sync` once. Segments are filled with zeros before they are used
//! and recycled afterwards, so that `append` and `sync` never change a file's length or blocks. After a failed write
//! or sync the log is poisoned (D6): whether the bytes are durable is unknown for good, so nothing may be acknowledged or
//! voted any more, and trying again would let the kernel claim a success that it cannot keep.
//!
//! Only a full disk and a process without a file descriptor for the next segment are no such failure: what could not be
//! written waits ([`Log::lack`]), nothing of it is acknowledged, and it is tried again. Spare segments keep a full disk from
//! holding anything up while there is anything to make obsolete.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, mpsc};

use crate::config::ExpectedLog;
use crate::sabotage::Sabotage;
use batch::{FIRST_BATCH, Position, SEGMENT_HEADER_BYTES, SegmentHeader, batch_bytes, split};
use holdfast_common::RaftGroupId;
use holdfast_storage::{Directory, DiskFile, FileSystemSpace, is_no_space};
use pins::AllPins;
use record::Record;
use segment::{Preparation, Unprepared, is_passing, lasting};
use spares::{SPARES, Spares};

pub(crate) mod batch;
mod pins;
pub(crate) mod record;
mod recovery;
pub(crate) mod replay;
pub(crate) mod segment;
mod spares;
#[cfg(test)]
mod tests;

pub(crate) use recovery::RecoveryError;

/// Obsolete segments kept for recycling; more are removed.
const SPARES_MAX: usize = 2;

/// Settings of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// Size of new segments.
    pub(crate) segment_bytes: u32,
    /// Size of the log above which [`Log::holders`] names Raft groups to carry forward.
    pub(crate) bytes_max: u64,
    /// Entries below a snapshot that replay keeps.
    pub(crate) tail_entries: u64,
    /// Identity of the log if there is none yet.
    pub(crate) identity: [u8; 16],
    /// Log that must be there.
    pub(crate) expected: ExpectedLog,
    pub(crate) sabotage: Sabotage,
}

/// Failure after which nothing can be written any more.
#[derive(Debug, thiserror::Error)]
#[error("the log failed: {0}")]
pub struct LogFailed(#[from] pub(crate) io::Error);

/// Segment that is being written.
struct Current {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    bytes: u32,
    offset: u32,
}

/// Takes segments to prepare ahead of their use.
pub(crate) type Filler = mpsc::Sender<(Preparation, mpsc::Sender<Prepared>)>;
type Prepared = Result<Arc<dyn DiskFile>, Unprepared>;

pub(crate) struct Log {
    disk: Arc<dyn Directory>,
    options: LogOptions,
    current: Current,
    /// Position before which everything is durable.
    durable: Position,
    pins: AllPins,
    /// Oldest segment needed, as the next batch will say.
    start: u64,
    /// Oldest segment needed, as the last synced batch says: older ones may be overwritten.
    durable_start: u64,
    /// Segments that have a name, with their size; the current one is not among them, the one in preparation neither.
    segments: BTreeMap<u64, u32>,
    /// The next segment, in the filler's hands.
    next: Option<mpsc::Receiver<Prepared>>,
    filler: Option<Filler>,
    spares: Spares,
    /// Batches that wait for room or a descriptor.
    waiting: VecDeque<Vec<Record>>,
    /// Bytes of a batch that the current segment has a place for, but the disk has not.
    unwritten: Option<Vec<u8>>,
    /// Reason why something waits; none if nothing does.
    lack: Option<io::Error>,
    unsynced: bool,
    poisoned: bool,
}

impl Log {
    /// Lets segments be prepared by another thread from now on.
    pub(crate) fn set_filler(&mut self, filler: Filler) {
        self.filler = Some(filler);
        self.order_next();
    }

    /// Identity that tells it from all other logs.
    pub(crate) fn identity(&self) -> [u8; 16] {
        self.current.header.log
    }

    fn batch_bytes_max(&self) -> usize {
        self.options.segment_bytes as usize - SEGMENT_HEADER_BYTES
    }

    /// Writes records, as one batch unless they are too many for one; durable after [`Self::sync`], unless they wait, see
    /// [`Self::lack`].
    pub(crate) fn append(&mut self, records: Vec<Record>) -> Result<(), LogFailed> {
        self.guard(|log| log.try_append(records))
    }

    /// Whether records wait, for room on the disk or for a file descriptor. Nothing can be synced until [`Self::try_again`] has
    /// written them.
    pub(crate) fn is_waiting(&self) -> bool {
        self.unwritten.is_some() || !self.waiting.is_empty()
    }

    /// Reason why records wait, as the system told it at the last attempt.
    pub(crate) fn lack(&self) -> Option<&io::Error> {
        self.lack.as_ref()
    }

    /// Writes what waits, if nothing is missing now.
    pub(crate) fn try_again(&mut self) -> Result<(), LogFailed> {
        self.guard(Self::write_waiting)
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> Result<(), LogFailed> {
        assert!(!self.is_waiting(), "what waits for room is not durable");
        self.guard(Self::try_sync)
    }

    /// Groups that hold the oldest segment while the log is longer than its bound, or its disk has no room for spares: write
    /// their state again.
    pub(crate) fn holders(&self) -> Vec<RaftGroupId> {
        let total: u64 = self.segments.values().chain([&self.current.bytes]).map(|bytes| u64::from(*bytes)).sum();
        let fits = total <= self.options.bytes_max && self.missing_spares() == 0;
        if fits || self.start >= self.current.header.segment {
            return Vec::new();
        }
        self.pins.holders(self.start)
    }

    pub(crate) fn space(&self) -> io::Result<FileSystemSpace> {
        self.disk.space()
    }

    /// Bytes that the spares need which are not there.
    pub(crate) fn missing_bytes(&self) -> u64 {
        self.missing_spares() as u64 * u64::from(self.options.segment_bytes)
    }

    fn missing_spares(&self) -> usize {
        SPARES.saturating_sub(self.spares.count() + self.segments.range(..self.durable_start).count())
    }

    /// Makes the spares that are missing, if there is room for them, and a descriptor.
    pub(crate) fn fill_spares(&mut self) -> Result<(), LogFailed> {
        self.guard(|log| {
            while log.missing_spares() > 0 && log.spares.add(&*log.disk, log.options.segment_bytes)? {}
            Ok(())
        })
    }

    /// Says whether it may still be written.
    pub(crate) fn check(&self) -> Result<(), LogFailed> {
        if self.poisoned { Err(LogFailed(io::Error::other("an earlier write failed"))) } else { Ok(()) }
    }

    fn guard(&mut self, action: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), LogFailed> {
        self.check()?;
        action(self).map_err(|error| {
            self.poisoned = true;
            LogFailed(error)
        })
    }

    fn try_append(&mut self, records: Vec<Record>) -> io::Result<()> {
        self.waiting.extend(split(records, self.batch_bytes_max()));
        self.write_waiting()
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        self.lack = match self.write_until_lack() {
            Err(error) if is_passing(&error) => Some(error),
            written => written.map(|()| None)?,
        };
        Ok(())
    }

    /// Writes until something is missing or everything is written. Records behind an error stay among those that wait.
    fn write_until_lack(&mut self) -> io::Result<()> {
        self.write_unwritten()?;
        while let Some(batch) = self.waiting.pop_front() {
            if let Err(error) = self.append_batch(&batch) {
                if self.unwritten.is_none() {
                    self.waiting.push_front(batch);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn append_batch(&mut self, records: &[Record]) -> io::Result<()> {
        let room = batch_bytes(records);
        if room > self.batch_bytes_max() {
            return Err(io::Error::other(format!("a batch of {room} bytes does not fit a segment")));
        }
        if self.current.offset as usize + room > self.current.bytes as usize {
            self.switch()?;
        }
        let segment = self.current.header.segment;
        records.iter().for_each(|record| self.pins.note(record, segment));
        let forgets = self.options.sabotage == Sabotage::NeededSegmentsRecycled;
        self.start = self.pins.oldest().filter(|_| !forgets).unwrap_or(segment).min(segment);
        let bytes = self.current.header.encode_batch(self.current.offset, self.durable, self.start, records);
        self.unwritten = Some(bytes);
        self.write_unwritten()
    }

    /// Segments have their blocks, yet a file system that copies on write needs new ones. The same bytes are tried again then,
    /// because their records are noted already.
    fn write_unwritten(&mut self) -> io::Result<()> {
        let Some(bytes) = &self.unwritten else { return Ok(()) };
        self.current.file.write_at(u64::from(self.current.offset), bytes)?;
        self.current.offset += u32::try_from(bytes.len()).expect("a batch fits a segment");
        (self.unwritten, self.unsynced) = (None, true);
        Ok(())
    }

    fn try_sync(&mut self) -> io::Result<()> {
        assert!(self.unwritten.is_none(), "a batch that waits for room is not covered by a sync");
        if !self.unsynced {
            return Ok(());
        }
        let mut synced = self.current.file.sync_data();
        if self.options.sabotage == Sabotage::FailedSyncRetried {
            synced = synced.or_else(|_| self.current.file.sync_data());
        }
        synced.map_err(lasting)?;
        self.unsynced = false;
        self.durable = Position { segment: self.current.header.segment, offset: self.current.offset };
        self.durable_start = self.start;
        Ok(())
    }

    /// Goes on in the next segment. The old one is synced first, so that a segment's first batch always says where the
    /// one before ends.
    fn switch(&mut self) -> io::Result<()> {
        self.try_sync()?;
        let segment = self.current.header.segment + 1;
        let filled = self.next.take().and_then(|next| next.recv().ok());
        let file = match filled.map(|filled| self.unless_untouched(filled)) {
            Some(Ok(file)) => file,
            // Whatever hindered the filler, such as a full disk, may be over, or hinder recycling less.
            _ => self.prepare(segment)?,
        };
        self.segments.insert(self.current.header.segment, self.current.bytes);
        self.current = Current {
            header: SegmentHeader { log: self.current.header.log, segment },
            file,
            bytes: self.options.segment_bytes,
            offset: FIRST_BATCH,
        };
        self.remove_surplus()?;
        self.order_next();
        Ok(())
    }

    /// Begins a segment, on a full disk in a spare.
    fn prepare(&mut self, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        let prepared = self.preparation(segment).run(&*self.disk);
        self.unless_untouched(prepared).or_else(|error| {
            let spare = if is_no_space(&error) { self.spares.take() } else { None };
            let reused = Some(spare.ok_or(error)?);
            let header = SegmentHeader { log: self.current.header.log, segment };
            let prepared = Preparation { header, bytes: self.options.segment_bytes, reused }.run(&*self.disk);
            self.unless_untouched(prepared)
        })
    }

    /// Takes a file back that was to be used again and is as it was.
    fn unless_untouched(&mut self, prepared: Prepared) -> io::Result<Arc<dyn DiskFile>> {
        prepared.map_err(|Unprepared { error, untouched }| {
            if let Some(file) = untouched.filter(|file| !self.spares.put_back(file)) {
                let segment = segment::parse_name(&file).expect("only segments and spares are used again");
                self.segments.insert(segment, self.options.segment_bytes);
            }
            error
        })
    }

    fn order_next(&mut self) {
        let Some(filler) = self.filler.clone() else { return };
        let preparation = self.preparation(self.current.header.segment + 1);
        let (done, next) = mpsc::channel();
        // Without a filler the next segment is prepared when it is needed.
        self.next = filler.send((preparation, done)).is_ok().then_some(next);
    }

    fn preparation(&mut self, segment: u64) -> Preparation {
        let bytes = self.options.segment_bytes;
        let obsolete = self.segments.range(..self.durable_start);
        let recycled = obsolete.filter(|(_, size)| **size == bytes).map(|(segment, _)| *segment).next();
        if let Some(recycled) = recycled {
            self.segments.remove(&recycled);
        }
        let header = SegmentHeader { log: self.current.header.log, segment };
        Preparation { header, bytes, reused: recycled.map(segment::name) }
    }

    fn remove_surplus(&mut self) -> io::Result<()> {
        let obsolete: Vec<u64> = self.segments.range(..self.durable_start).map(|(segment, _)| *segment).collect();
        for segment in obsolete.iter().skip(SPARES_MAX) {
            self.disk.remove(&segment::name(*segment))?;
            self.segments.remove(segment);
        }
        Ok(())
    }
}
