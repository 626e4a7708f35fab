//! Ids, offsets, units, limits, checksums, proofs, pauses and random numbers: what every part of Holdfast shares.

mod ascending;
pub mod checksum;
mod ids;
pub mod limits;
mod number;
mod offset;
mod pauses;
pub mod proof;
mod raft;
mod random;

pub use ascending::Ascending;
pub use ids::{
    ChunkId, ClusterId, DiskId, Epoch, FormatNonce, GroupId, Incarnation, InodeId, NodeId, Nonce, Owner, SessionId,
    VolumeId,
};
pub use offset::FileOffset;
pub use pauses::Pauses;
pub use raft::{LogIndex, RaftGroupId, Term};
pub use random::{Random, random_bytes};
