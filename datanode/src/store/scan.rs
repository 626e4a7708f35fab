//! Walks a segment and explains every byte of it: record, hole, tail, or a gap that nothing explains (R6).
//!
//! Small segments are a log: whatever stands between two valid records and is no record is a gap, and what follows the
//! last one is the preallocated tail, whatever bytes a former life left there. Bulk segments are sparse: zeros are
//! holes anywhere. A page that the disk cannot read is a gap of its own kind, and the rest of the segment goes on. Which gaps are torn writes and which are damage is decided in `recover`, by the durable watermark.

use std::collections::BTreeSet;
use std::io;

use holdfast_storage::BLOCK_BYTES;

use super::index::Location;
use super::record::{Body, DecodeError, FIXED_BYTES, HEADER_BYTES_MAX, Header, decode};
use super::segment::{Segment, SegmentKind, is_unreadable};
use super::units::to_usize;

/// Bytes of a log that a scan reads at once.
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
    /// The disk could not read a part of it. A crash tears writes, it makes no sector unreadable.
    pub(super) unreadable: bool,
}

impl Gap {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// Contents of a segment from some offset on.
#[derive(Debug, Default)]
pub(super) struct SegmentScan {
    pub(super) records: Vec<Found>,
    pub(super) gaps: Vec<Gap>,
    /// Behind the last record, gap or hole.
    pub(super) end: u64,
}

/// Reason why a scan stopped.
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
    /// First bytes of pages that could not be read. They count as zeros.
    unreadable: BTreeSet<u64>,
}

impl Window<'_> {
    fn new(segment: &Segment, ahead_bytes: u64) -> Window<'_> {
        Window { segment, start: 0, bytes: Vec::new(), ahead_bytes, unreadable: BTreeSet::new() }
    }

    /// The bytes from `offset` on: `wanted` of them, fewer at the end of the file.
    fn get(&mut self, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let end = (offset + wanted).min(self.segment.header.size_bytes);
        let have_end = self.start + self.bytes.len() as u64;
        if offset < self.start || end > have_end {
            let read_end = (offset + wanted.max(self.ahead_bytes)).min(self.segment.header.size_bytes);
            self.bytes.clear();
            self.bytes.resize(to_usize(read_end - offset), 0);
            self.start = offset;
            match self.segment.file.read_exact_at(offset, &mut self.bytes) {
                Err(error) if is_unreadable(&error) => self.read_by_pages()?,
                other => other?,
            }
        }
        Ok(&self.bytes[to_usize(offset - self.start)..to_usize(end - self.start)])
    }

    fn read_by_pages(&mut self) -> io::Result<()> {
        let mut at = 0;
        while at < self.bytes.len() {
            let offset = self.start + at as u64;
            let page_end = (offset / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let end = self.bytes.len().min(at + to_usize(page_end - offset));
            match self.segment.file.read_exact_at(offset, &mut self.bytes[at..end]) {
                Err(error) if is_unreadable(&error) => {
                    self.bytes[at..end].fill(0);
                    self.unreadable.insert(offset / BLOCK_BYTES * BLOCK_BYTES);
                }
                other => other?,
            }
            at = end;
        }
        Ok(())
    }

    /// Whether a part of the unit at `offset` could not be read.
    fn is_unreadable(&self, offset: u64) -> bool {
        self.unreadable.contains(&(offset / BLOCK_BYTES * BLOCK_BYTES))
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
    let mut window = Window::new(segment, 0);
    let header = header_at(&mut window, offset)?;
    // What could not be read may be a record all the same.
    if header.is_none() && !window.unreadable.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EIO).into());
    }
    Ok(header)
}

/// Walks a segment from `from` on, which is where a record may start.
pub(super) fn scan(segment: &Segment, from: u64) -> Result<SegmentScan, ScanError> {
    let bulk = segment.header.kind == SegmentKind::Bulk;
    let ahead_bytes = if bulk { 0 } else { LOG_WINDOW_BYTES };
    let mut window = Window::new(segment, ahead_bytes);
    let mut found = SegmentScan { end: from, ..SegmentScan::default() };
    let alignment = segment.header.kind.alignment_bytes();
    let mut gap: Option<Gap> = None;
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
            close_gap(&mut found, &mut gap, offset);
            let at = Location { segment: segment.header.number, offset, bytes: header.record_bytes };
            offset += header.record_bytes;
            found.end = offset;
            if let Body::Shard(meta) = &mut header.body {
                meta.page_checksums = bytes::Bytes::new();
            }
            found.records.push(Found { at, header });
            continue;
        }
        let unreadable = window.is_unreadable(offset);
        if bulk && !unreadable && window.get(offset, alignment)?.iter().all(|b| *b == 0) {
            close_gap(&mut found, &mut gap, offset);
            skip_hole = true;
        } else {
            let gap = gap.get_or_insert(Gap { offset, bytes: 0, unreadable: false });
            if unreadable {
                gap.unreadable = true;
                gap.bytes = offset + alignment - gap.offset;
            }
        }
        offset += alignment;
    }
    // In a log the tail is no gap, but for the part of it that hides something.
    match gap {
        Some(Gap { unreadable: true, .. }) if !bulk => {
            let end = gap.map_or(offset, |gap| gap.end());
            close_gap(&mut found, &mut gap, end);
        }
        _ if bulk => close_gap(&mut found, &mut gap, offset),
        _ => {}
    }
    Ok(found)
}

fn close_gap(found: &mut SegmentScan, gap: &mut Option<Gap>, end: u64) {
    if let Some(gap) = gap.take() {
        found.gaps.push(Gap { bytes: end - gap.offset, ..gap });
        found.end = found.end.max(end);
    }
}
