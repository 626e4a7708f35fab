//! The map of file bytes to chunk bytes: cutting, adding, and the exact counts that go with it.
//!
//! Extents of a file never overlap. A page counts as mapped if any extent touches it, or if it is allocated (R29). Live bytes of a chunk are
//! the bytes that extents name; the operation that takes the last one puts the chunk on the freed list.

use super::records::Run;
use super::{Broken, Outcome, Table, broken};
use holdfast_common::limits::PAGE_BYTES;
use holdfast_common::{ChunkId, InodeId};
use holdfast_proto::meta::{MutateResponse, ReapOrphans};
use std::ops::Bound;

pub(super) const PAGE: u64 = PAGE_BYTES as u64;

impl Run {
    pub(super) fn end(&self, file_offset: u64) -> u64 {
        file_offset + u64::from(self.length_bytes)
    }
}

impl Table {
    /// The extents of an inode that have bytes in `from..to`, ascending.
    pub(super) fn intersecting(&self, inode: InodeId, from: u64, to: u64) -> impl Iterator<Item = (u64, Run)> {
        let first = match self.extents.at_or_before(&(inode, from)) {
            Some(((owner, offset), run)) if *owner == inode && run.end(*offset) > from => *offset,
            _ => from,
        };
        // An empty range must not be handed to the tree reversed.
        let (first, last) = ((inode, first.min(to)), (inode, to));
        self.extents.range(Bound::Included(&first), Bound::Excluded(&last)).map(|((_, offset), run)| (*offset, *run))
    }

    /// How many of the pages `first..end` some extent touches.
    fn count_pages(&self, inode: InodeId, first: u64, end: u64) -> u64 {
        let (mut counted, mut next) = (0, first);
        for (offset, run) in self.intersecting(inode, first.saturating_mul(PAGE), end.saturating_mul(PAGE)) {
            let from = next.max(offset / PAGE);
            let to = end.min(run.end(offset).div_ceil(PAGE));
            if to > from {
                counted += to - from;
                next = to;
            }
        }
        counted
    }

    /// Pages that these ranges, ascending and apart, would map and that are not charged yet.
    pub(super) fn newly_mapped_pages(&self, inode: InodeId, ranges: impl Iterator<Item = (u64, u64)>) -> u64 {
        let (mut counted, mut next) = (0, 0);
        for (from, to) in ranges {
            let (first, end) = (next.max(from / PAGE), to.div_ceil(PAGE));
            if end > first {
                let charged = self.count_pages(inode, first, end) + self.count_allocated(inode, first..end);
                counted += (end - first) - charged;
                next = end;
            }
        }
        counted
    }

    /// Removes what is mapped in `from..to`, byte-precise, and frees chunks that nothing names any more.
    pub(super) fn unmap(&mut self, inode: InodeId, from: u64, to: u64, now_ns: i64) -> Outcome<()> {
        if self.known(inode)?.mapped_pages == 0 {
            return Ok(());
        }
        let (first, end) = (from / PAGE, to.div_ceil(PAGE));
        let before = self.count_pages(inode, first, end);
        let mut emptied = Vec::new();
        self.cut(inode, from, to, &mut emptied)?;
        let gone = before - self.count_pages(inode, first, end);
        self.change_mapped_pages(inode, 0, gone)?;
        self.free_emptied(&emptied, now_ns)?;
        Ok(())
    }

    /// Makes `file_offset..` lead to the run, replacing what was there. Counts of pages are the caller's.
    pub(super) fn map(
        &mut self,
        inode: InodeId,
        file_offset: u64,
        run: Run,
        emptied: &mut Vec<ChunkId>,
    ) -> Result<(), Broken> {
        self.cut(inode, file_offset, run.end(file_offset), emptied)?;
        self.extents.insert((inode, file_offset), run);
        let Some(mut chunk) = self.chunks.get_mut(&run.chunk) else {
            return broken(format!("chunk {} is not there", run.chunk));
        };
        chunk.live_bytes += u64::from(run.length_bytes);
        Ok(())
    }

    /// Removes extents from `from..to`; those that reach over an end keep the part outside.
    fn cut(&mut self, inode: InodeId, from: u64, to: u64, emptied: &mut Vec<ChunkId>) -> Result<(), Broken> {
        let hit: Vec<(u64, Run)> = self.intersecting(inode, from, to).collect();
        for (offset, run) in hit {
            let end = run.end(offset);
            if offset < from {
                let kept = Run { length_bytes: narrow(from - offset)?, ..run };
                self.extents.insert((inode, offset), kept);
            } else {
                self.extents.remove(&(inode, offset));
            }
            if end > to {
                let kept = Run {
                    length_bytes: narrow(end - to)?,
                    chunk_offset: run.chunk_offset + narrow(to - offset)?,
                    chunk: run.chunk,
                };
                self.extents.insert((inode, to), kept);
            }
            self.release(run.chunk, end.min(to) - offset.max(from), emptied)?;
        }
        Ok(())
    }

    fn release(&mut self, id: ChunkId, bytes: u64, emptied: &mut Vec<ChunkId>) -> Result<(), Broken> {
        let Some(mut chunk) = self.chunks.get_mut(&id) else {
            return broken(format!("chunk {id} is not there"));
        };
        match chunk.live_bytes.checked_sub(bytes) {
            Some(0) => {
                chunk.live_bytes = 0;
                emptied.push(id);
            }
            Some(rest) => chunk.live_bytes = rest,
            None => return broken(format!("chunk {id} has fewer live bytes than its extents")),
        }
        Ok(())
    }

    /// Puts those of the chunks that are without live bytes on the freed list. Last step of an operation: a chunk that
    /// one file of a commit lets go may be named again by the next.
    pub(super) fn free_emptied(&mut self, emptied: &[ChunkId], now_ns: i64) -> Result<(), Broken> {
        for id in emptied {
            let Some(mut chunk) = self.chunks.get_mut(id) else {
                return broken(format!("chunk {id} is not there"));
            };
            if chunk.live_bytes == 0 && chunk.freed_ns == 0 {
                chunk.freed_ns = now_ns;
                self.freed.insert((now_ns, *id), ());
            }
        }
        Ok(())
    }

    pub(super) fn change_mapped_pages(&mut self, inode: InodeId, added: u64, gone: u64) -> Result<(), Broken> {
        let change = |pages: u64| pages.saturating_add(added).checked_sub(gone);
        let (of_inode, of_table) = (change(self.known(inode)?.mapped_pages), change(self.counters.mapped_pages));
        let (Some(of_inode), Some(of_table)) = (of_inode, of_table) else {
            return broken("mapped pages do not add up");
        };
        self.known_mut(inode)?.mapped_pages = of_inode;
        self.counters.mapped_pages = of_table;
        Ok(())
    }

    /// Frees orphans, or as much of them as the bound on extents allows; the rest stays an orphan.
    pub(super) fn reap_orphans(&mut self, op: &ReapOrphans, now_ns: i64) -> Outcome<MutateResponse> {
        let mut budget = usize::try_from(op.max_extents).unwrap_or(usize::MAX);
        for id in op.inodes.iter().copied().map(InodeId) {
            if !self.orphans.contains(&id) {
                continue;
            }
            let taken: Vec<u64> =
                self.intersecting(id, 0, u64::MAX).take(budget).map(|(offset, run)| run.end(offset)).collect();
            budget -= taken.len();
            if let Some(&end) = taken.last() {
                self.unmap(id, 0, end, now_ns)?;
            }
            if self.intersecting(id, 0, u64::MAX).next().is_some() || !self.drop_allocated(id, budget)? {
                break;
            }
            self.drop_xattrs(id);
            self.orphans.remove(&id);
            self.inodes.remove(&id);
        }
        Ok(MutateResponse::default())
    }
}

fn narrow(length: u64) -> Result<u32, Broken> {
    u32::try_from(length).or_else(|_| broken("an extent longer than a chunk"))
}
