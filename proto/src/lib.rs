//! Wire messages and persisted records of Holdfast, generated from `schema/`, and the numbers that name methods.
//!
//! Three rooms: [`meta`] and [`data`] travel on the hot paths in transport frames (D7), [`control`] is the volume
//! manager's gRPC, [`record`] is what a table's Raft entries hold, [`cluster`]
//! what the volume manager's do. Fields are only ever added.

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod meta {
    tonic::include_proto!("holdfast.meta");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod data {
    tonic::include_proto!("holdfast.data");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod control {
    tonic::include_proto!("holdfast.control");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod record {
    tonic::include_proto!("holdfast.record");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod cluster {
    tonic::include_proto!("holdfast.cluster");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod metanode {
    tonic::include_proto!("holdfast.metanode");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod node {
    tonic::include_proto!("holdfast.node");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod raft {
    tonic::include_proto!("holdfast.raft");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
pub mod snapshot {
    tonic::include_proto!("holdfast.snapshot");
}

/// Method numbers of the framed transport. A number is never given to another method.
pub mod method {
    /// [`crate::meta::MutateRequest`] to [`crate::meta::MutateResponse`].
    pub const META_MUTATE: u16 = 0x0100;
    /// [`crate::meta::ReadRequest`] to [`crate::meta::ReadResponse`].
    pub const META_READ: u16 = 0x0101;
    /// One-way: a batch of Raft messages between metanodes.
    pub const RAFT_MESSAGES: u16 = 0x0110;
    /// A piece of a Raft snapshot between metanodes.
    pub const RAFT_SNAPSHOT: u16 = 0x0111;
    /// [`crate::raft::AdmitRequest`] to [`crate::raft::AdmitAnswer`].
    pub const RAFT_ADMIT: u16 = 0x0112;
    /// [`crate::raft::AdmittedPieceRequest`] to [`crate::raft::AdmittedPiece`]; the answer's body is the piece.
    pub const RAFT_ADMITTED_PIECE: u16 = 0x0113;
    /// [`crate::data::PutShardRequest`] to [`crate::data::PutShardResponse`]; the body is the shard.
    pub const DATA_PUT: u16 = 0x0200;
    /// [`crate::data::ReadShardsRequest`] to [`crate::data::ReadShardsResponse`]; the answer's body is the payloads.
    pub const DATA_READ: u16 = 0x0201;
    /// [`crate::data::DeleteShardsRequest`] to [`crate::data::DeleteShardsResponse`].
    pub const DATA_DELETE: u16 = 0x0202;
    /// [`crate::data::SetFloorRequest`] to [`crate::data::SetFloorResponse`].
    pub const DATA_SET_FLOOR: u16 = 0x0203;
    /// [`crate::data::ListShardsRequest`] to [`crate::data::ListShardsResponse`].
    pub const DATA_LIST: u16 = 0x0204;
    /// [`crate::data::DropVolumeRequest`] to [`crate::data::DropVolumeResponse`].
    pub const DATA_DROP_VOLUME: u16 = 0x0205;
    /// [`crate::data::ReserveSpaceRequest`] to [`crate::data::ReserveSpaceResponse`].
    pub const DATA_RESERVE: u16 = 0x0206;
    /// [`crate::data::ProbeRequest`] to [`crate::data::ProbeResponse`].
    pub const DATA_PROBE: u16 = 0x0207;
}
