//! Ids, units, limits, checksums, proofs, durable small files and random bytes: what every part of Holdfast shares.

pub mod checksum;
pub mod durable;
pub mod ids;
pub mod limits;
pub mod proof;
mod random;

pub use ids::{ChunkId, ClusterId, DiskId, GroupId, Incarnation, InodeId, NodeId, SessionId, VolumeId};
pub use random::random_bytes;
