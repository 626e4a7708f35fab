//! Debts of disks: chunks that they still hold and the table has forgotten, or never knew. The floor (R4), and what a
//! member owes that did not confirm a deletion. Both are settled by comparing the disk with the table, below the floor.

use super::records::Owed;
use super::{Outcome, Table};
use crate::sabotage::Sabotage;
use holdfast_common::proof::ShardName;
use holdfast_common::{ChunkId, DiskId, NodeId};
use holdfast_proto::meta::{Code, ForgetChunks, MutateResponse, RaiseFloor, Swept};
use std::collections::BTreeSet;

impl Table {
    pub(super) fn raise_floor(&mut self, op: &RaiseFloor) -> Outcome<MutateResponse> {
        if op.floor > self.counters.next_chunk {
            return Err(Code::Invalid.into());
        }
        self.counters.floor = self.counters.floor.max(op.floor);
        Ok(MutateResponse::default())
    }

    /// Members that did not confirm owe the highest of the chunks: one number a disk, however long it stays away.
    pub(super) fn note_owed(&mut self, op: &ForgetChunks) {
        let known = op.chunks.iter().copied().filter(|chunk| *chunk < self.counters.next_chunk).max();
        let Some(chunk) = known.map(ChunkId).filter(|_| self.feature_level() >= 2) else { return };
        if self.breaks(Sabotage::OwedNotWritten) {
            return;
        }
        for disk in op.disks.iter().copied().map(DiskId) {
            let former = self.owed.get(&disk).copied().unwrap_or_default();
            let owed = Owed { chunk: former.chunk.max(chunk), entries: former.entries + 1 };
            self.owed.remove(&disk);
            self.owed.insert(disk, owed);
        }
    }

    /// Settles what a disk owes. An entry since the comparison began may name a chunk that it found in the table, and left:
    /// such a disk owes on.
    pub(super) fn swept(&mut self, op: &Swept) -> Outcome<MutateResponse> {
        if self.feature_level() < 2 || op.floor > self.counters.floor {
            return Err(Code::Invalid.into());
        }
        let disk = DiskId(op.disk);
        let Some(owed) = self.owed.get(&disk) else { return Ok(MutateResponse::default()) };
        let is_settled = owed.chunk.0 < op.floor && owed.entries == op.owed_entries;
        if is_settled || self.breaks(Sabotage::SweptClearsAll) {
            self.owed.remove(&disk);
        }
        Ok(MutateResponse::default())
    }

    /// Id below which chunks are committed no more (R4).
    #[must_use]
    pub fn floor(&self) -> ChunkId {
        ChunkId(self.counters.floor)
    }

    /// First id of the next reservation of chunks.
    #[must_use]
    pub fn next_chunk(&self) -> ChunkId {
        ChunkId(self.counters.next_chunk)
    }

    /// Debt of a disk.
    #[must_use]
    pub fn owed(&self, disk: DiskId) -> Option<Owed> {
        self.owed.get(&disk).copied()
    }

    /// Every disk that is a member of a block group, with its node, ascending.
    #[must_use]
    pub fn members(&self) -> BTreeSet<(NodeId, DiskId)> {
        let slots = self.groups.iter().flat_map(|(_, group)| group.slots.iter());
        slots.filter(|slot| slot.disk.0 != 0).map(|slot| (slot.node, slot.disk)).collect()
    }

    /// Whether this shard belongs on this disk, by a chunk that is live or not yet forgotten. A vacant slot does not say whose it
    /// was: what any disk holds for it counts.
    #[must_use]
    pub fn places(&self, name: &ShardName, disk: DiskId) -> bool {
        let Some(chunk) = self.chunks.get(&name.chunk).filter(|chunk| chunk.nonce == name.nonce) else { return false };
        if chunk.live_bytes == 0 && self.breaks(Sabotage::FreedChunksOrphaned) {
            return false;
        }
        let slot = chunk.slots.get(usize::from(name.shard)).copied();
        let group = self.groups.get(&chunk.group);
        let slot = slot.and_then(|slot| group?.slots.get(usize::from(slot)));
        slot.is_some_and(|slot| slot.disk == disk || slot.disk.0 == 0)
    }
}
