//! From what the disks hold to Raft groups that can go on: the log replayed, current snapshots restored, the rest
//! cleared away.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_common::{LogIndex, RaftGroupId};
use holdfast_storage::Directory;

use crate::log::batch::LOG_VERSION;
use crate::log::replay::Replayed;
use crate::log::{Log, LogOptions, RecoveryError};
use crate::machine::StateMachine;
use crate::reserve::{RESERVE, Reserve};
use crate::snapshot::{self, SNAPSHOT_VERSION, SnapshotError};
use crate::status::OpenError;

/// The Raft groups of a node as its disks have them.
pub(crate) struct Opened<S> {
    pub(crate) log: Log,
    pub(crate) groups: BTreeMap<RaftGroupId, Replayed>,
    /// State of each Raft group as of its snapshot.
    pub(crate) states: BTreeMap<RaftGroupId, S>,
    /// Higher than the numbers of all snapshot files.
    pub(crate) next_file: u64,
    /// Room for a snapshot.
    pub(crate) reserve: Arc<Reserve>,
}

/// Opens a node's log and snapshots. `make` makes the empty state machine of a group.
pub(crate) fn open<S: StateMachine>(
    log_disk: Arc<dyn Directory>,
    snapshots: &Arc<dyn Directory>,
    options: LogOptions,
    make: &dyn Fn(RaftGroupId) -> S,
) -> Result<Opened<S>, OpenError> {
    let (log_path, snapshot_path) = (path(&*log_disk), path(&**snapshots));
    let (log, groups) = Log::open(log_disk, options).map_err(|error| log_error(&log_path, error))?;
    let mut states = BTreeMap::new();
    for (id, group) in &groups {
        let mut state = make(*id);
        let mark = group.state.snapshot;
        if mark.index > LogIndex::ZERO {
            snapshot::restore_current(&**snapshots, *id, mark, &mut state)
                .map_err(|error| snapshot_error(&snapshot_path, *id, error))?;
        }
        states.insert(*id, state);
    }
    let io_error = |source| OpenError::Io { path: snapshot_path.clone(), source };
    let next_file = clear_files(&**snapshots, &groups).map_err(io_error)?;
    let reserve = Reserve::open(Arc::clone(snapshots)).map_err(io_error)?;
    Ok(Opened { log, groups, states, next_file, reserve: Arc::new(reserve) })
}

/// The directory's own path, for messages.
pub(crate) fn path(disk: &dyn Directory) -> PathBuf {
    disk.path("").components().collect()
}

/// Removes every file, but for the reserve, that is nobody's current snapshot; returns a number above all of theirs.
pub(crate) fn clear_files(disk: &dyn Directory, replayed: &BTreeMap<RaftGroupId, Replayed>) -> io::Result<u64> {
    let mut next = 1;
    for name in disk.list()?.into_iter().filter(|name| name != RESERVE) {
        let parsed = snapshot::parse_name(&name);
        next = next.max(parsed.map_or(0, |(_, file)| file) + 1);
        let current = |(group, file)| replayed.get(&group).is_some_and(|r| r.state.snapshot.file == file);
        if !parsed.is_some_and(current) {
            disk.remove(&name)?;
        }
    }
    let current = replayed.values().map(|group| group.state.snapshot.file + 1).max();
    Ok(next.max(current.unwrap_or(1)))
}

pub(crate) fn log_error(path: &Path, error: RecoveryError) -> OpenError {
    let path = path.to_owned();
    match error {
        RecoveryError::Io(source) => OpenError::Io { path, source },
        RecoveryError::Missing => OpenError::Missing { path },
        RecoveryError::Foreign => OpenError::Foreign { path },
        RecoveryError::NewerVersion(found) => OpenError::NewerVersion { path, found, known: LOG_VERSION },
        RecoveryError::Damaged { .. } | RecoveryError::Contradiction(_) => {
            OpenError::Damaged { path, what: error.to_string() }
        }
    }
}

pub(crate) fn snapshot_error(path: &Path, group: RaftGroupId, error: SnapshotError) -> OpenError {
    let path = path.to_owned();
    match error {
        SnapshotError::Io(source) => OpenError::Io { path, source },
        SnapshotError::NewerVersion(found) => OpenError::NewerVersion { path, found, known: SNAPSHOT_VERSION },
        SnapshotError::Damaged(_) => OpenError::Damaged { path, what: format!("group {group}: {error}") },
        SnapshotError::Refused(reason) => OpenError::Restore { group, reason },
    }
}
