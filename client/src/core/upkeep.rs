//! Work that a mount does by itself: the session, keep-alives, groups and addresses, unused quota.

use super::effects::Note;
use super::inode::Inode;
use super::operations::State;
use super::sabotage::Sabotage;
use super::session::Phase;
use super::{Answer, Asker, Core};
use crate::Error;
use crate::core::time::Moment;
use holdfast_common::limits::SESSION_KEEPALIVE_MS;
use holdfast_common::{SessionId, Term};
use holdfast_proto::meta::{
    GetGroups, GetNodes, KeepAlive, MutateResponse, OpenSession, ReadResponse, ReserveChunks, ReserveQuota, mutation,
    read_request,
};
use std::time::Duration;

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(SESSION_KEEPALIVE_MS as u64);
/// The volume manager is asked at most this often.
pub(super) const VOLMGR_INTERVAL: Duration = Duration::from_secs(1);
/// Reserved quota that nothing dirty needs is given back this often.
const QUOTA_RETURN_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before another session is asked for, after one was refused.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the mount's key that go into the key of a later session; with eight bytes more it is within the table's
/// limit.
const KEY_BYTES_MAX: usize = 512;
/// Chunk ids reserved at once. A range costs one Raft entry; unused ids cost nothing.
const CHUNK_RANGE_COUNT: u32 = 4096;

impl Core {
    pub(super) fn open_session(&mut self, client_key: Vec<u8>) {
        let op = OpenSession { client_key: client_key.into(), description: self.settings.description.clone() };
        let sent = self.now;
        self.mutate(mutation::Op::OpenSession(op), Asker::OpenSession { sent });
    }

    pub(super) fn session_opened(&mut self, sent: Moment, answer: Result<MutateResponse, Error>) {
        match answer {
            Ok(response) => {
                self.renewed(sent);
                self.mounted = true;
                let session = SessionId(response.session);
                self.requests.set_session(session, self.now, &self.members, &mut self.out);
                // To who opened the session, whatever its term: it knows of nothing open.
                self.send_keep_alive(Some(Term::ZERO));
                self.ask_groups();
                if !self.writes.without_id.is_empty() {
                    self.reserve_chunks();
                }
            }
            // Refused, as when there are too many sessions. Whoever mounts is told, and nothing is tried for them any more; a
            // mount that stood tries again.
            Err(error) if self.mounted => {
                self.note(Note::Again(error.to_string()));
                self.reopen_at = Some(self.now + REOPEN_PAUSE);
            }
            Err(error) => self.end_starting(&Err(error)),
        }
    }

    /// The table has ended the session: everything unflushed is lost and told, and another session is opened. It goes by a
    /// key of its own: were it the old key, two mounts of one key would fence each other for ever.
    pub(super) fn session_lost(&mut self, session: SessionId) {
        if self.requests.session() != Some(session) {
            return;
        }
        if self.session.phase == Phase::Closed {
            return self.end_closed();
        }
        self.note(Note::SessionLost(session));
        self.forget_keep_alive();
        self.losses += 1;
        self.drop_unflushed();
        // Whether the mutations under way happened will never be known, and others may have written since.
        self.files.inodes().for_each(Inode::doubt);
        let askers = self.requests.end_session();
        self.session.lost();
        self.cover.forget();
        self.quota.forget();
        for asked in askers {
            self.answered(asked, Err(Error::SessionLost));
        }
        self.reopen_at = Some(self.now);
    }

    /// Opens the session that takes the place of a lost one, when it is time.
    pub(super) fn reopen(&mut self) {
        if self.reopen_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.reopen_at = None;
        let mut key = self.settings.client_key.clone();
        // Keys have a longest length; a long one keeps its beginning.
        key.truncate(KEY_BYTES_MAX);
        key.extend_from_slice(&self.draw().to_le_bytes());
        self.open_session(key);
    }

    fn forget_keep_alive(&mut self) {
        if let Some(asked) = self.keep_alive.take().and_then(|id| self.requests.forget_unsent(id)) {
            self.files.end_question(asked.question);
        }
    }

    /// A sign of life that was sent at that time was answered.
    fn renewed(&mut self, sent: Moment) {
        let counts_from = if self.settings.sabotage == Sabotage::LeaseFromAnswer { self.now } else { sent };
        self.session.renewed(counts_from, self.now);
    }

    /// Sends a keep-alive when it is time, and notices when the lease has run out.
    pub(super) fn renew(&mut self) {
        if self.session.look(self.now) {
            self.note(Note::SessionUnsure(self.session_id()));
        }
        if self.keeps_alive() && self.now >= self.keep_alive_at {
            self.send_keep_alive(None);
        }
    }

    /// Whether the next keep-alive is only a matter of time.
    pub(super) fn keeps_alive(&self) -> bool {
        self.keep_alive.is_none() && self.requests.session().is_some() && self.session.phase != Phase::Closed
    }

    /// The mount has ended, and so has everything that waits.
    fn end_closed(&mut self) {
        for asked in self.requests.end_session() {
            self.answered(asked, Err(Error::SessionLost));
        }
    }

    /// With the list of what is open if the leader of a term is to have it.
    fn send_keep_alive(&mut self, attach: Option<Term>) {
        self.forget_keep_alive();
        self.session.told(false);
        let open = if attach.is_some() { self.session.list_open() } else { Vec::new() };
        let released = self.session.tell_released();
        let attach_term = attach.map(|term| term.0);
        let op = KeepAlive { released, attach: attach.is_some(), open, suspects: Vec::new(), attach_term };
        let asker = Asker::KeepAlive { sent: self.now, attach: attach.is_some() };
        self.keep_alive_at = self.now + KEEP_ALIVE_INTERVAL;
        self.keep_alive = Some(self.ask(read_request::Op::KeepAlive(op), asker));
    }

    pub(super) fn kept_alive(&mut self, sent: Moment, attach: bool, answer: Result<ReadResponse, Error>) {
        self.keep_alive = None;
        self.session.told(answer.is_ok());
        let Ok(response) = answer else { return };
        self.renewed(sent);
        self.session.heed_floor(response.floor);
        if self.members.is_behind(response.groups_changes, response.nodes_version) {
            self.ask_groups();
        }
        if response.attach_needed && !attach {
            self.send_keep_alive(Some(Term(response.term)));
        }
    }

    /// Asks the leader for the groups that changed and for all addresses, page by page, unless they are being asked for.
    pub(super) fn ask_groups(&mut self) {
        if !std::mem::replace(&mut self.groups_asked, true) {
            self.ask_groups_page();
        }
    }

    fn ask_groups_page(&mut self) {
        let (since, after_group) = self.members.cursor;
        let op = GetGroups { since: Some(since), after_group };
        self.ask(read_request::Op::GetGroups(op), Asker::Groups);
    }

    fn ask_nodes_page(&mut self, after_node: u64, version: Option<u64>) {
        self.ask(read_request::Op::GetNodes(GetNodes { after_node }), Asker::Nodes(version));
    }

    pub(super) fn groups_answered(&mut self, answer: Result<ReadResponse, Error>) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return self.groups_known(&Err(error)),
        };
        self.members.learn_groups(response.groups);
        self.members.cursor = (response.next_since, response.next_after_group);
        if response.more_groups {
            return self.ask_groups_page();
        }
        self.members.knows_groups(response.groups_changes);
        self.ask_nodes_page(0, None);
    }

    /// A page of addresses; `version` is what the first page was of.
    pub(super) fn nodes_answered(&mut self, version: Option<u64>, answer: Result<ReadResponse, Error>) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return self.groups_known(&Err(error)),
        };
        self.members.learn_nodes(&response.nodes);
        let version = version.unwrap_or(response.nodes_version);
        match response.nodes.last().filter(|_| response.more_nodes) {
            Some(last) => self.ask_nodes_page(last.node, Some(version)),
            // Had it changed between two pages, the next keep-alive tells another version than that of the first.
            None => {
                self.members.knows_nodes(version);
                self.groups_known(&Ok(()));
            }
        }
    }

    fn groups_known(&mut self, outcome: &Result<(), Error>) {
        self.groups_asked = false;
        self.end_starting(outcome);
        self.writeback.groups_learnt();
    }

    /// Ends the mount's wait for its first session.
    fn end_starting(&mut self, outcome: &Result<(), Error>) {
        let starting: Vec<_> = self
            .operations
            .iter()
            .filter(|(_, operation)| matches!(operation.state, State::Starting))
            .map(|(op, _)| *op)
            .collect();
        for op in starting {
            self.finish(op, outcome.clone().map(|()| Answer::Done));
        }
    }

    pub(super) fn reserve_chunks(&mut self) {
        if self.requests.session().is_some() && !std::mem::replace(&mut self.session.reserving_chunks, true) {
            let op = ReserveChunks { count: CHUNK_RANGE_COUNT };
            self.mutate(mutation::Op::ReserveChunks(op), Asker::Chunks { asked: self.now });
        }
    }

    pub(super) fn chunks_reserved(&mut self, asked: Moment, answer: Result<MutateResponse, Error>) {
        self.session.reserving_chunks = false;
        match answer {
            Ok(response) => self.session.add_chunks(response.first_chunk, CHUNK_RANGE_COUNT, asked),
            Err(Error::SessionLost) => return,
            // Not at once again: the refusal may stand.
            Err(error) => {
                self.note(Note::Again(error.to_string()));
                let at = self.now + REOPEN_PAUSE;
                let waiting = std::mem::take(&mut self.writes.without_id);
                return self.writes.paused.extend(waiting.into_iter().map(|write| (at, write)));
            }
        }
        for write in std::mem::take(&mut self.writes.without_id) {
            self.attempt(write);
        }
    }

    /// Gives quota back that nothing dirty needs: an idle mount keeps none from others.
    pub(super) fn return_quota(&mut self) {
        if self.now < self.quota_return_at {
            return;
        }
        self.quota_return_at = self.now + QUOTA_RETURN_INTERVAL;
        let idle = self.writers.is_empty() && !self.quota_asked && self.requests.session().is_some();
        if idle && self.quota.take_unused() {
            self.quota_asked = true;
            self.mutate(mutation::Op::ReserveQuota(ReserveQuota { bytes: 0 }), Asker::QuotaReturn);
        }
    }
}
