//! Callers that give up: a read, write, fsync, open, rename or unmount is dropped at every moment of its life. What was sent has
//! happened or not, once; what was held has come back; and the next caller finds the file as good as before.

use crate::cluster::{Cluster, Faults, in_virtual_time};
use crate::scenarios::{BOTH, READ, create, mount, read, write};
use bytes::Bytes;
use holdfast_client::{Error, FileSystem, RenameMode, SetAttributes, WriteAt};
use holdfast_common::{InodeId, Owner};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// An operation on the cluster takes up to some 15 ms: it is dropped at so many moments of them.
fn moments() -> impl Iterator<Item = Duration> {
    (0..60).map(|moment| Duration::from_micros(moment * moment * 4))
}

/// Long enough for whatever was sent to have been executed.
async fn settle() {
    sleep(Duration::from_secs(10)).await;
}

async fn exists(fs: &FileSystem, name: &str) -> Option<InodeId> {
    match fs.lookup(InodeId::ROOT, name.as_bytes()).await {
        Ok(attributes) => Some(attributes.inode),
        Err(error) => {
            assert_eq!(error.errno(), libc::ENOENT);
            None
        }
    }
}

#[test]
fn a_dropped_read_leaves_its_blocks_to_the_next_reader() {
    in_virtual_time(async {
        let cluster = Cluster::new(40, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        let data: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
        fs.write(handle, WriteAt::Offset(0), data.clone().into(), false).await.unwrap();
        fs.fsync(handle).await.unwrap();
        fs.release(handle).await.unwrap();
        let mut cut_short = 0;
        for moment in moments() {
            // A mount of its own: its cache and map are empty.
            let other = mount(&cluster, "b").await;
            let handle = other.open(inode, READ).await.unwrap();
            // Sequential readers share the loading of blocks: one is dropped, the other one waits for it.
            let waiting = tokio::spawn({
                let other = other.clone();
                async move { other.read(handle, 0, 1 << 20).await }
            });
            cut_short += u32::from(timeout(moment, other.read(handle, 0, 1 << 20)).await.is_err());
            for seen in [waiting.await.unwrap(), other.read(handle, 0, 1 << 20).await] {
                assert!(seen.unwrap().concat() == data, "dropped after {moment:?}");
            }
            other.release(handle).await.unwrap();
            other.shutdown().await.unwrap();
            assert_eq!(other.held_bytes(), 0, "dropped after {moment:?}");
        }
        assert!(cut_short > 10, "{cut_short} reads were dropped");
    });
}

#[test]
fn a_dropped_write_is_there_whole_or_not_at_all() {
    in_virtual_time(async {
        let cluster = Cluster::new(41, 0);
        let fs = mount(&cluster, "a").await;
        let (mut there, mut gone) = (0, 0);
        for (number, moment) in moments().enumerate() {
            let (_, handle) = create(&fs, &number.to_string()).await;
            write(&fs, handle, 0, "before").await.unwrap();
            // Space is asked for anew: the write has to wait.
            sleep(Duration::from_secs(11)).await;
            let writing = fs.write(handle, WriteAt::Offset(2), Bytes::from_static(b"MIDDLE"), false);
            let told = timeout(moment, writing).await.is_ok();
            let seen = read(&fs, handle).await;
            assert!(seen == b"beMIDDLE" || (!told && seen == b"before"), "dropped after {moment:?}");
            (there, gone) = if seen == b"before" { (there, gone + 1) } else { (there + 1, gone) };
            write(&fs, handle, 0, "AFTER").await.unwrap();
            fs.fsync(handle).await.unwrap();
            let wanted: &[u8] = if seen == b"before" { b"AFTERe" } else { b"AFTERDLE" };
            assert_eq!(read(&fs, handle).await, wanted, "dropped after {moment:?}");
            fs.release(handle).await.unwrap();
        }
        assert!(there > 5 && gone > 5, "{there} there, {gone} gone");
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
    });
}

#[test]
fn a_dropped_fsync_and_a_dropped_close_leave_the_flush_to_go_on() {
    in_virtual_time(async {
        let cluster = Cluster::new(42, 0);
        let (fs, other) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        for (number, moment) in moments().enumerate() {
            let (inode, handle) = create(&fs, &number.to_string()).await;
            write(&fs, handle, 0, "written").await.unwrap();
            if number % 2 == 0 {
                let _ = timeout(moment, fs.fsync(handle)).await;
                fs.fsync(handle).await.unwrap();
                fs.release(handle).await.unwrap();
            } else {
                let _ = timeout(moment, fs.release(handle)).await;
                settle().await;
                assert_eq!(fs.fsync(handle).await, Err(Error::BadHandle), "it was closed, dropped or not");
            }
            let seen = other.open(inode, READ).await.unwrap();
            assert_eq!(read(&other, seen).await, b"written", "dropped after {moment:?}");
            other.release(seen).await.unwrap();
        }
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
    });
}

/// The outcome is on its way to a caller that is gone before it looks.
#[test]
fn a_lost_write_that_a_dropped_fsync_was_about_to_tell_is_told_by_the_next() {
    in_virtual_time(async {
        let cluster = Cluster::new(47, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        cluster.state().silent = vec![1, 2, 3, 4];
        write(&fs, handle, 0, "lost").await.unwrap();
        let mut flushing = Box::pin(fs.fsync(handle));
        assert!(timeout(Duration::from_millis(1), &mut flushing).await.is_err());
        cluster.expire(cluster.sessions()[0]);
        sleep(Duration::from_secs(5)).await;
        drop(flushing);
        assert_eq!(fs.fsync(handle).await, Err(Error::SessionLost));
        assert_eq!(fs.fsync(handle).await, Ok(()));
    });
}

/// What was sent is executed under its number whoever waits (R8). The answers of every second one are lost.
#[test]
fn a_dropped_create_and_a_dropped_rename_happen_once_all_the_same() {
    in_virtual_time(async {
        let cluster = Cluster::new(43, 0);
        let fs = mount(&cluster, "a").await;
        for (number, moment) in moments().enumerate() {
            let faults = || Faults { unanswered: if number % 2 == 0 { 100 } else { 0 }, ..Faults::default() };
            let (from, to) = (format!("from{number}"), format!("to{number}"));
            cluster.state().faults = faults();
            let creating = fs.create(InodeId::ROOT, from.as_bytes(), 0o644, Owner::ROOT, true, BOTH);
            let _ = timeout(moment, creating).await;
            cluster.state().faults = Faults::default();
            settle().await;
            let inode = exists(&fs, &from).await.expect("it was sent");
            cluster.state().faults = faults();
            let moving = fs.rename(InodeId::ROOT, from.as_bytes(), InodeId::ROOT, to.as_bytes(), RenameMode::NoReplace);
            let _ = timeout(moment, moving).await;
            cluster.state().faults = Faults::default();
            settle().await;
            let there = (exists(&fs, &from).await, exists(&fs, &to).await);
            assert_eq!(there, (None, Some(inode)), "dropped after {moment:?}");
            assert_eq!(fs.get_attributes(inode).await.unwrap().nlink, 1);
        }
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
    });
}

#[test]
fn a_dropped_truncation_cuts_what_was_written_before_it_and_nothing_later() {
    in_virtual_time(async {
        let cluster = Cluster::new(44, 0);
        let fs = mount(&cluster, "a").await;
        let mut cut = 0;
        for (number, moment) in moments().enumerate() {
            let (inode, handle) = create(&fs, &number.to_string()).await;
            write(&fs, handle, 0, "before the cut").await.unwrap();
            let to_three = SetAttributes { size_bytes: Some(3), ..SetAttributes::default() };
            let _ = timeout(moment, fs.set_attributes(inode, to_three)).await;
            write(&fs, handle, 12, "LATER").await.unwrap();
            fs.fsync(handle).await.unwrap();
            settle().await;
            let seen = read(&fs, handle).await;
            let was_cut = seen == b"bef\0\0\0\0\0\0\0\0\0LATER";
            assert!(was_cut || seen == b"before the cLATER", "{:?} after {moment:?}", String::from_utf8_lossy(&seen));
            cut += u32::from(was_cut);
            fs.release(handle).await.unwrap();
        }
        assert!((5..60).contains(&cut), "{cut} were cut");
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
    });
}

#[test]
fn a_dropped_open_leaves_nothing_open() {
    in_virtual_time(async {
        let cluster = Cluster::new(45, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "text").await.unwrap();
        fs.fsync(handle).await.unwrap();
        fs.release(handle).await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
        for moment in moments() {
            let _ = timeout(moment, fs.open(inode, BOTH)).await.map(|opened| {
                drop(tokio::spawn({
                    let fs = fs.clone();
                    async move { fs.release(opened.unwrap()).await.unwrap() }
                }))
            });
            settle().await;
            // An inode that somebody has open keeps its map.
            assert_eq!(fs.held_bytes(), 0, "dropped after {moment:?}");
        }
        fs.shutdown().await.unwrap();
    });
}

/// Somebody kills the unmounting program and runs it again.
#[test]
fn a_dropped_unmount_can_be_asked_for_again() {
    in_virtual_time(async {
        for moment in moments() {
            let cluster = Cluster::new(46, 0);
            let fs = mount(&cluster, "a").await;
            let (inode, handle) = create(&fs, "file").await;
            write(&fs, handle, 0, "text").await.unwrap();
            let _ = timeout(moment, fs.shutdown()).await;
            let again = fs.shutdown().await;
            let other = mount(&cluster, "b").await;
            let seen = other.open(inode, READ).await.unwrap();
            let kept = read(&other, seen).await == b"text";
            // The second one may find the mount ended; it must not say that all is well when something is lost.
            assert!(kept, "dropped after {moment:?}: {again:?}");
            assert_eq!(cluster.sessions().len(), 1, "dropped after {moment:?}");
        }
    });
}
