//! Sessions that are lost or refused.

use crate::cluster::{Cluster, Faults, in_virtual_time};
use crate::scenarios::{BOTH, READ, config, create, mount, read, write};
use holdfast_client::{Error, FileHandle, FileSystem, MountConfig, OpenMode, Whence, WriteAt};
use holdfast_common::InodeId;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A frozen generation waits for members while its session ends and another mount writes the same bytes.
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

/// A mount with a file of which a write was lost with the session.
async fn with_a_loss(cluster: &Cluster, closes: bool) -> (FileSystem, InodeId, FileHandle) {
    let fs = mount(cluster, "a").await;
    let (inode, handle) = create(&fs, "file").await;
    write(&fs, handle, 0, "kept").await.unwrap();
    fs.fsync(handle).await.unwrap();
    cluster.state().silent = vec![1, 2, 3, 4];
    write(&fs, handle, 0, "lost").await.unwrap();
    if closes {
        // It waits for the flush, and goes on without its caller.
        assert!(timeout(Duration::from_secs(1), fs.release(handle)).await.is_err());
    }
    cluster.expire(cluster.sessions()[0]);
    sleep(Duration::from_secs(5)).await;
    cluster.state().silent.clear();
    (fs, inode, handle)
}

#[test]
fn looking_for_data_and_holes_leaves_a_lost_write_to_fsync() {
    in_virtual_time(async {
        let cluster = Cluster::new(22, 0);
        let (fs, _, handle) = with_a_loss(&cluster, false).await;
        assert_eq!(fs.seek(handle, 0, Whence::Data).await, Ok(0));
        assert_eq!(fs.seek(handle, 0, Whence::Hole).await, Ok(4));
        assert_eq!(fs.seek(handle, 4, Whence::Data).await, Err(Error::NoSuchOffset));
        assert_eq!(read(&fs, handle).await, b"kept");
        assert_eq!(fs.fsync(handle).await, Err(Error::SessionLost));
        assert_eq!(fs.fsync(handle).await, Ok(()));
    });
}

/// Readers come and go before somebody asks.
#[test]
fn a_write_that_is_lost_with_nobody_there_waits_for_an_fsync_of_any_handle() {
    in_virtual_time(async {
        let cluster = Cluster::new(23, 0);
        let (fs, inode, _) = with_a_loss(&cluster, true).await;
        for _ in 0..3 {
            let reader = fs.open(inode, READ).await.unwrap();
            assert_eq!(read(&fs, reader).await, b"kept");
            assert_eq!(fs.flush(reader).await, Ok(()), "it has written nothing");
            fs.release(reader).await.unwrap();
        }
        let (reader, writer) = (fs.open(inode, READ).await.unwrap(), fs.open(inode, BOTH).await.unwrap());
        write(&fs, writer, 4, " and more").await.unwrap();
        for handle in [writer, reader] {
            assert_eq!(fs.fsync(handle).await, Err(Error::SessionLost));
            assert_eq!(fs.fsync(handle).await, Ok(()));
        }
        let later = fs.open(inode, BOTH).await.unwrap();
        assert_eq!(fs.fsync(later).await, Ok(()), "it was told");
        assert_eq!(read(&fs, later).await, b"kept and more");
        for handle in [reader, writer, later] {
            fs.release(handle).await.unwrap();
        }
        fs.shutdown().await.unwrap();
    });
}
