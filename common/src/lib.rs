//! Ids, offsets, units, limits, checksums, proofs, pauses and random numbers: what every part of Holdfast shares.

mod ascending;
pub mod checksum;
pub mod ids;
pub mod limits;
mod offset;
mod pauses;
pub mod proof;
mod random;

pub use ascending::Ascending;
pub use ids::{ChunkId, ClusterId, DiskId, GroupId, Incarnation, InodeId, NodeId, Owner, SessionId, VolumeId};
pub use offset::FileOffset;
pub use pauses::Pauses;
pub use random::{Random, random_bytes};
