//! Metanodes whose log is gone, another or damaged: they host nothing and say what to run (R23).

use super::{Cluster, MetaClient, create};
use holdfast_metanode::{StartError, start};
use holdfast_node::NodeSuperblock;
use holdfast_node::superblock::Kind;
use holdfast_proto::meta::Code;
use std::path::PathBuf;

const KIND: Kind = Kind::superblock(*b"HFMETA\0\n", "a metanode's directory").with_second_copy();

impl Cluster {
    fn log(&self, index: usize) -> PathBuf {
        self.path(index).join("consensus/log")
    }

    async fn refused(&self, index: usize) -> String {
        let error = start(self.config(index)).await.err().expect("it must not serve");
        assert!(matches!(error, StartError::Lost { .. }), "{error}");
        assert!(error.to_string().contains("leave this node down"), "{error}");
        let command = format!("holdfast metanode recover --dir {}", self.path(index).display());
        assert!(error.to_string().contains(&command), "{error}");
        error.to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metanode_without_its_own_whole_log_serves_nothing_and_makes_none() {
    let mut cluster = Cluster::with_volume(3).await;
    let mut client = MetaClient::open_session(&cluster, b"a").await;
    assert_eq!(client.mutate(&cluster, create(b"file", false)).await.code(), Code::Ok);
    cluster.stop(0).await;
    let (log, aside) = (cluster.log(0), cluster.directory.path().join("aside"));
    std::fs::rename(&log, &aside).unwrap();
    assert!(cluster.refused(0).await.contains("there is no log"));
    assert!(!log.exists(), "nothing is made");
    std::fs::create_dir(&log).unwrap();
    assert!(cluster.refused(0).await.contains("there is no log"), "an empty directory is none");
    assert_eq!(std::fs::read_dir(&log).unwrap().count(), 0, "nothing is made");
    std::fs::remove_dir(&log).unwrap();

    cluster.stop(1).await;
    std::fs::rename(cluster.log(1), &log).unwrap();
    assert!(cluster.refused(0).await.contains("another log"));
    std::fs::rename(&log, cluster.log(1)).unwrap();
    cluster.start(1).await;

    std::fs::rename(&aside, &log).unwrap();
    let segment = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.filter(|path| path.extension().is_some_and(|end| end == "log")).min().unwrap();
    let whole = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, [&[!whole[0]], &whole[1..]].concat()).unwrap();
    assert!(cluster.refused(0).await.contains("damaged"));
    std::fs::write(&segment, whole).unwrap();
    cluster.start(0).await;
    assert_eq!(client.mutate(&cluster, create(b"more", false)).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_from_before_logs_had_to_be_named_names_the_one_it_has() {
    let mut cluster = Cluster::new(1).await;
    let forget = |cluster: &Cluster| {
        let named = NodeSuperblock::read(&cluster.path(0), KIND).unwrap();
        NodeSuperblock { log: None, ..named.clone() }.write(&cluster.path(0), KIND).unwrap();
        named.log.unwrap()
    };
    cluster.stop(0).await;
    let log = forget(&cluster);
    cluster.start(0).await;
    assert_eq!(NodeSuperblock::read(&cluster.path(0), KIND).unwrap().log, Some(log));
    cluster.stop(0).await;
    forget(&cluster);
    std::fs::remove_dir_all(cluster.log(0)).unwrap();
    assert!(cluster.refused(0).await.contains("there is no log"));
    assert!(!cluster.log(0).exists());
}
