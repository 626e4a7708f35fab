//! Verified bytes of shards in memory, by blocks, within a budget.
//!
//! Chunks are immutable, so a block is never stale: nothing here is ever invalidated, only evicted. Each block is
//! loaded once, however many readers want it at the same time.

use bytes::Bytes;
use holdfast_common::ChunkId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::Notify;

/// Bytes of a block: a part of one shard. Shorter at a shard's end.
pub(crate) const BLOCK_BYTES: u32 = 256 << 10;

/// Which part of which shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub(crate) chunk: ChunkId,
    pub(crate) shard: u8,
    pub(crate) block: u32,
}

#[derive(Debug)]
enum Slot {
    Loading,
    /// The block, and whether it was used since it was last looked at for eviction.
    Ready(Bytes, bool),
}

#[derive(Debug, Default)]
struct Blocks {
    slots: BTreeMap<BlockKey, Slot>,
    /// Eviction order: oldest first, second chance for the used.
    order: VecDeque<BlockKey>,
    bytes: usize,
}

/// The cache of one mount.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Mutex<Blocks>,
    budget_bytes: usize,
    loaded: Notify,
}

/// What the cache says of a block.
pub(crate) enum Looked {
    Here(Bytes),
    /// Somebody loads it; wait by [`BlockCache::wait`].
    Loading,
    /// Nobody has it.
    Absent,
}

impl BlockCache {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { blocks: Mutex::default(), budget_bytes, loaded: Notify::new() }
    }

    pub(crate) fn look(&self, key: &BlockKey) -> Looked {
        match self.blocks.lock().slots.get_mut(key) {
            Some(Slot::Ready(bytes, used)) => {
                *used = true;
                Looked::Here(bytes.clone())
            }
            Some(Slot::Loading) => Looked::Loading,
            None => Looked::Absent,
        }
    }

    /// Claims the loading of those blocks that nobody has or loads. The claim ends when the ticket is dropped.
    pub(crate) fn claim(&self, keys: impl IntoIterator<Item = BlockKey>) -> Claim<'_> {
        let mut blocks = self.blocks.lock();
        let mut claimed = Vec::new();
        for key in keys {
            if let std::collections::btree_map::Entry::Vacant(slot) = blocks.slots.entry(key) {
                slot.insert(Slot::Loading);
                claimed.push(key);
            }
        }
        Claim { cache: self, keys: claimed }
    }

    /// Waits until the block is not being loaded any more.
    pub(crate) async fn wait(&self, key: &BlockKey) {
        loop {
            let notified = self.loaded.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if !matches!(self.blocks.lock().slots.get(key), Some(Slot::Loading)) {
                return;
            }
            notified.await;
        }
    }

    fn insert(&self, key: BlockKey, bytes: Bytes) {
        let mut blocks = self.blocks.lock();
        blocks.bytes += bytes.len();
        if let Some(Slot::Ready(old, _)) = blocks.slots.insert(key, Slot::Ready(bytes, false)) {
            blocks.bytes -= old.len();
        } else {
            blocks.order.push_back(key);
        }
        while blocks.bytes > self.budget_bytes {
            let Some(oldest) = blocks.order.pop_front() else { break };
            match blocks.slots.get_mut(&oldest) {
                Some(Slot::Ready(_, used)) if *used => {
                    *used = false;
                    blocks.order.push_back(oldest);
                }
                Some(Slot::Ready(old, _)) => {
                    let freed = old.len();
                    blocks.bytes -= freed;
                    blocks.slots.remove(&oldest);
                }
                Some(Slot::Loading) | None => {}
            }
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

    pub(crate) fn fill(&self, key: BlockKey, bytes: Bytes) {
        self.cache.insert(key, bytes);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut blocks = self.cache.blocks.lock();
        for key in &self.keys {
            if matches!(blocks.slots.get(key), Some(Slot::Loading)) {
                blocks.slots.remove(key);
            }
        }
        drop(blocks);
        self.cache.loaded.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: u32) -> BlockKey {
        BlockKey { chunk: ChunkId(1), shard: 0, block }
    }

    #[test]
    fn a_block_is_claimed_once_and_free_again_after_a_failure() {
        let cache = BlockCache::new(100);
        let claim = cache.claim([key(1), key(2)]);
        assert_eq!(claim.keys().len(), 2);
        assert!(cache.claim([key(1)]).keys().is_empty());
        claim.fill(key(1), Bytes::from_static(b"one"));
        drop(claim);
        assert!(matches!(cache.look(&key(1)), Looked::Here(b) if b == "one"));
        assert!(matches!(cache.look(&key(2)), Looked::Absent));
    }

    #[test]
    fn the_budget_holds_and_what_is_used_stays_longer() {
        let cache = BlockCache::new(100);
        let put = |n| cache.claim([key(n)]).fill(key(n), Bytes::from(vec![0; 40]));
        put(1);
        put(2);
        assert!(matches!(cache.look(&key(1)), Looked::Here(_)));
        put(3);
        assert!(matches!(cache.look(&key(1)), Looked::Here(_)));
        assert!(matches!(cache.look(&key(2)), Looked::Absent));
        assert!(matches!(cache.look(&key(3)), Looked::Here(_)));
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_when_the_loader_gives_up() {
        let cache = std::sync::Arc::new(BlockCache::new(100));
        let claim = cache.claim([key(1)]);
        let waiter = tokio::spawn({
            let cache = std::sync::Arc::clone(&cache);
            async move { cache.wait(&key(1)).await }
        });
        tokio::task::yield_now().await;
        drop(claim);
        waiter.await.unwrap();
    }
}
