//! Sessions that are lost or refused.

use crate::cluster::{Cluster, Faults, in_virtual_time};
use crate::scenarios::{BOTH, READ, config, create, mount, read, write};
use holdfast_client::{FileSystem, MountConfig, OpenMode, WriteAt};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Point 3: a frozen generation waits for members while its session ends and another mount writes the same bytes.
#[test]
fn what_was_frozen_under_a_lost_session_is_never_written_under_the_next() {
    in_virtual_time(async {
        let cluster = Cluster::new(3, 1 << 30);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let first = cluster.sessions()[0];
        let (inode, handle) = create(&a, "file").await;
        cluster.state().silent = vec![1, 2, 3, 4];
        write(&a, handle, 0, "former").await.unwrap();
        sleep(Duration::from_secs(3)).await;
        cluster.expire(first);
        sleep(Duration::from_secs(3)).await;
        cluster.state().silent.clear();
        let other = b.open(inode, BOTH).await.unwrap();
        write(&b, other, 0, "latter").await.unwrap();
        b.fsync(other).await.unwrap();
        sleep(Duration::from_secs(30)).await;
        assert!(a.fsync(handle).await.is_err());
        let seen = a.open(inode, READ).await.unwrap();
        assert_eq!(read(&a, seen).await, b"latter");
        a.release(handle).await.unwrap();
        a.release(seen).await.unwrap();
        a.shutdown().await.unwrap();
        b.shutdown().await.unwrap();
        assert_eq!(a.held_bytes(), 0);
    });
}

/// A commit whose answer is lost may have happened; its session is lost then, and nothing tells. What the mount believes of size
/// and map may be older than that. Found by the simulation.
#[test]
fn after_a_lost_session_a_mount_sees_what_the_table_took_of_it() {
    in_virtual_time(async {
        let cluster = Cluster::new(21, 0);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let first = cluster.sessions()[0];
        let (inode, handle) = create(&a, "file").await;
        let appending = a.open(inode, OpenMode { append: true, ..BOTH }).await.unwrap();
        write(&a, handle, 0, "short").await.unwrap();
        a.fsync(handle).await.unwrap();
        assert_eq!(read(&a, handle).await, b"short");
        cluster.state().faults = Faults { unanswered: 100, ..Faults::default() };
        write(&a, handle, 5, ", and longer").await.unwrap();
        assert!(timeout(Duration::from_secs(5), a.fsync(handle)).await.is_err(), "no answer comes");
        cluster.expire(first);
        cluster.state().faults = Faults::default();
        sleep(Duration::from_secs(30)).await;
        assert!(a.fsync(handle).await.is_err(), "nobody knows what became of it");
        let other = b.open(inode, READ).await.unwrap();
        assert_eq!(read(&b, other).await, b"short, and longer");
        a.write(appending, WriteAt::End { believed: 5 }, "!".into(), false).await.unwrap();
        assert_eq!(read(&a, appending).await, b"short, and longer!");
        a.fsync(appending).await.unwrap_err();
        a.fsync(appending).await.unwrap();
        assert_eq!(read(&a, handle).await, b"short, and longer!");
        for (fs, handle) in [(&a, handle), (&a, appending), (&b, other)] {
            fs.release(handle).await.unwrap();
        }
        a.shutdown().await.unwrap();
        b.shutdown().await.unwrap();
    });
}

#[test]
fn a_session_that_is_refused_is_not_asked_for_without_a_pause() {
    in_virtual_time(async {
        let cluster = Cluster::new(16, 0);
        let long = MountConfig { client_key: vec![1; 2000], ..config("a") };
        let mounted = FileSystem::mount_over(long, &cluster.volume(), std::sync::Arc::new(cluster.clone()), 1).await;
        assert!(mounted.is_err());
        let executed = cluster.state().executed;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(cluster.state().executed, executed, "nobody waits for it");
    });
}
