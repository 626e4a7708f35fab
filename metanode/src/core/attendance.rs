//! Attendance: the leader's soft knowledge of sessions and of what they have open. Pure: the monotonic time is
//! passed in, in milliseconds.
//!
//! Nothing of it is replicated. A new leader knows nobody's open files until every session has attached in its term
//! with its whole list; until then it reaps no orphan (docs/decisions/0003-open-files-are-soft-state.md).

use crate::sabotage::Sabotage;
use holdfast_common::limits::SESSION_LEASE_MS;
use holdfast_common::{InodeId, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// A session silent for this long is expired: its lease and a tenth, for the client counts from when it sent (R20).
const SILENCE_MS_MAX: u64 = SESSION_LEASE_MS as u64 + SESSION_LEASE_MS as u64 / 10;
/// Longest time between two looks at the silent that does not mean that this process could not hear: it stood still, or
/// waited for a majority without which keep-alives are not answered either.
const LOOK_GAP_MS_MAX: u64 = 5_000;

const _: () = assert!(LOOK_GAP_MS_MAX * 2 < SILENCE_MS_MAX);

/// A create that asked for its inode to be registered as open, from before it was proposed until it is registered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CreateTicket(u64);

#[derive(Debug)]
struct Attendee {
    renewed_ms: u64,
    attached: bool,
    /// Its expiry is proposed: no sign of life counts any more, and no keep-alive is answered (R20).
    ending: bool,
    open: BTreeSet<InodeId>,
}

impl Attendee {
    fn new(renewed_ms: u64, attached: bool) -> Self {
        Self { renewed_ms, attached, ending: false, open: BTreeSet::new() }
    }
}

/// Inodes that a session says it has open, all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenList<'a> {
    /// Term of the leader that asked for it. A list for another one is not taken: what was opened since may be missing,
    /// and would be reaped. [`Term::ZERO`]: nobody asked; the leader of the term in which the session was opened takes
    /// it. `None`: of a former client, and believed.
    pub(crate) of_term: Option<Term>,
    pub(crate) open: &'a [u64],
}

/// Sessions and open inodes as one leader knows them in one term.
#[derive(Debug, Default)]
pub(crate) struct Attendance {
    term: Term,
    /// Time of the last look for silent sessions.
    looked_ms: Option<u64>,
    sessions: BTreeMap<SessionId, Attendee>,
    open_counts: BTreeMap<InodeId, u32>,
    /// Creates under way.
    creates: BTreeSet<u64>,
    next_create: u64,
    /// Orphans seen, with the first create that began after: an earlier one may be about to register it as open.
    seen: BTreeMap<InodeId, u64>,
    /// Orphans whose reaping is proposed: nobody may open them any more.
    reaping: BTreeSet<InodeId>,
    sabotage: Sabotage,
}

impl Attendance {
    pub(crate) fn sabotaged(sabotage: Sabotage) -> Self {
        Self { sabotage, ..Self::default() }
    }

    /// Follows the table's sessions, ascending; in a new term all must attach again.
    pub(crate) fn follow(&mut self, term: Term, sessions: &[SessionId], now_ms: u64) {
        if term > self.term {
            let creates = std::mem::take(&mut self.creates);
            *self = Self { term, creates, next_create: self.next_create, ..Self::sabotaged(self.sabotage) };
        }
        sessions.iter().for_each(|session| self.meet(*session, now_ms));
        let gone: Vec<SessionId> =
            self.sessions.keys().filter(|id| sessions.binary_search(id).is_err()).copied().collect();
        gone.into_iter().for_each(|session| self.leave(session));
    }

    /// Whether the list answers the leader of this term.
    pub(crate) fn is_of(&self, term: Term) -> bool {
        self.term == term
    }

    /// A session of the table that may have been opened under another leader. Requests may come from sessions that the
    /// list did not have yet: a new leader looks at it before its first entry is applied.
    fn meet(&mut self, session: SessionId, now_ms: u64) {
        self.sessions.entry(session).or_insert_with(|| Attendee::new(now_ms, false));
    }

    /// A session that this leader opened itself has nothing open yet.
    pub(crate) fn enter(&mut self, session: SessionId, now_ms: u64) {
        self.sessions.insert(session, Attendee::new(now_ms, true));
    }

    /// A session ended.
    pub(crate) fn leave(&mut self, session: SessionId) {
        let Some(attendee) = self.sessions.remove(&session) else { return };
        for inode in attendee.open {
            self.uncount(inode);
        }
    }

    pub(crate) fn renew(&mut self, session: SessionId, now_ms: u64) {
        if let Some(attendee) = self.sessions.get_mut(&session) {
            attendee.renewed_ms = now_ms;
        }
    }

    /// A keep-alive; answers whether the session must send its whole list. Nothing while its expiry is proposed: the client
    /// would count on a lease that the entry ends.
    pub(crate) fn keep_alive(
        &mut self,
        session: SessionId,
        released: &[u64],
        list: Option<OpenList<'_>>,
        now_ms: u64,
    ) -> Option<bool> {
        self.meet(session, now_ms);
        let kept = self.sabotage == Sabotage::EndingSessionsRenewed;
        if self.sessions.get(&session).is_some_and(|attendee| attendee.ending) && !kept {
            return None;
        }
        self.renew(session, now_ms);
        released.iter().for_each(|inode| self.close(session, InodeId(*inode)));
        let attached = self.sessions.get(&session)?.attached;
        let list = list.filter(|list| match list.of_term {
            Some(Term::ZERO) => attached,
            Some(term) => term == self.term,
            None => true,
        });
        // What was opened in this term before the list was made stays open.
        for inode in list.iter().flat_map(|list| list.open).copied().map(InodeId) {
            self.count(session, inode);
        }
        let attendee = self.sessions.get_mut(&session)?;
        attendee.attached |= list.is_some();
        Some(!attendee.attached)
    }

    /// Registers an open; false if the inode is about to go.
    pub(crate) fn open(&mut self, session: SessionId, inode: InodeId, now_ms: u64) -> bool {
        if self.reaping.contains(&inode) {
            return false;
        }
        self.meet(session, now_ms);
        self.renew(session, now_ms);
        self.count(session, inode);
        true
    }

    /// Takes back an open that was registered of an inode that turned out not to exist.
    pub(crate) fn close(&mut self, session: SessionId, inode: InodeId) {
        if self.sessions.get_mut(&session).is_some_and(|attendee| attendee.open.remove(&inode)) {
            self.uncount(inode);
        }
    }

    /// Before a create that registers its inode as open is proposed.
    pub(crate) fn begin_create(&mut self) -> CreateTicket {
        self.next_create += 1;
        self.creates.insert(self.next_create);
        CreateTicket(self.next_create)
    }

    /// After the create was answered and registered.
    pub(crate) fn end_create(&mut self, ticket: &CreateTicket) {
        self.creates.remove(&ticket.0);
    }

    /// Sessions that were silent for too long: they are ending from here on, and named again until the
    /// entry is applied, for one that was given up may still get into the log. A gap between two looks is nobody's silence.
    pub(crate) fn silent(&mut self, now_ms: u64) -> Vec<u64> {
        let gap = now_ms.saturating_sub(self.looked_ms.replace(now_ms).unwrap_or(now_ms));
        if gap > LOOK_GAP_MS_MAX {
            self.sessions.values_mut().for_each(|attendee| attendee.renewed_ms += gap);
        }
        let early = self.sabotage == Sabotage::SessionsExpiredEarly;
        let silence_ms_max = if early { SILENCE_MS_MAX / 4 } else { SILENCE_MS_MAX };
        let silent =
            |attendee: &Attendee| attendee.ending || now_ms.saturating_sub(attendee.renewed_ms) > silence_ms_max;
        let mut ending = Vec::new();
        for (session, attendee) in self.sessions.iter_mut().filter(|(_, attendee)| silent(attendee)) {
            attendee.ending = true;
            ending.push(session.0);
        }
        ending
    }

    /// Chooses the orphans that may be reaped now; they count as going from here on, until [`Self::reaped`].
    pub(crate) fn choose_orphans(&mut self, orphans: &[InodeId]) -> Vec<u64> {
        let broken = |rule| self.sabotage == rule;
        let oldest_create = self.creates.first().copied().filter(|_| !broken(Sabotage::ReapedUnderCreates));
        let oldest_create = oldest_create.unwrap_or(u64::MAX);
        let attached = |attendee: &Attendee| attendee.attached || broken(Sabotage::ReapedBeforeAttached);
        let all_attached = self.sessions.values().all(attached);
        let mut chosen = Vec::new();
        for inode in orphans {
            let next_create = self.next_create + 1;
            let first_later = *self.seen.entry(*inode).or_insert(next_create);
            let is_open = self.open_counts.contains_key(inode) && self.sabotage != Sabotage::OpenFilesReaped;
            if all_attached && oldest_create >= first_later && !is_open {
                self.seen.remove(inode);
                self.reaping.insert(*inode);
                chosen.push(inode.0);
            }
        }
        chosen
    }

    /// These are gone. What was reaped in part, or perhaps, stays closed to everybody until it is.
    pub(crate) fn reaped(&mut self, inodes: &[u64]) {
        for inode in inodes {
            self.reaping.remove(&InodeId(*inode));
        }
    }

    fn count(&mut self, session: SessionId, inode: InodeId) {
        if self.sessions.get_mut(&session).is_some_and(|attendee| attendee.open.insert(inode)) {
            *self.open_counts.entry(inode).or_default() += 1;
        }
    }

    fn uncount(&mut self, inode: InodeId) {
        if let Some(count) = self.open_counts.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.open_counts.remove(&inode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(9);

    fn led() -> Attendance {
        let mut attendance = Attendance::default();
        attendance.follow(Term(3), &[], 0);
        attendance.enter(A, 0);
        attendance.enter(B, 0);
        attendance
    }

    /// The whole list, as former clients send it.
    fn listed(open: &[u64]) -> Option<OpenList<'_>> {
        Some(OpenList { of_term: None, open })
    }

    #[test]
    fn an_orphan_that_somebody_has_open_is_not_reaped() {
        let mut attendance = led();
        assert!(attendance.open(A, FILE, 0) && attendance.open(B, FILE, 0));
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        attendance.keep_alive(A, &[FILE.0], None, 0);
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        attendance.leave(B);
        assert_eq!(attendance.choose_orphans(&[FILE]), [FILE.0]);
    }

    #[test]
    fn nothing_is_opened_while_it_is_being_reaped() {
        let mut attendance = led();
        assert_eq!(attendance.choose_orphans(&[FILE]), [FILE.0]);
        assert!(!attendance.open(A, FILE, 0));
        attendance.reaped(&[FILE.0]);
        assert!(attendance.open(A, FILE, 0));
    }

    #[test]
    fn after_a_change_of_leader_nothing_is_reaped_until_every_session_attached() {
        let mut attendance = led();
        attendance.follow(Term(4), &[A, B], 0);
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        assert_eq!(attendance.keep_alive(A, &[], None, 0), Some(true), "the new leader asks for the list");
        assert_eq!(attendance.keep_alive(A, &[], listed(&[FILE.0]), 0), Some(false));
        assert!(attendance.choose_orphans(&[FILE, InodeId(10)]).is_empty());
        assert_eq!(attendance.keep_alive(B, &[], listed(&[]), 0), Some(false));
        assert_eq!(attendance.choose_orphans(&[FILE, InodeId(10)]), [10]);
    }

    /// Interleaving: a leader asks for the list, the list is long under way, the next leader answers an open, the first one leads
    /// again, and the list arrives.
    #[test]
    fn a_list_for_the_leader_of_another_term_is_not_taken() {
        let of_term = |term| Some(OpenList { of_term: Some(Term(term)), open: &[FILE.0] });
        let mut attendance = led();
        attendance.follow(Term(6), &[A], 0);
        assert_eq!(attendance.keep_alive(A, &[], of_term(4), 0), Some(true));
        assert_eq!(attendance.keep_alive(A, &[], of_term(0), 0), Some(true), "this leader did not open the session");
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        assert_eq!(attendance.keep_alive(A, &[], of_term(6), 0), Some(false));
        assert_eq!(attendance.choose_orphans(&[FILE, InodeId(10)]), [10]);
        // A mount that lost its session tells the next one's leader what is open, unasked.
        let mut attendance = led();
        assert_eq!(attendance.keep_alive(A, &[], of_term(0), 0), Some(false));
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
    }

    /// Interleaving: a leader is elected, looks at sessions, applies the last entry of its predecessor, which opened one,
    /// and that one opens a file.
    #[test]
    fn an_open_of_a_session_that_was_not_on_the_list_counts() {
        let mut attendance = led();
        attendance.follow(Term(4), &[], 0);
        assert!(attendance.open(A, FILE, 0));
        attendance.follow(Term(4), &[A], 0);
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        assert_eq!(attendance.keep_alive(A, &[], listed(&[FILE.0]), 0), Some(false));
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        attendance.keep_alive(A, &[FILE.0], None, 0);
        assert_eq!(attendance.choose_orphans(&[FILE]), [FILE.0]);
    }

    #[test]
    fn a_session_that_is_gone_is_not_waited_for() {
        let mut attendance = led();
        attendance.follow(Term(4), &[A, B], 0);
        attendance.keep_alive(A, &[], listed(&[]), 0);
        attendance.follow(Term(4), &[A], 0);
        assert_eq!(attendance.choose_orphans(&[FILE]), [FILE.0]);
    }

    /// Interleaving: A's create is applied, B unlinks the file, the leader looks for orphans, A's open is registered.
    #[test]
    fn an_orphan_is_not_reaped_while_the_create_that_opens_it_is_under_way() {
        let mut attendance = led();
        let ticket = attendance.begin_create();
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        let later = attendance.begin_create();
        assert!(attendance.open(A, FILE, 0));
        attendance.end_create(&ticket);
        assert!(attendance.choose_orphans(&[FILE]).is_empty());
        attendance.keep_alive(A, &[FILE.0], None, 0);
        assert_eq!(attendance.choose_orphans(&[FILE]), [FILE.0], "a later create cannot be of this inode");
        attendance.end_create(&later);
    }

    #[test]
    fn a_silent_session_expires_after_its_lease_and_a_tenth() {
        let mut attendance = led();
        attendance.renew(B, 1000);
        for now_ms in (0..=33_000).step_by(500) {
            assert!(attendance.silent(now_ms).is_empty());
        }
        assert_eq!(attendance.silent(33_001), [A.0]);
        assert_eq!(attendance.silent(34_001), [A.0, B.0]);
    }

    /// Interleaving: the leader proposes the expiry, a keep-alive passes the read barrier, the expiry is applied.
    #[test]
    fn a_session_whose_expiry_is_under_way_is_not_renewed() {
        let mut attendance = led();
        for now_ms in (0..=33_500).step_by(500) {
            attendance.renew(B, now_ms);
            attendance.silent(now_ms);
        }
        assert_eq!(attendance.keep_alive(A, &[], None, 33_501), None);
        assert_eq!(attendance.keep_alive(B, &[], None, 33_501), Some(false), "this one was heard");
        // Nothing that it sends changes that.
        attendance.renew(A, 33_501);
        assert_eq!(attendance.keep_alive(A, &[], listed(&[]), 33_502), None);
        assert_eq!(attendance.silent(33_503), [A.0], "the entry may have been lost");
        attendance.follow(Term(3), &[B], 33_504);
        attendance.follow(Term(3), &[A, B], 33_505);
        assert_eq!(attendance.keep_alive(A, &[], None, 33_506), Some(true), "another life");
    }

    #[test]
    fn time_in_which_the_leader_itself_stood_still_is_nobodys_silence() {
        let mut attendance = led();
        assert!(attendance.silent(500).is_empty());
        assert!(attendance.silent(100_000).is_empty());
        for now_ms in (100_500..=132_500).step_by(500) {
            assert!(attendance.silent(now_ms).is_empty(), "{now_ms}");
        }
        assert_eq!(attendance.silent(132_501), [A.0, B.0]);
    }

    /// Each rule that a simulation may break is broken by it.
    #[test]
    fn a_sabotaged_leader_reaps_and_expires_what_others_keep() {
        let led = |sabotage| {
            let mut attendance = Attendance::sabotaged(sabotage);
            attendance.follow(Term(3), &[], 0);
            attendance.enter(A, 0);
            attendance
        };
        let open = |sabotage| {
            let mut attendance = led(sabotage);
            attendance.open(A, FILE, 0);
            attendance.choose_orphans(&[FILE])
        };
        assert_eq!((open(Sabotage::None), open(Sabotage::OpenFilesReaped)), (vec![], vec![FILE.0]));
        let unattached = |sabotage| {
            let mut attendance = led(sabotage);
            attendance.follow(Term(4), &[A], 0);
            attendance.choose_orphans(&[FILE])
        };
        assert_eq!((unattached(Sabotage::None), unattached(Sabotage::ReapedBeforeAttached)), (vec![], vec![FILE.0]));
        let created = |sabotage| {
            let mut attendance = led(sabotage);
            attendance.begin_create();
            attendance.choose_orphans(&[FILE])
        };
        assert_eq!((created(Sabotage::None), created(Sabotage::ReapedUnderCreates)), (vec![], vec![FILE.0]));
        let renewed = |sabotage| {
            let mut attendance = led(sabotage);
            let late_ms = SILENCE_MS_MAX + 1;
            (0..late_ms).step_by(500).for_each(|now_ms| drop(attendance.silent(now_ms)));
            attendance.silent(late_ms);
            attendance.keep_alive(A, &[], None, late_ms)
        };
        assert_eq!((renewed(Sabotage::None), renewed(Sabotage::EndingSessionsRenewed)), (None, Some(false)));
        let silent = |sabotage| led(sabotage).silent(u64::from(SESSION_LEASE_MS) / 2);
        assert_eq!((silent(Sabotage::None), silent(Sabotage::SessionsExpiredEarly)), (vec![], vec![A.0]));
    }
}
