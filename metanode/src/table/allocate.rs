//! Allocated pages: what fallocate set aside in a file and nothing was written to yet. They read as holes and are charged as
//! mapped pages are; a commit that maps one takes it over. From feature level 1 on; before, fallocate only set the size.
//!
//! Kept as intervals of pages, apart and not adjacent, none of which an extent touches. An inode's count of mapped pages is
//! that of touched and allocated ones.

use super::attributes::may_have_size;
use super::extents::PAGE;
use super::namespace::with_attr;
use super::{Broken, Outcome, Table, broken};
use holdfast_common::InodeId;
use holdfast_proto::meta::{Code, Fallocate, FallocateMode, MutateResponse};
use std::ops::{Bound, Range};

/// Most pieces of a file that one fallocate walks over; the client asks again for the rest of its range.
const ALLOCATE_PIECES_MAX: usize = 4096;

/// Allocated intervals that weigh as much as one piece of a file in an entry's bound: a piece is taken out of several trees, an interval of
/// one.
const INTERVALS_OF_A_PIECE: usize = 16;

/// Pages of a range that are neither touched nor allocated.
struct FreePages {
    /// Ascending and apart.
    runs: Vec<Range<u64>>,
    /// End of the walk: the end of the range unless there were too many pieces.
    reached: u64,
}

impl FreePages {
    fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }
}

impl Table {
    pub(super) fn fallocate(&mut self, op: &Fallocate, now_ns: i64) -> Outcome<MutateResponse> {
        let id = InodeId(op.inode);
        let inode = self.inode(id)?;
        let Ok(mode) = FallocateMode::try_from(op.mode) else {
            return Err(Code::NotSupported.into());
        };
        if op.length_bytes == 0 {
            return Err(Code::Invalid.into());
        }
        let end = op.offset.checked_add(op.length_bytes).ok_or(Code::FileTooLarge)?;
        may_have_size(inode.kind, end)?;
        let (removes, allocates) = match mode {
            FallocateMode::Allocate => (false, true),
            FallocateMode::PunchHole => (true, false),
            FallocateMode::ZeroRange => (true, true),
        };
        if removes {
            self.may_cut(id)?;
        }
        let pages = op.offset / PAGE..end.div_ceil(PAGE);
        let charges = allocates && self.feature_level() >= 1;
        if charges {
            let free = self.free_pages(id, pages.clone());
            // Zeroing leaves no pieces: behind where the walk ended, all is taken for new.
            let unseen = if removes { pages.end - free.reached } else { 0 };
            self.may_allocate(free.count() + unseen, op.available_bytes)?;
        }
        if removes {
            let whole_pages = op.offset.div_ceil(PAGE)..end / PAGE;
            self.thin_allocated(id, whole_pages.clone())?;
            self.unmap(id, op.offset, end, now_ns)?;
            self.deallocate(id, whole_pages)?;
        }
        let covered_bytes =
            if charges { self.allocate(id, pages)?.saturating_mul(PAGE).min(end) - op.offset } else { 0 };
        self.kill_capability(id);
        let mut inode = self.known_mut(id)?;
        if removes {
            inode.truncate_generation += 1;
        }
        if allocates && !op.keep_size {
            inode.size_bytes = inode.size_bytes.max(end);
        }
        inode.touch(now_ns);
        Ok(MutateResponse { covered_bytes, ..with_attr(inode.attr(id)) })
    }

    /// R29: within the quota, and with all that is allocated within what the disks had left when the leader looked.
    fn may_allocate(&self, more_pages: u64, available_bytes: Option<u64>) -> Result<(), Code> {
        if !self.fits_quota(self.counters.reserved_bytes, more_pages) {
            return Err(Code::Quota);
        }
        let allocated_bytes = self.counters.allocated_pages.saturating_add(more_pages).saturating_mul(PAGE);
        if more_pages > 0 && available_bytes.is_some_and(|available_bytes| allocated_bytes > available_bytes) {
            return Err(Code::NoSpace);
        }
        Ok(())
    }

    /// Allocates what is free in the range and says up to which page it came.
    fn allocate(&mut self, inode: InodeId, pages: Range<u64>) -> Result<u64, Broken> {
        let free = self.free_pages(inode, pages);
        for run in &free.runs {
            self.insert_allocated(inode, run.clone());
        }
        self.counters.allocated_pages = self.counters.allocated_pages.saturating_add(free.count());
        self.change_mapped_pages(inode, free.count(), 0)?;
        Ok(free.reached)
    }

    fn free_pages(&self, inode: InodeId, pages: Range<u64>) -> FreePages {
        let mut free = FreePages { runs: Vec::new(), reached: pages.start };
        for _ in 0..ALLOCATE_PIECES_MAX {
            let taken = self.next_charged(inode, free.reached..pages.end).unwrap_or(pages.end..pages.end);
            if taken.start > free.reached {
                free.runs.push(free.reached..taken.start);
            }
            free.reached = taken.end.min(pages.end);
            if free.reached == pages.end {
                break;
            }
        }
        free
    }

    /// The first pages of the range that an extent touches or that are allocated.
    fn next_charged(&self, inode: InodeId, pages: Range<u64>) -> Option<Range<u64>> {
        let (from, to) = (pages.start.saturating_mul(PAGE), pages.end.saturating_mul(PAGE));
        let touched = self.live(inode, from, to).next();
        let touched =
            touched.map(|live| (live.offset / PAGE).max(pages.start)..live.run.end(live.offset).div_ceil(PAGE));
        let allocated = self.allocated_in(inode, pages.clone()).next();
        let allocated = allocated.map(|interval| interval.start.max(pages.start)..interval.end);
        touched.into_iter().chain(allocated).min_by_key(|taken| taken.start)
    }

    /// The intervals that have pages in the range, whole, ascending.
    fn allocated_in(&self, inode: InodeId, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = match self.allocated.at_or_before(&(inode, pages.start)) {
            Some(((owner, start), end)) if *owner == inode && *end > pages.start => *start,
            _ => pages.start,
        };
        let (first, last) = ((inode, first.min(pages.end)), (inode, pages.end));
        let intervals = self.allocated.range(Bound::Included(&first), Bound::Excluded(&last));
        intervals.map(|((_, start), end)| *start..*end)
    }

    pub(super) fn count_allocated(&self, inode: InodeId, pages: Range<u64>) -> u64 {
        let within = |interval: Range<u64>| interval.end.min(pages.end) - interval.start.max(pages.start);
        self.allocated_in(inode, pages.clone()).map(within).sum()
    }

    /// Adds an interval of free pages, joined with those it is adjacent to.
    fn insert_allocated(&mut self, inode: InodeId, mut pages: Range<u64>) {
        if let Some(end) = self.allocated.remove(&(inode, pages.end)) {
            pages.end = end;
        }
        match self.allocated.at_or_before(&(inode, pages.start)) {
            Some(((owner, start), end)) if *owner == inode && *end == pages.start => pages.start = *start,
            _ => {}
        }
        self.allocated.insert((inode, pages.start), pages.end);
    }

    /// Takes pages out of the allocated ones, and says how many.
    pub(super) fn deallocate(&mut self, inode: InodeId, pages: Range<u64>) -> Result<u64, Broken> {
        if pages.is_empty() {
            return Ok(0);
        }
        let hit: Vec<Range<u64>> = self.allocated_in(inode, pages.clone()).collect();
        let mut gone = 0;
        for interval in hit {
            self.allocated.remove(&(inode, interval.start));
            for kept in [interval.start..pages.start, pages.end..interval.end] {
                if !kept.is_empty() {
                    self.allocated.insert((inode, kept.start), kept.end);
                }
            }
            gone += interval.end.min(pages.end) - interval.start.max(pages.start);
        }
        match self.counters.allocated_pages.checked_sub(gone) {
            Some(rest) => self.counters.allocated_pages = rest,
            None => return broken("allocated pages do not add up"),
        }
        self.change_mapped_pages(inode, 0, gone)?;
        Ok(gone)
    }

    /// Bound on the allocated intervals that one entry takes away: beyond it the first go now, and the operation answers UNAVAILABLE and is
    /// asked again. They read as zeros before and after.
    pub(super) fn thin_allocated(&mut self, inode: InodeId, pages: Range<u64>) -> Outcome<()> {
        if self.feature_level() < 3 || pages.is_empty() {
            return Ok(());
        }
        let max = self.pieces_budget().saturating_mul(INTERVALS_OF_A_PIECE);
        let Some(rest) = self.allocated_in(inode, pages.clone()).nth(max) else { return Ok(()) };
        self.deallocate(inode, pages.start..rest.start)?;
        Err(Code::Unavailable.into())
    }

    /// Takes away at most so many intervals of an inode that is going, and says whether none is left.
    pub(super) fn drop_allocated(&mut self, inode: InodeId, max_intervals: usize) -> Result<bool, Broken> {
        let rest = self.allocated_in(inode, 0..u64::MAX).nth(max_intervals).map(|interval| interval.start);
        self.deallocate(inode, 0..rest.unwrap_or(u64::MAX))?;
        Ok(rest.is_none())
    }

    /// Bytes that fallocate set aside and nothing was written to yet.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.counters.allocated_pages.saturating_mul(PAGE)
    }
}
