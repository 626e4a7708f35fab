//! A node: the log, the snapshots and the driver of all groups of a process.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_common::NodeId;

use crate::{Group, GroupError, GroupMessage, NodeConfig, OpenError, Outbox, StateMachine};

/// All groups of this process, their shared log and their driver.
pub struct Node<S> {
    config: NodeConfig,
    groups: BTreeMap<u64, Group<S>>,
    _machine: PhantomData<S>,
}

impl<S: StateMachine> Node<S> {
    /// Replays log and snapshots, resumes all groups found on disk, and starts the driver. `make` makes the empty
    /// state machine of a group.
    ///
    /// # Errors
    /// See [`OpenError`]: nothing has voted or answered then.
    pub fn open(
        config: NodeConfig,
        outbox: Arc<dyn Outbox>,
        make: impl Fn(u64) -> S + Send + 'static,
    ) -> Result<Self, OpenError> {
        drop((outbox, make));
        Ok(Self { config, groups: BTreeMap::new(), _machine: PhantomData })
    }

    /// Creates this node's replica of a group; durable when it returns. Every replica is created with the same
    /// voters. Creating it again does nothing. Blocks for about one sync of the log.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn create_group(&self, group: u64, voters: &[NodeId]) -> Result<(), GroupError> {
        let _ = (group, voters);
        Err(GroupError::Stopped)
    }

    /// Drops this node's replica of a group, if there is one, with its snapshots; durable when it returns.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn drop_group(&self, group: u64) -> Result<(), GroupError> {
        let _ = group;
        Err(GroupError::Stopped)
    }

    /// The groups of this node.
    #[must_use]
    pub fn groups(&self) -> Vec<u64> {
        self.groups.keys().copied().collect()
    }

    /// The handle of a group.
    #[must_use]
    pub fn group(&self, group: u64) -> Option<Group<S>> {
        self.groups.get(&group).cloned()
    }

    /// Takes messages in that another node's outbox sent. Does not block; drops them when too much is waiting.
    pub fn deliver(&self, from: NodeId, messages: Vec<GroupMessage>) {
        let _ = (from, messages);
    }

    /// Where files for [`Self::deliver_snapshot`] are best put: same file system, cleared at open.
    #[must_use]
    pub fn snapshot_directory(&self) -> PathBuf {
        self.config.directory.join("snapshots")
    }

    /// Takes a snapshot in that another node's outbox shipped; `file` is this node's from now on.
    pub fn deliver_snapshot(&self, from: NodeId, message: GroupMessage, file: PathBuf) {
        let _ = (from, message, file);
    }

    /// Says how [`Outbox::send_snapshot`] went.
    pub fn report_snapshot(&self, group: u64, to: NodeId, ok: bool) {
        let _ = (group, to, ok);
    }

    /// Stops the driver and waits for it. Everything acknowledged is durable anyway; what waits is answered
    /// [`crate::ProposeError::Unknown`] or [`crate::ProposeError::Stopped`].
    pub fn shutdown(&self) {}
}
