//! The gRPC services: a message in, a message out, and what a denial is in gRPC's words.

use holdfast_proto::control::admin_server::Admin;
use holdfast_proto::control::nodes_server::Nodes;
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, Cluster, CreateVolumeRequest, DeleteVolumeRequest,
    DeleteVolumeResponse, HeartbeatRequest, HeartbeatResponse, ListVolumesRequest, ListVolumesResponse,
    RegisterRequest, RegisterResponse, ShowClusterRequest, ShowVolumeRequest, Volume,
};
use tonic::{Code, Request, Response, Status};

use super::core::Core;
use crate::manager::{Denial, DenialKind, VolmgrRequest, VolmgrResponse};
use crate::state::RefusalKind;

impl From<Denial> for Status {
    fn from(denial: Denial) -> Self {
        let code = match denial.kind {
            DenialKind::Refused(RefusalKind::Invalid) => Code::InvalidArgument,
            DenialKind::Refused(RefusalKind::NotFound) => Code::NotFound,
            DenialKind::Refused(RefusalKind::Exists) => Code::AlreadyExists,
            DenialKind::Refused(RefusalKind::Forbidden) => Code::FailedPrecondition,
            DenialKind::Refused(RefusalKind::Busy) => Code::Unavailable,
            DenialKind::Deleted => Code::Aborted,
            DenialKind::Late => Code::DeadlineExceeded,
            DenialKind::Internal => Code::Internal,
        };
        Self::new(code, denial.detail)
    }
}

/// Has a request answered by the answer of its kind.
macro_rules! converse {
    ($core:expr, $request:expr, $kind:ident) => {
        match $core.converse($request).await? {
            VolmgrResponse::$kind(answer) => Ok(Response::new(answer)),
            other => unreachable!("{other:?} answers another request"),
        }
    };
}

#[tonic::async_trait]
impl Nodes for Core {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        converse!(self, VolmgrRequest::Register(request.into_inner()), Register)
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        converse!(self, VolmgrRequest::Heartbeat(request.into_inner()), Heartbeat)
    }

    async fn allocate_groups(
        &self,
        request: Request<AllocateGroupsRequest>,
    ) -> Result<Response<AllocateGroupsResponse>, Status> {
        converse!(self, VolmgrRequest::AllocateGroups(request.into_inner()), AllocateGroups)
    }
}

#[tonic::async_trait]
impl Admin for Core {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        converse!(self, VolmgrRequest::CreateVolume(request.into_inner()), Volume)
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        converse!(self, VolmgrRequest::ListVolumes, ListVolumes)
    }

    async fn show_volume(&self, request: Request<ShowVolumeRequest>) -> Result<Response<Volume>, Status> {
        converse!(self, VolmgrRequest::ShowVolume(request.into_inner()), Volume)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        converse!(self, VolmgrRequest::DeleteVolume(request.into_inner()), DeleteVolume)
    }

    async fn show_cluster(&self, _: Request<ShowClusterRequest>) -> Result<Response<Cluster>, Status> {
        converse!(self, VolmgrRequest::ShowCluster, ShowCluster)
    }
}
