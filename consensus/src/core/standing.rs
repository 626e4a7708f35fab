//! Standing of a Raft group, in its own words: part, term, leader, and how far it is. Pure.

use holdfast_common::{LogIndex, NodeId, Term};
use raft::StateRole;

use super::GroupCore;
use crate::status::{GroupStatus, Role};
use crate::stop::StopReason;

impl<P, R> GroupCore<P, R> {
    /// Reason of its stop, if it is stopped.
    pub(crate) fn stopped(&self) -> Option<&StopReason> {
        self.stopped.as_ref()
    }

    /// Whether it believes to lead.
    pub(crate) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(super) fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    pub(super) fn last_index(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.last_index())
    }

    pub(super) fn commit(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.committed)
    }

    pub(super) fn alone(&self) -> bool {
        self.raw.raft.prs().is_singleton()
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID).map(NodeId)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    pub(crate) fn voters(&self) -> &[u64] {
        &self.raw.store().conf().voters
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let role = match self.raw.raft.state {
            _ if self.is_stopped() => Role::Stopped,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        GroupStatus {
            role,
            term: self.term(),
            leader: self.leader().filter(|_| !self.is_stopped()),
            applied: self.applied,
            commit: self.commit(),
            stopped: self.stopped.clone(),
        }
    }
}
