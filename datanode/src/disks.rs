//! The disks of a datanode as a start finds them: those that can be claimed, and those that are away. A disk that cannot be
//! read, or is not where it was, does not keep the node's other disks from serving.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_common::DiskId;
use holdfast_node::NodeSuperblock;
use holdfast_node::superblock::{self, Kind, SuperblockError};
use holdfast_proto::node::{KnownDisk, KnownDisks};
use holdfast_storage::{
    Directory, DirectoryLock, RealDirectory,
    descriptors::{self, Descriptors},
};

use crate::disk::{Disk, Home};
use crate::error::StartError;
use crate::memory::Memory;
use crate::process::Process;
use crate::store::recover::OpenError;
use crate::store::surroundings::Surroundings;
use crate::store::units::to_usize;
use crate::store::volumes::VolumesError;
use crate::store::{DiskStatus, Store, StoreOptions};
use crate::superblock::DiskSuperblock;

/// Descriptors that the disks of a node may use, at least: each of its writers holds a few open.
const DISK_DESCRIPTORS_MIN: u64 = 64;
/// And at most: beyond some ten thousand, opening again costs nothing against the reads in between.
const DISK_DESCRIPTORS_MAX: u64 = 16_384;
/// File in a node's directory: the disks that the node has had, and where.
const KNOWN_DISKS: Kind = Kind {
    file: "disks",
    second: None,
    magic: *b"HFDISKS\n",
    version: 1,
    record_bytes_max: 1 << 20,
    name: "a datanode's directory",
};

/// A disk as a start finds it.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Its id; 0 if it has none yet, or is away and was never known.
    pub(crate) id: DiskId,
    pub(crate) state: State,
}

pub(crate) enum State {
    Claimed(DirectoryLock),
    /// It cannot be read.
    Away(SuperblockError),
}

impl Found {
    /// Whether it is reported to the volume manager: it is here, or its id is known.
    pub(crate) fn is_told_of(&self) -> bool {
        matches!(self.state, State::Claimed(_)) || self.id.0 != 0
    }

    /// Status before it is open.
    pub(crate) fn first_look(&self) -> DiskStatus {
        let space = RealDirectory::new(&self.path).space();
        let (State::Claimed(_), Ok(space)) = (&self.state, space) else { return DiskStatus::lost() };
        DiskStatus {
            failed: false,
            total_bytes: space.total_bytes,
            unreserved_bytes: space.available_bytes,
            file_system: space.file_system,
            ..DiskStatus::lost()
        }
    }
}

/// The ids of the disks that the node has had, by path.
fn known(directory: &Path) -> KnownDisks {
    match superblock::read(directory, KNOWN_DISKS) {
        Ok(known) => known,
        Err(SuperblockError::NotFormatted { .. }) => KnownDisks::default(),
        Err(error) => {
            tracing::error!(%error, "which disks the node has had is forgotten");
            KnownDisks::default()
        }
    }
}

/// Remembers where disks are, durably.
///
/// # Errors
/// [`SuperblockError::Io`].
pub(crate) fn remember(directory: &Path, found: &[(PathBuf, DiskId)]) -> Result<(), SuperblockError> {
    let before = known(directory);
    let now = found.iter().map(|(path, id)| KnownDisk { disk: id.0, path: path.to_string_lossy().into_owned() });
    let now = KnownDisks { disks: now.collect() };
    if now == before { Ok(()) } else { superblock::write(directory, KNOWN_DISKS, &now) }
}

/// Claims the directory of a disk, which is not the node's own.
pub(crate) fn lock_disk(disk: &Path, directory: &Path) -> Result<DirectoryLock, StartError> {
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    if same(disk, directory) {
        return Err(StartError::SharedDirectory { path: disk.to_owned() });
    }
    Ok(DirectoryLock::acquire(disk)?)
}

/// Claims the disks of a node that is locked. Changes nothing but lock files.
///
/// # Errors
/// A disk is another node's, in use, or of a newer program; or it is none, and never was one of this node.
pub(crate) fn claim(directory: &Path, node: &NodeSuperblock, paths: &[PathBuf]) -> Result<Vec<Found>, StartError> {
    let known = known(directory);
    let id_at = |path: &Path| {
        let at = known.disks.iter().find(|disk| disk.path == path.to_string_lossy());
        DiskId(at.map_or(0, |disk| disk.disk))
    };
    let claim_one = |path: &PathBuf| match DiskSuperblock::read(path) {
        Ok(theirs) => {
            let node_fits = theirs.node.0 == 0 || node.node.0 == 0 || theirs.node == node.node;
            if theirs.format_nonce != node.format_nonce || !node_fits {
                return Err(StartError::ForeignDisk { path: path.clone() });
            }
            let state = State::Claimed(lock_disk(path, directory)?);
            Ok(Found { path: path.clone(), id: theirs.disk, state })
        }
        Err(error) => {
            let id = id_at(path);
            let is_away = match &error {
                SuperblockError::Damaged { .. } | SuperblockError::Io { .. } => true,
                // An empty mount point. Without an id it may just as well be a wrong path.
                SuperblockError::NotFormatted { .. } => id.0 != 0,
                SuperblockError::OtherKind { .. } | SuperblockError::Newer { .. } | SuperblockError::Exists { .. } => {
                    false
                }
            };
            if !is_away {
                return Err(error.into());
            }
            tracing::error!(disk = id.0, path = %path.display(), %error, "disk out of service");
            Ok(Found { path: path.clone(), id, state: State::Away(error) })
        }
    };
    paths.iter().map(claim_one).collect()
}

/// The descriptors that the disks may use: half of what the process may open, so that connections find some too.
fn descriptors() -> Arc<Descriptors> {
    let limit = descriptors::raise_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files cannot be raised");
        2 * DISK_DESCRIPTORS_MIN
    });
    let share = (limit / 2).clamp(DISK_DESCRIPTORS_MIN, DISK_DESCRIPTORS_MAX);
    Descriptors::new(to_usize(share))
}

/// Opens every disk, each on a thread of its own. A disk that does not open is out of service; one that a newer version
/// made stops the start, and so does having no disk left.
///
/// # Errors
/// [`StartError`].
pub(crate) async fn open(
    found: Vec<Found>,
    memory: &Arc<Memory>,
    options: &StoreOptions,
    process: &Process,
) -> Result<(Vec<Arc<Disk>>, Vec<DiskId>), StartError> {
    let descriptors = descriptors();
    let surroundings = process.surroundings(memory.directory());
    let (mut opening, mut lost, mut last) = (Vec::new(), Vec::new(), None);
    for Found { path, id, state } in found {
        match state {
            State::Claimed(lock) => {
                let directory = Arc::new(RealDirectory::with_descriptors(&path, descriptors.clone()));
                let (at, memory) = (path.clone(), memory.clone());
                let (options, surroundings) = (options.clone(), surroundings.clone());
                let open = move || open_one(&at, directory, id, lock, &memory, options, surroundings);
                opening.push((path, id, tokio::task::spawn_blocking(open)));
            }
            State::Away(why) => {
                lost.extend((id.0 != 0).then_some(id));
                last = Some(why.into());
            }
        }
    }
    let mut disks = Vec::new();
    for (path, id, opened) in opening {
        match opened.await? {
            Ok(disk) => {
                tracing::info!(disk = id.0, path = %path.display(), "disk open");
                disks.push(disk);
            }
            Err(source @ OpenError::Unsupported { .. }) => return Err(StartError::Disk { path, source }),
            Err(source) => {
                tracing::error!(disk = id.0, path = %path.display(), error = %source, "disk out of service");
                lost.push(id);
                last = Some(StartError::Disk { path, source });
            }
        }
    }
    match last {
        Some(error) if disks.is_empty() => Err(error),
        _ => Ok((disks, lost)),
    }
}

fn open_one(
    path: &Path,
    directory: Arc<dyn Directory>,
    id: DiskId,
    lock: DirectoryLock,
    memory: &Memory,
    options: StoreOptions,
    surroundings: Surroundings,
) -> Result<Arc<Disk>, OpenError> {
    let home = Home::of(path, directory.clone()).map_err(std::io::Error::other)?;
    let store = open_store(directory, id, memory, options, surroundings)?;
    Ok(Disk::start(id, store, Some(home), Some(lock))?)
}

/// Opens the store of a disk and tells it what it missed.
///
/// # Errors
/// See [`OpenError`].
pub(crate) fn open_store(
    directory: Arc<dyn Directory>,
    id: DiskId,
    memory: &Memory,
    options: StoreOptions,
    surroundings: Surroundings,
) -> Result<Store, OpenError> {
    let (mut store, report) = Store::open(directory, id, options, surroundings)?;
    tracing::info!(disk = id.0, ?report, "disk read");
    // What was set or dropped while it was away, before it takes the first put.
    let caught_up = store.learn(&memory.all());
    caught_up.map_err(|error| OpenError::Volumes(VolumesError::Io(std::io::Error::other(error))))?;
    Ok(store)
}
