//! A volume manager over gRPC, with the test playing the nodes.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{Incarnation, VolumeId};
use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::control::nodes_client::NodesClient;
use holdfast_proto::control::{
    AllocateGroupsRequest, CreateVolumeRequest, DeleteVolumeRequest, Disk, DroppedVolume, HeartbeatRequest,
    HeartbeatResponse, ListVolumesRequest, RegisterRequest, RegisterResponse, Role, ShowClusterRequest,
    ShowVolumeRequest, TableReport, Volume, VolumeState,
};
use holdfast_volmgr::{StartError, Volmgr, VolmgrConfig};
use tonic::Code;
use tonic::transport::Channel;

const GIB: u64 = 1 << 30;
const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    volmgr: Volmgr,
    admin: AdminClient<Channel>,
    nodes: NodesClient<Channel>,
}

async fn start(directory: &Path) -> Fixture {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let volmgr = holdfast_volmgr::start(VolmgrConfig { directory: directory.to_owned(), listen }).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", volmgr.local_addr())).unwrap().connect().await.unwrap();
    Fixture { volmgr, admin: AdminClient::new(channel.clone()), nodes: NodesClient::new(channel) }
}

fn disk(disk: u64) -> Disk {
    Disk { disk, healthy: true, total_bytes: 100 * GIB, available_bytes: 60 * GIB, file_system: 7, ..Disk::default() }
}

fn new_node(role: Role, port: u16) -> RegisterRequest {
    let disks = if role == Role::Datanode { vec![disk(0)] } else { vec![] };
    let address = format!("127.0.0.1:{port}");
    RegisterRequest {
        role: role as i32,
        address,
        generation: 1,
        disks,
        format_nonce: u64::from(port),
        ..RegisterRequest::default()
    }
}

impl Fixture {
    fn cluster(&self) -> String {
        self.volmgr.cluster().to_string()
    }

    async fn register(&mut self, request: RegisterRequest) -> Result<RegisterResponse, tonic::Status> {
        self.nodes.register(request).await.map(tonic::Response::into_inner)
    }

    /// Three metanodes and six datanodes.
    async fn populate(&mut self) -> (Vec<RegisterResponse>, Vec<RegisterResponse>) {
        let (mut metanodes, mut datanodes) = (Vec::new(), Vec::new());
        for port in 1..=3 {
            metanodes.push(self.register(new_node(Role::Metanode, port)).await.unwrap());
        }
        for port in 11..=16 {
            datanodes.push(self.register(new_node(Role::Datanode, port)).await.unwrap());
        }
        (metanodes, datanodes)
    }

    async fn heartbeat(&mut self, request: HeartbeatRequest) -> Result<HeartbeatResponse, tonic::Status> {
        self.nodes.heartbeat(request).await.map(tonic::Response::into_inner)
    }

    fn beat(&self, node: &RegisterResponse) -> HeartbeatRequest {
        HeartbeatRequest {
            cluster: self.cluster(),
            node: node.node,
            generation: 1,
            disks: node.disks.iter().map(|d| disk(*d)).collect(),
            ..HeartbeatRequest::default()
        }
    }

    /// Creates a volume, with the metanodes given reporting its table ready as soon as they are told to host it.
    async fn create(&mut self, name: &str, metanodes: &[RegisterResponse]) -> Volume {
        let request = CreateVolumeRequest { name: name.into(), data_shards: 4, parity_shards: 2, quota_bytes: 0 };
        let mut admin = self.admin.clone();
        let creation = tokio::spawn(async move { admin.create_volume(request).await });
        let deadline = Instant::now() + DEADLINE;
        while !creation.is_finished() {
            assert!(Instant::now() < deadline, "the creation does not end");
            for node in metanodes {
                let beat = self.beat(node);
                let orders = self.heartbeat(beat.clone()).await.unwrap();
                let report = |t: &holdfast_proto::control::TableAssignment| TableReport {
                    volume: t.volume,
                    incarnation: t.incarnation,
                    leader: t.replicas[0] == node.node,
                    term: 3,
                    ready: true,
                    used_bytes: 5,
                    inodes_count: 1,
                    ..TableReport::default()
                };
                let tables = orders.tables.iter().map(report).collect();
                self.heartbeat(HeartbeatRequest { tables, ..beat }).await.unwrap();
            }
        }
        creation.await.unwrap().unwrap().into_inner()
    }

    async fn show(&mut self, name: &str) -> Result<Volume, tonic::Status> {
        self.admin.show_volume(ShowVolumeRequest { name: name.into() }).await.map(tonic::Response::into_inner)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_lives_from_creation_over_a_restart_to_its_last_confirmed_drop() {
    let directory = tempfile::tempdir().unwrap();
    holdfast_volmgr::format(directory.path()).unwrap();
    let mut fixture = start(directory.path()).await;
    let (metanodes, datanodes) = fixture.populate().await;
    let volume = fixture.create("demo", &metanodes).await;
    assert_eq!(volume.state(), VolumeState::Active);
    assert_eq!((volume.metanodes.len(), volume.leader_node), (3, metanodes[0].node));
    assert_eq!(volume.available_bytes, 40 * GIB, "six disks of one file system with 60 GiB, at 4+2");

    let ask = AllocateGroupsRequest { volume: volume.volume, incarnation: 1, count: 2, first_group: 1 };
    let groups = fixture.nodes.allocate_groups(ask).await.unwrap().into_inner().groups;
    assert_eq!(groups.iter().map(|g| (g.group, g.members.len())).collect::<Vec<_>>(), [(1, 6), (2, 6)]);

    fixture.volmgr.shutdown().await;
    let mut fixture = start(directory.path()).await;
    assert_eq!(fixture.nodes.allocate_groups(ask).await.unwrap().into_inner().groups, groups);
    let found = fixture.show("demo").await.unwrap();
    assert_eq!((found.volume, found.state(), found.groups_count), (volume.volume, VolumeState::Active, 2));
    assert!(found.metanodes.iter().all(|m| m.alive), "nobody is dead before the volume manager listened");

    fixture.admin.delete_volume(DeleteVolumeRequest { name: "demo".into() }).await.unwrap();
    assert_eq!(fixture.show("demo").await.unwrap_err().message(), "no volume 'demo' in this cluster");
    let secret = ClusterSecret(metanodes[0].secret[..].try_into().unwrap());
    for node in metanodes.iter().chain(&datanodes) {
        let listed = fixture.admin.list_volumes(ListVolumesRequest {}).await.unwrap().into_inner().volumes;
        assert_eq!(listed[0].state(), VolumeState::Deleting);
        let beat = fixture.beat(node);
        let orders = fixture.heartbeat(beat.clone()).await.unwrap();
        assert_eq!((orders.tables.len(), orders.drops.len()), (0, 1));
        let (id, incarnation) = (VolumeId(orders.drops[0].volume), Incarnation(orders.drops[0].incarnation));
        assert!(secret.verify(id, incarnation, Claim::DropVolume, &orders.drops[0].mac));
        let dropped = vec![DroppedVolume { volume: id.0, incarnation: incarnation.0 }];
        fixture.heartbeat(HeartbeatRequest { dropped, ..beat }).await.unwrap();
    }
    assert!(fixture.admin.list_volumes(ListVolumesRequest {}).await.unwrap().into_inner().volumes.is_empty());
    fixture.volmgr.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_ghosts_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    holdfast_volmgr::format(directory.path()).unwrap();
    let mut fixture = start(directory.path()).await;
    let node = fixture.register(new_node(Role::Datanode, 11)).await.unwrap();
    let again = fixture.register(new_node(Role::Datanode, 11)).await.unwrap();
    assert_eq!((node.node, &node.disks), (again.node, &again.disks), "a lost answer costs no second id");

    let known = RegisterRequest {
        cluster: fixture.cluster(),
        node: node.node,
        disks: vec![disk(node.disks[0])],
        ..new_node(Role::Datanode, 11)
    };
    let foreign = RegisterRequest { cluster: "0".repeat(32), ..known.clone() };
    let refused = fixture.register(foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the node belongs to cluster 000"), "{}", refused.message());

    fixture.register(RegisterRequest { generation: 5, ..known.clone() }).await.unwrap();
    let old = fixture.register(RegisterRequest { generation: 4, ..known.clone() }).await.unwrap_err();
    assert_eq!(old.code(), Code::FailedPrecondition);
    let beat = HeartbeatRequest { generation: 4, ..fixture.beat(&node) };
    assert_eq!(fixture.heartbeat(beat).await.unwrap_err().code(), Code::FailedPrecondition);
    let clone = RegisterRequest { generation: 6, address: "127.0.0.1:99".into(), ..known };
    assert_eq!(fixture.register(clone).await.unwrap_err().code(), Code::Unavailable);
    let unknown = HeartbeatRequest { node: 77, ..fixture.beat(&node) };
    assert_eq!(fixture.heartbeat(unknown).await.unwrap_err().code(), Code::NotFound);
    fixture.volmgr.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_does_not_fit_is_refused_and_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    holdfast_volmgr::format(directory.path()).unwrap();
    let mut fixture = start(directory.path()).await;
    let request =
        |name: &str, k, m| CreateVolumeRequest { name: name.into(), data_shards: k, parity_shards: m, quota_bytes: 0 };
    fixture.register(new_node(Role::Datanode, 11)).await.unwrap();
    fixture.register(new_node(Role::Datanode, 12)).await.unwrap();
    let refused = fixture.admin.create_volume(request("v", 4, 2)).await.unwrap_err();
    assert_eq!(refused.message(), "code 4+2 needs 6 disks, the cluster has 2");
    let refused = fixture.admin.create_volume(request("v", 1, 1)).await.unwrap_err();
    assert_eq!(refused.message(), "a volume's table needs a metanode, the cluster has none");
    let refused = fixture.admin.create_volume(request("-v", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let cluster = fixture.admin.show_cluster(ShowClusterRequest {}).await.unwrap().into_inner();
    assert_eq!((cluster.volumes_count, cluster.nodes.len()), (0, 2));
    fixture.volmgr.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_unformatted_or_in_use_and_a_port_in_use_are_told_plainly() {
    let directory = tempfile::tempdir().unwrap();
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = VolmgrConfig { directory: directory.path().to_owned(), listen };
    let error = holdfast_volmgr::start(config.clone()).await.err().unwrap();
    assert!(error.to_string().ends_with("is not formatted as a volume manager's directory"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
    holdfast_volmgr::format(directory.path()).unwrap();
    let error = holdfast_volmgr::format(directory.path()).unwrap_err();
    assert!(error.to_string().ends_with("is formatted already"), "{error}");
    let running = holdfast_volmgr::start(config.clone()).await.unwrap();
    let error = holdfast_volmgr::start(config).await.err().unwrap();
    assert!(matches!(error, StartError::Lock(_)), "{error}");
    let other = tempfile::tempdir().unwrap();
    holdfast_volmgr::format(other.path()).unwrap();
    let taken = VolmgrConfig { directory: other.path().to_owned(), listen: running.local_addr() };
    let error = holdfast_volmgr::start(taken).await.err().unwrap();
    assert!(error.to_string().ends_with("the port is in use"), "{error}");
    running.shutdown().await;
}

/// R23: a new log in the place of a lost one would be an empty cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_log_it_refuses_to_start_and_makes_none() {
    let directory = tempfile::tempdir().unwrap();
    holdfast_volmgr::format(directory.path()).unwrap();
    let config = VolmgrConfig { directory: directory.path().to_owned(), listen: "127.0.0.1:0".parse().unwrap() };
    holdfast_volmgr::start(config.clone()).await.unwrap().shutdown().await;
    let (log, aside) = (directory.path().join("consensus"), directory.path().join("aside"));
    std::fs::rename(&log, &aside).unwrap();
    let error = holdfast_volmgr::start(config.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::Lost(_)), "{error}");
    assert!(error.to_string().contains("from a backup"), "{error}");
    assert!(!log.exists(), "nothing is made");
    std::fs::rename(&aside, &log).unwrap();
    holdfast_volmgr::start(config).await.unwrap().shutdown().await;
}

/// R26: a level is only raised when no replica would stop at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_told_the_feature_level_that_all_its_replicas_know() {
    let directory = tempfile::tempdir().unwrap();
    holdfast_volmgr::format(directory.path()).unwrap();
    let mut fixture = start(directory.path()).await;
    let (metanodes, _) = fixture.populate().await;
    fixture.create("demo", &metanodes).await;
    for (levels, expected) in [([2, 1, 0], 0), ([2, 1, 3], 1), ([2, 2, 3], 2)] {
        let mut told = 0;
        for round in 0..2 {
            for (node, feature_level) in metanodes.iter().zip(levels) {
                let beat = HeartbeatRequest { feature_level, ..fixture.beat(node) };
                let orders = fixture.heartbeat(beat).await.unwrap();
                told = orders.tables[0].feature_level;
                assert!(round == 0 || told == expected);
            }
        }
        assert_eq!(told, expected);
    }
}

/// It would answer from a cluster that no start finds again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_directory_was_removed_or_replaced_stops_and_says_why() {
    let temporary = tempfile::tempdir().unwrap();
    for replaced in [false, true] {
        let path = |name: &str| temporary.path().join(format!("{name}-{replaced}"));
        let (home, aside, other) = (path("home"), path("aside"), path("other"));
        holdfast_volmgr::format(&home).unwrap();
        holdfast_volmgr::format(&other).unwrap();
        let mut fixture = start(&home).await;
        fixture.register(new_node(Role::Datanode, 11)).await.unwrap();
        let superblock = std::fs::read(home.join("superblock")).unwrap();
        // In one step each: a look in between would meet something else.
        let (from, to) =
            if replaced { (other.join("superblock"), home.join("superblock")) } else { (home.clone(), aside.clone()) };
        std::fs::rename(from, to).unwrap();
        let why = tokio::time::timeout(DEADLINE, fixture.volmgr.refused()).await.expect("it serves on");
        let expected = if replaced { "holds start 0 of the volume manager of cluster" } else { "is not formatted" };
        assert!(why.contains(expected), "{why}");
        fixture.register(new_node(Role::Datanode, 12)).await.unwrap_err();
        let address = fixture.volmgr.local_addr();
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
        fixture.volmgr.shutdown().await;
        // As it was, it starts again with all that was answered.
        let was = if replaced { home } else { aside };
        std::fs::write(was.join("superblock"), superblock).unwrap();
        let mut fixture = start(&was).await;
        let cluster = fixture.admin.show_cluster(ShowClusterRequest {}).await.unwrap().into_inner();
        assert_eq!(cluster.nodes.len(), 1);
        fixture.volmgr.shutdown().await;
    }
}

/// Nothing that looks after it keeps it alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_dropped_listens_no_more() {
    let temporary = tempfile::tempdir().unwrap();
    let home = temporary.path().join("home");
    holdfast_volmgr::format(&home).unwrap();
    let fixture = start(&home).await;
    let address = fixture.volmgr.local_addr();
    drop(fixture);
    let ended = async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("it listens on");
}
