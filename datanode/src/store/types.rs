//! The words of the shard store: keys, a shard's description, requests to the writer and their outcomes.

use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::limits::{PAGE_BYTES, SHARDS_MAX, SMALL_SHARD_BYTES};
pub(crate) use holdfast_common::proof::ShardName;
use holdfast_common::{ChunkId, Epoch, GroupId, Incarnation, Nonce, SessionId, VolumeId};
use holdfast_erasure::geometry;
use holdfast_proto::data;

/// One life of a volume (R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeKey {
    /// Given by the volume manager, never twice; not zero in a shard.
    pub volume: VolumeId,
    /// Raised by a restore of the table from a backup.
    pub incarnation: Incarnation,
}

/// A session of a volume: numbers of sessions are given by each volume's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionKey {
    pub(crate) volume: VolumeId,
    pub(crate) session: SessionId,
}

impl SessionKey {
    /// Nobody's session: it has reserved nothing.
    pub(crate) const NOBODY: Self = Self { volume: VolumeId(0), session: SessionId(0) };
}

/// Name of a chunk on a disk: each volume's table numbers its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    /// Volume and life it belongs to.
    pub volume: VolumeKey,
    /// Given by the volume's table.
    pub chunk: ChunkId,
}

/// Name of a shard on a disk, where it is there once at most (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey {
    /// Chunk it is a part of.
    pub chunk: ChunkKey,
    /// Number in its chunk: data shards first, then parity.
    pub shard: u8,
}

impl ShardKey {
    /// The seed of the shard's page checksums.
    #[must_use]
    pub fn place(&self) -> ShardPlace {
        ShardPlace { volume: self.chunk.volume.volume, chunk: self.chunk.chunk, shard: self.shard }
    }
}

/// Part of a volume that a tombstone names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) chunk: ChunkId,
    /// Number of the shard; `None` in tombstones of the first format, which name all of them.
    pub(crate) shard: Option<u8>,
}

/// A tombstone of a disk: what it names, and whose that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grave {
    pub(crate) volume: VolumeKey,
    pub(crate) target: Target,
}

impl ShardKey {
    /// The tombstone that names this shard alone.
    #[must_use]
    pub(crate) fn grave(&self) -> Grave {
        Grave { volume: self.chunk.volume, target: Target { chunk: self.chunk.chunk, shard: Some(self.shard) } }
    }
}

/// Spread of a chunk over its block group. Many shards share one, so the index interns them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stripe {
    pub(crate) group: GroupId,
    /// Epoch of its membership when the chunk was written.
    pub(crate) epoch: Epoch,
    pub(crate) data_shards: u8,
    pub(crate) parity_shards: u8,
    /// Slot of each shard in the block group: `data_shards + parity_shards` bytes.
    pub(crate) slots: Box<[u8]>,
}

/// Everything a shard says about itself, its payload aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardMeta {
    pub(crate) key: ShardKey,
    /// The attempt (R1).
    pub(crate) nonce: Nonce,
    pub(crate) stripe: Stripe,
    /// Data bytes of the whole chunk.
    pub(crate) chunk_length_bytes: u32,
    /// Bytes of this shard: a multiple of a page, not zero.
    pub(crate) shard_length_bytes: u32,
    /// CRC32C of each page, little-endian, one after another.
    pub(crate) page_checksums: Bytes,
}

impl ShardMeta {
    #[must_use]
    pub(crate) fn pages_count(&self) -> u32 {
        self.shard_length_bytes / PAGE_BYTES
    }

    /// Whether it belongs into a segment of small shards (R14).
    #[must_use]
    pub(crate) fn is_small(&self) -> bool {
        self.shard_length_bytes < SMALL_SHARD_BYTES
    }

    /// The header that travels: what [`TryFrom`] takes.
    #[cfg(test)]
    pub(crate) fn to_wire(&self) -> data::ShardHeader {
        data::ShardHeader {
            volume: self.key.chunk.volume.volume.0,
            incarnation: self.key.chunk.volume.incarnation.0,
            chunk: self.key.chunk.chunk.0,
            nonce: self.nonce.0,
            group: self.stripe.group.0,
            epoch: self.stripe.epoch.0,
            shard: self.key.shard.into(),
            data_shards: self.stripe.data_shards.into(),
            parity_shards: self.stripe.parity_shards.into(),
            slots: Bytes::copy_from_slice(&self.stripe.slots),
            chunk_length_bytes: self.chunk_length_bytes,
            shard_length_bytes: self.shard_length_bytes,
            page_checksums: self.page_checksums.clone(),
        }
    }

    /// Checks everything that does not need the payload.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let stripe = &self.stripe;
        let shards_count = usize::from(stripe.data_shards) + usize::from(stripe.parity_shards);
        if self.key.chunk.volume.volume.0 == 0 || self.key.chunk.chunk.0 == 0 {
            Err("volume and chunk must not be zero")
        } else if stripe.data_shards == 0 || shards_count > SHARDS_MAX {
            Err("a chunk has 1 data shard or more and 32 shards at most")
        } else if usize::from(self.key.shard) >= shards_count {
            Err("shard number beyond the chunk's shards")
        } else if stripe.slots.len() != shards_count {
            Err("the slot set must name every shard of the chunk")
        } else if let Err(wrong) = geometry::holds(stripe.data_shards, self.chunk_length_bytes, self.shard_length_bytes)
        {
            Err(wrong)
        } else if self.page_checksums.len() as u64 != u64::from(self.pages_count()) * 4 {
            Err("one checksum for each page is needed")
        } else {
            Ok(())
        }
    }
}

impl TryFrom<data::ShardHeader> for ShardMeta {
    type Error = &'static str;

    fn try_from(wire: data::ShardHeader) -> Result<Self, Self::Error> {
        let small = |n: u32| u8::try_from(n).map_err(|_| "shard numbers and counts fit a byte");
        let meta = Self {
            key: ShardKey {
                chunk: ChunkKey {
                    volume: VolumeKey { volume: VolumeId(wire.volume), incarnation: Incarnation(wire.incarnation) },
                    chunk: ChunkId(wire.chunk),
                },
                shard: small(wire.shard)?,
            },
            nonce: Nonce(wire.nonce),
            stripe: Stripe {
                group: GroupId(wire.group),
                epoch: Epoch(wire.epoch),
                data_shards: small(wire.data_shards)?,
                parity_shards: small(wire.parity_shards)?,
                slots: wire.slots.as_ref().into(),
            },
            chunk_length_bytes: wire.chunk_length_bytes,
            shard_length_bytes: wire.shard_length_bytes,
            page_checksums: wire.page_checksums,
        };
        meta.check()?;
        Ok(meta)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Put {
    /// Already checked by [`ShardMeta::check`].
    pub(crate) meta: ShardMeta,
    /// `meta.shard_length_bytes` bytes.
    pub(crate) payload: Bytes,
    /// Client session whose reservation it draws on.
    pub(crate) session: SessionKey,
}

/// Request to the writer of a disk. Proofs were checked before (R30).
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Put(Put),
    /// Delete every shard of these chunks, and these shards; what is not there counts as deleted.
    Delete {
        volume: VolumeKey,
        /// Chunks of which every shard here goes, whatever its nonce.
        chunks: Vec<ChunkId>,
        /// Single attempts; a shard that is here under another nonce stays.
        shards: Vec<ShardName>,
    },
    /// Refuse puts below this chunk from now on (R4).
    SetFloor {
        volume: VolumeKey,
        /// The first chunk still taken.
        floor: ChunkId,
    },
    /// Delete a volume's life as a whole.
    DropVolume {
        volume: VolumeKey,
    },
}

/// Counts of a durable request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Shards that a delete removed.
    pub(crate) deleted_count: u32,
    /// Shards that a delete named and left, because they are of another attempt.
    pub(crate) kept_count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadRange {
    pub(crate) key: ShardKey,
    /// The attempt it must be of (R1).
    pub(crate) nonce: Nonce,
    /// A multiple of a page.
    pub(crate) offset: u32,
    /// A multiple of a page, not zero.
    pub(crate) length_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadData {
    pub(crate) bytes: Bytes,
    /// Checksums of their pages, as the shard's header has them.
    pub(crate) page_checksums: Bytes,
}

/// Reason why a shard was not stored, deleted or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShardError {
    /// Not here, or here under another nonce.
    #[error("no such shard on this disk")]
    NotFound,
    /// The header or a page does not verify.
    #[error("the shard is damaged on disk")]
    Corrupt,
    /// Another content stands under this name (R1).
    #[error("another shard stands under this name")]
    Conflict,
    /// Not enough space for client writes (R29).
    #[error("no space for client writes on this disk")]
    NoSpace,
    /// The chunk id is below the volume's floor (R4).
    #[error("the chunk is below the volume's floor {0}")]
    BelowFloor(ChunkId),
    /// The disk is out of service (D6).
    #[error("the disk is out of service after an I/O error")]
    DiskFailed,
    /// The request contradicts itself.
    #[error("{0}")]
    Invalid(&'static str),
    /// The volume's life is over.
    #[error("the volume was deleted")]
    Dropped,
    /// A queue is full.
    #[error("the disk's queue is full")]
    Busy,
}

pub(crate) type Outcome = Result<Done, ShardError>;
