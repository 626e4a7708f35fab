//! Blocks of shards in memory, and the choice of those that go: the index and the budget of the block cache. Pure;
//! bytes are opaque.
//!
//! Chunks are immutable, so a block is never stale: nothing here is ever invalidated, only evicted. Each block is loaded once,
//! however many readers want it at the same time.
//!
//! **What is counted.** Blocks come as slices of an answer's body, and one of them keeps the whole body in memory. So a body is
//! counted, whole, and evicted, whole, when none of its blocks was used since it was last looked at. Copying every block out
//! instead would be one more pass over all that is read, and blocks of one answer were asked for together because one
//! reader wants them together. A block that is being loaded is counted from its claim on, so that answers under way have their
//! room, too; what finds none is read without being kept.
//!
//! It is a value beside the core, not a part of it: a warm read looks at every block it touches, and a step of the core for each
//! costs many times the look, under the lock that everything else wants. No decision of the core depends on it.

use holdfast_common::ChunkId;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

/// Bytes of a block: a part of one shard. Shorter at a shard's end.
pub(crate) const BLOCK_BYTES: u32 = 256 << 10;
/// Memory of a block beside its bytes: its places in the tree and in its body's list, rounded up.
const ENTRY_BYTES: usize = 256;

/// Name of a block: a part of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub(crate) chunk: ChunkId,
    pub(crate) shard: u8,
    pub(crate) block: u32,
}

/// State of a block that is looked up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Looked<B> {
    Here(B),
    /// Another reader loads it.
    Loading,
    /// No reader has asked for it.
    Absent,
}

#[derive(Debug)]
enum Slot<B> {
    /// Bytes that it is counted with until they are here.
    Loading(usize),
    /// The bytes, and whether they were used since eviction last passed them.
    Ready(B, bool),
}

/// Blocks that came in one answer, and go together.
#[derive(Debug)]
struct Body {
    held_bytes: usize,
    keys: Vec<BlockKey>,
}

/// The blocks of one mount; `B` is a block's bytes, cheap to clone.
#[derive(Debug)]
pub(crate) struct Blocks<B> {
    slots: BTreeMap<BlockKey, Slot<B>>,
    /// Eviction order: oldest first, second chance for the used.
    bodies: VecDeque<Body>,
    ready_bytes: usize,
    loading_bytes: usize,
    most_held_bytes: usize,
    budget_bytes: usize,
}

impl<B: Clone> Blocks<B> {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            bodies: VecDeque::new(),
            ready_bytes: 0,
            loading_bytes: 0,
            most_held_bytes: 0,
            budget_bytes,
        }
    }

    /// Bytes of the bodies held, and of the blocks being loaded. Never above the budget.
    pub(crate) fn held_bytes(&self) -> usize {
        self.ready_bytes + self.loading_bytes
    }

    /// Most bytes held after any change.
    pub(crate) fn most_held_bytes(&self) -> usize {
        self.most_held_bytes
    }

    /// Forgets everything. Claims are void.
    pub(crate) fn clear(&mut self) {
        *self = Self { most_held_bytes: self.most_held_bytes, ..Self::new(self.budget_bytes) };
    }

    pub(crate) fn look(&mut self, key: &BlockKey) -> Looked<B> {
        match self.slots.get_mut(key) {
            Some(Slot::Ready(bytes, used)) => {
                *used = true;
                Looked::Here(bytes.clone())
            }
            Some(Slot::Loading(_)) => Looked::Loading,
            None => Looked::Absent,
        }
    }

    /// Claims the loading of a block of that length. Not if somebody has or loads it, nor if blocks being loaded take up the
    /// budget. A claim ends by [`Blocks::fill`] or [`Blocks::abandon`].
    pub(crate) fn claim(&mut self, key: BlockKey, length_bytes: usize) -> bool {
        let counted = length_bytes + ENTRY_BYTES;
        if self.loading_bytes + counted > self.budget_bytes {
            return false;
        }
        let Entry::Vacant(slot) = self.slots.entry(key) else { return false };
        slot.insert(Slot::Loading(counted));
        self.loading_bytes += counted;
        self.evict();
        true
    }

    /// Takes in what came in one answer of `body_bytes`. Blocks that were not claimed are left out.
    pub(crate) fn fill(&mut self, body_bytes: usize, blocks: Vec<(BlockKey, B)>) {
        let mut keys = Vec::with_capacity(blocks.len());
        for (key, bytes) in blocks {
            if let Some(slot) = self.slots.get_mut(&key)
                && let Slot::Loading(counted) = slot
            {
                self.loading_bytes -= *counted;
                *slot = Slot::Ready(bytes, false);
                keys.push(key);
            }
        }
        if keys.is_empty() {
            return;
        }
        let held_bytes = body_bytes + keys.len() * ENTRY_BYTES;
        self.ready_bytes += held_bytes;
        self.bodies.push_back(Body { held_bytes, keys });
        self.evict();
    }

    /// A claim that was not filled ends: the block is absent again.
    pub(crate) fn abandon(&mut self, key: &BlockKey) {
        if let Some(Slot::Loading(counted)) = self.slots.get(key) {
            self.loading_bytes -= counted;
            self.slots.remove(key);
        }
    }

    fn evict(&mut self) {
        while self.held_bytes() > self.budget_bytes
            && let Some(oldest) = self.bodies.pop_front()
        {
            if self.take_used(&oldest.keys) {
                self.bodies.push_back(oldest);
                continue;
            }
            self.ready_bytes -= oldest.held_bytes;
            for key in &oldest.keys {
                self.slots.remove(key);
            }
        }
        self.most_held_bytes = self.most_held_bytes.max(self.held_bytes());
    }

    /// Whether one of the blocks was used since it was last asked.
    fn take_used(&mut self, keys: &[BlockKey]) -> bool {
        let mut was_used = false;
        for key in keys {
            if let Some(Slot::Ready(_, used)) = self.slots.get_mut(key) {
                was_used |= std::mem::take(used);
            }
        }
        was_used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: usize = 10_000;

    fn key(block: u32) -> BlockKey {
        BlockKey { chunk: ChunkId(1), shard: 0, block }
    }

    fn load(blocks: &mut Blocks<u32>, keys: &[u32], body_bytes: usize) {
        assert!(keys.iter().all(|n| blocks.claim(key(*n), body_bytes / keys.len())));
        blocks.fill(body_bytes, keys.iter().map(|n| (key(*n), *n)).collect());
    }

    fn here(blocks: &mut Blocks<u32>, keys: std::ops::Range<u32>) -> Vec<u32> {
        keys.filter(|n| matches!(blocks.slots.get(&key(*n)), Some(Slot::Ready(..)))).collect()
    }

    #[test]
    fn a_block_is_claimed_once_and_free_again_after_a_failure() {
        let mut blocks = Blocks::new(BODY);
        assert!(blocks.claim(key(1), 100) && blocks.claim(key(2), 100));
        assert!(!blocks.claim(key(1), 100));
        assert_eq!(blocks.look(&key(1)), Looked::Loading);
        blocks.fill(100, vec![(key(1), 'x')]);
        blocks.abandon(&key(2));
        assert_eq!((blocks.look(&key(1)), blocks.look(&key(2))), (Looked::Here('x'), Looked::Absent));
        assert_eq!(blocks.held_bytes(), 100 + ENTRY_BYTES);
    }

    #[test]
    fn a_body_goes_when_none_of_its_blocks_is_used_and_then_whole() {
        let mut blocks = Blocks::new(3 * BODY);
        load(&mut blocks, &[1, 2], BODY);
        load(&mut blocks, &[3, 4], BODY);
        assert_eq!(blocks.look(&key(2)), Looked::Here(2));
        load(&mut blocks, &[5, 6], BODY);
        assert_eq!(here(&mut blocks, 0..9), [1, 2, 5, 6], "the used one keeps its neighbour, as both keep the body");
        assert_eq!(blocks.held_bytes(), 2 * (BODY + 2 * ENTRY_BYTES));
    }

    /// An answer of which only one block was right.
    #[test]
    fn a_block_of_a_larger_body_is_counted_as_the_body() {
        let mut blocks = Blocks::new(2 * BODY);
        assert!(blocks.claim(key(1), 100));
        blocks.fill(BODY, vec![(key(1), 1)]);
        assert_eq!(blocks.held_bytes(), BODY + ENTRY_BYTES);
        load(&mut blocks, &[2], BODY);
        assert_eq!(here(&mut blocks, 0..9), [2]);
    }

    #[test]
    fn blocks_being_loaded_take_up_the_budget_and_no_more() {
        let mut blocks = Blocks::<u32>::new(BODY);
        let claimed = (0..100).filter(|n| blocks.claim(key(*n), 1000)).count();
        assert_eq!(claimed, BODY / (1000 + ENTRY_BYTES));
        blocks.fill(BODY + 1, vec![(key(0), 0)]);
        assert_eq!(blocks.look(&key(0)), Looked::Absent, "a body that has no room is not kept");
    }

    proptest! {
        /// Random loads, looks and failures: the budget holds after every one, and nothing is counted that is not there.
        #[test]
        fn the_budget_holds(ops in proptest::collection::vec((0u8..4, 0u32..30, 1u32..4, 1usize..4000), 1..200)) {
            let mut blocks = Blocks::new(BODY);
            let mut loading: Vec<(BlockKey, usize)> = Vec::new();
            for (kind, first, count, length) in ops {
                match kind {
                    0 | 1 => {
                        let keys = (first..first + count).map(key);
                        loading.extend(keys.filter(|key| blocks.claim(*key, length)).map(|key| (key, length)));
                    }
                    2 => {
                        let some: Vec<_> = loading.drain(..loading.len().min(first as usize / 4)).collect();
                        let body_bytes = some.iter().map(|(_, length)| length).sum::<usize>() + length / 8;
                        blocks.fill(body_bytes, some.into_iter().map(|(key, _)| (key, first)).collect());
                    }
                    _ => {
                        let _ = blocks.look(&key(first));
                        loading.pop().iter().for_each(|(key, _)| blocks.abandon(key));
                    }
                }
                prop_assert!(blocks.held_bytes() <= BODY);
                let ready: usize = blocks.bodies.iter().map(|body| body.keys.len()).sum();
                prop_assert_eq!(blocks.slots.len(), ready + loading.len());
                prop_assert_eq!(blocks.loading_bytes, loading.iter().map(|(_, length)| length + ENTRY_BYTES).sum::<usize>());
                prop_assert_eq!(blocks.ready_bytes, blocks.bodies.iter().map(|body| body.held_bytes).sum::<usize>());
            }
        }
    }
}
