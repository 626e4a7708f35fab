//! Decisions of the volume manager, with the knowledge that only heartbeats bring. Pure: times and random numbers are
//! passed in, and the state of the cluster that it decides by is the one of its log. The gRPC services and the stepped
//! form do what it says.
//!
//! A [`Conversation`](conversation::Conversation) is one request from its first check to its answer, in steps; between two
//! of them the log accepts an entry.

pub(crate) mod conversation;
mod denial;
mod proposal;
mod sabotage;
mod view;

pub use conversation::{VolmgrRequest, VolmgrResponse};
pub use denial::{Denial, DenialKind};
pub(crate) use proposal::{PROPOSE_DEADLINE, PROPOSE_PAUSE, Verdict, command_of, initialising, read_verdict, verdict};
pub use sabotage::Sabotage;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_common::limits::GROUP_CAPACITY_BYTES;
use holdfast_common::proof::Claim;
use holdfast_common::{ClusterId, DiskId, GroupId, Incarnation, NodeId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::cluster::{
    ActivateVolume, AllocateGroups, ClusterReply, ConfirmDrops, CreateVolume, DeleteVolume, DiskRecord, GroupRecord,
    MemberRecord, RegisterNode, VolumeKey,
};
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, Cluster, CreateVolumeRequest, Disk, DroppedVolume, Group,
    GroupMember, HeartbeatRequest, HeartbeatResponse, ListVolumesResponse, RegisterRequest, RegisterResponse,
    TableReport, Volume, VolumeDrop, VolumeState,
};

use crate::liveness::Liveness;
use crate::placement::{place_groups, place_table};
use crate::state::{ClusterState, Refusal, VolumeInfo, check_volume_name};
use view::View;

/// Interval of heartbeats; [`crate::liveness::LIVENESS_DEADLINE_MS`] is six of these.
const HEARTBEAT_INTERVAL_MS: u32 = 500;
/// Most block groups of one request: a table asks for two or so at a time.
const GROUPS_PER_REQUEST_MAX: u32 = 64;

/// A moment on the volume manager's clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, from any beginning.
    pub monotonic_ns: u64,
    /// Since the Unix epoch.
    pub wall_ns: i64,
}

impl Now {
    pub(crate) fn ms(&self) -> u64 {
        self.monotonic_ns / 1_000_000
    }
}

/// A full disk takes data again once this part of it may be written.
const ROOM_AGAIN_PART: u64 = 100;

/// The last leader's report of a table.
#[derive(Clone, Debug)]
struct LeaderReport {
    node: NodeId,
    report: TableReport,
}

/// Knowledge that only heartbeats bring, rebuilt by them after a restart, and the decisions that use it.
pub(crate) struct Manager {
    cluster: ClusterId,
    sabotage: Sabotage,
    liveness: Liveness,
    disks: BTreeMap<NodeId, Vec<Disk>>,
    /// Below their soft threshold, or not yet far enough above it.
    full_disks: BTreeSet<DiskId>,
    tables: BTreeMap<(VolumeId, Incarnation), LeaderReport>,
    /// The highest feature level of tables that each metanode's build knows (R26).
    feature_levels: BTreeMap<NodeId, u32>,
}

/// A heartbeat that was heard, and what of it the log does not know yet.
#[derive(Debug)]
pub(crate) struct Heard {
    node: NodeId,
    /// Volumes whose table is ready.
    activate: VecDeque<ActivateVolume>,
    dropped: Vec<DroppedVolume>,
}

impl Manager {
    pub(crate) fn new(cluster: ClusterId, now: Now, sabotage: Sabotage) -> Self {
        Self {
            cluster,
            sabotage,
            liveness: Liveness::new(now.ms()),
            disks: BTreeMap::new(),
            full_disks: BTreeSet::new(),
            tables: BTreeMap::new(),
            feature_levels: BTreeMap::new(),
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Time passes; to be called several times a second.
    pub(crate) fn tick(&mut self, now: Now) {
        self.liveness.tick(now.ms());
    }

    /// Only a node that never registered may come without a cluster.
    fn check_cluster(&self, cluster: &str, may_be_new: bool) -> Result<(), Denial> {
        if cluster == self.cluster.to_string() || (cluster.is_empty() && may_be_new) {
            return Ok(());
        }
        Err(Denial::forbidden(format!(
            "this volume manager is of cluster {}, the node belongs to cluster {cluster}",
            self.cluster
        )))
    }

    /// Makes the entry of a registration. `random` names a node that brings no nonce of its own.
    fn registration(&self, now: Now, request: RegisterRequest, random: u64) -> Result<RegisterNode, Denial> {
        self.check_cluster(&request.cluster, request.node == 0)?;
        if request.address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(Denial::invalid(format!("'{}' is no address host:port", request.address)));
        }
        let record = |disk: Disk| DiskRecord {
            disk: disk.disk,
            total_bytes: disk.total_bytes,
            available_bytes: disk.available_bytes,
            file_system: disk.file_system,
        };
        Ok(RegisterNode {
            node: request.node,
            role: u32::try_from(request.role).unwrap_or(0),
            address: request.address,
            generation: request.generation,
            disks: request.disks.into_iter().map(record).collect(),
            // Without a nonce of the node's own, one of ours makes at least our own repetitions find the same node.
            format_nonce: if request.format_nonce == 0 { random } else { request.format_nonce },
            living_elsewhere: self.liveness.is_heard(now.ms(), NodeId(request.node)),
        })
    }

    /// Answers a registration that is in the log.
    fn registered(&mut self, now: Now, state: &ClusterState, reply: ClusterReply) -> RegisterResponse {
        self.liveness.heard(now.ms(), NodeId(reply.node));
        RegisterResponse {
            cluster: self.cluster.to_string(),
            node: reply.node,
            disks: reply.disks,
            secret: state.secret().map(|secret| secret.0.to_vec()).unwrap_or_default().into(),
            heartbeat_interval_ms: HEARTBEAT_INTERVAL_MS,
        }
    }

    /// Takes a heartbeat in.
    fn hear(&mut self, now: Now, state: &ClusterState, request: HeartbeatRequest) -> Result<Heard, Denial> {
        self.check_cluster(&request.cluster, false)?;
        let node = NodeId(request.node);
        self.check_generation(state, node, request.generation)?;
        self.liveness.heard(now.ms(), node);
        self.note_full(&request.disks);
        self.disks.insert(node, request.disks);
        self.feature_levels.insert(node, request.feature_level);
        let activate = request.tables.iter().filter_map(|report| self.note_table(state, node, report)).collect();
        Ok(Heard { node, activate, dropped: request.dropped })
    }

    /// A disk that goes back and forth about its threshold must not make every client ask for addresses each second.
    fn note_full(&mut self, disks: &[Disk]) {
        for disk in disks.iter().filter(|disk| disk.total_bytes > 0) {
            if disk.available_bytes == 0 {
                self.full_disks.insert(DiskId(disk.disk));
            } else if disk.available_bytes >= disk.total_bytes / ROOM_AGAIN_PART {
                self.full_disks.remove(&DiskId(disk.disk));
            }
        }
    }

    /// A node that is fenced by a later start, or unknown, hears so and is not counted as alive (R28).
    fn check_generation(&self, state: &ClusterState, node: NodeId, generation: u64) -> Result<(), Denial> {
        match state.nodes().get(&node) {
            None => Err(Refusal::UnknownNode(node).into()),
            Some(known) if known.generation > generation && self.sabotage != Sabotage::HearOlderGeneration => {
                Err(Refusal::OlderGeneration { node, known: known.generation, got: generation }.into())
            }
            Some(_) => Ok(()),
        }
    }

    /// Keeps a leader's report of a table; the entry that activates its volume, if it is ready now.
    fn note_table(&mut self, state: &ClusterState, node: NodeId, report: &TableReport) -> Option<ActivateVolume> {
        let (volume, incarnation) = (VolumeId(report.volume), Incarnation(report.incarnation));
        let info = state.volumes().get(&volume).filter(|info| info.incarnation == incarnation)?;
        if !report.leader {
            return None;
        }
        let known = self.tables.get(&(volume, incarnation));
        if known.is_none_or(|known| known.report.term <= report.term) {
            self.tables.insert((volume, incarnation), LeaderReport { node, report: *report });
        }
        let ready = report.ready || self.sabotage == Sabotage::ActivateUnready;
        (ready && info.state == VolumeState::Creating)
            .then_some(ActivateVolume { volume: report.volume, incarnation: report.incarnation })
    }

    /// Confirms the drops that the node has executed and the log still waits for.
    fn confirmation(&self, state: &ClusterState, heard: &Heard) -> Option<ConfirmDrops> {
        let pending = |info: &VolumeInfo| info.drop_pending.contains(&heard.node);
        let key = |volume, incarnation| VolumeKey { volume, incarnation };
        let volumes: Vec<_> = if self.sabotage == Sabotage::ConfirmUnreported {
            let waiting = state.volumes().iter().filter(|(_, info)| pending(info));
            waiting.map(|(volume, info)| key(volume.0, info.incarnation.0)).collect()
        } else {
            let waits = |volume: u64| state.volumes().get(&VolumeId(volume)).is_some_and(pending);
            let confirmed = heard.dropped.iter().filter(|dropped| waits(dropped.volume));
            confirmed.map(|dropped| key(dropped.volume, dropped.incarnation)).collect()
        };
        (!volumes.is_empty()).then_some(ConfirmDrops { node: heard.node.0, volumes })
    }

    /// Lets go of the reports of volumes that are gone.
    fn forget_tables(&mut self, state: &ClusterState) {
        let known: BTreeSet<VolumeId> = state.volumes().keys().copied().collect();
        self.tables.retain(|(volume, _), _| known.contains(volume));
    }

    /// Orders to a node: tables to host, addresses of others, volumes to drop.
    fn orders(&self, now: Now, state: &ClusterState, node: NodeId) -> HeartbeatResponse {
        let view = View::new(self, state, now.ms());
        let hosted =
            state.volumes().iter().filter(|(_, v)| v.state != VolumeState::Deleting && v.replicas.contains(&node));
        let dropped = state.volumes().iter().filter(|(_, v)| v.drop_pending.contains(&node));
        let drop_of = |volume: VolumeId, incarnation: Incarnation| {
            let mac = state.secret().map(|secret| secret.prove(volume, incarnation, Claim::DropVolume));
            VolumeDrop {
                volume: volume.0,
                incarnation: incarnation.0,
                mac: mac.map(|mac| mac.to_vec()).unwrap_or_default().into(),
            }
        };
        HeartbeatResponse {
            tables: hosted.map(|(id, info)| view.assignment(*id, info)).collect(),
            nodes: view.endpoints(),
            drops: dropped.map(|(id, info)| drop_of(*id, info.incarnation)).collect(),
            time_ns: now.wall_ns,
        }
    }

    /// Members for the block groups asked for. Where a group exists already, apply answers it and ignores what is planned.
    fn plan_groups(
        &self,
        now: Now,
        state: &ClusterState,
        request: &AllocateGroupsRequest,
    ) -> Result<AllocateGroups, Denial> {
        let volume = VolumeId(request.volume);
        let info = state.volumes().get(&volume).filter(|info| info.incarnation.0 == request.incarnation);
        let info = info.ok_or(Refusal::NoSuchVolumeId(volume))?;
        let candidates = View::new(self, state, now.ms()).group_candidates();
        let first = GroupId(request.first_group);
        let placed = place_groups(candidates, info.code.width(), first, request.count)
            .map_err(|error| Denial::busy(error.to_string()))?;
        let member = |m: &crate::state::Member| MemberRecord { disk: m.disk.0, node: m.node.0 };
        let record = |(group, members): (GroupId, Vec<_>)| GroupRecord {
            group: group.0,
            members: members.iter().map(member).collect(),
        };
        let groups = placed.into_iter().map(record).collect();
        Ok(AllocateGroups { volume: request.volume, incarnation: request.incarnation, groups })
    }

    /// Checks what needs no entry, and chooses the table's metanodes with what heartbeats know.
    fn plan_volume(
        &self,
        now: Now,
        state: &ClusterState,
        request: &CreateVolumeRequest,
        random: u64,
    ) -> Result<CreateVolume, Denial> {
        check_volume_name(&request.name)?;
        let code = CodeMode::new(request.data_shards, request.parity_shards).map_err(Refusal::from)?;
        let view = View::new(self, state, now.ms());
        let failed = view.failed_disks();
        state.check_width(code, &failed)?;
        let candidates = view.table_candidates();
        if candidates.is_empty() {
            return Err(Refusal::NoMetanodes.into());
        }
        let replicas = place_table(&candidates);
        if replicas.is_empty() {
            return Err(Denial::busy("too few metanodes are alive: a majority of the table's replicas must be"));
        }
        Ok(CreateVolume {
            request: random,
            name: request.name.clone(),
            data_shards: request.data_shards,
            parity_shards: request.parity_shards,
            quota_bytes: request.quota_bytes,
            replicas: replicas.into_iter().map(|node| node.0).collect(),
            failed_disks: failed.into_iter().map(|disk| disk.0).collect(),
        })
    }

    /// The volume that was made, once its table's leader has reported that it is ready.
    fn created(&self, now: Now, state: &ClusterState, id: VolumeId, name: &str) -> Result<Option<Volume>, Denial> {
        let found = state.volumes().get(&id).filter(|info| info.state != VolumeState::Deleting);
        let info = found.ok_or_else(|| Denial::deleted(name))?;
        let done = info.state == VolumeState::Active || self.sabotage == Sabotage::AnswerBeforeTable;
        Ok(done.then(|| View::new(self, state, now.ms()).volume(id, info)))
    }

    fn plan_deletion(state: &ClusterState, name: String) -> Result<DeleteVolume, Denial> {
        let (volume, info) = state.volume_named(&name).ok_or(Refusal::NoSuchVolume(name))?;
        Ok(DeleteVolume { volume: volume.0, incarnation: info.incarnation.0 })
    }

    fn volume(&self, now: Now, state: &ClusterState, name: String) -> Result<Volume, Denial> {
        let (id, info) = state.volume_named(&name).ok_or(Refusal::NoSuchVolume(name))?;
        Ok(View::new(self, state, now.ms()).volume(id, info))
    }

    fn volumes(&self, now: Now, state: &ClusterState) -> ListVolumesResponse {
        let view = View::new(self, state, now.ms());
        ListVolumesResponse { volumes: state.volumes().iter().map(|(id, info)| view.volume(*id, info)).collect() }
    }

    fn show_cluster(&self, now: Now, state: &ClusterState) -> Cluster {
        let view = View::new(self, state, now.ms());
        Cluster {
            cluster: self.cluster.to_string(),
            nodes: state.nodes().iter().map(|(id, node)| view.node(*id, node)).collect(),
            volumes_count: u32::try_from(state.volumes().len()).unwrap_or(u32::MAX),
        }
    }
}

fn groups_answer(reply: ClusterReply) -> AllocateGroupsResponse {
    let member = |m: MemberRecord| GroupMember { disk: m.disk, node: m.node };
    let group = |record: GroupRecord| Group {
        group: record.group,
        members: record.members.into_iter().map(member).collect(),
        capacity_bytes: GROUP_CAPACITY_BYTES,
    };
    AllocateGroupsResponse { groups: reply.groups.into_iter().map(group).collect() }
}
