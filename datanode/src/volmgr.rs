//! The volume manager as this node calls it: gRPC, with a deadline on every call.

use std::time::Duration;

use holdfast_proto::control::nodes_client::NodesClient;
use holdfast_proto::control::{HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects when first called, and again whenever the connection broke.
#[derive(Clone, Debug)]
pub(crate) struct VolumeManager {
    nodes: NodesClient<Channel>,
}

impl VolumeManager {
    /// # Errors
    /// The text is no host:port.
    pub(crate) fn new(address: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true);
        Ok(Self { nodes: NodesClient::new(endpoint.connect_lazy()) })
    }

    pub(crate) async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse, Status> {
        bounded(self.nodes.clone().register(request)).await
    }

    pub(crate) async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        bounded(self.nodes.clone().heartbeat(request)).await
    }
}

/// The channel's own timeout does not cover waiting for a connection.
async fn bounded<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::unavailable("the volume manager did not answer in time")),
    }
}

/// Whether the volume manager understood and will not change its mind: another cluster, an unknown node, a cloned one.
pub(crate) fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument)
}
