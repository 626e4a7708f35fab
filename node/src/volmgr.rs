//! The volume manager as nodes call it: gRPC, with a deadline on every call.

use std::time::Duration;

use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::control::nodes_client::NodesClient;
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, Cluster, HeartbeatRequest, HeartbeatResponse, ListVolumesRequest,
    ListVolumesResponse, RegisterRequest, RegisterResponse, ShowClusterRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between attempts to register.
const REGISTER_RETRY: Duration = Duration::from_millis(300);

/// Connects when first called, and again whenever the connection broke.
#[derive(Clone, Debug)]
pub struct VolumeManager {
    channel: Channel,
}

impl VolumeManager {
    /// # Errors
    /// The text is no host:port.
    pub fn new(address: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true);
        Ok(Self { channel: endpoint.connect_lazy() })
    }

    fn nodes(&self) -> NodesClient<Channel> {
        NodesClient::new(self.channel.clone())
    }

    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    /// Says who and where a node is.
    ///
    /// # Errors
    /// What the volume manager answered, or `Unavailable`.
    pub async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse, Status> {
        bounded(self.nodes().register(request)).await
    }

    /// Registers again and again until the volume manager answers. `request` is made anew each time; `silent` is told
    /// each time why there is no answer.
    ///
    /// # Errors
    /// The volume manager refuses for good ([`is_final`]).
    pub async fn register_at_last<F: Future<Output = RegisterRequest>>(
        &self,
        request: impl Fn() -> F,
        mut silent: impl FnMut(&Status),
    ) -> Result<RegisterResponse, Status> {
        loop {
            match self.register(request().await).await {
                Err(status) if !is_final(&status) => silent(&status),
                decided => return decided,
            }
            tokio::time::sleep(REGISTER_RETRY).await;
        }
    }

    /// Says how a node is, and hears what it is to do.
    ///
    /// # Errors
    /// What the volume manager answered, or `Unavailable`.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        bounded(self.nodes().heartbeat(request)).await
    }

    /// Asks for block groups for a table.
    ///
    /// # Errors
    /// What the volume manager answered, or `Unavailable`.
    pub async fn allocate_groups(&self, request: AllocateGroupsRequest) -> Result<AllocateGroupsResponse, Status> {
        bounded(self.nodes().allocate_groups(request)).await
    }

    /// All volumes, with the replicas of their tables, as of everything acknowledged before.
    ///
    /// # Errors
    /// What the volume manager answered, or `Unavailable`.
    pub async fn list_volumes(&self) -> Result<ListVolumesResponse, Status> {
        bounded(self.admin().list_volumes(ListVolumesRequest {})).await
    }

    /// The cluster and its nodes, as of everything acknowledged before.
    ///
    /// # Errors
    /// What the volume manager answered, or `Unavailable`.
    pub async fn show_cluster(&self) -> Result<Cluster, Status> {
        bounded(self.admin().show_cluster(ShowClusterRequest {})).await
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
#[must_use]
pub fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument)
}
