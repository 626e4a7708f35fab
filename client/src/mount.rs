//! Mounting: finds the volume, opens a session, starts the background work; and the end of it.

use crate::block_cache::BlockCache;
use crate::chunk_reader::ChunkReader;
use crate::chunk_writer::ChunkWriter;
use crate::cluster_map::ClusterMap;
use crate::files::Files;
use crate::flusher::Flusher;
use crate::metadata::Metadata;
use crate::quota::Quota;
use crate::session::SessionKeeper;
use crate::space::Space;
use crate::{Error, MountConfig};
use holdfast_common::{ClusterId, Incarnation, NodeId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::control::{Volume, VolumeState};
use holdfast_transport::{Client, ClientLimits, Identity};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Dirty data's share of the memory budget; the rest is for readahead and cached blocks.
const DIRTY_SHARE: usize = 2;
/// Flushing at the end gives up after this; what is not flushed then is reported.
const SHUTDOWN_FLUSH_MAX: Duration = Duration::from_secs(15);
/// Reserved quota that nothing dirty needs is given back this often.
const QUOTA_RETURN_INTERVAL: Duration = Duration::from_secs(1);
/// Telling the table that the session ends is a courtesy; the lease ends it anyway.
const SHUTDOWN_CLOSE_MAX: Duration = Duration::from_secs(2);

/// The parts of a mounted volume.
pub(crate) struct Mounted {
    pub(crate) read_only: bool,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) session: Arc<SessionKeeper>,
    pub(crate) files: Files,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) reader: Arc<ChunkReader>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

fn code_of(volume: &Volume) -> Result<CodeMode, Error> {
    CodeMode::new(volume.data_shards, volume.parity_shards)
        .map_err(|e| Error::Mount(format!("volume {}: {e}", volume.name)))
}

async fn find_volume(map: &ClusterMap, config: &MountConfig) -> Result<Volume, Error> {
    let volume = map.ask_volmgr().await.map_err(|status| match status.code() {
        tonic::Code::NotFound => {
            Error::Mount(format!("there is no volume named {} at {}", config.volume, config.volmgr))
        }
        tonic::Code::Unavailable => {
            Error::Mount(format!("the volume manager at {} cannot be reached: {}", config.volmgr, status.message()))
        }
        _ => Error::Mount(format!("the volume manager at {} refused: {}", config.volmgr, status.message())),
    })?;
    match volume.state() {
        VolumeState::Active => Ok(volume),
        VolumeState::Creating => Err(Error::Mount(format!("volume {} is still being created", volume.name))),
        VolumeState::Deleting => Err(Error::Mount(format!("volume {} is being deleted", volume.name))),
    }
}

impl Mounted {
    pub(crate) async fn new(config: MountConfig) -> Result<Arc<Self>, Error> {
        let map = Arc::new(ClusterMap::new(&config.volmgr, &config.volume));
        let volume = find_volume(&map, &config).await?;
        let code = code_of(&volume)?;
        let cluster: ClusterId = volume.cluster.parse().map_err(|_| {
            Error::Mount(format!("the volume manager at {} answered an impossible cluster id", config.volmgr))
        })?;
        map.learn_endpoints(&volume.metanodes);
        let transport = Client::new(Identity { cluster }, ClientLimits::default());
        let replicas = volume.metanodes.iter().map(|e| NodeId(e.node)).collect();
        let (id, incarnation) = (VolumeId(volume.volume), Incarnation(volume.incarnation));
        let metadata = Arc::new(Metadata::new(transport.clone(), id, incarnation, Arc::clone(&map), replicas));
        let session = Arc::new(
            SessionKeeper::open(Arc::clone(&metadata), Arc::clone(&map), config.client_key, config.description).await?,
        );
        let writer = Arc::new(ChunkWriter {
            transport: transport.clone(),
            map: Arc::clone(&map),
            session: Arc::clone(&session),
            volume: id,
            incarnation,
            code,
            latency: Mutex::new(ChunkWriter::initial_latency()),
        });
        let dirty_bytes = config.memory_bytes / DIRTY_SHARE;
        let space = Space::new(transport.clone(), Arc::clone(&map), Arc::clone(&metadata), code);
        let reader = Arc::new(ChunkReader {
            transport,
            map: Arc::clone(&map),
            volume: id,
            incarnation,
            cache: BlockCache::new(config.memory_bytes - dirty_bytes),
            latency: Mutex::new(ChunkReader::initial_latency()),
        });
        let quota = Arc::new(Quota::new(Arc::clone(&metadata), volume.quota_bytes > 0));
        let flusher = Arc::new(Flusher::new(Arc::clone(&metadata), writer, quota, space, dirty_bytes));
        let mounted = Arc::new(Self {
            read_only: config.read_only,
            metadata,
            session,
            files: Files::default(),
            flusher,
            reader,
            tasks: Mutex::default(),
        });
        mounted.start();
        Ok(mounted)
    }

    fn start(&self) {
        let flusher = Arc::clone(&self.flusher);
        let flushing = tokio::spawn(Arc::clone(&self.flusher).run());
        let session = Arc::clone(&self.session);
        let renewing = tokio::spawn(async move {
            session
                .run(|| {
                    flusher.drop_everything();
                    flusher.quota.reset();
                })
                .await;
        });
        let quota = Arc::clone(&self.flusher.quota);
        let returning = tokio::spawn(async move {
            loop {
                tokio::time::sleep(QUOTA_RETURN_INTERVAL).await;
                if let Err(error) = quota.give_back_unused().await {
                    tracing::debug!(%error, "unused quota was not given back");
                }
            }
        });
        self.tasks.lock().extend([flushing, renewing, returning]);
    }

    /// Flushes, ends the session, stops the background work.
    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        let flushed = timeout(SHUTDOWN_FLUSH_MAX, self.flusher.flush_everything()).await;
        self.flusher.stop();
        if timeout(SHUTDOWN_CLOSE_MAX, self.session.close()).await.is_err() {
            tracing::debug!("the table was not told that the session ends");
        }
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        flushed.map_err(|_| Error::TimedOut("flushing written data".to_owned()))
    }
}
