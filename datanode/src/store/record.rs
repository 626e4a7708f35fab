//! The record format: a header, padded to the segment's alignment, then the payload. The byte table is in
//! `docs/disk-format/shard-store.md`.
//!
//! The header's CRC is seeded with the record's place (disk, segment, generation, offset), so that bytes left by a
//! segment's former life, or copied elsewhere, never pass. Pure: bytes in, values out.

use bytes::Bytes;
use holdfast_common::checksum::{crc32c, crc32c_append};
use holdfast_common::limits::{CHUNK_BYTES_MAX, PAGE_BYTES, SHARDS_MAX};
use holdfast_common::{ChunkId, DiskId, Epoch, GroupId, Incarnation, Nonce, VolumeId};

use super::fields::{FieldReader, FieldWriter};
use super::types::{ChunkKey, ShardKey, ShardMeta, Stripe, Target, VolumeKey};
use super::units::to_usize;
use holdfast_storage::{BLOCK_BYTES, SECTOR_BYTES};

pub(crate) const RECORD_MAGIC: [u8; 4] = *b"HFrc";
pub(crate) const RECORD_VERSION: u16 = 1;
/// Feature bits this code understands; a record with another required bit is refused.
pub(crate) const RECORD_FEATURES_KNOWN: u32 = NAMES_SHARDS;
/// Of a tombstone: it names single shards. Without it, all shards of chunks.
pub(crate) const NAMES_SHARDS: u32 = 1;
pub(crate) const FIXED_BYTES: usize = 120;
/// Most targets of one tombstone.
pub(crate) const TOMBSTONE_TARGETS_MAX: usize = 4096;
/// Bytes of what a tombstone names: a chunk, and a shard's number.
const CHUNK_BYTES: usize = 8;
const SHARD_BYTES: usize = CHUNK_BYTES + 1;
/// Longest header: a tombstone that is full.
pub(crate) const HEADER_BYTES_MAX: usize = FIXED_BYTES + TOMBSTONE_TARGETS_MAX * SHARD_BYTES;
/// Longest record: one data shard that is a whole chunk, with its header.
pub(crate) const RECORD_BYTES_MAX: u64 = CHUNK_BYTES_MAX as u64 + 4 * BLOCK_BYTES;

const CRC_AT: usize = 116;
const _: () = assert!(FIXED_BYTES + SHARDS_MAX + (CHUNK_BYTES_MAX / PAGE_BYTES) as usize * 4 <= 4 * 4096);

/// Place of a record; the seed of its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) disk: DiskId,
    /// Number of the segment.
    pub(crate) segment: u32,
    /// Life of the segment's file.
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

impl Place {
    fn seed(&self) -> u32 {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&self.disk.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.segment.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.generation.to_le_bytes());
        bytes[20..].copy_from_slice(&self.offset.to_le_bytes());
        crc32c(&bytes)
    }
}

/// Kind of a record, with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// A shard; its payload follows the header.
    Shard(ShardMeta),
    /// Every shard that it names of a lower version is deleted.
    Tombstone {
        volume: VolumeKey,
        /// Either whole chunks only, or single shards only.
        targets: Vec<Target>,
    },
    /// Covers bytes that a crash left torn, so that the scan can explain them.
    Filler,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Number of this append on this disk; it rises.
    pub(crate) sequence: u64,
    /// Every append up to this number was durable when this one was written.
    pub(crate) durable_sequence: u64,
    /// Decides between a shard and a tombstone: the sequence of the first append of this content. Compaction keeps it.
    pub(crate) version: u64,
    /// The whole record with padding and payload.
    pub(crate) record_bytes: u64,
    /// Header with padding: where the payload starts.
    pub(crate) header_area_bytes: u64,
    pub(crate) body: Body,
}

/// Reason why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// Not a record of this place: damage, torn, or never written.
    NotARecord,
    /// More bytes are needed to tell: this many from the record's start.
    NeedBytes(usize),
    /// A valid record that this version of Holdfast cannot read.
    Unsupported,
}

#[must_use]
pub(crate) fn align_up(bytes: u64, alignment: u64) -> u64 {
    bytes.next_multiple_of(alignment)
}

#[must_use]
pub(crate) fn alignment_bytes(bulk: bool) -> u64 {
    if bulk { BLOCK_BYTES } else { SECTOR_BYTES }
}

/// Bytes that a shard's header takes with its padding.
#[must_use]
pub(crate) fn shard_header_area_bytes(stripe: &Stripe, shard_length_bytes: u32, alignment: u64) -> u64 {
    let pages_count = u64::from(shard_length_bytes / PAGE_BYTES);
    align_up(FIXED_BYTES as u64 + stripe.slots.len() as u64 + pages_count * 4, alignment)
}

/// Length of a tombstone's record.
#[must_use]
pub(crate) fn tombstone_bytes(targets: &[Target]) -> u64 {
    let target_bytes = if names_shards(targets) { SHARD_BYTES } else { CHUNK_BYTES };
    align_up((FIXED_BYTES + targets.len() * target_bytes) as u64, SECTOR_BYTES)
}

fn names_shards(targets: &[Target]) -> bool {
    let names = targets.first().is_some_and(|target| target.shard.is_some());
    assert!(targets.iter().all(|target| target.shard.is_some() == names), "a tombstone is of one format");
    names
}

fn encode_targets(targets: &[Target]) -> Vec<u8> {
    let mut out = Vec::with_capacity(targets.len() * SHARD_BYTES);
    for target in targets {
        out.put_u64(target.chunk.0);
        out.extend(target.shard);
    }
    out
}

/// Encodes a header without padding. `record_bytes` is the length of the whole record.
#[must_use]
pub(crate) fn encode(
    place: &Place,
    sequence: u64,
    durable_sequence: u64,
    version: u64,
    record_bytes: u64,
    body: &Body,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(&RECORD_MAGIC);
    out.put_u16(RECORD_VERSION);
    let (kind, tail) = match body {
        Body::Shard(meta) => (1, [&meta.stripe.slots[..], &meta.page_checksums[..]].concat()),
        Body::Tombstone { targets, .. } => (2, encode_targets(targets)),
        Body::Filler => (3, Vec::new()),
    };
    let features = match body {
        Body::Tombstone { targets, .. } if names_shards(targets) => NAMES_SHARDS,
        Body::Shard(_) | Body::Tombstone { .. } | Body::Filler => 0,
    };
    out.extend_from_slice(&[kind, 0]);
    out.put_u32(features);
    out.put_u32(u32::try_from(FIXED_BYTES + tail.len()).expect("HEADER_BYTES_MAX fits"));
    out.put_u64(record_bytes);
    out.put_u64(sequence);
    out.put_u64(durable_sequence);
    out.put_u64(version);
    encode_identity(&mut out, body);
    out.put_u32(0);
    out.put_u32(0);
    debug_assert_eq!(out.len(), FIXED_BYTES);
    out.extend_from_slice(&tail);
    let crc = header_crc(place, &out);
    out[CRC_AT..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
    out
}

fn encode_identity(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Shard(meta) => {
            out.put_u64(meta.key.chunk.volume.volume.0);
            out.put_u64(meta.key.chunk.volume.incarnation.0);
            out.put_u64(meta.key.chunk.chunk.0);
            out.put_u64(meta.nonce.0);
            out.put_u64(meta.stripe.group.0);
            out.put_u64(meta.stripe.epoch.0);
            out.put_u32(meta.chunk_length_bytes);
            out.put_u32(meta.shard_length_bytes);
            let slots_count = u8::try_from(meta.stripe.slots.len()).expect("SHARDS_MAX fits a byte");
            out.extend_from_slice(&[meta.key.shard, meta.stripe.data_shards, meta.stripe.parity_shards, slots_count]);
            out.put_u32(meta.pages_count());
        }
        Body::Tombstone { volume, targets } => {
            out.put_u64(volume.volume.0);
            out.put_u64(volume.incarnation.0);
            out.extend_from_slice(&[0; 44]);
            out.put_u32(u32::try_from(targets.len()).expect("TOMBSTONE_TARGETS_MAX fits"));
        }
        Body::Filler => out.extend_from_slice(&[0; 64]),
    }
}

fn header_crc(place: &Place, header: &[u8]) -> u32 {
    crc32c_append(crc32c_append(place.seed(), &header[..CRC_AT]), &header[FIXED_BYTES..])
}

/// Decodes the header at the start of `bytes`, which stand at `place`.
///
/// # Errors
/// See [`DecodeError`]; never panics, whatever the bytes.
pub(crate) fn decode(bytes: &[u8], place: &Place, alignment: u64) -> Result<Header, DecodeError> {
    let mut fields = FieldReader::new(bytes);
    if fields.take(4).is_some_and(|magic| magic != RECORD_MAGIC) {
        return Err(DecodeError::NotARecord);
    }
    if bytes.len() < FIXED_BYTES {
        return Err(DecodeError::NeedBytes(FIXED_BYTES));
    }
    decode_fields(bytes, &mut fields, place, alignment)
}

fn decode_fields(
    bytes: &[u8],
    fields: &mut FieldReader<'_>,
    place: &Place,
    alignment: u64,
) -> Result<Header, DecodeError> {
    let none = DecodeError::NotARecord;
    let version_of_format = fields.u16().ok_or(none)?;
    let kind = fields.u8().ok_or(none)?;
    let _reserved = fields.u8().ok_or(none)?;
    let features = fields.u32().ok_or(none)?;
    let header_bytes = to_usize(fields.u32().ok_or(none)?.into());
    if !(FIXED_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes) {
        return Err(none);
    }
    let Some(header) = bytes.get(..header_bytes) else {
        return Err(DecodeError::NeedBytes(header_bytes));
    };
    let stored_crc = header.get(CRC_AT..FIXED_BYTES).ok_or(none)?;
    if header_crc(place, header).to_le_bytes() != stored_crc {
        return Err(none);
    }
    if version_of_format != RECORD_VERSION || features & !RECORD_FEATURES_KNOWN != 0 {
        return Err(DecodeError::Unsupported);
    }
    let record_bytes = fields.u64().ok_or(none)?;
    let (sequence, durable_sequence) = (fields.u64().ok_or(none)?, fields.u64().ok_or(none)?);
    let version = fields.u64().ok_or(none)?;
    let body = decode_body((kind, features), fields, header).ok_or(none)?;
    let header_area_bytes = align_up(header_bytes as u64, alignment);
    let payload_bytes = match &body {
        Body::Shard(meta) => u64::from(meta.shard_length_bytes),
        Body::Tombstone { .. } => 0,
        Body::Filler => record_bytes.checked_sub(header_area_bytes).ok_or(none)?,
    };
    if record_bytes != header_area_bytes + payload_bytes || !record_bytes.is_multiple_of(alignment) {
        return Err(none);
    }
    Ok(Header { sequence, durable_sequence, version, record_bytes, header_area_bytes, body })
}

fn decode_body((kind, features): (u8, u32), fields: &mut FieldReader<'_>, header: &[u8]) -> Option<Body> {
    let volume = VolumeKey { volume: VolumeId(fields.u64()?), incarnation: Incarnation(fields.u64()?) };
    let chunk = ChunkId(fields.u64()?);
    let nonce = Nonce(fields.u64()?);
    let (group, epoch) = (GroupId(fields.u64()?), Epoch(fields.u64()?));
    let (chunk_length_bytes, shard_length_bytes) = (fields.u32()?, fields.u32()?);
    let (shard, data_shards, parity_shards) = (fields.u8()?, fields.u8()?, fields.u8()?);
    let slots_count = usize::from(fields.u8()?);
    let items_count = to_usize(fields.u32()?.into());
    let mut tail = FieldReader::new(header.get(FIXED_BYTES..)?);
    let body = match kind {
        1 => {
            let slots = tail.take(slots_count)?.into();
            let page_checksums = Bytes::copy_from_slice(tail.take(items_count.checked_mul(4)?)?);
            let stripe = Stripe { group, epoch, data_shards, parity_shards, slots };
            let key = ShardKey { chunk: ChunkKey { volume, chunk }, shard };
            let meta = ShardMeta { key, nonce, stripe, chunk_length_bytes, shard_length_bytes, page_checksums };
            meta.check().ok()?;
            Body::Shard(meta)
        }
        2 => {
            let mut targets = Vec::with_capacity(items_count.min(TOMBSTONE_TARGETS_MAX));
            for _ in 0..items_count {
                let chunk = ChunkId(tail.u64()?);
                let shard = if features & NAMES_SHARDS == 0 { None } else { Some(tail.u8()?) };
                targets.push(Target { chunk, shard });
            }
            Body::Tombstone { volume, targets }
        }
        3 => Body::Filler,
        _ => return None,
    };
    tail.is_empty().then_some(body)
}
