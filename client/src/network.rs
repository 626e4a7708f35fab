//! The seam between the client and everything outside its process: the metadata leader, datanodes, the volume manager.
//! It exists so that tests can drive a [`crate::FileSystem`] against a cluster of their own, in virtual time.

use crate::CallFailed;
use bytes::Bytes;
use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::control::{ShowVolumeRequest, Volume};
use holdfast_proto::data::{
    PutShardRequest, PutShardResponse, ReadShardsRequest, ReadShardsResponse, ReserveSpaceRequest, ReserveSpaceResponse,
};
use holdfast_proto::meta::{MutateRequest, MutateResponse, ReadRequest, ReadResponse};
use holdfast_proto::method;
use holdfast_transport::Client;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tonic::transport::Endpoint as GrpcEndpoint;

const VOLMGR_TIMEOUT: Duration = Duration::from_secs(2);

/// A call under way.
pub type Call<T> = Pin<Box<dyn Future<Output = Result<T, CallFailed>> + Send>>;

/// Calls that end within their time, answered or not. A call that failed may have been executed all the same.
pub trait Network: Send + Sync + 'static {
    /// Asks a metanode for a change.
    fn mutate(&self, to: SocketAddr, request: MutateRequest, timeout: Duration) -> Call<MutateResponse>;
    /// Asks a metanode.
    fn read(&self, to: SocketAddr, request: ReadRequest, timeout: Duration) -> Call<ReadResponse>;
    /// Sends a shard.
    fn put(
        &self,
        to: SocketAddr,
        request: PutShardRequest,
        payload: Bytes,
        timeout: Duration,
    ) -> Call<PutShardResponse>;
    /// Fetches parts of shards; the payloads come behind each other.
    fn fetch(&self, to: SocketAddr, request: ReadShardsRequest, timeout: Duration)
    -> Call<(ReadShardsResponse, Bytes)>;
    /// Reserves space on disks.
    fn reserve(&self, to: SocketAddr, request: ReserveSpaceRequest, timeout: Duration) -> Call<ReserveSpaceResponse>;
    /// Asks the volume manager for the volume, again and again while it is mounted.
    fn volume(&self) -> Call<Volume>;
}

/// The real one.
pub(crate) struct RealNetwork {
    pub(crate) transport: Client,
    pub(crate) volmgr: String,
    pub(crate) volume: String,
}

impl RealNetwork {
    fn unary<Req, Res>(&self, to: SocketAddr, method: u16, request: Req, timeout: Duration) -> Call<Res>
    where
        Req: prost::Message + 'static,
        Res: prost::Message + Default + 'static,
    {
        let transport = self.transport.clone();
        Box::pin(async move { Ok(transport.unary(to, method, &request, timeout).await?) })
    }
}

impl Network for RealNetwork {
    fn mutate(&self, to: SocketAddr, request: MutateRequest, timeout: Duration) -> Call<MutateResponse> {
        self.unary(to, method::META_MUTATE, request, timeout)
    }

    fn read(&self, to: SocketAddr, request: ReadRequest, timeout: Duration) -> Call<ReadResponse> {
        self.unary(to, method::META_READ, request, timeout)
    }

    fn put(
        &self,
        to: SocketAddr,
        request: PutShardRequest,
        payload: Bytes,
        timeout: Duration,
    ) -> Call<PutShardResponse> {
        let transport = self.transport.clone();
        Box::pin(async move {
            let answer = transport.call(to, method::DATA_PUT, &request, vec![payload], timeout).await?;
            Ok(answer.message()?)
        })
    }

    fn fetch(
        &self,
        to: SocketAddr,
        request: ReadShardsRequest,
        timeout: Duration,
    ) -> Call<(ReadShardsResponse, Bytes)> {
        let transport = self.transport.clone();
        Box::pin(async move {
            let answer = transport.call(to, method::DATA_READ, &request, Vec::new(), timeout).await?;
            Ok((answer.message()?, answer.body))
        })
    }

    fn reserve(&self, to: SocketAddr, request: ReserveSpaceRequest, timeout: Duration) -> Call<ReserveSpaceResponse> {
        self.unary(to, method::DATA_RESERVE, request, timeout)
    }

    fn volume(&self) -> Call<Volume> {
        let (volmgr, volume) = (self.volmgr.clone(), self.volume.clone());
        Box::pin(async move {
            let asked = tokio::time::timeout(VOLMGR_TIMEOUT, ask_volmgr(&volmgr, &volume)).await;
            let answer = asked.map_err(|_| CallFailed::VolmgrSilent)?;
            answer.map_err(|status| CallFailed::Volmgr(status.message().to_owned()))
        })
    }
}

/// Asks a volume manager for a volume.
pub(crate) async fn ask_volmgr(volmgr: &str, volume: &str) -> Result<Volume, tonic::Status> {
    let endpoint = GrpcEndpoint::from_shared(format!("http://{volmgr}"))
        .map_err(|e| tonic::Status::invalid_argument(e.to_string()))?
        .connect_timeout(VOLMGR_TIMEOUT)
        .tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(|e| tonic::Status::unavailable(root_cause(&e)))?;
    let mut admin = AdminClient::new(channel);
    let response = admin.show_volume(ShowVolumeRequest { name: volume.to_owned() }).await?;
    Ok(response.into_inner())
}

/// The innermost reason of an error, which is what a person can act on.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
