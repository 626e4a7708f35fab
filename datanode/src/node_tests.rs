//! Claims about a whole node: its life with and without a volume manager, and the protocol over a real connection.

mod disks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{ChunkId, ClusterId, Incarnation, VolumeId};
use holdfast_proto::control::nodes_server::{Nodes, NodesServer};
use holdfast_proto::control::{
    AllocateGroupsRequest, AllocateGroupsResponse, HeartbeatRequest, HeartbeatResponse, RegisterRequest,
    RegisterResponse, VolumeDrop,
};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, DiskReservation, DropVolumeRequest, DropVolumeResponse,
    ListShardsRequest, ListShardsResponse, ProbeRequest, ProbeResponse, Proof, PutShardRequest, PutShardResponse,
    ReadShardsRequest, ReadShardsResponse, ReserveSpaceRequest, ReserveSpaceResponse, SetFloorRequest,
    SetFloorResponse, ShardHeader, ShardRange, Status,
};
use holdfast_proto::method;
use holdfast_transport::{Client, ClientLimits, Identity};
use parking_lot::Mutex;
use tonic::transport::server::TcpIncoming;

use crate::store::types::ShardKey;
use crate::superblock::NODE_KIND;
use crate::{Datanode, DatanodeConfig, Process, StartError, StoreOptions, format, start, start_in, start_with};
use holdfast_node::NodeSuperblock;
use holdfast_node::superblock::SuperblockError;

const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
const SECRET: [u8; 32] = [0x5e; 32];
const TIMEOUT: Duration = Duration::from_secs(10);
const KIB: usize = 1024;

/// A volume manager that gives the answers a test wants.
#[derive(Clone, Default)]
struct FakeVolmgr(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    registrations: Vec<RegisterRequest>,
    heartbeats: Vec<HeartbeatRequest>,
    refuse: Option<String>,
    drops: Vec<VolumeDrop>,
}

#[tonic::async_trait]
impl Nodes for FakeVolmgr {
    async fn register(
        &self,
        request: tonic::Request<RegisterRequest>,
    ) -> Result<tonic::Response<RegisterResponse>, tonic::Status> {
        let request = request.into_inner();
        let mut script = self.0.lock();
        if let Some(why) = &script.refuse {
            return Err(tonic::Status::failed_precondition(why.clone()));
        }
        let disks = request.disks.iter().zip(11..).map(|(disk, new)| if disk.disk == 0 { new } else { disk.disk });
        let response = RegisterResponse {
            cluster: CLUSTER.to_string(),
            node: 5,
            disks: disks.collect(),
            secret: Bytes::copy_from_slice(&SECRET),
            heartbeat_interval_ms: 20,
        };
        script.registrations.push(request);
        Ok(tonic::Response::new(response))
    }

    async fn heartbeat(
        &self,
        request: tonic::Request<HeartbeatRequest>,
    ) -> Result<tonic::Response<HeartbeatResponse>, tonic::Status> {
        let request = request.into_inner();
        let mut script = self.0.lock();
        if let Some(why) = &script.refuse {
            return Err(tonic::Status::failed_precondition(why.clone()));
        }
        script.drops.retain(|drop| !request.dropped.iter().any(|done| done.volume == drop.volume));
        script.heartbeats.push(request);
        Ok(tonic::Response::new(HeartbeatResponse { drops: script.drops.clone(), ..HeartbeatResponse::default() }))
    }

    async fn allocate_groups(
        &self,
        _: tonic::Request<AllocateGroupsRequest>,
    ) -> Result<tonic::Response<AllocateGroupsResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not for datanodes"))
    }
}

impl FakeVolmgr {
    async fn serve(&self) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap().with_nodelay(Some(true));
        let address = incoming.local_addr().unwrap();
        let service = NodesServer::new(self.clone());
        let serving = tonic::transport::Server::builder().serve_with_incoming(service, incoming);
        (address, tokio::spawn(async move { serving.await.unwrap() }))
    }
}

struct Rig {
    directory: tempfile::TempDir,
    volmgr: FakeVolmgr,
    address: SocketAddr,
    client: Client,
}

impl Rig {
    async fn new() -> Self {
        let volmgr = FakeVolmgr::default();
        let (address, _) = volmgr.serve().await;
        let client = Client::new(Identity { cluster: CLUSTER }, ClientLimits::default());
        let rig = Self { directory: tempfile::tempdir().unwrap(), volmgr, address, client };
        let config = rig.config();
        format(&config.directory, &config.disks).await.unwrap();
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> DatanodeConfig {
        DatanodeConfig {
            directory: self.path("node"),
            disks: vec![self.path("disk0"), self.path("disk1")],
            listen: "127.0.0.1:0".parse().unwrap(),
            volmgr: self.address.to_string(),
        }
    }

    async fn start(&self) -> Datanode {
        start(self.config()).await.unwrap()
    }

    async fn put(&self, node: &Datanode, disk: u64, chunk: u64, bytes: usize) -> PutShardResponse {
        let (header, payload) = shard(chunk, bytes);
        let request = PutShardRequest { disk, header: Some(header), session: 1 };
        let answer = self.client.call(node.local_addr(), method::DATA_PUT, &request, vec![payload], TIMEOUT).await;
        answer.unwrap().message().unwrap()
    }

    async fn read(&self, node: &Datanode, ranges: Vec<ShardRange>) -> (ReadShardsResponse, Bytes) {
        let request = ReadShardsRequest { ranges };
        let answer = self.client.call(node.local_addr(), method::DATA_READ, &request, Vec::new(), TIMEOUT).await;
        let mut answer = answer.unwrap();
        (answer.message().unwrap(), answer.body)
    }

    async fn call<Q: prost::Message, A: prost::Message + Default>(
        &self,
        node: &Datanode,
        method: u16,
        request: Q,
    ) -> A {
        self.client.unary(node.local_addr(), method, &request, TIMEOUT).await.unwrap()
    }
}

fn shard(chunk: u64, bytes: usize) -> (ShardHeader, Bytes) {
    let payload: Bytes = (0..bytes).map(|n| u8::try_from((n as u64 * 31 + chunk) % 251).unwrap()).collect();
    let put = crate::store::tests::put(chunk, 9, bytes);
    let key = ShardKey { shard: 1, ..put.meta.key };
    let mut header = put.meta.to_wire();
    header.page_checksums = key.place().page_checksums(0, &payload).into();
    (header, payload)
}

fn range(disk: u64, chunk: u64, offset: usize, bytes: usize) -> ShardRange {
    let small = |n: usize| u32::try_from(n).unwrap();
    ShardRange {
        disk,
        volume: 3,
        incarnation: 1,
        chunk,
        nonce: 9,
        shard: 1,
        offset: small(offset),
        length_bytes: small(bytes),
    }
}

fn proof(claim: Claim<'_>) -> Option<Proof> {
    let mac = ClusterSecret(SECRET).prove(VolumeId(3), Incarnation(1), claim);
    Some(Proof { issuer: "table".to_owned(), mac: Bytes::copy_from_slice(&mac) })
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn status(code: i32) -> Status {
    Status::try_from(code).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_its_ids_once_and_serves_without_the_volume_manager_afterwards() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    assert_eq!(node.node().0, 5);
    assert_eq!(status(rig.put(&node, 11, 1, 128 * KIB).await.status), Status::Ok);
    assert_eq!(status(rig.put(&node, 12, 2, 8 * KIB).await.status), Status::Ok);
    until("a heartbeat with both disks", || {
        rig.volmgr.0.lock().heartbeats.last().is_some_and(|beat| {
            beat.disks.len() == 2 && beat.disks.iter().all(|disk| disk.healthy && disk.shards_count == 1)
        })
    })
    .await;
    node.shutdown().await;
    {
        let script = rig.volmgr.0.lock();
        assert_eq!(script.registrations.len(), 1);
        let first = &script.registrations[0];
        assert_eq!((first.node, first.generation, first.cluster.as_str()), (0, 1, ""));
        assert_ne!(first.format_nonce, 0);
        assert_eq!(first.disks.iter().map(|disk| disk.disk).collect::<Vec<_>>(), [0, 0]);
    }
    // Nobody listens there.
    let config = DatanodeConfig { volmgr: "127.0.0.1:1".to_owned(), ..rig.config() };
    let node = start(config).await.unwrap();
    assert_eq!(node.node().0, 5);
    let (response, body) = rig.read(&node, vec![range(11, 1, 0, 128 * KIB), range(12, 2, 0, 8 * KIB)]).await;
    assert!(response.results.iter().all(|result| status(result.status) == Status::Ok));
    assert_eq!(body, [shard(1, 128 * KIB).1, shard(2, 8 * KIB).1].concat());
    assert_eq!(NodeSuperblock::read(&rig.path("node"), NODE_KIND).unwrap().generation, 2);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_waits_for_the_volume_manager() {
    let rig = Rig::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let volmgr = listener.local_addr().unwrap().to_string();
    let starting = tokio::spawn(start(DatanodeConfig { volmgr, ..rig.config() }));
    // A volume manager that hangs up: when the node comes again it has heard no answer, and waits.
    for _ in 0..2 {
        drop(tokio::time::timeout(TIMEOUT, listener.accept()).await.unwrap().unwrap());
    }
    assert!(!starting.is_finished());
    let serving = tonic::transport::Server::builder()
        .serve_with_incoming(NodesServer::new(rig.volmgr.clone()), TcpIncoming::from(listener));
    tokio::spawn(async move { serving.await.unwrap() });
    let node = tokio::time::timeout(TIMEOUT, starting).await.unwrap().unwrap().unwrap();
    assert_eq!(node.node().0, 5);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unformatted_doubly_started_and_foreign_directories_are_refused_in_a_sentence() {
    let rig = Rig::new().await;
    let bare = DatanodeConfig { directory: rig.path("nothing"), ..rig.config() };
    let error = start(bare).await.err().unwrap().to_string();
    assert!(error.ends_with("nothing is not formatted as a datanode's directory"), "{error}");
    assert!(!rig.path("nothing").exists());
    let again = format(&rig.path("node"), &[rig.path("disk2")]).await.err().unwrap();
    assert!(matches!(again, StartError::Superblock(SuperblockError::Exists { .. })), "{again}");

    let node = rig.start().await;
    let error = start(rig.config()).await.err().unwrap().to_string();
    assert!(error.ends_with("is in use by another holdfast process"), "{error}");
    let taken = node.local_addr();
    format(&rig.path("node2"), &[rig.path("disk2")]).await.unwrap();
    let second =
        DatanodeConfig { directory: rig.path("node2"), disks: vec![rig.path("disk2")], listen: taken, ..rig.config() };
    let error = start(second.clone()).await.err().unwrap().to_string();
    assert_eq!(error, format!("cannot listen on {taken}: the port is in use"));
    assert_eq!(NodeSuperblock::read(&rig.path("node2"), NODE_KIND).unwrap().generation, 0, "something was changed");
    node.shutdown().await;

    let swapped = DatanodeConfig { disks: vec![rig.path("disk0"), rig.path("disk2")], ..rig.config() };
    let error = start(swapped).await.err().unwrap().to_string();
    assert!(error.ends_with("disk2 is a disk of another node or cluster"), "{error}");
    let error = format(&rig.path("node3"), &[rig.path("disk0")]).await.err().unwrap().to_string();
    assert!(error.ends_with("disk0 is formatted already"), "{error}");
    std::fs::create_dir(rig.path("full")).unwrap();
    std::fs::write(rig.path("full").join("a"), b"x").unwrap();
    let error = format(&rig.path("node3"), &[rig.path("full")]).await.err().unwrap().to_string();
    assert!(error.contains("holds files already"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_volume_manager_refuses_does_not_serve() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    rig.volmgr.0.lock().refuse = Some("a later start of this node is known".to_owned());
    let why = tokio::time::timeout(TIMEOUT, node.refused()).await.unwrap();
    assert_eq!(why, "a later start of this node is known");
    let request = ProbeRequest {};
    let asked: Result<ProbeResponse, _> =
        rig.client.unary(node.local_addr(), method::DATA_PROBE, &request, Duration::from_millis(300)).await;
    assert!(asked.is_err());
    node.shutdown().await;
    let error = start(rig.config()).await.err().unwrap().to_string();
    assert_eq!(error, "the volume manager refuses this node: a later start of this node is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_volume_is_deleted_when_the_proof_holds_and_reported() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    rig.put(&node, 11, 1, 128 * KIB).await;
    rig.put(&node, 12, 2, 8 * KIB).await;
    let mac = Bytes::from_static(&[1; 32]);
    rig.volmgr.0.lock().drops = vec![VolumeDrop { volume: 3, incarnation: 1, mac }];
    let beats = rig.volmgr.0.lock().heartbeats.len();
    until("heartbeats", || rig.volmgr.0.lock().heartbeats.len() > beats + 3).await;
    assert_eq!(rig.volmgr.0.lock().drops.len(), 1, "a drop without a valid proof was executed");
    let (response, _) = rig.read(&node, vec![range(11, 1, 0, 4096)]).await;
    assert_eq!(status(response.results[0].status), Status::Ok);
    let mac = proof(Claim::DropVolume).unwrap().mac;
    rig.volmgr.0.lock().drops[0].mac = mac;
    until("the drop is reported", || rig.volmgr.0.lock().drops.is_empty()).await;
    assert_eq!(status(rig.put(&node, 11, 5, 8 * KIB).await.status), Status::Dropped);
    until("the space is given back", || {
        let script = rig.volmgr.0.lock();
        script.heartbeats.last().is_some_and(|beat| beat.disks.iter().all(|disk| disk.used_bytes == 0))
    })
    .await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_answers_with_its_status() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    assert_eq!(status(rig.put(&node, 99, 1, 8 * KIB).await.status), Status::WrongDisk);
    let put = rig.put(&node, 11, 1, 8 * KIB).await;
    assert_eq!(status(put.status), Status::Ok);
    assert!(put.available_bytes > 0);
    assert_eq!(status(rig.put(&node, 11, 1, 8 * KIB).await.status), Status::Ok, "R1: twice is fine");
    assert_eq!(status(rig.put(&node, 11, 1, 12 * KIB).await.status), Status::Conflict);
    let (mut header, payload) = shard(2, 8 * KIB);
    header.shard_length_bytes += 1;
    let request = PutShardRequest { disk: 11, header: Some(header), session: 0 };
    let answer = rig.client.call(node.local_addr(), method::DATA_PUT, &request, vec![payload], TIMEOUT).await;
    assert_eq!(status(answer.unwrap().message::<PutShardResponse>().unwrap().status), Status::Invalid);

    let ranges = vec![
        range(11, 1, 4096, 4096),
        range(11, 7, 0, 4096),
        range(99, 1, 0, 4096),
        range(11, 1, 0, 8192),
        range(11, 1, 8192, 4096),
    ];
    let (response, body) = rig.read(&node, ranges).await;
    let statuses: Vec<Status> = response.results.iter().map(|result| status(result.status)).collect();
    assert_eq!(statuses, [Status::Ok, Status::NotFound, Status::WrongDisk, Status::Ok, Status::Invalid]);
    let whole = shard(1, 8 * KIB).1;
    assert_eq!(body, [&whole[4096..], &whole[..]].concat());

    let listed: ListShardsResponse = rig
        .call(
            &node,
            method::DATA_LIST,
            ListShardsRequest { disk: 11, volume: 3, incarnation: 1, after_chunk: 0, max_count: 10 },
        )
        .await;
    assert!(listed.end && listed.shards.len() == 1 && listed.shards[0].slots.len() == 6);

    let chunks = vec![1];
    let forged = DeleteShardsRequest {
        disk: 11,
        volume: 3,
        incarnation: 1,
        chunks: chunks.clone(),
        proof: proof(Claim::DropVolume),
        shards: Vec::new(),
    };
    let deleted: DeleteShardsResponse = rig.call(&node, method::DATA_DELETE, forged.clone()).await;
    assert_eq!(status(deleted.status), Status::Forbidden);
    let honest = DeleteShardsRequest { proof: proof(Claim::DeleteChunks(&[ChunkId(1)])), ..forged };
    let deleted: DeleteShardsResponse = rig.call(&node, method::DATA_DELETE, honest).await;
    assert_eq!((status(deleted.status), deleted.deleted_count), (Status::Ok, 1));

    let floor = SetFloorRequest { volume: 3, incarnation: 1, floor: 50, proof: proof(Claim::SetFloor(ChunkId(50))) };
    let set: SetFloorResponse = rig.call(&node, method::DATA_SET_FLOOR, floor).await;
    assert_eq!(status(set.status), Status::Ok);
    assert_eq!(status(rig.put(&node, 12, 49, 8 * KIB).await.status), Status::BelowFloor);

    let reserve = ReserveSpaceRequest {
        session: 1,
        volume: 1,
        disks: [11, 99].map(|disk| DiskReservation { disk, wanted_bytes: 1 << 20 }).to_vec(),
        lease_ms: 1000,
    };
    let reserved: ReserveSpaceResponse = rig.call(&node, method::DATA_RESERVE, reserve).await;
    assert_eq!((status(reserved.grants[0].status), reserved.grants[0].granted_bytes), (Status::Ok, 1 << 20));
    assert_eq!(status(reserved.grants[1].status), Status::WrongDisk);

    let probe: ProbeResponse = rig.call(&node, method::DATA_PROBE, ProbeRequest {}).await;
    assert_eq!((probe.node, probe.disks.len()), (5, 2));
    let dropped: DropVolumeResponse = rig
        .call(
            &node,
            method::DATA_DROP_VOLUME,
            DropVolumeRequest { volume: 3, incarnation: 1, proof: proof(Claim::DropVolume) },
        )
        .await;
    assert_eq!(status(dropped.status), Status::Ok);
    assert_eq!(status(rig.put(&node, 11, 60, 8 * KIB).await.status), Status::Dropped);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_puts_at_once_are_all_there_after_a_restart() {
    let rig = Rig::new().await;
    let options = StoreOptions { limit_bytes: Some(1 << 30), ..StoreOptions::default() };
    let node = Arc::new(start_with(rig.config(), options).await.unwrap());
    let rig = Arc::new(rig);
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8u64 {
        let (rig, node) = (rig.clone(), node.clone());
        tasks.spawn(async move {
            for number in 0..25u64 {
                let chunk = 1 + lane * 25 + number;
                let bytes = if number % 5 == 0 { 256 * KIB } else { 4 * KIB };
                assert_eq!(status(rig.put(&node, 11 + chunk % 2, chunk, bytes).await.status), Status::Ok);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    Arc::try_unwrap(node).ok().unwrap().shutdown().await;
    let node = rig.start().await;
    let ranges = (1..=200u64).map(|chunk| {
        let bytes = if (chunk - 1) % 25 % 5 == 0 { 256 * KIB } else { 4 * KIB };
        (chunk, bytes)
    });
    for (chunk, bytes) in ranges {
        let (response, body) = rig.read(&node, vec![range(11 + chunk % 2, chunk, 0, bytes)]).await;
        assert_eq!(status(response.results[0].status), Status::Ok, "chunk {chunk}");
        assert_eq!(body, shard(chunk, bytes).1);
    }
    node.shutdown().await;
}
