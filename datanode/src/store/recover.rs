//! Opening a disk: checkpoint, then a scan of what it does not know, then the decision what a crash left torn.
//!
//! Every record carries the durable watermark: all appends up to it were synced when it was written. So an unreadable
//! place that a record at or below the highest watermark follows is damage; one that only later appends follow is what
//! a crash tore, was never acknowledged, and is covered (small) or punched (bulk), durably, before anything is appended:
//! otherwise the watermark of a later record would turn it into damage. Appends above the watermark are taken only if
//! their payload verifies, and are written again and synced before they are served, and so is the header of a segment in which
//! nothing is known to be durable: a process may have died between a sync that failed and the note of it, and after a failed
//! sync the next one says Ok without writing what the first did not.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use holdfast_common::DiskId;
use parking_lot::{Mutex, RwLock};

use super::batch::{AlignedBuffer, LANE_BYTES};
use super::checkpoint::{self, CHECKPOINT_FILE, Checkpoint};
use super::index::{Entry, Index, Phase, SegmentState};
use super::record::{Body, RECORD_BYTES_MAX, encode};
use super::scan::{Found, Gap, ScanError, SegmentScan, read_header, scan};
use super::segment::{DATA_START, HeaderError, Segment, SegmentKind, is_unreadable, parse_file_name, write_header};
use super::shared::Look;
use super::surroundings::Surroundings;
use super::units::to_usize;
use super::volumes::{Volumes, VolumesError};
use super::{Cursor, Sabotage, Shared, State, Store, StoreOptions, failure};
use holdfast_storage::Directory;

/// Reason why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum OpenError {
    /// The system says so.
    #[error("cannot read the disk: {0}")]
    Io(#[from] io::Error),
    /// A segment of a newer version.
    #[error("{file} was made by a newer version of Holdfast; start that one")]
    Unsupported { file: String },
    /// Floors and drops are lost, so that nothing protects deleted data from coming back.
    #[error("the file `volumes` of the disk cannot be used: {0}; take the disk out and let it be rebuilt")]
    Volumes(VolumesError),
    /// It failed in an earlier life of its node, in a way that leaves open what is on it.
    #[error("it failed before ({0}); what it holds is unknown for good: take the disk out and let it be rebuilt")]
    FailedBefore(String),
}

/// Findings of an opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenReport {
    /// Whether a checkpoint shortened the scan.
    pub(crate) checkpoint_used: bool,
    /// Records scanned.
    pub(crate) records_count: u64,
    /// Records and gaps that a crash had torn.
    pub(crate) torn_count: u64,
    /// Bytes that nothing explains (R6).
    pub(crate) damaged_bytes: u64,
    /// Files that are named like segments and are none.
    pub(crate) damaged_segments: u64,
}

/// Makes the files of an empty disk.
///
/// # Errors
/// Any I/O error.
pub(crate) fn create(directory: &dyn Directory) -> io::Result<()> {
    Volumes::default().store(directory)
}

struct Recovery {
    index: Index,
    segments: BTreeMap<u32, Arc<Segment>>,
    scans: BTreeMap<u32, SegmentScan>,
    watermark: u64,
    next_sequence: u64,
    next_segment: u32,
    report: OpenReport,
}

impl Store {
    /// Opens the store of a disk.
    ///
    /// # Errors
    /// See [`OpenError`]. What a crash leaves behind is never one.
    pub(crate) fn open(
        directory: Arc<dyn Directory>,
        disk: DiskId,
        options: StoreOptions,
        surroundings: Surroundings,
    ) -> Result<(Self, OpenReport), OpenError> {
        let Surroundings { clock, shelves, witness } = surroundings;
        if let Some(note) = failure::find(&*directory, witness.as_deref(), disk)? {
            return Err(OpenError::FailedBefore(note));
        }
        assert!(
            options.bulk_segment_bytes >= DATA_START + RECORD_BYTES_MAX
                && options.small_segment_bytes_min >= DATA_START + (128 << 10),
            "a segment holds the longest record"
        );
        let volumes = Volumes::load(&*directory).map_err(|error| match error {
            VolumesError::Unsupported => OpenError::Unsupported { file: "volumes".to_owned() },
            other => OpenError::Volumes(other),
        })?;
        // A process may have died between a file's new name and its sync: what is answered from it from now on must be durable.
        directory.sync_names()?;
        let mut recovery = Recovery::find_segments(&*directory, disk)?;
        recovery.use_checkpoint(&*directory, disk)?;
        recovery.scan_segments()?;
        recovery.settle_torn(options.sabotage)?;
        recovery.fill_index();
        let space = directory.space()?;
        let mut report = recovery.report;
        report.damaged_bytes = recovery.index.damaged_bytes();
        let (small, bulk, spares) = recovery.cursors();
        let dropped = volumes.0.iter().filter(|(_, state)| state.dropped).map(|(key, _)| *key);
        let dropping: VecDeque<_> = dropped.filter(|key| recovery.index.volumes.contains_key(key)).collect();
        let shared = Shared {
            book: shelves.join(space.file_system),
            space: Mutex::new(Look::new(clock(), space)),
            clock,
            directory,
            witness,
            disk,
            state: RwLock::new(State { index: recovery.index, segments: recovery.segments, volumes }),
            limit_bytes: options.limit_bytes,
            sabotage: options.sabotage,
            failed: AtomicBool::new(false),
            unapplied_bytes: AtomicU64::new(0),
            corrupt_reads: AtomicU64::new(0),
            failure: Mutex::default(),
            short_of_descriptors: AtomicBool::new(false),
        };
        let store = Self {
            shared: Arc::new(shared),
            options,
            next_sequence: recovery.next_sequence,
            durable_sequence: recovery.next_sequence - 1,
            next_segment: recovery.next_segment,
            small,
            bulk,
            spares,
            spare_planned: false,
            upkeep_waits: false,
            pauses_until: Duration::ZERO,
            removal_unsynced: false,
            dropping,
            records_since_checkpoint: report.records_count,
            checkpoints_here: true,
            checkpoint_wanted: false,
            checkpoint_runs: false,
            bulk_buffer: AlignedBuffer::new(LANE_BYTES),
            compaction: None,
        };
        Ok((store, report))
    }
}

/// A checkpoint that one start does not use is used by none. Without it the end of a segment is where its last record ends, which may be
/// a hole that the checkpoint stands behind: what is appended there would be missed by a start that reads it after all.
fn remove_checkpoint(directory: &dyn Directory) -> Result<(), OpenError> {
    directory.remove(CHECKPOINT_FILE)?;
    Ok(directory.sync_names()?)
}

impl Recovery {
    fn find_segments(directory: &dyn Directory, disk: DiskId) -> Result<Self, OpenError> {
        let mut found = Self {
            index: Index::default(),
            segments: BTreeMap::new(),
            scans: BTreeMap::new(),
            watermark: 0,
            next_sequence: 1,
            next_segment: 1,
            report: OpenReport::default(),
        };
        let mut removed = false;
        for name in directory.list()? {
            let Some((kind, number)) = parse_file_name(&name) else { continue };
            found.next_segment = found.next_segment.max(number + 1);
            let file = directory.open(&name)?;
            match super::segment::read_header(&*file)? {
                Ok(header) if header.kind == kind && header.number == number && header.disk == disk => {
                    if file.length_bytes()? < header.size_bytes {
                        file.set_length(header.size_bytes)?;
                    }
                    found.next_sequence = found.next_sequence.max(header.generation + 1);
                    found.segments.insert(number, Segment::new(header, file));
                }
                Err(HeaderError::Unsupported) => return Err(OpenError::Unsupported { file: name }),
                Err(HeaderError::Blank) => {
                    directory.remove(&name)?;
                    removed = true;
                }
                Ok(_) | Err(HeaderError::Damaged) => {
                    tracing::error!(disk = disk.0, name, "segment with a damaged header left alone");
                    found.report.damaged_segments += 1;
                }
            }
        }
        if removed {
            directory.sync_names()?;
        }
        Ok(found)
    }

    fn use_checkpoint(&mut self, directory: &dyn Directory, disk: DiskId) -> Result<(), OpenError> {
        let bytes = match directory.read(CHECKPOINT_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                tracing::warn!(disk = disk.0, %error, "checkpoint cannot be read; scanning everything");
                return remove_checkpoint(directory);
            }
        };
        let fitting = checkpoint::decode(&bytes, disk).and_then(|checkpoint| self.fit(checkpoint));
        let Some(checkpoint) = fitting else {
            tracing::warn!(disk = disk.0, "checkpoint does not fit the disk; scanning everything");
            return remove_checkpoint(directory);
        };
        self.report.checkpoint_used = true;
        self.watermark = checkpoint.durable_sequence;
        self.next_sequence = self.next_sequence.max(checkpoint.next_sequence);
        self.next_segment = self.next_segment.max(checkpoint.next_segment);
        self.index = checkpoint.index;
        Ok(())
    }

    /// Brings a checkpoint up to what became of its segments since. `None` if that cannot have happened.
    fn fit(&self, mut checkpoint: Checkpoint) -> Option<Checkpoint> {
        let gone: Vec<u32> = checkpoint
            .index
            .segments
            .iter()
            .filter(|(number, known)| self.segments.get(number).is_none_or(|s| s.header.generation != known.generation))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            let known = &checkpoint.index.segments[&number];
            // A bulk segment goes when its last shard died, which the tombstones behind the checkpoint say; a small one
            // only after a checkpoint that knows nothing to live in it.
            if known.kind == SegmentKind::Small && known.live_bytes > 0 {
                return None;
            }
            checkpoint.index.purge_segment(number);
        }
        Some(checkpoint)
    }

    fn scan_segments(&mut self) -> Result<(), OpenError> {
        for (number, segment) in &self.segments {
            let known = self.index.segments.entry(*number).or_insert_with(|| SegmentState::empty(&segment.header));
            if matches!(known.phase, Phase::Sealed | Phase::Drained) {
                continue;
            }
            let found = scan(segment, known.append).map_err(|error| match error {
                ScanError::Io(error) => OpenError::Io(error),
                ScanError::Unsupported => {
                    OpenError::Unsupported { file: super::segment::file_name(segment.header.kind, *number) }
                }
            })?;
            for record in &found.records {
                self.watermark = self.watermark.max(record.header.durable_sequence);
                self.next_sequence = self.next_sequence.max(record.header.sequence + 1);
            }
            self.report.records_count += found.records.len() as u64;
            self.scans.insert(*number, found);
        }
        Ok(())
    }

    /// Decides torn or damaged, makes what is torn harmless, and everything that stays durable.
    fn settle_torn(&mut self, sabotage: Sabotage) -> Result<(), OpenError> {
        let watermark = self.watermark;
        for (number, found) in &mut self.scans {
            let segment = &self.segments[number];
            let mut torn: Vec<Gap> = Vec::new();
            for gap in std::mem::take(&mut found.gaps) {
                let durable_after = |r: &Found| r.at.offset >= gap.end() && r.header.sequence <= watermark;
                if gap.unreadable || found.records.iter().any(durable_after) {
                    self.index.segment_mut(*number).damaged_bytes += gap.bytes;
                    tracing::error!(
                        segment = number,
                        offset = gap.offset,
                        bytes = gap.bytes,
                        "damage found by the scan"
                    );
                } else {
                    torn.push(gap);
                }
            }
            for record in &found.records {
                if record.header.sequence > watermark && !is_whole(segment, record)? && sabotage != Sabotage::AcceptTorn
                {
                    torn.push(Gap { offset: record.at.offset, bytes: record.at.bytes, unreadable: false });
                }
            }
            found.records.retain(|r| !torn.iter().any(|t| t.offset == r.at.offset));
            self.report.torn_count += torn.len() as u64;
            for gap in joined(torn) {
                cover(segment, gap, &mut self.next_sequence, watermark)?;
            }
            if !found.records.iter().any(|record| record.header.sequence <= watermark) {
                write_header(&*segment.file, &segment.header)?;
            }
            for record in found.records.iter().filter(|record| record.header.sequence > watermark) {
                write_again(segment, record)?;
            }
            segment.file.sync_data()?;
        }
        Ok(())
    }

    fn fill_index(&mut self) {
        let scans = std::mem::take(&mut self.scans);
        for (number, found) in &scans {
            let segment = self.index.segment_mut(*number);
            segment.append = segment.append.max(found.end);
            for Found { at, header } in &found.records {
                if let Body::Tombstone { volume, targets } = &header.body {
                    self.index.apply_tombstone(*volume, targets, header.version, *at);
                }
            }
        }
        let mut newest: BTreeMap<SegmentKind, (u64, u32)> = BTreeMap::new();
        for (number, found) in scans {
            let kind = self.segments[&number].header.kind;
            for Found { at, header } in found.records {
                let mark = newest.entry(kind).or_default();
                *mark = (*mark).max((header.sequence, number));
                if let Body::Shard(meta) = header.body {
                    let stripe = self.index.intern(&meta.stripe);
                    let entry = Entry {
                        at,
                        version: header.version,
                        nonce: meta.nonce,
                        shard_length_bytes: meta.shard_length_bytes,
                        chunk_length_bytes: meta.chunk_length_bytes,
                        stripe,
                    };
                    self.index.restore_shard(meta.key, entry);
                }
            }
        }
        self.index.release_unpinned();
        self.set_phases(&newest);
    }

    /// The segment appended to last stays open; others that hold anything are sealed.
    fn set_phases(&mut self, newest: &BTreeMap<SegmentKind, (u64, u32)>) {
        for kind in [SegmentKind::Small, SegmentKind::Bulk] {
            let of_kind = self.index.segments.iter_mut().filter(|(_, s)| s.kind == kind);
            let mut open = newest.get(&kind).map(|(_, number)| *number);
            let mut unsettled: Vec<(u32, &mut SegmentState)> = of_kind
                .filter(|(_, s)| !matches!(s.phase, Phase::Sealed | Phase::Drained))
                .map(|(number, s)| (*number, s))
                .collect();
            if open.is_none() {
                let was_open = unsettled.iter().find(|(_, s)| s.phase == Phase::Open);
                let written = unsettled.iter().rev().find(|(_, s)| s.written_bytes() > 0);
                open = was_open.or(written).map(|(number, _)| *number);
            }
            for (number, segment) in &mut unsettled {
                segment.phase = if Some(*number) == open {
                    Phase::Open
                } else if segment.written_bytes() == 0 && kind == SegmentKind::Small {
                    Phase::Spare
                } else {
                    Phase::Sealed
                };
            }
        }
    }

    fn cursors(&self) -> (Option<Cursor>, Option<Cursor>, VecDeque<Arc<Segment>>) {
        let (mut small, mut bulk, mut spares) = (None, None, VecDeque::new());
        for (number, state) in &self.index.segments {
            let segment = self.segments[number].clone();
            match (state.phase, state.kind) {
                (Phase::Open, SegmentKind::Small) => small = Some(Cursor::new(segment, state.append)),
                (Phase::Open, SegmentKind::Bulk) => bulk = Some(Cursor::new(segment, state.append)),
                (Phase::Spare, _) => spares.push_back(segment),
                (Phase::Sealed | Phase::Drained, _) => {}
            }
        }
        (small, bulk, spares)
    }
}

/// Whether a record's payload arrived too. Tombstones and fillers are their header.
fn is_whole(segment: &Segment, record: &Found) -> Result<bool, OpenError> {
    let Body::Shard(found) = &record.header.body else { return Ok(true) };
    let header = match read_header(segment, record.at.offset) {
        Ok(header) => header,
        // No crash makes a sector unreadable: it may have been answered, and its readers are told of the damage.
        Err(ScanError::Io(error)) if is_unreadable(&error) => return Ok(true),
        Err(ScanError::Io(error)) => return Err(error.into()),
        Err(ScanError::Unsupported) => None,
    };
    let Some(Body::Shard(meta)) = header.map(|header| header.body) else { return Ok(false) };
    let mut payload = vec![0; to_usize(found.shard_length_bytes.into())];
    match segment.file.read_exact_at(record.at.offset + record.header.header_area_bytes, &mut payload) {
        Err(error) if is_unreadable(&error) => return Ok(true),
        other => other?,
    }
    Ok(meta.key.place().verify(0, &payload, &meta.page_checksums).is_ok())
}

/// Writes a record to its place again, so that the next sync covers it. A place that cannot be read is left to its readers.
fn write_again(segment: &Segment, record: &Found) -> io::Result<()> {
    let alignment = segment.header.kind.alignment_bytes();
    let from = record.at.offset - record.at.offset % alignment;
    let length = to_usize((record.at.offset + record.at.bytes).next_multiple_of(alignment) - from);
    let mut buffer = AlignedBuffer::new(length);
    match segment.file.read_exact_at(from, buffer.range_mut(0, length)) {
        Err(error) if is_unreadable(&error) => Ok(()),
        read => read.and_then(|()| segment.file.write_at(from, buffer.bytes(length))),
    }
}

/// Merges ranges that touch.
fn joined(mut gaps: Vec<Gap>) -> Vec<Gap> {
    gaps.sort_unstable_by_key(|gap| gap.offset);
    let mut merged: Vec<Gap> = Vec::new();
    for gap in gaps {
        match merged.last_mut() {
            Some(last) if last.end() >= gap.offset => last.bytes = last.end().max(gap.end()) - last.offset,
            _ => merged.push(gap),
        }
    }
    merged
}

/// Explains a torn range to every later scan: a filler record in a log, a hole elsewhere.
fn cover(segment: &Segment, gap: Gap, next_sequence: &mut u64, watermark: u64) -> io::Result<()> {
    if segment.header.kind == SegmentKind::Bulk {
        return segment.file.punch(gap.offset, gap.bytes);
    }
    let mut sector = encode(&segment.place(gap.offset), *next_sequence, watermark, 0, gap.bytes, &Body::Filler);
    *next_sequence += 1;
    sector.resize(to_usize(holdfast_storage::SECTOR_BYTES), 0);
    segment.file.write_at(gap.offset, &sector)
}
