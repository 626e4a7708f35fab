//! The client's state and all its decisions, as a value that is stepped: an input and a time go in, effects come out.
//!
//! It owns every deadline, retry and timer; sequence numbers and the acknowledged floor; open counts; the session's life;
//! admission of writes; dirty ranges, generations, jobs and the order of commits; chunk ids, choice of members, burning;
//! where the bytes of a read are; the extent maps; and the errors to be told, by handle. Bytes are opaque to it. It names no
//! runtime, file, clock, randomness or `HashMap` (a test greps for them).
//!
//! [`Core::step`] runs under one short lock, held by whoever brings the input; effects are performed after it was let go
//! ([`effects`]). An operation ends by an outcome among the effects, by its deadline at the latest; abandoning one takes back
//! what it holds at once. A mutation that was sent belongs to the core until it is answered, whoever waits (R8).

mod admission;
pub(crate) mod blocks;
mod dirty;
pub(crate) mod effects;
mod extent_map;
mod files;
mod flush;
mod inode;
pub(crate) mod latency;
pub(crate) mod members;
pub(crate) mod naming;
mod opening;
mod operations;
mod packer;
mod pending;
mod plan;
mod questions;
mod ranges;
pub(crate) mod readahead;
mod reading;
mod requests;
pub(crate) mod sabotage;
mod session;
pub(crate) mod time;
mod upkeep;
mod writeback;
mod writes;
mod writing;

use crate::{Error, FileHandle};
use admission::{Cover, Memory, Quota};
use effects::{Answer, Call, Effects, Input, Note, OpId, RequestId, Response};
use files::Files;
use holdfast_common::{Ascending, Incarnation, InodeId, NodeId, Random, SessionId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::meta::{Attr, Code, MutateResponse, ReadResponse, mutation, read_request};
use latency::Percentile99;
use members::Members;
use naming::{LookedUp, Name};
use operations::Operation;
use questions::Question;
use requests::{Body, Outcome, Requests};
use sabotage::Sabotage;
use session::{OpeningId, Phase, Session};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use time::Moment;
use writeback::{JobId, WriteBack};
use writes::ChunkWrites;

/// Settings of a mount, fixed when it begins.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) volume: VolumeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) replicas: Vec<NodeId>,
    pub(crate) code: CodeMode,
    /// The volume has a quota.
    pub(crate) limited: bool,
    pub(crate) client_key: Vec<u8>,
    pub(crate) description: String,
    /// Budget of dirty data in bytes.
    pub(crate) dirty_bytes: usize,
    /// Budget of cached extent maps in bytes.
    pub(crate) map_bytes: usize,
    /// Nonces and keys are drawn from it.
    pub(crate) seed: u64,
    /// The rule that is broken; real mounts break none.
    pub(crate) sabotage: Sabotage,
}

/// The purpose of a request: who takes its answer in.
#[derive(Debug)]
enum Asker {
    /// The answer is an operation's outcome.
    Op(OpId),
    /// The same, and the change of an inode ends, which others may wait for.
    Barrier(OpId, InodeId),
    Create(OpId, OpeningId),
    Open(OpId, OpeningId),
    /// A part of an inode's map, for whoever waits for it; how many sessions had been lost when it was asked for.
    Map(InodeId, u64),
    /// A part of an inode's map, for one operation.
    MapFor(OpId),
    Quota {
        op: OpId,
        flushed_before: u64,
    },
    QuotaReturn,
    OpenSession {
        sent: Moment,
    },
    KeepAlive {
        sent: Moment,
        attach: bool,
    },
    Chunks {
        asked: Moment,
    },
    /// A page of groups.
    Groups,
    /// A page of addresses, and the version that the first page was of.
    Nodes(Option<u64>),
    Commit(JobId),
    /// The attributes of an inode whose commit was refused.
    Refused(JobId),
}

/// A request's purpose, and its place among the questions.
#[derive(Debug)]
struct Asked {
    asker: Asker,
    question: Question,
}

/// The client of one mount.
#[derive(Debug)]
pub(crate) struct Core {
    now: Moment,
    /// When something falls due by time alone, or sooner.
    due: Option<Moment>,
    out: Effects,
    settings: Settings,
    random: Random,
    pub(crate) members: Members,
    requests: Requests<Asked>,
    session: Session,
    files: Files,
    looked_up: LookedUp,
    /// Boxed, as requests are.
    operations: Ascending<OpId, Box<Operation>>,
    /// Writes that wait to be admitted, in their order.
    writers: VecDeque<OpId>,
    memory: Memory,
    /// The most that was held at the end of a step.
    most_held_bytes: u64,
    quota: Quota,
    /// A change of the reservation is under way. One at a time: each names the whole, and two could pass each other.
    quota_asked: bool,
    cover: Cover,
    reserving_space: bool,
    /// Inodes with dirty data, the oldest first.
    dirty: BTreeSet<(Moment, InodeId)>,
    writeback: WriteBack,
    writes: ChunkWrites,
    put_latency: Percentile99,
    /// A session was open once.
    mounted: bool,
    /// Sessions that were lost.
    losses: u64,
    /// When another session is opened, after one was lost.
    reopen_at: Option<Moment>,
    keep_alive: Option<RequestId>,
    keep_alive_at: Moment,
    groups_asked: bool,
    quota_return_at: Moment,
    volmgr_asked: bool,
    volmgr_after: Moment,
}

impl Core {
    /// A mount whose session is being opened: the first [`Effects`] say what is to be sent.
    pub(crate) fn new(settings: Settings, members: Members, now: Moment) -> (Self, Effects) {
        let sabotage = settings.sabotage;
        let mut core = Self {
            now,
            due: None,
            out: Effects::default(),
            random: Random::new(settings.seed),
            requests: Requests::new(settings.volume, settings.incarnation, settings.replicas.clone(), sabotage),
            session: Session::new(),
            files: Files::new(sabotage),
            looked_up: LookedUp::default(),
            operations: Ascending::default(),
            writers: VecDeque::new(),
            memory: Memory::new(settings.dirty_bytes),
            most_held_bytes: 0,
            quota: Quota::new(settings.limited),
            quota_asked: false,
            cover: Cover::default(),
            reserving_space: false,
            dirty: BTreeSet::new(),
            writeback: WriteBack::default(),
            writes: ChunkWrites::default(),
            put_latency: Percentile99::starting_at(writing::SHARD_DEADLINE_MAX / 8),
            mounted: false,
            losses: 0,
            reopen_at: None,
            keep_alive: None,
            keep_alive_at: now,
            groups_asked: false,
            quota_return_at: now,
            volmgr_asked: false,
            volmgr_after: now,
            members,
            settings,
        };
        let key = core.settings.client_key.clone();
        core.open_session(key);
        core.due = core.next_due();
        let effects = core.take_effects();
        (core, effects)
    }

    /// Takes one input in. Time never goes back.
    pub(crate) fn step(&mut self, now: Moment, input: Input) -> Effects {
        self.now = self.now.max(now);
        let stirs = self.handle(input);
        if stirs || self.due.is_none_or(|due| due <= self.now) {
            self.tick();
            self.due = self.next_due();
        } else {
            self.skip_tick();
        }
        self.take_effects()
    }

    /// Answers whether the input *stirs*: writers, jobs or commits may go on after it, so that a tick has to look at them. A question
    /// or a change of names, and its answer, touch only their operation and request: for them a tick would find nothing.
    fn handle(&mut self, input: Input) -> bool {
        let mut stirs = true;
        match input {
            Input::Tick => {}
            Input::Begin { op, call } => {
                stirs = !matches!(call, Call::Ask(_) | Call::Mutate(_));
                self.begin(op, call);
                self.out.own_sends = self.out.sends.len();
            }
            Input::Undelivered { outcome } => self.undelivered(outcome),
            Input::Abandon { op } => self.abandon(op),
            Input::Answered { attempt, answer } => {
                match self.requests.answered(attempt, answer, self.now, &self.members, &mut self.out) {
                    Outcome::Answered(asked, answer) => {
                        stirs = !matches!(asked.asker, Asker::Op(_));
                        self.answered(asked, answer);
                    }
                    Outcome::Expired(session) => self.session_lost(session),
                    Outcome::Pending => {}
                }
                self.out.own_sends = self.out.sends.len();
            }
            Input::Put { write, chunk, shard, elapsed, answer } => {
                self.put_answered(write, chunk, shard, elapsed, &answer)
            }
            Input::Endpoints(endpoints) => {
                self.volmgr_asked = false;
                self.members.learn_endpoints(&endpoints);
            }
            Input::Granted(grants) => self.granted(&grants),
            Input::Unanswered { disk } => self.members.failed(disk, self.now),
            Input::DoubtGroups => self.ask_groups(),
        }
        stirs
    }

    /// In place of a tick, after an input that does not stir. Only the deadline or the next try of its operation may fall due sooner
    /// than what was known. In tests the tick is made all the same, and must do nothing.
    fn skip_tick(&mut self) {
        let sooner = [self.due, self.requests.wake(), self.next_deadline()];
        self.due = sooner.into_iter().flatten().min();
        if cfg!(any(test, debug_assertions)) {
            let counts = |out: &Effects| {
                [out.sends.len(), out.puts.len(), out.outcomes.len(), usize::from(out.reserve.is_some())]
            };
            let before = counts(&self.out);
            self.tick();
            assert_eq!(before, counts(&self.out), "a step that stirs");
            assert!(self.due <= self.next_due() || self.next_due().is_none(), "something is due sooner");
        }
    }

    /// Everything that falls due by time alone, and whatever a step that stirs may have made ready.
    fn tick(&mut self) {
        self.requests.tick(self.now, &self.members, &mut self.out);
        self.end_overdue();
        self.reopen();
        self.renew();
        self.return_quota();
        self.freeze_old();
        self.resume_writes();
        self.rewrite_rested();
        self.admit_writers();
        self.start_jobs();
        self.commit_ready();
        self.files.bound_maps(self.settings.map_bytes);
        self.most_held_bytes = self.most_held_bytes.max(self.held_bytes());
    }

    fn take_effects(&mut self) -> Effects {
        if self.out.ask_volmgr {
            // By one at a time, and seldom.
            let due = !self.volmgr_asked && self.now >= self.volmgr_after;
            self.out.ask_volmgr = due;
            if due {
                (self.volmgr_asked, self.volmgr_after) = (true, self.now + upkeep::VOLMGR_INTERVAL);
            }
        }
        self.out.wake = self.due;
        std::mem::take(&mut self.out)
    }

    fn next_deadline(&self) -> Option<Moment> {
        self.operations.first().map(|(_, operation)| operation.deadline)
    }

    fn next_due(&self) -> Option<Moment> {
        let moments = [
            self.requests.wake(),
            self.next_deadline(),
            self.keeps_alive().then_some(self.keep_alive_at),
            self.reopen_at,
            self.session.unsure_at(),
            (self.quota.limited).then_some(self.quota_return_at),
            // Who waits asks for space again.
            self.cover.stale_at(self.now).filter(|_| !self.writers.is_empty()),
            self.dirty.first().map(|(since, _)| *since + flush::DIRTY_AGE_MAX),
            self.writes.paused.first().map(|(at, _)| *at),
            self.writeback.wake(),
        ];
        moments.into_iter().flatten().min()
    }

    /// A number that nobody outside can tell beforehand.
    fn draw(&mut self) -> u64 {
        self.random.bits()
    }

    fn ask(&mut self, op: read_request::Op, asker: Asker) -> RequestId {
        let asked = Asked { asker, question: self.files.begin_question() };
        self.requests.start(Body::Question(op), asked, self.now, &self.members, &mut self.out)
    }

    fn mutate(&mut self, op: mutation::Op, asker: Asker) -> RequestId {
        let asked = Asked { asker, question: self.files.begin_question() };
        self.requests.start(Body::Mutation(op), asked, self.now, &self.members, &mut self.out)
    }

    /// Hands an answer to whom it is for.
    fn answered(&mut self, asked: Asked, answer: Result<Response, Error>) {
        let question = asked.question;
        match asked.asker {
            Asker::Op(op) => self.op_answered(op, answer),
            Asker::Barrier(op, inode) => self.barrier_answered(op, inode, answer),
            Asker::Create(op, opening) => self.create_answered(op, opening, answer.and_then(mutated)),
            Asker::Open(op, opening) => self.open_answered(op, opening, answer.and_then(read)),
            Asker::Map(inode, losses) => self.map_answered(inode, losses, answer.and_then(read)),
            Asker::MapFor(op) => self.map_for_answered(op, answer.and_then(read)),
            Asker::Quota { op, flushed_before } => self.quota_answered(op, flushed_before, answer.and_then(mutated)),
            Asker::QuotaReturn => self.quota_asked = false,
            Asker::OpenSession { sent } => self.session_opened(sent, answer.and_then(mutated)),
            Asker::KeepAlive { sent, attach } => self.kept_alive(sent, attach, answer.and_then(read)),
            Asker::Chunks { asked } => self.chunks_reserved(asked, answer.and_then(mutated)),
            Asker::Groups => self.groups_answered(answer.and_then(read)),
            Asker::Nodes(version) => self.nodes_answered(version, answer.and_then(read)),
            Asker::Commit(job) => self.commit_answered(job, answer.and_then(mutated)),
            Asker::Refused(job) => self.refused_answered(job, answer.and_then(read)),
        }
        self.files.end_question(question);
    }

    /// The session, and the time for which this mount counts on the table to keep it (R20). Nothing while that is not sure.
    pub(crate) fn lease(&self, now: Moment) -> Option<(SessionId, Duration)> {
        self.requests.session().zip(self.session.lease_left(now))
    }

    /// The attributes of a file that this mount created a moment ago and has open, with what it wrote since. Nothing if
    /// anybody is known to have changed it, or while the session is not sure.
    pub(crate) fn created_attributes(&mut self, inode: InodeId, now: Moment) -> Option<Attr> {
        let live = self.session.phase == Phase::Live;
        let state = self.files.inode(inode).filter(|state| live && state.is_pristine(now))?;
        Some(state.attributes())
    }

    /// The inode of a handle that allows writing.
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub(crate) fn open_for_writing(&mut self, handle: FileHandle) -> Result<InodeId, Error> {
        let file = self.files.file(handle)?;
        if file.mode.write { Ok(file.inode) } else { Err(Error::BadHandle) }
    }

    /// The session's number now; 0 while one is being opened.
    pub(crate) fn session_id(&self) -> SessionId {
        self.requests.session().unwrap_or_default()
    }

    /// The name by which an inode was opened.
    pub(crate) fn name_of(&mut self, inode: InodeId) -> Option<Name> {
        self.files.inode(inode).and_then(|inode| inode.name.clone())
    }

    /// Inodes with a lost write that nobody was told of.
    pub(crate) fn untold(&mut self) -> Vec<InodeId> {
        self.files.untold()
    }

    /// Inodes with data that is not committed.
    pub(crate) fn unflushed(&mut self) -> Vec<InodeId> {
        self.files.inodes().filter(|inode| !inode.is_clean()).map(|inode| inode.id).collect()
    }

    /// Bytes of written data and of extent maps that are held. After a step never above the two budgets, but for a single write
    /// that is larger than the one for written data. A buffer of which later writes left a part is counted as that part, and is
    /// at most twice as large. The data of writers that wait is their callers'.
    pub(crate) fn held_bytes(&self) -> u64 {
        (self.memory.used_bytes() + self.files.map_bytes()) as u64
    }

    /// The most of them at the end of any step.
    pub(crate) fn most_held_bytes(&self) -> u64 {
        self.most_held_bytes
    }

    fn note(&mut self, note: Note) {
        self.out.notes.push(note);
    }
}

fn read(response: Response) -> Result<ReadResponse, Error> {
    match response {
        Response::Read(response) => Ok(*response),
        Response::Mutate(_) => Err(missing()),
    }
}

fn mutated(response: Response) -> Result<MutateResponse, Error> {
    match response {
        Response::Mutate(response) => Ok(*response),
        Response::Read(_) => Err(missing()),
    }
}

/// The code of an answer, or of its part for one file. The generated accessor takes a number that this version does not know for
/// OK: it must not be used on an answer, nor the one of any other enum whose first variant grants something.
fn code_of(number: i32) -> Result<Code, Error> {
    Code::try_from(number).map_err(|_| Error::Unknown { what: "code", number })
}

/// An answer that lacks what its request is for: a table of another version, or a bug.
pub(crate) fn missing() -> Error {
    Error::Refused { code: Code::Unavailable, detail: "the answer lacks what was asked for".to_owned() }
}

#[cfg(test)]
mod tests;
