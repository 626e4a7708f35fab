//! The handle of one group on this node: propose, read, look.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{GroupStatus, ProposeError, ReadError, StateMachine};

/// A group's state as handles share it with the driver.
pub(crate) struct Shared<S> {
    pub(crate) state: RwLock<S>,
    pub(crate) status: watch::Sender<GroupStatus>,
}

/// A handle on a group of this node; cheap to clone.
pub struct Group<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Group<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: StateMachine> Group<S> {
    /// Proposes a command and waits for its answer: committed by a majority's stable storage and applied here.
    ///
    /// # Errors
    /// See [`ProposeError`]; only [`ProposeError::Unknown`] leaves open whether it happens.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        drop(command);
        Err(ProposeError::Stopped)
    }

    /// Waits until [`Self::state`] holds everything acknowledged before this call, by any node.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        Err(ReadError::Stopped)
    }

    /// The state machine. Hold the guard briefly and never across an await: the driver waits for it.
    #[must_use]
    pub fn state(&self) -> &RwLock<S> {
        &self.shared.state
    }

    /// What this replica knows of its group now.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        self.shared.status.borrow().clone()
    }

    /// Follows changes of role, term, leader and stop; `applied` and `commit` are as of the last such change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.shared.status.subscribe()
    }
}
