//! The map of file bytes to chunk bytes: cutting, adding, and the exact counts that go with it.
//!
//! Extents of one tree and file never overlap. A page counts as mapped if any extent of the tree touches it, or if it is
//! allocated (R29). Live bytes of a chunk are the bytes that extents name (R11); the operation that takes the last one puts the
//! chunk on the freed list. Which extents readers see is next door (`dead`).

use super::records::Run;
use super::tree::Tree;
use super::{Broken, Outcome, Table, broken};
use crate::sabotage::Sabotage;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_common::{ChunkId, InodeId};
use holdfast_proto::meta::{MutateResponse, ReapOrphans};
use std::ops::Bound;

pub(super) const PAGE: u64 = PAGE_BYTES as u64;

/// Extents by (inode, file offset).
pub(super) type Runs = Tree<(InodeId, u64), Run>;

/// Tree that an extent is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// The map, but where it is dead.
    Base,
    /// Extents that were committed into dead intervals.
    Fresh,
}

impl Run {
    pub(super) fn end(&self, file_offset: u64) -> u64 {
        file_offset + u64::from(self.length_bytes)
    }

    /// The part of a run at `offset` that lies in `from..to`, with its place.
    pub(super) fn part(&self, offset: u64, from: u64, to: u64) -> Result<(u64, Self), Broken> {
        let (start, end) = (offset.max(from), self.end(offset).min(to));
        let (skipped, length) = (start.checked_sub(offset), end.checked_sub(start));
        let (Some(skipped), Some(length)) = (skipped, length) else {
            return broken("a part outside its extent");
        };
        let chunk_offset = self.chunk_offset + narrow(skipped)?;
        Ok((start, Self { length_bytes: narrow(length)?, chunk_offset, chunk: self.chunk }))
    }
}

/// The extents of an inode that have bytes in `from..to`, ascending.
pub(super) fn intersecting(runs: &Runs, inode: InodeId, from: u64, to: u64) -> impl Iterator<Item = (u64, Run)> {
    let first = match runs.at_or_before(&(inode, from)) {
        Some(((owner, offset), run)) if *owner == inode && run.end(*offset) > from => *offset,
        Some(_) | None => from,
    };
    // An empty range must not be handed to the tree reversed.
    let (first, last) = ((inode, first.min(to)), (inode, to));
    runs.range(Bound::Included(&first), Bound::Excluded(&last)).map(|((_, offset), run)| (*offset, *run))
}

/// Count of the pages of `from..to` that no extent touches, given that none has bytes in the range: only the first and
/// the last page can be touched from outside.
fn pages_of_hole(runs: &Runs, inode: InodeId, from: u64, to: u64) -> u64 {
    let (first, end) = (from / PAGE, to.div_ceil(PAGE));
    let touched = |page: u64| {
        let start = page.saturating_mul(PAGE);
        u64::from(intersecting(runs, inode, start, start.saturating_add(PAGE)).next().is_some())
    };
    match end - first {
        0 => 0,
        1 => 1 - touched(first),
        pages => pages - touched(first) - touched(end - 1),
    }
}

impl Table {
    pub(super) fn layer(&self, layer: Layer) -> &Runs {
        match layer {
            Layer::Base => &self.extents,
            Layer::Fresh => &self.fresh,
        }
    }

    fn layer_mut(&mut self, layer: Layer) -> &mut Runs {
        match layer {
            Layer::Base => &mut self.extents,
            Layer::Fresh => &mut self.fresh,
        }
    }

    /// Adds an extent where its tree has none. Live bytes of the chunk are the caller's.
    pub(super) fn insert_run(&mut self, layer: Layer, inode: InodeId, offset: u64, run: Run) -> Result<(), Broken> {
        let pages = pages_of_hole(self.layer(layer), inode, offset, run.end(offset));
        self.layer_mut(layer).insert((inode, offset), run);
        self.change_mapped_pages(inode, pages, 0)
    }

    /// Removes extents from `from..to`; those that reach over an end keep the part outside. Live bytes of chunks are the
    /// caller's; answers what was taken out.
    pub(super) fn take_runs(
        &mut self,
        layer: Layer,
        inode: InodeId,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, Run)>, Broken> {
        let hit: Vec<(u64, Run)> = intersecting(self.layer(layer), inode, from, to).collect();
        let mut taken = Vec::with_capacity(hit.len());
        for (offset, run) in hit {
            let runs = self.layer_mut(layer);
            runs.remove(&(inode, offset));
            if offset < from {
                let (start, kept) = run.part(offset, offset, from)?;
                runs.insert((inode, start), kept);
            }
            if run.end(offset) > to {
                let (start, kept) = run.part(offset, to, run.end(offset))?;
                runs.insert((inode, start), kept);
            }
            let (start, part) = run.part(offset, from, to)?;
            let pages = pages_of_hole(self.layer(layer), inode, start, part.end(start));
            self.change_mapped_pages(inode, 0, pages)?;
            taken.push((start, part));
        }
        Ok(taken)
    }

    /// As [`Table::take_runs`], with the chunks' live bytes; chunks left without any go to `emptied`. Answers how many
    /// extents were hit.
    pub(super) fn cut(
        &mut self,
        layer: Layer,
        inode: InodeId,
        from: u64,
        to: u64,
        emptied: &mut Vec<ChunkId>,
    ) -> Result<usize, Broken> {
        let taken = self.take_runs(layer, inode, from, to)?;
        for (_, run) in &taken {
            self.release(run.chunk, run.length_bytes.into(), emptied)?;
        }
        Ok(taken.len())
    }

    /// An extent names so many bytes of the chunk.
    pub(super) fn acquire(&mut self, id: ChunkId, bytes: u64) -> Result<(), Broken> {
        let Some(mut chunk) = self.chunks.get_mut(&id) else {
            return broken(format!("chunk {id} is not there"));
        };
        chunk.live_bytes += bytes;
        Ok(())
    }

    fn release(&mut self, id: ChunkId, bytes: u64, emptied: &mut Vec<ChunkId>) -> Result<(), Broken> {
        if self.breaks(Sabotage::SharedChunksFreed) {
            emptied.push(id);
        }
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
        let shared_too = self.breaks(Sabotage::SharedChunksFreed);
        for id in emptied {
            let Some(mut chunk) = self.chunks.get_mut(id) else {
                return broken(format!("chunk {id} is not there"));
            };
            if (chunk.live_bytes == 0 || shared_too) && chunk.freed_ns == 0 {
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
            for layer in [Layer::Base, Layer::Fresh] {
                budget -= self.drop_runs(layer, id, budget, now_ns)?;
            }
            let is_mapped = |layer| intersecting(self.layer(layer), id, 0, u64::MAX).next().is_some();
            if is_mapped(Layer::Base) || is_mapped(Layer::Fresh) {
                break;
            }
            if !self.drop_allocated(id, budget)? || !self.drop_dead(id, budget) {
                break;
            }
            self.drop_xattrs(id);
            self.orphans.remove(&id);
            self.inodes.remove(&id);
        }
        Ok(MutateResponse::default())
    }

    /// Frees the first extents of an orphan, and says how many.
    fn drop_runs(&mut self, layer: Layer, id: InodeId, max_count: usize, now_ns: i64) -> Result<usize, Broken> {
        let runs = intersecting(self.layer(layer), id, 0, u64::MAX).take(max_count);
        let ends: Vec<u64> = runs.map(|(offset, run)| run.end(offset)).collect();
        if let Some(&end) = ends.last() {
            let mut emptied = Vec::new();
            self.cut(layer, id, 0, end, &mut emptied)?;
            self.free_emptied(&emptied, now_ns)?;
        }
        Ok(ends.len())
    }
}

fn narrow(length: u64) -> Result<u32, Broken> {
    u32::try_from(length).or_else(|_| broken("an extent longer than a chunk"))
}
