//! A datanode's life: formatted, started, served, stopped (R28).
//!
//! The first start waits for the volume manager, which gives node and disks their ids and the node the cluster's secret.
//! From then on the node serves without it: its address may have changed, which it says in the background.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_common::{DiskId, NodeId};
use holdfast_node::superblock::{self, SuperblockError};
use holdfast_node::{Complaint, ListenError, NodeSuperblock, Reserved, VolumeManager, is_final};
use holdfast_proto::control::RegisterResponse;
use holdfast_storage::{DirectoryLock, RealDirectory, create_directories, sync_parent};
use holdfast_transport::{Identity, Server, ServerLimits};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::disks::{self, Found, lock_disk};
use crate::error::StartError;
use crate::heartbeat::{self, Heart};
use crate::memory::Memory;
use crate::process::Process;
use crate::service::DataService;
use crate::store::StoreOptions;
use crate::store::recover;
use crate::store::volumes::VOLUMES_FILE;
use crate::superblock::{DiskSuperblock, NODE_KIND};

/// Configuration of a datanode.
#[derive(Clone, Debug)]
pub struct DatanodeConfig {
    /// Its own directory, formatted before; not one of `disks`.
    pub directory: PathBuf,
    /// The directories of its disks, formatted with it.
    pub disks: Vec<PathBuf>,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The volume manager, host:port.
    pub volmgr: String,
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

/// A disk is empty, or was formatted by a run that did not finish and never used.
fn check_empty(disk: &Path) -> Result<(), StartError> {
    match DiskSuperblock::read(disk) {
        Ok(superblock) if superblock.node.0 == 0 => return Ok(()),
        Ok(_) => return Err(SuperblockError::Exists { path: disk.to_owned() }.into()),
        Err(SuperblockError::NotFormatted { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let ours = ["lock", "lost+found", "volumes", "volumes.tmp", "superblock.tmp", "superblock-copy.tmp"];
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
    start_in(config, &Process::default()).await
}

/// [`start`], beside other datanodes of this process.
///
/// # Errors
/// [`StartError`]; nothing serves then.
pub async fn start_in(config: DatanodeConfig, process: &Process) -> Result<Datanode, StartError> {
    start_node(config, StoreOptions::default(), process).await
}

/// [`start`], with other sizes of segments or an artificial size of the disks.
///
/// # Errors
/// [`StartError`]; nothing serves then.
pub async fn start_with(config: DatanodeConfig, options: StoreOptions) -> Result<Datanode, StartError> {
    start_node(config, options, &Process::default()).await
}

async fn start_node(config: DatanodeConfig, options: StoreOptions, process: &Process) -> Result<Datanode, StartError> {
    let (lock, found) = {
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
    let (superblock, found, registered) = identify(&config, superblock, &volmgr, address, found).await?;
    let memory = {
        let (directory, ids) = (config.directory.clone(), found.iter().filter(|disk| disk.id.0 != 0));
        let ids: Vec<_> = ids.map(|disk| (disk.path.clone(), disk.id)).collect();
        Arc::new(tokio::task::spawn_blocking(move || remember(&directory, &ids)).await??)
    };
    let (disks, lost) = disks::open(found, &memory, &options, process).await?;
    let (node, secret) = (superblock.node, superblock.secret.clone());
    let service = Arc::new(DataService::new(node, secret, disks, lost, memory));
    drop(reserved);
    let identity = Identity { cluster: superblock.cluster };
    let server = Server::bind(address, identity, service.clone(), ServerLimits::default()).await;
    let server = Arc::new(Mutex::new(Some(server.map_err(|source| ListenError { address, source })?)));
    let (stop, stopped) = watch::channel(None);
    let directory = config.directory.clone();
    let heart = Heart { service: service.clone(), volmgr, superblock, directory, address };
    let serving = server.clone();
    let beating = tokio::spawn(async move {
        let why = heartbeat::run(heart, registered).await;
        tracing::error!(reason = why, "this node stops serving");
        let running = serving.lock().take();
        if let Some(running) = running {
            running.shutdown().await;
        }
        let _ = stop.send(Some(why));
    });
    let heartbeat = beating.abort_handle();
    Ok(Datanode { node, local_addr: address, service, server, heartbeat, stopped, _lock: lock })
}

/// Remembers the disks that are there, and what the node remembers for those that are not. Blocks.
fn remember(directory: &Path, ids: &[(PathBuf, DiskId)]) -> Result<Memory, StartError> {
    disks::remember(directory, ids)?;
    Memory::load(Arc::new(RealDirectory::new(directory))).map_err(|source| {
        let path = directory.join(VOLUMES_FILE);
        StartError::Memory { path, source }
    })
}

/// Locks and checks everything the node needs; changes nothing.
fn claim(config: &DatanodeConfig) -> Result<(DirectoryLock, Vec<Found>), StartError> {
    if config.disks.is_empty() {
        return Err(StartError::NoDisks);
    }
    // Before the lock: a directory that is none of ours gets no lock file.
    NodeSuperblock::read(&config.directory, NODE_KIND)?;
    let lock = DirectoryLock::acquire(&config.directory)?;
    let superblock = NodeSuperblock::read(&config.directory, NODE_KIND)?;
    let found = disks::claim(&config.directory, &superblock, &config.disks)?;
    Ok((lock, found))
}

/// Makes sure that node and disks have ids. The last part says whether the volume manager knows this start already.
async fn identify(
    config: &DatanodeConfig,
    superblock: NodeSuperblock,
    volmgr: &VolumeManager,
    address: SocketAddr,
    found: Vec<Found>,
) -> Result<(NodeSuperblock, Vec<Found>, bool), StartError> {
    let newcomer = !superblock.is_registered() || found.iter().any(|disk| disk.is_told_of() && disk.id.0 == 0);
    let told = found.iter().filter(|disk| disk.is_told_of());
    let disks: Vec<_> = told.map(|disk| (disk.id, disk.first_look())).collect();
    let request = heartbeat::registration(&superblock, address, &disks);
    let answer = if newcomer {
        let mut complaint = Complaint::new("waiting for the volume manager to register");
        volmgr.register_at_last(|| ready(request.clone()), |status| complaint.about(status)).await
    } else {
        volmgr.register(request).await
    };
    match answer {
        Ok(response) => {
            let (config, superblock) = (config.clone(), superblock.clone());
            let persist = move || persist_ids(&config, &superblock, &response, found);
            let (superblock, found) = tokio::task::spawn_blocking(persist).await??;
            Ok((superblock, found, true))
        }
        Err(status) if is_final(&status) => Err(StartError::Refused(status.message().to_owned())),
        Err(_) => Ok((superblock, found, false)),
    }
}

/// Disks first: as long as the node's superblock has no id, the next start registers again under the same nonce and is
/// given the same ids.
fn persist_ids(
    config: &DatanodeConfig,
    superblock: &NodeSuperblock,
    response: &RegisterResponse,
    mut found: Vec<Found>,
) -> Result<(NodeSuperblock, Vec<Found>), StartError> {
    let new = superblock.registered(response).ok_or(StartError::BadRegistration)?;
    let ids: Vec<DiskId> = response.disks.iter().copied().map(DiskId).collect();
    if ids.len() != found.iter().filter(|disk| disk.is_told_of()).count() || ids.contains(&DiskId(0)) {
        return Err(StartError::BadRegistration);
    }
    for (disk, id) in found.iter_mut().filter(|disk| disk.is_told_of()).zip(&ids) {
        if disk.id.0 != 0 && disk.id != *id {
            return Err(StartError::ForeignDisk { path: disk.path.clone() });
        }
        disk.id = *id;
        if matches!(disk.state, disks::State::Claimed(_)) {
            let old = DiskSuperblock::read(&disk.path)?;
            let theirs = DiskSuperblock { cluster: new.cluster, node: new.node, disk: *id, ..old };
            if old.disk.0 != 0 && old != theirs {
                return Err(StartError::ForeignDisk { path: disk.path.clone() });
            }
            if old != theirs {
                theirs.write(&disk.path)?;
            }
        }
    }
    if new != *superblock {
        new.write(&config.directory, NODE_KIND)?;
    }
    Ok((new, found))
}

impl Datanode {
    /// Address it listens on, with the port that it got.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Id that the volume manager gave it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Waits until the volume manager refused this node for good, which stops it, and says why.
    pub async fn refused(&self) -> String {
        holdfast_node::reason_of_stop(&self.stopped).await
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
