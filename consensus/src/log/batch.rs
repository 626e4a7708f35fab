//! The bytes of segment headers and batches, and what a segment's bytes mean (docs/disk-format/log.md). Pure.
//!
//! Checksums are seeded with (log, segment, offset), so that bytes of a recycled segment's former life never pass (R24).

use bytes::{BufMut, Bytes};
use holdfast_common::checksum::{crc32c, crc32c_append};

use super::record::{Malformed, Record};
use crate::sabotage::Sabotage;

/// Version written; newer ones are refused. Version 1 knows no carries.
pub(crate) const LOG_VERSION: u32 = 2;
/// Batches start at multiples of this, the smallest unit a disk writes whole: a torn write of one batch leaves the
/// sectors of those before it alone.
pub(crate) const ALIGN_BYTES: usize = 512;
/// Offset of a segment's first batch.
pub(crate) const SEGMENT_HEADER_BYTES: usize = ALIGN_BYTES;
/// [`SEGMENT_HEADER_BYTES`] as an offset.
pub(crate) const FIRST_BATCH: u32 = 512;
const _: () = assert!(FIRST_BATCH as usize == SEGMENT_HEADER_BYTES);
/// Offset of a batch's records in the batch.
pub(crate) const BATCH_HEADER_BYTES: usize = 40;

const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"HFLS");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"HFLB");
const SEGMENT_HEADER_USED: usize = 40;

/// A place in the log. `segment` 0 is before all segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
}

/// Log of a segment, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) log: [u8; 16],
    pub(crate) segment: u64,
}

/// Reason why a segment's header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("damaged segment header")]
    Damaged,
    #[error("newer version {0}")]
    NewerVersion(u32),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut header = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        header.put_u32_le(SEGMENT_MAGIC);
        header.put_u32_le(LOG_VERSION);
        header.put_u32_le(0); // required features: none yet
        header.put_slice(&self.log);
        header.put_u64_le(self.segment);
        let crc = crc32c(&header);
        header.put_u32_le(crc);
        header.resize(SEGMENT_HEADER_BYTES, 0);
        header.try_into().expect("resized to it")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < SEGMENT_HEADER_BYTES
            || word(bytes, 0) != SEGMENT_MAGIC
            || word(bytes, SEGMENT_HEADER_USED - 4) != crc32c(&bytes[..SEGMENT_HEADER_USED - 4])
        {
            return Err(HeaderError::Damaged);
        }
        let version = word(bytes, 4);
        if version > LOG_VERSION || word(bytes, 8) != 0 {
            return Err(HeaderError::NewerVersion(version.max(LOG_VERSION + 1)));
        }
        Ok(Self { log: bytes[12..28].try_into().expect("sixteen bytes"), segment: long(bytes, 28) })
    }

    fn seed(&self, offset: u32) -> u32 {
        let mut seed = [0; 28];
        seed[..16].copy_from_slice(&self.log);
        seed[16..24].copy_from_slice(&self.segment.to_le_bytes());
        seed[24..].copy_from_slice(&offset.to_le_bytes());
        crc32c(&seed)
    }

    /// The bytes of a batch at `offset` of this segment, padded to [`ALIGN_BYTES`].
    pub(crate) fn encode_batch(&self, offset: u32, watermark: Position, start: u64, records: &[Record]) -> Vec<u8> {
        let capacity = batch_bytes(records);
        let mut bytes = Vec::with_capacity(capacity);
        bytes.put_u32_le(BATCH_MAGIC);
        bytes.put_u64_le(0); // checksum and length, below
        bytes.put_u32_le(u32::try_from(records.len()).expect("a batch is bounded"));
        bytes.put_u64_le(watermark.segment);
        bytes.put_u32_le(watermark.offset);
        bytes.put_u32_le(0);
        bytes.put_u64_le(start);
        debug_assert_eq!(bytes.len(), BATCH_HEADER_BYTES);
        records.iter().for_each(|record| record.encode(&mut bytes));
        let length = u32::try_from(bytes.len() - BATCH_HEADER_BYTES).expect("a batch is bounded");
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c_append(self.seed(offset), &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(ALIGN_BYTES), 0);
        bytes
    }
}

/// Room that these records need as one batch, at most.
pub(crate) fn batch_bytes(records: &[Record]) -> usize {
    (BATCH_HEADER_BYTES + records.iter().map(Record::encoded_bytes).sum::<usize>()).next_multiple_of(ALIGN_BYTES)
}

/// Divides records into batches of at most `bytes_max`, entries of one record if need be. An entry that alone is too
/// large stays alone.
pub(crate) fn split(records: Vec<Record>, bytes_max: usize) -> Vec<Vec<Record>> {
    if batch_bytes(&records) <= bytes_max {
        return vec![records];
    }
    let usable = bytes_max - BATCH_HEADER_BYTES - ALIGN_BYTES;
    let mut batches = vec![Vec::new()];
    let mut used = 0;
    for record in records.into_iter().flat_map(|record| record.split(usable)) {
        let bytes = record.encoded_bytes();
        if used > 0 && used + bytes > usable {
            batches.push(Vec::new());
            used = 0;
        }
        used += bytes;
        batches.last_mut().expect("never empty").push(record);
    }
    batches
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Its offset in the segment.
    pub(crate) offset: u32,
    /// Offset of the next one.
    pub(crate) end: u32,
    records: u32,
    payload_end: u32,
    /// Everything before this was durable when the batch was written.
    pub(crate) watermark: Position,
    /// Oldest segment needed when the batch was written.
    pub(crate) start: u64,
}

/// Contents of a segment's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) header: SegmentHeader,
    /// From the first on without a gap.
    pub(crate) batches: Vec<Batch>,
    /// The highest watermark of batches behind a gap: evidence of what must have been durable.
    pub(crate) later_watermark: Position,
}

impl Scan {
    /// End of the last batch.
    pub(crate) fn end(&self) -> u32 {
        self.batches.last().map_or(FIRST_BATCH, |b| b.end)
    }
}

/// Reads one batch at `offset`, if there is a whole and right one.
fn read_batch(header: &SegmentHeader, bytes: &[u8], offset: usize, sabotage: Sabotage) -> Option<Batch> {
    let rest = bytes.get(offset..)?;
    if rest.len() < BATCH_HEADER_BYTES || word(rest, 0) != BATCH_MAGIC {
        return None;
    }
    let payload_end = BATCH_HEADER_BYTES.checked_add(word(rest, 8) as usize)?;
    let body = rest.get(8..payload_end)?;
    let place = u32::try_from(offset).ok()?;
    if word(rest, 4) != crc32c_append(header.seed(place), body) && sabotage != Sabotage::ChecksumsIgnored {
        return None;
    }
    Some(Batch {
        offset: place,
        end: u32::try_from((offset + payload_end).next_multiple_of(ALIGN_BYTES)).ok()?,
        records: word(rest, 12),
        payload_end: u32::try_from(offset + payload_end).ok()?,
        watermark: Position { segment: long(rest, 16), offset: word(rest, 24) },
        start: long(rest, 32),
    })
}

/// Finds a segment's batches.
pub(crate) fn scan(bytes: &[u8], sabotage: Sabotage) -> Result<Scan, HeaderError> {
    let header = SegmentHeader::decode(bytes)?;
    let mut batches = Vec::new();
    let mut offset = SEGMENT_HEADER_BYTES;
    while let Some(batch) = read_batch(&header, bytes, offset, sabotage) {
        offset = batch.end as usize;
        batches.push(batch);
    }
    let later_watermark = (offset..bytes.len())
        .step_by(ALIGN_BYTES)
        .filter_map(|at| read_batch(&header, bytes, at, sabotage))
        .map(|batch| batch.watermark)
        .max()
        .unwrap_or_default();
    Ok(Scan { header, batches, later_watermark })
}

/// The records of a batch that [`scan`] found in these bytes.
pub(crate) fn records(bytes: &Bytes, batch: &Batch) -> Result<Vec<Record>, Malformed> {
    let mut payload = bytes.slice(batch.offset as usize + BATCH_HEADER_BYTES..batch.payload_end as usize);
    let mut records = Vec::new();
    for _ in 0..batch.records {
        records.push(Record::decode(&mut payload)?);
    }
    if payload.is_empty() { Ok(records) } else { Err(Malformed("bytes behind the last record")) }
}

#[cfg(test)]
mod tests;
