//! Inputs and outputs of a stepped metanode.

use crate::core::patience::Patience;
use crate::sabotage::Sabotage;
use bytes::Bytes;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, LogIndex, NodeId, RaftGroupId, VolumeId};
use holdfast_consensus::{GroupMessage, SnapshotOut, SteppedOptions, StopReason};
use holdfast_proto::control::{AllocateGroupsRequest, AllocateGroupsResponse, HeartbeatRequest, HeartbeatResponse};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, ListShardsRequest, ListShardsResponse, SetFloorRequest, SetFloorResponse,
};
use holdfast_proto::meta::{MutateRequest, MutateResponse, ReadRequest, ReadResponse};
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest, AdmittedPiece, AdmittedPieceRequest};

/// Identity of a stepped metanode, and how it keeps its log.
#[derive(Clone, Debug)]
pub struct MetanodeOptions {
    /// Cluster it belongs to; proofs are made for it.
    pub cluster: ClusterId,
    /// Its id, also in every Raft group, whatever [`Self::consensus`] says.
    pub node: NodeId,
    /// Number of this start, higher than all before.
    pub generation: u64,
    /// The cluster's secret, for proofs.
    pub secret: ClusterSecret,
    /// Milliseconds between heartbeats.
    pub heartbeat_interval_ms: u64,
    /// Settings of the log and of elections.
    pub consensus: SteppedOptions,
    /// Waits of the leader's collecting.
    pub patience: Patience,
    /// Rule that this metanode breaks.
    pub sabotage: Sabotage,
}

/// The node's clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Counts from anywhere, never goes back, may stand still while the machine sleeps.
    pub monotonic_ns: u64,
    /// As monotonic, and goes on while the machine sleeps: leases are counted by it.
    pub boottime_ns: u64,
    /// Since the Unix epoch; may be wrong, and jump.
    pub wall_ns: i64,
}

impl Now {
    pub(super) fn now_ms(self) -> u64 {
        self.monotonic_ns / 1_000_000
    }
}

/// Event that steps a metanode. Tickets are the caller's for requests of clients, else those of an [`Output`].
#[derive(Clone, Debug)]
pub enum Event {
    /// A tick of consensus, at least [`SteppedOptions::tick`] after the last one.
    Tick,
    /// Several times a second: upkeep, sweep, collection and heartbeat look whether they are due.
    Look,
    /// A client's mutation.
    Mutate {
        /// Comes back with the answer.
        ticket: u64,
        /// As the client sent it: nothing of it is checked yet.
        request: MutateRequest,
    },
    /// A client's read.
    Read {
        /// Comes back with the answer.
        ticket: u64,
        /// As the client sent it: nothing of it is checked yet.
        request: ReadRequest,
    },
    /// The deadline of a client's request has passed; it is answered no more. A mutation may happen all the same.
    GiveUp {
        /// Ticket of the request.
        ticket: u64,
    },
    /// A message of another metanode.
    Raft {
        /// The metanode that sent it.
        from: NodeId,
        /// The sender's start; what an earlier one sent is dropped.
        generation: u64,
        /// Opaque here; it names its Raft group.
        message: GroupMessage,
    },
    /// A whole snapshot of another metanode.
    Snapshot {
        /// The metanode that sent it.
        from: NodeId,
        /// The sender's start; what an earlier one sent is dropped.
        generation: u64,
        /// Message that Raft sent with it.
        message: GroupMessage,
        /// Content of its file.
        bytes: Vec<u8>,
    },
    /// Whether an [`Output::Snapshot`] arrived and was accepted.
    SnapshotReported {
        /// The metanode the snapshot was for.
        to: NodeId,
        /// Raft group of the snapshot.
        group: RaftGroupId,
        /// False also if nobody answered in time.
        ok: bool,
    },
    /// A metanode that lost its log asks to be let back in.
    Admit {
        /// Comes back with the answer.
        ticket: u64,
        /// The request.
        request: AdmitRequest,
    },
    /// It asks for a piece of the snapshot that it was promised.
    AdmittedPiece {
        /// Comes back with the answer.
        ticket: u64,
        /// The request.
        request: AdmittedPieceRequest,
    },
    /// The answer to an [`Output::Report`]; `None` if there is none. No further report comes before.
    Heartbeat(Option<HeartbeatResponse>),
    /// The volume manager refuses the node for good: it serves no more, and says nothing from here on.
    Refused,
    /// The answer to an [`Output::AskGroups`]; `None` if there is none.
    Groups {
        /// Ticket of the question.
        ticket: u64,
        /// Block groups; without them it asks again after a pause.
        groups: Option<AllocateGroupsResponse>,
    },
    /// The answer to an [`Output::Delete`]; `None` if there is none.
    Deleted {
        /// Ticket of the request.
        ticket: u64,
        /// As the datanode sent it.
        answer: Option<DeleteShardsResponse>,
    },
    /// The answer to an [`Output::SetFloor`]; `None` if there is none.
    FloorSet {
        /// Ticket of the request.
        ticket: u64,
        /// As the datanode sent it.
        answer: Option<SetFloorResponse>,
    },
    /// The answer to an [`Output::List`]; `None` if there is none.
    Listed {
        /// Ticket of the request.
        ticket: u64,
        /// As the datanode sent it.
        answer: Option<ListShardsResponse>,
    },
}

/// Work that a metanode wants done, and answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Answers a mutation.
    Mutated {
        /// Ticket of the request.
        ticket: u64,
        /// To be sent to the client as it is.
        response: MutateResponse,
    },
    /// Answers a read.
    Read {
        /// Ticket of the request.
        ticket: u64,
        /// To be sent to the client as it is.
        response: ReadResponse,
    },
    /// Messages for another metanode, under this node's id and start.
    Raft {
        /// The metanode they are for.
        to: NodeId,
        /// In the order in which they must arrive.
        messages: Vec<GroupMessage>,
    },
    /// A snapshot for another metanode, under this node's id and start. The outcome is an [`Event::SnapshotReported`].
    Snapshot(SnapshotOut),
    /// Whether an [`Event::Snapshot`] was accepted: to be reported to its sender.
    SnapshotTaken {
        /// The metanode that sent the snapshot and waits for this.
        from: NodeId,
        /// Raft group of the snapshot.
        group: RaftGroupId,
        /// False if the sender has started anew since, or the table is not served here.
        accepted: bool,
    },
    /// Answers a metanode that lost its log.
    Admitted {
        /// The request's.
        ticket: u64,
        /// The answer.
        answer: AdmitAnswer,
    },
    /// A piece of the snapshot that it was promised.
    AdmittedPiece {
        /// The request's.
        ticket: u64,
        /// What goes with the piece.
        head: AdmittedPiece,
        /// The piece.
        piece: Bytes,
    },
    /// A question to the volume manager, answered by [`Event::Groups`].
    AskGroups {
        /// Comes back with the answer.
        ticket: u64,
        /// Count of block groups wanted, and the id of the first.
        request: AllocateGroupsRequest,
    },
    /// A request to a datanode, answered by [`Event::Deleted`].
    Delete {
        /// Comes back with the answer.
        ticket: u64,
        /// The datanode to send it to.
        node: NodeId,
        /// To be sent as it is.
        request: DeleteShardsRequest,
    },
    /// A request to a datanode, answered by [`Event::FloorSet`].
    SetFloor {
        /// Comes back with the answer.
        ticket: u64,
        /// The datanode to send it to.
        node: NodeId,
        /// To be sent as it is.
        request: SetFloorRequest,
    },
    /// A request to a datanode, answered by [`Event::Listed`].
    List {
        /// Comes back with the answer.
        ticket: u64,
        /// The datanode to send it to.
        node: NodeId,
        /// To be sent as it is.
        request: ListShardsRequest,
    },
    /// A heartbeat that is due, answered by [`Event::Heartbeat`].
    Report(HeartbeatRequest),
    /// A command of the log was applied; an empty one changes nothing.
    Applied {
        /// Volume of the table.
        volume: VolumeId,
        /// Index of the command's entry.
        index: LogIndex,
        /// A `TableCommand`, encoded.
        command: Bytes,
    },
    /// The state is a snapshot of the leader now.
    Installed {
        /// Volume of the table.
        volume: VolumeId,
        /// Index of the last command in it.
        index: LogIndex,
    },
    /// A replica met a broken invariant and stands still.
    Broken {
        /// Volume of the table.
        volume: VolumeId,
        /// Reason that the status of its Raft group gives from now on, too.
        reason: StopReason,
    },
}
