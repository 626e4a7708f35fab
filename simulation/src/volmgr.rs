//! The volume manager's process, and the short life in which it sets the cluster up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Times;
use crate::disk::{FIRST_LOG, Waits, log_directories, log_options};
use crate::machines::VOLMGR;
use crate::packet::{Answer, Packet, Request, Response};
use crate::role::{Moment, Role, Timer, Wish};
use crate::sabotage::Sabotage;
use holdfast_client::CallFailed;
use holdfast_common::{ClusterId, NodeId, VolumeId};
use holdfast_node::is_final;
use holdfast_proto::control::{DeleteVolumeRequest, HeartbeatRequest, ShowVolumeRequest};
use holdfast_storage::SimulatedDisk;
use holdfast_volmgr::{Answers, Denial, Now, SteppedVolmgr, VolmgrOptions, VolmgrRequest, VolmgrResponse};

/// The log of one voter: its only election takes a few of these.
const TICK: Duration = Duration::from_millis(100);
/// Turns within which the setup's requests are answered.
const SETUP_TURNS_MAX: u64 = 1000;

pub(crate) struct VolmgrRole {
    node: SteppedVolmgr,
    /// Heartbeats that are not to be heard, by call: a later start of their node had registered when they came (R28).
    outdated: BTreeMap<u64, String>,
    ticked: bool,
    waits: Waits,
}

fn now(times: Times) -> Now {
    Now { monotonic_ns: times.monotonic_ns(), wall_ns: times.wall_ns }
}

fn open(
    cluster: ClusterId,
    sabotage: Sabotage,
    disk: &SimulatedDisk,
    seed: u64,
    times: Times,
) -> Result<SteppedVolmgr, String> {
    let consensus = log_options(VOLMGR, seed, TICK, sabotage);
    let options = VolmgrOptions { cluster, consensus, seed, sabotage: sabotage.volmgr() };
    let [log, snapshots] = log_directories(disk, FIRST_LOG)?;
    let opened = SteppedVolmgr::open(options, log, snapshots, now(times));
    opened.map_err(|error| error.to_string())
}

fn request_of(request: Request) -> Option<VolmgrRequest> {
    match request {
        Request::Register(request) => Some(VolmgrRequest::Register(request)),
        Request::Heartbeat(request) => Some(VolmgrRequest::Heartbeat(request)),
        Request::AllocateGroups(request) => Some(VolmgrRequest::AllocateGroups(request)),
        Request::CreateVolume(request) => Some(VolmgrRequest::CreateVolume(request)),
        Request::ShowVolume(name) => Some(VolmgrRequest::ShowVolume(ShowVolumeRequest { name })),
        Request::ListVolumes => Some(VolmgrRequest::ListVolumes),
        Request::ShowCluster => Some(VolmgrRequest::ShowCluster),
        Request::DeleteVolume(name) => Some(VolmgrRequest::DeleteVolume(DeleteVolumeRequest { name })),
        _ => None,
    }
}

fn response_of(response: VolmgrResponse) -> Response {
    match response {
        VolmgrResponse::Register(response) => Response::Registered(response),
        VolmgrResponse::Heartbeat(response) => Response::Heartbeat(response),
        VolmgrResponse::AllocateGroups(response) => Response::Groups(response),
        VolmgrResponse::Volume(response) => Response::Volume(response),
        VolmgrResponse::DeleteVolume(_) => Response::VolumeDeleted,
        VolmgrResponse::ListVolumes(response) => Response::Volumes(response.volumes),
        VolmgrResponse::ShowCluster(response) => Response::Cluster(response),
    }
}

/// What its caller hears, in gRPC's words: only some denials are final.
fn answer_of(answer: Result<VolmgrResponse, Denial>) -> Answer {
    match answer {
        Ok(response) => Ok(response_of(response)),
        Err(denial) => {
            let (detail, status) = (denial.to_string(), denial.into());
            if is_final(&status) { Ok(Response::Denied(detail)) } else { Err(CallFailed::Volmgr(detail)) }
        }
    }
}

/// The setup: one request after another, while nothing goes wrong and no time but its own passes.
pub(crate) struct Setup {
    node: SteppedVolmgr,
    now: Now,
}

impl Setup {
    pub(crate) fn new(cluster: ClusterId, disk: &SimulatedDisk, seed: u64) -> Self {
        let times = Times { monotonic: Duration::ZERO, wall_ns: 0 };
        let node = open(cluster, Sabotage::None, disk, seed, times).expect("a new disk");
        let mut setup = Self { node, now: now(times) };
        setup.turn_until(|node, _| node.is_serving());
        setup
    }

    fn turn_until(&mut self, mut done: impl FnMut(&SteppedVolmgr, Answers) -> bool) {
        for _ in 0..SETUP_TURNS_MAX {
            self.now.monotonic_ns += u64::try_from(TICK.as_nanos()).unwrap_or(0);
            self.node.tick(self.now);
            let mut answers = self.node.turn(self.now).expect("a new disk");
            while self.node.is_syncing() {
                answers.extend(self.node.synced(self.now).expect("a new disk"));
            }
            if done(&self.node, answers) {
                return;
            }
        }
        panic!("the setup comes to no end");
    }

    /// The answer to a request.
    pub(crate) fn ask(&mut self, request: Request) -> Response {
        self.node.handle(self.now, 1, request_of(request).expect("a request for the volume manager"));
        let mut answer = None;
        self.turn_until(|_, answers| {
            answer = answers.into_iter().next();
            answer.is_some()
        });
        let (_, response) = answer.expect("an answer");
        response_of(response.expect("a setup without mistakes"))
    }

    /// Makes a volume; its table is made when the metanodes hear of it. Answers its id.
    pub(crate) fn make_volume(&mut self, request: Request) -> VolumeId {
        self.node.handle(self.now, 1, request_of(request).expect("a request for the volume manager"));
        self.turn_until(|node, _| !node.cluster_state().volumes().is_empty());
        *self.node.cluster_state().volumes().keys().next().expect("a volume")
    }
}

impl VolmgrRole {
    pub(crate) fn start(
        cluster: ClusterId,
        sabotage: Sabotage,
        disk: &SimulatedDisk,
        seed: u64,
        times: Times,
    ) -> Result<Self, String> {
        let node = open(cluster, sabotage, disk, seed, times)?;
        Ok(Self { node, outdated: BTreeMap::new(), ticked: true, waits: Waits::default() })
    }

    fn note_start(&mut self, call: u64, heartbeat: &HeartbeatRequest) {
        let HeartbeatRequest { node, generation, .. } = *heartbeat;
        let known = self.registered_start(NodeId(node)).unwrap_or(0);
        if known > generation {
            let wrong = format!("start {generation} of node {node} is heard, and start {known} has registered");
            self.outdated.insert(call, wrong);
        }
    }

    fn check_starts(&mut self, answers: &Answers) {
        for (call, answer) in answers {
            let outdated = self.outdated.remove(call).filter(|_| answer.is_ok());
            assert!(outdated.is_none(), "{}", outdated.unwrap_or_default());
        }
    }

    fn replies(answers: Answers, wishes: &mut Vec<Wish>) {
        wishes.extend(answers.into_iter().map(|(call, answer)| Wish::Reply {
            call,
            answer: Box::new(answer_of(answer)),
            after_ns: 0,
        }));
    }
}

impl Role for VolmgrRole {
    fn packet(&mut self, times: Times, _: NodeId, packet: Packet) {
        let Packet::Call(call, request) = packet else { return };
        if let Request::Heartbeat(heartbeat) = &*request {
            self.note_start(call, heartbeat);
        }
        if let Some(request) = request_of(*request) {
            self.node.handle(now(times), call, request);
        }
    }

    fn timer(&mut self, _: Times, timer: Timer) {
        self.ticked |= timer == Timer::Tick;
        self.waits.timer(timer);
    }

    fn drive(&mut self, moment: Moment<'_>) -> Vec<Wish> {
        let (mut wishes, now) = (Vec::new(), now(moment.times));
        if std::mem::take(&mut self.ticked) {
            self.node.tick(now);
            wishes.push(Wish::Arm { timer: Timer::Tick, after: TICK });
        }
        if self.waits.take_job() {
            self.node.write_snapshot();
        }
        let mut answers = Vec::new();
        if self.waits.take_sync() {
            match self.node.synced(now) {
                Ok(synced) => answers.extend(synced),
                Err(failed) => return vec![Wish::Die(failed.to_string())],
            }
        }
        match self.node.turn(now) {
            Ok(turned) => answers.extend(turned),
            Err(failed) => return vec![Wish::Die(failed.to_string())],
        }
        if self.node.is_stuck() {
            return vec![Wish::Die("its log accepts no entries".to_owned())];
        }
        self.check_starts(&answers);
        Self::replies(answers, &mut wishes);
        self.waits.arm(self.node.is_syncing(), self.node.jobs(), moment.random, &mut wishes);
        wishes
    }

    fn registered_start(&self, node: NodeId) -> Option<u64> {
        self.node.cluster_state().nodes().get(&node).map(|info| info.generation)
    }
}
