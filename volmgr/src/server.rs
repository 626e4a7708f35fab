//! The volume manager's life: formatted, started, served, stopped. Everything it decides is decided elsewhere.

mod core;
mod home;
mod route;
mod services;

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::{ClusterId, NodeId, random_bytes};
use holdfast_consensus::{
    ExpectedLog, GroupError, GroupMessage, Node, NodeConfig, OpenError, Outbox, format_log, release_reserve,
};
use holdfast_node::ListenError;
use holdfast_node::superblock::{self, Kind, SuperblockError};
use holdfast_proto::cluster::VolmgrSuperblock;
use holdfast_storage::{DirectoryLock, LockError, is_no_space, sync_parent};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tonic::transport::server::TcpIncoming;

use self::core::Core;
use self::home::Start;
use crate::machine::ClusterMachine;
use crate::state::{VOLMGR_GROUP, VOLMGR_NODE};

const KIND: Kind = Kind::superblock(*b"HFVOLMGR", "a volume manager's directory");
/// Directory of its log and snapshots, below its own.
const CONSENSUS_DIRECTORY: &str = "consensus";
/// A Raft group of one voter has nobody to wait for: short ticks make its only election short.
const TICK: Duration = Duration::from_millis(20);
/// Longest wait for connections to end at a shutdown; what is in flight then is cut, as by a crash.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// Requests of one connection at work at once; more wait in the connection. A client has a handful.
const REQUESTS_PER_CONNECTION_MAX: usize = 256;
/// Interval at which a silent connection is asked whether it lives, so that those of lost hosts do not pile up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval at which time is told to the liveness.
const LIVENESS_TICK: Duration = Duration::from_millis(250);

/// Configuration of a volume manager.
#[derive(Clone, Debug)]
pub struct VolmgrConfig {
    /// Formatted before; holds superblock, log and snapshots.
    pub directory: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Reason why a volume manager was not formatted or did not start.
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
    /// The state of the cluster is lost, and there is no other copy to make it from.
    #[error("{0}. There are none: bring the directory back as it was, from a backup; no new log is made in its place")]
    Lost(OpenError),
    /// The Raft group could not be made.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The Raft group does not answer.
    #[error("the volume manager's log does not accept entries: {0}")]
    Stuck(String),
}

/// Makes a directory the home of a new cluster's volume manager.
///
/// # Errors
/// [`StartError`], among others [`SuperblockError::Exists`]: a formatted directory is left as it is.
pub fn format(directory: &Path) -> Result<ClusterId, StartError> {
    let io_error = |source| StartError::Io { path: directory.to_owned(), source };
    holdfast_storage::create_directories(directory).map_err(io_error)?;
    // The log will hold the cluster's secret.
    std::fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(io_error)?;
    let _lock = DirectoryLock::acquire(directory)?;
    superblock::must_not_exist(directory)?;
    let cluster = ClusterId(random_bytes().map_err(io_error)?);
    let record = VolmgrSuperblock { cluster: cluster.0.to_vec().into(), ..VolmgrSuperblock::default() };
    with_log(directory, record)?;
    sync_parent(directory).map_err(io_error)?;
    Ok(cluster)
}

/// Makes the log, and then the superblock that names it: from then on no other log is ever made in its place (R23).
fn with_log(directory: &Path, record: VolmgrSuperblock) -> Result<VolmgrSuperblock, StartError> {
    let log = format_log(&directory.join(CONSENSUS_DIRECTORY))?;
    let record = VolmgrSuperblock { log: log.to_vec().into(), ..record };
    superblock::write(directory, KIND, &record)?;
    Ok(record)
}

/// The cluster whose volume manager lives in a directory.
///
/// # Errors
/// [`SuperblockError`].
pub fn cluster_of(directory: &Path) -> Result<ClusterId, SuperblockError> {
    let record: VolmgrSuperblock = superblock::read(directory, KIND)?;
    cluster_id(directory, &record)
}

fn cluster_id(directory: &Path, record: &VolmgrSuperblock) -> Result<ClusterId, SuperblockError> {
    <[u8; 16]>::try_from(&record.cluster[..]).map(ClusterId).map_err(|_| SuperblockError::damaged(directory))
}

/// A running volume manager.
pub struct Volmgr {
    local_addr: SocketAddr,
    cluster: ClusterId,
    running: Arc<Running>,
    watch: AbortHandle,
    /// Reason why it serves no more, once it does not.
    stopped: watch::Receiver<Option<String>>,
    _lock: DirectoryLock,
}

/// Parts that are stopped.
struct Running {
    node: Arc<Node<ClusterMachine>>,
    /// Sender of the order to end, and the server that waits for it; none once it was sent.
    server: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
    ticker: AbortHandle,
}

impl Running {
    /// Ends connections. What is in flight has a moment to end.
    async fn stop_server(&self) {
        self.ticker.abort();
        let running = self.server.lock().take();
        let Some((stop, mut server)) = running else { return };
        let _ = stop.send(());
        if tokio::time::timeout(SHUTDOWN_GRACE, &mut server).await.is_err() {
            server.abort();
        }
    }

    /// Stops the log: from then on nothing is answered but refusals.
    async fn stop_log(&self) {
        let node = Arc::clone(&self.node);
        if let Err(error) = tokio::task::spawn_blocking(move || node.shutdown()).await {
            tracing::error!(%error, "the volume manager's log did not stop");
        }
    }
}

/// Starts the volume manager of a formatted directory. Must run inside a tokio runtime.
///
/// # Errors
/// [`StartError`]; nothing serves then.
pub async fn start(config: VolmgrConfig) -> Result<Volmgr, StartError> {
    let directory = &config.directory;
    let lock = blocking(directory, |directory| {
        // Before the lock: a directory that is none of ours gets no lock file.
        cluster_of(directory)?;
        Ok(DirectoryLock::acquire(directory)?)
    })
    .await?;
    let listen_error = |source| ListenError { address: config.listen, source };
    // TCP_NODELAY belongs on the incoming itself: on the server builder it is lost, and small answers stall 40 ms.
    let incoming = TcpIncoming::bind(config.listen).map_err(listen_error)?.with_nodelay(Some(true));
    let local_addr = incoming.local_addr().map_err(listen_error)?;
    let (start, log) = blocking(directory, raise_generation).await?;
    let cluster = start.cluster;
    let node = Arc::new(open_consensus(directory, log).await?);
    let group = node.group(VOLMGR_GROUP).ok_or(GroupError::Stopped)?;
    let core = Arc::new(Core::new(cluster, group));
    core.initialise().await.map_err(|denial| StartError::Stuck(denial.detail))?;
    let ticker = tokio::spawn(tick(Arc::clone(&core))).abort_handle();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .serve_with_incoming_shutdown(route::Route::new(core), incoming, async move {
            let _ = stopped.await;
        });
    let server = tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the volume manager's server ended");
        }
    });
    let running = Arc::new(Running { node, server: Mutex::new(Some((stop, server))), ticker });
    let (watch, stopped) = watch_home(start, config.directory, Arc::clone(&running));
    Ok(Volmgr { local_addr, cluster, running, watch, stopped, _lock: lock })
}

/// Stops what runs when its directory was removed or replaced, and then says why.
fn watch_home(
    start: Start,
    directory: PathBuf,
    running: Arc<Running>,
) -> (AbortHandle, watch::Receiver<Option<String>>) {
    let (stop, stopped) = watch::channel(None);
    let watching = tokio::spawn(async move {
        let why = home::lost(&start, &directory).await.to_string();
        tracing::error!(reason = why, "this volume manager stops serving");
        // The log first: from then on nothing is acknowledged.
        running.stop_log().await;
        running.stop_server().await;
        let _ = stop.send(Some(why));
    });
    (watching.abort_handle(), stopped)
}

/// Runs what may wait for the disk off the runtime's threads.
async fn blocking<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce(&Path) -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    let directory = directory.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&directory)).await;
    done.map_err(|error| StartError::Stuck(error.to_string()))?
}

/// Raises the generation; says which start this is and which log must be there.
fn raise_generation(directory: &Path) -> Result<(Start, ExpectedLog), StartError> {
    let mut record: VolmgrSuperblock = superblock::read(directory, KIND)?;
    if record.generation == 0 && record.log.is_empty() {
        // Formatted by a build that left this to the first start.
        record = with_log(directory, record)?;
    }
    record.generation += 1;
    match superblock::write(directory, KIND, &record) {
        // On a full disk it takes of the room that is kept for a snapshot.
        Err(SuperblockError::Io { source, .. })
            if is_no_space(&source) && release_reserve(&directory.join(CONSENSUS_DIRECTORY)) =>
        {
            superblock::write(directory, KIND, &record)?;
        }
        written => written?,
    }
    let log = match &record.log[..] {
        [] => ExpectedLog::Any,
        log => ExpectedLog::Identity(log.try_into().map_err(|_| SuperblockError::damaged(directory))?),
    };
    Ok((Start::of(directory, &record)?, log))
}

async fn open_consensus(directory: &Path, log: ExpectedLog) -> Result<Node<ClusterMachine>, StartError> {
    blocking(directory, move |directory| {
        let config =
            NodeConfig { tick: TICK, log, ..NodeConfig::new(VOLMGR_NODE, directory.join(CONSENSUS_DIRECTORY)) };
        let node = Node::open(config, Arc::new(NoPeers), |_| ClusterMachine::default());
        let node = node.map_err(|error| if error.is_lost() { StartError::Lost(error) } else { error.into() })?;
        node.create_group(VOLMGR_GROUP, &[VOLMGR_NODE])?;
        if log == ExpectedLog::Any {
            let mut record: VolmgrSuperblock = superblock::read(directory, KIND)?;
            record.log = node.log_identity().to_vec().into();
            superblock::write(directory, KIND, &record)?;
        }
        Ok(node)
    })
    .await
}

async fn tick(core: Arc<Core>) {
    let mut interval = tokio::time::interval(LIVENESS_TICK);
    loop {
        interval.tick().await;
        core.tick();
    }
}

/// The only voter has nobody to write to.
struct NoPeers;

impl Outbox for NoPeers {
    fn send(&self, _to: NodeId, _messages: Vec<GroupMessage>) {}
    fn send_snapshot(&self, _to: NodeId, _message: GroupMessage, _file: PathBuf) {}
}

impl Volmgr {
    /// Address it listens on, with the port that it got.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Id of the cluster that it manages.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Waits until this volume manager stopped serving by itself, and says why: its directory is gone or another.
    pub async fn refused(&self) -> String {
        holdfast_node::reason_of_stop(&self.stopped).await
    }

    /// Stops answering and stops the log. Everything answered is durable anyway.
    pub async fn shutdown(self) {
        self.watch.abort();
        self.running.stop_server().await;
        self.running.stop_log().await;
    }
}

impl Drop for Volmgr {
    /// Its watch holds all that runs.
    fn drop(&mut self) {
        self.watch.abort();
    }
}
