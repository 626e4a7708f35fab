//! Metanodes in this process, a volume manager that only knows what a test tells it, and a client that follows leaders.

use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{ClusterId, Incarnation, NodeId, VolumeId};
use holdfast_metanode::{Metanode, MetanodeConfig, format, start};
use holdfast_proto::control::nodes_server::Nodes;
use holdfast_proto::control::{
    self, AllocateGroupsRequest, AllocateGroupsResponse, Endpoint, Group, GroupMember, HeartbeatRequest,
    HeartbeatResponse, RegisterRequest, RegisterResponse, Role, TableAssignment, TableReport, Volume, VolumeDrop,
    VolumeState,
};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Code, MutateRequest, MutateResponse, Mutation, OpenSession, ReadRequest, ReadResponse, read_request,
};
use holdfast_proto::method::{META_MUTATE, META_READ, RAFT_ADMIT};
use holdfast_proto::raft::admit_answer::Outcome;
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest};
use holdfast_transport::{Client, ClientLimits, Identity};
use parking_lot::Mutex;
use route::Route;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

mod route;

pub(crate) const VOLUME: u64 = 9;
/// One that only exists, and that no client here uses.
const SECOND_VOLUME: u64 = 10;
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(crate) const SECRET: ClusterSecret = ClusterSecret([5; 32]);
const PATIENCE: Duration = Duration::from_secs(20);
const ANY: &str = "127.0.0.1:0";
/// Six heartbeats.
const ALIVE: Duration = Duration::from_millis(300);

/// What the volume manager knows.
#[derive(Default)]
pub(crate) struct Known {
    addresses: BTreeMap<u64, String>,
    nonces: BTreeMap<u64, u64>,
    /// The highest heard of each node.
    generations: BTreeMap<u64, u64>,
    heard: BTreeMap<u64, Instant>,
    pub(crate) reports: BTreeMap<u64, Vec<TableReport>>,
    pub(crate) dropped: Vec<u64>,
    pub(crate) has_volume: bool,
    pub(crate) has_second_volume: bool,
    pub(crate) drops_volume: bool,
    pub(crate) quota_bytes: u64,
    /// Of the node heard last: all are of one build.
    feature_level: u32,
}

impl Known {
    /// A later start of the node than any was heard of.
    pub(crate) fn raise_generation(&mut self, node: NodeId) {
        *self.generations.entry(node.0).or_default() += 1;
    }

    fn check_generation(&mut self, node: u64, generation: u64) -> Result<(), Status> {
        let highest = self.generations.entry(node).or_default();
        if generation < *highest {
            return Err(Status::failed_precondition("a later start of this node is known"));
        }
        *highest = generation;
        Ok(())
    }

    fn volumes(&self) -> Vec<u64> {
        let second = self.has_second_volume.then_some(SECOND_VOLUME);
        self.has_volume.then_some(VOLUME).into_iter().chain(second).collect()
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let endpoint = |(node, address): (&u64, &String)| Endpoint {
            node: *node,
            address: address.clone(),
            alive: true,
            ..Default::default()
        };
        self.addresses.iter().map(endpoint).collect()
    }

    fn listed(&self) -> Vec<Volume> {
        let volume = |volume: u64| Volume {
            volume,
            incarnation: 1,
            name: format!("demo-{volume}"),
            state: VolumeState::Active.into(),
            metanodes: self.endpoints(),
            ..Volume::default()
        };
        self.volumes().into_iter().map(volume).collect()
    }

    fn cluster(&self) -> control::Cluster {
        let node = |(node, address): (&u64, &String)| control::Node {
            node: *node,
            role: Role::Metanode.into(),
            address: address.clone(),
            alive: self.heard.get(node).is_some_and(|heard| heard.elapsed() < ALIVE),
            generation: self.generations.get(node).copied().unwrap_or(0),
            ..control::Node::default()
        };
        let nodes = self.addresses.iter().map(node).collect();
        control::Cluster { cluster: CLUSTER.to_string(), nodes, volumes_count: 0 }
    }
}

#[derive(Clone, Default)]
struct FakeVolmgr(Arc<Mutex<Known>>);

#[tonic::async_trait]
impl Nodes for FakeVolmgr {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        if !request.cluster.is_empty() && request.cluster != CLUSTER.to_string() {
            return Err(Status::failed_precondition("another cluster"));
        }
        let mut known = self.0.lock();
        let next = known.addresses.len() as u64 + 1;
        let node = match request.node {
            0 => *known.nonces.entry(request.format_nonce).or_insert(next),
            node => node,
        };
        known.check_generation(node, request.generation)?;
        known.addresses.insert(node, request.address);
        Ok(Response::new(RegisterResponse {
            cluster: CLUSTER.to_string(),
            node,
            disks: vec![],
            secret: SECRET.0.to_vec().into(),
            heartbeat_interval_ms: 50,
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let mut known = self.0.lock();
        known.check_generation(request.node, request.generation)?;
        known.heard.insert(request.node, Instant::now());
        known.reports.insert(request.node, request.tables);
        known.feature_level = request.feature_level;
        if !request.dropped.is_empty() {
            known.dropped.push(request.node);
        }
        let table = |volume: u64| TableAssignment {
            volume,
            incarnation: 1,
            name: "demo".into(),
            replicas: known.addresses.keys().copied().collect(),
            data_shards: 4,
            parity_shards: 2,
            quota_bytes: known.quota_bytes,
            available_bytes: 1 << 40,
            feature_level: known.feature_level,
        };
        let mac = SECRET.prove(VolumeId(VOLUME), Incarnation(1), Claim::DropVolume).to_vec().into();
        Ok(Response::new(HeartbeatResponse {
            tables: known.volumes().into_iter().map(table).collect(),
            nodes: known.endpoints(),
            drops: if known.drops_volume { vec![VolumeDrop { volume: VOLUME, incarnation: 1, mac }] } else { vec![] },
            time_ns: 0,
        }))
    }

    async fn allocate_groups(
        &self,
        request: Request<AllocateGroupsRequest>,
    ) -> Result<Response<AllocateGroupsResponse>, Status> {
        let request = request.into_inner();
        let members = || (1..=6).map(|i| GroupMember { disk: i, node: 100 + i }).collect();
        let first = request.first_group;
        let groups = (first..first + u64::from(request.count)).map(|group| Group {
            group,
            members: members(),
            capacity_bytes: 32 << 30,
        });
        Ok(Response::new(AllocateGroupsResponse { groups: groups.collect() }))
    }
}

/// A cluster of metanodes; stopped and removed when dropped.
pub(crate) struct Cluster {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) volmgr: String,
    fake: FakeVolmgr,
    serving: JoinHandle<()>,
    pub(crate) nodes: Vec<Option<Metanode>>,
}

impl Cluster {
    /// Formats and starts this many metanodes; there is no volume yet.
    pub(crate) async fn new(count: usize) -> Self {
        let fake = FakeVolmgr::default();
        let incoming = TcpIncoming::bind(ANY.parse().unwrap()).unwrap().with_nodelay(Some(true));
        let volmgr = incoming.local_addr().unwrap().to_string();
        let service = Route::new(fake.clone());
        let serving = tokio::spawn(async move {
            tonic::transport::Server::builder().serve_with_incoming(service, incoming).await.unwrap();
        });
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Self { directory, volmgr, fake, serving, nodes: vec![] };
        for index in 0..count {
            format(&cluster.path(index)).await.unwrap();
            let node = start(cluster.config(index)).await.unwrap();
            cluster.nodes.push(Some(node));
        }
        cluster
    }

    /// The same with a volume that is ready.
    pub(crate) async fn with_volume(count: usize) -> Self {
        let cluster = Self::new(count).await;
        cluster.known().has_volume = true;
        let ready = || cluster.known().reports.values().flatten().any(|report| report.leader && report.ready);
        until("the volume is ready", ready).await;
        cluster
    }

    pub(crate) fn known(&self) -> parking_lot::MutexGuard<'_, Known> {
        self.fake.0.lock()
    }

    pub(crate) fn path(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("meta-{index}"))
    }

    pub(crate) fn config(&self, index: usize) -> MetanodeConfig {
        MetanodeConfig { directory: self.path(index), listen: ANY.parse().unwrap(), volmgr: self.volmgr.clone() }
    }

    pub(crate) fn kill_volmgr(&self) {
        self.serving.abort();
    }

    pub(crate) async fn stop(&mut self, index: usize) {
        self.nodes[index].take().unwrap().shutdown().await;
    }

    pub(crate) async fn start(&mut self, index: usize) {
        self.nodes[index] = Some(start(self.config(index)).await.unwrap());
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().flatten().map(Metanode::local_addr).collect()
    }

    pub(crate) fn leader(&self, client: &MetaClient) -> usize {
        let target = client.target.unwrap();
        self.nodes.iter().position(|node| node.as_ref().is_some_and(|node| node.local_addr() == target)).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Waits for a state, with a deadline.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client of one session that asks whoever may lead until it is answered.
pub(crate) struct MetaClient {
    transport: Client,
    pub(crate) target: Option<SocketAddr>,
    pub(crate) session: u64,
    pub(crate) sequence: u64,
}

impl MetaClient {
    pub(crate) fn new() -> Self {
        let transport = Client::new(Identity { cluster: CLUSTER }, ClientLimits::default());
        Self { transport, target: None, session: 0, sequence: 0 }
    }

    pub(crate) async fn open_session(cluster: &Cluster, key: &'static [u8]) -> Self {
        let mut client = Self::new();
        let op = OpenSession { client_key: key.into(), description: "test".into() };
        client.session = client.mutate(cluster, Op::OpenSession(op)).await.session;
        client
    }

    /// A new operation, retried under its sequence until it is answered.
    pub(crate) async fn mutate(&mut self, cluster: &Cluster, op: Op) -> MutateResponse {
        self.sequence += u64::from(self.session != 0);
        self.repeat(cluster, op).await
    }

    /// An operation under the last sequence.
    pub(crate) async fn repeat(&mut self, cluster: &Cluster, op: Op) -> MutateResponse {
        let request = MutateRequest {
            volume: VOLUME,
            incarnation: 1,
            session: self.session,
            sequence: self.sequence,
            acknowledged_below: self.sequence,
            mutation: Some(Mutation { op: Some(op) }),
        };
        self.ask(cluster, META_MUTATE, &request, |response: &MutateResponse| response.code()).await
    }

    pub(crate) async fn read(&mut self, cluster: &Cluster, op: read_request::Op) -> ReadResponse {
        let request = ReadRequest { volume: VOLUME, incarnation: 1, session: self.session, op: Some(op) };
        self.ask(cluster, META_READ, &request, |response: &ReadResponse| response.code()).await
    }

    /// One request to one node.
    pub(crate) async fn mutate_at(&self, address: SocketAddr, op: Op) -> MutateResponse {
        let mutation = Some(Mutation { op: Some(op) });
        let request = MutateRequest { volume: VOLUME, incarnation: 1, mutation, ..MutateRequest::default() };
        self.transport.unary(address, META_MUTATE, &request, PATIENCE).await.unwrap()
    }

    /// A request to be let back into the table.
    pub(crate) async fn admit(&self, address: SocketAddr, request: AdmitRequest) -> Outcome {
        let answer: AdmitAnswer = self.transport.unary(address, RAFT_ADMIT, &request, PATIENCE).await.unwrap();
        answer.outcome.unwrap()
    }

    /// Whether anything answers there.
    pub(crate) async fn is_served_at(&self, address: SocketAddr) -> bool {
        let request = ReadRequest { volume: VOLUME, ..ReadRequest::default() };
        let asked = self.transport.unary::<_, ReadResponse>(address, META_READ, &request, Duration::from_secs(1));
        asked.await.is_ok()
    }

    async fn ask<Q: prost::Message, R: prost::Message + Default + std::fmt::Debug>(
        &mut self,
        cluster: &Cluster,
        method: u16,
        request: &Q,
        code: impl Fn(&R) -> Code,
    ) -> R {
        let deadline = Instant::now() + PATIENCE;
        let mut last = "nobody to ask".to_owned();
        while Instant::now() < deadline {
            let addresses = cluster.addresses();
            for address in self.target.into_iter().filter(|target| addresses.contains(target)).chain(addresses.clone())
            {
                match self.transport.unary::<Q, R>(address, method, request, Duration::from_secs(3)).await {
                    Ok(response) => match code(&response) {
                        Code::NotLeader | Code::Unavailable | Code::NoSuchVolume => last = format!("{response:?}"),
                        _ => {
                            self.target = Some(address);
                            return response;
                        }
                    },
                    Err(error) => last = error.to_string(),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no answer: {last}");
    }
}
