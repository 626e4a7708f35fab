//! Contents of a disk, in memory: a cache of what its segments say, and the rules by which shards die.
//!
//! Pure: no file, no clock. The two rules that matter at a crash:
//! - a tombstone is needed until every record it killed is gone from the disk for good (R5, R7). Each such record pins
//!   it: in a small segment until the segment is recycled, in a bulk segment until its punch is synced;
//! - a shard that compaction copied stands in two segments under one version. The older copy is *stale*: a later
//!   tombstone must outlive it too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_common::{ChunkId, Nonce};
use imbl::{OrdMap, Vector};

use super::segment::{DATA_START, SegmentHeader, SegmentKind};
use super::types::{ChunkKey, Grave, ShardKey, Stripe, Target, VolumeKey};

/// Place and length of a record on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    /// Byte offset in the segment's file.
    pub(crate) offset: u64,
    /// Length of the whole record.
    pub(crate) bytes: u64,
}

/// A shard that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: Location,
    /// Sequence of the first append of this content: a tombstone of a higher version kills it.
    pub(crate) version: u64,
    /// The attempt it is of (R1).
    pub(crate) nonce: Nonce,
    pub(crate) shard_length_bytes: u32,
    pub(crate) chunk_length_bytes: u32,
    pub(crate) stripe: Arc<Stripe>,
}

/// Stage of a segment's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Ready to be written, holds nothing.
    Spare,
    /// Being appended to.
    Open,
    /// Full, or left behind by an earlier start: nothing is appended any more.
    Sealed,
    /// Everything that lived in it was copied elsewhere; free once a checkpoint no longer needs it.
    Drained,
}

/// A segment's accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentState {
    pub(crate) kind: SegmentKind,
    /// Life of the file: rises when it is made anew.
    pub(crate) generation: u64,
    pub(crate) size_bytes: u64,
    /// Offset of the next record.
    pub(crate) append: u64,
    /// Bytes of records that are needed: live shards and tombstones.
    pub(crate) live_bytes: u64,
    pub(crate) phase: Phase,
    /// Bytes the scan could not explain (R6).
    pub(crate) damaged_bytes: u64,
    /// Dead records that are not punched yet.
    pub(crate) punches_count: u32,
    /// Tombstones pinned by dead records in here, one item a record.
    pub(crate) pinned: Arc<Vec<Grave>>,
}

impl SegmentState {
    /// A segment that holds nothing yet.
    #[must_use]
    pub(crate) fn empty(header: &SegmentHeader) -> Self {
        Self {
            kind: header.kind,
            generation: header.generation,
            size_bytes: header.size_bytes,
            append: DATA_START,
            live_bytes: 0,
            phase: Phase::Spare,
            damaged_bytes: 0,
            punches_count: 0,
            pinned: Arc::default(),
        }
    }

    #[must_use]
    pub(crate) fn written_bytes(&self) -> u64 {
        self.append - DATA_START
    }
}

/// Range of a bulk segment that is to be given back to the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Punch {
    pub(crate) at: Location,
    /// Tombstone that waits for it; none if the volume's drop record is enough.
    pub(crate) grave: Option<Grave>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tombstone {
    pub(super) version: u64,
    pub(super) pins: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TombstoneRecord {
    pub(super) at: Location,
    pub(super) volume: VolumeKey,
    pub(super) targets: BTreeSet<Target>,
}

pub(super) type Shards = OrdMap<(ChunkId, u8), Entry>;

/// The index of one disk. A copy costs next to nothing, whatever the count of shards: a checkpoint is written from one, by
/// another thread, while this one goes on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(super) volumes: BTreeMap<VolumeKey, Shards>,
    pub(super) segments: BTreeMap<u32, SegmentState>,
    pub(super) tombstones: OrdMap<Grave, Tombstone>,
    pub(super) tombstone_records: OrdMap<u64, TombstoneRecord>,
    pub(super) stale: OrdMap<ShardKey, Vec<Location>>,
    pub(super) punches: Vector<Punch>,
    stripes: BTreeSet<Arc<Stripe>>,
    live_bytes: u64,
    punch_bytes: u64,
    shards_count: u64,
}

impl Index {
    /// Records of live shards, with what still waits to be punched: the bytes a disk counts as used.
    #[must_use]
    pub(crate) fn used_bytes(&self) -> u64 {
        self.live_bytes + self.punch_bytes
    }

    #[must_use]
    pub(crate) fn shards_count(&self) -> u64 {
        self.shards_count
    }

    #[must_use]
    pub(crate) fn damaged_bytes(&self) -> u64 {
        self.segments.values().map(|s| s.damaged_bytes).sum()
    }

    /// Returns the one shared copy of a stripe.
    pub(crate) fn intern(&mut self, stripe: &Stripe) -> Arc<Stripe> {
        if let Some(known) = self.stripes.get(stripe) {
            return known.clone();
        }
        let shared = Arc::new(stripe.clone());
        self.stripes.insert(shared.clone());
        shared
    }

    pub(super) fn forget_unused_stripes(&mut self) {
        self.stripes.retain(|stripe| Arc::strong_count(stripe) > 1);
    }

    #[must_use]
    pub(crate) fn get(&self, key: &ShardKey) -> Option<&Entry> {
        self.volumes.get(&key.chunk.volume)?.get(&(key.chunk.chunk, key.shard))
    }

    /// Numbers of the shards of a chunk that are here.
    pub(crate) fn shards_of(&self, key: &ChunkKey) -> impl Iterator<Item = u8> {
        let (shards, chunk) = (self.volumes.get(&key.volume).into_iter(), key.chunk);
        shards.flat_map(move |shards| shards.range((chunk, 0)..=(chunk, u8::MAX))).map(|((_, shard), _)| *shard)
    }

    /// Shards of a volume above a chunk, ascending.
    pub(crate) fn list(&self, volume: &VolumeKey, after: ChunkId) -> impl Iterator<Item = (ChunkId, u8, &Entry)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = (after, u8::MAX);
        let shards = self.volumes.get(volume).into_iter();
        let above = shards.flat_map(move |shards| shards.range((Excluded(after), Unbounded)));
        above.map(|((chunk, shard), entry)| (*chunk, *shard, entry))
    }

    /// Adds a shard whose record is durable.
    pub(crate) fn insert_shard(&mut self, key: ShardKey, entry: Entry) {
        self.live_bytes += entry.at.bytes;
        self.shards_count += 1;
        self.segment_mut(entry.at.segment).live_bytes += entry.at.bytes;
        let replaced = self.volumes.entry(key.chunk.volume).or_default().insert((key.chunk.chunk, key.shard), entry);
        assert!(replaced.is_none(), "the writer checks for an existing shard first (R1)");
    }

    /// Adds a shard that a scan found: it may be dead already, or the copy of one that is known.
    pub(crate) fn restore_shard(&mut self, key: ShardKey, entry: Entry) {
        if let Some(grave) = self.grave_of(&key, entry.version) {
            self.bury(entry.at, Some(grave));
            return;
        }
        match self.get(&key) {
            None => self.insert_shard(key, entry),
            Some(known) if known.at == entry.at => {}
            Some(known) if known.version >= entry.version => self.stale.entry(key).or_default().push(entry.at),
            Some(_) => {
                let older = self.remove_entry(&key).expect("just found");
                self.stale.entry(key).or_default().push(older.at);
                self.insert_shard(key, entry);
            }
        }
    }

    /// The tombstone that a shard of this version is dead by.
    fn grave_of(&self, key: &ShardKey, version: u64) -> Option<Grave> {
        let own = key.grave();
        let whole = Grave { target: Target { shard: None, ..own.target }, ..own };
        let kills = |grave: &Grave| self.tombstones.get(grave).is_some_and(|t| t.version > version);
        [own, whole].into_iter().find(kills)
    }

    /// Applies a durable tombstone and says how many shards it deleted. Ends with [`Index::release_unpinned`] for what it
    /// names, unless a scan may still find records it killed.
    pub(crate) fn apply_tombstone(&mut self, volume: VolumeKey, targets: &[Target], version: u64, at: Location) -> u32 {
        // Compaction may have copied it with fewer targets. Those left out are gone from the disk, but an old checkpoint
        // may still call them live, so all targets of all copies count; any of the copies keeps the rest alive.
        if let Some(known) = self.tombstone_records.get_mut(&version) {
            known.targets.extend(targets);
        } else {
            let record = TombstoneRecord { at, volume, targets: targets.iter().copied().collect() };
            self.tombstone_records.insert(version, record);
            self.segment_mut(at.segment).live_bytes += at.bytes;
        }
        let mut deleted_count = 0;
        for target in targets {
            let grave = Grave { volume, target: *target };
            let mut pins = 0;
            if let Some(other) = self.tombstones.get(&grave).copied() {
                if other.version > version {
                    self.detach(version, *target);
                }
                if other.version >= version {
                    continue;
                }
                self.detach(other.version, *target);
                pins = other.pins;
            }
            self.tombstones.insert(grave, Tombstone { version, pins });
            deleted_count += self.kill_below(&grave, version);
        }
        deleted_count
    }

    fn kill_below(&mut self, grave: &Grave, version: u64) -> u32 {
        let Some(shards) = self.volumes.get(&grave.volume) else { return 0 };
        let Target { chunk, shard } = grave.target;
        let dead: Vec<u8> = shards
            .range((chunk, shard.unwrap_or(0))..=(chunk, shard.unwrap_or(u8::MAX)))
            .filter(|(_, entry)| entry.version < version)
            .map(|((_, shard), _)| *shard)
            .collect();
        for shard in &dead {
            let shard_key = ShardKey { chunk: ChunkKey { volume: grave.volume, chunk }, shard: *shard };
            let entry = self.remove_entry(&shard_key).expect("just listed");
            self.bury(entry.at, Some(*grave));
            for copy in self.stale.remove(&shard_key).unwrap_or_default() {
                self.bury(copy, Some(*grave));
            }
        }
        u32::try_from(dead.len()).expect("at most 256 shards")
    }

    fn remove_entry(&mut self, key: &ShardKey) -> Option<Entry> {
        let shards = self.volumes.get_mut(&key.chunk.volume)?;
        let entry = shards.remove(&(key.chunk.chunk, key.shard))?;
        if shards.is_empty() {
            self.volumes.remove(&key.chunk.volume);
        }
        self.live_bytes -= entry.at.bytes;
        self.shards_count -= 1;
        self.segment_mut(entry.at.segment).live_bytes -= entry.at.bytes;
        Some(entry)
    }

    /// A record is dead: pins its tombstone and, in a bulk segment, waits for its punch.
    pub(super) fn bury(&mut self, at: Location, grave: Option<Grave>) {
        let segment = self.segments.get_mut(&at.segment).expect("records stand in known segments");
        match segment.kind {
            SegmentKind::Small => Arc::make_mut(&mut segment.pinned).extend(grave),
            SegmentKind::Bulk => {
                segment.punches_count += 1;
                self.punch_bytes += at.bytes;
                self.punches.push_back(Punch { at, grave });
            }
        }
        if let Some(tombstone) = grave.and_then(|grave| self.tombstones.get_mut(&grave)) {
            tombstone.pins += 1;
        }
    }

    /// Up to `max_count` punches to make, oldest first. They count until [`Index::punched`].
    pub(super) fn take_punches(&mut self, max_count: usize) -> Vec<Punch> {
        let count = max_count.min(self.punches.len());
        self.punches.slice(..count).into_iter().collect()
    }

    /// Takes back punches that could not be made. Their turn comes behind the others.
    pub(super) fn give_back_punches(&mut self, punches: Vec<Punch>) {
        punches.into_iter().for_each(|punch| self.punches.push_back(punch));
    }

    /// A punch is synced, or its file gone for good.
    pub(super) fn punched(&mut self, punch: &Punch) {
        self.punch_bytes -= punch.at.bytes;
        if let Some(segment) = self.segments.get_mut(&punch.at.segment) {
            segment.punches_count -= 1;
        }
        if let Some(grave) = &punch.grave {
            self.unpin(grave);
        }
    }

    fn unpin(&mut self, grave: &Grave) {
        let Some(tombstone) = self.tombstones.get_mut(grave) else { return };
        tombstone.pins -= 1;
        if tombstone.pins == 0 {
            self.release(grave);
        }
    }

    fn release(&mut self, grave: &Grave) {
        if let Some(tombstone) = self.tombstones.remove(grave) {
            self.detach(tombstone.version, grave.target);
        }
    }

    fn detach(&mut self, version: u64, target: Target) {
        let Some(record) = self.tombstone_records.get_mut(&version) else { return };
        record.targets.remove(&target);
        if record.targets.is_empty() {
            let at = record.at;
            self.tombstone_records.remove(&version);
            self.segment_mut(at.segment).live_bytes -= at.bytes;
        }
    }

    /// Lets go of tombstones that nothing pins. After a scan only when all of it was applied.
    pub(super) fn release_unpinned(&mut self) {
        let idle: Vec<Grave> = self.tombstones.iter().filter(|(_, t)| t.pins == 0).map(|(grave, _)| *grave).collect();
        for grave in idle {
            self.release(&grave);
        }
    }

    /// Compaction copied a shard. The writer does both, so it cannot have died meanwhile.
    pub(super) fn move_shard(&mut self, key: &ShardKey, from: Location, to: Location) {
        let entry = self.volumes.get_mut(&key.chunk.volume).and_then(|v| v.get_mut(&(key.chunk.chunk, key.shard)));
        let entry = entry.filter(|entry| entry.at == from).expect("checked as the copy was made, by the same thread");
        entry.at = to;
        self.segment_mut(from.segment).live_bytes -= from.bytes;
        self.segment_mut(to.segment).live_bytes += to.bytes;
        self.live_bytes = self.live_bytes - from.bytes + to.bytes;
        self.stale.entry(*key).or_default().push(from);
    }

    /// Compaction copied a tombstone, with the targets that still need it.
    pub(super) fn move_tombstone(&mut self, version: u64, to: Location) {
        let Some(record) = self.tombstone_records.get_mut(&version) else { return };
        let from = std::mem::replace(&mut record.at, to);
        self.segment_mut(from.segment).live_bytes -= from.bytes;
        self.segment_mut(to.segment).live_bytes += to.bytes;
    }

    /// The part of a tombstone that its record at `at` still stands for.
    pub(super) fn live_tombstone(&self, version: u64, at: &Location) -> Option<(VolumeKey, Vec<Target>)> {
        let record = self.tombstone_records.get(&version).filter(|record| record.at == *at)?;
        Some((record.volume, record.targets.iter().copied().collect()))
    }

    /// A segment's bytes are gone for good: recycled or removed, durably.
    pub(super) fn forget_segment(&mut self, number: u32) {
        let Some(segment) = self.segments.remove(&number) else { return };
        let punches: Vec<Punch> = self.punches.iter().filter(|p| p.at.segment == number).copied().collect();
        self.punches.retain(|p| p.at.segment != number);
        for punch in &punches {
            self.punched(punch);
        }
        for grave in segment.pinned.iter() {
            self.unpin(grave);
        }
        let here = |copies: &Vec<Location>| copies.iter().any(|copy| copy.segment == number);
        let stale: Vec<ShardKey> = self.stale.iter().filter(|(_, copies)| here(copies)).map(|(key, _)| *key).collect();
        for key in stale {
            let mut copies = self.stale.remove(&key).unwrap_or_default();
            copies.retain(|copy| copy.segment != number);
            if !copies.is_empty() {
                self.stale.insert(key, copies);
            }
        }
    }

    /// A segment is gone that a checkpoint still knew: with it whatever the checkpoint saw in it.
    pub(super) fn purge_segment(&mut self, number: u32) {
        let mut lost = Vec::new();
        for (volume, shards) in &self.volumes {
            for ((chunk, shard), _) in shards.iter().filter(|(_, entry)| entry.at.segment == number) {
                lost.push(ShardKey { chunk: ChunkKey { volume: *volume, chunk: *chunk }, shard: *shard });
            }
        }
        for key in lost {
            self.remove_entry(&key);
        }
        self.forget_segment(number);
    }

    /// Removes up to `max_count` shards of a dropped volume; true when none is left.
    pub(super) fn drop_some(&mut self, volume: &VolumeKey, max_count: usize) -> bool {
        for _ in 0..max_count {
            let first = self.volumes.get(volume).and_then(|shards| shards.keys().next().copied());
            let Some((chunk, shard)) = first else { return true };
            let key = ShardKey { chunk: ChunkKey { volume: *volume, chunk }, shard };
            let entry = self.remove_entry(&key).expect("just found");
            self.bury(entry.at, None);
            for copy in self.stale.remove(&key).unwrap_or_default() {
                self.bury(copy, None);
            }
        }
        !self.volumes.contains_key(volume)
    }

    pub(super) fn segment_mut(&mut self, number: u32) -> &mut SegmentState {
        self.segments.get_mut(&number).expect("records stand in known segments")
    }
}
