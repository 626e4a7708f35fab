//! One request from its first check to its answer. What it waits for in between, an entry in the log or the report of a
//! table, is its caller's to bring.

use holdfast_common::{NodeId, VolumeId};
use holdfast_proto::cluster::ClusterReply;
use holdfast_proto::cluster::cluster_command::Op;
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, Cluster, CreateVolumeRequest, DeleteVolumeRequest,
    DeleteVolumeResponse, HeartbeatRequest, HeartbeatResponse, ListVolumesResponse, RegisterRequest, RegisterResponse,
    ShowVolumeRequest, Volume,
};

use super::{Denial, GROUPS_PER_REQUEST_MAX, Heard, Manager, Now, groups_answer};
use crate::state::ClusterState;

/// Longest wait of a volume's creation for its table: an election and a few entries, many times over.
const READY_DEADLINE_MS: u64 = 20_000;

/// A request to the volume manager, of a node or of a person.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum VolmgrRequest {
    Register(RegisterRequest),
    Heartbeat(HeartbeatRequest),
    AllocateGroups(AllocateGroupsRequest),
    /// Answered when the volume can be mounted.
    CreateVolume(CreateVolumeRequest),
    ShowVolume(ShowVolumeRequest),
    DeleteVolume(DeleteVolumeRequest),
    ListVolumes,
    ShowCluster,
}

/// Answer to the request of the same name; a volume to those that make or show one.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum VolmgrResponse {
    Register(RegisterResponse),
    Heartbeat(HeartbeatResponse),
    AllocateGroups(AllocateGroupsResponse),
    Volume(Volume),
    DeleteVolume(DeleteVolumeResponse),
    ListVolumes(ListVolumesResponse),
    ShowCluster(Cluster),
}

/// Next wait of a conversation.
pub(crate) enum Step {
    /// The state shows everything acknowledged before; then [`Event::Read`].
    Read,
    /// The entry is applied; then [`Event::Proposed`]. A refusal ends the conversation.
    Propose(Op),
    /// Any entry was applied, or the time has come; then [`Event::Changed`].
    Wait {
        until_ms: u64,
    },
    Done(Result<VolmgrResponse, Denial>),
}

/// Outcome of that wait.
pub(crate) enum Event {
    Begun,
    Read,
    Proposed(ClusterReply),
    Changed,
}

/// State by which a step is decided.
pub(crate) struct World<'a> {
    pub(crate) manager: &'a mut Manager,
    pub(crate) state: &'a ClusterState,
    pub(crate) now: Now,
}

enum Stage {
    Asked(VolmgrRequest),
    Registering,
    Activating(Heard),
    ConfirmingDrops(NodeId),
    AllocatingGroups,
    CreatingVolume { name: String },
    AwaitingTable { volume: VolumeId, name: String, until_ms: u64 },
    DeletingVolume,
    Over,
}

/// A request under way.
pub(crate) struct Conversation {
    stage: Stage,
    /// Drawn for this request alone: it tells repetitions of its proposal.
    random: u64,
}

impl Conversation {
    pub(crate) fn new(request: VolmgrRequest, random: u64) -> Self {
        Self { stage: Stage::Asked(request), random }
    }

    /// Goes on after what the last step waited for.
    pub(crate) fn step(&mut self, world: World<'_>, event: Event) -> Step {
        let World { manager, state, now } = world;
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let next = match (stage, event) {
            (Stage::Asked(request), event) => self.ask(manager, state, now, request, &event),
            (Stage::Registering, Event::Proposed(reply)) => {
                done(VolmgrResponse::Register(manager.registered(now, state, reply)))
            }
            (Stage::Activating(heard), Event::Proposed(_)) => Ok(self.go_on_with_heartbeat(manager, state, now, heard)),
            (Stage::ConfirmingDrops(node), Event::Proposed(_)) => {
                manager.forget_tables(state);
                done(VolmgrResponse::Heartbeat(manager.orders(now, state, node)))
            }
            (Stage::AllocatingGroups, Event::Proposed(reply)) => {
                done(VolmgrResponse::AllocateGroups(groups_answer(reply)))
            }
            (Stage::CreatingVolume { name }, Event::Proposed(reply)) => {
                self.await_table(manager, state, now, VolumeId(reply.volume), name, now.ms() + READY_DEADLINE_MS)
            }
            (Stage::AwaitingTable { volume, name, until_ms }, Event::Changed) => {
                self.await_table(manager, state, now, volume, name, until_ms)
            }
            (Stage::DeletingVolume, Event::Proposed(_)) => done(VolmgrResponse::DeleteVolume(DeleteVolumeResponse {})),
            _ => unreachable!("a conversation is told of what it waits for"),
        };
        next.unwrap_or_else(|denial| Step::Done(Err(denial)))
    }

    /// Checks and plans. What needs to see everything acknowledged before comes here twice, the second time after the read.
    fn ask(
        &mut self,
        manager: &mut Manager,
        state: &ClusterState,
        now: Now,
        request: VolmgrRequest,
        event: &Event,
    ) -> Result<Step, Denial> {
        match request {
            VolmgrRequest::Register(request) => {
                let command = manager.registration(now, request, self.random)?;
                self.stage = Stage::Registering;
                Ok(Step::Propose(Op::RegisterNode(command)))
            }
            VolmgrRequest::Heartbeat(request) => {
                let heard = manager.hear(now, state, request)?;
                Ok(self.go_on_with_heartbeat(manager, state, now, heard))
            }
            VolmgrRequest::CreateVolume(request) => {
                let command = manager.plan_volume(now, state, &request, self.random)?;
                self.stage = Stage::CreatingVolume { name: request.name };
                Ok(Step::Propose(Op::CreateVolume(command)))
            }
            VolmgrRequest::AllocateGroups(AllocateGroupsRequest { count, .. }) if count > GROUPS_PER_REQUEST_MAX => {
                Err(Denial::invalid(format!("at most {GROUPS_PER_REQUEST_MAX} groups a request")))
            }
            request if matches!(event, Event::Begun) => {
                self.stage = Stage::Asked(request);
                Ok(Step::Read)
            }
            VolmgrRequest::AllocateGroups(request) => {
                let command = manager.plan_groups(now, state, &request)?;
                self.stage = Stage::AllocatingGroups;
                Ok(Step::Propose(Op::AllocateGroups(command)))
            }
            VolmgrRequest::DeleteVolume(request) => {
                let command = Manager::plan_deletion(state, request.name)?;
                self.stage = Stage::DeletingVolume;
                Ok(Step::Propose(Op::DeleteVolume(command)))
            }
            VolmgrRequest::ShowVolume(request) => {
                done(VolmgrResponse::Volume(manager.volume(now, state, request.name)?))
            }
            VolmgrRequest::ListVolumes => done(VolmgrResponse::ListVolumes(manager.volumes(now, state))),
            VolmgrRequest::ShowCluster => done(VolmgrResponse::ShowCluster(manager.show_cluster(now, state))),
        }
    }

    /// One entry after the other, then the orders.
    fn go_on_with_heartbeat(
        &mut self,
        manager: &mut Manager,
        state: &ClusterState,
        now: Now,
        mut heard: Heard,
    ) -> Step {
        if let Some(command) = heard.activate.pop_front() {
            self.stage = Stage::Activating(heard);
            return Step::Propose(Op::ActivateVolume(command));
        }
        if let Some(command) = manager.confirmation(state, &heard) {
            self.stage = Stage::ConfirmingDrops(heard.node);
            return Step::Propose(Op::ConfirmDrops(command));
        }
        Step::Done(Ok(VolmgrResponse::Heartbeat(manager.orders(now, state, heard.node))))
    }

    fn await_table(
        &mut self,
        manager: &Manager,
        state: &ClusterState,
        now: Now,
        volume: VolumeId,
        name: String,
        until_ms: u64,
    ) -> Result<Step, Denial> {
        if let Some(created) = manager.created(now, state, volume, &name)? {
            return done(VolmgrResponse::Volume(created));
        }
        if now.ms() >= until_ms {
            return Err(Denial::late(&name));
        }
        self.stage = Stage::AwaitingTable { volume, name, until_ms };
        Ok(Step::Wait { until_ms })
    }
}

fn done(response: VolmgrResponse) -> Result<Step, Denial> {
    Ok(Step::Done(Ok(response)))
}
