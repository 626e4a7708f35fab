//! Mounting: finds the volume, opens a session, starts the background work; and the end of it.

use crate::block_cache::BlockCache;
use crate::chunk_reader::ChunkReader;
use crate::core::effects::{Answer, Call};
use crate::core::members::Members;
use crate::core::sabotage::Sabotage;
use crate::core::{Core, Settings};
use crate::network::{Network, RealNetwork, ask_volmgr};
use crate::runtime::{Runtime, TokioRuntime, within};
use crate::shell::Shell;
use crate::{Error, UnflushedFile, paths};
use holdfast_common::{ClusterId, Incarnation, NodeId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::control::{Volume, VolumeState};
use holdfast_transport::{Client, ClientLimits, Identity};
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// Dirty data's share of the memory budget; the rest is for readahead, cached blocks and maps.
const DIRTY_SHARE: usize = 2;
/// The extent maps' share.
const MAP_SHARE: usize = 8;
/// Longest flush at the end, unless said otherwise; what is not flushed then is reported.
pub(crate) const SHUTDOWN_FLUSH_MAX: Duration = Duration::from_secs(15);
/// Looking up the paths of what was not flushed is a courtesy.
const SHUTDOWN_NAMING_MAX: Duration = Duration::from_secs(1);
/// Telling the table that the session ends is a courtesy; the lease ends it anyway.
const SHUTDOWN_CLOSE_MAX: Duration = Duration::from_secs(2);

/// Volume to mount, and how.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The volume manager, host:port.
    pub volmgr: String,
    /// Name that the volume was created under.
    pub volume: String,
    /// Names this client on this host: a later mount with the same key fences this one. Host and mount point.
    pub client_key: Vec<u8>,
    /// Shown to people in lists of sessions.
    pub description: String,
    /// Every change is refused with [`Error::ReadOnly`].
    pub read_only: bool,
    /// Budget of dirty data, readahead and caches together (D12).
    pub memory_bytes: usize,
    /// The rule that is broken: only simulations set it.
    pub sabotage: Sabotage,
}

pub(crate) struct Mounted {
    pub(crate) read_only: bool,
    pub(crate) volume: VolumeId,
    pub(crate) shell: Arc<Shell>,
    pub(crate) reader: Arc<ChunkReader>,
}

fn code_of(volume: &Volume) -> Result<CodeMode, Error> {
    CodeMode::new(volume.data_shards, volume.parity_shards)
        .map_err(|e| Error::Mount(format!("volume {}: {e}", volume.name)))
}

async fn find_volume(config: &MountConfig) -> Result<Volume, Error> {
    let volume = ask_volmgr(&config.volmgr, &config.volume).await.map_err(|status| match status.code() {
        tonic::Code::NotFound => {
            Error::Mount(format!("there is no volume named {} at {}", config.volume, config.volmgr))
        }
        tonic::Code::Unavailable => {
            Error::Mount(format!("the volume manager at {} cannot be reached: {}", config.volmgr, status.message()))
        }
        _ => Error::Mount(format!("the volume manager at {} refused: {}", config.volmgr, status.message())),
    })?;
    may_mount(&volume)?;
    Ok(volume)
}

fn may_mount(volume: &Volume) -> Result<(), Error> {
    let why = match VolumeState::try_from(volume.state) {
        Ok(VolumeState::Active) => return Ok(()),
        Ok(VolumeState::Creating) => "is still being created",
        Ok(VolumeState::Deleting) => "is being deleted",
        Err(_) => "is in a state that this client is too old to know",
    };
    Err(Error::Mount(format!("volume {} {why}", volume.name)))
}

impl Mounted {
    pub(crate) async fn new(config: MountConfig) -> Result<Arc<Self>, Error> {
        let volume = find_volume(&config).await?;
        let cluster: ClusterId = volume.cluster.parse().map_err(|_| {
            Error::Mount(format!("the volume manager at {} answered an impossible cluster id", config.volmgr))
        })?;
        let transport = Client::new(Identity { cluster }, ClientLimits::default());
        let network = RealNetwork { transport, volmgr: config.volmgr.clone(), volume: config.volume.clone() };
        // Seeded by the process: nobody outside can tell a nonce beforehand.
        let seed = RandomState::new().hash_one(&config.client_key);
        Self::over(config, &volume, Arc::new(network), Arc::new(TokioRuntime::current()), seed).await
    }

    /// Mounts a volume that is known over a network that stands.
    pub(crate) async fn over(
        config: MountConfig,
        volume: &Volume,
        network: Arc<dyn Network>,
        runtime: Arc<dyn Runtime>,
        seed: u64,
    ) -> Result<Arc<Self>, Error> {
        let (id, incarnation) = (VolumeId(volume.volume), Incarnation(volume.incarnation));
        let dirty_bytes = config.memory_bytes / DIRTY_SHARE;
        let map_bytes = config.memory_bytes / MAP_SHARE;
        let settings = Settings {
            volume: id,
            incarnation,
            replicas: volume.metanodes.iter().map(|e| NodeId(e.node)).collect(),
            code: code_of(volume)?,
            limited: volume.quota_bytes > 0,
            client_key: config.client_key,
            description: config.description,
            dirty_bytes,
            map_bytes,
            seed,
            sabotage: config.sabotage,
        };
        let mut members = Members::default();
        members.learn_endpoints(&volume.metanodes);
        let shell = Shell::start(|now| Core::new(settings, members, now), (network, runtime), id, incarnation);
        shell.run(Call::Start).await?;
        let reader = Arc::new(ChunkReader {
            shell: Arc::clone(&shell),
            volume: id,
            incarnation,
            cache: BlockCache::new(config.memory_bytes - dirty_bytes - map_bytes),
            latency: Mutex::new(ChunkReader::initial_latency()),
        });
        Ok(Arc::new(Self { read_only: config.read_only, volume: id, shell, reader }))
    }

    /// Flushes, ends the session.
    pub(crate) async fn shutdown(&self, flush_max: Duration) -> Result<(), Error> {
        let runtime = &*self.shell.runtime;
        let flushed = within(runtime, flush_max, self.shell.run(Call::Sync)).await;
        let mut unflushed = self.shell.with(|core, _| [core.unflushed(), core.untold()].concat());
        unflushed.sort_unstable();
        unflushed.dedup();
        let mut files: Vec<_> = unflushed.iter().map(|inode| UnflushedFile { inode: *inode, path: None }).collect();
        within(runtime, SHUTDOWN_NAMING_MAX, paths::find(&self.shell, &mut files)).await;
        if within(runtime, SHUTDOWN_CLOSE_MAX, self.shell.run(Call::Close)).await.is_none() {
            tracing::debug!("the table was not told that the session ends");
        }
        self.reader.cache.clear();
        match flushed {
            Some(Ok(Answer::Done)) if files.is_empty() => Ok(()),
            _ => Err(Error::Unflushed(files)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_volume_is_mounted() {
        let states = [VolumeState::Active as i32, VolumeState::Creating as i32, VolumeState::Deleting as i32, 99];
        let said = states.map(|state| {
            let volume = Volume { name: "v".to_owned(), state, ..Volume::default() };
            may_mount(&volume).err().map(|error| error.to_string())
        });
        let parts = ["still being created", "being deleted", "too old to know"];
        assert_eq!(said[0], None);
        for (said, part) in said[1..].iter().zip(parts) {
            assert!(said.as_ref().is_some_and(|said| said.contains(part)), "{said:?} without {part}");
        }
    }
}
