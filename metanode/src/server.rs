//! A metanode's life: formatted, started, served, stopped.

use crate::heartbeat::{self, REGISTER_RETRY, registration};
use crate::hosted::{Context, Identity};
use crate::machine::TableMachine;
use crate::neighbours::Neighbours;
use crate::outbox::RaftOutbox;
use crate::service::MetaService;
use crate::superblock::{self, FileError, SUPERBLOCK};
use crate::volmgr::{VolumeManager, is_final};
use holdfast_common::durable::{DirectoryLock, LockError, sync_parent};
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, NodeId, VolumeId};
use holdfast_consensus::{Node, NodeConfig, OpenError};
use holdfast_proto::control::{RegisterRequest, RegisterResponse, Role};
use holdfast_proto::metanode::MetanodeSuperblock;
use holdfast_transport::{Client, ClientLimits, Server, ServerLimits};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinError};

/// Where log and snapshots live, below the directory.
const CONSENSUS_DIRECTORY: &str = "consensus";
/// Between heartbeats until the volume manager said otherwise.
const HEARTBEAT_INTERVAL_MS_DEFAULT: u32 = 500;

/// Where a metanode lives and listens, and whom it belongs to.
#[derive(Clone, Debug)]
pub struct MetanodeConfig {
    /// Its directory, formatted before.
    pub directory: PathBuf,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The volume manager, host:port.
    pub volmgr: String,
}

/// Why a metanode was not formatted or did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody else runs it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {}", bind_reason(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
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

fn bind_reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        _ => source.to_string(),
    }
}

/// Makes a directory the home of a new metanode. It gets its cluster and its id when it is first started.
///
/// # Errors
/// [`StartError`], among others [`FileError::Exists`]: a formatted directory is left as it is.
pub async fn format(directory: &Path) -> Result<(), StartError> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || format_blocking(&directory)).await?
}

fn format_blocking(directory: &Path) -> Result<(), StartError> {
    let io_error = |source| StartError::Io { path: directory.to_owned(), source };
    std::fs::create_dir_all(directory).map_err(io_error)?;
    let _lock = DirectoryLock::acquire(directory)?;
    if superblock::exists(directory, SUPERBLOCK) {
        return Err(FileError::Exists { path: directory.to_owned() }.into());
    }
    let mut nonce = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut nonce)).map_err(io_error)?;
    let record = MetanodeSuperblock {
        // 0 would say that there is none.
        format_nonce: u64::from_le_bytes(nonce).max(1),
        heartbeat_interval_ms: HEARTBEAT_INTERVAL_MS_DEFAULT,
        ..MetanodeSuperblock::default()
    };
    superblock::write(directory, SUPERBLOCK, &record)?;
    sync_parent(directory).map_err(io_error)
}

/// The cluster of a formatted directory; `None` if its metanode has not registered yet. Changes nothing.
///
/// # Errors
/// [`FileError`]: no metanode's directory, one of a newer format, or a damaged one.
pub fn cluster_of(directory: &Path) -> Result<Option<ClusterId>, FileError> {
    let record: MetanodeSuperblock = superblock::read(directory, SUPERBLOCK)?;
    if record.cluster.is_empty() {
        return Ok(None);
    }
    let damaged = || FileError::Damaged { path: directory.to_owned(), file: "superblock" };
    Ok(Some(ClusterId(record.cluster.as_ref().try_into().map_err(|_| damaged())?)))
}

/// A running metanode. Dropping it stops serving; [`Metanode::shutdown`] does so in order.
pub struct Metanode {
    context: Arc<Context>,
    address: SocketAddr,
    server: Option<Server>,
    heartbeat: AbortHandle,
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
    // Before the lock: a directory that is none of ours gets no lock file.
    superblock::read::<MetanodeSuperblock>(&directory, SUPERBLOCK)?;
    let lock = DirectoryLock::acquire(&directory)?;
    let volmgr = VolumeManager::new(&config.volmgr).map_err(|_| StartError::BadVolmgr(config.volmgr.clone()))?;
    let listen_error = |source| StartError::Listen { address: config.listen, source };
    // Taken now, so that the address is known before the first registration and a port in use is found before anything
    // is changed; given up right before the server takes it.
    let reserved = TcpListener::bind(config.listen).map_err(listen_error)?;
    let address = reserved.local_addr().map_err(listen_error)?;
    let mut record = raise_generation(directory.clone()).await?;
    let newcomer = record.node == 0;
    if newcomer {
        record = first_registration(&volmgr, &directory, record, address).await?;
    }
    let identity = identity(&directory, &record)?;
    // Pieces of snapshots take the second connection, so that no heartbeat of Raft queues behind them.
    let limits = ClientLimits { connections_per_peer: 2, ..ClientLimits::default() };
    let client = Client::new(holdfast_transport::Identity { cluster: identity.cluster }, limits);
    let (node, neighbours) = open(&directory, &identity, &client).await?;
    let context = Arc::new(Context::new(identity, node, neighbours, client, volmgr));
    let registered = newcomer || registered_at_once(&context, address).await?;
    drop(reserved);
    let service = Arc::new(MetaService::new(Arc::clone(&context)));
    let transport_identity = holdfast_transport::Identity { cluster: context.identity.cluster };
    let server =
        Server::bind(address, transport_identity, service, ServerLimits::default()).await.map_err(listen_error)?;
    for group in context.node.groups() {
        context.host(VolumeId(group));
    }
    let interval = Duration::from_millis(record.heartbeat_interval_ms.max(1).into());
    let heartbeat = tokio::spawn(heartbeat::run(Arc::clone(&context), address, registered, interval)).abort_handle();
    tracing::info!(node = %context.identity.node, %address, "metanode serves");
    Ok(Metanode { context, address, server: Some(server), heartbeat, _lock: lock })
}

impl Metanode {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its id in the cluster.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.context.identity.node
    }

    /// Stops serving and stops the log. Everything answered is durable anyway.
    pub async fn shutdown(mut self) {
        self.heartbeat.abort();
        self.context.unhost_all();
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        let node = Arc::clone(&self.context.node);
        if let Err(error) = tokio::task::spawn_blocking(move || node.shutdown()).await {
            tracing::error!(%error, "the log did not stop");
        }
    }
}

/// Durable before anything is sent: peers refuse a lower generation than they heard (R28).
async fn raise_generation(directory: PathBuf) -> Result<MetanodeSuperblock, StartError> {
    tokio::task::spawn_blocking(move || {
        let mut record: MetanodeSuperblock = superblock::read(&directory, SUPERBLOCK)?;
        record.generation += 1;
        superblock::write(&directory, SUPERBLOCK, &record)?;
        Ok(record)
    })
    .await?
}

/// Asks for an id, a secret and a cluster until the volume manager answers, and writes them down.
async fn first_registration(
    volmgr: &VolumeManager,
    directory: &Path,
    record: MetanodeSuperblock,
    address: SocketAddr,
) -> Result<MetanodeSuperblock, StartError> {
    let request = RegisterRequest {
        cluster: String::new(),
        node: 0,
        role: Role::Metanode.into(),
        address: address.to_string(),
        generation: record.generation,
        disks: Vec::new(),
        format_nonce: record.format_nonce,
    };
    let mut told = false;
    let response = loop {
        match volmgr.register(request.clone()).await {
            Ok(response) => break response,
            Err(status) if is_final(&status) => return Err(StartError::Refused(status.message().to_owned())),
            Err(status) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(reason = status.message(), "waiting for the volume manager to register this node");
                }
            }
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    };
    let record = registered_record(record, &response).ok_or(StartError::BadRegistration)?;
    let (directory, written) = (directory.to_owned(), record.clone());
    tokio::task::spawn_blocking(move || superblock::write(&directory, SUPERBLOCK, &written)).await??;
    Ok(record)
}

fn registered_record(record: MetanodeSuperblock, response: &RegisterResponse) -> Option<MetanodeSuperblock> {
    let cluster: ClusterId = response.cluster.parse().ok()?;
    (response.node != 0 && response.secret.len() == 32).then(|| MetanodeSuperblock {
        cluster: cluster.0.to_vec().into(),
        node: response.node,
        secret: response.secret.clone(),
        heartbeat_interval_ms: response.heartbeat_interval_ms,
        ..record
    })
}

fn identity(directory: &Path, record: &MetanodeSuperblock) -> Result<Identity, StartError> {
    let damaged = || FileError::Damaged { path: directory.to_owned(), file: "superblock" };
    Ok(Identity {
        cluster: ClusterId(record.cluster.as_ref().try_into().map_err(|_| damaged())?),
        node: NodeId(record.node),
        generation: record.generation,
        secret: ClusterSecret(record.secret.as_ref().try_into().map_err(|_| damaged())?),
    })
}

/// Tells the volume manager the address, if it answers now. It may be dead; it may also know better who this is.
async fn registered_at_once(context: &Context, address: SocketAddr) -> Result<bool, StartError> {
    match context.volmgr.register(registration(context, address)).await {
        Ok(_) => Ok(true),
        Err(status) if is_final(&status) => Err(StartError::Refused(status.message().to_owned())),
        Err(_) => Ok(false),
    }
}

/// Opens log and tables. Blocks for as long as replaying takes, on a thread of its own.
async fn open(
    directory: &Path,
    identity: &Identity,
    client: &Client,
) -> Result<(Arc<Node<TableMachine>>, Arc<Neighbours>), StartError> {
    let (at, node_id) = (directory.to_owned(), identity.node);
    let neighbours = tokio::task::spawn_blocking(move || Neighbours::load(&at)).await??;
    let neighbours = Arc::new(neighbours);
    let outbox = RaftOutbox::new(identity.node, identity.generation, client.clone(), Arc::clone(&neighbours));
    let outbox = Arc::new(outbox);
    let config = NodeConfig::new(node_id, directory.join(CONSENSUS_DIRECTORY));
    let carrier = Arc::clone(&outbox);
    let node = tokio::task::spawn_blocking(move || Node::open(config, carrier, |_| TableMachine::default())).await??;
    let node = Arc::new(node);
    outbox.report_to(&node);
    Ok((node, neighbours))
}
