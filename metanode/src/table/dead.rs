//! Dead intervals: ranges of a file in which the extents of the base tree are there and count no more. An operation that would
//! take away more pieces than one entry may (docs/decisions/0012) makes the range dead instead, and the leader frees what is in
//! it in steps. What is committed into a dead interval goes to a tree of its own, the fresh extents, until the leader has
//! freed that far and moves it over; so no commit has to clear its place first, and old bytes never show.
//!
//! What readers see is the base outside dead intervals, and the fresh extents, each of which lies in one of them. Until they
//! are freed, extents in dead intervals count in mapped pages and in the live bytes of their chunks. Too many dead intervals
//! or fresh extents of one file let its operations wait (UNAVAILABLE) until the leader has caught up.

use super::extents::{Layer, PAGE, intersecting};
use super::records::Run;
use super::{Broken, Outcome, Table, broken};
use holdfast_common::{ChunkId, InodeId};
use holdfast_proto::meta::{Code, FreeDead, MutateResponse};
use std::ops::{Bound, Range};

/// Most pieces of files that one entry takes away: some milliseconds of apply. Of the build, not of the contents.
#[derive(Clone, Copy, Debug)]
pub(super) struct PiecesMax(pub(super) usize);

impl Default for PiecesMax {
    fn default() -> Self {
        Self(4096)
    }
}

impl PartialEq for PiecesMax {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PiecesMax {}

/// An extent as readers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LiveRun {
    pub(super) offset: u64,
    pub(super) run: Run,
    pub(super) layer: Layer,
}

/// The live extents of a file that has dead intervals.
struct Masked<'a> {
    table: &'a Table,
    inode: InodeId,
    at: u64,
    to: u64,
}

impl Iterator for Masked<'_> {
    type Item = LiveRun;

    fn next(&mut self) -> Option<LiveRun> {
        while self.at < self.to {
            let dead = self.table.dead_from(self.inode, self.at).unwrap_or(u64::MAX..u64::MAX);
            let layer = if dead.start <= self.at { Layer::Fresh } else { Layer::Base };
            let segment_end = if layer == Layer::Fresh { dead.end } else { dead.start };
            let end = segment_end.min(self.to);
            let found = intersecting(self.table.layer(layer), self.inode, self.at, end).next();
            let Some((offset, run)) = found else {
                self.at = segment_end;
                continue;
            };
            // A base extent may reach into dead intervals on both sides.
            let from = if layer == Layer::Fresh { 0 } else { self.table.dead_until(self.inode, self.at) };
            let (offset, run) = run.part(offset, from, segment_end).ok()?;
            self.at = run.end(offset);
            return Some(LiveRun { offset, run, layer });
        }
        None
    }
}

impl Table {
    /// The extents that readers see and that have bytes in `from..to`, ascending; whole, but for what is dead.
    pub(super) fn live(&self, inode: InodeId, from: u64, to: u64) -> impl Iterator<Item = LiveRun> {
        let is_masked = self.has_dead(inode);
        let base = (!is_masked).then(|| intersecting(&self.extents, inode, from, to));
        let base = base.into_iter().flatten().map(|(offset, run)| LiveRun { offset, run, layer: Layer::Base });
        let masked = is_masked.then_some(Masked { table: self, inode, at: from, to });
        base.chain(masked.into_iter().flatten())
    }

    fn has_dead(&self, inode: InodeId) -> bool {
        self.dead.len() > 0 && self.dead_from(inode, 0).is_some()
    }

    /// The first dead interval that ends behind `at`.
    fn dead_from(&self, inode: InodeId, at: u64) -> Option<Range<u64>> {
        self.dead_in(inode, at..u64::MAX).next()
    }

    /// The dead intervals that have bytes in the range, whole, ascending.
    pub(super) fn dead_in(&self, inode: InodeId, bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = match self.dead.at_or_before(&(inode, bytes.start)) {
            Some(((owner, start), end)) if *owner == inode && *end > bytes.start => *start,
            Some(_) | None => bytes.start,
        };
        let (first, last) = ((inode, first.min(bytes.end)), (inode, bytes.end));
        let intervals = self.dead.range(Bound::Included(&first), Bound::Excluded(&last));
        intervals.map(|((_, start), end)| *start..*end)
    }

    /// End of the last dead interval that begins at or before `at`, which is in none; 0 if there is none.
    fn dead_until(&self, inode: InodeId, at: u64) -> u64 {
        match self.dead.at_or_before(&(inode, at)) {
            Some(((owner, _), end)) if *owner == inode => *end,
            Some(_) | None => 0,
        }
    }

    /// Most pieces that one entry may take away; without a bound before feature level 1.
    pub(super) fn pieces_budget(&self) -> usize {
        if self.feature_level() >= 1 { self.pieces_max.0 } else { usize::MAX }
    }

    /// Whether an operation may cut the file: what it may have to take away at once is bounded.
    pub(super) fn may_cut(&self, inode: InodeId) -> Result<(), Code> {
        if !self.has_dead(inode) {
            return Ok(());
        }
        let max = self.pieces_max.0;
        let is_full = self.dead_in(inode, 0..u64::MAX).nth(max).is_some()
            || intersecting(&self.fresh, inode, 0, u64::MAX).nth(max).is_some();
        if is_full { Err(Code::Unavailable) } else { Ok(()) }
    }

    /// Removes what is mapped in `from..to`, byte-precise, and frees chunks that nothing names any more; beyond the bound the
    /// leader does.
    pub(super) fn unmap(&mut self, inode: InodeId, from: u64, to: u64, now_ns: i64) -> Outcome<()> {
        let mut emptied = Vec::new();
        let mut budget = self.pieces_budget();
        self.clear(inode, from, to, &mut budget, &mut emptied)?;
        self.free_emptied(&emptied, now_ns)?;
        Ok(())
    }

    /// Makes `file_offset..` lead to the run, replacing what was there.
    pub(super) fn map(
        &mut self,
        inode: InodeId,
        file_offset: u64,
        run: Run,
        budget: &mut usize,
        emptied: &mut Vec<ChunkId>,
    ) -> Result<(), Broken> {
        let end = run.end(file_offset);
        self.clear(inode, file_offset, end, budget, emptied)?;
        let mut at = file_offset;
        while at < end {
            let dead = self.dead_from(inode, at).unwrap_or(u64::MAX..u64::MAX);
            let (layer, to) = if dead.start <= at { (Layer::Fresh, dead.end) } else { (Layer::Base, dead.start) };
            let (start, part) = run.part(file_offset, at, to)?;
            self.insert_run(layer, inode, start, part)?;
            at = part.end(start);
        }
        self.acquire(run.chunk, run.length_bytes.into())
    }

    /// Lets nothing in `from..to` be seen: takes it away, or makes the range dead if that is more than what is left of the
    /// entry's bound.
    fn clear(
        &mut self,
        inode: InodeId,
        from: u64,
        to: u64,
        budget: &mut usize,
        emptied: &mut Vec<ChunkId>,
    ) -> Result<(), Broken> {
        let pieces: Vec<LiveRun> = self.live(inode, from, to).take(budget.saturating_add(1)).collect();
        if pieces.len() > *budget {
            return self.bury(inode, from, to, emptied);
        }
        *budget -= pieces.len();
        for LiveRun { offset, run, layer } in pieces {
            self.cut(layer, inode, offset.max(from), run.end(offset).min(to), emptied)?;
        }
        Ok(())
    }

    /// Makes a range dead; fresh extents in it go at once, of which there are not many.
    fn bury(&mut self, inode: InodeId, from: u64, to: u64, emptied: &mut Vec<ChunkId>) -> Result<(), Broken> {
        self.cut(Layer::Fresh, inode, from, to, emptied)?;
        // Behind the last extent there is nothing to free.
        let mut interval = match self.extents.at_or_before(&(inode, u64::MAX)) {
            Some(((owner, offset), run)) if *owner == inode => from..run.end(*offset).min(to),
            Some(_) | None => return Ok(()),
        };
        if interval.is_empty() {
            return Ok(());
        }
        let touching = interval.start.saturating_sub(1)..interval.end.saturating_add(1);
        let merged: Vec<Range<u64>> = self.dead_in(inode, touching).collect();
        for former in merged {
            self.dead.remove(&(inode, former.start));
            interval = interval.start.min(former.start)..interval.end.max(former.end);
        }
        self.dead.insert((inode, interval.start), interval.end);
        Ok(())
    }

    /// Frees extents in dead intervals, at most as many as the entry says, and moves fresh ones over as far as it came.
    pub(super) fn free_dead(&mut self, op: &FreeDead, now_ns: i64) -> Outcome<MutateResponse> {
        let mut budget = usize::try_from(op.max_extents).unwrap_or(usize::MAX).min(self.pieces_max.0);
        let mut emptied = Vec::new();
        for inode in op.inodes.iter().copied().map(InodeId) {
            while budget > 0
                && let Some(dead) = self.dead_from(inode, 0)
            {
                budget -= self.free_front(inode, dead, budget, &mut emptied)?.min(budget);
            }
        }
        self.free_emptied(&emptied, now_ns)?;
        Ok(MutateResponse::default())
    }

    /// Frees the front of a dead interval; answers the pieces that were touched, at least 1.
    fn free_front(
        &mut self,
        inode: InodeId,
        dead: Range<u64>,
        max_pieces: usize,
        emptied: &mut Vec<ChunkId>,
    ) -> Result<usize, Broken> {
        let reach = |layer| {
            let last = intersecting(self.layer(layer), inode, dead.start, dead.end).nth(max_pieces - 1);
            last.map_or(dead.end, |(offset, run)| run.end(offset).min(dead.end))
        };
        let reached = reach(Layer::Base).min(reach(Layer::Fresh));
        let freed = self.cut(Layer::Base, inode, dead.start, reached, emptied)?;
        let moved = self.take_runs(Layer::Fresh, inode, dead.start, reached)?;
        for (offset, run) in &moved {
            self.move_over(inode, *offset, *run)?;
        }
        if self.dead.remove(&(inode, dead.start)).is_none() {
            return broken(format!("inode {inode} has no dead interval at {}", dead.start));
        }
        if reached < dead.end {
            self.dead.insert((inode, reached), dead.end);
        }
        Ok((freed + moved.len()).max(1))
    }

    /// Puts a fresh extent, or the part of one that the leader came to, into the base, joined with the part before it.
    fn move_over(&mut self, inode: InodeId, offset: u64, run: Run) -> Result<(), Broken> {
        let before = self.extents.at_or_before(&(inode, offset)).filter(|((owner, start), before)| {
            let goes_on = before.chunk_offset + before.length_bytes == run.chunk_offset;
            *owner == inode && before.end(*start) == offset && before.chunk == run.chunk && goes_on
        });
        let Some(((_, start), _)) = before else {
            return self.insert_run(Layer::Base, inode, offset, run);
        };
        let start = *start;
        let mut joined = run;
        for (_, before) in self.take_runs(Layer::Base, inode, start, offset)? {
            joined.chunk_offset = before.chunk_offset;
            joined.length_bytes += before.length_bytes;
        }
        self.insert_run(Layer::Base, inode, start, joined)
    }

    /// Takes away at most so many dead intervals of an inode that is going and has no extents, and says whether none is
    /// left.
    pub(super) fn drop_dead(&mut self, inode: InodeId, max_count: usize) -> bool {
        let intervals: Vec<u64> = self.dead_in(inode, 0..u64::MAX).take(max_count).map(|dead| dead.start).collect();
        for start in intervals {
            self.dead.remove(&(inode, start));
        }
        !self.has_dead(inode)
    }

    /// Inodes that have dead intervals, ascending, at most `max_count`.
    #[must_use]
    pub fn inodes_with_dead(&self, max_count: usize) -> Vec<InodeId> {
        let mut inodes: Vec<InodeId> = Vec::new();
        let mut from = (InodeId(0), 0);
        while inodes.len() < max_count {
            let next = self.dead.range(Bound::Included(&from), Bound::Unbounded).next();
            let Some((inode, _)) = next.map(|(key, _)| *key) else { break };
            inodes.push(inode);
            from = (InodeId(inode.0 + 1), 0);
        }
        inodes
    }

    /// Pages that these ranges, ascending and apart, would map and that are not charged yet. Where there are more pieces than
    /// the entry may look at, all are taken for new.
    pub(super) fn newly_mapped_pages(&self, inode: InodeId, ranges: impl Iterator<Item = (u64, u64)>) -> u64 {
        let mut budget = self.pieces_budget();
        let (mut counted, mut next) = (0, 0);
        for (from, to) in ranges {
            let (first, end) = (next.max(from / PAGE), to.div_ceil(PAGE));
            if end > first {
                let charged = self.count_live_pages(inode, first..end, &mut budget);
                counted += (end - first) - charged - self.count_allocated(inode, first..end);
                next = end;
            }
        }
        counted
    }

    fn count_live_pages(&self, inode: InodeId, pages: Range<u64>, budget: &mut usize) -> u64 {
        let (mut counted, mut next) = (0, pages.start);
        for live in self.live(inode, pages.start.saturating_mul(PAGE), pages.end.saturating_mul(PAGE)) {
            let Some(rest) = budget.checked_sub(1) else { break };
            *budget = rest;
            let from = next.max(live.offset / PAGE);
            let to = pages.end.min(live.run.end(live.offset).div_ceil(PAGE));
            if to > from {
                counted += to - from;
                next = to;
            }
        }
        counted
    }
}
