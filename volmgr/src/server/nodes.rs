//! What nodes tell and ask: registration, heartbeats, groups.

use std::collections::BTreeSet;

use holdfast_common::limits::GROUP_CAPACITY_BYTES;
use holdfast_common::proof::Claim;
use holdfast_common::{GroupId, Incarnation, NodeId, VolumeId, random_bytes};
use holdfast_proto::cluster::cluster_command::Op;
use holdfast_proto::cluster::{
    ActivateVolume, AllocateGroups, ConfirmDrops, DiskRecord, GroupRecord, MemberRecord, RegisterNode, VolumeKey,
};
use holdfast_proto::control::nodes_server::Nodes;
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, Group, GroupMember, HeartbeatRequest, HeartbeatResponse,
    RegisterRequest, RegisterResponse, TableReport, VolumeDrop, VolumeState,
};
use tonic::{Request, Response, Status};

use super::core::{Core, LeaderReport, status_of, wall_ns};
use super::view::View;
use crate::placement::place_groups;
use crate::state::{ClusterState, Refusal};

/// How often nodes say that they live; [`crate::liveness::LIVENESS_DEADLINE_MS`] is six of these.
const HEARTBEAT_INTERVAL_MS: u32 = 500;
/// Most groups of one request: a table asks for two or so at a time.
const GROUPS_PER_REQUEST_MAX: u32 = 64;

#[tonic::async_trait]
impl Nodes for Core {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster, request.node == 0)?;
        let command = self.registration(request)?;
        let reply = self.propose(Op::RegisterNode(command)).await?;
        self.with_soft(|soft, now_ms| soft.liveness.heard(now_ms, NodeId(reply.node)));
        let secret = self.with_state(|state| state.secret().map(|s| s.0.to_vec()));
        Ok(Response::new(RegisterResponse {
            cluster: self.cluster.to_string(),
            node: reply.node,
            disks: reply.disks,
            secret: secret.unwrap_or_default().into(),
            heartbeat_interval_ms: HEARTBEAT_INTERVAL_MS,
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster, false)?;
        let node = NodeId(request.node);
        self.with_state(|state| check_heartbeat(state, node, request.generation))?;
        self.with_soft(|soft, now_ms| {
            soft.liveness.heard(now_ms, node);
            soft.disks.insert(node, request.disks);
            soft.feature_levels.insert(node, request.feature_level);
        });
        self.note_tables(node, &request.tables).await?;
        let confirmed: Vec<_> = self.with_state(|state| {
            let pending = |v: VolumeId| state.volumes().get(&v).is_some_and(|info| info.drop_pending.contains(&node));
            let keys = request.dropped.iter().filter(|d| pending(VolumeId(d.volume)));
            keys.map(|d| VolumeKey { volume: d.volume, incarnation: d.incarnation }).collect()
        });
        if !confirmed.is_empty() {
            self.propose(Op::ConfirmDrops(ConfirmDrops { node: node.0, volumes: confirmed })).await?;
            self.forget_tables();
            self.announce_change();
        }
        Ok(Response::new(self.with_state(|state| self.orders(state, node))))
    }

    async fn allocate_groups(
        &self,
        request: Request<AllocateGroupsRequest>,
    ) -> Result<Response<AllocateGroupsResponse>, Status> {
        let request = request.into_inner();
        if request.count > GROUPS_PER_REQUEST_MAX {
            return Err(Status::invalid_argument(format!("at most {GROUPS_PER_REQUEST_MAX} groups a request")));
        }
        self.read_barrier().await?;
        let groups = self.plan_groups(&request)?;
        let command = AllocateGroups { volume: request.volume, incarnation: request.incarnation, groups };
        let reply = self.propose(Op::AllocateGroups(command)).await?;
        Ok(Response::new(AllocateGroupsResponse { groups: reply.groups.into_iter().map(group_of).collect() }))
    }
}

/// A node that is fenced by a later start, or unknown, hears so and is not counted as alive (R28).
fn check_heartbeat(state: &ClusterState, node: NodeId, generation: u64) -> Result<(), Status> {
    let refusal = match state.nodes().get(&node) {
        None => Refusal::UnknownNode(node),
        Some(known) if known.generation > generation => {
            Refusal::OlderGeneration { node, known: known.generation, got: generation }
        }
        Some(_) => return Ok(()),
    };
    Err(status_of(refusal.kind(), refusal.to_string()))
}

fn group_of(record: GroupRecord) -> Group {
    let member = |m: MemberRecord| GroupMember { disk: m.disk, node: m.node };
    Group {
        group: record.group,
        members: record.members.into_iter().map(member).collect(),
        capacity_bytes: GROUP_CAPACITY_BYTES,
    }
}

impl Core {
    /// Only a node that never registered may come without a cluster.
    fn check_cluster(&self, cluster: &str, may_be_new: bool) -> Result<(), Status> {
        if cluster == self.cluster.to_string() || (cluster.is_empty() && may_be_new) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this volume manager is of cluster {}, the node belongs to cluster {cluster}",
            self.cluster
        )))
    }

    fn registration(&self, request: RegisterRequest) -> Result<RegisterNode, Status> {
        if request.address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(Status::invalid_argument(format!("'{}' is no address host:port", request.address)));
        }
        // Without a nonce of the node's own, one of ours makes at least our own repetitions find the same node.
        let random = random_bytes().map_err(|error| Status::internal(error.to_string()))?;
        let nonce = if request.format_nonce == 0 { u64::from_le_bytes(random) } else { request.format_nonce };
        let node = NodeId(request.node);
        let heard = self.with_soft(|soft, now_ms| soft.liveness.is_heard(now_ms, node));
        let record = |disk: holdfast_proto::control::Disk| DiskRecord {
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
            format_nonce: nonce,
            living_elsewhere: heard,
        })
    }

    /// Keeps the reports of leaders, and activates a volume whose table is ready.
    async fn note_tables(&self, node: NodeId, reports: &[TableReport]) -> Result<(), Status> {
        for report in reports.iter().filter(|report| report.leader) {
            let (volume, incarnation) = (VolumeId(report.volume), Incarnation(report.incarnation));
            let state = self.with_state(|state| {
                let info = state.volumes().get(&volume).filter(|info| info.incarnation == incarnation);
                info.map(|info| info.state)
            });
            let Some(state) = state else { continue };
            self.with_soft(|soft, _| {
                let known = soft.tables.get(&(volume, incarnation));
                if known.is_none_or(|known| known.report.term <= report.term) {
                    soft.tables.insert((volume, incarnation), LeaderReport { node, report: *report });
                }
            });
            if report.ready && state == VolumeState::Creating {
                let activate = ActivateVolume { volume: report.volume, incarnation: report.incarnation };
                self.propose(Op::ActivateVolume(activate)).await?;
                self.announce_change();
            }
        }
        Ok(())
    }

    /// Lets go of the reports of volumes that are gone.
    fn forget_tables(&self) {
        let known: BTreeSet<VolumeId> = self.with_state(|state| state.volumes().keys().copied().collect());
        self.with_soft(|soft, _| soft.tables.retain(|(volume, _), _| known.contains(volume)));
    }

    /// What a node should host, whom it can reach, and what it should drop.
    fn orders(&self, state: &ClusterState, node: NodeId) -> HeartbeatResponse {
        let view = View::new(self, state);
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
            time_ns: wall_ns(),
        }
    }

    /// Members for the groups asked for. Where a group exists already, apply answers it and ignores what is planned.
    fn plan_groups(&self, request: &AllocateGroupsRequest) -> Result<Vec<GroupRecord>, Status> {
        let volume = VolumeId(request.volume);
        self.with_state(|state| {
            let info = state.volumes().get(&volume).filter(|info| info.incarnation.0 == request.incarnation);
            let refusal = Refusal::NoSuchVolumeId(volume);
            let info = info.ok_or_else(|| status_of(refusal.kind(), refusal.to_string()))?;
            let candidates = View::new(self, state).group_candidates();
            let first = GroupId(request.first_group);
            let placed = place_groups(candidates, info.code.width(), first, request.count)
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let member = |m: &crate::state::Member| MemberRecord { disk: m.disk.0, node: m.node.0 };
            let record = |(group, members): (GroupId, Vec<_>)| GroupRecord {
                group: group.0,
                members: members.iter().map(member).collect(),
            };
            Ok(placed.into_iter().map(record).collect())
        })
    }
}
