//! Effects of a turn. [`crate::order`] says in which order they happen; `records` must be durable before the core is
//! told `persisted`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId, Term};

use crate::log::record::{Record, SnapshotMark};
use crate::outbox::GroupMessage;
use crate::snapshot::SnapshotHeader;
use crate::status::{AdmissionError, ProposeError, ReadError};
use crate::stop::StopReason;

/// A committed command, with whoever waits for its answer. Without data it is a leader's mark, not to be applied.
pub(crate) struct Command<P> {
    pub(crate) index: LogIndex,
    pub(crate) data: Bytes,
    pub(crate) ticket: Option<P>,
}

/// Committed commands of a Raft group, to be applied in this order.
pub(crate) struct Apply<P> {
    pub(crate) group: RaftGroupId,
    pub(crate) commands: Vec<Command<P>>,
}

/// A delivered snapshot is current: its state takes the place of the Raft group's.
pub(crate) struct Install {
    pub(crate) group: RaftGroupId,
    pub(crate) mark: SnapshotMark,
}

/// A group's state, as applied now, is to be frozen and written to the file of `mark`.
pub(crate) struct Freeze {
    pub(crate) group: RaftGroupId,
    pub(crate) mark: SnapshotMark,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
}

impl Freeze {
    /// Header of its file.
    pub(crate) fn into_header(self) -> SnapshotHeader {
        let Self { group, mark, voters, learners } = self;
        SnapshotHeader { group, index: mark.index, term: mark.term, voters, learners }
    }
}

/// A snapshot file to ship.
pub(crate) struct SnapshotOut {
    pub(crate) to: NodeId,
    pub(crate) message: GroupMessage,
    pub(crate) file: u64,
}

/// A voter that lost its log may have the snapshot of `mark`: every other voter has the entry at `index`, of this `term`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) group: RaftGroupId,
    pub(crate) to: NodeId,
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
    pub(crate) mark: SnapshotMark,
}

/// Work that a turn leaves to its shell.
pub(crate) struct Effects<P, R> {
    pub(crate) messages: BTreeMap<NodeId, Vec<GroupMessage>>,
    pub(crate) snapshots: Vec<SnapshotOut>,
    pub(crate) records: Vec<Record>,
    pub(crate) installs: Vec<Install>,
    pub(crate) applies: Vec<Apply<P>>,
    pub(crate) failed: Vec<(P, ProposeError)>,
    /// With the Raft group whose state is to be read.
    pub(crate) reads: Vec<(RaftGroupId, R, Result<(), ReadError>)>,
    pub(crate) freezes: Vec<Freeze>,
    /// Snapshot files nobody needs: (group, file number).
    pub(crate) removals: Vec<(RaftGroupId, u64)>,
    /// Raft groups that stop, and why.
    pub(crate) broken: Vec<(RaftGroupId, StopReason)>,
    /// Answers to admissions, by ticket.
    pub(crate) admitted: Vec<(u64, Result<Admitted, AdmissionError>)>,
    /// Raft groups whose status or lease may have changed.
    pub(crate) touched: BTreeSet<RaftGroupId>,
}

impl<P, R> Default for Effects<P, R> {
    fn default() -> Self {
        Self {
            messages: BTreeMap::new(),
            snapshots: Vec::new(),
            records: Vec::new(),
            installs: Vec::new(),
            applies: Vec::new(),
            failed: Vec::new(),
            reads: Vec::new(),
            freezes: Vec::new(),
            removals: Vec::new(),
            broken: Vec::new(),
            admitted: Vec::new(),
            touched: BTreeSet::new(),
        }
    }
}

impl<P, R> Effects<P, R> {
    /// Lets go of a snapshot's file, if it has one.
    pub(super) fn remove(&mut self, group: RaftGroupId, mark: Option<SnapshotMark>) {
        self.removals.extend(mark.filter(|mark| mark.file != 0).map(|mark| (group, mark.file)));
    }
}
