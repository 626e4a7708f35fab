//! All Raft groups of a node as one sans-IO core: a turn takes inputs, says what must be durable, and then what
//! follows. Pure; driven by `driver` and by the simulation alike.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId, Term};

use crate::core::effects::Effects;
use crate::core::{CoreOptions, GroupCore};
use crate::log::record::{GroupState, HardState, Record, SnapshotMark};
use crate::log::replay::Replayed;
use crate::sabotage::Sabotage;
use crate::status::{AdmissionError, GroupError, GroupStatus, ProposeError, ReadError};
use crate::stop::{Panicked, StopReason};

/// Most live entries of one Raft group that are written again when it pins the log; one with more is snapshot instead.
const CARRY_BYTES_MAX: u64 = 256 << 10;
/// Most Raft groups carried forward in one turn.
const CARRY_GROUPS_MAX: usize = 16;

/// One input of a node.
pub(crate) enum Input<P, R> {
    Tick,
    Propose {
        group: RaftGroupId,
        command: Bytes,
        ticket: P,
        /// Whether it is taken on a full disk; only asked for there.
        frees: bool,
    },
    Read {
        group: RaftGroupId,
        ticket: R,
    },
    Message {
        from: NodeId,
        group: RaftGroupId,
        bytes: Bytes,
    },
    /// A snapshot file arrived whole and is durable under its number.
    SnapshotDelivered {
        from: NodeId,
        group: RaftGroupId,
        bytes: Bytes,
        mark: SnapshotMark,
    },
    /// A freeze ended.
    SnapshotWritten {
        group: RaftGroupId,
        mark: SnapshotMark,
        ok: bool,
    },
    /// A voter that lost its log asks for a snapshot.
    Admit {
        group: RaftGroupId,
        to: NodeId,
        ticket: u64,
    },
    /// A snapshot's way to a follower ended.
    SnapshotReported {
        group: RaftGroupId,
        to: NodeId,
        ok: bool,
    },
}

impl<P, R> Input<P, R> {
    /// Bytes that it carries.
    pub(crate) fn payload_bytes(&self) -> usize {
        match self {
            Self::Propose { command: bytes, .. } | Self::Message { bytes, .. } => bytes.len(),
            _ => 0,
        }
    }
}

/// The Raft groups of a node.
pub(crate) struct NodeCore<P, R> {
    options: CoreOptions,
    groups: BTreeMap<RaftGroupId, GroupCore<P, R>>,
    /// Number of the next snapshot file.
    next_file: u64,
    /// Time at which this turn's inputs were taken.
    now: u64,
    /// Raft groups with something to be durable.
    recorded: BTreeSet<RaftGroupId>,
    /// The disks are nearly full: only what frees is proposed.
    is_tight: bool,
    out: Effects<P, R>,
}

impl<P, R> NodeCore<P, R> {
    /// Starts with the Raft groups as the log has them. `next_file` is above all snapshot files there are.
    pub(crate) fn new(options: CoreOptions, groups: BTreeMap<RaftGroupId, Replayed>, next_file: u64) -> Self {
        let groups: BTreeMap<RaftGroupId, GroupCore<P, R>> =
            groups.into_iter().map(|(id, replayed)| (id, GroupCore::new(id, options, replayed, true))).collect();
        let (recorded, mut out) = (BTreeSet::new(), Effects::default());
        let stopped = groups.iter().filter_map(|(id, core)| Some((*id, core.stopped()?.clone())));
        out.broken = stopped.collect();
        Self { options, groups, next_file, now: 0, recorded, is_tight: false, out }
    }

    /// Says whether the disks have room for what grows.
    pub(crate) fn set_tight(&mut self, is_tight: bool) {
        self.is_tight = is_tight;
    }

    /// Whether only what frees is proposed.
    pub(crate) fn is_tight(&self) -> bool {
        self.is_tight
    }

    /// Length of the longest snapshot that a group may have to write next, about.
    pub(crate) fn snapshot_bytes_max(&self) -> u64 {
        self.groups.values().map(GroupCore::snapshot_bytes).max().unwrap_or(0)
    }

    /// A number for a snapshot file that comes from elsewhere.
    pub(crate) fn reserve_file(&mut self) -> u64 {
        self.next_file += 1;
        self.next_file - 1
    }

    /// Says whether a group with these voters is not there.
    pub(crate) fn may_create(&self, group: RaftGroupId, voters: &[NodeId]) -> Result<bool, GroupError> {
        self.check_voters(group, &sorted(voters))
    }

    fn check_voters(&self, group: RaftGroupId, ids: &[u64]) -> Result<bool, GroupError> {
        let doubled = ids.windows(2).any(|pair| pair[0] == pair[1]);
        if doubled || ids.first() == Some(&0) || !ids.contains(&self.options.node) {
            return Err(GroupError::BadVoters);
        }
        if let Some(core) = self.groups.get(&group) {
            let mut present = core.voters().to_vec();
            present.sort_unstable();
            return if present == ids { Ok(false) } else { Err(GroupError::Exists(group)) };
        }
        Ok(true)
    }

    /// Creates a group, durably with this turn's records. Says whether it was not there.
    pub(crate) fn create(&mut self, group: RaftGroupId, voters: &[NodeId]) -> Result<bool, GroupError> {
        let ids = sorted(voters);
        if !self.check_voters(group, &ids)? {
            return Ok(false);
        }
        let (hard, snapshot) = (HardState::default(), SnapshotMark::default());
        let state = GroupState { hard, snapshot, installed: false, voters: ids, learners: Vec::new() };
        let replayed = Replayed { state, before: (LogIndex::ZERO, Term::ZERO), entries: Vec::new() };
        let mut core = GroupCore::new(group, self.options, replayed, false);
        self.out.records.push(core.creation());
        self.groups.insert(group, core);
        self.recorded.insert(group);
        Ok(true)
    }

    /// Drops a group, durably with this turn's records. Says whether it was there.
    pub(crate) fn drop_group(&mut self, group: RaftGroupId) -> bool {
        let Some(mut core) = self.groups.remove(&group) else { return false };
        core.stop(StopReason::Dropped, &mut self.out);
        self.recorded.remove(&group);
        self.out.records.push(Record::Drop(group));
        true
    }

    /// Takes a turn's inputs. `now` is read after they were: they all came before it.
    pub(crate) fn step(&mut self, now: u64, inputs: Vec<Input<P, R>>) -> Effects<P, R> {
        self.now = now;
        let mut touched = BTreeSet::new();
        let mut proposals: BTreeMap<RaftGroupId, Vec<(Bytes, P)>> = BTreeMap::new();
        let mut refused = Vec::new();
        for input in inputs {
            match input {
                Input::Propose { group, command, ticket, frees } => {
                    // Whoever does not lead says so: the leader may have room.
                    let leads = self.groups.get(&group).is_some_and(|core| core.leads() && !core.is_stopped());
                    let is_taken = frees && self.options.sabotage != Sabotage::FreeingRefused;
                    match self.is_tight && !is_taken && leads {
                        true => refused.push((ticket, ProposeError::NoSpace)),
                        false => proposals.entry(group).or_default().push((command, ticket)),
                    }
                }
                Input::Tick => {
                    for group in self.groups.keys().copied().collect::<Vec<_>>() {
                        touched.insert(group);
                        self.with(group, |core, _, _| core.tick(now));
                    }
                }
                other => touched.extend(self.take(other)),
            }
        }
        self.out.failed.append(&mut refused);
        // After the messages, so that proposals do not meet a leader that was just deposed.
        for (group, commands) in proposals {
            touched.insert(group);
            if self.groups.get(&group).is_some_and(|core| !core.is_stopped()) {
                self.with(group, |core, _, out| core.propose(commands, out));
            } else {
                self.out.failed.extend(commands.into_iter().map(|(_, ticket)| (ticket, ProposeError::Stopped)));
            }
        }
        touched.extend(self.groups.keys().filter(|group| self.recorded.contains(group)));
        self.collect(touched)
    }

    fn take(&mut self, input: Input<P, R>) -> Option<RaftGroupId> {
        let now = self.now;
        match input {
            Input::Read { group, ticket } => {
                if self.groups.get(&group).is_some_and(|core| !core.is_stopped()) {
                    self.with(group, |core, _, out| core.read(now, ticket, out));
                    return Some(group);
                }
                self.out.reads.push((group, ticket, Err(ReadError::Stopped)));
                None
            }
            Input::Message { from, group, bytes } => self.with(group, |core, _, _| core.message(from.0, &bytes)),
            Input::SnapshotDelivered { from, group, bytes, mark } => {
                let taken = self.with(group, |core, _, out| core.snapshot_delivered(from.0, &bytes, mark, out));
                if taken.is_none() {
                    self.out.removals.push((group, mark.file));
                }
                taken
            }
            Input::SnapshotWritten { group, mark, ok } => {
                let taken = self.with(group, |core, _, out| core.snapshot_written(mark, ok, out));
                if taken.is_none() {
                    self.out.removals.push((group, mark.file));
                }
                self.recorded.extend(taken);
                taken
            }
            Input::Admit { group, to, ticket } => {
                let taken = self.with(group, |core, _, out| core.admit(ticket, to.0, out));
                if taken.is_none() {
                    self.out.admitted.push((ticket, Err(AdmissionError::Stopped)));
                }
                taken
            }
            Input::SnapshotReported { group, to, ok } => {
                self.with(group, |core, _, _| core.snapshot_reported(to.0, ok))
            }
            Input::Tick | Input::Propose { .. } => None,
        }
    }

    /// Lets groups write their state again, because they hold an old segment of the log. Returns those that cannot, whose
    /// records the log has to recall from its segments. A group that was dropped in this turn needs neither: written behind
    /// its drop it would be back after a restart.
    pub(crate) fn carry_forward(&mut self, groups: &[RaftGroupId]) -> Vec<RaftGroupId> {
        let mut to_recall = Vec::new();
        for group in groups.iter().take(CARRY_GROUPS_MAX) {
            // A stopped group too: it must not hold the log for ever.
            let Some(core) = self.groups.get_mut(group) else { continue };
            let carried = core.carry_forward(CARRY_BYTES_MAX, &mut self.out);
            to_recall.extend((!carried).then_some(*group));
        }
        to_recall
    }

    /// All records handed out are durable: what may follow from it. There may be new records in it.
    pub(crate) fn persisted(&mut self) -> Effects<P, R> {
        let recorded = std::mem::take(&mut self.recorded);
        for group in &recorded {
            self.with(*group, |core, _, out| core.persisted(out));
        }
        self.collect(recorded)
    }

    fn collect(&mut self, touched: BTreeSet<RaftGroupId>) -> Effects<P, R> {
        let (now, is_tight) = (self.now, self.is_tight);
        for group in touched {
            let records = self.out.records.len();
            self.with(group, |core, next_file, out| core.collect(now, is_tight, next_file, out));
            if self.out.records.len() > records {
                self.recorded.insert(group);
            }
        }
        for (group, reason) in std::mem::take(&mut self.out.broken) {
            if let Some(core) = self.groups.get_mut(&group) {
                core.stop(reason.clone(), &mut self.out);
            }
            self.out.broken.push((group, reason));
        }
        std::mem::take(&mut self.out)
    }

    /// Takes a group out on this node (R26); the others go on.
    pub(crate) fn stop(&mut self, group: RaftGroupId, reason: StopReason) {
        if let Some(core) = self.groups.get_mut(&group).filter(|core| !core.is_stopped()) {
            core.stop(reason.clone(), &mut self.out);
            self.out.broken.push((group, reason));
        }
    }

    /// Runs on a group that is there and not stopped. raft-rs panics when an invariant is broken, by a bug or by a peer
    /// that lost what it had acknowledged; that stops the group, not the node.
    fn with(
        &mut self,
        group: RaftGroupId,
        action: impl FnOnce(&mut GroupCore<P, R>, &mut u64, &mut Effects<P, R>),
    ) -> Option<RaftGroupId> {
        let core = self.groups.get_mut(&group).filter(|core| !core.is_stopped())?;
        let (next_file, out) = (&mut self.next_file, &mut self.out);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| action(core, next_file, out))) {
            core.distrust();
            self.stop(group, Panicked::of(&*panic).into());
        }
        Some(group)
    }

    pub(crate) fn status(&self, group: RaftGroupId) -> Option<(GroupStatus, u64)> {
        self.groups.get(&group).map(|core| (core.status(), core.lease_until_ns()))
    }
}

fn sorted(voters: &[NodeId]) -> Vec<u64> {
    let mut ids: Vec<u64> = voters.iter().map(|voter| voter.0).collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests;
