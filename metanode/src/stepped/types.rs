//! What goes into a stepped metanode and what comes out.

use super::*;
use holdfast_consensus::SnapshotOut;
use holdfast_proto::control::{AllocateGroupsRequest, AllocateGroupsResponse, HeartbeatRequest};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, ListShardsRequest, ListShardsResponse, SetFloorRequest, SetFloorResponse,
};
use holdfast_proto::meta::ReadResponse;
use holdfast_proto::raft::{AdmitAnswer, AdmittedPiece, AdmittedPieceRequest};

/// Who a stepped metanode is, and how it keeps its log.
#[derive(Clone, Debug)]
pub struct MetanodeOptions {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id; also in every group, whatever [`Self::consensus`] says.
    pub node: NodeId,
    /// The start of the node that this is, higher than all before.
    pub generation: u64,
    /// The cluster's secret, for proofs.
    pub secret: ClusterSecret,
    /// Milliseconds between heartbeats.
    pub heartbeat_interval_ms: u64,
    /// Settings of the log and of elections.
    pub consensus: SteppedOptions,
    /// How long the leader's collecting waits.
    pub patience: Patience,
    /// The rule that this metanode breaks.
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

/// What happens to a metanode. Tickets are the caller's for requests of clients, else those of an [`Output`].
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
        /// The request.
        request: MutateRequest,
    },
    /// A client's read.
    Read {
        /// Comes back with the answer.
        ticket: u64,
        /// The request.
        request: ReadRequest,
    },
    /// The deadline of a client's request has passed; it is answered no more. A mutation may happen all the same.
    GiveUp {
        /// The request's.
        ticket: u64,
    },
    /// A message of another metanode.
    Raft {
        /// The sender.
        from: NodeId,
        /// Its start.
        generation: u64,
        /// The message.
        message: GroupMessage,
    },
    /// A whole snapshot of another metanode.
    Snapshot {
        /// The sender.
        from: NodeId,
        /// Its start.
        generation: u64,
        /// What goes with it.
        message: GroupMessage,
        /// The file's content.
        bytes: Vec<u8>,
    },
    /// Whether an [`Output::Snapshot`] arrived and was accepted.
    SnapshotReported {
        /// The receiver.
        to: NodeId,
        /// The group.
        group: u64,
        /// It was.
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
        /// Of the question.
        ticket: u64,
        /// The answer.
        groups: Option<AllocateGroupsResponse>,
    },
    /// The answer to an [`Output::Delete`]; `None` if there is none.
    Deleted {
        /// Of the request.
        ticket: u64,
        /// The answer.
        answer: Option<DeleteShardsResponse>,
    },
    /// The answer to an [`Output::SetFloor`]; `None` if there is none.
    FloorSet {
        /// Of the request.
        ticket: u64,
        /// The answer.
        answer: Option<SetFloorResponse>,
    },
    /// The answer to an [`Output::List`]; `None` if there is none.
    Listed {
        /// Of the request.
        ticket: u64,
        /// The answer.
        answer: Option<ListShardsResponse>,
    },
}

/// What a metanode wants done, or says.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Answers a mutation.
    Mutated {
        /// The request's.
        ticket: u64,
        /// The answer.
        response: MutateResponse,
    },
    /// Answers a read.
    Read {
        /// The request's.
        ticket: u64,
        /// The answer.
        response: ReadResponse,
    },
    /// Messages for another metanode, under this node's id and start.
    Raft {
        /// The receiver.
        to: NodeId,
        /// In their order.
        messages: Vec<GroupMessage>,
    },
    /// A snapshot for another metanode, under this node's id and start. The outcome is an [`Event::SnapshotReported`].
    Snapshot(SnapshotOut),
    /// Whether an [`Event::Snapshot`] was accepted: to be reported to its sender.
    SnapshotTaken {
        /// The sender.
        from: NodeId,
        /// The group.
        group: u64,
        /// It was.
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
        /// The question.
        request: AllocateGroupsRequest,
    },
    /// A request to a datanode, answered by [`Event::Deleted`].
    Delete {
        /// Comes back with the answer.
        ticket: u64,
        /// The datanode.
        node: NodeId,
        /// The request.
        request: DeleteShardsRequest,
    },
    /// A request to a datanode, answered by [`Event::FloorSet`].
    SetFloor {
        /// Comes back with the answer.
        ticket: u64,
        /// The datanode.
        node: NodeId,
        /// The request.
        request: SetFloorRequest,
    },
    /// A request to a datanode, answered by [`Event::Listed`].
    List {
        /// Comes back with the answer.
        ticket: u64,
        /// The datanode.
        node: NodeId,
        /// The request.
        request: ListShardsRequest,
    },
    /// A heartbeat that is due, answered by [`Event::Heartbeat`].
    Report(HeartbeatRequest),
    /// A command of the log was applied; an empty one changes nothing.
    Applied {
        /// The table.
        volume: VolumeId,
        /// The command's.
        index: u64,
        /// A `TableCommand`, encoded.
        command: Bytes,
    },
    /// The state is a snapshot of the leader now.
    Installed {
        /// The table.
        volume: VolumeId,
        /// Of the last command in it.
        index: u64,
    },
    /// A replica met a broken invariant and stands still.
    Broken {
        /// The table.
        volume: VolumeId,
        /// Why.
        reason: String,
    },
}
