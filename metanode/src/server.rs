//! A metanode's life: formatted, started, served, stopped.

use crate::directory::{CONSENSUS_DIRECTORY, KIND};
use crate::heartbeat;
use crate::hosted::Context;
use crate::leading;
use crate::machine::{TableMachine, volume_of};
use crate::neighbours::Neighbours;
use crate::outbox::RaftOutbox;
use crate::service::MetaService;
use holdfast_common::{ClusterId, NodeId};
use holdfast_consensus::{ExpectedLog, Node, NodeConfig, OpenError, format_log, release_reserve};
use holdfast_node::superblock::{self, SuperblockError};
use holdfast_node::{Complaint, ListenError, NodeSuperblock, Reserved, VolumeManager, is_final};
use holdfast_proto::control::Role;
use holdfast_storage::{DirectoryLock, LockError, is_no_space, sync_parent};
use holdfast_transport::{Client, ClientLimits, Server, ServerLimits};
use parking_lot::Mutex;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError};

/// Configuration of a metanode.
#[derive(Clone, Debug)]
pub struct MetanodeConfig {
    /// Formatted before; holds superblock, log and snapshots.
    pub directory: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The volume manager, host:port.
    pub volmgr: String,
}

/// Reason why a metanode was not formatted or did not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum StartError {
    /// The directory is not what it should be.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// Somebody else runs it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The address is taken or not ours.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The log did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// This node's votes and promises are lost (R23). Nothing was hosted.
    #[error(
        "{}: {source}; leave this node down, its tables' other replicas serve, or bring it back from them: holdfast metanode recover --dir {0} --volmgr {volmgr}",
        directory.display()
    )]
    Lost {
        directory: PathBuf,
        volmgr: String,
        /// Failure of its log to open.
        source: OpenError,
    },
    /// It lost its log, and has not got all of its tables back yet. Nothing was hosted.
    #[error("{}: bringing this metanode back is not finished; go on with: holdfast metanode recover --dir {0} --volmgr {volmgr}", directory.display())]
    Unfinished { directory: PathBuf, volmgr: String },
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

/// Makes a directory the home of a new metanode. It gets its cluster and its id when it is first started.
///
/// # Errors
/// [`StartError`], among others [`SuperblockError::Exists`]: a formatted directory is left as it is.
pub async fn format(directory: &Path) -> Result<(), StartError> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || format_blocking(&directory)).await?
}

fn format_blocking(directory: &Path) -> Result<(), StartError> {
    let io_error = |source| StartError::Io { path: directory.to_owned(), source };
    holdfast_storage::create_directories(directory).map_err(io_error)?;
    let _lock = DirectoryLock::acquire(directory)?;
    superblock::must_not_exist(directory)?;
    with_log(directory, NodeSuperblock::fresh().map_err(io_error)?)?;
    sync_parent(directory).map_err(io_error)
}

/// Makes the log, and then the superblock that names it: from then on no other log is ever made in its place (R23).
fn with_log(directory: &Path, identity: NodeSuperblock) -> Result<NodeSuperblock, StartError> {
    let log = Some(format_log(&directory.join(CONSENSUS_DIRECTORY))?);
    let identity = NodeSuperblock { log, ..identity };
    identity.write(directory, KIND)?;
    Ok(identity)
}

/// Writes down which log is this node's, in a directory from before that was done.
async fn name_log(directory: &Path, identity: NodeSuperblock, log: [u8; 16]) -> Result<NodeSuperblock, StartError> {
    if identity.log.is_some() {
        return Ok(identity);
    }
    let (directory, named) = (directory.to_owned(), NodeSuperblock { log: Some(log), ..identity });
    Ok(tokio::task::spawn_blocking(move || named.write(&directory, KIND).map(|()| named)).await??)
}

/// The cluster of a formatted directory; `None` if its metanode has not registered yet. Changes nothing.
///
/// # Errors
/// [`SuperblockError`]: no metanode's directory, one of a newer format, or a damaged one.
pub fn cluster_of(directory: &Path) -> Result<Option<ClusterId>, SuperblockError> {
    Ok(NodeSuperblock::read(directory, KIND)?.cluster())
}

/// A running metanode. Dropping it stops serving; [`Metanode::shutdown`] does so in order.
pub struct Metanode {
    context: Arc<Context>,
    address: SocketAddr,
    server: Arc<Mutex<Option<Server>>>,
    heartbeat: AbortHandle,
    stopped: watch::Receiver<Option<String>>,
    _lock: DirectoryLock,
}

impl Drop for Metanode {
    fn drop(&mut self) {
        self.heartbeat.abort();
        self.context.unhost_all();
    }
}

/// Starts the metanode of a formatted directory. Must run inside a tokio runtime. The first start waits until the
/// volume manager has given an id; later ones serve without it.
///
/// # Errors
/// [`StartError`]; nothing serves then.
pub async fn start(config: MetanodeConfig) -> Result<Metanode, StartError> {
    let directory = config.directory.clone();
    let lock = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || claim_to_serve(config)).await??
    };
    let volmgr = VolumeManager::new(&config.volmgr).map_err(|_| StartError::BadVolmgr(config.volmgr.clone()))?;
    let reserved = Reserved::take(config.listen)?;
    let address = reserved.address();
    let mut identity = {
        let directory = directory.clone();
        tokio::task::spawn_blocking(move || raise_generation(&directory)).await??
    };
    let newcomer = !identity.is_registered();
    if newcomer && identity.log.is_none() {
        // Formatted by a build that left this to the start. It is not registered, so it hosted nothing.
        let directory = directory.clone();
        identity = tokio::task::spawn_blocking(move || with_log(&directory, identity)).await??;
    }
    if newcomer {
        identity = first_registration(&volmgr, &directory, identity, address).await?;
    }
    // Pieces of snapshots take the second connection, so that no heartbeat of Raft queues behind them.
    let limits = ClientLimits { connections_per_peer: 2, ..ClientLimits::default() };
    let client = Client::new(holdfast_transport::Identity { cluster: identity.cluster }, limits);
    let (node, neighbours) = open(&config, &identity, &client).await?;
    identity = name_log(&directory, identity, node.log_identity()).await?;
    let context = Arc::new(Context::new(identity, node, neighbours, client, volmgr));
    let registered = newcomer || registered_at_once(&context, address).await?;
    drop(reserved);
    let service = Arc::new(MetaService::new(Arc::clone(&context)));
    let transport_identity = holdfast_transport::Identity { cluster: context.identity.cluster };
    let server = Server::bind(address, transport_identity, service, ServerLimits::default()).await;
    let server = Arc::new(Mutex::new(Some(server.map_err(|source| ListenError { address, source })?)));
    for group in context.node.groups() {
        leading::host(&context, volume_of(group));
    }
    let interval = Duration::from_millis(context.identity.heartbeat_interval_ms.max(1).into());
    let (stop, stopped) = watch::channel(None);
    let (beating, serving) = (Arc::clone(&context), Arc::clone(&server));
    let heartbeat = tokio::spawn(async move {
        let why = heartbeat::run(Arc::clone(&beating), directory, address, registered, interval).await;
        tracing::error!(reason = why, "this metanode stops serving");
        // The log first: from then on it neither votes nor answers for a table.
        stop_log(&beating).await;
        stop_server(&serving).await;
        let _ = stop.send(Some(why));
    });
    let heartbeat = heartbeat.abort_handle();
    tracing::info!(node = %context.identity.node, %address, "metanode serves");
    Ok(Metanode { context, address, server, heartbeat, stopped, _lock: lock })
}

/// Serves no table any more and stops the log. Everything answered is durable anyway.
async fn stop_log(context: &Context) {
    context.unhost_all();
    let node = Arc::clone(&context.node);
    if let Err(error) = tokio::task::spawn_blocking(move || node.shutdown()).await {
        tracing::error!(%error, "the log did not stop");
    }
}

async fn stop_server(server: &Mutex<Option<Server>>) {
    let running = server.lock().take();
    if let Some(running) = running {
        running.shutdown().await;
    }
}

impl Metanode {
    /// Address it listens on, with the port that it got.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Id that the volume manager gave it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.context.identity.node
    }

    /// Waits until this metanode stopped serving by itself, and says why: the volume manager refused it for good, or its
    /// directory is gone or another.
    pub async fn refused(&self) -> String {
        holdfast_node::reason_of_stop(&self.stopped).await
    }

    /// Stops serving and stops the log. Everything answered is durable anyway.
    pub async fn shutdown(self) {
        self.heartbeat.abort();
        self.context.unhost_all();
        stop_server(&self.server).await;
        stop_log(&self.context).await;
    }
}

/// Refuses a directory that is being brought back.
fn claim_to_serve(config: MetanodeConfig) -> Result<DirectoryLock, StartError> {
    let MetanodeConfig { directory, volmgr, .. } = config;
    match claim(&directory)? {
        (NodeSuperblock { recovering: None, .. }, lock) => Ok(lock),
        _ => Err(StartError::Unfinished { directory, volmgr }),
    }
}

/// Locks a metanode's directory, and reads its superblock; one that is none gets no lock file.
pub(crate) fn claim(directory: &Path) -> Result<(NodeSuperblock, DirectoryLock), StartError> {
    NodeSuperblock::read(directory, KIND)?;
    let lock = DirectoryLock::acquire(directory)?;
    // Again: who held it may have written another.
    Ok((NodeSuperblock::read(directory, KIND)?, lock))
}

/// On a full disk the new superblock takes of the room that is kept for a snapshot.
fn raise_generation(directory: &Path) -> Result<NodeSuperblock, SuperblockError> {
    match NodeSuperblock::raise_generation(directory, KIND) {
        Err(SuperblockError::Io { source, .. })
            if is_no_space(&source) && release_reserve(&directory.join(CONSENSUS_DIRECTORY)) =>
        {
            NodeSuperblock::raise_generation(directory, KIND)
        }
        other => other,
    }
}

/// Asks for an id, a secret and a cluster until the volume manager answers, and writes them down.
async fn first_registration(
    volmgr: &VolumeManager,
    directory: &Path,
    identity: NodeSuperblock,
    address: SocketAddr,
) -> Result<NodeSuperblock, StartError> {
    let request = identity.registration(Role::Metanode, address, Vec::new());
    let mut complaint = Complaint::new("waiting for the volume manager to register this node");
    let registered = volmgr.register_at_last(|| ready(request.clone()), |status| complaint.about(status)).await;
    let answer = registered.map_err(|status| StartError::Refused(status.message().to_owned()))?;
    let identity = identity.registered(&answer).ok_or(StartError::BadRegistration)?;
    let (directory, written) = (directory.to_owned(), identity.clone());
    tokio::task::spawn_blocking(move || written.write(&directory, KIND)).await??;
    Ok(identity)
}

/// Tells the volume manager the address, if it answers now. It may be dead; it may also know better who this is.
async fn registered_at_once(context: &Context, address: SocketAddr) -> Result<bool, StartError> {
    match context.volmgr.register(context.identity.registration(Role::Metanode, address, Vec::new())).await {
        Ok(_) => Ok(true),
        Err(status) if is_final(&status) => Err(StartError::Refused(status.message().to_owned())),
        Err(_) => Ok(false),
    }
}

/// Opens log and tables. Blocks for as long as replaying takes, on a thread of its own.
async fn open(
    config: &MetanodeConfig,
    identity: &NodeSuperblock,
    client: &Client,
) -> Result<(Arc<Node<TableMachine>>, Arc<Neighbours>), StartError> {
    let (directory, volmgr, node_id) = (config.directory.clone(), config.volmgr.clone(), identity.node);
    let at = directory.clone();
    let neighbours = tokio::task::spawn_blocking(move || Neighbours::load(&at)).await??;
    let neighbours = Arc::new(neighbours);
    let outbox = RaftOutbox::new(identity.node, identity.generation, client.clone(), Arc::clone(&neighbours));
    let outbox = Arc::new(outbox);
    // Whichever log is there is its own in a directory from before identities were written down.
    let log = identity.log.map_or(ExpectedLog::Any, ExpectedLog::Identity);
    let config = NodeConfig { log, ..NodeConfig::new(node_id, directory.join(CONSENSUS_DIRECTORY)) };
    let carrier = Arc::clone(&outbox);
    let opened = tokio::task::spawn_blocking(move || Node::open(config, carrier, |_| TableMachine::default())).await?;
    let node = opened.map_err(|error| match error.is_lost() {
        true => StartError::Lost { directory, volmgr, source: error },
        false => StartError::Open(error),
    })?;
    let node = Arc::new(node);
    outbox.report_to(&node);
    Ok((node, neighbours))
}
