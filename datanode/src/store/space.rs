//! Space of a disk (R29): thresholds, reservations of sessions, and disks that share a file system.
//!
//! The decisions are pure ([`Budget`]); [`Shelves`] holds what disks of one process that share a file system must know of
//! each other, so that none promises the same free bytes twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::types::SessionKey;
use parking_lot::Mutex;

use holdfast_storage::FileSystemSpace;

/// Soft threshold as a part of the space: one byte in this many is kept from client writes.
const SOFT_PART: u64 = 25;
/// Greatest soft threshold.
const SOFT_BYTES_MAX: u64 = 4 << 30;
/// Longest time a reservation lasts.
pub(crate) const RESERVATION_LEASE_MAX: Duration = Duration::from_secs(60);
/// Sessions that may hold reservations on a disk at once.
pub(crate) const RESERVING_SESSIONS_MAX: usize = 65_536;

/// Thresholds of free space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Below: no client writes.
    pub(crate) soft_bytes: u64,
    /// Below: no repair and no compaction.
    pub(crate) hard_bytes: u64,
    /// Below: nothing but deletes, tombstones and logs.
    pub(crate) reserve_bytes: u64,
}

impl Thresholds {
    #[must_use]
    pub(crate) fn of(total_bytes: u64) -> Self {
        let soft_bytes = (total_bytes / SOFT_PART).min(SOFT_BYTES_MAX);
        Self { soft_bytes, hard_bytes: soft_bytes / 2, reserve_bytes: soft_bytes / 4 }
    }
}

/// Room in one space, be it the file system or the configured limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    total_bytes: u64,
    free_bytes: u64,
    reserved_bytes: u64,
}

impl Room {
    /// Bytes for a session that holds `own_bytes` of what is reserved.
    fn for_session(&self, own_bytes: u64) -> u64 {
        let others = self.reserved_bytes.saturating_sub(own_bytes);
        self.free_bytes.saturating_sub(Thresholds::of(self.total_bytes).soft_bytes).saturating_sub(others)
    }
}

/// Free space of a disk and who may use it, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    file_system: Room,
    limit: Option<Room>,
    sharers_count: u64,
}

impl Budget {
    /// Budget of a disk that uses `used_bytes` of an optional limit.
    #[must_use]
    pub(crate) fn new(space: &FileSystemSpace, used_bytes: u64, limit_bytes: Option<u64>) -> Self {
        let room = |total_bytes, free_bytes| Room { total_bytes, free_bytes, reserved_bytes: 0 };
        Self {
            file_system: room(space.total_bytes, space.available_bytes),
            limit: limit_bytes.map(|limit| room(limit, limit.saturating_sub(used_bytes))),
            sharers_count: 1,
        }
    }

    #[must_use]
    pub(crate) fn total_bytes(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| limit.total_bytes).min(self.file_system.total_bytes)
    }

    /// Bytes a session may write that has `own_bytes` reserved here.
    #[must_use]
    pub(crate) fn for_session(&self, own_bytes: u64) -> u64 {
        let limited = self.limit.map_or(u64::MAX, |limit| limit.for_session(own_bytes));
        self.file_system.for_session(own_bytes).min(limited)
    }

    /// Bytes a disk may call available, so that the sum over disks that share a file system counts them once.
    #[must_use]
    pub(crate) fn share(&self) -> u64 {
        let limited = self.limit.map_or(u64::MAX, |limit| limit.for_session(0));
        (self.file_system.for_session(0) / self.sharers_count.max(1)).min(limited)
    }

    /// Bytes clients could write if nobody had reserved any: what the volume manager is told. It knows which disks share
    /// a file system, so this is not divided.
    #[must_use]
    pub(crate) fn unreserved(&self) -> u64 {
        let room = |room: Room| Room { reserved_bytes: 0, ..room }.for_session(0);
        room(self.file_system).min(self.limit.map_or(u64::MAX, room))
    }

    /// Whether compaction may run: it needs room before it gives any back.
    #[must_use]
    pub(crate) fn allows_compaction(&self) -> bool {
        self.file_system.free_bytes >= Thresholds::of(self.file_system.total_bytes).hard_bytes
    }
}

#[derive(Debug, Clone, Copy)]
struct Reservation {
    bytes: u64,
    /// On the clock of all who share the shelf.
    until: Duration,
}

type Sessions = BTreeMap<SessionKey, Reservation>;

/// Reservations on the disks of one file system.
#[derive(Debug, Default)]
struct Shelf {
    disks: BTreeMap<u64, Sessions>,
}

impl Shelf {
    /// Completes a budget with what all sharers hold, and says what `session` holds on disk `member`.
    fn fill(&mut self, budget: &mut Budget, member: u64, session: SessionKey, now: Duration) -> u64 {
        for sessions in self.disks.values_mut() {
            sessions.retain(|_, reservation| reservation.until > now && reservation.bytes > 0);
        }
        let sum = |sessions: &Sessions| sessions.values().map(|r| r.bytes).sum::<u64>();
        budget.file_system.reserved_bytes = self.disks.values().map(sum).sum();
        budget.sharers_count = self.disks.len() as u64;
        let Some(here) = self.disks.get(&member) else { return 0 };
        if let Some(limit) = &mut budget.limit {
            limit.reserved_bytes = sum(here);
        }
        here.get(&session).map_or(0, |reservation| reservation.bytes)
    }
}

/// The shelves of a process, one a file system. Made once at its start and handed to each store; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelves(Arc<Mutex<ByFileSystem>>);

#[derive(Debug, Default)]
struct ByFileSystem {
    shelves: BTreeMap<u64, Arc<Mutex<Shelf>>>,
    members_count: u64,
}

impl Shelves {
    /// Adds a disk to those that share a file system.
    #[must_use]
    pub(crate) fn join(&self, file_system: u64) -> SpaceBook {
        let mut all = self.0.lock();
        all.members_count += 1;
        let member = all.members_count;
        all.shelves.retain(|_, shelf| !shelf.lock().disks.is_empty());
        let shelf = all.shelves.entry(file_system).or_default().clone();
        shelf.lock().disks.insert(member, Sessions::new());
        SpaceBook { shelf, member }
    }
}

/// A disk's view of the shelf it shares. Leaves it when dropped.
#[derive(Debug)]
pub(crate) struct SpaceBook {
    shelf: Arc<Mutex<Shelf>>,
    member: u64,
}

impl SpaceBook {
    /// Completes a budget with what sharers hold, and says what `session` holds here.
    pub(crate) fn fill(&self, budget: &mut Budget, session: SessionKey, now: Duration) -> u64 {
        self.shelf.lock().fill(budget, self.member, session, now)
    }

    /// A put of a session was admitted: its reservation shrinks by what it took.
    pub(crate) fn draw(&self, session: SessionKey, bytes: u64) {
        let mut shelf = self.shelf.lock();
        let own = shelf.disks.get_mut(&self.member).and_then(|sessions| sessions.get_mut(&session));
        if let Some(reservation) = own {
            reservation.bytes = reservation.bytes.saturating_sub(bytes);
        }
    }

    /// Sets a session's reservation to `wanted_bytes`, or to as much of it as there is; says what was granted.
    pub(crate) fn reserve(
        &self,
        mut budget: Budget,
        session: SessionKey,
        wanted_bytes: u64,
        lease: Duration,
        now: Duration,
    ) -> u64 {
        let mut shelf = self.shelf.lock();
        let own = shelf.fill(&mut budget, self.member, session, now);
        let granted = wanted_bytes.min(budget.for_session(own));
        let sessions = shelf.disks.entry(self.member).or_default();
        if granted == 0 {
            sessions.remove(&session);
            return 0;
        }
        if sessions.len() >= RESERVING_SESSIONS_MAX && !sessions.contains_key(&session) {
            return 0;
        }
        sessions.insert(session, Reservation { bytes: granted, until: now + lease.min(RESERVATION_LEASE_MAX) });
        granted
    }
}

impl Drop for SpaceBook {
    fn drop(&mut self) {
        self.shelf.lock().disks.remove(&self.member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_common::{SessionId, VolumeId};

    const SPACE: FileSystemSpace =
        FileSystemSpace { total_bytes: 100 << 20, available_bytes: 50 << 20, file_system: 1 };
    const LEASE: Duration = Duration::from_secs(10);
    const NOW: Duration = Duration::from_secs(1);

    fn session(number: u64) -> SessionKey {
        SessionKey { volume: VolumeId(1), session: SessionId(number) }
    }

    #[test]
    fn sessions_of_two_volumes_with_one_number_have_reservations_of_their_own() {
        let (book, now) = (Shelves::default().join(1), NOW);
        let space = FileSystemSpace { total_bytes: 1 << 30, available_bytes: 1 << 30, file_system: 1 };
        let budget = Budget::new(&space, 0, None);
        let other = SessionKey { volume: VolumeId(2), ..session(1) };
        book.reserve(budget, session(1), 40 << 20, LEASE, now);
        book.reserve(budget, other, 10 << 20, LEASE, now);
        let mut seen = budget;
        assert_eq!(book.fill(&mut seen, session(1), now), 40 << 20);
        assert_eq!(book.fill(&mut seen, other, now), 10 << 20);
    }

    #[test]
    fn a_reservation_is_kept_from_others_and_drawn_on_by_its_session() {
        let book = Shelves::default().join(1);
        let now = NOW;
        let budget = Budget::new(&SPACE, 0, None);
        let soft = 4 << 20;
        assert_eq!(book.reserve(budget, session(1), 40 << 20, LEASE, now), 40 << 20);
        assert_eq!(book.reserve(budget, session(2), 40 << 20, LEASE, now), (10 << 20) - soft);
        let mut seen = budget;
        let own = book.fill(&mut seen, session(1), now);
        assert_eq!(seen.for_session(own), 40 << 20);
        assert_eq!(seen.for_session(0), 0);
        book.draw(session(1), 30 << 20);
        assert_eq!(book.fill(&mut seen, session(1), now), 10 << 20);
    }

    #[test]
    fn a_reservation_ends_with_its_lease() {
        let book = Shelves::default().join(1);
        let now = NOW;
        let budget = Budget::new(&SPACE, 0, None);
        book.reserve(budget, session(1), 40 << 20, LEASE, now);
        let mut seen = budget;
        assert_eq!(book.fill(&mut seen, session(1), now + LEASE), 0);
        assert_eq!(seen.for_session(0), 46 << 20);
    }

    #[test]
    fn disks_that_share_a_file_system_count_its_space_once() {
        let shelves = Shelves::default();
        let books: Vec<SpaceBook> = (0..5).map(|_| shelves.join(1)).collect();
        let elsewhere = shelves.join(2);
        let now = NOW;
        let mut sum = 0;
        for book in &books {
            let mut budget = Budget::new(&SPACE, 0, None);
            book.fill(&mut budget, SessionKey::NOBODY, now);
            sum += budget.share();
        }
        assert_eq!(sum, (46 << 20) / 5 * 5);
        let budget = Budget::new(&SPACE, 0, None);
        let first = books[0].reserve(budget, session(1), 40 << 20, LEASE, now);
        let second = books[1].reserve(budget, session(1), 40 << 20, LEASE, now);
        assert_eq!(first + second, 46 << 20);
        let mut budget = Budget::new(&SPACE, 0, None);
        elsewhere.fill(&mut budget, SessionKey::NOBODY, now);
        assert_eq!(budget.share(), 46 << 20, "another file system");
    }

    #[test]
    fn a_limit_makes_the_disk_smaller() {
        let budget = Budget::new(&SPACE, 6 << 20, Some(25 << 20));
        assert_eq!(budget.total_bytes(), 25 << 20);
        assert_eq!(budget.for_session(0), (25 - 6 - 1) << 20);
        assert_eq!(Budget::new(&SPACE, 30 << 20, Some(25 << 20)).for_session(0), 0);
    }
}
