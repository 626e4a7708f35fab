//! Claims about the stepped volume manager: a cluster's life, what a crash leaves of it, and what each broken rule changes.

use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{Incarnation, VolumeId};
use holdfast_proto::control::{
    AllocateGroupsRequest, CreateVolumeRequest, DeleteVolumeRequest, Disk, DroppedVolume, HeartbeatRequest,
    HeartbeatResponse, RegisterRequest, RegisterResponse, Role, ShowVolumeRequest, TableReport, Volume, VolumeState,
};
use holdfast_storage::SimulatedDisk;

use super::*;
use crate::manager::DenialKind;
use crate::state::RefusalKind;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const GIB: u64 = 1 << 30;

/// A volume manager on its machine, at a time that passes by ticks.
struct Rig {
    log: SimulatedDisk,
    snapshots: SimulatedDisk,
    sabotage: Sabotage,
    lives: u64,
    now: Now,
    volmgr: SteppedVolmgr,
    answers: BTreeMap<u64, Result<VolmgrResponse, Denial>>,
    next_ticket: u64,
}

fn open(log: &SimulatedDisk, snapshots: &SimulatedDisk, sabotage: Sabotage, life: u64, now: Now) -> SteppedVolmgr {
    let consensus = SteppedOptions { seed: life, tick: Duration::from_millis(20), ..SteppedOptions::default() };
    let options = VolmgrOptions { cluster: CLUSTER, consensus, seed: life, sabotage };
    SteppedVolmgr::open(options, log.root(), snapshots.root(), now).unwrap()
}

impl Rig {
    fn new(sabotage: Sabotage) -> Self {
        let (log, snapshots) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
        let now = Now { monotonic_ns: 5_000_000_000, wall_ns: 1_000 };
        let volmgr = open(&log, &snapshots, sabotage, 1, now);
        let answers = BTreeMap::new();
        let mut rig = Self { log, snapshots, sabotage, lives: 1, now, volmgr, answers, next_ticket: 1 };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let deadline_ns = self.now.monotonic_ns + 5_000_000_000;
        while !self.volmgr.is_serving() {
            assert!(self.now.monotonic_ns < deadline_ns && !self.volmgr.is_stuck(), "it does not start");
            self.pass(20);
        }
    }

    /// Loses power, and starts again.
    fn crash(&mut self) {
        self.log.lose_unsynced();
        self.snapshots.lose_unsynced();
        self.lives += 1;
        self.answers.clear();
        self.volmgr = open(&self.log, &self.snapshots, self.sabotage, self.lives, self.now);
        self.start();
    }

    fn settle(&mut self) {
        while self.volmgr.has_work() || self.volmgr.is_syncing() {
            let syncing = self.volmgr.is_syncing();
            let done = if syncing { self.volmgr.synced(self.now) } else { self.volmgr.turn(self.now) };
            self.answers.extend(done.unwrap());
            while self.volmgr.write_snapshot() {}
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(20) {
            self.now.monotonic_ns += 20_000_000;
            self.volmgr.tick(self.now);
            self.settle();
        }
    }

    fn ask(&mut self, request: VolmgrRequest) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.volmgr.handle(self.now, ticket, request);
        self.settle();
        ticket
    }

    fn call(&mut self, request: VolmgrRequest) -> Result<VolmgrResponse, Denial> {
        let ticket = self.ask(request);
        self.answers.remove(&ticket).expect("it was answered")
    }

    fn register(&mut self, role: Role, port: u64, generation: u64, node: u64) -> Result<RegisterResponse, Denial> {
        let disks = if role == Role::Datanode { vec![disk(0)] } else { vec![] };
        let cluster = if node == 0 { String::new() } else { CLUSTER.to_string() };
        let (role, address) = (role as i32, format!("host{port}:1"));
        let request = RegisterRequest { cluster, node, role, address, generation, disks, format_nonce: port };
        match self.call(VolmgrRequest::Register(request))? {
            VolmgrResponse::Register(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Three metanodes and six datanodes.
    fn populate(&mut self) -> Vec<RegisterResponse> {
        let role = |port| if port <= 3 { Role::Metanode } else { Role::Datanode };
        (1..=9).map(|port| self.register(role(port), port, 1, 0).unwrap()).collect()
    }

    fn beat(&mut self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Denial> {
        match self.call(VolmgrRequest::Heartbeat(request))? {
            VolmgrResponse::Heartbeat(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self) -> u64 {
        let request = CreateVolumeRequest { name: "demo".into(), data_shards: 4, parity_shards: 2, quota_bytes: 0 };
        self.ask(VolmgrRequest::CreateVolume(request))
    }

    /// A volume whose table's leader, the first metanode, has said whether it is ready.
    fn report(&mut self, nodes: &[RegisterResponse], ready: bool) {
        let report = self.report_of(nodes, ready);
        self.beat(report).unwrap();
    }

    fn report_of(&mut self, nodes: &[RegisterResponse], ready: bool) -> HeartbeatRequest {
        let orders = self.beat(heartbeat(&nodes[0])).unwrap();
        let report = |t: &holdfast_proto::control::TableAssignment| TableReport {
            volume: t.volume,
            incarnation: t.incarnation,
            leader: true,
            term: 3,
            ready,
            ..TableReport::default()
        };
        let tables = orders.tables.iter().map(report).collect();
        HeartbeatRequest { tables, ..heartbeat(&nodes[0]) }
    }

    fn active(&mut self, nodes: &[RegisterResponse]) -> Volume {
        let ticket = self.create();
        self.report(nodes, true);
        match self.answers.remove(&ticket) {
            Some(Ok(VolmgrResponse::Volume(volume))) => volume,
            other => panic!("{other:?}"),
        }
    }
}

fn disk(disk: u64) -> Disk {
    Disk { disk, healthy: true, total_bytes: 100 * GIB, available_bytes: 60 * GIB, ..Disk::default() }
}

fn heartbeat(node: &RegisterResponse) -> HeartbeatRequest {
    HeartbeatRequest {
        cluster: CLUSTER.to_string(),
        node: node.node,
        generation: 1,
        disks: node.disks.iter().map(|id| disk(*id)).collect(),
        ..HeartbeatRequest::default()
    }
}

fn groups(volume: &Volume) -> VolmgrRequest {
    let (volume, incarnation) = (volume.volume, volume.incarnation);
    VolmgrRequest::AllocateGroups(AllocateGroupsRequest { volume, incarnation, count: 2, first_group: 1 })
}

#[test]
fn a_volume_lives_from_creation_over_crashes_to_its_last_confirmed_drop() {
    let mut rig = Rig::new(Sabotage::None);
    let nodes = rig.populate();
    let volume = rig.active(&nodes);
    assert_eq!((volume.state(), volume.leader_node), (VolumeState::Active, nodes[0].node));
    let given = rig.call(groups(&volume)).unwrap();
    rig.crash();
    assert_eq!(rig.call(groups(&volume)).unwrap(), given, "a retry gets the same groups");
    let show = || VolmgrRequest::ShowVolume(ShowVolumeRequest { name: "demo".into() });
    assert!(matches!(rig.call(show()).unwrap(), VolmgrResponse::Volume(v) if v.groups_count == 2));
    rig.call(VolmgrRequest::DeleteVolume(DeleteVolumeRequest { name: "demo".into() })).unwrap();
    let gone = rig.call(show()).unwrap_err();
    assert!(gone.is_final() && gone.kind == DenialKind::Refused(RefusalKind::NotFound));
    let secret = ClusterSecret(nodes[0].secret[..].try_into().unwrap());
    for node in &nodes {
        assert_eq!(rig.volmgr.cluster_state().volumes().len(), 1);
        let order = rig.beat(heartbeat(node)).unwrap().drops.remove(0);
        assert!(secret.verify(VolumeId(volume.volume), Incarnation(1), Claim::DropVolume, &order.mac));
        rig.crash();
        let dropped = vec![DroppedVolume { volume: volume.volume, incarnation: 1 }];
        rig.beat(HeartbeatRequest { dropped, ..heartbeat(node) }).unwrap();
    }
    assert!(rig.volmgr.cluster_state().volumes().is_empty());
}

/// A denial of a heartbeat ends the node that sent it.
#[test]
fn a_report_of_a_table_whose_volume_is_deleted_meanwhile_is_no_fault_of_its_node() {
    for turns in 0..6 {
        let mut rig = Rig::new(Sabotage::None);
        let nodes = rig.populate();
        rig.create();
        let report = rig.report_of(&nodes, true);
        let delete = VolmgrRequest::DeleteVolume(DeleteVolumeRequest { name: "demo".into() });
        rig.volmgr.handle(rig.now, 100, delete);
        for _ in 0..turns {
            let done = if rig.volmgr.is_syncing() { rig.volmgr.synced(rig.now) } else { rig.volmgr.turn(rig.now) };
            rig.answers.extend(done.unwrap());
        }
        rig.beat(report).unwrap_or_else(|denial| panic!("after {turns} turns: {denial:?}"));
        assert!(matches!(rig.answers.remove(&100), Some(Ok(_))));
        let volumes = rig.volmgr.cluster_state().volumes();
        assert!(volumes.values().all(|volume| volume.state == VolumeState::Deleting));
    }
}

#[test]
fn a_creation_is_answered_when_its_table_is_ready_or_its_time_is_over() {
    let mut rig = Rig::new(Sabotage::None);
    let nodes = rig.populate();
    let ticket = rig.create();
    rig.report(&nodes, false);
    rig.pass(19_000);
    assert_eq!(rig.answers.len(), 0);
    rig.pass(1_000);
    assert_eq!(rig.answers.remove(&ticket).unwrap().unwrap_err().kind, DenialKind::Late);
}

#[test]
fn before_the_start_is_over_requests_are_answered_by_nobody() {
    let (log, snapshots) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let mut volmgr = open(&log, &snapshots, Sabotage::None, 1, Now::default());
    volmgr.handle(Now::default(), 4, VolmgrRequest::ListVolumes);
    let answers = volmgr.turn(Now::default()).unwrap();
    assert!(matches!(&answers[..], [(4, Err(denial))] if denial.kind == DenialKind::Refused(RefusalKind::Busy)));
}

#[test]
fn a_log_of_another_cluster_is_not_served() {
    let mut rig = Rig::new(Sabotage::None);
    let consensus = SteppedOptions::default();
    let options = VolmgrOptions { cluster: ClusterId([8; 16]), consensus, seed: 9, sabotage: Sabotage::None };
    rig.volmgr = SteppedVolmgr::open(options, rig.log.root(), rig.snapshots.root(), rig.now).unwrap();
    for _ in 0..500 {
        rig.pass(20);
    }
    assert!(rig.volmgr.is_stuck() && !rig.volmgr.is_serving());
}

#[test]
fn two_runs_of_the_same_steps_are_the_same() {
    let run = || {
        let mut rig = Rig::new(Sabotage::None);
        let nodes = rig.populate();
        let volume = rig.active(&nodes);
        let given = format!("{:?}", rig.call(groups(&volume)));
        rig.crash();
        (given, rig.volmgr.cluster_state().clone(), rig.log.operations(), rig.now)
    };
    assert_eq!(run(), run());
}

#[test]
fn r28_a_node_that_a_later_start_fenced_is_heard() {
    let heard = [Sabotage::None, Sabotage::HearOlderGeneration].map(|sabotage| {
        let mut rig = Rig::new(sabotage);
        let node = rig.populate().remove(0);
        rig.register(Role::Metanode, 1, 2, node.node).unwrap();
        rig.beat(heartbeat(&node)).is_ok()
    });
    assert_eq!(heard, [false, true]);
}

#[test]
fn a_volume_becomes_active_without_a_ready_table() {
    let answered = [Sabotage::None, Sabotage::ActivateUnready].map(|sabotage| {
        let mut rig = Rig::new(sabotage);
        let nodes = rig.populate();
        let ticket = rig.create();
        rig.report(&nodes, false);
        rig.answers.contains_key(&ticket)
    });
    assert_eq!(answered, [false, true]);
}

#[test]
fn a_creation_is_answered_before_its_table_is_ready() {
    let answered = [Sabotage::None, Sabotage::AnswerBeforeTable].map(|sabotage| {
        let mut rig = Rig::new(sabotage);
        rig.populate();
        let ticket = rig.create();
        rig.answers.contains_key(&ticket)
    });
    assert_eq!(answered, [false, true]);
}

#[test]
fn r7_a_deleted_volume_is_forgotten_though_no_node_dropped_it() {
    let forgotten = [Sabotage::None, Sabotage::ConfirmUnreported].map(|sabotage| {
        let mut rig = Rig::new(sabotage);
        let nodes = rig.populate();
        rig.active(&nodes);
        rig.call(VolmgrRequest::DeleteVolume(DeleteVolumeRequest { name: "demo".into() })).unwrap();
        nodes.iter().for_each(|node| drop(rig.beat(heartbeat(node)).unwrap()));
        rig.volmgr.cluster_state().volumes().is_empty()
    });
    assert_eq!(forgotten, [false, true]);
}

#[test]
fn answers_to_heartbeats_say_which_disks_are_out_of_service_or_full() {
    let mut rig = Rig::new(Sabotage::None);
    let nodes = rig.populate();
    let datanode = &nodes[5];
    let mut said = |healthy, available_bytes| {
        let disks = vec![Disk { healthy, available_bytes, ..disk(datanode.disks[0]) }];
        let answer = rig.beat(HeartbeatRequest { disks, ..heartbeat(datanode) }).unwrap();
        let endpoint = answer.nodes.into_iter().find(|endpoint| endpoint.node == datanode.node).unwrap();
        (endpoint.failed_disks, endpoint.full_disks)
    };
    let id = datanode.disks[0];
    assert_eq!(said(true, 1), (vec![], vec![]));
    assert_eq!(said(true, 0), (vec![], vec![id]));
    assert_eq!(said(true, GIB - 1), (vec![], vec![id]), "it is full until a part of it is free");
    assert_eq!(said(false, GIB), (vec![id], vec![]));
    assert_eq!(said(true, GIB), (vec![], vec![]));
}
