//! A metanode's process: its replica of the table, driven in turns, each of which may wait for a sync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, LogIndex, NodeId, RaftGroupId, Random, VolumeId};
use holdfast_consensus::{ExpectedLog, GroupStatus, Role as RaftRole, SteppedOptions};
use holdfast_metanode::{Event, MetanodeOptions, Now, Output, SteppedMetanode, frees};
use holdfast_proto::control::{HeartbeatRequest, RegisterRequest, Role as NodeRole};
use holdfast_proto::meta::Code;
use holdfast_proto::meta::read_request::Op;
use holdfast_proto::metanode::Neighbours;
use holdfast_storage::SimulatedDisk;
use parking_lot::Mutex;

use crate::clock::Times;
use crate::disk::{Waits, log_directories, log_identity, log_options};
use crate::packet::{Answer, Packet, Request, Response, address_of};
use crate::role::{Moment, Role, Timer, Wish};
use crate::sabotage::Sabotage;
use crate::truth::chunks::PATIENCE;
use crate::truth::{Stage, Truth};

const TICK: Duration = Duration::from_millis(150);
/// Interval at which upkeep, sweep and heartbeat may look.
const LOOK: Duration = Duration::from_millis(250);
/// Once in so many looks the answers to creates are held, for at most a round of upkeep and what follows from it.
const HOLDS_ONE_IN: u64 = 10;
const HOLD_MS_MAX: u64 = 700;
const BEAT_MS: u64 = 1000;
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);
const GROUPS_TIMEOUT: Duration = Duration::from_secs(5);
/// No longer than a request is believed to be under way here.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// Segments in which what a Raft group needs does not fit one batch, and a log so short that it is carried forward.
const SHORT_SEGMENT_BYTES: u32 = 8 << 10;
const SHORT_LOG_BYTES: u64 = 32 << 10;

/// Properties of a metanode that outlive its process.
#[derive(Clone)]
pub(crate) struct MetanodeIdentity {
    pub(crate) cluster: ClusterId,
    pub(crate) secret: ClusterSecret,
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    /// Number of the log that its superblock names.
    pub(crate) log: u64,
    pub(crate) volmgr: NodeId,
    /// The volume that clients work on; others come and go.
    pub(crate) volume: VolumeId,
    /// The volume manager's last word, as the real one keeps it in a file.
    pub(crate) neighbours: Arc<Mutex<Neighbours>>,
    /// See [`SHORT_SEGMENT_BYTES`].
    pub(crate) short_segments: bool,
}

/// Purpose of an answer.
enum Asked {
    Registration,
    Heartbeat,
    Groups(u64),
    Deletion(u64),
    Floor(u64),
    List(u64),
    Snapshot { to: NodeId, group: RaftGroupId },
}

/// A sign of life of a session.
#[derive(Clone, Copy, Debug)]
struct Sign {
    session: u64,
    /// When the process looked at it.
    came: u64,
    /// An open, which is answered even while the session's expiry waits in the log.
    opens: bool,
}

/// Whether the volume manager refused a start for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    No,
    /// In this turn.
    Now,
    Before,
}

pub(crate) struct MetanodeRole {
    identity: MetanodeIdentity,
    node: SteppedMetanode,
    registered: bool,
    /// The volume manager refused this start for good.
    refused: Refused,
    looks: bool,
    waits: Waits,
    asked: BTreeMap<u64, Asked>,
    next_ticket: u64,
    /// Sessions of requests that came and were not answered yet: when they came, by call.
    sessions: BTreeMap<u64, Sign>,
    arrived: Vec<(u64, Sign)>,
    /// Calls that have to be served on a full disk (R29), and are not answered yet.
    freeing: BTreeSet<u64>,
    /// Inodes that sessions release by keep-alives that are not answered yet, by call.
    releases: BTreeMap<u64, (u64, Vec<u64>)>,
    /// Snapshots that came whole and are not answered yet.
    snapshots: BTreeMap<(NodeId, RaftGroupId), u64>,
    wishes: Vec<Wish>,
}

fn now(times: Times) -> Now {
    let monotonic_ns = times.monotonic_ns();
    Now { monotonic_ns, boottime_ns: monotonic_ns, wall_ns: times.wall_ns }
}

impl MetanodeIdentity {
    /// What a start is opened with. `is_new`: its log may be made.
    pub(crate) fn options(&self, sabotage: Sabotage, seed: u64, is_new: bool) -> MetanodeOptions {
        let identity = log_identity(self.node, self.log);
        let mut consensus = log_options(self.node, seed, TICK, sabotage);
        if self.short_segments {
            (consensus.segment_bytes, consensus.log_bytes_max) = (SHORT_SEGMENT_BYTES, SHORT_LOG_BYTES);
            consensus.snapshot_log_bytes = SteppedOptions::small(self.node, seed).snapshot_log_bytes;
        }
        let log = if is_new { ExpectedLog::AnyOrNone } else { ExpectedLog::Identity(identity) };
        MetanodeOptions {
            cluster: self.cluster,
            node: self.node,
            generation: self.generation,
            secret: self.secret.clone(),
            heartbeat_interval_ms: BEAT_MS,
            consensus: SteppedOptions { identity, log, ..consensus },
            patience: PATIENCE,
            sabotage: sabotage.metanode(),
        }
    }
}

impl MetanodeRole {
    pub(crate) fn start(
        identity: MetanodeIdentity,
        sabotage: Sabotage,
        disk: &SimulatedDisk,
        seed: u64,
    ) -> Result<Self, String> {
        let options = identity.options(sabotage, seed, false);
        let [log, snapshots] = log_directories(disk, identity.log)?;
        let mut node = SteppedMetanode::open(options, log, snapshots).map_err(|error| error.to_string())?;
        node.recall(identity.neighbours.lock().clone());
        let mut role = Self {
            identity,
            node,
            registered: false,
            refused: Refused::No,
            looks: true,
            waits: Waits::default(),
            asked: BTreeMap::new(),
            next_ticket: 1,
            sessions: BTreeMap::new(),
            arrived: Vec::new(),
            freeing: BTreeSet::new(),
            releases: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            wishes: vec![Wish::Arm { timer: Timer::Tick, after: TICK }],
        };
        role.register();
        Ok(role)
    }

    fn ask(&mut self, asked: Asked, to: NodeId, request: Request, timeout: Duration) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.asked.insert(ticket, asked);
        self.wishes.push(Wish::Call { ticket, to, request: Box::new(request), timeout });
    }

    fn register(&mut self) {
        let identity = &self.identity;
        let request = RegisterRequest {
            cluster: identity.cluster.to_string(),
            node: identity.node.0,
            role: NodeRole::Metanode.into(),
            address: address_of(identity.node).to_string(),
            generation: identity.generation,
            disks: Vec::new(),
            format_nonce: identity.node.0,
        };
        self.ask(Asked::Registration, identity.volmgr, Request::Register(request), BEAT_TIMEOUT);
    }

    fn report(&mut self, request: HeartbeatRequest) {
        if !self.registered {
            self.register();
        }
        self.ask(Asked::Heartbeat, self.identity.volmgr, Request::Heartbeat(request), BEAT_TIMEOUT);
    }

    fn called(&mut self, times: Times, from: NodeId, call: u64, request: Request) {
        let now = now(times);
        match request {
            Request::Mutate(request) => {
                self.arrived.push((call, Sign { session: request.session, came: 0, opens: false }));
                if request.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()).is_some_and(frees) {
                    self.freeing.insert(call);
                }
                self.node.handle(now, Event::Mutate { ticket: call, request });
            }
            Request::Read(request) => {
                // Others renew no lease.
                if let Some(Op::KeepAlive(_) | Op::Open(_)) = request.op {
                    let opens = matches!(request.op, Some(Op::Open(_)));
                    if let Some(Op::KeepAlive(keep_alive)) = &request.op {
                        self.releases.insert(call, (request.session, keep_alive.released.clone()));
                    }
                    self.arrived.push((call, Sign { session: request.session, came: 0, opens }));
                }
                self.node.handle(now, Event::Read { ticket: call, request });
            }
            Request::Admit(request) => self.node.handle(now, Event::Admit { ticket: call, request }),
            Request::AdmittedPiece(request) => self.node.handle(now, Event::AdmittedPiece { ticket: call, request }),
            Request::Snapshot { generation, message, bytes } => {
                self.snapshots.insert((from, message.group), call);
                self.node.handle(now, Event::Snapshot { from, generation, message, bytes: bytes.into() });
            }
            _ => {}
        }
    }

    fn answered(&mut self, times: Times, ticket: u64, answer: Answer) {
        let now = now(times);
        let Some(asked) = self.asked.remove(&ticket) else { return };
        if let (Asked::Registration | Asked::Heartbeat, Ok(Response::Denied(_))) = (&asked, &answer)
            && self.refused == Refused::No
        {
            self.refused = Refused::Now;
            self.node.handle(now, Event::Refused);
        }
        match asked {
            Asked::Registration => self.registered |= answer.is_ok_and(|answer| answer.registered().is_some()),
            Asked::Heartbeat => {
                let response = answer.ok().and_then(Response::heartbeat);
                self.node.handle(now, Event::Heartbeat(response));
                *self.identity.neighbours.lock() = self.node.neighbours();
            }
            Asked::Groups(ticket) => {
                let groups = answer.ok().and_then(Response::groups);
                self.node.handle(now, Event::Groups { ticket, groups });
            }
            Asked::Deletion(ticket) => {
                let answer = answer.ok().and_then(Response::deleted);
                self.node.handle(now, Event::Deleted { ticket, answer });
            }
            Asked::Floor(ticket) => {
                let answer = answer.ok().and_then(Response::floor_set);
                self.node.handle(now, Event::FloorSet { ticket, answer });
            }
            Asked::List(ticket) => {
                let answer = answer.ok().and_then(Response::listed);
                self.node.handle(now, Event::Listed { ticket, answer });
            }
            Asked::Snapshot { to, group } => {
                let ok = answer.is_ok_and(|response| matches!(response, Response::SnapshotTaken(true)));
                self.node.handle(now, Event::SnapshotReported { to, group, ok });
            }
        }
    }

    fn put_out(&mut self, output: Output, truth: &mut Truth) {
        match output {
            Output::Mutated { ticket, response } => {
                let refused = self.freeing.remove(&ticket) && response.code() == Code::NoSpace;
                assert!(!refused, "{}: what frees is refused for want of space", self.identity.node);
                truth.room.refused_growth += u64::from(response.code() == Code::NoSpace);
                if response.code() == Code::Ok {
                    self.session_answered(ticket, truth);
                }
                self.reply(ticket, Response::Mutated(response));
            }
            Output::Read { ticket, response } => {
                if let Some((session, inodes)) = self.releases.remove(&ticket) {
                    truth.released(session, &inodes);
                }
                if response.code() == Code::Ok {
                    self.session_answered(ticket, truth);
                }
                self.reply(ticket, Response::Read(response));
            }
            Output::Raft { to, messages } => {
                let generation = self.identity.generation;
                let packet = Packet::Raft(generation, messages);
                self.wishes.push(Wish::Send { to, packet });
            }
            Output::Snapshot(out) => {
                let (to, group) = (out.to, out.message.group);
                let (generation, bytes) = (self.identity.generation, out.bytes.into());
                let request = Request::Snapshot { generation, message: out.message, bytes };
                self.ask(Asked::Snapshot { to, group }, to, request, SNAPSHOT_TIMEOUT);
            }
            Output::SnapshotTaken { from, group, accepted } => {
                if let Some(call) = self.snapshots.remove(&(from, group)) {
                    self.reply(call, Response::SnapshotTaken(accepted));
                }
            }
            Output::Admitted { ticket, answer } => self.reply(ticket, Response::Admitted(answer)),
            Output::AdmittedPiece { ticket, head, piece } => {
                self.reply(ticket, Response::AdmittedPiece(head, piece));
            }
            Output::AskGroups { ticket, request } => {
                let volmgr = self.identity.volmgr;
                self.ask(Asked::Groups(ticket), volmgr, Request::AllocateGroups(request), GROUPS_TIMEOUT);
            }
            Output::Delete { ticket, node, request } => {
                self.ask(Asked::Deletion(ticket), node, Request::Delete(request), DELETE_TIMEOUT);
            }
            Output::SetFloor { ticket, node, request } => {
                self.ask(Asked::Floor(ticket), node, Request::SetFloor(request), DELETE_TIMEOUT);
            }
            Output::List { ticket, node, request } => {
                self.ask(Asked::List(ticket), node, Request::List(request), DELETE_TIMEOUT);
            }
            Output::Report(request) => self.report(request),
            Output::Applied { volume, index, command } if volume == self.identity.volume => {
                truth.applied(self.identity.node, index, &command);
            }
            Output::Applied { .. } => {}
            Output::Installed { .. } => truth.installed += 1,
            Output::Broken { reason, .. } => panic!("{}: a replica is broken: {reason}", self.identity.node),
        }
    }

    fn reply(&mut self, call: u64, response: Response) {
        self.sessions.remove(&call);
        self.wishes.push(Wish::Reply { call, answer: Box::new(Ok(response)), after_ns: 0 });
    }

    fn session_answered(&mut self, call: u64, truth: &mut Truth) {
        if let Some(Sign { session, came, opens }) = self.sessions.get(&call) {
            truth.session_answered(*session, *came, *opens);
        }
    }

    /// Once in a while the tasks that answer creates stand still for a moment, and everything else goes on.
    fn may_hold_creates(&mut self, random: &mut Random, truth: &mut Truth) {
        if truth.stage == Stage::Work && random.one_in(HOLDS_ONE_IN) {
            self.node.hold_creates(true);
            truth.held_creates += 1;
            let after = Duration::from_millis(random.below(HOLD_MS_MAX) + 1);
            self.wishes.push(Wish::Arm { timer: Timer::Creates, after });
        }
    }

    /// Only a start that a later one has overtaken is refused for good; it says nothing any more (R28).
    fn check_refused(&mut self, outputs: &[Output], truth: &mut Truth) {
        let MetanodeIdentity { node, generation, .. } = self.identity;
        let latest = truth.note_start(node, generation);
        if self.refused == Refused::No {
            return;
        }
        assert!(generation < latest, "start {generation} of {node} was refused for good, and is its latest");
        assert!(outputs.is_empty(), "start {generation} of {node} was refused for good, and goes on");
        truth.refused_starts += u64::from(std::mem::replace(&mut self.refused, Refused::Before) == Refused::Now);
    }

    fn status(&self) -> Option<GroupStatus> {
        let mut tables = self.node.tables();
        tables.find(|(volume, ..)| *volume == self.identity.volume).map(|(.., status)| status)
    }

    /// Shows this replica to the truth.
    fn compare(&self, truth: &mut Truth) {
        for (volume, table, status) in self.node.tables() {
            if volume != self.identity.volume {
                truth.volumes.hosted(volume, table, status.role == RaftRole::Leader);
                continue;
            }
            let compared = truth.log.compare(status.applied, table.digest());
            compared.unwrap_or_else(|wrong| panic!("{}: {wrong}", self.identity.node));
            if status.role == RaftRole::Leader {
                truth.leads(self.identity.node, status.term);
            }
        }
    }
}

impl Role for MetanodeRole {
    fn packet(&mut self, times: Times, from: NodeId, packet: Packet) {
        match packet {
            Packet::Call(call, request) => self.called(times, from, call, *request),
            Packet::Answer(ticket, answer) => self.answered(times, ticket, *answer),
            Packet::Raft(generation, messages) => {
                for message in messages {
                    self.node.handle(now(times), Event::Raft { from, generation, message });
                }
            }
        }
    }

    fn timer(&mut self, times: Times, timer: Timer) {
        self.waits.timer(timer);
        match timer {
            Timer::Tick => {
                self.node.handle(now(times), Event::Tick);
                self.wishes.push(Wish::Arm { timer: Timer::Tick, after: TICK });
            }
            Timer::Look => self.looks = true,
            Timer::Creates => self.node.hold_creates(false),
            Timer::Beat | Timer::Synced | Timer::Job | Timer::Sleep(_) => {}
        }
    }

    fn drive(&mut self, moment: Moment<'_>) -> Vec<Wish> {
        let now = now(moment.times);
        let mut truth = moment.truth.lock();
        for (call, sign) in std::mem::take(&mut self.arrived) {
            self.sessions.insert(call, Sign { came: truth.now, ..sign });
        }
        if std::mem::take(&mut self.looks) {
            self.node.handle(now, Event::Look);
            self.wishes.push(Wish::Arm { timer: Timer::Look, after: LOOK });
            self.may_hold_creates(moment.random, &mut truth);
        }
        if self.waits.take_job() {
            self.node.write_snapshot();
        }
        let mut outputs = Vec::new();
        if self.waits.take_sync() {
            match self.node.synced(now) {
                Ok(synced) => outputs.extend(synced),
                Err(failed) => return vec![Wish::Die(failed.to_string())],
            }
        }
        match self.node.turn(now) {
            Ok(turned) => outputs.extend(turned),
            Err(failed) => return vec![Wish::Die(failed.to_string())],
        }
        self.check_refused(&outputs, &mut truth);
        outputs.into_iter().for_each(|output| self.put_out(output, &mut truth));
        if self.node.is_failed() {
            return vec![Wish::Die("its log failed".to_owned())];
        }
        if !moment.disk.is_dead() {
            self.compare(&mut truth);
        }
        self.waits.arm(self.node.is_syncing(), self.node.jobs(), moment.random, &mut self.wishes);
        std::mem::take(&mut self.wishes)
    }

    fn leads(&self) -> bool {
        self.status().is_some_and(|status| status.role == RaftRole::Leader)
    }

    fn applied(&self) -> LogIndex {
        self.status().map_or(LogIndex::ZERO, |status| status.applied)
    }

    fn other_tables(&self) -> usize {
        self.node.tables().filter(|(volume, ..)| *volume != self.identity.volume).count()
    }
}
