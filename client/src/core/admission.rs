//! Needs of a write before it is taken in: memory, space on the disks (ENOSPC is said here) and quota (EDQUOT is said
//! here). Pure accounts; the order of writers is the core's.
//!
//! Each dirty range is charged the 4 KiB pages it touches, which is never less than what it will map. The table holds the
//! session's reservation of quota; it is raised in steps and consumed by commits. What is dirty must also be covered by
//! reservations on enough disks for some stripe. Those are soft: they last a lease, puts draw on them, and what is not
//! renewed falls back to everybody.

use super::ranges::Ranges;
use super::time::Moment;
use holdfast_common::FileOffset;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_erasure::CodeMode;
use holdfast_proto::data::{DiskGrant, Status};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Quota reserved beyond the present need, so that one Raft entry serves many writes.
pub(crate) const QUOTA_SLACK_BYTES: u64 = 64 << 20;
/// Space covered beyond the present need, so that one round of requests serves many writes.
pub(crate) const SPACE_SLACK_BYTES: u64 = 128 << 20;
/// Lifetime of a reservation of space at the datanodes.
pub(crate) const SPACE_LEASE: Duration = Duration::from_secs(20);
/// A cover older than this is renewed before it is relied on.
pub(super) const SPACE_RENEW_AFTER: Duration = Duration::from_secs(10);
/// A datanode that does not answer by then is left out; the write itself will find other members.
pub(crate) const SPACE_TIMEOUT: Duration = Duration::from_secs(1);
/// A shard takes its length and a header with checksums: one page in sixteen covers it from 64 KiB on.
pub(crate) const OVERHEAD_DIVISOR: u64 = 16;
/// One part in so many of a shared file system's free bytes is not relied on.
const SHARED_MARGIN_DIVISOR: u64 = 8;

/// 4 KiB pages that a range touches, in bytes.
pub(crate) fn charge(offset: FileOffset, length: u64) -> u64 {
    let page = u64::from(PAGE_BYTES);
    if length == 0 { 0 } else { (offset + length).0.div_ceil(page) * page - offset.0 / page * page }
}

/// Quota charges of one inode's dirty data, by page: a generation takes along the charges of its own pages, and never those that
/// later pages need.
#[derive(Debug, Default)]
pub(crate) struct Charges {
    /// Pages that were charged, each once.
    pages: Ranges,
    /// Charges that belong to no page: for pages that were charged before, for an append that touched one page less than it might
    /// have, and for a write whose unmapped pages were counted.
    loose_bytes: u64,
}

impl Charges {
    /// A write was charged so much.
    pub(crate) fn add(&mut self, offset: FileOffset, length: u64, charged_bytes: u64) {
        let page = u64::from(PAGE_BYTES);
        if is_counted(offset, length, charged_bytes) {
            self.loose_bytes += charged_bytes;
        } else if charged_bytes > 0 {
            let pages_count = self.pages.insert(offset.0 / page, (offset + length).0.div_ceil(page));
            self.loose_bytes += charged_bytes - pages_count * page;
        }
    }

    /// Takes what belongs to data that ends at `end`, or all if nothing is left behind it. A page across the end goes with what is
    /// before it, which is committed first.
    pub(crate) fn take(&mut self, end: Option<FileOffset>) -> u64 {
        let page = u64::from(PAGE_BYTES);
        let pages_count = self.pages.take_below(end.map_or(u64::MAX, |end| end.0.div_ceil(page)));
        pages_count * page + std::mem::take(&mut self.loose_bytes)
    }
}

/// Whether a write was charged the pages that the table says are not mapped, instead of all that it touches.
pub(crate) fn is_counted(offset: FileOffset, length: u64, charged_bytes: u64) -> bool {
    charged_bytes > 0 && charged_bytes < charge(offset, length)
}

/// Memory for dirty and frozen data, in bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    total_bytes: usize,
    used_bytes: usize,
}

impl Memory {
    pub(crate) fn new(total_bytes: usize) -> Self {
        Self { total_bytes, used_bytes: 0 }
    }

    /// Whether a write of so many bytes has room. One that is larger than all the memory has it alone.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.used_bytes == 0 || self.used_bytes + bytes <= self.total_bytes
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.used_bytes += bytes;
    }

    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.used_bytes = self.used_bytes.checked_sub(bytes).expect("what comes back was taken");
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Less than half is free: time to flush whatever is dirty.
    pub(crate) fn is_pressed(&self) -> bool {
        self.used_bytes > self.total_bytes / 2
    }
}

/// The session's reservation of the volume's quota.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    /// False without a limit: nothing is reserved then.
    pub(crate) limited: bool,
    /// Bytes that the table holds for the session.
    reserved_bytes: u64,
    /// Bytes charged for dirty and flushing data.
    charged_bytes: u64,
    /// The table may hold something for the session.
    holds: bool,
    /// Charges that ended, ever: what commits consumed while a raise was under way.
    flushed_bytes: u64,
}

impl Quota {
    pub(crate) fn new(limited: bool) -> Self {
        Self { limited, ..Self::default() }
    }

    pub(crate) fn fits(&self, bytes: u64) -> bool {
        !self.limited || bytes == 0 || self.charged_bytes + bytes <= self.reserved_bytes
    }

    pub(crate) fn charge(&mut self, bytes: u64) {
        self.charged_bytes += bytes;
    }

    pub(crate) fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    pub(crate) fn flushed_bytes(&self) -> u64 {
        self.flushed_bytes
    }

    /// A charge ends, and so does that part of the reservation.
    pub(crate) fn flush(&mut self, bytes: u64) {
        self.charged_bytes = self.charged_bytes.checked_sub(bytes).expect("what is flushed was charged");
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
        self.flushed_bytes += bytes;
    }

    /// The table answered a raise that was asked for when `flushed_before` was flushed. Whether commits that ended since
    /// came before or after it is not known; the careful guess is after.
    pub(crate) fn raised(&mut self, reserved_bytes: u64, flushed_before: u64) {
        self.reserved_bytes = reserved_bytes.saturating_sub(self.flushed_bytes - flushed_before);
        self.holds = true;
    }

    /// Whether the reservation should go back: nothing is dirty. From then on writers have to raise it again. What the
    /// table holds may be more than this side knows of, as a commit and a raise can cross.
    pub(crate) fn take_unused(&mut self) -> bool {
        let unused = self.limited && self.holds && self.charged_bytes == 0;
        if unused {
            (self.reserved_bytes, self.holds) = (0, false);
        }
        unused
    }

    /// A new session holds nothing.
    pub(crate) fn forget(&mut self) {
        (self.reserved_bytes, self.holds) = (0, false);
    }
}

/// Dirty bytes that reservations on the disks cover.
#[derive(Debug, Default)]
pub(crate) struct Cover {
    bytes: u64,
    since: Option<Moment>,
}

impl Cover {
    pub(crate) fn covers(&self, dirty_bytes: u64, now: Moment) -> bool {
        self.bytes >= dirty_bytes && self.is_fresh(now)
    }

    /// Whether the disks' promises are young enough to be relied on.
    pub(crate) fn is_fresh(&self, now: Moment) -> bool {
        self.stale_at(now).is_some()
    }

    /// When that will be too long ago, if it is not yet.
    pub(crate) fn stale_at(&self, now: Moment) -> Option<Moment> {
        self.since.map(|since| since + SPACE_RENEW_AFTER).filter(|at| *at > now)
    }

    /// Flushed data has drawn on the reservations.
    pub(crate) fn flushed(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in what the disks promised. With too few members in reach nothing can be said of space: the write waits for
    /// them later.
    pub(crate) fn granted(&mut self, granted: &[(IpAddr, DiskGrant)], code: CodeMode, now: Moment) -> Granted {
        let known: Vec<_> = granted
            .iter()
            .filter(|(_, grant)| matches!(Status::try_from(grant.status), Ok(Status::Ok | Status::NoSpace)))
            .copied()
            .collect();
        let grants = shared_once(&known);
        if grants.len() <= usize::from(code.m()) {
            return Granted::Unknown;
        }
        *self = Self { bytes: storable_bytes(grants, code), since: Some(now) };
        Granted::Known
    }
}

/// Whether the answers of disks say anything of space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granted {
    Known,
    Unknown,
}

/// Data bytes that disks with these grants could store in the best stripe: d shards on the d + m roomiest.
fn storable_bytes(mut grants: Vec<u64>, code: CodeMode) -> u64 {
    grants.sort_unstable_by(|a, b| b.cmp(a));
    let parity = usize::from(code.m());
    (1..=u64::from(code.k()))
        .zip(parity..)
        .filter_map(|(data, last)| Some(grants.get(last)?.saturating_mul(data)))
        .max()
        .unwrap_or(0)
}

/// Bytes that each disk can be relied on for, without the records' own: disks that share a file system with others of
/// their host get their part of its free bytes at most, less a margin for what else grows there (logs, segments made
/// ahead).
fn shared_once(granted: &[(IpAddr, DiskGrant)]) -> Vec<u64> {
    let mut sharers: BTreeMap<(IpAddr, u64), u64> = BTreeMap::new();
    for (host, grant) in granted {
        *sharers.entry((*host, grant.file_system)).or_default() += 1;
    }
    granted
        .iter()
        .map(|(host, grant)| {
            let free = grant.file_system_free_bytes - grant.file_system_free_bytes / SHARED_MARGIN_DIVISOR;
            let part = match sharers.get(&(*host, grant.file_system)) {
                Some(count) if grant.file_system != 0 && *count > 1 => free / count,
                _ => u64::MAX,
            };
            let bytes = grant.granted_bytes.min(part);
            bytes - bytes / (OVERHEAD_DIVISOR + 1)
        })
        .collect()
}

#[cfg(test)]
mod tests;
