//! Place of a real node's effects: handles, the outbox, and the worker's threads.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use holdfast_common::{NodeId, RaftGroupId};
use holdfast_storage::Directory;

use super::Groups;
use super::worker::{Job, Restored};
use crate::admission::Admitted;
use crate::core::effects::{self, Apply, Freeze, Install, SnapshotOut};
use crate::group::{Group, Shared};
use crate::machine::StateMachine;
use crate::order::{Site, apply_all};
use crate::outbox::{GroupMessage, Outbox};
use crate::queue::{AdmitTicket, ProposeTicket, ReadTicket};
use crate::snapshot;
use crate::status::{AdmissionError, GroupStatus, ProposeError, ReadError};
use crate::stop::StopReason;

/// Parts of the driver that performing needs. A caller that waits no more need not be told: answers nobody takes are
/// dropped.
pub(super) struct DriverSite<'a, S> {
    pub(super) outbox: &'a dyn Outbox,
    pub(super) groups: &'a Groups<S>,
    /// Raft groups of this turn, which no handle knows before they are durable.
    pub(super) created: &'a BTreeMap<RaftGroupId, Group<S>>,
    pub(super) snapshots: &'a dyn Directory,
    pub(super) jobs: &'a mpsc::Sender<Job>,
    pub(super) restored: &'a Restored<S>,
    pub(super) admissions: &'a mut BTreeMap<u64, AdmitTicket>,
}

impl<S: StateMachine> DriverSite<'_, S> {
    fn shared(&self, group: RaftGroupId) -> Option<Arc<Shared<S>>> {
        let found = self.created.get(&group).map(|group| Arc::clone(group.shared()));
        found.or_else(|| self.groups.read().get(&group).map(|group| Arc::clone(group.shared())))
    }

    fn job(&self, job: Job) {
        // The worker outlives the driver; were it gone, the file would be cleared away at the next start.
        drop(self.jobs.send(job));
    }
}

impl<S: StateMachine> Site<ProposeTicket, ReadTicket> for DriverSite<'_, S> {
    fn send(&mut self, to: NodeId, messages: Vec<GroupMessage>) {
        self.outbox.send(to, messages);
    }

    fn send_snapshot(&mut self, out: SnapshotOut) {
        let path = self.snapshots.path(&snapshot::name(out.message.group, out.file));
        self.outbox.send_snapshot(out.to, out.message, path);
    }

    fn install(&mut self, install: Install) -> bool {
        let restored = self.restored.lock().remove(&(install.group, install.mark.file));
        let (Some(state), Some(shared)) = (restored, self.shared(install.group)) else { return false };
        *shared.state.write() = state;
        true
    }

    fn apply(&mut self, apply: Apply<ProposeTicket>) -> Result<(), StopReason> {
        let Some(shared) = self.shared(apply.group) else { return Ok(()) };
        // One guard for all of them; answers go behind it.
        let mut state = shared.state.write();
        let done = apply_all(&mut *state, apply.commands, |index, _| shared.note_applied(index));
        if let Some(reason) = &done.broken {
            // Before anybody can read what a half-done command left.
            shared.stop(reason);
        }
        drop(state);
        for (ticket, answer) in done.answers {
            drop(ticket.send(Ok(answer)));
        }
        done.unanswered.into_iter().for_each(|ticket| self.fail(ticket, ProposeError::Unknown));
        done.broken.map_or(Ok(()), Err)
    }

    fn fail(&mut self, ticket: ProposeTicket, error: ProposeError) {
        drop(ticket.send(Err(error)));
    }

    fn broken(&mut self, group: RaftGroupId, reason: StopReason) {
        tracing::error!(%group, %reason, "a group is stopped on this node; its other replicas go on");
    }

    fn publish(&mut self, group: RaftGroupId, status: GroupStatus, lease_until_ns: u64) {
        if let Some(shared) = self.shared(group) {
            shared.publish(status, lease_until_ns);
        }
    }

    fn answer_read(&mut self, ticket: ReadTicket, result: Result<(), ReadError>) {
        drop(ticket.send(result));
    }

    fn freeze(&mut self, freeze: Freeze) {
        let Some(shared) = self.shared(freeze.group) else { return };
        let state = shared.state.read().snapshot();
        self.job(Job::Write { mark: freeze.mark, header: freeze.into_header(), state });
    }

    fn admitted(&mut self, ticket: u64, result: Result<effects::Admitted, AdmissionError>) {
        let Some(waiting) = self.admissions.remove(&ticket) else { return };
        drop(waiting.send(result.and_then(|admitted| {
            // Opened here, where nobody has removed it yet.
            let path = self.snapshots.path(&snapshot::name(admitted.group, admitted.mark.file));
            let file = std::fs::File::open(path).map_err(|_| AdmissionError::Overloaded)?;
            Ok(Admitted { term: admitted.term, index: admitted.index, file })
        })));
    }

    fn remove(&mut self, group: RaftGroupId, file: u64) {
        self.job(Job::Remove { group, file });
    }
}
