//! Opening a log after whatever happened.
//!
//! Every first batch of a segment says where the log before it ends, and every batch what was durable when it was
//! written. So the newest segment with a batch is the head, and going back from it gives what counts. Damage before a
//! watermark is refused: something was acknowledged there. Behind the last watermark it is a torn tail, and ends the log.
//!
//! The part of the tail that no watermark covers may have been read from a page cache that never reaches the disk (R23):
//! it is written again into a fresh segment and synced before this returns.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_common::RaftGroupId;

use super::batch::{Batch, FIRST_BATCH, HeaderError, Position, Scan, SegmentHeader, records, scan};
use super::pins::AllPins;
use super::record::{GroupState, Record};
use super::replay::{Contradiction, Replay, Replayed};
use super::segment::{Preparation, lasting, name, parse_name};
use super::spares::Spares;
use super::{Current, Log, LogOptions};
use crate::config::ExpectedLog;
use crate::sabotage::Sabotage;
use holdfast_storage::{Directory, DiskFile, is_no_space};

/// Reason why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoveryError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("there is no log")]
    Missing,
    #[error("it is the log of another node, or another log of this one")]
    Foreign,
    #[error("segment {segment:#x} of the log is damaged: {what}")]
    Damaged { segment: u64, what: &'static str },
    #[error("the log contradicts itself: {0}")]
    Contradiction(#[from] Contradiction),
    #[error("log version {0}")]
    NewerVersion(u32),
}

/// Segments that count, oldest first: (segment, end of its valid part).
struct Extent {
    parts: Vec<(u64, u32)>,
    /// Position at which the part begins that no watermark covers.
    covered: Position,
    start: u64,
}

/// Contents of the segments of a disk.
struct Found {
    scans: BTreeMap<u64, (Scan, u32)>,
    extent: Extent,
    groups: BTreeMap<RaftGroupId, Replayed>,
    pins: AllPins,
    /// Batches that no watermark covers.
    tail: Vec<Vec<Record>>,
}

impl Found {
    /// Changes nothing.
    fn read(disk: &dyn Directory, options: LogOptions) -> Result<Self, RecoveryError> {
        let scans = scan_all(disk, options.sabotage)?;
        let extent = extent(&scans)?;
        check_expected(&scans, options)?;
        let mut replay = Replay::new(options.tail_entries, options.sabotage);
        let mut pins = AllPins::default();
        let mut tail = Vec::new();
        for (segment, end) in &extent.parts {
            let bytes = read(disk, *segment)?;
            for batch in scans[segment].0.batches.iter().filter(|batch| batch.end <= *end) {
                let records = batch_records(*segment, &bytes, batch)?;
                if (Position { segment: *segment, offset: batch.offset }) >= extent.covered {
                    tail.push(records.clone());
                }
                for record in records {
                    pins.note(&record, *segment);
                    replay.take(record);
                }
            }
        }
        let groups = replay.finish()?;
        Ok(Self { scans, extent, groups, pins, tail })
    }
}

impl Log {
    /// The Raft groups of a log that is whole, as [`Self::open`] would find them. Changes nothing.
    pub(crate) fn examine(
        disk: &dyn Directory,
        options: LogOptions,
    ) -> Result<BTreeMap<RaftGroupId, Replayed>, RecoveryError> {
        Found::read(disk, options).map(|found| found.groups)
    }

    /// Opens or makes the log of a disk. What it returns is durable.
    pub(crate) fn open(
        disk: Arc<dyn Directory>,
        options: LogOptions,
    ) -> Result<(Self, BTreeMap<RaftGroupId, Replayed>), RecoveryError> {
        let Found { scans, extent, groups, pins, tail } = Found::read(&*disk, options)?;
        let identity = scans.values().next().map_or(options.identity, |(scan, _)| scan.header.log);

        // A number never used, because a batch of an earlier life that never became durable would pass in its own segment.
        let segment = scans.keys().next_back().map_or(1, |last| last + 1);
        let header = SegmentHeader { log: identity, segment };
        let mut segments: BTreeMap<u64, u32> = scans.iter().map(|(segment, (_, bytes))| (*segment, *bytes)).collect();
        let strays: Vec<String> = disk.list()?.into_iter().filter(|file| parse_name(file).is_none()).collect();
        let mut spares = Spares::open(&*disk, &strays, options.segment_bytes)?;
        let durable_start = durable_start(&scans, extent.covered);
        let kept = || spares.take().or_else(|| obsolete(&mut segments, durable_start, options.segment_bytes));
        let file = first_segment(&*disk, header, options.segment_bytes, kept)?;
        let current = Current { header, file, bytes: options.segment_bytes, offset: FIRST_BATCH };
        let mut log = Self {
            disk,
            options,
            current,
            durable: extent.covered,
            pins,
            start: extent.start,
            durable_start,
            segments,
            next: None,
            filler: None,
            spares,
            waiting: VecDeque::new(),
            unwritten: None,
            lack: None,
            unsynced: false,
            poisoned: false,
        };
        if options.sabotage != Sabotage::TailNotRewritten {
            tail.into_iter().try_for_each(|records| log.try_append(records))?;
            if let Some(lack) = log.lack.take() {
                return Err(RecoveryError::Io(lack));
            }
            log.try_sync()?;
        }
        log.remove_void(&extent)?;
        while log.missing_spares() > 0 && log.spares.add(&*log.disk, log.options.segment_bytes)? {}
        Ok((log, groups))
    }

    /// State and entries of a Raft group as the segments have them, to be written again: for a Raft group whose memory
    /// cannot be trusted, so that it does not hold the log for ever. Reads the whole log.
    pub(crate) fn recall(&self, group: RaftGroupId) -> Result<Vec<Record>, RecoveryError> {
        let scans = scan_all(&*self.disk, self.options.sabotage)?;
        let mut replay = Replay::new(0, self.options.sabotage);
        for (segment, end) in &extent(&scans)?.parts {
            let bytes = read(&*self.disk, *segment)?;
            for batch in scans[segment].0.batches.iter().filter(|batch| batch.end <= *end) {
                let records = batch_records(*segment, &bytes, batch)?;
                records.into_iter().filter(|record| record.group() == group).for_each(|record| replay.take(record));
            }
        }
        let mut found = replay.finish()?;
        let Some(Replayed { state, mut entries, .. }) = found.remove(&group) else { return Ok(Vec::new()) };
        entries.retain(|entry| entry.index > state.snapshot.index);
        // An installed snapshot voids what is before its record, which is not before this one.
        let mut records = vec![Record::Group(group, GroupState { installed: false, ..state })];
        records.extend((!entries.is_empty()).then(|| Record::Carry(group, entries, true)));
        Ok(records)
    }

    /// Removes segments in which nothing ever became durable, so that a machine that crashes again and again does not
    /// fill its disk with them.
    fn remove_void(&mut self, extent: &Extent) -> io::Result<()> {
        let counts = |segment: u64| segment < extent.start || extent.parts.iter().any(|(part, _)| *part == segment);
        let void: Vec<u64> = self.segments.keys().copied().filter(|segment| !counts(*segment)).collect();
        for segment in &void {
            self.disk.remove(&name(*segment))?;
            self.segments.remove(segment);
        }
        // Their space is free for spares from here on.
        if void.is_empty() { Ok(()) } else { self.disk.sync_names().map_err(lasting) }
    }
}

/// Before anything is changed.
fn check_expected(scans: &BTreeMap<u64, (Scan, u32)>, options: LogOptions) -> Result<(), RecoveryError> {
    match (scans.values().next(), options.expected) {
        (None, _) if options.sabotage == Sabotage::MissingLogMade => Ok(()),
        (None, ExpectedLog::Any | ExpectedLog::Identity(_)) => Err(RecoveryError::Missing),
        (Some((scan, _)), ExpectedLog::Identity(wanted)) if scan.header.log != wanted => Err(RecoveryError::Foreign),
        _ => Ok(()),
    }
}

fn read(disk: &dyn Directory, segment: u64) -> io::Result<Bytes> {
    let file = disk.open(&name(segment))?;
    let length = usize::try_from(file.length_bytes()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let n = file.read_at(0, &mut bytes)?;
    bytes.truncate(n);
    Ok(bytes.into())
}

fn batch_records(segment: u64, bytes: &Bytes, batch: &Batch) -> Result<Vec<Record>, RecoveryError> {
    records(bytes, batch).map_err(|_| RecoveryError::Damaged { segment, what: "a batch that holds no records" })
}

/// All segments with their sizes.
fn scan_all(disk: &dyn Directory, sabotage: Sabotage) -> Result<BTreeMap<u64, (Scan, u32)>, RecoveryError> {
    let mut scans: BTreeMap<u64, (Scan, u32)> = BTreeMap::new();
    for file in disk.list()? {
        let Some(segment) = parse_name(&file) else { continue };
        let damaged = |what| RecoveryError::Damaged { segment, what };
        let bytes = read(disk, segment)?;
        let scan = scan(&bytes, sabotage).map_err(|error| match error {
            HeaderError::Damaged => damaged("its header"),
            HeaderError::NewerVersion(version) => RecoveryError::NewerVersion(version),
        })?;
        if scan.header.segment != segment {
            return Err(damaged("it is another segment's file"));
        }
        if scans.values().next().is_some_and(|(other, _)| other.header.log != scan.header.log) {
            return Err(damaged("it belongs to another log"));
        }
        let size = u32::try_from(bytes.len()).map_err(|_| damaged("its length"))?;
        scans.insert(segment, (scan, size));
    }
    Ok(scans)
}

/// Oldest segment needed, by a batch that was durable for certain: older ones may be overwritten.
fn durable_start(scans: &BTreeMap<u64, (Scan, u32)>, covered: Position) -> u64 {
    let batches = scans.get(&covered.segment).map_or(&[][..], |(scan, _)| &scan.batches);
    batches.iter().rfind(|batch| batch.end <= covered.offset).map_or(0, |batch| batch.start)
}

/// Takes out an obsolete segment of the right size.
fn obsolete(segments: &mut BTreeMap<u64, u32>, durable_start: u64, segment_bytes: u32) -> Option<String> {
    let found =
        segments.range(..durable_start).find(|(_, bytes)| **bytes == segment_bytes).map(|(number, _)| *number)?;
    segments.remove(&found);
    Some(name(found))
}

/// The segment that this life begins with. A full disk has room for it in a spare or an obsolete one.
fn first_segment(
    disk: &dyn Directory,
    header: SegmentHeader,
    bytes: u32,
    kept: impl FnOnce() -> Option<String>,
) -> io::Result<Arc<dyn DiskFile>> {
    let prepare = |reused| Preparation { header, bytes, reused }.run(disk).map_err(|unprepared| unprepared.error);
    match prepare(None) {
        Err(error) if is_no_space(&error) => prepare(Some(kept().ok_or(error)?)),
        other => other,
    }
}

/// Goes back from the head.
fn extent(scans: &BTreeMap<u64, (Scan, u32)>) -> Result<Extent, RecoveryError> {
    let head = scans.iter().rev().find_map(|(segment, (scan, _))| Some((*segment, scan, scan.batches.last()?)));
    let Some((head, scan, last)) = head else {
        // Segments without any batch: nothing was ever acknowledged, unless a batch behind a gap says otherwise.
        refuse_later(scans, 0, Position { segment: 1, offset: FIRST_BATCH })?;
        return Ok(Extent { parts: Vec::new(), covered: Position::default(), start: 1 });
    };
    refuse_later(scans, head, Position { segment: head, offset: scan.end() })?;
    let start = last.start;
    let mut parts = vec![(head, scan.end())];
    let (mut segment, mut first) = (head, scan.batches[0]);
    while segment > start {
        let before = first.watermark;
        if before.segment < start {
            break;
        }
        let damaged = |what| RecoveryError::Damaged { segment: before.segment, what };
        if before.segment >= segment {
            return Err(damaged("a watermark that points ahead"));
        }
        let (scan, _) = scans.get(&before.segment).ok_or(damaged("it is missing"))?;
        let whole = scan.batches.iter().any(|batch| batch.end == before.offset);
        let Some(batch) = scan.batches.first().filter(|_| whole) else {
            return Err(damaged("it ends before what was acknowledged"));
        };
        parts.push((before.segment, before.offset));
        (segment, first) = (before.segment, *batch);
    }
    parts.reverse();
    Ok(Extent { parts, covered: last.watermark, start })
}

/// Refuses a log in which a batch behind a gap says that more was durable than can be read.
fn refuse_later(scans: &BTreeMap<u64, (Scan, u32)>, head: u64, end: Position) -> Result<(), RecoveryError> {
    match scans.range(head..).find(|(_, (scan, _))| scan.later_watermark > end) {
        Some((_, (scan, _))) => {
            Err(RecoveryError::Damaged { segment: scan.later_watermark.segment, what: "acknowledged bytes" })
        }
        None => Ok(()),
    }
}
