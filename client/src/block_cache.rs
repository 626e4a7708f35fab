//! Verified bytes of shards in memory, by blocks: what [`Blocks`] decides, under a lock of its own, and the waiting for it.

use crate::core::blocks::{BlockKey, Blocks, Looked};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The cache of one mount.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Mutex<Blocks<Bytes>>,
    loaded: Notify,
}

impl BlockCache {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { blocks: Mutex::new(Blocks::new(budget_bytes)), loaded: Notify::new() }
    }

    /// Bytes held and being loaded.
    pub(crate) fn held_bytes(&self) -> usize {
        self.blocks.lock().held_bytes()
    }

    /// The most of them ever.
    pub(crate) fn most_held_bytes(&self) -> usize {
        self.blocks.lock().most_held_bytes()
    }

    /// Forgets all blocks; what is being loaded is not taken in.
    pub(crate) fn clear(&self) {
        self.blocks.lock().clear();
        self.loaded.notify_waiters();
    }

    /// Looks all these blocks up at one moment.
    pub(crate) fn look<'a>(&self, keys: impl Iterator<Item = BlockKey> + 'a) -> Vec<Looked<Bytes>> {
        let mut blocks = self.blocks.lock();
        keys.map(|key| blocks.look(&key)).collect()
    }

    /// Claims the loading of those blocks that nobody has or loads, as far as there is room. The claim ends when it is dropped.
    pub(crate) fn claim(&self, wanted: impl Iterator<Item = (BlockKey, usize)>) -> Claim<'_> {
        let mut blocks = self.blocks.lock();
        let keys = wanted.filter(|(key, length_bytes)| blocks.claim(*key, *length_bytes)).map(|(key, _)| key).collect();
        Claim { cache: self, keys }
    }

    /// Waits until the block is not being loaded any more.
    pub(crate) async fn wait(&self, key: &BlockKey) {
        loop {
            let notified = self.loaded.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if !matches!(self.blocks.lock().look(key), Looked::Loading) {
                return;
            }
            notified.await;
        }
    }
}

/// Blocks that the holder loads. Those it did not fill become absent again when it is dropped, whatever happened.
pub(crate) struct Claim<'a> {
    cache: &'a BlockCache,
    keys: Vec<BlockKey>,
}

impl Claim<'_> {
    pub(crate) fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// Takes in what came in one answer of `body_bytes`.
    pub(crate) fn fill(&mut self, body_bytes: usize, blocks: Vec<(BlockKey, Bytes)>) {
        // From here on they are anybody's: evicted, they may be claimed by another.
        self.keys.retain(|key| blocks.iter().all(|(filled, _)| filled != key));
        self.cache.blocks.lock().fill(body_bytes, blocks);
        self.cache.loaded.notify_waiters();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut blocks = self.cache.blocks.lock();
        self.keys.iter().for_each(|key| blocks.abandon(key));
        drop(blocks);
        self.cache.loaded.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_common::ChunkId;
    use std::sync::Arc;

    fn key(block: u32) -> BlockKey {
        BlockKey { chunk: ChunkId(1), shard: 0, block }
    }

    /// Interleaving: what one has loaded is evicted, and claimed by another, before the first is done with the rest.
    #[test]
    fn a_claim_that_ends_leaves_alone_what_it_has_filled() {
        let cache = BlockCache::new(1000);
        let mut first = cache.claim([(key(1), 100)].into_iter());
        first.fill(2000, vec![(key(1), Bytes::from_static(b"x"))]);
        let second = cache.claim([(key(1), 100)].into_iter());
        drop(first);
        assert!(matches!(cache.look([key(1)].into_iter())[..], [Looked::Loading]));
        drop(second);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_when_the_loader_gives_up() {
        let cache = Arc::new(BlockCache::new(1000));
        let claim = cache.claim([(key(1), 100)].into_iter());
        assert_eq!(claim.keys(), [key(1)]);
        let waiter = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { cache.wait(&key(1)).await }
        });
        tokio::task::yield_now().await;
        drop(claim);
        waiter.await.unwrap();
        assert_eq!(cache.held_bytes(), 0);
    }
}
