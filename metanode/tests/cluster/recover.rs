//! Metanodes that lost their log are brought back from the others (R23): while these serve, killed and run again, and waiting for
//! whoever is missing.

use super::support::{SECRET, VOLUME};
use super::{Cluster, MetaClient, create, lookup, until};
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{Incarnation, VolumeId};
use holdfast_metanode::{RecoverConfig, RecoverFailed, RecoverProgress, Recovered, StartError, format, recover, start};
use holdfast_node::NodeSuperblock;
use holdfast_node::superblock::Kind;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, SetXattr};
use holdfast_proto::raft::AdmitRequest;
use holdfast_proto::raft::admit_answer::Outcome;
use std::sync::mpsc;
use std::time::Duration;
use tokio::task::JoinHandle;

const KIND: Kind = Kind::superblock(*b"HFMETA\0\n", "a metanode's directory").with_second_copy();
const PATIENCE: Duration = Duration::from_secs(20);

impl Cluster {
    fn recovery(&self, index: usize) -> RecoverConfig {
        RecoverConfig { directory: self.path(index), volmgr: self.volmgr.clone() }
    }

    /// Stops a metanode and takes its log.
    async fn lose(&mut self, index: usize) {
        self.stop(index).await;
        std::fs::remove_dir_all(self.path(index).join("consensus")).unwrap();
    }

    /// Index of a metanode that is not one of these.
    fn other_than(&self, indices: &[usize]) -> usize {
        (0..self.nodes.len()).find(|index| !indices.contains(index)).unwrap()
    }

    async fn caught_up(&self, index: usize, with: usize) {
        let applied = |index: usize| {
            let node = self.nodes[index].as_ref().unwrap().node().0;
            self.known().reports.get(&node).and_then(|tables| tables.first().map(|table| table.applied))
        };
        until("it caught up", || applied(index).is_some() && applied(index) >= applied(with)).await;
    }

    /// What a start says of a recovery that is not finished.
    async fn is_unfinished(&self, index: usize) -> bool {
        let error = start(self.config(index)).await.err().expect("it must not serve");
        error.to_string().contains("holdfast metanode recover --dir") && matches!(error, StartError::Unfinished { .. })
    }
}

/// Makes a table that a piece of a snapshot does not hold.
async fn fill(cluster: &Cluster, client: &mut MetaClient) {
    for file in [b"a", b"b"] {
        let inode = client.mutate(cluster, create(file, false)).await.attr.unwrap().inode;
        for number in 0..12 {
            let (name, value) = (format!("user.{number}").into(), vec![number; 64 << 10].into());
            let set = Op::SetXattr(SetXattr { inode, name, value, ..SetXattr::default() });
            assert_eq!(client.mutate(cluster, set).await.code(), Code::Ok);
        }
    }
}

/// A recovery in a task of its own, and what it says.
fn begin(config: RecoverConfig) -> (JoinHandle<Result<Recovered, RecoverFailed>>, mpsc::Receiver<RecoverProgress>) {
    let (said, heard) = mpsc::channel();
    let task = tokio::spawn(recover(config, move |progress| drop(said.send(progress))));
    (task, heard)
}

/// Waits for a sentence of a recovery with these words.
async fn hears(heard: mpsc::Receiver<RecoverProgress>, words: &'static str) -> String {
    let listen = move || loop {
        match heard.recv_timeout(PATIENCE).expect(words) {
            RecoverProgress::Waits(sentence) if sentence.contains(words) => return sentence,
            _ => {}
        }
    };
    tokio::task::spawn_blocking(listen).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metanode_that_lost_its_log_comes_back_with_all_that_was_agreed_and_votes() {
    let mut cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"before", false)).await.code(), Code::Ok);
    let leader = cluster.leader(&client);
    let lost = cluster.other_than(&[leader]);
    let third = cluster.other_than(&[leader, lost]);
    fill(&cluster, &mut client).await;
    cluster.lose(lost).await;
    assert_eq!(client.mutate(&cluster, create(b"meanwhile", false)).await.code(), Code::Ok);
    let (task, heard) = begin(cluster.recovery(lost));
    let recovered = task.await.unwrap().unwrap();
    assert_eq!(recovered.tables.len(), 1);
    assert_eq!(recovered.tables[0].volume, "demo-9");
    let pieces = heard.try_iter().filter(|progress| matches!(progress, RecoverProgress::Receiving { .. })).count();
    assert_eq!((pieces, recovered.tables[0].bytes >> 20), (2, 1));
    cluster.start(lost).await;

    // Its acknowledgement makes a majority, and nobody else can lead after that.
    cluster.stop(third).await;
    assert_eq!(client.mutate(&cluster, create(b"with-it", false)).await.code(), Code::Ok);
    let leader = cluster.leader(&client);
    cluster.caught_up(lost, leader).await;
    let first = if leader == lost { cluster.other_than(&[lost, third]) } else { leader };
    cluster.stop(first).await;
    cluster.start(third).await;
    for name in [&b"before"[..], b"a", b"b", b"meanwhile", b"with-it"] {
        assert_eq!(client.read(&cluster, lookup(name)).await.code(), Code::Ok, "{name:?}");
        assert_eq!(cluster.leader(&client), lost);
    }

    // What it does not know it votes for.
    cluster.start(first).await;
    cluster.caught_up(first, lost).await;
    cluster.stop(lost).await;
    assert_eq!(client.mutate(&cluster, create(b"without-it", false)).await.code(), Code::Ok);
    let leader = cluster.leader(&client);
    let other = cluster.other_than(&[leader, lost]);
    cluster.caught_up(other, leader).await;
    cluster.stop(leader).await;
    cluster.start(lost).await;
    assert_eq!(client.read(&cluster, lookup(b"without-it")).await.code(), Code::Ok);
    assert_eq!(cluster.leader(&client), other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_is_killed_goes_on_when_it_is_run_again() {
    let mut cluster = Cluster::with_volume(3).await;
    cluster.known().has_second_volume = true;
    let led = |cluster: &Cluster| cluster.known().reports.values().flatten().filter(|report| report.leader).count();
    until("both tables are led", || led(&cluster) == 2).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"before", false)).await.code(), Code::Ok);
    cluster.lose(0).await;
    std::fs::create_dir_all(cluster.path(0).join("consensus/log")).unwrap();
    std::fs::write(cluster.path(0).join("consensus/log/0000000000000001.log"), b"what is left").unwrap();
    let mut brought_back = Vec::new();
    let mut last = None;
    // Killed at the first thing it says, the next time at the second, and so on.
    for killed_at in 1..10 {
        let (said, heard) = mpsc::channel();
        let mut events = 0;
        let task = tokio::spawn(recover(cluster.recovery(0), move |progress| {
            // Before it begins, and while it waits, nothing changes.
            events += i32::from(!matches!(progress, RecoverProgress::Waits(_)));
            drop(said.send(progress));
            if events == killed_at {
                std::panic::resume_unwind(Box::new("killed"));
            }
        }));
        let ended = task.await;
        let said: Vec<RecoverProgress> = heard.try_iter().collect();
        let begins = |progress: &RecoverProgress| matches!(progress, RecoverProgress::Begun { .. });
        assert_eq!(said.iter().any(begins), killed_at == 1, "{said:?}");
        brought_back.extend(said.into_iter().filter_map(|progress| match progress {
            RecoverProgress::Table(table) => Some(table.volume),
            _ => None,
        }));
        if let Ok(ended) = ended {
            last = Some(ended.unwrap());
            break;
        }
        assert!(cluster.is_unfinished(0).await, "{killed_at}");
    }
    assert_eq!(last.expect("it ends").tables.len(), 1, "the other one was back before");
    brought_back.sort();
    assert_eq!(brought_back, ["demo-10", "demo-9"], "each once");
    let kept = cluster.path(0).join("consensus-lost-1/log/0000000000000001.log");
    assert_eq!(std::fs::read(kept).unwrap(), b"what is left");
    cluster.start(0).await;
    let leader = {
        client.read(&cluster, lookup(b"before")).await;
        cluster.leader(&client)
    };
    cluster.caught_up(0, leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_another_replica_dead_it_waits_and_says_for_whom() {
    let mut cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"before", false)).await.code(), Code::Ok);
    cluster.lose(0).await;
    cluster.stop(1).await;
    let (task, heard) = begin(cluster.recovery(0));
    let sentence = hears(heard, "does not answer").await;
    assert!(sentence.starts_with("volume 'demo-9' waits: every other replica of its table must run"), "{sentence}");
    assert!(!task.is_finished());
    cluster.start(1).await;
    task.await.unwrap().unwrap();
    cluster.start(0).await;
    assert_eq!(client.read(&cluster, lookup(b"before")).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_goes_in_the_middle_is_asked_no_more() {
    let mut cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"before", false)).await.code(), Code::Ok);
    let leader = cluster.leader(&client);
    let lost = cluster.other_than(&[leader]);
    cluster.lose(lost).await;
    let ((begun, begins), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel::<()>());
    let mut held = false;
    let task = tokio::spawn(recover(cluster.recovery(lost), move |progress| {
        if matches!(progress, RecoverProgress::Receiving { .. }) && !std::mem::replace(&mut held, true) {
            begun.send(()).unwrap();
            goes_on.recv().unwrap();
        }
    }));
    tokio::task::spawn_blocking(move || begins.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    cluster.stop(leader).await;
    cluster.start(leader).await;
    go_on.send(()).unwrap();
    assert_eq!(task.await.unwrap().unwrap().tables.len(), 1);
    cluster.start(lost).await;
    assert_eq!(client.read(&cluster, lookup(b"before")).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_snapshot_is_gone_is_lost_and_recovered_like_one_that_is_gone() {
    let mut cluster = Cluster::with_volume(3).await;
    cluster.lose(0).await;
    recover(cluster.recovery(0), |_| {}).await.unwrap();
    for entry in std::fs::read_dir(cluster.path(0).join("consensus/snapshots")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let error = start(cluster.config(0)).await.err().expect("it must not serve");
    assert!(matches!(error, StartError::Lost { .. }), "{error}");
    let (task, heard) = begin(cluster.recovery(0));
    task.await.unwrap().unwrap();
    let aside = Some(cluster.path(0).join("consensus-lost-1"));
    let begun = |progress| matches!(progress, RecoverProgress::Begun { set_aside, .. } if set_aside == aside);
    assert!(heard.try_iter().any(begun));
    cluster.start(0).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"file", false)).await.code(), Code::Ok);
    cluster.caught_up(0, cluster.leader(&client)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_an_earlier_start_or_without_a_proof_lets_nobody_in() {
    let cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"before", false)).await.code(), Code::Ok);
    let leader = cluster.leader(&client);
    let asker = cluster.nodes[cluster.other_than(&[leader])].as_ref().unwrap().node();
    let request = |generation, secret: ClusterSecret| {
        let claim = Claim::Admit(asker, generation);
        let mac = secret.prove(VolumeId(VOLUME), Incarnation(1), claim).to_vec().into();
        AdmitRequest { from: asker.0, generation, volume: VOLUME, incarnation: 1, mac }
    };
    let address = cluster.addresses()[leader];
    let forged = client.admit(address, request(8, ClusterSecret([6; 32]))).await;
    assert!(matches!(&forged, Outcome::Refused(why) if why.contains("no proof")), "{forged:?}");
    let first = client.admit(address, request(8, SECRET)).await;
    let Outcome::Admitted(admitted) = first else { panic!("{first:?}") };
    assert!(admitted.snapshot_bytes > 0);
    let earlier = client.admit(address, request(7, SECRET)).await;
    assert!(matches!(&earlier, Outcome::Refused(why) if why.contains("a later start")), "{earlier:?}");
    assert!(matches!(client.admit(address, request(8, SECRET)).await, Outcome::Admitted(_)), "twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_recovered_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::with_volume(1).await;
    let refused = async |config: RecoverConfig| recover(config, |_| {}).await.unwrap_err();
    let running = refused(cluster.recovery(0)).await;
    assert!(matches!(running, RecoverFailed::Start(StartError::Lock(_))), "{running}");
    cluster.stop(0).await;
    let superblock = |cluster: &Cluster| NodeSuperblock::read(&cluster.path(0), KIND).unwrap();
    let before = superblock(&cluster);
    let healthy = refused(cluster.recovery(0)).await;
    assert!(healthy.to_string().contains("there is nothing to recover"), "{healthy}");
    std::fs::rename(cluster.path(0).join("consensus"), cluster.path(0).join("elsewhere")).unwrap();
    let hopeless = refused(cluster.recovery(0)).await;
    assert!(matches!(&hopeless, RecoverFailed::Hopeless { volume } if volume == "demo-9"), "{hopeless}");
    let nobody = RecoverConfig { volmgr: "127.0.0.1:1".to_owned(), ..cluster.recovery(0) };
    let unreachable = refused(nobody).await;
    assert!(unreachable.to_string().contains("no volume manager answers at 127.0.0.1:1"), "{unreachable}");
    assert_eq!(superblock(&cluster), before);
    assert!(!cluster.path(0).join("consensus").exists());
    let fresh = cluster.directory.path().join("fresh");
    format(&fresh).await.unwrap();
    let never = refused(RecoverConfig { directory: fresh, ..cluster.recovery(0) }).await;
    assert!(matches!(never, RecoverFailed::Unregistered { .. }), "{never}");
    let none = refused(RecoverConfig { directory: cluster.directory.path().to_owned(), ..cluster.recovery(0) }).await;
    assert!(none.to_string().contains("is not formatted as a metanode's directory"), "{none}");
}
