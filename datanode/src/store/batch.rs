//! A group commit in memory: the records on their way to each segment, and what each changes once it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_common::limits::PAGE_BYTES;

use super::index::Location;
use super::record::{self, Body};
use super::segment::{Segment, SegmentKind};
use super::types::{ChunkKey, Done, Outcome, Put, Request, ShardError, ShardKey, ShardMeta, Target, VolumeKey};

/// Most bytes written to a segment by one write.
pub(crate) const LANE_BYTES: usize = 8 << 20;
const _: () = assert!(record::RECORD_BYTES_MAX <= LANE_BYTES as u64);

/// Memory aligned as O_DIRECT wants it.
pub(crate) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// All zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        const ALIGNMENT: usize = 4096;
        let storage = vec![0; bytes + ALIGNMENT];
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { storage, start }
    }

    pub(crate) fn bytes(&self, count: usize) -> &[u8] {
        &self.storage[self.start..self.start + count]
    }

    pub(super) fn range_mut(&mut self, offset: usize, count: usize) -> &mut [u8] {
        &mut self.storage[self.start + offset..self.start + offset + count]
    }
}

/// Change of the index that a written record brings once it is durable.
pub(super) enum Change {
    Put { key: ShardKey, meta: Box<ShardMeta>, version: u64, at: Location },
    Delete { volume: VolumeKey, targets: Vec<Target>, kept_count: u32, version: u64, at: Location },
    MoveShard { key: ShardKey, from: Location, to: Location },
    MoveTombstone { version: u64, to: Location },
}

pub(super) struct Planned {
    pub(super) change: Change,
    /// Number of the request it answers, if any.
    pub(super) request: Option<usize>,
    /// Reason why its record was not written.
    pub(super) failed: Option<ShardError>,
}

/// Records on their way to one segment.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) used: usize,
    /// Planned changes whose records are in the buffer.
    pub(super) pending: Vec<usize>,
}

/// One group commit.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) planned: Vec<Planned>,
    pub(super) outcomes: Vec<Option<Outcome>>,
    /// Requests that another one of the batch answers too.
    pub(super) twins: Vec<(usize, usize)>,
    pub(super) shards: BTreeMap<ShardKey, usize>,
    pub(super) put_chunks: BTreeSet<ChunkKey>,
    pub(super) deleted_chunks: BTreeSet<ChunkKey>,
    pub(super) small: Lane,
    pub(super) small_buffer: Vec<u8>,
    pub(super) bulk: Lane,
    pub(super) touched: Vec<Arc<Segment>>,
}

impl Batch {
    pub(super) fn must_end_before(&self, request: &Request) -> bool {
        match request {
            Request::Put(put) => self.deleted_chunks.contains(&put.meta.key.chunk),
            Request::Delete { volume, chunks, shards } => {
                let named = chunks.iter().copied().chain(shards.iter().map(|name| name.chunk));
                named
                    .map(|chunk| ChunkKey { volume: *volume, chunk })
                    .any(|key| self.put_chunks.contains(&key) || self.deleted_chunks.contains(&key))
            }
            Request::SetFloor { .. } | Request::DropVolume { .. } => !self.outcomes.is_empty(),
        }
    }

    pub(super) fn lane(&self, kind: SegmentKind) -> &Lane {
        match kind {
            SegmentKind::Small => &self.small,
            SegmentKind::Bulk => &self.bulk,
        }
    }

    pub(super) fn lane_mut(&mut self, kind: SegmentKind) -> &mut Lane {
        match kind {
            SegmentKind::Small => &mut self.small,
            SegmentKind::Bulk => &mut self.bulk,
        }
    }

    /// Notes what the record just appended to the lane changes.
    pub(super) fn plan(&mut self, kind: SegmentKind, change: Change, request: Option<usize>) {
        let number = self.planned.len();
        self.lane_mut(kind).pending.push(number);
        self.planned.push(Planned { change, request, failed: None });
    }

    pub(super) fn touch(&mut self, segment: &Arc<Segment>) {
        if !self.touched.iter().any(|t| t.header.number == segment.header.number) {
            self.touched.push(segment.clone());
        }
    }
}

/// Bytes behind a header.
pub(super) enum Payload<'a> {
    None,
    /// From the network: every page is verified while it is copied.
    Verified(&'a Put),
    /// From another segment, as it stands there.
    Raw(&'a [u8]),
}

/// A record that compaction carries to another segment.
pub(super) struct Copied {
    pub(super) from: Location,
    pub(super) version: u64,
    pub(super) record_bytes: u64,
    pub(super) body: Body,
    pub(super) payload: Vec<u8>,
}

/// Writes header, padding and payload. Verifies the payload in the same pass over it.
pub(super) fn fill(into: &mut [u8], header: &[u8], payload: &Payload<'_>) -> Result<(), ShardError> {
    let payload_bytes = match payload {
        Payload::None => 0,
        Payload::Verified(put) => put.payload.len(),
        Payload::Raw(bytes) => bytes.len(),
    };
    let (area, body) = into.split_at_mut(into.len() - payload_bytes);
    area[..header.len()].copy_from_slice(header);
    area[header.len()..].fill(0);
    match payload {
        Payload::None => {}
        Payload::Raw(bytes) => body.copy_from_slice(bytes),
        Payload::Verified(put) => {
            let place = put.meta.key.place();
            let pages = put.payload.chunks_exact(PAGE_BYTES as usize).zip(0..);
            let copies = body.chunks_exact_mut(PAGE_BYTES as usize);
            for (((page, index), expected), copy) in pages.zip(put.meta.page_checksums.chunks_exact(4)).zip(copies) {
                if place.page_checksum(index, page).to_le_bytes() != expected {
                    return Err(ShardError::Invalid("a page does not match its checksum"));
                }
                copy.copy_from_slice(page);
            }
        }
    }
    Ok(())
}

/// A request of several records is answered by all of them.
pub(super) fn merge(outcome: &mut Option<Outcome>, result: Outcome) {
    *outcome = Some(match (*outcome, result) {
        (None, result) => result,
        (Some(Ok(a)), Ok(b)) => {
            Ok(Done { deleted_count: a.deleted_count + b.deleted_count, kept_count: a.kept_count + b.kept_count })
        }
        (Some(Err(error)), _) | (Some(Ok(_)), Err(error)) => Err(error),
    });
}
