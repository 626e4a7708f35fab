//! Three stepped metanodes, a volume manager and datanodes that do as they are told, and a network that can be cut.

use super::super::*;
use crate::core::patience::Patience;
use crate::core::testing::assignment;
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{ClusterId, Incarnation, Random};
use holdfast_proto::control::{
    AllocateGroupsResponse, Endpoint, Group, GroupMember, HeartbeatRequest, TableAssignment,
};
use holdfast_proto::data::{DeleteShardsResponse, ListShardsResponse, ShardSummary};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Mutation, ReadResponse, read_request};
use holdfast_proto::raft::{AdmitAnswer, AdmittedPiece};
use holdfast_storage::SimulatedDisk;
use std::collections::{BTreeSet, VecDeque};

pub(crate) const VOLUME: VolumeId = VolumeId(9);
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
const SECRET: ClusterSecret = ClusterSecret([5; 32]);
const STEP_NS: u64 = 50_000_000;

pub(crate) struct World {
    pub(crate) nodes: BTreeMap<u64, SteppedMetanode>,
    disks: BTreeMap<u64, (SimulatedDisk, SimulatedDisk)>,
    generations: BTreeMap<u64, u64>,
    pub(crate) now_ns: u64,
    /// Nodes that neither hear nor are heard.
    pub(crate) cut: BTreeSet<u64>,
    mail: VecDeque<(u64, u64, Event)>,
    pub(crate) mutated: BTreeMap<u64, MutateResponse>,
    pub(crate) reads: BTreeMap<u64, ReadResponse>,
    /// Answers to metanodes that lost their logs, by ticket.
    pub(crate) admitted: BTreeMap<u64, AdmitAnswer>,
    pub(crate) pieces: BTreeMap<u64, (AdmittedPiece, Bytes)>,
    pub(crate) reports: BTreeMap<u64, HeartbeatRequest>,
    pub(crate) drops_volume: bool,
    /// Deletions by disk, and the disk that does not answer.
    pub(crate) deleted: Vec<(u64, Vec<u64>)>,
    pub(crate) silent_disk: u64,
    /// Floors that disks were told, and shards that all of them list.
    pub(crate) floors: Vec<u64>,
    pub(crate) listed: Vec<ShardSummary>,
    pub(crate) sabotage: Sabotage,
    next_ticket: u64,
    pub(crate) sequence: u64,
}

impl World {
    pub(crate) fn new(sabotage: Sabotage) -> Self {
        let disks = (1..=3).map(|node| (node, (SimulatedDisk::new(node), SimulatedDisk::new(node + 10)))).collect();
        let mut world = Self {
            nodes: BTreeMap::new(),
            disks,
            generations: BTreeMap::new(),
            now_ns: 0,
            cut: BTreeSet::new(),
            mail: VecDeque::new(),
            mutated: BTreeMap::new(),
            reads: BTreeMap::new(),
            admitted: BTreeMap::new(),
            pieces: BTreeMap::new(),
            reports: BTreeMap::new(),
            drops_volume: false,
            deleted: Vec::new(),
            silent_disk: 0,
            floors: Vec::new(),
            listed: Vec::new(),
            sabotage,
            next_ticket: 0,
            sequence: 0,
        };
        (1..=3).for_each(|node| world.start(node));
        world.until("the volume is ready", |world| {
            world.reports.values().flat_map(|report| &report.tables).any(|table| table.leader && table.ready)
        });
        world
    }

    pub(crate) fn start(&mut self, node: u64) {
        let options = self.next_start(node);
        let (log, snapshots) = &self.disks[&node];
        let opened = SteppedMetanode::open(options, log.root(), snapshots.root()).unwrap();
        self.nodes.insert(node, opened);
    }

    fn next_start(&mut self, node: u64) -> MetanodeOptions {
        let generation = self.generations.entry(node).or_default();
        *generation += 1;
        MetanodeOptions {
            cluster: CLUSTER,
            node: NodeId(node),
            generation: *generation,
            secret: SECRET,
            heartbeat_interval_ms: 500,
            consensus: SteppedOptions::small(NodeId(node), node * 100 + *generation),
            patience: Patience::default(),
            sabotage: self.sabotage,
        }
    }

    /// A node comes back on disks that hold nothing.
    pub(crate) fn recovery(&mut self, node: u64) -> SteppedRecovery {
        self.disks.insert(node, (SimulatedDisk::new(node), SimulatedDisk::new(node + 10)));
        let options = self.next_start(node);
        let (log, snapshots) = &self.disks[&node];
        SteppedRecovery::open(options, log.root(), snapshots.root()).unwrap()
    }

    /// As kill -9 does, with what the disks held.
    pub(crate) fn kill(&mut self, node: u64) {
        self.nodes.remove(&node);
        self.disks[&node].0.lose_process();
        self.disks[&node].1.lose_process();
    }

    pub(crate) fn now(&self) -> Now {
        let wall_ns = 1_700_000_000_000_000_000 + i64::try_from(self.now_ns).unwrap();
        Now { monotonic_ns: self.now_ns, boottime_ns: self.now_ns, wall_ns }
    }

    pub(crate) fn step(&mut self) {
        self.now_ns += STEP_NS;
        let now = self.now();
        let ticks = self.now_ns.is_multiple_of(2 * STEP_NS);
        for node in self.nodes.values_mut() {
            if ticks {
                node.handle(now, Event::Tick);
            }
            node.handle(now, Event::Look);
            while node.write_snapshot() {}
        }
        self.pump();
    }

    /// Lets everything happen that takes no time.
    pub(crate) fn pump(&mut self) {
        let now = self.now();
        loop {
            let busy = self.nodes.iter().find(|(_, node)| node.is_syncing() || node.has_work());
            let Some(id) = busy.map(|(id, _)| *id) else {
                let Some((from, to, event)) = self.mail.pop_front() else { return };
                let lost = from != to && (self.cut.contains(&from) || self.cut.contains(&to));
                if let Some(node) = self.nodes.get_mut(&to).filter(|_| !lost) {
                    node.handle(now, event);
                }
                continue;
            };
            let node = self.nodes.get_mut(&id).unwrap();
            let outputs = if node.is_syncing() { node.synced(now) } else { node.turn(now) };
            outputs.unwrap().into_iter().for_each(|output| self.perform(id, output));
        }
    }

    fn perform(&mut self, from: u64, output: Output) {
        let generation = self.generations[&from];
        let sender = NodeId(from);
        match output {
            Output::Mutated { ticket, response } => drop(self.mutated.insert(ticket, response)),
            Output::Read { ticket, response } => drop(self.reads.insert(ticket, response)),
            Output::Raft { to, messages } => {
                for message in messages {
                    self.mail.push_back((from, to.0, Event::Raft { from: sender, generation, message }));
                }
            }
            Output::Snapshot(out) => {
                let event = Event::Snapshot { from: sender, generation, message: out.message, bytes: out.bytes };
                self.mail.push_back((from, out.to.0, event));
            }
            Output::SnapshotTaken { from: source, group, accepted } => {
                self.mail.push_back((from, source.0, Event::SnapshotReported { to: sender, group, ok: accepted }));
            }
            Output::Admitted { ticket, answer } => drop(self.admitted.insert(ticket, answer)),
            Output::AdmittedPiece { ticket, head, piece } => drop(self.pieces.insert(ticket, (head, piece))),
            Output::AskGroups { ticket, request } => {
                let members = || (1..=6).map(|i| GroupMember { disk: i, node: 100 + i }).collect();
                let ids = request.first_group..request.first_group + u64::from(request.count);
                let groups = ids.map(|group| Group { group, members: members(), capacity_bytes: 32 << 30 }).collect();
                let groups = Some(AllocateGroupsResponse { groups });
                self.mail.push_back((from, from, Event::Groups { ticket, groups }));
            }
            Output::Delete { ticket, node, request } => {
                assert_eq!(node.0, 100 + request.disk);
                let answers = request.disk != self.silent_disk;
                self.deleted.push((request.disk, request.shards.iter().map(|name| name.chunk).collect()));
                let answer = answers.then(DeleteShardsResponse::default);
                self.mail.push_back((from, from, Event::Deleted { ticket, answer }));
            }
            Output::SetFloor { ticket, request, .. } => {
                self.floors.push(request.floor);
                self.mail.push_back((from, from, Event::FloorSet { ticket, answer: Some(Default::default()) }));
            }
            Output::List { ticket, .. } => {
                let answer = Some(ListShardsResponse { end: true, shards: self.listed.clone(), ..Default::default() });
                self.mail.push_back((from, from, Event::Listed { ticket, answer }));
            }
            Output::Report(report) => {
                let response = (!self.cut.contains(&from)).then(|| self.heartbeat());
                self.reports.insert(from, report);
                self.mail.push_back((from, from, Event::Heartbeat(response)));
            }
            Output::Applied { volume, .. } | Output::Installed { volume, .. } => assert_eq!(volume, VOLUME),
            Output::Broken { reason, .. } => panic!("node {from} stopped: {reason}"),
        }
    }

    fn heartbeat(&self) -> HeartbeatResponse {
        let endpoint =
            |node: u64| Endpoint { node, address: format!("node-{node}:1"), alive: true, ..Default::default() };
        let table = TableAssignment { volume: VOLUME.0, ..assignment() };
        let mac = SECRET.prove(VOLUME, Incarnation(1), Claim::DropVolume).to_vec().into();
        HeartbeatResponse {
            tables: if self.drops_volume { vec![] } else { vec![table] },
            nodes: (1..=3).chain(101..=106).map(endpoint).collect(),
            drops: if self.drops_volume { vec![VolumeDrop { volume: VOLUME.0, incarnation: 1, mac }] } else { vec![] },
            time_ns: 0,
        }
    }

    /// A disturbance, or the end of one.
    pub(crate) fn disturb(&mut self, random: &mut Random) {
        let node = random.below(3) + 1;
        match random.below(4) {
            0 => drop(self.cut.insert(node)),
            1 if self.nodes.contains_key(&node) => self.kill(node),
            _ => self.heal(node),
        }
    }

    pub(crate) fn heal(&mut self, node: u64) {
        self.cut.remove(&node);
        if !self.nodes.contains_key(&node) {
            self.start(node);
        }
    }

    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if holds(self) {
                return;
            }
            self.step();
        }
        panic!("in vain: {what}");
    }

    /// A node that leads and is not cut off.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |node: &SteppedMetanode| node.tables().any(|(_, _, status)| led_term(&status).is_ok());
        self.nodes.iter().find(|(id, node)| !self.cut.contains(id) && leads(node)).map(|(id, _)| *id)
    }

    pub(crate) fn ask(&mut self, node: u64, event: impl FnOnce(u64) -> Event) -> u64 {
        self.next_ticket += 1;
        let now = self.now();
        self.nodes.get_mut(&node).unwrap().handle(now, event(self.next_ticket));
        self.next_ticket
    }

    pub(crate) fn mutation(&self, session: u64, sequence: u64, op: Op) -> MutateRequest {
        let mutation = Some(Mutation { op: Some(op) });
        let acknowledged_below = sequence;
        MutateRequest { volume: VOLUME.0, incarnation: 1, session, sequence, acknowledged_below, mutation }
    }

    /// A new operation, at whoever leads.
    pub(crate) fn mutate(&mut self, session: u64, op: Op) -> MutateResponse {
        self.sequence += 1;
        self.repeat(session, op)
    }

    /// An operation under the last sequence number.
    pub(crate) fn repeat(&mut self, session: u64, op: Op) -> MutateResponse {
        loop {
            self.until("a leader", |world| world.leader().is_some());
            let (leader, request) = (self.leader().unwrap(), self.mutation(session, self.sequence, op.clone()));
            let ticket = self.ask(leader, |ticket| Event::Mutate { ticket, request });
            self.until("an answer", |world| world.mutated.contains_key(&ticket));
            let answer = self.mutated.remove(&ticket).unwrap();
            if !matches!(answer.code(), Code::NotLeader | Code::Unavailable) {
                return answer;
            }
            self.step();
        }
    }

    pub(crate) fn read_request(session: u64, op: read_request::Op) -> ReadRequest {
        ReadRequest { volume: VOLUME.0, incarnation: 1, session, op: Some(op) }
    }

    /// At whoever leads.
    pub(crate) fn read(&mut self, session: u64, op: read_request::Op) -> ReadResponse {
        let leader = self.leader().unwrap();
        let request = Self::read_request(session, op);
        let ticket = self.ask(leader, |ticket| Event::Read { ticket, request });
        self.until("an answer", |world| world.reads.contains_key(&ticket));
        self.reads.remove(&ticket).unwrap()
    }

    pub(crate) fn table(&self, node: u64) -> &Table {
        self.nodes[&node].tables().next().unwrap().1
    }
}
