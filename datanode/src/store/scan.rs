//! Walks a segment and explains every byte of it: record, hole, tail, or a gap that nothing explains (R6).
//!
//! Small segments are a log: whatever stands between two valid records and is no record is a gap, and what follows the
//! last one is the preallocated tail, whatever bytes a former life left there. Bulk segments are sparse: zeros are
//! holes anywhere. Which gaps are torn writes and which are damage is decided in `recover`, by the durable watermark.

use std::io;

use super::index::Location;
use super::record::{Body, DecodeError, FIXED_BYTES, HEADER_BYTES_MAX, Header, decode};
use super::segment::{Segment, SegmentKind};
use crate::units::to_usize;

/// How much a scan of a log reads at once.
const LOG_WINDOW_BYTES: u64 = 1 << 20;

/// A record that a scan found. Its checksums are left out, because a scan may find millions.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: Location,
    pub(super) header: Header,
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Gap {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// What a segment holds from some offset on.
#[derive(Debug, Default)]
pub(super) struct SegmentScan {
    pub(super) records: Vec<Found>,
    pub(super) gaps: Vec<Gap>,
    /// Behind the last record, gap or hole.
    pub(super) end: u64,
}

/// Why a scan stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it holds a record of a newer version of Holdfast")]
    Unsupported,
}

/// A piece of the file in memory.
struct Window<'a> {
    segment: &'a Segment,
    start: u64,
    bytes: Vec<u8>,
    ahead_bytes: u64,
}

impl Window<'_> {
    /// The bytes from `offset` on: `wanted` of them, fewer at the end of the file.
    fn get(&mut self, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let end = (offset + wanted).min(self.segment.header.size_bytes);
        let have_end = self.start + self.bytes.len() as u64;
        if offset < self.start || end > have_end {
            let read_end = (offset + wanted.max(self.ahead_bytes)).min(self.segment.header.size_bytes);
            self.bytes.clear();
            self.bytes.resize(to_usize(read_end - offset), 0);
            self.start = offset;
            self.segment.file.read_exact_at(offset, &mut self.bytes)?;
        }
        Ok(&self.bytes[to_usize(offset - self.start)..to_usize(end - self.start)])
    }
}

/// Reads the header of the record at `offset`, however long it is.
fn header_at(window: &mut Window<'_>, offset: u64) -> Result<Option<Header>, ScanError> {
    let segment = window.segment;
    let alignment = segment.header.kind.alignment_bytes();
    let mut wanted = alignment.max(FIXED_BYTES as u64);
    loop {
        let bytes = window.get(offset, wanted)?;
        let short = (bytes.len() as u64) < wanted;
        match decode(bytes, &segment.place(offset), alignment) {
            Ok(header) if offset + header.record_bytes <= segment.header.size_bytes => return Ok(Some(header)),
            Ok(_) | Err(DecodeError::NotARecord) => return Ok(None),
            Err(DecodeError::Unsupported) => return Err(ScanError::Unsupported),
            Err(DecodeError::NeedBytes(more)) if !short && more <= HEADER_BYTES_MAX => wanted = more as u64,
            Err(DecodeError::NeedBytes(_)) => return Ok(None),
        }
    }
}

/// Reads and verifies the header of one record.
pub(super) fn read_header(segment: &Segment, offset: u64) -> Result<Option<Header>, ScanError> {
    header_at(&mut Window { segment, start: 0, bytes: Vec::new(), ahead_bytes: 0 }, offset)
}

/// Walks a segment from `from` on, which is where a record may start.
pub(super) fn scan(segment: &Segment, from: u64) -> Result<SegmentScan, ScanError> {
    let bulk = segment.header.kind == SegmentKind::Bulk;
    let ahead_bytes = if bulk { 0 } else { LOG_WINDOW_BYTES };
    let mut window = Window { segment, start: 0, bytes: Vec::new(), ahead_bytes };
    let mut found = SegmentScan { end: from, ..SegmentScan::default() };
    let alignment = segment.header.kind.alignment_bytes();
    let mut gap_start = None;
    let mut offset = from;
    let mut skip_hole = bulk;
    while offset + alignment <= segment.header.size_bytes {
        if skip_hole {
            let Some(data) = segment.file.next_data(offset)? else { break };
            offset = offset.max(data / alignment * alignment);
            skip_hole = false;
            continue;
        }
        if let Some(mut header) = header_at(&mut window, offset)? {
            close_gap(&mut found, &mut gap_start, offset);
            let at = Location { segment: segment.header.number, offset, bytes: header.record_bytes };
            offset += header.record_bytes;
            found.end = offset;
            if let Body::Shard(meta) = &mut header.body {
                meta.page_checksums = bytes::Bytes::new();
            }
            found.records.push(Found { at, header });
            continue;
        }
        if bulk && window.get(offset, alignment)?.iter().all(|b| *b == 0) {
            close_gap(&mut found, &mut gap_start, offset);
            skip_hole = true;
        } else {
            gap_start.get_or_insert(offset);
        }
        offset += alignment;
    }
    if bulk {
        close_gap(&mut found, &mut gap_start, offset);
    }
    Ok(found)
}

fn close_gap(found: &mut SegmentScan, gap_start: &mut Option<u64>, end: u64) {
    if let Some(offset) = gap_start.take() {
        found.gaps.push(Gap { offset, bytes: end - offset });
        found.end = found.end.max(end);
    }
}
