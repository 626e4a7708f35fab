//! A file of the simulated disk: sectors as readers see them, and what the disk may hold of each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use holdfast_common::Random;

use super::faults::{Counts, Trouble};
use crate::{BLOCK_BYTES, SECTOR_BYTES};

/// A sector's bytes; `None` is zeros.
type Sector = Option<Arc<[u8; 512]>>;
const _: () = assert!(SECTOR_BYTES == 512);
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;
/// States of a sector between two syncs that are remembered.
const STATES_MAX: usize = 8;

/// The states a sector went through since its last sync, the durable one first; its present one is not among them.
#[derive(Clone, Debug, Default)]
struct Past {
    states: Vec<Sector>,
    /// Index in `states`, or just behind it, at which the sector became part of a hole: blocks are freed whole, so that
    /// its block is either in the states before or in those from here on.
    hole_at: Option<usize>,
    /// A sync failed: the kernel believes it clean, so that no later sync makes it durable.
    dropped: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileNode {
    now: BTreeMap<u64, Arc<[u8; 512]>>,
    dirty: BTreeMap<u64, Past>,
    /// Bytes on disk of clean sectors where they differ from the page cache: phantom and misdirected writes.
    wrong: BTreeMap<u64, Sector>,
    holes: BTreeSet<u64>,
    length: u64,
    /// Lengths since the last sync, the durable one first; the present one is not among them.
    lengths: Vec<u64>,
    blocks: BTreeSet<u64>,
    /// Blocks of which a sector cannot be read: the kernel reads pages whole.
    unreadable: BTreeSet<u64>,
    pub(super) handles: usize,
    pub(super) is_unlinked: bool,
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("simulated files fit memory")
}

fn of_bytes(bytes: [u8; 512]) -> Sector {
    if bytes == [0; 512] { None } else { Some(Arc::new(bytes)) }
}

impl FileNode {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.now.len() as u64 * SECTOR_BYTES
    }

    fn set_now(&mut self, sector: u64, bytes: Sector) {
        match bytes {
            Some(bytes) => self.now.insert(sector, bytes),
            None => self.now.remove(&sector),
        };
    }

    /// Replaces a sector in the page cache.
    fn change(&mut self, sector: u64, bytes: Sector) {
        let old = self.now.get(&sector).cloned();
        let past = self.dirty.entry(sector).or_default();
        if past.states.is_empty() {
            past.states.push(self.wrong.remove(&sector).unwrap_or(old));
        } else if past.states.len() < STATES_MAX || past.hole_at.is_some() {
            past.states.push(old);
        }
        past.dropped = false;
        self.unreadable.remove(&(sector / SECTORS_PER_BLOCK));
        self.set_now(sector, bytes);
    }

    fn set_length_now(&mut self, length: u64) {
        if length != self.length {
            self.lengths.push(self.length);
            self.length = length;
        }
    }

    /// Blocks that a write of this range has to allocate.
    pub(super) fn missing_blocks(&self, range: Range<u64>) -> u64 {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        blocks.filter(|block| !self.blocks.contains(block)).count() as u64
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.blocks.extend(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        let mut at = offset;
        while at < end {
            let sector = at / SECTOR_BYTES;
            let until = end.min((sector + 1) * SECTOR_BYTES);
            let mut whole = self.now.get(&sector).map_or([0; 512], |old| **old);
            let piece = &bytes[index(at - offset)..index(until - offset)];
            whole[index(at % SECTOR_BYTES)..][..piece.len()].copy_from_slice(piece);
            self.change(sector, of_bytes(whole));
            at = until;
        }
        self.set_length_now(self.length.max(end));
    }

    /// Takes the blocks of the first `bytes`, which read as they did.
    pub(super) fn allocate(&mut self, bytes: u64) {
        self.blocks.extend(0..bytes.div_ceil(BLOCK_BYTES));
        self.set_length_now(self.length.max(bytes));
    }

    /// Reads what there is; `None` if a sector is unreadable.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Option<usize> {
        let count = index(self.length.saturating_sub(offset)).min(into.len());
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let (sector, within) = (at / SECTOR_BYTES, index(at % SECTOR_BYTES));
            if self.unreadable.contains(&(sector / SECTORS_PER_BLOCK)) {
                return None;
            }
            let piece = (512 - within).min(count - done);
            match self.now.get(&sector) {
                Some(bytes) => into[done..done + piece].copy_from_slice(&bytes[within..within + piece]),
                None => into[done..done + piece].fill(0),
            }
            done += piece;
        }
        Some(count)
    }

    pub(super) fn set_length(&mut self, length: u64) {
        let from = length.div_ceil(SECTOR_BYTES);
        let beyond: Vec<u64> = self.now.range(from..).map(|(sector, _)| *sector).collect();
        beyond.into_iter().for_each(|sector| self.change(sector, None));
        if !length.is_multiple_of(SECTOR_BYTES)
            && let Some(last) = self.now.get(&(length / SECTOR_BYTES))
        {
            let mut bytes = **last;
            bytes[index(length % SECTOR_BYTES)..].fill(0);
            self.change(length / SECTOR_BYTES, of_bytes(bytes));
        }
        self.blocks.retain(|block| block * BLOCK_BYTES < length);
        self.set_length_now(length);
    }

    pub(super) fn punch(&mut self, offset: u64, length_bytes: u64) {
        let end = offset + length_bytes;
        let (first_block, end_block) = (offset.div_ceil(BLOCK_BYTES), end / BLOCK_BYTES);
        for block in first_block..end_block {
            self.blocks.remove(&block);
        }
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let whole = (first_block..end_block).contains(&(sector / SECTORS_PER_BLOCK));
            if whole {
                self.change(sector, None);
                let past = self.dirty.get_mut(&sector).expect("just changed");
                past.hole_at = Some(past.states.len());
                self.holes.insert(sector / SECTORS_PER_BLOCK);
            } else if self.now.contains_key(&sector) {
                self.zero_part(sector, offset, end);
            }
        }
    }

    fn zero_part(&mut self, sector: u64, offset: u64, end: u64) {
        let start = sector * SECTOR_BYTES;
        let mut bytes = self.now.get(&sector).map_or([0; 512], |old| **old);
        let (from, until) = (offset.saturating_sub(start), (end - start).min(SECTOR_BYTES));
        bytes[index(from)..index(until)].fill(0);
        self.change(sector, of_bytes(bytes));
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let mut sectors = self.now.range(offset / SECTOR_BYTES..).map(|(sector, _)| *sector);
        let unreadable = self.unreadable.range(offset / BLOCK_BYTES..).next().map(|block| block * SECTORS_PER_BLOCK);
        let next = sectors.next().into_iter().chain(unreadable).min()?;
        Some((next * SECTOR_BYTES).max(offset))
    }

    /// Makes durable what the kernel holds dirty, but for what `trouble` takes.
    pub(super) fn sync(&mut self, trouble: &mut Trouble) {
        let mut failed = BTreeMap::new();
        for (sector, past) in std::mem::take(&mut self.dirty) {
            if past.dropped {
                failed.insert(sector, past);
                continue;
            }
            let faults = trouble.faults;
            if trouble.rolls(faults.phantom_write_ppm) {
                trouble.counts.phantom_writes += 1;
                self.wrong.insert(sector, past.states.into_iter().next().flatten());
            } else if trouble.rolls(faults.misdirected_write_ppm) {
                trouble.counts.misdirected_writes += 1;
                let sectors = self.length.div_ceil(SECTOR_BYTES).max(1);
                self.wrong.insert(trouble.random.below(sectors), self.now.get(&sector).cloned());
                self.wrong.insert(sector, past.states.into_iter().next().flatten());
            }
        }
        self.dirty = failed;
        self.holes.clear();
        self.lengths.clear();
    }

    /// A sync failed: what was dirty may be on the disk or not, and no later sync tries again.
    pub(super) fn fail_sync(&mut self) {
        self.dirty.values_mut().for_each(|past| past.dropped = true);
    }

    /// Loses power: leaves what `random` spares; without it, nothing that was not synced.
    pub(super) fn lose(&mut self, mut random: Option<&mut Random>, counts: &mut Counts) {
        let (before, dirty_count) = (counts.lost_sectors, self.dirty.len() as u64);
        // Some crashes take nearly everything, some nearly nothing.
        let kept_of_four = random.as_deref_mut().map_or(0, |random| random.below(5));
        let holes: BTreeMap<u64, bool> = std::mem::take(&mut self.holes)
            .into_iter()
            .map(|block| (block, random.as_deref_mut().is_some_and(|random| random.below(4) < kept_of_four)))
            .collect();
        for (sector, mut past) in std::mem::take(&mut self.dirty) {
            let last = past.states.len();
            past.states.push(self.now.get(&sector).cloned());
            let mut allowed = 0..last + 1;
            if let (Some(at), Some(reached)) = (past.hole_at, holes.get(&(sector / SECTORS_PER_BLOCK))) {
                allowed = if *reached { at.min(last)..last + 1 } else { 0..at.min(last) };
            }
            let chosen = match random.as_deref_mut() {
                None => allowed.start,
                Some(random) => match random.below(4) < kept_of_four {
                    true => allowed.end - 1,
                    false => allowed.start + random.index(allowed.len()),
                },
            };
            counts.lost_sectors += u64::from(chosen != last);
            let bytes = past.states.swap_remove(chosen);
            self.set_now(sector, bytes);
        }
        let lost = counts.lost_sectors - before;
        counts.torn_files += u64::from(lost > 0 && lost < dirty_count);
        self.lose_length(random, counts);
        self.drop_cache();
    }

    fn lose_length(&mut self, random: Option<&mut Random>, counts: &mut Counts) {
        let mut lengths = std::mem::take(&mut self.lengths);
        if !lengths.is_empty() {
            let last = lengths.len();
            lengths.push(self.length);
            let chosen = random.map_or(0, |random| random.index(last + 1));
            counts.lost_lengths += u64::from(chosen != last);
            self.length = lengths[chosen];
        }
        let length = self.length;
        self.now.retain(|sector, _| sector * SECTOR_BYTES < length);
        if !length.is_multiple_of(SECTOR_BYTES)
            && let Some(last) = self.now.get_mut(&(length / SECTOR_BYTES))
        {
            let mut bytes = **last;
            bytes[index(length % SECTOR_BYTES)..].fill(0);
            *last = Arc::new(bytes);
        }
        self.blocks.retain(|block| block * BLOCK_BYTES < length);
    }

    /// Readers see what the disk holds of clean sectors.
    pub(super) fn drop_cache(&mut self) {
        for (sector, bytes) in std::mem::take(&mut self.wrong) {
            self.set_now(sector, bytes);
        }
    }

    pub(super) fn all_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; index(self.length)];
        let count = bytes.len();
        for (sector, content) in &self.now {
            let start = index(sector * SECTOR_BYTES);
            let end = (start + 512).min(count);
            bytes[start..end].copy_from_slice(&content[..end - start]);
        }
        bytes
    }

    /// Replaces the content, durably.
    pub(super) fn damage(&mut self, bytes: &[u8]) {
        let (handles, is_unlinked) = (self.handles, self.is_unlinked);
        *self = Self { handles, is_unlinked, ..Self::default() };
        self.write(0, bytes);
        self.dirty.clear();
        self.lengths.clear();
    }

    /// Flips bits of a byte, in the page cache and on the disk.
    pub(super) fn flip(&mut self, offset: u64, bits: u8) {
        let sector = offset / SECTOR_BYTES;
        let turn = |old: Option<&Arc<[u8; 512]>>| {
            let mut bytes = old.map_or([0; 512], |old| **old);
            bytes[index(offset % SECTOR_BYTES)] ^= bits;
            of_bytes(bytes)
        };
        let now = turn(self.now.get(&sector));
        self.set_now(sector, now);
        if let Some(past) = self.dirty.get_mut(&sector) {
            past.states.iter_mut().for_each(|state| *state = turn(state.as_ref()));
        }
    }

    pub(super) fn make_unreadable(&mut self, offset: u64, length_bytes: u64) {
        let blocks = offset / BLOCK_BYTES..(offset + length_bytes).div_ceil(BLOCK_BYTES);
        self.unreadable.extend(blocks);
    }
}
