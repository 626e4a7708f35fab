//! What people and clients ask: volumes and the cluster.

use std::time::Duration;

use holdfast_common::{VolumeId, random_bytes};
use holdfast_erasure::CodeMode;
use holdfast_proto::cluster::cluster_command::Op;
use holdfast_proto::cluster::{CreateVolume, DeleteVolume};
use holdfast_proto::control::admin_server::Admin;
use holdfast_proto::control::{
    Cluster, CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, ListVolumesRequest, ListVolumesResponse,
    ShowClusterRequest, ShowVolumeRequest, Volume, VolumeState,
};
use tonic::{Request, Response, Status};

use super::core::{Core, status_of};
use super::view::View;
use crate::placement::place_table;
use crate::state::{Refusal, check_volume_name};

/// How long the creation of a volume waits for its table: an election and a few entries, many times over.
const READY_DEADLINE: Duration = Duration::from_secs(20);

#[tonic::async_trait]
impl Admin for Core {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let command = self.plan_volume(&request)?;
        let reply = self.propose(Op::CreateVolume(command)).await?;
        self.wait_until_active(VolumeId(reply.volume), &request.name).await.map(Response::new)
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        self.read_barrier().await?;
        let volumes = self.with_state(|state| {
            let view = View::new(self, state);
            state.volumes().iter().map(|(id, info)| view.volume(*id, info)).collect()
        });
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn show_volume(&self, request: Request<ShowVolumeRequest>) -> Result<Response<Volume>, Status> {
        self.read_barrier().await?;
        let name = request.into_inner().name;
        let found = self.with_state(|state| {
            let (id, info) = state.volume_named(&name)?;
            Some(View::new(self, state).volume(id, info))
        });
        found.map(Response::new).ok_or_else(|| refused(&Refusal::NoSuchVolume(name)))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        self.read_barrier().await?;
        let name = request.into_inner().name;
        let found = self.with_state(|state| state.volume_named(&name).map(|(id, info)| (id, info.incarnation)));
        let (volume, incarnation) = found.ok_or_else(|| refused(&Refusal::NoSuchVolume(name)))?;
        self.propose(Op::DeleteVolume(DeleteVolume { volume: volume.0, incarnation: incarnation.0 })).await?;
        self.announce_change();
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn show_cluster(&self, _: Request<ShowClusterRequest>) -> Result<Response<Cluster>, Status> {
        self.read_barrier().await?;
        let cluster = self.with_state(|state| {
            let view = View::new(self, state);
            Cluster {
                cluster: self.cluster.to_string(),
                nodes: state.nodes().iter().map(|(id, node)| view.node(*id, node)).collect(),
                volumes_count: u32::try_from(state.volumes().len()).unwrap_or(u32::MAX),
            }
        });
        Ok(Response::new(cluster))
    }
}

fn refused(refusal: &Refusal) -> Status {
    status_of(refusal.kind(), refusal.to_string())
}

impl Core {
    /// Checks what needs no entry, and chooses the table's metanodes with what heartbeats know.
    fn plan_volume(&self, request: &CreateVolumeRequest) -> Result<CreateVolume, Status> {
        check_volume_name(&request.name).map_err(|refusal| refused(&refusal))?;
        let code = CodeMode::new(request.data_shards, request.parity_shards).map_err(|error| refused(&error.into()))?;
        let random = random_bytes().map_err(|error| Status::internal(error.to_string()))?;
        let (replicas, failed) = self.with_state(|state| {
            let view = View::new(self, state);
            let failed = view.failed_disks();
            state.check_width(code, &failed).map_err(|refusal| refused(&refusal))?;
            let candidates = view.table_candidates();
            if candidates.is_empty() {
                return Err(refused(&Refusal::NoMetanodes));
            }
            Ok((place_table(&candidates), failed))
        })?;
        if replicas.is_empty() {
            return Err(Status::unavailable("too few metanodes are alive: a majority of the table's replicas must be"));
        }
        Ok(CreateVolume {
            request: u64::from_le_bytes(random),
            name: request.name.clone(),
            data_shards: request.data_shards,
            parity_shards: request.parity_shards,
            quota_bytes: request.quota_bytes,
            replicas: replicas.into_iter().map(|node| node.0).collect(),
            failed_disks: failed.into_iter().map(|disk| disk.0).collect(),
        })
    }

    /// Waits for the table's leader to report that it is ready.
    async fn wait_until_active(&self, id: VolumeId, name: &str) -> Result<Volume, Status> {
        let mut changes = self.changes();
        let active = async {
            loop {
                changes.mark_unchanged();
                let found = self.with_state(|state| {
                    state.volumes().get(&id).map(|info| (info.state, View::new(self, state).volume(id, info)))
                });
                match found {
                    Some((VolumeState::Active, volume)) => return Ok(volume),
                    Some((VolumeState::Creating, _)) => {}
                    Some((VolumeState::Deleting, _)) | None => {
                        return Err(Status::aborted(format!("volume '{name}' was deleted while it was being created")));
                    }
                }
                if changes.changed().await.is_err() {
                    return Err(Status::unavailable("the volume manager is stopping"));
                }
            }
        };
        tokio::time::timeout(READY_DEADLINE, active).await.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "volume '{name}' exists, but its metadata table has no leader yet: look at it with 'volume show'"
            )))
        })
    }
}
