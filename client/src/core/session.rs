//! The session with the metadata table: its life, what it has open, and the chunk ids reserved under it. Pure.
//!
//! A session is *live* while its lease, counted from when the last answered keep-alive was sent, has not run out; *unsure*
//! when it has run out without an answer: dirty data is kept and the same session tried on; *lost* only when the table says
//! so. Then everything unflushed is given up, and another session is opened.

use super::time::Moment;
use holdfast_common::limits::{REQUEST_DEADLINE_MS, SESSION_LEASE_MS};
use holdfast_common::{ChunkId, InodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Inodes released at most in one keep-alive; the rest goes with the next.
const RELEASED_MAX: usize = 16 << 10;
/// Silence after which the table ends a session.
pub(crate) const LEASE: Duration = Duration::from_millis(SESSION_LEASE_MS as u64);

/// Ids that were asked for longer ago are left: a chunk that gets its id now may take a request deadline until it is committed,
/// and two deadlines after they were given out the floor may pass them. They cost nothing, another range one entry.
const CHUNKS_AGE_MAX: Duration = Duration::from_millis(REQUEST_DEADLINE_MS as u64);

/// Knowledge of the session's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is being opened; requests wait.
    Opening,
    /// It was ended by this mount, and no other is opened.
    Closed,
    Live,
    /// Its lease has run out without an answer.
    Unsure,
}

/// Inodes that a request opens, and releases that were told meanwhile: the leader may have seen either first.
#[derive(Debug, Default)]
struct Opening {
    told: BTreeSet<InodeId>,
    /// A list of everything open was told meanwhile, or to another session, and this was not on it.
    listed_without: bool,
}

/// Numbers an open or a create under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpeningId(u64);

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) phase: Phase,
    lease_until: Moment,
    /// Opens by inode.
    counts: BTreeMap<InodeId, u32>,
    /// Not open any more, and the leader was not told.
    released: BTreeSet<InodeId>,
    /// Told by a keep-alive that is not answered.
    telling: BTreeSet<InodeId>,
    openings: BTreeMap<OpeningId, Opening>,
    next_opening: u64,
    chunks: std::ops::Range<u64>,
    /// Until when they are used: the floor follows the ids that are given out, two request deadlines behind.
    chunks_until: Moment,
    pub(crate) reserving_chunks: bool,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Opening,
            lease_until: Moment(0),
            counts: BTreeMap::new(),
            released: BTreeSet::new(),
            telling: BTreeSet::new(),
            openings: BTreeMap::new(),
            next_opening: 0,
            chunks: 0..0,
            chunks_until: Moment(0),
            reserving_chunks: false,
        }
    }

    /// A keep-alive sent at that time was answered: the lease counts from then (R20). One that was sent longer ago than a lease
    /// leaves the session unsure.
    pub(crate) fn renewed(&mut self, sent: Moment, now: Moment) {
        self.lease_until = self.lease_until.max(sent + LEASE);
        match self.phase {
            Phase::Opening => self.phase = Phase::Live,
            Phase::Unsure if now < self.lease_until => self.phase = Phase::Live,
            Phase::Live | Phase::Unsure | Phase::Closed => {}
        }
    }

    /// Whether the session becomes unsure now.
    pub(crate) fn look(&mut self, now: Moment) -> bool {
        let runs_out = self.phase == Phase::Live && now >= self.lease_until;
        if runs_out {
            self.phase = Phase::Unsure;
        }
        runs_out
    }

    /// Time for which this mount still counts on the table to keep the session: what is left of the lease, if it is live.
    pub(crate) fn lease_left(&self, now: Moment) -> Option<Duration> {
        (self.phase == Phase::Live && now < self.lease_until).then(|| self.lease_until.since(now))
    }

    /// Time at which [`Session::look`] will find it unsure.
    pub(crate) fn unsure_at(&self) -> Option<Moment> {
        (self.phase == Phase::Live).then_some(self.lease_until)
    }

    /// The session is gone with all that was reserved under it; what is open stays open, and is told to the next one.
    pub(crate) fn lost(&mut self) {
        self.phase = Phase::Opening;
        self.chunks = 0..0;
        self.reserving_chunks = false;
        self.released.clear();
        self.telling.clear();
        self.openings.values_mut().for_each(|opening| opening.listed_without = true);
    }

    /// This mount ends it.
    pub(crate) fn close_for_good(&mut self) {
        self.phase = Phase::Closed;
    }

    /// An open or a create is about to be sent.
    pub(crate) fn begin_opening(&mut self) -> OpeningId {
        self.next_opening += 1;
        let id = OpeningId(self.next_opening);
        self.openings.insert(id, Opening { told: self.telling.clone(), listed_without: false });
        id
    }

    /// It opened this inode, or nothing. Answers whether the leader must be told again, because a release of the same inode,
    /// or a list without it, was told while it was under way.
    pub(crate) fn end_opening(&mut self, id: OpeningId, inode: Option<InodeId>) -> bool {
        let opening = self.openings.remove(&id).unwrap_or_default();
        let Some(inode) = inode else { return false };
        *self.counts.entry(inode).or_default() += 1;
        self.released.remove(&inode);
        opening.listed_without || opening.told.contains(&inode)
    }

    /// One open less; the leader is told with the next keep-alive.
    pub(crate) fn close(&mut self, inode: InodeId) {
        if let Some(count) = self.counts.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&inode);
                self.released.insert(inode);
            }
        }
    }

    /// Inodes that a keep-alive tells to be released.
    pub(crate) fn tell_released(&mut self) -> Vec<u64> {
        let told: Vec<InodeId> = self.released.iter().copied().take(RELEASED_MAX).collect();
        for inode in &told {
            self.released.remove(inode);
            self.telling.insert(*inode);
            for opening in self.openings.values_mut() {
                opening.told.insert(*inode);
            }
        }
        told.iter().map(|inode| inode.0).collect()
    }

    /// A keep-alive was answered, or will not be: then the releases are told again, except of what was opened since.
    pub(crate) fn told(&mut self, heard: bool) {
        let telling = std::mem::take(&mut self.telling);
        if !heard {
            self.released.extend(telling.into_iter().filter(|inode| !self.counts.contains_key(inode)));
        }
    }

    /// Everything that is open, to be told. What is being opened is not on the list.
    pub(crate) fn list_open(&mut self) -> Vec<u64> {
        self.openings.values_mut().for_each(|opening| opening.listed_without = true);
        self.counts.keys().map(|inode| inode.0).collect()
    }

    /// A chunk id never used before (R1, R3), if some are left that the floor does not come near before they are committed.
    pub(crate) fn next_chunk(&mut self, now: Moment) -> Option<ChunkId> {
        if now >= self.chunks_until {
            self.leave_chunks();
        }
        self.chunks.next().map(ChunkId)
    }

    /// The next chunk gets the id of the last one.
    pub(crate) fn use_again(&mut self, chunk: ChunkId) {
        if chunk.0 + 1 == self.chunks.start {
            self.chunks.start = chunk.0;
        }
    }

    /// Ids that were asked for at that time.
    pub(crate) fn add_chunks(&mut self, first: u64, count: u32, asked: Moment) {
        self.chunks = first..first + u64::from(count);
        self.chunks_until = asked + CHUNKS_AGE_MAX;
    }

    /// Ids below the floor are of no use any more (R4).
    pub(crate) fn heed_floor(&mut self, floor: u64) {
        self.chunks.start = self.chunks.start.max(floor).min(self.chunks.end);
    }

    /// The ids left are below the floor, or about to be.
    pub(crate) fn leave_chunks(&mut self) {
        self.chunks = 0..0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(5);

    fn opened(session: &mut Session) -> bool {
        let opening = session.begin_opening();
        session.end_opening(opening, Some(FILE))
    }

    #[test]
    fn a_session_is_unsure_a_lease_after_its_last_answered_keep_alive_was_sent() {
        let mut session = Session::new();
        session.renewed(Moment(0), Moment(0));
        assert!(!session.look(Moment(0) + LEASE / 2));
        session.renewed(Moment(0) + LEASE / 4, Moment(0) + LEASE / 2);
        assert!(!session.look(Moment(0) + LEASE));
        assert!(session.look(Moment(0) + LEASE * 2) && session.phase == Phase::Unsure);
        assert!(!session.look(Moment(0) + LEASE * 2), "it is said once");
        session.renewed(Moment(0) + LEASE / 2, Moment(0) + LEASE * 2);
        assert_eq!(session.phase, Phase::Unsure, "that was too long ago");
        session.renewed(Moment(0) + LEASE * 2, Moment(0) + LEASE * 2);
        assert_eq!(session.phase, Phase::Live);
    }

    #[test]
    fn a_release_is_told_when_the_last_handle_is_closed_and_not_after_another_open() {
        let mut session = Session::new();
        assert!(!opened(&mut session) && !opened(&mut session));
        session.close(FILE);
        assert!(session.tell_released().is_empty());
        session.close(FILE);
        assert!(!opened(&mut session));
        assert!(session.tell_released().is_empty());
    }

    /// Interleaving: the leader sees the create's open before the release that was told before it.
    #[test]
    fn an_open_that_crosses_a_release_is_told_again() {
        let mut session = Session::new();
        opened(&mut session);
        let before = session.begin_opening();
        session.close(FILE);
        assert_eq!(session.tell_released(), [FILE.0]);
        let after = session.begin_opening();
        session.told(true);
        let later = session.begin_opening();
        assert!(session.end_opening(before, Some(FILE)));
        assert!(session.end_opening(after, Some(FILE)));
        assert!(!session.end_opening(later, Some(FILE)));
    }

    /// Interleaving: the former leader answers an open, and the list for its successor is made before that is heard.
    #[test]
    fn an_open_that_crosses_a_list_of_all_that_is_open_is_told_again() {
        let mut session = Session::new();
        let opening = session.begin_opening();
        assert!(session.list_open().is_empty());
        assert!(session.end_opening(opening, Some(FILE)));
        assert_eq!(session.list_open(), [FILE.0]);
        let opening = session.begin_opening();
        session.lost();
        assert!(session.end_opening(opening, Some(FILE)));
    }

    #[test]
    fn chunk_ids_are_left_below_the_floor_and_a_deadline_after_they_were_asked_for() {
        let mut session = Session::new();
        assert_eq!(session.next_chunk(Moment(0)), None);
        session.add_chunks(10, 5, Moment(0));
        assert_eq!(session.next_chunk(Moment(0)), Some(ChunkId(10)));
        session.heed_floor(5);
        assert_eq!(session.next_chunk(Moment(0)), Some(ChunkId(11)));
        session.heed_floor(14);
        assert_eq!(session.next_chunk(Moment(0) + CHUNKS_AGE_MAX / 2), Some(ChunkId(14)));
        assert_eq!(session.next_chunk(Moment(0)), None);
        session.add_chunks(20, 5, Moment(0));
        session.heed_floor(99);
        assert_eq!(session.next_chunk(Moment(0)), None);
        session.add_chunks(30, 5, Moment(0));
        assert_eq!(session.next_chunk(Moment(0) + CHUNKS_AGE_MAX), None);
    }

    #[test]
    fn releases_whose_keep_alive_was_not_heard_are_told_again() {
        let mut session = Session::new();
        opened(&mut session);
        session.close(FILE);
        session.tell_released();
        session.told(false);
        assert_eq!(session.tell_released(), [FILE.0]);
    }

    /// Interleaving: a release is told and not heard, and the file is opened again meanwhile.
    #[test]
    fn a_release_that_was_not_heard_is_not_told_again_of_what_is_open_again() {
        let mut session = Session::new();
        opened(&mut session);
        session.close(FILE);
        session.tell_released();
        assert!(opened(&mut session), "the release may be on its way still");
        session.told(false);
        assert!(session.tell_released().is_empty());
        session.close(FILE);
        assert_eq!(session.tell_released(), [FILE.0]);
    }
}
