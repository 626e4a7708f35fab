//! Metanodes over real sockets and disks: replication, failover, restart, open files, life and death of tables.

#![allow(clippy::unwrap_used)]

mod lost;
mod recover;
mod support;

use holdfast_metanode::{StartError, format, start};
use holdfast_node::superblock::SuperblockError;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Code, CreateNode, ExpireSessions, GetAttr, GetGroups, GetNodes, KeepAlive, Kind, Lookup, Open, ReadDirectory,
    StatFs, Unlink, read_request,
};
use holdfast_storage::LockError;
use support::{Cluster, MetaClient, until};

fn create(name: &'static [u8], open: bool) -> Op {
    Op::Create(CreateNode {
        parent: 1,
        name: name.into(),
        kind: Kind::File.into(),
        mode: 0o644,
        exclusive: true,
        open,
        ..CreateNode::default()
    })
}

fn unlink(name: &'static [u8]) -> Op {
    Op::Unlink(Unlink { parent: 1, name: name.into(), directory: false })
}

fn lookup(name: &'static [u8]) -> read_request::Op {
    read_request::Op::Lookup(Lookup { parent: 1, name: name.into() })
}

fn keep_alive(released: Vec<u64>, open: Option<Vec<u64>>) -> read_request::Op {
    let attach = open.is_some();
    read_request::Op::KeepAlive(KeepAlive { released, attach, open: open.unwrap_or_default(), ..KeepAlive::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_answers_is_there_and_followers_name_the_leader() {
    let cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    let created = client.mutate(&cluster, create(b"file", false)).await;
    assert_eq!(created.code(), Code::Ok);
    assert_eq!(client.read(&cluster, lookup(b"file")).await.attr, created.attr);
    let list = ReadDirectory { inode: 1, max_entries: 10, ..ReadDirectory::default() };
    let page = client.read(&cluster, read_request::Op::ReadDirectory(list)).await;
    assert!(page.end_of_directory && page.entries.len() == 1);
    let leader = client.target.unwrap();
    for follower in cluster.addresses().into_iter().filter(|address| *address != leader) {
        let answer = client.mutate_at(follower, create(b"other", false)).await;
        assert_eq!((answer.code(), answer.leader), (Code::NotLeader, leader.to_string()));
    }
    let groups = client.read(&cluster, read_request::Op::GetGroups(GetGroups::default())).await;
    assert_eq!((groups.groups.len(), groups.nodes.len()), (2, 3), "two groups make 64 GiB");
    let alive = client.read(&cluster, keep_alive(vec![], None)).await;
    assert_eq!((alive.groups_version, alive.attach_needed), (groups.groups_version, false));
    let first = GetGroups { since: Some(0), after_group: 0 };
    let page = client.read(&cluster, read_request::Op::GetGroups(first)).await;
    assert_eq!((page.groups.len(), page.more_groups, page.groups_changes), (2, false, alive.groups_changes));
    let next = GetGroups { since: Some(page.next_since), after_group: page.next_after_group };
    assert_eq!(client.read(&cluster, read_request::Op::GetGroups(next)).await.groups.len(), 0);
    let nodes = client.read(&cluster, read_request::Op::GetNodes(GetNodes { after_node: 1 })).await;
    assert_eq!((nodes.nodes.len(), nodes.more_nodes, nodes.nodes_version), (2, false, alive.nodes_version));
    let stat = client.read(&cluster, read_request::Op::StatFs(StatFs {})).await.stat.unwrap();
    assert_eq!((stat.available_bytes, stat.inodes), (1 << 40, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_repeated_at_the_next_leader_happens_once() {
    let mut cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    let created = client.mutate(&cluster, create(b"file", true)).await;
    let inode = created.attr.unwrap().inode;
    let former = cluster.leader(&client);
    cluster.stop(former).await;
    assert_eq!(client.repeat(&cluster, create(b"file", true)).await, created);
    assert_ne!(cluster.leader(&client), former);
    // The new leader does not know what is open until it is told.
    assert!(client.read(&cluster, keep_alive(vec![], None)).await.attach_needed);
    assert_eq!(client.mutate(&cluster, unlink(b"file")).await.code(), Code::Ok);
    assert!(!client.read(&cluster, keep_alive(vec![], Some(vec![inode]))).await.attach_needed);
    // The one that was away comes back, catches up, and can carry on when the other goes.
    cluster.start(former).await;
    let next = cluster.leader(&client);
    let applied = |cluster: &Cluster, index: usize| {
        let node = cluster.nodes[index].as_ref().unwrap().node().0;
        cluster.known().reports.get(&node).and_then(|tables| tables.first().map(|table| table.applied))
    };
    until("it caught up", || applied(&cluster, former) >= applied(&cluster, next)).await;
    cluster.stop(next).await;
    assert_eq!(client.read(&cluster, lookup(b"file")).await.code(), Code::NotFound);
    let attr = client.read(&cluster, read_request::Op::GetAttr(GetAttr { inode })).await;
    assert_eq!(attr.code(), Code::Ok, "it is open, and its session has not attached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_lives_until_its_last_opener_lets_go() {
    let cluster = Cluster::with_volume(1).await;
    let mut writer = MetaClient::open_session(&cluster, b"writer").await;
    let mut reader = MetaClient::open_session(&cluster, b"reader").await;
    let inode = writer.mutate(&cluster, create(b"file", true)).await.attr.unwrap().inode;
    let opened = reader.read(&cluster, read_request::Op::Open(Open { inode })).await;
    assert_eq!((opened.attr.unwrap().inode, opened.map.unwrap().extents.len()), (inode, 0));
    let gone = writer.mutate(&cluster, create(b"gone", false)).await.attr.unwrap().inode;
    assert_eq!(writer.mutate(&cluster, unlink(b"file")).await.code(), Code::Ok);
    assert_eq!(writer.mutate(&cluster, unlink(b"gone")).await.code(), Code::Ok);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut code_of = async |inode| {
        assert!(std::time::Instant::now() < deadline);
        reader.read(&cluster, read_request::Op::GetAttr(GetAttr { inode })).await.code()
    };
    while code_of(gone).await != Code::Stale {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The round that reaped the one looked at the other, too.
    assert_eq!(code_of(inode).await, Code::Ok);
    writer.read(&cluster, keep_alive(vec![inode], None)).await;
    reader.read(&cluster, keep_alive(vec![inode], None)).await;
    while reader.read(&cluster, read_request::Op::GetAttr(GetAttr { inode })).await.code() != Code::Stale {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(reader.read(&cluster, read_request::Op::Open(Open { inode })).await.code(), Code::Stale);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_everything_without_a_volume_manager_all_is_there() {
    let mut cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    let created = client.mutate(&cluster, create(b"file", false)).await;
    // Addresses change with every start, so peers must learn them once before the volume manager dies.
    for index in 0..3 {
        cluster.stop(index).await;
    }
    for index in 0..3 {
        cluster.start(index).await;
    }
    let known = |cluster: &Cluster| cluster.known().reports.values().flatten().filter(|report| report.leader).count();
    cluster.known().reports.clear();
    until("a leader reports", || known(&cluster) == 1).await;
    assert_eq!(client.read(&cluster, lookup(b"file")).await.attr, created.attr);
    cluster.kill_volmgr();
    assert_eq!(client.mutate(&cluster, create(b"later", false)).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_quota_reaches_the_table_and_a_dropped_volume_is_gone() {
    let cluster = Cluster::with_volume(1).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    cluster.known().quota_bytes = 1 << 30;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while client.read(&cluster, read_request::Op::StatFs(StatFs {})).await.stat.unwrap().available_bytes != 1 << 30 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    {
        let mut known = cluster.known();
        (known.has_volume, known.drops_volume) = (false, true);
    }
    until("the drop is confirmed", || !cluster.known().dropped.is_empty()).await;
    let answer = client.mutate_at(cluster.addresses()[0], create(b"x", false)).await;
    assert_eq!(answer.code(), Code::NoSuchVolume);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_leader_may_propose_is_refused_from_a_client() {
    let cluster = Cluster::with_volume(1).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    let expire = Op::ExpireSessions(ExpireSessions { sessions: vec![client.session] });
    assert_eq!(client.mutate(&cluster, expire).await.code(), Code::Invalid);
    assert_eq!(client.mutate(&cluster, create(b"x", false)).await.code(), Code::Ok);
    client.session = 999;
    assert_eq!(client.mutate(&cluster, create(b"y", false)).await.code(), Code::SessionExpired);
    let alive = client.read(&cluster, keep_alive(vec![], None)).await;
    assert_eq!(alive.code(), Code::SessionExpired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_and_ports_that_do_not_fit_are_refused_and_left_alone() {
    let cluster = Cluster::new(1).await;
    let empty = cluster.directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let config = |directory| holdfast_metanode::MetanodeConfig { directory, ..cluster.config(0) };
    let refused = start(config(empty.clone())).await.err().unwrap();
    assert!(matches!(refused, StartError::Superblock(SuperblockError::NotFormatted { .. })), "{refused}");
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    let again = start(cluster.config(0)).await.err().unwrap();
    assert!(matches!(again, StartError::Lock(LockError::InUse { .. })), "{again}");
    assert!(matches!(format(&cluster.path(0)).await, Err(StartError::Lock(_))));
    format(&empty).await.unwrap();
    assert_eq!(std::fs::read(empty.join("superblock")).unwrap()[..12], *b"HFMETA\0\n\x01\0\0\0");
    assert!(matches!(format(&empty).await, Err(StartError::Superblock(SuperblockError::Exists { .. }))));
    let taken = holdfast_metanode::MetanodeConfig { listen: cluster.addresses()[0], ..config(empty) };
    let refused = start(taken).await.err().unwrap();
    assert!(refused.to_string().contains("the port is in use"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_table_has_the_highest_feature_level_at_once() {
    let cluster = Cluster::with_volume(3).await;
    let raised = || cluster.known().reports.values().flatten().any(|report| report.leader && report.feature_level > 0);
    until("the leader raised the level", raised).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metanode_whose_directory_was_removed_stops_and_the_others_go_on() {
    let cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"file", false)).await.code(), Code::Ok);
    let former = cluster.leader(&client);
    std::fs::remove_dir_all(cluster.path(former)).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while cluster.leader(&client) == former {
        assert!(std::time::Instant::now() < deadline, "it serves on without a directory");
        assert_eq!(client.read(&cluster, lookup(b"file")).await.code(), Code::Ok);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let why = cluster.nodes[former].as_ref().unwrap().refused().await;
    assert!(why.contains("is not formatted"), "{why}");
    assert!(!client.is_served_at(cluster.addresses()[former]).await);
    assert_eq!(client.mutate(&cluster, create(b"another", false)).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metanode_of_which_a_later_copy_registered_stops_and_the_others_go_on() {
    let cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"file", false)).await.code(), Code::Ok);
    let former = cluster.leader(&client);
    assert!(client.is_served_at(cluster.addresses()[former]).await);
    // As if a copy of its directory had been started elsewhere.
    let node = cluster.nodes[former].as_ref().unwrap();
    cluster.known().raise_generation(node.node());
    let why = tokio::time::timeout(std::time::Duration::from_secs(20), node.refused()).await.unwrap();
    assert_eq!(why, "a later start of this node is known");
    assert!(!client.is_served_at(cluster.addresses()[former]).await);
    assert_eq!(client.mutate(&cluster, create(b"another", false)).await.code(), Code::Ok);
    assert_ne!(cluster.leader(&client), former);
    let again = start(cluster.config(former)).await.err().unwrap();
    assert!(matches!(again, StartError::Lock(_)), "the directory stays locked until it is dropped: {again}");
}
