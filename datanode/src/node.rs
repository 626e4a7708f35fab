//! A datanode's life: formatted, started, served, stopped (R28).
//!
//! The first start waits for the volume manager, which gives node and disks their ids and the node the cluster's secret.
//! From then on the node serves without it: its address may have changed, which it says in the background.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_common::{DiskId, NodeId};
use holdfast_node::superblock::{self, SuperblockError};
use holdfast_node::{ListenError, NodeSuperblock, REGISTER_RETRY, Reserved, VolumeManager, is_final};
use holdfast_proto::control::RegisterResponse;
use holdfast_storage::descriptors::{self, Descriptors};
use holdfast_storage::durable::{DirectoryLock, LockError, sync_parent};
use holdfast_storage::{RealDirectory, create_directories};
use holdfast_transport::{Identity, Server, ServerLimits};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError};

use crate::disk::Disk;
use crate::heartbeat::{self, Heart};
use crate::service::DataService;
use crate::store::recover::{self, OpenError};
use crate::store::{DiskStatus, Store, StoreOptions};
use crate::superblock::{DiskSuperblock, NODE_KIND};
use crate::units::to_usize;

/// Descriptors that the disks of a node may use, at least: each of its writers holds a few open.
const DISK_DESCRIPTORS_MIN: u64 = 64;
/// And at most: beyond some ten thousand, opening again costs nothing against the reads in between.
const DISK_DESCRIPTORS_MAX: u64 = 16_384;

/// Where a datanode lives and listens, and whom it belongs to.
#[derive(Clone, Debug)]
pub struct DatanodeConfig {
    /// Its own directory, formatted before.
    pub directory: PathBuf,
    /// The directories of its disks, formatted with it.
    pub disks: Vec<PathBuf>,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The volume manager, host:port.
    pub volmgr: String,
}

/// Why a datanode was not formatted or did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory is not what it should be.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// Somebody else uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The address is taken or not ours.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A disk was made by a newer version, or no disk opens.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// A node stores shards on disks.
    #[error("a datanode needs a disk at least")]
    NoDisks,
    /// A disk named twice, or the node's own directory.
    #[error("{} cannot be used twice", path.display())]
    SharedDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The disk was formatted with another node.
    #[error("{} is a disk of another node or cluster", path.display())]
    ForeignDisk {
        /// The disk.
        path: PathBuf,
    },
    /// Formatting would overwrite shards.
    #[error("{} holds files already; a disk is formatted in an empty directory", path.display())]
    NotEmpty {
        /// The disk.
        path: PathBuf,
    },
    /// The volume manager's address makes no sense.
    #[error("'{0}' is no address of a volume manager, host:port")]
    BadVolmgr(String),
    /// The volume manager refuses this node.
    #[error("the volume manager refuses this node: {0}")]
    Refused(String),
    /// The volume manager answered something malformed.
    #[error("the volume manager's answer to the registration makes no sense")]
    BadRegistration,
    /// A task ended before its time.
    #[error("starting was interrupted: {0}")]
    Interrupted(#[from] JoinError),
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> StartError + '_ {
    move |source| StartError::Io { path: path.to_owned(), source }
}

/// Makes a directory the home of a new datanode and the given ones its disks. They get their cluster and their ids when
/// the node is first started.
///
/// # Errors
/// [`StartError`]; a formatted directory is left as it is.
pub async fn format(directory: &Path, disks: &[PathBuf]) -> Result<(), StartError> {
    let (directory, disks) = (directory.to_owned(), disks.to_owned());
    tokio::task::spawn_blocking(move || format_blocking(&directory, &disks)).await?
}

fn format_blocking(directory: &Path, disks: &[PathBuf]) -> Result<(), StartError> {
    if disks.is_empty() {
        return Err(StartError::NoDisks);
    }
    create_directories(directory).map_err(io_error(directory))?;
    let _lock = DirectoryLock::acquire(directory)?;
    superblock::must_not_exist(directory)?;
    let mut locks = Vec::new();
    for disk in disks {
        create_directories(disk).map_err(io_error(disk))?;
        locks.push(lock_disk(disk, directory)?);
        check_empty(disk)?;
    }
    let node = NodeSuperblock::fresh().map_err(io_error(directory))?;
    for disk in disks {
        recover::create(&RealDirectory::new(disk)).map_err(io_error(disk))?;
        DiskSuperblock::fresh(node.format_nonce).write(disk)?;
        sync_parent(disk).map_err(io_error(disk))?;
    }
    // Last, because it is what makes the node formatted: a crash before can be formatted again.
    node.write(directory, NODE_KIND)?;
    sync_parent(directory).map_err(io_error(directory))
}

fn lock_disk(disk: &Path, directory: &Path) -> Result<DirectoryLock, StartError> {
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    if same(disk, directory) {
        return Err(StartError::SharedDirectory { path: disk.to_owned() });
    }
    Ok(DirectoryLock::acquire(disk)?)
}

/// A disk is empty, or was formatted by a run that did not finish and never used.
fn check_empty(disk: &Path) -> Result<(), StartError> {
    match DiskSuperblock::read(disk) {
        Ok(superblock) if superblock.node.0 == 0 => return Ok(()),
        Ok(_) => return Err(SuperblockError::Exists { path: disk.to_owned() }.into()),
        Err(SuperblockError::NotFormatted { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let ours = ["lock", "lost+found", "volumes", "volumes.tmp", "superblock.tmp"];
    for entry in std::fs::read_dir(disk).map_err(io_error(disk))? {
        let name = entry.map_err(io_error(disk))?.file_name();
        if !ours.iter().any(|known| name == *known) {
            return Err(StartError::NotEmpty { path: disk.to_owned() });
        }
    }
    Ok(())
}

/// A running datanode. Dropping it stops serving; [`Datanode::shutdown`] does so in order.
pub struct Datanode {
    node: NodeId,
    local_addr: SocketAddr,
    service: Arc<DataService>,
    server: Arc<Mutex<Option<Server>>>,
    heartbeat: AbortHandle,
    stopped: watch::Receiver<Option<String>>,
    _lock: DirectoryLock,
}

/// Starts the datanode of a formatted directory. Must run inside a tokio runtime. The first start waits until the volume
/// manager has given ids; later ones serve without it.
///
/// # Errors
/// [`StartError`]; nothing serves then.
pub async fn start(config: DatanodeConfig) -> Result<Datanode, StartError> {
    start_with(config, StoreOptions::default()).await
}

/// [`start`], with other sizes of segments or an artificial size of the disks.
///
/// # Errors
/// [`StartError`]; nothing serves then.
pub async fn start_with(config: DatanodeConfig, options: StoreOptions) -> Result<Datanode, StartError> {
    let (lock, disk_locks) = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || claim(&config)).await??
    };
    let volmgr = VolumeManager::new(&config.volmgr).map_err(|_| StartError::BadVolmgr(config.volmgr.clone()))?;
    let reserved = Reserved::take(config.listen)?;
    let address = reserved.address();
    let superblock = {
        let directory = config.directory.clone();
        tokio::task::spawn_blocking(move || NodeSuperblock::raise_generation(&directory, NODE_KIND)).await??
    };
    let (superblock, ids, registered) = identify(&config, superblock, &volmgr, address).await?;
    let (disks, lost) = open_disks(&config.disks, &ids, disk_locks, &options, &descriptors()).await?;
    let (node, secret) = (superblock.node, superblock.secret.clone());
    let service = Arc::new(DataService::new(node, secret, disks, lost));
    drop(reserved);
    let identity = Identity { cluster: superblock.cluster };
    let server = Server::bind(address, identity, service.clone(), ServerLimits::default()).await;
    let server = Arc::new(Mutex::new(Some(server.map_err(|source| ListenError { address, source })?)));
    let (stop, stopped) = watch::channel(None);
    let heart = Heart { service: service.clone(), volmgr, superblock, address };
    let serving = server.clone();
    let beating = tokio::spawn(async move {
        let why = heartbeat::run(heart, registered).await;
        tracing::error!(reason = why, "the volume manager refuses this node; it stops serving");
        let running = serving.lock().take();
        if let Some(running) = running {
            running.shutdown().await;
        }
        let _ = stop.send(Some(why));
    });
    let heartbeat = beating.abort_handle();
    Ok(Datanode { node, local_addr: address, service, server, heartbeat, stopped, _lock: lock })
}

/// Locks and checks everything the node needs; changes nothing.
fn claim(config: &DatanodeConfig) -> Result<(DirectoryLock, Vec<DirectoryLock>), StartError> {
    if config.disks.is_empty() {
        return Err(StartError::NoDisks);
    }
    // Before the lock: a directory that is none of ours gets no lock file.
    NodeSuperblock::read(&config.directory, NODE_KIND)?;
    let lock = DirectoryLock::acquire(&config.directory)?;
    let mut disk_locks = Vec::new();
    let superblock = NodeSuperblock::read(&config.directory, NODE_KIND)?;
    for disk in &config.disks {
        let theirs = DiskSuperblock::read(disk)?;
        let node_fits = theirs.node.0 == 0 || superblock.node.0 == 0 || theirs.node == superblock.node;
        if theirs.format_nonce != superblock.format_nonce || !node_fits {
            return Err(StartError::ForeignDisk { path: disk.clone() });
        }
        disk_locks.push(lock_disk(disk, &config.directory)?);
    }
    Ok((lock, disk_locks))
}

/// Makes sure that node and disks have ids. The last part says whether the volume manager knows this start already.
async fn identify(
    config: &DatanodeConfig,
    superblock: NodeSuperblock,
    volmgr: &VolumeManager,
    address: SocketAddr,
) -> Result<(NodeSuperblock, Vec<DiskId>, bool), StartError> {
    let ids: Result<Vec<DiskId>, _> =
        config.disks.iter().map(|disk| DiskSuperblock::read(disk).map(|theirs| theirs.disk)).collect();
    let ids = ids?;
    let newcomer = !superblock.is_registered() || ids.contains(&DiskId(0));
    let disks: Vec<_> = config.disks.iter().zip(&ids).map(|(path, id)| (*id, first_look(path))).collect();
    let mut complained = false;
    loop {
        let request = heartbeat::registration(&superblock, address, &disks);
        match volmgr.register(request).await {
            Ok(response) => {
                let (config, superblock) = (config.clone(), superblock.clone());
                let persisted =
                    tokio::task::spawn_blocking(move || persist_ids(&config, &superblock, &response)).await??;
                return Ok((persisted.0, persisted.1, true));
            }
            Err(status) if is_final(&status) => return Err(StartError::Refused(status.message().to_owned())),
            Err(status) if newcomer => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(reason = status.message(), "waiting for the volume manager to register");
                }
                tokio::time::sleep(REGISTER_RETRY).await;
            }
            Err(_) => return Ok((superblock, ids, false)),
        }
    }
}

/// Space of a disk that is not open yet, for the registration.
fn first_look(path: &Path) -> DiskStatus {
    use holdfast_storage::Directory;
    let Ok(space) = RealDirectory::new(path).space() else { return DiskStatus::lost() };
    DiskStatus {
        failed: false,
        total_bytes: space.total_bytes,
        unreserved_bytes: space.available_bytes,
        file_system: space.file_system,
        ..DiskStatus::lost()
    }
}

/// Disks first: as long as the node's superblock has no id, the next start registers again under the same nonce and is
/// given the same ids.
fn persist_ids(
    config: &DatanodeConfig,
    superblock: &NodeSuperblock,
    response: &RegisterResponse,
) -> Result<(NodeSuperblock, Vec<DiskId>), StartError> {
    let new = superblock.registered(response).ok_or(StartError::BadRegistration)?;
    let ids: Vec<DiskId> = response.disks.iter().copied().map(DiskId).collect();
    if ids.len() != config.disks.len() || ids.contains(&DiskId(0)) {
        return Err(StartError::BadRegistration);
    }
    for (path, disk) in config.disks.iter().zip(&ids) {
        let old = DiskSuperblock::read(path)?;
        let theirs = DiskSuperblock { cluster: new.cluster, node: new.node, disk: *disk, ..old };
        if old.disk.0 != 0 && old != theirs {
            return Err(StartError::ForeignDisk { path: path.clone() });
        }
        if old != theirs {
            theirs.write(path)?;
        }
    }
    if new != *superblock {
        new.write(&config.directory, NODE_KIND)?;
    }
    Ok((new, ids))
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
async fn open_disks(
    paths: &[PathBuf],
    ids: &[DiskId],
    locks: Vec<DirectoryLock>,
    options: &StoreOptions,
    descriptors: &Arc<Descriptors>,
) -> Result<(Vec<Arc<Disk>>, Vec<DiskId>), StartError> {
    let opening: Vec<_> = paths
        .iter()
        .zip(ids)
        .zip(locks)
        .map(|((path, id), lock)| {
            let (at, id, options) = (path.clone(), *id, options.clone());
            let directory = Arc::new(RealDirectory::with_descriptors(path, descriptors.clone()));
            (at.clone(), id, tokio::task::spawn_blocking(move || open_disk(&at, directory, id, lock, options)))
        })
        .collect();
    let (mut disks, mut lost, mut last) = (Vec::new(), Vec::new(), None);
    for (path, id, opened) in opening {
        match opened.await? {
            Ok(disk) => disks.push(disk),
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

fn open_disk(
    path: &Path,
    directory: Arc<RealDirectory>,
    id: DiskId,
    lock: DirectoryLock,
    options: StoreOptions,
) -> Result<Arc<Disk>, OpenError> {
    let (store, report) = Store::open(directory, id, options)?;
    tracing::info!(disk = id.0, path = %path.display(), ?report, "disk open");
    Ok(Disk::start(id, store, Some(lock))?)
}

impl Datanode {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Its id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Waits until the volume manager refused this node for good, which stops it, and says why.
    pub async fn refused(&self) -> String {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The heartbeat was ended by a shutdown: it will not refuse any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops accepting, finishes what is queued, and writes the disks' checkpoints.
    pub async fn shutdown(self) {
        self.heartbeat.abort();
        let server = self.server.lock().take();
        if let Some(server) = server {
            server.shutdown().await;
        }
        let service = self.service.clone();
        let stopped = tokio::task::spawn_blocking(move || service.disks().for_each(|disk| disk.stop())).await;
        if stopped.is_err() {
            tracing::error!("a disk could not be stopped in order; its next start scans");
        }
    }
}

impl Drop for Datanode {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}
