//! A node that lost its log, on its way back (R23): it hosts no Raft group, takes a snapshot of each from that group's
//! leader, and writes it down with the leader's term and a vote for it. Once it has all, [`crate::Node`] opens what is
//! written, gives no vote for an election time-out, as after every start, and takes part again.
//!
//! It dies anywhere: what is durable stands, because it took part in nothing since; the rest is asked for again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use holdfast_common::{LogIndex, NodeId, RaftGroupId};
use holdfast_storage::{Directory, RealDirectory};

use crate::admission::Admission;
use crate::config::{ExpectedLog, LOG_DIRECTORY, NodeConfig, SNAPSHOT_DIRECTORY};
use crate::log::record::{GroupState, HardState, Record, SnapshotMark};
use crate::log::{Log, LogFailed, LogOptions};
use crate::opening::{clear_files, log_error, path};
use crate::sabotage::Sabotage;
use crate::snapshot::{self, SnapshotError, SnapshotHeader};
use crate::status::OpenError;
use crate::stepped::SteppedOptions;

/// Reason why a snapshot was not taken. Nothing has changed then, and it can be asked for again.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// It was meant for another node, or another start of this one.
    #[error("an answer to somebody else, or to an earlier question")]
    Stale,
    /// The file is not what was announced.
    #[error("the snapshot is not what was announced: {0}")]
    Snapshot(String),
    /// It could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The new log failed, or its disk is full: the recovery has to be begun again.
    #[error(transparent)]
    Log(#[from] LogFailed),
}

/// A log that is recovered; see the module.
pub struct Recovering {
    node: NodeId,
    generation: u64,
    log: Log,
    snapshots: Arc<dyn Directory>,
    /// Groups that are recovered, with their snapshot's index.
    recovered: BTreeMap<RaftGroupId, LogIndex>,
    next_file: u64,
}

impl Recovering {
    /// Opens the new log of a node, which [`crate::format_log`] made and no [`crate::Node`] has opened yet. `generation` is of this
    /// start. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &NodeConfig, generation: u64) -> Result<Self, OpenError> {
        let snapshots = config.directory.join(SNAPSHOT_DIRECTORY);
        let made = holdfast_storage::create_directories(&snapshots);
        made.map_err(|source| OpenError::Io { path: snapshots.clone(), source })?;
        let options = LogOptions {
            segment_bytes: config.segment_bytes,
            bytes_max: config.log_bytes_max,
            tail_entries: config.tail_entries,
            identity: [0; 16],
            // Never one that is made here: the superblock would not know it.
            expected: if config.log == ExpectedLog::AnyOrNone { ExpectedLog::Any } else { config.log },
            sabotage: Sabotage::None,
        };
        let log = Arc::new(RealDirectory::new(&config.directory.join(LOG_DIRECTORY)));
        Self::open_in(config.node, generation, options, log, Arc::new(RealDirectory::new(&snapshots)))
    }

    /// The same for a [`crate::SteppedNode`], whose log may have to be made.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stepped(
        options: SteppedOptions,
        generation: u64,
        log: Arc<dyn Directory>,
        snapshots: Arc<dyn Directory>,
    ) -> Result<Self, OpenError> {
        Self::open_in(options.node, generation, options.log_options(), log, snapshots)
    }

    fn open_in(
        node: NodeId,
        generation: u64,
        options: LogOptions,
        log: Arc<dyn Directory>,
        snapshots: Arc<dyn Directory>,
    ) -> Result<Self, OpenError> {
        let (log_path, snapshot_path) = (path(&*log), path(&*snapshots));
        let (log, groups) = Log::open(log, options).map_err(|error| log_error(&log_path, error))?;
        let cleared = clear_files(&*snapshots, &groups);
        let next_file = cleared.map_err(|source| OpenError::Io { path: snapshot_path, source })?;
        let recovered = groups.iter().map(|(group, replayed)| (*group, replayed.state.snapshot.index)).collect();
        Ok(Self { node, generation, log, snapshots, recovered, next_file })
    }

    /// Whether a Raft group is recovered, durably.
    #[must_use]
    pub fn has(&self, group: RaftGroupId) -> bool {
        self.recovered.contains_key(&group)
    }

    /// Takes a snapshot. `put` puts its file under a name of the directory. The group is recovered when this returns; one that is
    /// already stays as it is.
    ///
    /// # Errors
    /// See [`RecoverError`].
    pub fn receive(
        &mut self,
        admission: &Admission,
        put: impl FnOnce(&dyn Directory, &str) -> io::Result<()>,
    ) -> Result<(), RecoverError> {
        if (admission.to, admission.generation) != (self.node, self.generation) {
            return Err(RecoverError::Stale);
        }
        if self.has(admission.group) {
            return Ok(());
        }
        let file = self.next_file;
        self.next_file += 1;
        let taken = self.take_file(admission, file, put);
        let (header, bytes) = taken.inspect_err(|_| snapshot::remove(&*self.snapshots, admission.group, file))?;
        let SnapshotHeader { index, term, voters, learners, .. } = header;
        let hard = HardState { term: admission.term, vote: admission.leader.0, commit: index };
        let mark = SnapshotMark { index, term, file, bytes };
        let state = GroupState { hard, snapshot: mark, installed: true, voters, learners };
        self.log.append(vec![Record::Group(admission.group, state)])?;
        if let Some(lack) = self.log.lack() {
            let errno = lack.raw_os_error().map(io::Error::from_raw_os_error);
            return Err(RecoverError::Io(errno.unwrap_or_else(|| lack.kind().into())));
        }
        self.log.sync()?;
        self.recovered.insert(admission.group, index);
        Ok(())
    }

    /// The file is durable before the log names it (R25).
    fn take_file(
        &self,
        admission: &Admission,
        file: u64,
        put: impl FnOnce(&dyn Directory, &str) -> io::Result<()>,
    ) -> Result<(SnapshotHeader, u64), RecoverError> {
        let name = snapshot::name(admission.group, file);
        put(&*self.snapshots, &name)?;
        let handle = self.snapshots.open(&name)?;
        let (header, bytes) = snapshot::verify(&*handle).map_err(|error| match error {
            SnapshotError::Io(error) => RecoverError::Io(error),
            error => RecoverError::Snapshot(error.to_string()),
        })?;
        let fits = header.group == admission.group
            && header.index >= admission.index
            && header.term <= admission.term
            && [self.node, admission.leader].iter().all(|id| header.voters.contains(&id.0))
            && self.node != admission.leader;
        if !fits {
            return Err(RecoverError::Snapshot(format!("it is of group {} at {}", header.group, header.index)));
        }
        snapshot::make_durable(&*self.snapshots, &*handle, Sabotage::None)?;
        Ok((header, bytes))
    }
}

#[cfg(test)]
mod tests;
