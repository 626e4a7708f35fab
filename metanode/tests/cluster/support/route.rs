//! Both services of the fake volume manager on one port, as the real one has them.

use super::FakeVolmgr;
use holdfast_proto::control::admin_server::{Admin, AdminServer, SERVICE_NAME as ADMIN};
use holdfast_proto::control::nodes_server::NodesServer;
use holdfast_proto::control::{
    Cluster, CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, ListVolumesRequest, ListVolumesResponse,
    ShowClusterRequest, ShowVolumeRequest, Volume,
};
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::{BoxFuture, Service};
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(super) struct Route {
    admin: AdminServer<FakeVolmgr>,
    nodes: NodesServer<FakeVolmgr>,
}

impl Route {
    pub(super) fn new(fake: FakeVolmgr) -> Self {
        Self { admin: AdminServer::new(fake.clone()), nodes: NodesServer::new(fake) }
    }
}

impl Service<http::Request<Body>> for Route {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_admin = request.uri().path().trim_start_matches('/').split('/').next() == Some(ADMIN);
        if is_admin { self.admin.call(request) } else { self.nodes.call(request) }
    }
}

#[tonic::async_trait]
impl Admin for FakeVolmgr {
    async fn create_volume(&self, _: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        Err(Status::unimplemented("not by this one"))
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        Ok(Response::new(ListVolumesResponse { volumes: self.0.lock().listed() }))
    }

    async fn show_volume(&self, _: Request<ShowVolumeRequest>) -> Result<Response<Volume>, Status> {
        Err(Status::unimplemented("not by this one"))
    }

    async fn delete_volume(&self, _: Request<DeleteVolumeRequest>) -> Result<Response<DeleteVolumeResponse>, Status> {
        Err(Status::unimplemented("not by this one"))
    }

    async fn show_cluster(&self, _: Request<ShowClusterRequest>) -> Result<Response<Cluster>, Status> {
        Ok(Response::new(self.0.lock().cluster()))
    }
}
