//! Everything seen so far, which nothing later may contradict: the log and its outcomes, a model of names, what files
//! may hold, who was heard when.

pub(crate) mod chunks;
pub(crate) mod files;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod names;
mod opens;
mod room;
pub(crate) mod shards;
pub(crate) mod takeovers;
pub(crate) mod volumes;

use std::collections::BTreeMap;

use bytes::Bytes;
use chunks::Chunks;
use files::Files;
use holdfast_client::Error;
use holdfast_common::limits::SESSION_LEASE_MS;
use holdfast_common::{InodeId, LogIndex, NodeId, Term};
use holdfast_datanode::{DataRequest, DataResponse};
use holdfast_proto::data::DeleteShardsRequest;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, Kind, MutateResponse};
use holdfast_proto::record::TableCommand;
use leases::{Lease, Leases};
use log::{Applied, Log};
use names::Names;
use opens::Opens;
use room::Room;
use shards::Shards;
use takeovers::Takeovers;
use volumes::{Demands, Volumes};

use crate::machines::{BASE_KEY_BYTES, STRANGE_SEQUENCES, STRANGER_VOLUMES, key_of};

/// The least true time in which a clock that is a fiftieth fast counts this many milliseconds.
pub(crate) const fn shortest_ns(ms: u64) -> u64 {
    ms * 1_000_000 / 50 * 49
}

/// No leader may expire a session that was answered later.
const LEASE_NS: u64 = shortest_ns(SESSION_LEASE_MS as u64);

/// Stage of a run, by which clients act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Work,
    /// Programs come to an end.
    Stop,
    /// The first client compares everything with what is known; the others unmount, and nothing of them can come any more.
    Audit,
    /// The first client removes everything and unmounts.
    Clear,
}

/// A client's present life.
#[derive(Clone, Default)]
struct Client {
    life: u64,
    mounted: bool,
    programs: usize,
}

pub(crate) struct Truth {
    /// The true time.
    pub(crate) now: u64,
    pub(crate) stage: Stage,
    /// Programs that run.
    pub(crate) programs: usize,
    /// Clients that have unmounted.
    pub(crate) left: usize,
    clients: Vec<Client>,
    pub(crate) log: Log,
    pub(crate) names: Names,
    pub(crate) files: Files,
    pub(crate) takeovers: Takeovers,
    /// The session under which a file that was opened with its creation was made.
    pub(crate) made_under: BTreeMap<InodeId, u64>,
    opens: Opens,
    leases: Leases,
    pub(crate) demands: Demands,
    pub(crate) volumes: Volumes,
    pub(crate) shards: Shards,
    /// Writes that were refused for want of quota.
    pub(crate) over_quota: u64,
    pub(crate) room: Room,
    /// Orphans reaped.
    pub(crate) reaped: u64,
    /// Times that a program's file had lost its last name.
    pub(crate) nameless: u64,
    /// Files truncated by another client than the one that wrote.
    pub(crate) meddled: u64,
    /// The highest index whose effect somebody was told of.
    pub(crate) observed: LogIndex,
    /// Sessions of each client that ended without being closed by it.
    lost_sessions: BTreeMap<Vec<u8>, u64>,
    keys: BTreeMap<u64, Vec<u8>>,
    /// When a session was last answered by whoever leads, and when the question was sent.
    answered: BTreeMap<u64, u64>,
    pub(crate) operations: u64,
    pub(crate) told_losses: u64,
    pub(crate) expiries: u64,
    pub(crate) narrowed: u64,
    /// Commits that named a freed chunk again.
    pub(crate) burnt_commits: u64,
    pub(crate) chunks: Chunks,
    pub(crate) installed: u64,
    /// Times that a metanode's answers to creates were held.
    pub(crate) held_creates: u64,
    /// Starts that the volume manager refused for good.
    pub(crate) refused_starts: u64,
    /// The latest start of each metanode that ever ran.
    latest_starts: BTreeMap<NodeId, u64>,
    /// Leaders by term.
    pub(crate) leaders: BTreeMap<Term, NodeId>,
}

impl Truth {
    pub(crate) fn new(clients: usize, demands: Demands) -> Self {
        Self {
            now: 0,
            stage: Stage::Work,
            programs: 0,
            left: 0,
            clients: vec![Client::default(); clients],
            log: Log::default(),
            names: Names::default(),
            files: Files::default(),
            takeovers: Takeovers::default(),
            made_under: BTreeMap::new(),
            opens: Opens::default(),
            leases: Leases::default(),
            demands,
            volumes: Volumes::default(),
            shards: Shards::default(),
            over_quota: 0,
            room: Room::default(),
            reaped: 0,
            nameless: 0,
            meddled: 0,
            observed: LogIndex::ZERO,
            lost_sessions: BTreeMap::new(),
            keys: BTreeMap::new(),
            answered: BTreeMap::new(),
            operations: 0,
            told_losses: 0,
            expiries: 0,
            narrowed: 0,
            burnt_commits: 0,
            chunks: Chunks::default(),
            installed: 0,
            held_creates: 0,
            refused_starts: 0,
            latest_starts: BTreeMap::new(),
            leaders: BTreeMap::new(),
        }
    }

    /// A client has mounted: what its former life held is free, and nothing of it can come any more.
    pub(crate) fn client_mounted(&mut self, client: usize) {
        self.files.fenced(client);
        self.clients[client].mounted = true;
    }

    /// A client was killed.
    pub(crate) fn client_killed(&mut self, client: usize) {
        self.opens.ended(&key_of(client));
        self.leases.ended(client);
        self.takeovers.killed(client);
        let client = &mut self.clients[client];
        self.programs -= client.programs;
        *client = Client { life: client.life + 1, ..Client::default() };
    }

    /// A client was told that it has an inode open. False if it is gone already: the answer of a repeated create may be that late.
    /// `losses` are the sessions that the client had lost when it asked: a paused client takes an answer of a session that was
    /// expired meanwhile, and such an open protects nothing.
    pub(crate) fn opened(&mut self, inode: InodeId, key: &[u8], losses: u64) -> bool {
        let there = self.log.table().get_attr(inode).is_ok();
        self.opens.told(inode, key);
        if there {
            self.opens.opened(inode, key, losses);
        }
        there
    }

    /// A client is about to close an inode.
    pub(crate) fn closes(&mut self, inode: InodeId, client: usize) {
        let nameless = self.log.table().get_attr(inode).is_ok_and(|attr| attr.nlink == 0);
        self.nameless += u64::from(nameless);
        self.opens.closes(inode, &key_of(client));
    }

    /// A session told a leader that it has inodes open no longer. Of what it is about to open again it will tell the leader again.
    pub(crate) fn released(&mut self, session: u64, inodes: &[u64]) {
        if let Some(key) = self.keys.get(&session) {
            inodes.iter().for_each(|inode| self.opens.told(InodeId(*inode), key));
        }
    }

    /// A client was told that its create failed.
    pub(crate) fn not_opened(&mut self, client: usize) {
        self.opens.not_opened(&key_of(client));
    }

    /// A file whose writer's session was lost, for another client to take over.
    pub(crate) fn take_over(&mut self, client: usize) -> Option<InodeId> {
        self.takeovers.take(client, |session| self.names.has_session(session))
    }

    /// The writer of a file that may be taken over begins or ends a write. False if it is the writer's no longer.
    pub(crate) fn write_own(&mut self, inode: InodeId, begins: bool) -> bool {
        self.takeovers.write(inode, begins, |session| self.names.has_session(session))
    }

    /// Count of mounted clients.
    pub(crate) fn mounted(&self) -> usize {
        self.clients.iter().filter(|client| client.mounted).count()
    }

    /// A program of a client begins; says in which life.
    pub(crate) fn program_begins(&mut self, client: usize) -> u64 {
        self.programs += 1;
        self.clients[client].programs += 1;
        self.clients[client].life
    }

    pub(crate) fn program_ended(&mut self, client: usize, life: u64) {
        let client = &mut self.clients[client];
        if client.life == life {
            client.programs -= 1;
            self.programs -= 1;
        }
    }

    /// A start of a node runs. Gives the latest of its starts that ever did.
    pub(crate) fn note_start(&mut self, node: NodeId, generation: u64) -> u64 {
        let latest = self.latest_starts.entry(node).or_insert(generation);
        *latest = generation.max(*latest);
        *latest
    }

    /// A replica says that it leads in a term.
    pub(crate) fn leads(&mut self, node: NodeId, term: Term) {
        let leader = *self.leaders.entry(term).or_insert(node);
        assert_eq!(leader, node, "two leaders in term {term}");
    }

    /// A replica applied an entry.
    pub(crate) fn applied(&mut self, node: NodeId, index: LogIndex, bytes: &Bytes) {
        let applied = self.log.applied(index, bytes).unwrap_or_else(|wrong| panic!("{node}: {wrong}"));
        let Some(Applied { index, command, answer }) = applied else { return };
        let (command, answer) = (command.clone(), answer.clone());
        self.follow_sessions(&command, &answer);
        let judged = self.names.apply(index, &command, &answer);
        judged.unwrap_or_else(|wrong| panic!("entry {index}: {wrong}"));
        self.compare_names(index, &command, &answer);
        self.follow_chunks(index, &command, &answer);
        let (used, quota) = (self.log.table().stat_fs().used_bytes, self.demands.quota_bytes);
        assert!(quota == 0 || used <= quota, "entry {index}: {used} bytes are used, the quota is {quota}");
    }

    fn follow_chunks(&mut self, index: LogIndex, command: &TableCommand, answer: &MutateResponse) {
        let Some(op) = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) else { return };
        if is_strange(command) {
            // It is refused: the table is compared.
            self.burnt_commits += u64::from(answer.code() == Code::Ok);
            return;
        }
        if let Op::Commit(commit) = op {
            let durable = self.shards.committed(&commit.chunks);
            durable.unwrap_or_else(|wrong| panic!("entry {index}: {wrong}"));
        }
        let followed = self.chunks.follow(self.now, op, answer, self.log.table());
        followed.unwrap_or_else(|wrong| panic!("entry {index}: {wrong}"));
    }

    /// A datanode is about to execute requests, each with whether it needs no proof or has a right one.
    pub(crate) fn executing(&mut self, node: NodeId, requests: &[(DataRequest, bool)]) {
        self.shards.begin(node, requests);
        for deletion in requests.iter().filter_map(ordered_deletion) {
            self.chunks.delete(self.now, deletion, self.log.table()).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }

    /// It has executed them. `available_bytes`: what is free now, for everybody; `None` if it died, and nobody hears of it.
    pub(crate) fn executed(
        &mut self,
        node: NodeId,
        requests: &[(DataRequest, bool)],
        responses: &[DataResponse],
        available_bytes: Option<u64>,
    ) {
        for (request, response) in requests.iter().zip(responses) {
            if let (Some(deletion), DataResponse::Delete(response)) = (ordered_deletion(request), response) {
                self.chunks.deleted(deletion, response);
            }
        }
        if let Some(available_bytes) = available_bytes {
            let judged = self.shards.executed(node, requests, responses, available_bytes);
            judged.unwrap_or_else(|wrong| panic!("{node}: {wrong}"));
        }
    }

    fn follow_sessions(&mut self, command: &TableCommand, answer: &MutateResponse) {
        match command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) {
            Some(Op::OpenSession(open)) if answer.code() == Code::Ok => {
                if self.names.session_of(&open.client_key).is_some() {
                    *self.lost_sessions.entry(base_key(&open.client_key)).or_default() += 1;
                }
                self.keys.insert(answer.session, base_key(&open.client_key));
                self.answered.insert(answer.session, self.now);
            }
            Some(Op::Commit(commit)) if !is_strange(command) => {
                self.narrowed += commit.chunks.iter().filter(|chunk| chunk.data_shards < 2).count() as u64;
            }
            // A repeated one may come too late: its client is told, or told again, and asks to open the inode anew.
            Some(Op::Create(create))
                if create.open && answer.code() == Code::Ok && !self.names.has_executed(command) =>
            {
                if let (Some(attr), Some(key)) = (answer.attr, self.keys.get(&command.session)) {
                    let (key, losses) = (key.clone(), self.losses_of(key));
                    self.made_under.insert(InodeId(attr.inode), command.session);
                    self.opens.created(InodeId(attr.inode), key, self.log.elections(), losses);
                }
            }
            Some(Op::ReapOrphans(reap)) => {
                self.reaped += reap.inodes.len() as u64;
                for inode in &reap.inodes {
                    if let Some(user) = self.opens.user(InodeId(*inode), |key| self.losses_of(key)) {
                        panic!("inode {inode} was reaped while {} has it open", String::from_utf8_lossy(user));
                    }
                    let elections = self.log.elections();
                    let told = self.opens.is_being_told(InodeId(*inode), elections, |key| self.losses_of(key));
                    assert!(!told, "inode {inode} was reaped while the create that opens it is being answered");
                }
            }
            Some(Op::ExpireSessions(expire)) => {
                for session in &expire.sessions {
                    let last = self.answered.get(session).copied().unwrap_or(0);
                    let silent = self.now.saturating_sub(last);
                    assert!(
                        silent >= LEASE_NS || !self.names.has_session(*session),
                        "session {session} was expired {} ms after it was answered",
                        silent / 1_000_000
                    );
                    let counted = self.leases.expired(*session, self.now);
                    counted.unwrap_or_else(|wrong| panic!("{wrong}"));
                    if let Some(key) = self.keys.get(session) {
                        *self.lost_sessions.entry(key.clone()).or_default() += 1;
                    }
                    self.expiries += 1;
                }
            }
            _ => {}
        }
    }

    /// The names of an entry lead to what the model says.
    fn compare_names(&mut self, index: LogIndex, command: &TableCommand, answer: &MutateResponse) {
        let mut touched: Vec<(u64, &Bytes)> = Vec::new();
        match command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) {
            Some(Op::Create(op)) => {
                if op.kind() == Kind::Directory && answer.code() == Code::Ok {
                    self.names.made_directory(answer.attr.map_or(0, |attr| attr.inode));
                }
                touched.push((op.parent, &op.name));
            }
            Some(Op::Link(op)) => touched.push((op.parent, &op.name)),
            Some(Op::Unlink(op)) => touched.push((op.parent, &op.name)),
            Some(Op::Rename(op)) => touched.extend([(op.parent, &op.name), (op.new_parent, &op.new_name)]),
            _ => {}
        }
        for (parent, name) in touched {
            let there = self.log.table().lookup(parent.into(), name).map_or(0, |attr| attr.inode);
            let wanted = self.names.now(parent, name);
            assert_eq!(there, wanted, "entry {index}: {name:?} in {parent} leads elsewhere: {command:?}");
        }
    }

    /// A leader answered a request of a session: no lease may end sooner than its length after the asking. One that has ended is
    /// renewed by no open (R20): its client counts on nothing but keep-alives, and the expiry may be in the log.
    pub(crate) fn session_answered(&mut self, session: u64, sent: u64, opens: bool) {
        let last = self.answered.entry(session).or_default();
        if !opens || sent < *last + LEASE_NS {
            *last = sent.max(*last);
        }
    }

    /// A client counts upon a session from now on, or upon none.
    pub(crate) fn counts_on(&mut self, client: usize, lease: Option<Lease>) {
        let counted = self.leases.counts_on(client, lease, |session| self.names.has_session(session));
        counted.unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    /// The session that a client has opened last, while the table has it.
    pub(crate) fn session_of(&self, client: usize) -> Option<u64> {
        let key = key_of(client);
        let mut its = self.keys.iter().rev().filter(|(_, known)| **known == key).map(|(session, _)| *session);
        its.next().filter(|session| self.names.has_session(*session))
    }

    /// When a client was heard last by a leader that answered.
    pub(crate) fn last_answered(&self, client: usize) -> Option<u64> {
        let key = key_of(client);
        let is_its = |session: &u64| self.keys.get(session).is_some_and(|known| *known == key);
        self.answered.iter().filter(|(session, _)| is_its(session)).map(|(_, sent)| *sent).max()
    }

    /// Count of sessions that a client has lost.
    pub(crate) fn losses_of(&self, client_key: &[u8]) -> u64 {
        self.lost_sessions.get(client_key).copied().unwrap_or(0)
    }

    /// A caller was told how a mutation ended: there must be an entry for it, after everything that was known before it began.
    pub(crate) fn told(
        &mut self,
        what: &str,
        low: LogIndex,
        outcome: Result<(), &Error>,
        is_it: impl Fn(&TableCommand, &Op, &MutateResponse) -> bool,
    ) {
        self.operations += 1;
        let Some(code) = code_of(outcome) else { return };
        let window = (low, self.log.last());
        let Some(index) = self.log.claim(window, code, is_it) else {
            panic!("{what}: told {code:?}, and no entry after {low} up to {} says so", window.1)
        };
        self.observed = self.observed.max(index);
    }

    /// A caller was told what a name leads to.
    pub(crate) fn looked_up(&mut self, low: LogIndex, parent: u64, name: &[u8], outcome: Result<u64, &Error>) {
        self.operations += 1;
        let inode = match outcome {
            Ok(inode) => inode,
            Err(Error::Refused { code: Code::NotFound, .. }) => 0,
            Err(_) => return,
        };
        let high = self.log.last();
        let Some(index) = self.names.first_time(parent, name, inode, low, high) else {
            panic!("{name:?} in {parent} never led to {inode} from entry {low} to {high}")
        };
        self.observed = self.observed.max(index);
    }

    /// A caller was told the names of a directory.
    pub(crate) fn listed(&mut self, low: LogIndex, parent: u64, seen: &BTreeMap<Vec<u8>, u64>) {
        self.operations += 1;
        let high = self.log.last();
        let Some(index) = self.names.first_listing(parent, seen, low, high) else {
            panic!("directory {parent} never had the names {seen:?} from entry {low} to {high}")
        };
        self.observed = self.observed.max(index);
    }
}

/// The deletion that a table ordered: nothing that a stranger asks for.
fn ordered_deletion((request, is_proven): &(DataRequest, bool)) -> Option<&DeleteShardsRequest> {
    match request {
        DataRequest::Delete(request) if *is_proven && request.volume < STRANGER_VOLUMES => Some(request),
        _ => None,
    }
}

/// Whether a command is one that no client sends.
fn is_strange(command: &TableCommand) -> bool {
    command.sequence >= STRANGE_SEQUENCES
}

/// A client's key, without what a mount adds for each further session.
fn base_key(key: &[u8]) -> Vec<u8> {
    key[..key.len().min(BASE_KEY_BYTES)].to_vec()
}

/// Code of an outcome; nothing if it leaves open what happened.
fn code_of(outcome: Result<(), &Error>) -> Option<Code> {
    match outcome {
        Ok(()) => Some(Code::Ok),
        Err(Error::Refused { code, .. }) => match code {
            Code::NotFound | Code::Exists | Code::NotDirectory | Code::IsDirectory | Code::NotEmpty | Code::Invalid => {
                Some(*code)
            }
            _ => None,
        },
        Err(_) => None,
    }
}
