//! Packets: calls with their answers, and Raft's one-way messages.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use holdfast_client::CallFailed;
use holdfast_common::NodeId;
use holdfast_consensus::GroupMessage;
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, Cluster, CreateVolumeRequest, HeartbeatRequest, HeartbeatResponse,
    RegisterRequest, RegisterResponse, Volume,
};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, DropVolumeRequest, ListShardsRequest, ListShardsResponse,
    PutShardRequest, PutShardResponse, ReadShardsRequest, ReadShardsResponse, ReserveSpaceRequest,
    ReserveSpaceResponse, SetFloorRequest, SetFloorResponse,
};
use holdfast_proto::meta::{MutateRequest, MutateResponse, ReadRequest, ReadResponse};
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest, AdmittedPiece, AdmittedPieceRequest};

/// Every node listens on this port.
const PORT: u16 = 7000;

/// The address of a machine.
pub(crate) fn address_of(node: NodeId) -> SocketAddr {
    let [.., high, low] = node.0.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), PORT)
}

/// The machine of an address.
pub(crate) fn node_at(address: SocketAddr) -> NodeId {
    match address.ip() {
        IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            NodeId(u64::from(u16::from_be_bytes([high, low])))
        }
        IpAddr::V6(_) => NodeId(0),
    }
}

/// A question of one process to another.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Mutate(MutateRequest),
    Read(ReadRequest),
    Put(PutShardRequest, Bytes),
    Fetch(ReadShardsRequest),
    Reserve(ReserveSpaceRequest),
    Delete(DeleteShardsRequest),
    SetFloor(SetFloorRequest),
    List(ListShardsRequest),
    DropVolume(DropVolumeRequest),
    Register(RegisterRequest),
    Heartbeat(HeartbeatRequest),
    AllocateGroups(AllocateGroupsRequest),
    CreateVolume(CreateVolumeRequest),
    ShowVolume(String),
    ListVolumes,
    ShowCluster,
    DeleteVolume(String),
    /// Of a metanode that lost its log.
    Admit(AdmitRequest),
    AdmittedPiece(AdmittedPieceRequest),
    /// A snapshot of a start of a metanode, whole.
    Snapshot {
        generation: u64,
        message: GroupMessage,
        bytes: Bytes,
    },
}

/// Answer to a [`Request`].
#[derive(Clone, Debug)]
pub(crate) enum Response {
    Mutated(MutateResponse),
    Read(ReadResponse),
    Put(PutShardResponse),
    Fetched(ReadShardsResponse, Bytes),
    Reserved(ReserveSpaceResponse),
    Deleted(DeleteShardsResponse),
    FloorSet(SetFloorResponse),
    Listed(ListShardsResponse),
    /// Whether it was, only the datanode's own checks ask.
    Dropped,
    Registered(RegisterResponse),
    Heartbeat(HeartbeatResponse),
    Groups(AllocateGroupsResponse),
    Volume(Volume),
    VolumeDeleted,
    Volumes(Vec<Volume>),
    Cluster(Cluster),
    /// The volume manager has understood and will not change its mind, and why.
    Denied(String),
    Admitted(AdmitAnswer),
    AdmittedPiece(AdmittedPiece, Bytes),
    /// Whether it was accepted.
    SnapshotTaken(bool),
}

/// An answer, or why there is none.
pub(crate) type Answer = Result<Response, CallFailed>;

macro_rules! picks {
    ($($name:ident: $variant:ident -> $kind:ty;)*) => {
        impl Response {
            $(pub(crate) fn $name(self) -> Option<$kind> {
                match self {
                    Self::$variant(response) => Some(response),
                    _ => None,
                }
            })*
        }
    };
}

picks! {
    mutated: Mutated -> MutateResponse;
    read: Read -> ReadResponse;
    put: Put -> PutShardResponse;
    reserved: Reserved -> ReserveSpaceResponse;
    deleted: Deleted -> DeleteShardsResponse;
    floor_set: FloorSet -> SetFloorResponse;
    listed: Listed -> ListShardsResponse;
    registered: Registered -> RegisterResponse;
    heartbeat: Heartbeat -> HeartbeatResponse;
    groups: Groups -> AllocateGroupsResponse;
    volume: Volume -> Volume;
    volumes: Volumes -> Vec<Volume>;
    cluster: Cluster -> Cluster;
    admitted: Admitted -> AdmitAnswer;
}

impl Response {
    pub(crate) fn admitted_piece(self) -> Option<(AdmittedPiece, Bytes)> {
        match self {
            Self::AdmittedPiece(head, piece) => Some((head, piece)),
            _ => None,
        }
    }

    pub(crate) fn fetched(self) -> Option<(ReadShardsResponse, Bytes)> {
        match self {
            Self::Fetched(response, body) => Some((response, body)),
            _ => None,
        }
    }
}

/// One thing on its way.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    /// A question, under the number that its answer will have.
    Call(u64, Box<Request>),
    Answer(u64, Box<Answer>),
    /// Messages of a start of a metanode.
    Raft(u64, Vec<GroupMessage>),
}

impl Packet {
    /// About how large it is, for the trace.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Call(call, _) => *call << 8 | 1,
            Self::Answer(call, answer) => *call << 8 | 2 | u64::from(answer.is_ok()) << 2,
            Self::Raft(_, messages) => messages.iter().map(|message| message.bytes.len() as u64).sum::<u64>() << 8 | 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_address_of_its_own() {
        for node in [1, 2, 255, 256, 1001].map(NodeId) {
            assert_eq!(node_at(address_of(node)), node);
        }
    }
}
