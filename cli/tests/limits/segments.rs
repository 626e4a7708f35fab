//! A datanode of thousands of segments that may open few files.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ChunkId, VolumeId};
use holdfast_datanode::{DataRequest, DataResponse, DatanodeOptions, DiskSuperblock, SteppedDatanode, StoreOptions};
use holdfast_proto::control::ShowClusterRequest;
use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::data::{
    PutShardRequest, PutShardResponse, ReadShardsRequest, ReadShardsResponse, ShardHeader, ShardRange, Status,
};
use holdfast_proto::method;
use holdfast_storage::SimulatedDisk;
use holdfast_transport::{Answer, Client, ClientLimits, Identity};
use prost::Message;

use super::{OPEN_FILES, PATIENCE, Role, holdfast, open_files_max};

/// Segments that the disk has before the node is started under its limit, each with one shard.
const SEGMENTS: u64 = 3_000;
/// One shard in this many is a large one, in a sparse segment.
const LARGE_PART: u64 = 15;
/// Connections that are open at the same time.
const CLIENTS: u64 = 24;
const VOLUME: u64 = 3;

fn is_large(chunk: u64) -> bool {
    chunk.is_multiple_of(LARGE_PART)
}

fn length_bytes(chunk: u64) -> u32 {
    if is_large(chunk) { 64 << 10 } else { 4 << 10 }
}

/// The content of a shard follows from its chunk; no two pages are alike.
fn payload(chunk: u64) -> Bytes {
    let mut bytes = chunk.to_le_bytes().repeat(usize::try_from(length_bytes(chunk) / 8).unwrap());
    for (page, number) in bytes.chunks_mut(PAGE_BYTES as usize).zip(0_u64..) {
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    bytes.into()
}

fn put_request(disk: u64, chunk: u64) -> (PutShardRequest, Bytes) {
    let payload = payload(chunk);
    let length_bytes = length_bytes(chunk);
    let place = ShardPlace { volume: VolumeId(VOLUME), chunk: ChunkId(chunk), shard: 1 };
    let header = ShardHeader {
        volume: VOLUME,
        incarnation: 1,
        chunk,
        nonce: 9,
        group: 1,
        epoch: 1,
        shard: 1,
        data_shards: 4,
        parity_shards: 2,
        slots: Bytes::from_static(&[0, 1, 2, 3, 4, 5]),
        chunk_length_bytes: 4 * length_bytes,
        shard_length_bytes: length_bytes,
        page_checksums: place.page_checksums(0, &payload).into(),
    };
    (PutShardRequest { disk, header: Some(header), session: 0 }, payload)
}

fn range(disk: u64, chunk: u64) -> ShardRange {
    let length_bytes = length_bytes(chunk);
    ShardRange { disk, volume: VOLUME, incarnation: 1, chunk, nonce: 9, shard: 1, offset: 0, length_bytes }
}

/// Fills a disk that its node has formatted and is not serving: by the store itself, in memory, a segment for each shard. With a
/// checkpoint: a start without one writes and syncs them all again, which takes a disk longer than a test may.
fn fill(path: &Path, superblock: &DiskSuperblock) {
    for name in fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()) {
        if !name.to_str().unwrap().starts_with("superblock") {
            fs::remove_file(path.join(name)).unwrap();
        }
    }
    let memory = SimulatedDisk::default();
    SteppedDatanode::format(&*memory.root()).unwrap();
    let store = StoreOptions {
        small_segment_bytes_min: 256 << 10,
        small_segment_bytes_max: 256 << 10,
        bulk_segment_bytes: 8 << 20,
        ..StoreOptions::default()
    };
    let options = DatanodeOptions { node: superblock.node, secret: ClusterSecret([0; 32]), store };
    let disks = vec![(superblock.disk, memory.root())];
    let mut node = SteppedDatanode::open(options, disks, &SimulatedDisk::new(1).root(), Duration::ZERO).unwrap();
    for chunk in 1..=SEGMENTS {
        assert!(node.begin_segments(Duration::ZERO, !is_large(chunk)));
        let (request, payload) = put_request(superblock.disk.0, chunk);
        let answer = node.handle(Duration::ZERO, DataRequest::Put(request, payload));
        assert!(matches!(&answer, DataResponse::Put(put) if put.status() == Status::Ok), "{answer:?}");
    }
    node.shut_down(Duration::ZERO);
    let names = memory.root().list().unwrap();
    assert!(names.len() as u64 >= SEGMENTS, "only {} files", names.len());
    names.iter().for_each(|name| write_sparse(&path.join(name), &memory.bytes(name)));
}

fn write_sparse(path: &Path, bytes: &[u8]) {
    const BLOCK: usize = 4096;
    let file = fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (block, number) in bytes.chunks(BLOCK).zip(0..) {
        if *block != [0; BLOCK][..block.len()] {
            file.write_all_at(block, number * BLOCK as u64).unwrap();
        }
    }
}

/// Calls until it is executed: on a machine that stands still for a while, a handshake comes too late.
async fn call(client: &Client, to: SocketAddr, method: u16, request: &impl Message, body: &[Bytes]) -> Answer {
    let begun = Instant::now();
    loop {
        match client.call(to, method, request, body.to_vec(), PATIENCE).await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.certainly_not_executed() && begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads shards in one request, and demands every byte.
async fn check(client: &Client, to: SocketAddr, disk: u64, chunks: &[u64]) {
    let request = ReadShardsRequest { ranges: chunks.iter().map(|chunk| range(disk, *chunk)).collect() };
    let mut answer = call(client, to, method::DATA_READ, &request, &[]).await;
    let results = answer.message::<ReadShardsResponse>().unwrap().results;
    for (chunk, result) in chunks.iter().zip(&results) {
        assert_eq!(result.status(), Status::Ok, "chunk {chunk}: {}", result.detail);
    }
    let expected: Vec<Bytes> = chunks.iter().map(|chunk| payload(*chunk)).collect();
    assert!(answer.body == expected.concat(), "other bytes in one of {chunks:?}");
}

/// Reads every shard, over many connections at the same time, each a part that is spread over all segments.
async fn check_all(clients: &[Client], to: SocketAddr, disk: u64) {
    let mut reading = tokio::task::JoinSet::new();
    for (client, first) in clients.iter().cloned().zip(1..) {
        let chunks: Vec<u64> = (first..=SEGMENTS).step_by(clients.len()).collect();
        reading.spawn(async move { check(&client, to, disk, &chunks).await });
    }
    while let Some(read) = reading.join_next().await {
        read.unwrap();
    }
}

async fn put(client: &Client, to: SocketAddr, disk: u64, chunk: u64) {
    let (request, payload) = put_request(disk, chunk);
    let mut answer = call(client, to, method::DATA_PUT, &request, &[payload]).await;
    let answer: PutShardResponse = answer.message().unwrap();
    assert_eq!(answer.status(), Status::Ok, "chunk {chunk}: {}", answer.detail);
}

/// Waits until the volume manager knows from a heartbeat that the disk is well and has this many shards.
async fn until_reported(volmgr: SocketAddr, shards_count: u64) {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{volmgr}")).unwrap();
    let mut admin = AdminClient::new(endpoint.connect_lazy());
    let begun = Instant::now();
    loop {
        let cluster = admin.show_cluster(ShowClusterRequest {}).await.unwrap().into_inner();
        let node = &cluster.nodes[0];
        if node.alive && node.disks[0].healthy && node.disks[0].shards_count == shards_count {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no heartbeat tells of {shards_count} shards: {node:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datanode_of_three_thousand_segments_serves_is_stopped_and_serves_again_with_256_open_files() {
    let temporary = tempfile::tempdir().unwrap();
    let path = |name| temporary.path().join(name).to_str().unwrap().to_owned();
    let (manager, node, disk) = (path("manager"), path("node"), path("disk"));
    for words in
        [&["volmgr", "format", "--dir", &manager][..], &["datanode", "format", "--dir", &node, "--disk", &disk]]
    {
        assert!(holdfast("", words).output().unwrap().status.success());
    }
    let volmgr = Role::serve("-S", &["volmgr", "serve", "--dir", &manager]);
    let told = volmgr.address.to_string();
    let serve = || Role::serve("", &["datanode", "serve", "--dir", &node, "--disk", &disk, "--volmgr", &told]);
    // The first start gives node and disk their ids.
    assert!(serve().stop().success());
    let superblock = DiskSuperblock::read(Path::new(&disk)).unwrap();
    fill(Path::new(&disk), &superblock);
    let identity = Identity { cluster: superblock.cluster };
    let clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(identity, ClientLimits::default())).collect();
    for start in 1..=2 {
        let role = serve();
        assert_eq!(open_files_max(role.child.id()), (OPEN_FILES, OPEN_FILES));
        let (to, disk) = (role.address, superblock.disk.0);
        let [small, large] = [SEGMENTS + start, SEGMENTS + start * LARGE_PART];
        let puts = async { tokio::join!(put(&clients[0], to, disk, small), put(&clients[1], to, disk, large)) };
        tokio::join!(check_all(&clients, to, disk), puts);
        check(&clients[2], to, disk, &[small, large]).await;
        until_reported(volmgr.address, SEGMENTS + 2 * start).await;
        assert!(role.stop().success());
    }
}
