//! The threads for what takes long: writing frozen states, verifying and restoring delivered ones, removing files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use holdfast_common::{NodeId, RaftGroupId};
use parking_lot::Mutex;

use crate::log::record::SnapshotMark;
use crate::machine::{Snapshot, StateMachine};
use crate::outbox::GroupMessage;
use crate::queue::{Item, Queue};
use crate::reserve::Reserve;
use crate::sabotage::Sabotage;
use crate::snapshot::{self, SnapshotError, SnapshotHeader};
use holdfast_storage::Directory;

/// Makes the empty state machine of a Raft group.
pub(crate) type Make<S> = Arc<Mutex<dyn Fn(RaftGroupId) -> S + Send>>;
/// Restored states on their way to the driver, by Raft group and file.
pub(crate) type Restored<S> = Arc<Mutex<BTreeMap<(RaftGroupId, u64), S>>>;

pub(crate) enum Job {
    Write { header: SnapshotHeader, mark: SnapshotMark, state: Box<dyn Snapshot> },
    Receive { from: NodeId, message: GroupMessage, path: PathBuf, file: u64 },
    Remove { group: RaftGroupId, file: u64 },
    RemoveGroup { group: RaftGroupId },
}

/// Threads that take jobs in turns: the snapshot of one large table does not hold up those of the others.
pub(crate) const WORKERS: usize = 3;

/// Parts that the worker's threads share.
pub(crate) struct Worker<S> {
    pub(crate) disk: Arc<dyn Directory>,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) make: Make<S>,
    pub(crate) restored: Restored<S>,
}

impl<S: StateMachine> Worker<S> {
    /// Works until nobody can send jobs any more. No two jobs under way are about one file: a file is removed only after the
    /// driver heard of it.
    pub(crate) fn run(&self, jobs: &Mutex<mpsc::Receiver<Job>>) {
        loop {
            let job = jobs.lock().recv();
            let Ok(job) = job else { return };
            match job {
                Job::Write { header, mark, state } => self.write(&header, mark, &*state),
                Job::Receive { from, message, path, file } => self.receive(from, message, &path, file),
                Job::Remove { group, file } => self.remove(group, file),
                Job::RemoveGroup { group } => self.remove_group(group),
            }
        }
    }

    fn write(&self, header: &SnapshotHeader, mark: SnapshotMark, state: &dyn Snapshot) {
        let (mark, ok) = snapshot::write_frozen(&*self.disk, &self.reserve, header, mark, state, Sabotage::None);
        // A closed queue means that the node stops; the next open clears the file away.
        let _ = self.queue.push_always(Item::SnapshotWritten { group: header.group, mark, ok });
    }

    fn receive(&self, from: NodeId, message: GroupMessage, path: &Path, file: u64) {
        let group = message.group;
        match self.try_receive(group, path, file) {
            Ok(mark) => {
                let _ = self.queue.push_always(Item::SnapshotDelivered { from, message, mark });
            }
            Err(error) => {
                tracing::warn!(%group, %from, %error, "a snapshot from another node was dropped");
                let _ = std::fs::remove_file(path);
                self.remove(group, file);
            }
        }
    }

    fn try_receive(&self, group: RaftGroupId, path: &Path, file: u64) -> Result<SnapshotMark, SnapshotError> {
        let target = self.disk.path(&snapshot::name(group, file));
        if std::fs::rename(path, &target).is_err() {
            // Another file system.
            std::fs::copy(path, &target)?;
            std::fs::remove_file(path)?;
        }
        let machine = (self.make.lock())(group);
        let (mark, machine) = snapshot::receive(&*self.disk, group, file, machine, Sabotage::None)?;
        self.restored.lock().insert((group, file), machine);
        Ok(mark)
    }

    fn remove(&self, group: RaftGroupId, file: u64) {
        self.restored.lock().remove(&(group, file));
        snapshot::remove(&*self.disk, group, file);
    }

    fn remove_group(&self, group: RaftGroupId) {
        snapshot::files_of(&*self.disk, group).into_iter().for_each(|file| self.remove(group, file));
    }
}
