//! The read path: look up, read header and bytes, verify both, and only then let them leave (D8).
//!
//! A reader holds its segment's lock shared from before it gives up the index until it has its bytes, so that what it
//! located is neither punched nor recycled under it (R5).

use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_common::ChunkId;
use holdfast_common::limits::PAGE_BYTES;

use super::index::Entry;
use super::record::{Body, Header, decode, shard_header_area_bytes};
use super::segment::Segment;
use super::types::{ReadData, ReadRange, ShardError, ShardKey, VolumeKey};
use super::units::to_usize;
use super::{Reader, Sabotage};

/// A header and a range this close behind it are read at once.
const ONE_READ_BYTES: u32 = 64 << 10;

impl Reader {
    /// Reads and verifies a range of a shard.
    ///
    /// # Errors
    /// See [`ShardError`]; bytes that do not verify are never returned.
    pub(crate) fn read(&self, range: &ReadRange) -> Result<ReadData, ShardError> {
        let shared = &self.shared;
        if shared.is_failed() {
            return Err(ShardError::DiskFailed);
        }
        if range.length_bytes == 0 || !(range.offset | range.length_bytes).is_multiple_of(PAGE_BYTES) {
            return Err(ShardError::Invalid("a range starts and ends at multiples of 4 KiB and is not empty"));
        }
        let state = shared.state.read();
        if state.volumes.get(&range.key.chunk.volume).dropped {
            return Err(ShardError::Dropped);
        }
        let entry = state
            .index
            .get(&range.key)
            .filter(|entry| entry.nonce == range.nonce || shared.sabotage == Sabotage::ServeAnyNonce);
        let entry = entry.ok_or(ShardError::NotFound)?.clone();
        let segment = state.segments[&entry.at.segment].clone();
        let _pin = segment.readers.read();
        drop(state);
        let end = range.offset.checked_add(range.length_bytes);
        if end.is_none_or(|end| end > entry.shard_length_bytes) {
            return Err(ShardError::Invalid("the range reaches beyond the shard"));
        }
        let read = read_verified(&segment, &entry, range, shared.sabotage);
        match read {
            Err(ReadError::Io(error)) => Err(shared.unread(&range.key, &error)),
            Err(ReadError::Corrupt) => {
                shared.corrupt_reads.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(disk = shared.disk.0, key = ?range.key, at = ?entry.at, "damaged shard found by a read");
                Err(ShardError::Corrupt)
            }
            Ok(data) => Ok(data),
        }
    }

    /// Shards of a volume above a chunk, ascending, and whether that was all.
    ///
    /// # Errors
    /// [`ShardError::DiskFailed`].
    pub(crate) fn list(
        &self,
        volume: &VolumeKey,
        after: ChunkId,
        max_count: usize,
    ) -> Result<(Vec<(ShardKey, Entry)>, bool), ShardError> {
        if self.is_failed() {
            return Err(ShardError::DiskFailed);
        }
        let state = self.shared.state.read();
        if state.volumes.get(volume).dropped {
            return Ok((Vec::new(), true));
        }
        let mut shards: Vec<(ShardKey, Entry)> = Vec::new();
        for (chunk, shard, entry) in state.index.list(volume, after) {
            // The next page starts above a chunk, so a page holds all shards of its last one.
            if shards.len() >= max_count && shards.last().is_some_and(|(key, _)| key.chunk.chunk != chunk) {
                return Ok((shards, false));
            }
            let chunk = super::types::ChunkKey { volume: *volume, chunk };
            shards.push((ShardKey { chunk, shard }, entry.clone()));
        }
        Ok((shards, true))
    }

    /// Every shard, those of dropped volumes included until they are removed.
    pub(crate) fn all(&self) -> Vec<(ShardKey, Entry)> {
        let state = self.shared.state.read();
        let of_volume = |(volume, shards): (&VolumeKey, &super::index::Shards)| {
            let volume = *volume;
            let key = move |chunk, shard| ShardKey { chunk: super::types::ChunkKey { volume, chunk }, shard };
            shards.iter().map(|((chunk, shard), entry)| (key(*chunk, *shard), entry.clone())).collect::<Vec<_>>()
        };
        state.index.volumes.iter().flat_map(of_volume).collect()
    }
}

enum ReadError {
    Io(std::io::Error),
    Corrupt,
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_verified(
    segment: &Segment,
    entry: &Entry,
    range: &ReadRange,
    sabotage: Sabotage,
) -> Result<ReadData, ReadError> {
    let alignment = segment.header.kind.alignment_bytes();
    let area = shard_header_area_bytes(&entry.stripe, entry.shard_length_bytes, alignment);
    let length = to_usize(range.length_bytes.into());
    let (header_bytes, bytes): (Bytes, Bytes) = if range.offset <= ONE_READ_BYTES {
        let skipped = to_usize(area + u64::from(range.offset));
        let mut all = vec![0; skipped + length];
        segment.file.read_exact_at(entry.at.offset, &mut all)?;
        let all = Bytes::from(all);
        (all.slice(..to_usize(area)), all.slice(skipped..))
    } else {
        let mut header = vec![0; to_usize(area)];
        segment.file.read_exact_at(entry.at.offset, &mut header)?;
        let mut bytes = vec![0; length];
        segment.file.read_exact_at(entry.at.offset + area + u64::from(range.offset), &mut bytes)?;
        (header.into(), bytes.into())
    };
    let place = segment.place(entry.at.offset);
    let Ok(Header { body: Body::Shard(meta), version, .. }) = decode(&header_bytes, &place, alignment) else {
        return Err(ReadError::Corrupt);
    };
    if meta.key != range.key || meta.nonce != entry.nonce || version != entry.version {
        return Err(ReadError::Corrupt);
    }
    let first_page = range.offset / PAGE_BYTES;
    let sums_at = to_usize(first_page.into()) * 4;
    let page_checksums = meta.page_checksums.slice(sums_at..sums_at + length / PAGE_BYTES as usize * 4);
    let verified = range.key.place().verify(first_page, &bytes, &page_checksums);
    if verified.is_err() && sabotage != Sabotage::ServeUnverified {
        return Err(ReadError::Corrupt);
    }
    Ok(ReadData { bytes, page_checksums })
}
