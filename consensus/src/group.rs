//! The handle of one Raft group on this node: propose, read, look.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_common::{LogIndex, RaftGroupId};
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::machine::StateMachine;
use crate::queue::{Item, Queue};
use crate::status::{GroupStatus, ProposeError, ReadError};
use crate::stop::StopReason;

/// State of a Raft group that its handles share with the driver.
pub(crate) struct Shared<S> {
    pub(crate) state: RwLock<S>,
    applied: AtomicU64,
    commit: AtomicU64,
    /// Until when reads go ahead without asking the driver (CLOCK_BOOTTIME). Everything committed before the lease was
    /// granted is in the state by then.
    lease_until_ns: AtomicU64,
    status: watch::Sender<GroupStatus>,
}

impl<S> Shared<S> {
    /// Publishes what the driver knows; those who watch are only woken by what they can see changing.
    pub(crate) fn publish(&self, status: GroupStatus, lease_until_ns: u64) {
        self.note_applied(status.applied);
        self.commit.store(status.commit.0, Ordering::Release);
        self.lease_until_ns.store(lease_until_ns, Ordering::Release);
        self.status.send_if_modified(|old| {
            let same = (old.role, old.term, old.leader, &old.stopped)
                == (status.role, status.term, status.leader, &status.stopped);
            if !same {
                *old = status;
            }
            !same
        });
    }

    /// The state holds the command at this index, and all before it.
    pub(crate) fn note_applied(&self, index: LogIndex) {
        self.applied.store(index.0, Ordering::Release);
    }

    /// Publishes that this Raft group stopped.
    pub(crate) fn stop(&self, reason: &StopReason) {
        let status = self.status().stopped_by(reason);
        self.publish(status, 0);
    }

    fn status(&self) -> GroupStatus {
        let applied = LogIndex(self.applied.load(Ordering::Acquire));
        let commit = LogIndex(self.commit.load(Ordering::Acquire));
        GroupStatus { applied, commit: commit.max(applied), ..self.status.borrow().clone() }
    }
}

/// A handle on a group of this node; cheap to clone.
pub struct Group<S> {
    id: RaftGroupId,
    shared: Arc<Shared<S>>,
    queue: Arc<Queue>,
    command_bytes_max: usize,
}

impl<S> Clone for Group<S> {
    fn clone(&self) -> Self {
        let (shared, queue) = (Arc::clone(&self.shared), Arc::clone(&self.queue));
        Self { id: self.id, shared, queue, command_bytes_max: self.command_bytes_max }
    }
}

impl<S: StateMachine> Group<S> {
    pub(crate) fn new(id: RaftGroupId, state: S, queue: Arc<Queue>, command_bytes_max: usize) -> Self {
        let shared = Shared {
            state: RwLock::new(state),
            applied: AtomicU64::new(0),
            commit: AtomicU64::new(0),
            lease_until_ns: AtomicU64::new(0),
            status: watch::Sender::new(GroupStatus::default()),
        };
        Self { id, shared: Arc::new(shared), queue, command_bytes_max }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<S>> {
        &self.shared
    }

    /// Id of the Raft group.
    #[must_use]
    pub fn id(&self) -> RaftGroupId {
        self.id
    }

    /// Proposes a command and waits for its answer: committed by a majority's stable storage and applied here. An empty
    /// command is committed like any other, but never handed to the state machine. Cancelling the future does not
    /// cancel the command. An unreachable majority is reported within two election timeouts.
    ///
    /// # Errors
    /// See [`ProposeError`]; only [`ProposeError::Unknown`] leaves open whether it happens.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        if command.len() > self.command_bytes_max {
            return Err(ProposeError::TooLarge);
        }
        let (ticket, answer) = oneshot::channel();
        self.queue.push(Item::Propose { group: self.id, command, ticket })?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Waits until [`Self::state`] holds everything acknowledged before this call, by any node. Costs nothing under the
    /// leader's lease, else one round to a majority.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        if clock::now_ns() < self.shared.lease_until_ns.load(Ordering::Acquire) {
            return Ok(());
        }
        let (ticket, answer) = oneshot::channel();
        self.queue.push(Item::Read { group: self.id, ticket })?;
        answer.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// The state machine. A guard may be held briefly, never across an await (the driver of all Raft groups waits for
    /// it), and never while proposing or delivering: these may run a turn of the driver on the calling thread, which
    /// deadlocks on the guard.
    #[must_use]
    pub fn state(&self) -> &RwLock<S> {
        &self.shared.state
    }

    /// This replica's present view of its Raft group.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        self.shared.status()
    }

    /// Follows changes of role, term, leader and stop; `applied` and `commit` are as of the last such change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.shared.status.subscribe()
    }
}
