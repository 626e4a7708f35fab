//! Several mounts, handles and names of one file: what a user who works in two places meets.

use crate::cluster::{Cluster, in_virtual_time, live_chunks};
use crate::scenarios::{BOTH, READ, create, mount, read, write};
use bytes::Bytes;
use holdfast_client::{Error, OpenMode, RenameMode, SetAttributes, WriteAt};
use holdfast_common::InodeId;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{FreeDead, ReapOrphans};
use std::time::Duration;
use tokio::time::sleep;

const CUT: SetAttributes = SetAttributes {
    size_bytes: Some(0),
    mode: None,
    uid: None,
    gid: None,
    atime: None,
    mtime: None,
    ctime_ns: None,
    kill_suid_sgid: false,
};

/// An editor saves by O_TRUNC in one place while a program in another has written and not flushed.
#[test]
fn a_file_that_another_mount_cuts_while_it_is_dirty_keeps_what_is_dirty_and_nothing_of_before() {
    in_virtual_time(async {
        for wait_us in (0..6000).step_by(200) {
            let cluster = Cluster::new(50, 0);
            let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
            let (inode, handle) = create(&a, "file").await;
            write(&a, handle, 0, &"1".repeat(9000)).await.unwrap();
            a.fsync(handle).await.unwrap();
            write(&a, handle, 4096, "dirty").await.unwrap();
            let cutting = tokio::spawn({
                let b = b.clone();
                async move {
                    sleep(Duration::from_micros(wait_us)).await;
                    b.set_attributes(inode, CUT).await
                }
            });
            a.fsync(handle).await.unwrap();
            cutting.await.unwrap().unwrap();
            a.fsync(handle).await.unwrap();
            let seen = b.open(inode, READ).await.unwrap();
            let content = read(&b, seen).await;
            // The cut came before the flush or after it.
            let behind = [vec![0; 4096], b"dirty".to_vec()].concat();
            assert!(content.is_empty() || content == behind, "{wait_us} us: {} bytes", content.len());
            cluster.state().table.check().unwrap();
        }
    });
}

#[test]
fn a_file_that_is_renamed_over_lives_on_in_its_handles() {
    in_virtual_time(async {
        for by_other in [false, true] {
            let cluster = Cluster::new(51, 0);
            let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
            let (old, handle) = create(&a, "target").await;
            write(&a, handle, 0, "old content").await.unwrap();
            let (new, writing) = create(&a, "new").await;
            write(&a, writing, 0, "new content").await.unwrap();
            a.release(writing).await.unwrap();
            let by = if by_other { &b } else { &a };
            by.rename(InodeId::ROOT, b"new", InodeId::ROOT, b"target", RenameMode::Replace).await.unwrap();
            assert_eq!(b.lookup(InodeId::ROOT, b"target").await.unwrap().inode, new);
            assert!(b.lookup(InodeId::ROOT, b"new").await.is_err());
            write(&a, handle, 11, ", longer").await.unwrap();
            a.fsync(handle).await.unwrap();
            assert_eq!(read(&a, handle).await, b"old content, longer");
            assert_eq!(a.get_attributes(old).await.unwrap().nlink, 0);
            let seen = a.open(new, READ).await.unwrap();
            assert_eq!(read(&a, seen).await, b"new content");
            a.release(handle).await.unwrap();
            a.release(seen).await.unwrap();
            a.shutdown().await.unwrap();
            assert_eq!(a.held_bytes(), 0);
        }
    });
}

#[test]
fn a_file_that_is_unlinked_while_dirty_is_written_and_read_until_it_is_closed() {
    in_virtual_time(async {
        for by_other in [false, true] {
            let cluster = Cluster::new(52, 0);
            let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
            let (inode, handle) = create(&a, "file").await;
            write(&a, handle, 0, "dirty").await.unwrap();
            let by = if by_other { &b } else { &a };
            by.unlink(InodeId::ROOT, b"file").await.unwrap();
            assert_eq!(a.lookup(InodeId::ROOT, b"file").await.unwrap_err().errno(), libc::ENOENT);
            a.fsync(handle).await.unwrap();
            write(&a, handle, 5, " still").await.unwrap();
            assert_eq!(read(&a, handle).await, b"dirty still");
            let attributes = a.get_attributes(inode).await.unwrap();
            assert_eq!((attributes.nlink, attributes.size_bytes), (0, 11));
            a.release(handle).await.unwrap();
            a.shutdown().await.unwrap();
            assert_eq!(a.held_bytes(), 0);
        }
    });
}

/// The leader thinks that nobody has it open: its data has nowhere to go, and nobody could read it.
#[test]
fn an_unlinked_file_that_is_freed_under_its_writer_takes_its_data_along_without_an_error() {
    in_virtual_time(async {
        let cluster = Cluster::new(53, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "before").await.unwrap();
        fs.fsync(handle).await.unwrap();
        fs.unlink(InodeId::ROOT, b"file").await.unwrap();
        write(&fs, handle, 0, "dirty").await.unwrap();
        let inodes = vec![inode.0];
        cluster.command(Op::ReapOrphans(ReapOrphans { inodes: inodes.clone(), max_extents: 100 }));
        cluster.command(Op::FreeDead(FreeDead { inodes, max_extents: 100 }));
        assert!(fs.get_attributes(inode).await.is_err());
        fs.fsync(handle).await.unwrap();
        fs.release(handle).await.unwrap();
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
        cluster.state().table.check().unwrap();
    });
}

#[test]
fn two_mounts_that_write_different_pages_of_a_file_both_find_both() {
    in_virtual_time(async {
        for seed in 0..20 {
            let cluster = Cluster::new(seed, 0);
            let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
            let (inode, one) = create(&a, "file").await;
            let other = b.open(inode, BOTH).await.unwrap();
            for page in 0..8u64 {
                let (fs, handle, text) = if page % 2 == 0 { (&a, one, "even") } else { (&b, other, "odd.") };
                write(fs, handle, page * 4096, text).await.unwrap();
            }
            let (first, second) = tokio::join!(a.fsync(one), b.fsync(other));
            assert_eq!((first, second), (Ok(()), Ok(())), "seed {seed}");
            for fs in [&a, &b] {
                let handle = fs.open(inode, READ).await.unwrap();
                let seen = read(fs, handle).await;
                for page in 0..8 {
                    let wanted: &[u8] = if page % 2 == 0 { b"even" } else { b"odd." };
                    assert_eq!(&seen[page * 4096..page * 4096 + 4], wanted, "seed {seed}, page {page}");
                }
                fs.release(handle).await.unwrap();
            }
        }
    });
}

#[test]
fn lines_that_are_appended_by_many_handles_of_one_mount_are_all_there() {
    in_virtual_time(async {
        let cluster = Cluster::new(54, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, _) = create(&fs, "log").await;
        let append = OpenMode { append: true, ..BOTH };
        let writers = (0..8u8).map(|writer| {
            let fs = fs.clone();
            tokio::spawn(async move {
                let handle = fs.open(inode, append).await.unwrap();
                for line in 0..50u8 {
                    let text = Bytes::from(format!("{writer}:{line:02}\n"));
                    fs.write(handle, WriteAt::End { believed: 0 }, text, false).await.unwrap();
                    if line % 7 == writer % 7 {
                        fs.fsync(handle).await.unwrap();
                    }
                }
                fs.release(handle).await.unwrap();
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let handle = fs.open(inode, READ).await.unwrap();
        let text = String::from_utf8(read(&fs, handle).await).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        for writer in 0..8 {
            let own: Vec<_> = lines.iter().filter(|line| line.starts_with(&writer.to_string())).collect();
            assert!(own.windows(2).all(|pair| pair[0] < pair[1]), "a writer's lines keep their order");
        }
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 400);
    });
}

/// R5: the chunks that a reader's map names are overwritten and deleted.
#[test]
fn a_reader_whose_chunks_are_gone_asks_for_the_map_again() {
    in_virtual_time(async {
        let cluster = Cluster::new(55, 0);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (inode, handle) = create(&a, "file").await;
        write(&a, handle, 0, &"1".repeat(20_000)).await.unwrap();
        a.fsync(handle).await.unwrap();
        let reading = b.open(inode, READ).await.unwrap();
        // The map is known, but nothing is cached of what a reader reads here and there.
        assert_eq!(b.read(reading, 1 << 30, 1).await.unwrap().concat(), b"");
        assert_eq!(b.read(reading, 19_999, 1).await.unwrap().concat(), b"1");
        let before = live_chunks(&cluster.state().table, inode);
        write(&a, handle, 0, &"2".repeat(20_000)).await.unwrap();
        a.fsync(handle).await.unwrap();
        cluster.sweep();
        let after = live_chunks(&cluster.state().table, inode);
        assert!(before.iter().all(|chunk| !after.contains(chunk)), "the former chunks are deleted");
        let seen = b.read(reading, 0, 10_000).await.unwrap().concat();
        assert!(seen == [b'2'; 10_000]);
    });
}

#[test]
fn one_file_under_two_names_is_one_file() {
    in_virtual_time(async {
        let cluster = Cluster::new(56, 0);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (inode, handle) = create(&a, "first").await;
        write(&a, handle, 0, "dirty").await.unwrap();
        let linked = b.link(inode, InodeId::ROOT, b"second").await.unwrap();
        assert_eq!((linked.inode, linked.nlink), (inode, 2));
        a.unlink(InodeId::ROOT, b"first").await.unwrap();
        a.release(handle).await.unwrap();
        let seen = b.lookup(InodeId::ROOT, b"second").await.unwrap();
        assert_eq!((seen.inode, seen.nlink, seen.size_bytes), (inode, 1, 5));
        let handle = b.open(inode, READ).await.unwrap();
        assert_eq!(read(&b, handle).await, b"dirty");
        assert_eq!(write(&b, handle, 0, "x").await, Err(Error::BadHandle));
    });
}
