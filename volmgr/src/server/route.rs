//! Hands a request to the service its path names: tonic's own router would bring axum along for two services.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use holdfast_proto::control::admin_server::{AdminServer, SERVICE_NAME as ADMIN};
use holdfast_proto::control::nodes_server::NodesServer;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};

use super::core::Core;

/// Both services of a volume manager.
#[derive(Clone)]
pub(super) struct Route {
    admin: AdminServer<Core>,
    nodes: NodesServer<Core>,
}

impl Route {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { admin: AdminServer::from_arc(Arc::clone(&core)), nodes: NodesServer::from_arc(core) }
    }
}

impl Service<Request<Body>> for Route {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        // A path of neither service is answered UNIMPLEMENTED by either.
        if service == Some(ADMIN) { self.admin.call(request) } else { self.nodes.call(request) }
    }
}
