//! The session with the metadata table: opened, kept alive, replaced when it was lost; chunk ids reserved under it.

use crate::Error;
use crate::cluster_map::ClusterMap;
use crate::metadata::Metadata;
use holdfast_common::limits::SESSION_KEEPALIVE_MS;
use holdfast_common::{ChunkId, InodeId, SessionId};
use holdfast_proto::meta::{
    CloseSession, GetGroups, KeepAlive, OpenSession, ReadResponse, ReserveChunks, mutation, read_request,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// Chunk ids reserved at once. A range costs one Raft entry; unused ids cost nothing.
const CHUNK_RANGE_COUNT: u32 = 4096;
/// Inodes released at most in one keep-alive; the rest goes with the next.
const RELEASED_MAX: usize = 16 << 10;

/// One mount's session.
pub(crate) struct SessionKeeper {
    metadata: Arc<Metadata>,
    map: Arc<ClusterMap>,
    client_key: Vec<u8>,
    description: String,
    random: RandomState,
    chunks: tokio::sync::Mutex<ChunkRange>,
    opens: Mutex<Opens>,
    /// Held for reading while an inode is opened, for writing while releases are told: otherwise a release told late
    /// could undo an open of the same inode told before.
    order: tokio::sync::RwLock<()>,
    /// Held while a lost session is replaced.
    replacing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct ChunkRange {
    session: SessionId,
    next: u64,
    end: u64,
}

#[derive(Debug, Default)]
struct Opens {
    counts: BTreeMap<InodeId, u32>,
    released: BTreeSet<InodeId>,
}

impl SessionKeeper {
    /// Opens the session; a former one of the same key is fenced.
    pub(crate) async fn open(
        metadata: Arc<Metadata>,
        map: Arc<ClusterMap>,
        client_key: Vec<u8>,
        description: String,
    ) -> Result<Self, Error> {
        let keeper = Self {
            metadata,
            map,
            client_key,
            description,
            random: RandomState::new(),
            chunks: tokio::sync::Mutex::default(),
            opens: Mutex::default(),
            order: tokio::sync::RwLock::new(()),
            replacing: tokio::sync::Mutex::new(()),
        };
        keeper.open_session(keeper.client_key.clone()).await?;
        keeper.refresh_groups().await?;
        Ok(keeper)
    }

    async fn open_session(&self, client_key: Vec<u8>) -> Result<(), Error> {
        let op = OpenSession { client_key: client_key.into(), description: self.description.clone() };
        let response = self.metadata.mutate(mutation::Op::OpenSession(op)).await?;
        self.metadata.set_session(SessionId(response.session));
        Ok(())
    }

    /// Replaces the session that was lost, once for all who noticed. Its successor goes by a key of its own: were it
    /// the old key, two mounts of one key would fence each other for ever.
    pub(crate) async fn replace(&self, lost: SessionId) -> Result<(), Error> {
        let _only_one = self.replacing.lock().await;
        if self.metadata.session() != lost {
            return Ok(());
        }
        tracing::warn!(session = %lost, "the session was closed by the cluster; a new one is opened");
        let mut key = self.client_key.clone();
        key.extend_from_slice(&self.random.hash_one(lost).to_le_bytes());
        self.open_session(key).await?;
        self.keep_alive(true).await
    }

    /// Ends the session.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.metadata.mutate(mutation::Op::CloseSession(CloseSession {})).await.map(|_| ())
    }

    /// A chunk id never used before (R1, R3), and a nonce.
    pub(crate) async fn next_chunk(&self) -> Result<(ChunkId, u64), Error> {
        let mut range = self.chunks.lock().await;
        let session = self.metadata.session();
        if range.session != session || range.next >= range.end {
            let op = ReserveChunks { count: CHUNK_RANGE_COUNT };
            let response = self.metadata.mutate(mutation::Op::ReserveChunks(op)).await?;
            *range = ChunkRange {
                session,
                next: response.first_chunk,
                end: response.first_chunk + u64::from(CHUNK_RANGE_COUNT),
            };
        }
        let chunk = ChunkId(range.next);
        range.next += 1;
        Ok((chunk, self.random.hash_one(chunk)))
    }

    /// Runs `open`, which registers the inode with the leader, and counts it as open. `open` tells which inode it is.
    pub(crate) async fn opening<T>(
        &self,
        open: impl Future<Output = Result<(InodeId, T), Error>>,
    ) -> Result<(InodeId, T), Error> {
        let _order = self.order.read().await;
        let (inode, answer) = open.await?;
        let mut opens = self.opens.lock();
        *opens.counts.entry(inode).or_default() += 1;
        opens.released.remove(&inode);
        drop(opens);
        Ok((inode, answer))
    }

    /// Counts one open less; the leader is told with the next keep-alive.
    pub(crate) fn released(&self, inode: InodeId) {
        let mut opens = self.opens.lock();
        if let Some(count) = opens.counts.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                opens.counts.remove(&inode);
                opens.released.insert(inode);
            }
        }
    }

    /// Renews the session once, tells releases, and follows changes of groups and addresses.
    pub(crate) async fn keep_alive(&self, attach: bool) -> Result<(), Error> {
        let _order = self.order.write().await;
        let (released, open) = {
            let opens = self.opens.lock();
            let released: Vec<InodeId> = opens.released.iter().copied().take(RELEASED_MAX).collect();
            let open = if attach { opens.counts.keys().map(|i| i.0).collect() } else { Vec::new() };
            (released, open)
        };
        let op = KeepAlive { released: released.iter().map(|i| i.0).collect(), attach, open, suspects: Vec::new() };
        let response = self.metadata.read(read_request::Op::KeepAlive(op)).await?;
        {
            let mut opens = self.opens.lock();
            for inode in &released {
                opens.released.remove(inode);
            }
        }
        drop(_order);
        self.after_keep_alive(response, attach).await
    }

    async fn after_keep_alive(&self, response: ReadResponse, attached: bool) -> Result<(), Error> {
        if response.groups_version != self.map.version() {
            self.refresh_groups().await?;
        }
        if response.attach_needed && !attached {
            return Box::pin(self.keep_alive(true)).await;
        }
        Ok(())
    }

    /// Asks the leader for groups and addresses.
    pub(crate) async fn refresh_groups(&self) -> Result<(), Error> {
        let response = self.metadata.read(read_request::Op::GetGroups(GetGroups::default())).await?;
        self.map.learn(response.groups, &response.nodes, response.groups_version);
        Ok(())
    }

    /// Renews for ever. `on_lost` is called before a lost session is replaced.
    pub(crate) async fn run(&self, on_lost: impl Fn()) {
        let mut ticks = tokio::time::interval(Duration::from_millis(SESSION_KEEPALIVE_MS.into()));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let session = self.metadata.session();
            match self.keep_alive(false).await {
                Ok(()) => {}
                Err(Error::SessionLost) => {
                    on_lost();
                    if let Err(error) = self.replace(session).await {
                        tracing::warn!(%error, "no new session yet");
                    }
                }
                Err(error) => tracing::warn!(%error, "the session could not be renewed"),
            }
        }
    }
}
