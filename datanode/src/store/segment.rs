//! A segment file: two copies of its header, then records. The byte table is in `docs/disk-format/shard-store.md`.
//!
//! Both copies are written one after the other with a sync between, so that a torn write or one bad sector leaves a
//! valid copy; the higher generation counts.

use std::io;
use std::sync::Arc;

use holdfast_common::DiskId;
use holdfast_common::checksum::crc32c;
use parking_lot::RwLock;

use super::fields::{FieldReader, FieldWriter};
use super::record::{Place, alignment_bytes};
use holdfast_storage::{BLOCK_BYTES, DiskFile};

pub(crate) const SEGMENT_MAGIC: [u8; 4] = *b"HFsg";
pub(crate) const SEGMENT_VERSION: u16 = 1;
/// Feature bits this code understands.
pub(crate) const SEGMENT_FEATURES_KNOWN: u32 = 0;
/// Bytes of a header copy: one sector, written whole or not at all.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 512;
/// Offset of the first record: behind the two header copies, each in a block of its own.
pub(crate) const DATA_START: u64 = 2 * BLOCK_BYTES;

const COPIES_AT: [u64; 2] = [0, BLOCK_BYTES];

/// Whether the disk cannot read a place, rather than the machine any.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADMSG | libc::EILSEQ))
}

/// Kind of shards in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SegmentKind {
    /// Shards below 64 KiB and tombstones; written with zeros ahead, reclaimed whole.
    Small,
    /// Larger shards; sparse, punched.
    Bulk,
}

impl SegmentKind {
    #[must_use]
    pub(crate) fn alignment_bytes(self) -> u64 {
        alignment_bytes(self == Self::Bulk)
    }
}

/// Contents of a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Its number on this disk, which is in its file name too.
    pub(crate) number: u32,
    pub(crate) kind: SegmentKind,
    /// Life of the file; no two lives on a disk share one.
    pub(crate) generation: u64,
    /// Disk it was made for: a file that was copied to another is left alone.
    pub(crate) disk: DiskId,
    pub(crate) size_bytes: u64,
}

impl SegmentHeader {
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.put_u16(SEGMENT_VERSION);
        out.extend_from_slice(&[if self.kind == SegmentKind::Small { 1 } else { 2 }, 0]);
        out.put_u32(0);
        out.put_u32(self.number);
        out.put_u64(self.generation);
        out.put_u64(self.disk.0);
        out.put_u64(self.size_bytes);
        out.resize(SEGMENT_HEADER_BYTES - 4, 0);
        let crc = crc32c(&out);
        out.put_u32(crc);
        out
    }

    fn decode(sector: &[u8]) -> Result<Self, HeaderError> {
        let (fields, crc) = sector.split_at_checked(SEGMENT_HEADER_BYTES - 4).ok_or(HeaderError::Damaged)?;
        if sector.iter().all(|b| *b == 0) {
            return Err(HeaderError::Blank);
        }
        if crc32c(fields).to_le_bytes() != crc || fields[..4] != SEGMENT_MAGIC {
            return Err(HeaderError::Damaged);
        }
        let mut reader = FieldReader::new(&fields[4..]);
        Self::decode_fields(&mut reader).ok_or(HeaderError::Damaged)?
    }

    fn decode_fields(fields: &mut FieldReader<'_>) -> Option<Result<Self, HeaderError>> {
        let version = fields.u16()?;
        let kind = fields.u8()?;
        let _reserved = fields.u8()?;
        let features = fields.u32()?;
        if version != SEGMENT_VERSION || features & !SEGMENT_FEATURES_KNOWN != 0 {
            return Some(Err(HeaderError::Unsupported));
        }
        let kind = match kind {
            1 => SegmentKind::Small,
            2 => SegmentKind::Bulk,
            _ => return None,
        };
        let number = fields.u32()?;
        let (generation, disk, size_bytes) = (fields.u64()?, DiskId(fields.u64()?), fields.u64()?);
        Some(Ok(Self { number, kind, generation, disk, size_bytes }))
    }
}

/// Reason why a file is no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HeaderError {
    /// Both copies are zeros or missing: a crash while it was made, before anything used it.
    Blank,
    /// Neither copy verifies.
    Damaged,
    /// Made by a newer version.
    Unsupported,
}

/// An open segment.
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Held shared by readers. Taken exclusively, and at once released, it says that every reader that may have
    /// found a location before has finished (R5).
    pub(crate) readers: RwLock<()>,
}

impl Segment {
    #[must_use]
    pub(crate) fn new(header: SegmentHeader, file: Arc<dyn DiskFile>) -> Arc<Self> {
        Arc::new(Self { header, file, readers: RwLock::new(()) })
    }

    /// The seed for the checksum of a record at `offset`.
    #[must_use]
    pub(crate) fn place(&self, offset: u64) -> Place {
        Place { disk: self.header.disk, segment: self.header.number, generation: self.header.generation, offset }
    }

    /// Waits until readers that found their location before now have finished.
    pub(crate) fn drain_readers(&self) {
        drop(self.readers.write());
    }
}

#[must_use]
pub(crate) fn file_name(kind: SegmentKind, number: u32) -> String {
    match kind {
        SegmentKind::Small => format!("small-{number:010}.seg"),
        SegmentKind::Bulk => format!("bulk-{number:010}.seg"),
    }
}

/// Whether a file is named like a segment, and of which number.
#[must_use]
pub(crate) fn parse_file_name(name: &str) -> Option<(SegmentKind, u32)> {
    let stem = name.strip_suffix(".seg")?;
    let (kind, digits) = match stem.strip_prefix("small-") {
        Some(digits) => (SegmentKind::Small, digits),
        None => (SegmentKind::Bulk, stem.strip_prefix("bulk-")?),
    };
    let number = digits.parse().ok()?;
    (file_name(kind, number) == name).then_some((kind, number))
}

/// Writes both copies of the header, durable one after the other.
///
/// # Errors
/// Any I/O error.
pub(crate) fn write_header(file: &dyn DiskFile, header: &SegmentHeader) -> io::Result<()> {
    let sector = header.encode();
    for at in COPIES_AT {
        file.write_at(at, &sector)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Reads the header: the valid copy of the higher generation.
///
/// # Errors
/// I/O errors outside, what is wrong with the content inside.
pub(crate) fn read_header(file: &dyn DiskFile) -> io::Result<Result<SegmentHeader, HeaderError>> {
    let length = file.length_bytes()?;
    let mut best: Result<SegmentHeader, HeaderError> = Err(HeaderError::Blank);
    for at in COPIES_AT {
        let mut sector = [0; SEGMENT_HEADER_BYTES];
        let mut copy = Err(HeaderError::Blank);
        if at + SEGMENT_HEADER_BYTES as u64 <= length {
            copy = match file.read_exact_at(at, &mut sector) {
                Err(error) if is_unreadable(&error) => Err(HeaderError::Damaged),
                other => other.map(|()| SegmentHeader::decode(&sector))?,
            };
        }
        best = match (best, copy) {
            (Ok(a), Ok(b)) => Ok(if b.generation > a.generation { b } else { a }),
            (Ok(a), Err(HeaderError::Unsupported)) | (Err(HeaderError::Unsupported), Ok(a)) => {
                let _ = a;
                Err(HeaderError::Unsupported)
            }
            (Ok(a), Err(_)) | (Err(_), Ok(a)) => Ok(a),
            (Err(a), Err(b)) => Err(a.max(b)),
        };
    }
    Ok(best)
}
