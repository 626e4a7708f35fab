//! Parcel for a voter that lost its log, from the leader of its Raft group (R23).

use std::fs::File;

use holdfast_common::{LogIndex, NodeId, RaftGroupId, Term};

/// State that a leader gives a voter that lost its log, together with a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Raft group of the state.
    pub group: RaftGroupId,
    /// Voter that it is for.
    pub to: NodeId,
    /// Start of that voter which asked for it: an answer to an earlier one is not taken.
    pub generation: u64,
    /// Replica that gives it.
    pub leader: NodeId,
    /// Term that the leader leads in.
    pub term: Term,
    /// Index of an entry of that term which every other voter has: the snapshot holds it.
    pub index: LogIndex,
}

/// Answer of [`crate::Node::admit`]: the parts of an [`Admission`] that the leader knows, and the snapshot.
#[derive(Debug)]
pub struct Admitted {
    /// Term that this node leads in.
    pub term: Term,
    /// Index of an entry of that term which every other voter has.
    pub index: LogIndex,
    /// The snapshot, from its first byte; it stays readable though the node may remove it.
    pub file: File,
}
