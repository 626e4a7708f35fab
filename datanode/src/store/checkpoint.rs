//! The checkpoint: the index as a file, so that a start scans only what was appended since. It is never trusted beyond
//! its checksum and its fit with the segments; a wrong one is dropped and everything scanned.

use std::io;
use std::sync::Arc;

use holdfast_common::checksum::crc32c;
use holdfast_common::{ChunkId, DiskId, Epoch, GroupId, Incarnation, Nonce, VolumeId};
use holdfast_storage::Directory;

use super::fields::{FieldReader, FieldWriter};
use super::index::{Entry, Index, Location, Phase, SegmentState};
use super::segment::SegmentKind;
use super::types::{ChunkKey, Grave, ShardKey, Stripe, Target, VolumeKey};
use super::units::{saturating_u32, to_usize};

pub(crate) const CHECKPOINT_FILE: &str = "checkpoint";
pub(crate) const CHECKPOINT_MAGIC: [u8; 4] = *b"HFck";
/// Version of the format. Another one is dropped like a damaged one: the scan gives the same index.
pub(crate) const CHECKPOINT_VERSION: u16 = 2;

/// Contents of a checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) index: Index,
    pub(super) durable_sequence: u64,
    pub(super) next_sequence: u64,
    pub(super) next_segment: u32,
}

/// A copy of the index as it was at a moment between two batches, to be written by any thread.
pub(crate) struct Frozen {
    pub(super) index: Index,
    pub(super) directory: Arc<dyn Directory>,
    pub(super) disk: DiskId,
    pub(super) durable_sequence: u64,
    pub(super) next_sequence: u64,
    pub(super) next_segment: u32,
    /// Segments that this checkpoint knows to be drained: they may be used again when it is durable.
    pub(super) drained: Vec<u32>,
    /// Records since the checkpoint before, which this one covers.
    pub(super) records_count: u64,
    /// A segment that this one does not know any more may be back after a loss of power.
    pub(super) syncs_names_first: bool,
}

impl Frozen {
    /// Writes it in the place of the checkpoint before; durable when it returns. Takes seconds for millions of shards.
    ///
    /// # Errors
    /// Any I/O error.
    pub(crate) fn write(&self) -> io::Result<()> {
        let Self { index, disk, durable_sequence, next_sequence, next_segment, .. } = self;
        let bytes = encode(index, *disk, *durable_sequence, *next_sequence, *next_segment);
        if self.syncs_names_first {
            self.directory.sync_names()?;
        }
        self.directory.replace(CHECKPOINT_FILE, &bytes)
    }
}

pub(super) fn encode(
    index: &Index,
    disk: DiskId,
    durable_sequence: u64,
    next_sequence: u64,
    next_segment: u32,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096 + to_usize(index.shards_count()) * 80);
    out.extend_from_slice(&CHECKPOINT_MAGIC);
    out.put_u16(CHECKPOINT_VERSION);
    out.put_u16(0);
    out.put_u64(disk.0);
    out.put_u64(durable_sequence);
    out.put_u64(next_sequence);
    out.put_u32(next_segment);
    encode_segments(&mut out, index);
    encode_shards(&mut out, index);
    encode_tombstones(&mut out, index);
    out.put_u64(index.stale.len() as u64);
    for (key, copies) in &index.stale {
        put_chunk(&mut out, &key.chunk);
        out.push(key.shard);
        out.put_u32(saturating_u32(copies.len()));
        copies.iter().for_each(|copy| put_location(&mut out, copy));
    }
    out.put_u64(index.punches.len() as u64);
    for punch in &index.punches {
        put_location(&mut out, &punch.at);
        out.push(u8::from(punch.grave.is_some()));
        if let Some(grave) = &punch.grave {
            put_grave(&mut out, grave);
        }
    }
    let crc = crc32c(&out);
    out.put_u32(crc);
    out
}

fn encode_segments(out: &mut Vec<u8>, index: &Index) {
    out.put_u64(index.segments.len() as u64);
    for (number, segment) in &index.segments {
        out.put_u32(*number);
        let phase = match segment.phase {
            Phase::Spare => 0,
            Phase::Open => 1,
            Phase::Sealed => 2,
            Phase::Drained => 3,
        };
        out.extend_from_slice(&[u8::from(segment.kind == SegmentKind::Bulk), phase]);
        out.put_u64(segment.generation);
        out.put_u64(segment.size_bytes);
        out.put_u64(segment.append);
        out.put_u64(segment.damaged_bytes);
        out.put_u64(segment.pinned.len() as u64);
        segment.pinned.iter().for_each(|grave| put_grave(out, grave));
    }
}

fn encode_shards(out: &mut Vec<u8>, index: &Index) {
    let mut stripes = std::collections::BTreeMap::new();
    for entry in index.volumes.values().flat_map(|shards| shards.values()) {
        let next = stripes.len();
        stripes.entry(&*entry.stripe).or_insert(next);
    }
    let mut ordered: Vec<_> = stripes.iter().collect();
    ordered.sort_unstable_by_key(|(_, number)| **number);
    out.put_u64(ordered.len() as u64);
    for (stripe, _) in ordered {
        out.put_u64(stripe.group.0);
        out.put_u64(stripe.epoch.0);
        let slots_count = u8::try_from(stripe.slots.len()).expect("SHARDS_MAX fits a byte");
        out.extend_from_slice(&[stripe.data_shards, stripe.parity_shards, slots_count]);
        out.extend_from_slice(&stripe.slots);
    }
    out.put_u64(index.volumes.len() as u64);
    for (volume, shards) in &index.volumes {
        put_volume(out, volume);
        out.put_u64(shards.len() as u64);
        for ((chunk, shard), entry) in shards {
            out.put_u64(chunk.0);
            out.push(*shard);
            put_location(out, &entry.at);
            out.put_u64(entry.version);
            out.put_u64(entry.nonce.0);
            out.put_u32(entry.shard_length_bytes);
            out.put_u32(entry.chunk_length_bytes);
            out.put_u32(saturating_u32(stripes[&*entry.stripe]));
        }
    }
}

fn encode_tombstones(out: &mut Vec<u8>, index: &Index) {
    out.put_u64(index.tombstone_records.len() as u64);
    for (version, record) in &index.tombstone_records {
        out.put_u64(*version);
        put_location(out, &record.at);
        put_volume(out, &record.volume);
        out.put_u32(saturating_u32(record.targets.len()));
        record.targets.iter().for_each(|target| put_target(out, target));
    }
}

fn put_grave(out: &mut Vec<u8>, grave: &Grave) {
    put_volume(out, &grave.volume);
    put_target(out, &grave.target);
}

fn put_target(out: &mut Vec<u8>, target: &Target) {
    out.put_u64(target.chunk.0);
    out.extend_from_slice(&[u8::from(target.shard.is_some()), target.shard.unwrap_or(0)]);
}

fn put_volume(out: &mut Vec<u8>, volume: &VolumeKey) {
    out.put_u64(volume.volume.0);
    out.put_u64(volume.incarnation.0);
}

fn put_chunk(out: &mut Vec<u8>, chunk: &ChunkKey) {
    put_volume(out, &chunk.volume);
    out.put_u64(chunk.chunk.0);
}

fn put_location(out: &mut Vec<u8>, at: &Location) {
    out.put_u32(at.segment);
    out.put_u64(at.offset);
    out.put_u64(at.bytes);
}

/// Reads a checkpoint of this disk; `None` if it is not one, whatever is wrong with it.
pub(super) fn decode(bytes: &[u8], disk: DiskId) -> Option<Checkpoint> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32c(body).to_le_bytes() != crc {
        return None;
    }
    let mut fields = FieldReader::new(body);
    if fields.take(4)? != CHECKPOINT_MAGIC || fields.u16()? != CHECKPOINT_VERSION || fields.u16()? != 0 {
        return None;
    }
    if fields.u64()? != disk.0 {
        return None;
    }
    let (durable_sequence, next_sequence, next_segment) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let mut index = Index::default();
    let pinned = decode_segments(&mut fields, &mut index)?;
    decode_shards(&mut fields, &mut index)?;
    decode_tombstones(&mut fields, &mut index)?;
    // Dead records come after the tombstones that they pin.
    for (segment, grave) in pinned {
        index.bury(Location { segment, offset: 0, bytes: 0 }, Some(grave));
    }
    decode_stale(&mut fields, &mut index)?;
    for _ in 0..fields.u64()? {
        let at = location(&mut fields, &index)?;
        let grave = if fields.u8()? == 1 { Some(grave(&mut fields)?) } else { None };
        if index.segments[&at.segment].kind != SegmentKind::Bulk {
            return None;
        }
        index.bury(at, grave);
    }
    fields.is_empty().then_some(Checkpoint { index, durable_sequence, next_sequence, next_segment })
}

fn decode_segments(fields: &mut FieldReader<'_>, index: &mut Index) -> Option<Vec<(u32, Grave)>> {
    let mut pinned = Vec::new();
    for _ in 0..fields.u64()? {
        let number = fields.u32()?;
        let kind = if fields.u8()? == 0 { SegmentKind::Small } else { SegmentKind::Bulk };
        let phase = match fields.u8()? {
            0 => Phase::Spare,
            1 => Phase::Open,
            2 => Phase::Sealed,
            3 => Phase::Drained,
            _ => return None,
        };
        let (generation, size_bytes, append) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let damaged_bytes = fields.u64()?;
        for _ in 0..fields.u64()? {
            pinned.push((number, grave(fields)?));
        }
        let state = SegmentState {
            kind,
            generation,
            size_bytes,
            append,
            live_bytes: 0,
            phase,
            damaged_bytes,
            punches_count: 0,
            pinned: Arc::default(),
        };
        index.segments.insert(number, state);
    }
    pinned.iter().all(|(number, _)| index.segments[number].kind == SegmentKind::Small).then_some(pinned)
}

fn decode_shards(fields: &mut FieldReader<'_>, index: &mut Index) -> Option<()> {
    let mut stripes: Vec<Arc<Stripe>> = Vec::new();
    for _ in 0..fields.u64()? {
        let (group, epoch) = (GroupId(fields.u64()?), Epoch(fields.u64()?));
        let (data_shards, parity_shards) = (fields.u8()?, fields.u8()?);
        let slots_count = fields.u8()?;
        let slots = fields.take(slots_count.into())?.into();
        stripes.push(index.intern(&Stripe { group, epoch, data_shards, parity_shards, slots }));
    }
    for _ in 0..fields.u64()? {
        let volume = volume(fields)?;
        for _ in 0..fields.u64()? {
            let chunk = ChunkKey { volume, chunk: ChunkId(fields.u64()?) };
            let key = ShardKey { chunk, shard: fields.u8()? };
            let at = location(fields, index)?;
            let (version, nonce) = (fields.u64()?, Nonce(fields.u64()?));
            let (shard_length_bytes, chunk_length_bytes) = (fields.u32()?, fields.u32()?);
            let stripe = stripes.get(to_usize(fields.u32()?.into()))?.clone();
            if index.get(&key).is_some() {
                return None;
            }
            index.insert_shard(key, Entry { at, version, nonce, shard_length_bytes, chunk_length_bytes, stripe });
        }
    }
    Some(())
}

fn decode_tombstones(fields: &mut FieldReader<'_>, index: &mut Index) -> Option<()> {
    for _ in 0..fields.u64()? {
        let version = fields.u64()?;
        let at = location(fields, index)?;
        let volume = volume(fields)?;
        let targets: Option<Vec<Target>> = (0..fields.u32()?).map(|_| target(fields)).collect();
        index.apply_tombstone(volume, &targets?, version, at);
    }
    Some(())
}

fn decode_stale(fields: &mut FieldReader<'_>, index: &mut Index) -> Option<()> {
    for _ in 0..fields.u64()? {
        let key = ShardKey { chunk: chunk(fields)?, shard: fields.u8()? };
        let copies: Option<Vec<Location>> = (0..fields.u32()?).map(|_| location(fields, index)).collect();
        index.stale.insert(key, copies?);
    }
    Some(())
}

fn volume(fields: &mut FieldReader<'_>) -> Option<VolumeKey> {
    Some(VolumeKey { volume: VolumeId(fields.u64()?), incarnation: Incarnation(fields.u64()?) })
}

fn chunk(fields: &mut FieldReader<'_>) -> Option<ChunkKey> {
    Some(ChunkKey { volume: volume(fields)?, chunk: ChunkId(fields.u64()?) })
}

fn grave(fields: &mut FieldReader<'_>) -> Option<Grave> {
    Some(Grave { volume: volume(fields)?, target: target(fields)? })
}

fn target(fields: &mut FieldReader<'_>) -> Option<Target> {
    let (chunk, names_one, shard) = (ChunkId(fields.u64()?), fields.u8()?, fields.u8()?);
    Some(Target { chunk, shard: (names_one == 1).then_some(shard) })
}

/// A location inside a segment the checkpoint knows.
fn location(fields: &mut FieldReader<'_>, index: &Index) -> Option<Location> {
    let at = Location { segment: fields.u32()?, offset: fields.u64()?, bytes: fields.u64()? };
    let segment = index.segments.get(&at.segment)?;
    (at.offset.checked_add(at.bytes)? <= segment.append).then_some(at)
}
