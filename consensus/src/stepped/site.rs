//! Place of a stepped node's effects: in its next [`Turn`], and in jobs that wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use holdfast_common::{NodeId, RaftGroupId};
use holdfast_storage::Directory;

use super::{AdmissionOut, SnapshotOut, Turn};
use crate::admission::Admission;
use crate::core::effects::{self, Admitted, Apply, Freeze, Install};
use crate::log::record::SnapshotMark;
use crate::machine::{Snapshot, StateMachine};
use crate::order::{Site, apply_all};
use crate::outbox::GroupMessage;
use crate::reserve::Reserve;
use crate::sabotage::Sabotage;
use crate::snapshot::{self, SnapshotError, SnapshotHeader};
use crate::status::{AdmissionError, GroupStatus, ProposeError, ReadError};
use crate::stop::StopReason;
use crate::turn::Input;

/// A Raft group as its handles would see it.
pub(super) struct Held<S> {
    pub(super) state: S,
    pub(super) status: GroupStatus,
    pub(super) lease_until_ns: u64,
    /// Its creation is durable: before that nobody knows it.
    pub(super) is_durable: bool,
}

impl<S> Held<S> {
    pub(super) fn new(state: S, is_durable: bool) -> Self {
        Self { state, status: GroupStatus::default(), lease_until_ns: 0, is_durable }
    }

    fn stop(&mut self, reason: &StopReason) {
        self.status = self.status.stopped_by(reason);
        self.lease_until_ns = 0;
    }
}

/// Work that a node's worker would do.
pub(super) enum Job {
    Write { header: SnapshotHeader, mark: SnapshotMark, state: Box<dyn Snapshot> },
    Remove { group: RaftGroupId, file: u64 },
    RemoveGroup { group: RaftGroupId },
}

pub(super) struct SteppedSite<S> {
    snapshots: Arc<dyn Directory>,
    reserve: Arc<Reserve>,
    pub(super) groups: BTreeMap<RaftGroupId, Held<S>>,
    pub(super) inbox: VecDeque<Input<u64, u64>>,
    pub(super) jobs: VecDeque<Job>,
    /// Outcome of the next turn.
    pub(super) out: Turn,
    /// States of delivered snapshots, by Raft group and file, until the log names them or they are removed.
    restored: BTreeMap<(RaftGroupId, u64), S>,
    node: NodeId,
    /// Start of the voter that asked, by ticket.
    pub(super) admissions: BTreeMap<u64, u64>,
    sabotage: Sabotage,
}

impl<S: StateMachine> SteppedSite<S> {
    pub(super) fn new(
        node: NodeId,
        snapshots: Arc<dyn Directory>,
        reserve: Arc<Reserve>,
        groups: BTreeMap<RaftGroupId, Held<S>>,
        sabotage: Sabotage,
    ) -> Self {
        Self {
            snapshots,
            reserve,
            groups,
            inbox: VecDeque::new(),
            jobs: VecDeque::new(),
            out: Turn::default(),
            restored: BTreeMap::new(),
            node,
            admissions: BTreeMap::new(),
            sabotage,
        }
    }

    pub(super) fn known(&self, group: RaftGroupId) -> Option<&Held<S>> {
        self.groups.get(&group).filter(|held| held.is_durable)
    }

    pub(super) fn lease_until_ns(&self, group: RaftGroupId) -> u64 {
        self.known(group).map_or(0, |held| held.lease_until_ns)
    }

    pub(super) fn stop_all(&mut self, reason: &StopReason) {
        self.groups.values_mut().for_each(|held| held.stop(reason));
    }

    pub(super) fn receive(
        &mut self,
        group: RaftGroupId,
        file: u64,
        bytes: &[u8],
        machine: S,
    ) -> Result<SnapshotMark, SnapshotError> {
        let name = snapshot::name(group, file);
        let write = || self.snapshots.create_empty(&name)?.write_at(0, bytes);
        self.reserve.write(write, || snapshot::remove(&*self.snapshots, group, file))?;
        let (mark, machine) = snapshot::receive(&*self.snapshots, group, file, machine, self.sabotage)?;
        self.restored.insert((group, file), machine);
        Ok(mark)
    }

    pub(super) fn do_job(&mut self) -> bool {
        let Some(job) = self.jobs.pop_front() else { return false };
        match job {
            Job::Write { header, mark, state } => {
                let (mark, ok) =
                    snapshot::write_frozen(&*self.snapshots, &self.reserve, &header, mark, &*state, self.sabotage);
                self.inbox.push_back(Input::SnapshotWritten { group: header.group, mark, ok });
            }
            Job::Remove { group, file } => self.remove_file(group, file),
            Job::RemoveGroup { group } => {
                let files = snapshot::files_of(&*self.snapshots, group);
                files.into_iter().for_each(|file| self.remove_file(group, file));
            }
        }
        true
    }

    pub(super) fn remove_file(&mut self, group: RaftGroupId, file: u64) {
        self.restored.remove(&(group, file));
        snapshot::remove(&*self.snapshots, group, file);
    }
}

impl<S: StateMachine> Site<u64, u64> for SteppedSite<S> {
    fn send(&mut self, to: NodeId, messages: Vec<GroupMessage>) {
        self.out.messages.push((to, messages));
    }

    fn send_snapshot(&mut self, out: effects::SnapshotOut) {
        let (group, to) = (out.message.group, out.to);
        match self.snapshots.read(&snapshot::name(group, out.file)) {
            Ok(bytes) => self.out.snapshots.push(SnapshotOut { to, message: out.message, bytes }),
            // It was removed for a newer one, or the disk fails.
            Err(_) => self.inbox.push_back(Input::SnapshotReported { group, to, ok: false }),
        }
    }

    fn install(&mut self, install: Install) -> bool {
        let restored = self.restored.remove(&(install.group, install.mark.file));
        let (Some(state), Some(held)) = (restored, self.groups.get_mut(&install.group)) else { return false };
        held.state = state;
        self.out.installed.push((install.group, install.mark.index));
        true
    }

    fn apply(&mut self, apply: Apply<u64>) -> Result<(), StopReason> {
        let group = apply.group;
        let Some(held) = self.groups.get_mut(&group) else { return Ok(()) };
        let (status, out) = (&mut held.status, &mut self.out);
        let done = apply_all(&mut held.state, apply.commands, |index, command| {
            status.applied = index;
            out.applied.push((group, index, command));
        });
        out.proposals.extend(done.answers.into_iter().map(|(ticket, answer)| (ticket, Ok(answer))));
        out.proposals.extend(done.unanswered.into_iter().map(|ticket| (ticket, Err(ProposeError::Unknown))));
        match done.broken {
            Some(reason) => {
                held.stop(&reason);
                Err(reason)
            }
            None => Ok(()),
        }
    }

    fn fail(&mut self, ticket: u64, error: ProposeError) {
        self.out.proposals.push((ticket, Err(error)));
    }

    fn broken(&mut self, group: RaftGroupId, reason: StopReason) {
        self.out.broken.push((group, reason));
    }

    fn publish(&mut self, group: RaftGroupId, status: GroupStatus, lease_until_ns: u64) {
        if let Some(held) = self.groups.get_mut(&group) {
            (held.status, held.lease_until_ns) = (status, lease_until_ns);
        }
    }

    fn answer_read(&mut self, ticket: u64, result: Result<(), ReadError>) {
        self.out.reads.push((ticket, result));
    }

    fn freeze(&mut self, freeze: Freeze) {
        if let Some(held) = self.groups.get(&freeze.group) {
            let state = held.state.snapshot();
            self.jobs.push_back(Job::Write { mark: freeze.mark, header: freeze.into_header(), state });
        }
    }

    fn admitted(&mut self, ticket: u64, result: Result<Admitted, AdmissionError>) {
        let Some(generation) = self.admissions.remove(&ticket) else { return };
        let out = result.and_then(|Admitted { group, to, term, index, mark }| {
            let bytes =
                self.snapshots.read(&snapshot::name(group, mark.file)).map_err(|_| AdmissionError::Overloaded)?;
            let admission = Admission { group, to, generation, leader: self.node, term, index };
            Ok(AdmissionOut { admission, bytes })
        });
        self.out.admitted.push((ticket, out));
    }

    fn remove(&mut self, group: RaftGroupId, file: u64) {
        self.jobs.push_back(Job::Remove { group, file });
    }
}
