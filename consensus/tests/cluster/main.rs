//! The real thing: nodes with real files and threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod nodes;

use std::time::Instant;

use bytes::Bytes;
use holdfast_common::{NodeId, RaftGroupId};
use holdfast_consensus::{GroupError, ProposeError, ReadError, Role};
use nodes::{Cluster, GROUP, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_answers_and_remembers_after_a_restart() {
    let mut cluster = Cluster::start(1, |_| {});
    assert_eq!(cluster.put("a=1").await, "");
    assert_eq!(cluster.put("a=2").await, "1");
    cluster.kill(NodeId(1));
    cluster.open(NodeId(1));
    assert_eq!(cluster.get("a").await.as_deref(), Some("2"));
    assert_eq!(cluster.put("a=3").await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_survive_the_death_of_any_one_and_catch_it_up() {
    let mut cluster = Cluster::start(3, |_| {});
    for round in 0..3 {
        cluster.put(&format!("k{round}={round}")).await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        cluster.put(&format!("without{round}=x")).await;
        assert_eq!(cluster.get(&format!("k{round}")).await, Some(round.to_string()));
        cluster.open(leader);
        let group = cluster.group(leader);
        until("catch-up", || group.state().read().entries.contains_key(&format!("without{round}")).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitors_panic_stops_the_node_and_not_the_visitor() {
    let mut cluster = Cluster::start(3, |_| {});
    cluster.put("a=1").await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    cluster.panic_visitors(leader);
    // The driver's own thread may be the one that sends; sooner or later a proposal comes while it sleeps.
    until("the node stops", || {
        let proposing = group.propose("b=1"[..].into());
        let mut proposing = std::pin::pin!(proposing);
        let _ = proposing.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        (group.status().role == Role::Stopped).then_some(())
    })
    .await;
    assert_eq!(group.propose("c=1"[..].into()).await, Err(ProposeError::Stopped));
    cluster.kill(leader);
    assert!(cluster.is_gone(leader), "the handle that is left keeps nothing alive but itself");
    cluster.put("d=1").await;
    assert_eq!(cluster.get("a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_all_die_at_once() {
    let mut cluster = Cluster::start(3, |_| {});
    for round in 0..5 {
        let writes = (0..50).map(|i| format!("{round}-{i}=v")).collect::<Vec<_>>();
        for write in &writes {
            cluster.put(write).await;
        }
        for id in cluster.voters.clone() {
            cluster.kill(id);
        }
        for id in cluster.voters.clone() {
            cluster.open(id);
        }
        for write in &writes {
            assert_eq!(cluster.get(write.strip_suffix("=v").unwrap()).await.as_deref(), Some("v"), "{write}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_gets_a_snapshot_and_the_log_stays_bounded() {
    let mut cluster = Cluster::start(3, |config| {
        config.snapshot_log_bytes = 64 << 10;
        config.tail_entries = 8;
        config.log_bytes_max = 1 << 20;
    });
    let leader = cluster.leader().await;
    let away = *cluster.voters.iter().find(|id| **id != leader).unwrap();
    cluster.kill(away);
    let value = "v".repeat(1000);
    for i in 0..3000 {
        cluster.put(&format!("k{}={value}{i}", i % 50)).await;
    }
    cluster.open(away);
    let group = cluster.group(away);
    let there = |i: u32| group.state().read().entries.get(&format!("k{}", i % 50)) == Some(&format!("{value}{i}"));
    until("the snapshot", || (2950..3000).all(there).then_some(())).await;
    for id in &cluster.voters {
        let log = std::fs::read_dir(cluster.path(*id).join("log")).unwrap();
        let bytes: u64 = log.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 3 << 20, "{id}: {bytes}");
    }
    for id in cluster.voters.clone() {
        cluster.kill(id);
        cluster.open(id);
    }
    assert_eq!(cluster.get("k49").await, Some(format!("{value}2999")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_refuses_reads_and_leaves_writes_open() {
    let cluster = Cluster::start(3, |_| {});
    cluster.put("a=1").await;
    let old = cluster.leader().await;
    cluster.cut(old);
    let group = cluster.group(old);
    let write = group.propose(Bytes::from_static(b"a=2")).await;
    assert!(matches!(write, Err(ProposeError::Unknown | ProposeError::NotLeader { .. })), "{write:?}");
    assert_eq!(cluster.put("a=3").await, "1");
    let read = group.read_barrier().await;
    assert!(matches!(read, Err(ReadError::NotLeader { .. })), "{read:?}");
    cluster.heal();
    until("the new term", || (group.state().read().entries.get("a").unwrap() == "3").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_state_machine_stops_its_group_and_nothing_else() {
    for command in ["break", "panic"] {
        let cluster = Cluster::start(1, |_| {});
        let node = &cluster.nodes[&NodeId(1)];
        node.create_group(RaftGroupId(8), &cluster.voters).unwrap();
        let (broken, whole) = (cluster.group(NodeId(1)), node.group(RaftGroupId(8)).unwrap());
        until("a leader", || (whole.status().role == Role::Leader).then_some(())).await;
        cluster.leader().await;
        assert_eq!(broken.propose(Bytes::from(command)).await, Err(ProposeError::Unknown));
        until("a stop", || (broken.status().role == Role::Stopped).then_some(())).await;
        assert!(broken.status().stopped.is_some());
        assert_eq!(broken.propose(Bytes::from_static(b"a=1")).await, Err(ProposeError::Stopped));
        assert_eq!(broken.read_barrier().await, Err(ReadError::Stopped));
        assert_eq!(whole.propose(Bytes::from_static(b"a=1")).await, Ok(Bytes::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_created_and_dropped_once_and_for_all() {
    let mut cluster = Cluster::start(1, |_| {});
    let one = NodeId(1);
    let node = &cluster.nodes[&one];
    assert_eq!(node.create_group(GROUP, &[one]), Ok(()));
    assert_eq!(node.create_group(GROUP, &[one, NodeId(2)]), Err(GroupError::Exists(GROUP)));
    for voters in [&[][..], &[NodeId(2)], &[one, one], &[one, NodeId(0)]] {
        assert_eq!(node.create_group(RaftGroupId(9), voters), Err(GroupError::BadVoters), "{voters:?}");
    }
    node.create_group(RaftGroupId(8), &[one]).unwrap();
    let dropped = node.group(RaftGroupId(8)).unwrap();
    node.drop_group(RaftGroupId(8)).unwrap();
    node.drop_group(RaftGroupId(8)).unwrap();
    assert_eq!(dropped.propose(Bytes::from_static(b"a=1")).await, Err(ProposeError::Stopped));
    assert_eq!(node.groups(), vec![GROUP]);
    cluster.kill(one);
    cluster.open(one);
    assert_eq!(cluster.nodes[&one].groups(), vec![GROUP]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a claim: prints latencies, asserts none; run it with --ignored --nocapture"]
async fn latencies() {
    for voters in [1, 3] {
        let cluster = Cluster::start(voters, |config| config.segment_bytes = 16 << 20);
        let group = cluster.group(cluster.leader().await);
        for (what, count) in [("warm", 200), ("propose", 2000)] {
            let start = Instant::now();
            for i in 0..count {
                group.propose(Bytes::from(format!("a={i}"))).await.unwrap();
            }
            println!("{voters} voters: {what} {:?}", start.elapsed() / count);
        }
        let start = Instant::now();
        let tasks = (0..16u32).map(|task| {
            let group = group.clone();
            tokio::spawn(async move {
                for i in 0..1000 {
                    group.propose(Bytes::from(format!("{task}={i}"))).await.unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        println!("{voters} voters: 16 callers {:.0}/s", 16_000.0 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..10_000 {
            group.read_barrier().await.unwrap();
        }
        println!("{voters} voters: read {:?}", start.elapsed() / 10_000);
    }
}
