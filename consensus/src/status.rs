//! A Raft group's report of itself, and its reasons to refuse.

use std::io;
use std::path::PathBuf;

use holdfast_common::{LogIndex, NodeId, RaftGroupId, Term};

use crate::machine::Broken;
use crate::stop::StopReason;

/// Part that a replica plays in its Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks for votes.
    Candidate,
    /// Orders commands and answers.
    Leader,
    /// Takes part no more on this node: dropped, broken, or its log failed.
    Stopped,
}

/// A replica's view of its Raft group.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GroupStatus {
    /// Part that this replica plays.
    pub role: Role,
    /// Term that it is in.
    pub term: Term,
    /// Leader of that term, if known.
    pub leader: Option<NodeId>,
    /// Index of the last command in the state.
    pub applied: LogIndex,
    /// Index of the last entry known to be committed.
    pub commit: LogIndex,
    /// Reason why it is [`Role::Stopped`].
    pub stopped: Option<StopReason>,
}

impl GroupStatus {
    /// The view of a Raft group that stopped. A reason that is there already stays.
    pub(crate) fn stopped_by(&self, reason: &StopReason) -> Self {
        let stopped = self.stopped.clone().or_else(|| Some(reason.clone()));
        Self { role: Role::Stopped, leader: None, stopped, ..self.clone() }
    }
}

/// Reason why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not executed: another replica leads, or none does.
    #[error("not the leader")]
    NotLeader {
        /// Leader, if known.
        leader: Option<NodeId>,
    },
    /// It may have happened or may still happen: retry under the same sequence number.
    #[error("the outcome is unknown")]
    Unknown,
    /// Certainly not executed: too much is waiting.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Certainly not executed: the disk of the leader's log is nearly full, and the command does not free anything.
    #[error("the disk of the log is full")]
    NoSpace,
    /// Certainly not executed, and never will be: longer than [`crate::COMMAND_BYTES_MAX`].
    #[error("the command is too large")]
    TooLarge,
    /// Certainly not executed: this replica takes part no more.
    #[error("the group is stopped on this node")]
    Stopped,
}

/// Reason why a read may not go ahead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another replica leads, or none does.
    #[error("not the leader")]
    NotLeader {
        /// Leader, if known.
        leader: Option<NodeId>,
    },
    /// Too much is waiting.
    #[error("too many reads are waiting")]
    Overloaded,
    /// This replica takes part no more.
    #[error("the group is stopped on this node")]
    Stopped,
}

/// Reason why a Raft group was not created or dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The voters are none, have a double or a zero, or do not name this node.
    #[error("the voters of a group must be distinct, non-zero and include this node")]
    BadVoters,
    /// The group is there, with other voters.
    #[error("group {0} exists with other voters")]
    Exists(RaftGroupId),
    /// The node was shut down or its log failed.
    #[error("the node is stopped")]
    Stopped,
}

/// Reason why a voter that lost its log was not given a snapshot. It may ask again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Another replica leads, or none does.
    #[error("not the leader")]
    NotLeader {
        /// Leader, if known.
        leader: Option<NodeId>,
    },
    /// It is no other voter of the Raft group.
    #[error("it is no other voter of the group")]
    NotAVoter,
    /// Too much is waiting.
    #[error("too much is waiting")]
    Overloaded,
    /// Not every other voter acknowledged an entry in time: all of them must run; or the snapshot took too long.
    #[error("other replicas do not answer, or the snapshot takes long")]
    Late {
        /// The voters that did not.
        missing: Vec<NodeId>,
    },
    /// This replica takes part no more.
    #[error("the group is stopped on this node")]
    Stopped,
}

/// Reason why a node did not open.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum OpenError {
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Directory that was worked in.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// There is no log where there must be one: this replica must not vote and has to be rebuilt (R23).
    #[error("{}: there is no log; this replica must be rebuilt from the others", path.display())]
    Missing {
        /// Directory that was looked in.
        path: PathBuf,
    },
    /// Another log than the one expected: this replica must not vote and has to be rebuilt (R23).
    #[error("{}: this is another log than this node's; this replica must be rebuilt from the others", path.display())]
    Foreign {
        /// Directory that was looked in.
        path: PathBuf,
    },
    /// A log that holds something is no new one.
    #[error("{}: there is a log in use; look whose it is, and move it away before a new one is made", path.display())]
    InUse {
        /// Directory that was looked in.
        path: PathBuf,
    },
    /// The log or a snapshot is damaged where it was durable: this replica must not vote and has to be rebuilt (R24).
    #[error("{}: {what}; this replica must be rebuilt from the others", path.display())]
    Damaged {
        /// Directory that was worked in.
        path: PathBuf,
        /// Damaged file, and how.
        what: String,
    },
    /// Written by a newer version.
    #[error("{}: format version {found} is newer than this program knows ({known})", path.display())]
    NewerVersion {
        /// Directory that was worked in.
        path: PathBuf,
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// A state machine refused its snapshot.
    #[error("group {group}: {reason}")]
    Restore { group: RaftGroupId, reason: Broken },
}

impl OpenError {
    /// Whether what this replica promised is lost: it must not take part again before it was recovered from the others.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::Foreign { .. } | Self::Damaged { .. } => true,
            Self::Io { .. } | Self::InUse { .. } | Self::NewerVersion { .. } | Self::Restore { .. } => false,
        }
    }
}
