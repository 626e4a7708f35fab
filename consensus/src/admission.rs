//! What a voter that lost its log is given by its group's leader (R23).

use std::fs::File;

use holdfast_common::{LogIndex, NodeId, RaftGroupId, Term};

/// What a leader gives a voter that lost its log, together with a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Whose state it is.
    pub group: RaftGroupId,
    /// The voter it is for.
    pub to: NodeId,
    /// The start of that voter which asked for it: an answer to an earlier one is not taken.
    pub generation: u64,
    /// Who gives it.
    pub leader: NodeId,
    /// The term it leads in.
    pub term: Term,
    /// Index of an entry of that term which every other voter has: the snapshot holds it.
    pub index: LogIndex,
}

/// What [`crate::Node::admit`] gives: the parts of an [`Admission`] that the leader knows, and the snapshot.
#[derive(Debug)]
pub struct Admitted {
    /// The term this node leads in.
    pub term: Term,
    /// Index of an entry of that term which every other voter has.
    pub index: LogIndex,
    /// The snapshot, from its first byte; it stays readable though the node may remove it.
    pub file: File,
}
