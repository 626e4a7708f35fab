//! Ids, units, limits, checksums, proofs and durable small files: what every part of Holdfast shares.

pub mod checksum;
pub mod durable;
pub mod ids;
pub mod limits;
pub mod proof;

pub use ids::{ChunkId, ClusterId, DiskId, GroupId, Incarnation, InodeId, NodeId, SessionId, VolumeId};
