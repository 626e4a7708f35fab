//! A cluster in trouble: leaders that change, members that fail, disks and quotas that are used up; on the way there and back.

use crate::amiss::Amiss;
use crate::cluster::{Cluster, Faults, in_virtual_time};
use crate::scenarios::{READ, config, create, mount, mount_by, read, write};
use bytes::Bytes;
use holdfast_client::{Error, FileHandle, FileSystem, MountConfig, SetAttributes, WriteAt};
use holdfast_common::InodeId;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const ALL: [u64; 4] = [1, 2, 3, 4];

async fn fill(fs: &FileSystem, handle: FileHandle, offset: u64, length: usize) -> Result<(), Error> {
    fs.write(handle, WriteAt::Offset(offset), Bytes::from(vec![7; length]), false).await
}

/// Before it is sent, on its way, executed and not answered, answered; with the answer heard or lost.
#[test]
fn a_leader_that_changes_in_any_phase_of_a_commit_costs_nothing_but_time() {
    in_virtual_time(async {
        for heard in [true, false] {
            for wait_us in (0..12_000).step_by(150) {
                let cluster = Cluster::new(60, 0);
                let fs = mount(&cluster, "a").await;
                let (inode, handle) = create(&fs, "file").await;
                write(&fs, handle, 0, "first").await.unwrap();
                let flushing = tokio::spawn({
                    let fs = fs.clone();
                    async move { fs.fsync(handle).await }
                });
                sleep(Duration::from_micros(wait_us)).await;
                cluster.state().leader = 2;
                if !heard {
                    cluster.state().faults = Faults { unanswered: 100, ..Faults::default() };
                    sleep(Duration::from_millis(10)).await;
                    cluster.state().faults = Faults::default();
                }
                write(&fs, handle, 5, " second").await.unwrap();
                fs.fsync(handle).await.unwrap();
                assert_eq!(flushing.await.unwrap(), Ok(()), "{wait_us} us");
                let other = mount(&cluster, "b").await;
                let seen = other.open(inode, READ).await.unwrap();
                assert_eq!(read(&other, seen).await, b"first second", "{wait_us} us");
                let state = cluster.state();
                state.table.check().unwrap();
            }
        }
    });
}

#[test]
fn an_election_of_seconds_is_waited_for() {
    in_virtual_time(async {
        let cluster = Cluster::new(61, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "kept").await.unwrap();
        cluster.state().headless = true;
        let ending = tokio::spawn({
            let cluster = cluster.clone();
            async move {
                sleep(Duration::from_secs(8)).await;
                let mut state = cluster.state();
                (state.headless, state.leader) = (false, 3);
            }
        });
        let begun = Instant::now();
        let (looked, flushed) = tokio::join!(fs.get_attributes(inode), fs.fsync(handle));
        assert_eq!((looked.map(|attributes| attributes.inode), flushed), (Ok(inode), Ok(())));
        assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
        ending.await.unwrap();
    });
}

#[test]
fn while_no_member_answers_what_was_written_is_kept_and_read_and_flushed_when_they_are_back() {
    in_virtual_time(async {
        let cluster = Cluster::new(62, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "0123456789").await.unwrap();
        fs.fsync(handle).await.unwrap();
        cluster.state().silent = ALL.to_vec();
        write(&fs, handle, 3, "abc").await.unwrap();
        sleep(Duration::from_secs(20)).await;
        assert_eq!(fs.read(handle, 3, 3).await.unwrap().concat(), b"abc", "it is read from memory");
        let flushing = tokio::spawn({
            let fs = fs.clone();
            async move { fs.fsync(handle).await }
        });
        sleep(Duration::from_secs(20)).await;
        // Three of four are enough for a stripe of 1+1 at least.
        cluster.state().silent = vec![2];
        let back = Instant::now();
        assert_eq!(flushing.await.unwrap(), Ok(()));
        assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
        let other = mount(&cluster, "b").await;
        let seen = other.open(inode, READ).await.unwrap();
        assert_eq!(read(&other, seen).await, b"012abc6789");
    });
}

/// Members of both groups are replaced under a writer that does not stop.
#[test]
fn slots_that_are_vacated_under_a_writer_cost_it_nothing_but_time() {
    in_virtual_time(async {
        for seed in 0..10 {
            let cluster = Cluster::new(70 + seed, 0);
            let fs = mount(&cluster, "a").await;
            let (inode, handle) = create(&fs, "file").await;
            let mut wanted = Vec::new();
            for round in 0..60u64 {
                if round == 20 || round == 40 {
                    let (group, slot) = if round == 20 { (1, 0) } else { (2, 0) };
                    cluster.vacate(group, slot);
                }
                let text = format!("{round:04}").repeat(500);
                wanted.extend_from_slice(text.as_bytes());
                write(&fs, handle, round * 2000, &text).await.unwrap();
                if round % 3 == 0 {
                    assert_eq!(fs.fsync(handle).await, Ok(()), "seed {seed}, round {round}");
                }
            }
            fs.fsync(handle).await.unwrap();
            let other = mount(&cluster, "b").await;
            let seen = other.open(inode, READ).await.unwrap();
            assert!(read(&other, seen).await == wanted, "seed {seed}");
            cluster.state().table.check().unwrap();
        }
    });
}

/// Of a newer datanode, or of a wrong one: the part counts as not read. It is rebuilt, or the read fails; nothing panics, and no
/// byte is made up.
#[test]
fn a_part_of_an_answer_that_is_missing_or_not_understood_is_rebuilt_or_the_read_fails() {
    in_virtual_time(async {
        let kinds = [Amiss::UnknownStatus, Amiss::Missing, Amiss::Short, Amiss::ShortBody, Amiss::WithoutChecksums];
        for (amiss, length) in kinds.into_iter().flat_map(|amiss| [(amiss, 10_000u32), (amiss, 300 << 10)]) {
            let cluster = Cluster::new(90, 0);
            let fs = mount(&cluster, "a").await;
            let (inode, handle) = create(&fs, "file").await;
            let data: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[1] ^ at.to_le_bytes()[0]).collect();
            fs.write(handle, WriteAt::Offset(0), data.clone().into(), false).await.unwrap();
            fs.fsync(handle).await.unwrap();
            for bad in ALL.map(|disk| vec![disk]).into_iter().chain([ALL.to_vec()]) {
                // A mount of its own: its cache is empty.
                let other = mount(&cluster, "b").await;
                let seen = other.open(inode, READ).await.unwrap();
                cluster.state().amiss = Some((amiss, bad.clone()));
                let first = other.read(seen, 0, length).await;
                cluster.state().amiss = None;
                match first {
                    Ok(pieces) => {
                        assert!(pieces.concat() == data, "{amiss:?} of {bad:?}");
                        // The small file is one part: every answer that could give it is amiss.
                        assert!(bad.len() < 4 || length > 10_000, "{amiss:?} was taken");
                    }
                    Err(error) => {
                        assert_eq!((error.errno(), bad.len()), (libc::EIO, 4), "{amiss:?}: {error}");
                    }
                }
                assert!(other.read(seen, 0, length).await.unwrap().concat() == data, "afterwards");
            }
        }
    });
}

// Space.

#[test]
fn a_full_volume_is_told_at_write_and_takes_data_again_when_something_was_deleted() {
    in_virtual_time(async {
        let cluster = Cluster::new(63, 0);
        cluster.state().free_bytes = 300 << 10;
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        fill(&fs, handle, 0, 200 << 10).await.unwrap();
        assert_eq!(fill(&fs, handle, 1 << 20, 2 << 20).await, Err(Error::NoSpace));
        assert_eq!(fs.fsync(handle).await, Ok(()), "what was taken in was told to be taken in");
        assert_eq!(fill(&fs, handle, 0, 1).await, Ok(()), "a little still has room");
        cluster.state().free_bytes = 1 << 40;
        sleep(Duration::from_secs(11)).await;
        fill(&fs, handle, 1 << 20, 2 << 20).await.unwrap();
        fs.fsync(handle).await.unwrap();
        assert_eq!(read(&fs, handle).await.len(), 1 << 20);
    });
}

/// Disks that promised space and have none when the data comes: the write has returned, and fsync tells.
#[test]
fn data_that_finds_no_disk_is_lost_and_told_once_and_the_next_is_not() {
    in_virtual_time(async {
        let cluster = Cluster::new(64, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        let (_, other) = create(&fs, "other").await;
        write(&fs, handle, 0, "kept").await.unwrap();
        fs.fsync(handle).await.unwrap();
        cluster.state().full = ALL.to_vec();
        write(&fs, handle, 0, "lost").await.unwrap();
        assert_eq!(fs.fsync(handle).await, Err(Error::NoSpace));
        assert_eq!(fs.fsync(handle).await, Ok(()));
        assert_eq!(read(&fs, handle).await, b"kept", "as if it had never been written");
        cluster.state().full.clear();
        sleep(Duration::from_secs(2)).await;
        write(&fs, other, 0, "more").await.unwrap();
        fs.fsync(other).await.unwrap();
        assert_eq!(fs.fsync(handle).await, Ok(()));
        fs.release(handle).await.unwrap();
        fs.release(other).await.unwrap();
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
    });
}

#[test]
fn a_full_disk_is_written_around() {
    in_virtual_time(async {
        let cluster = Cluster::new(65, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        cluster.state().full = vec![2];
        for round in 0..10u64 {
            fill(&fs, handle, round << 20, 1 << 20).await.unwrap();
            assert_eq!(fs.fsync(handle).await, Ok(()), "round {round}");
        }
        let state = cluster.state();
        assert!(state.shards.keys().all(|(disk, _, _)| *disk != 2));
    });
}

#[test]
fn a_used_up_quota_is_told_at_write_and_again_writable_when_something_was_cut() {
    in_virtual_time(async {
        let cluster = Cluster::new(66, 20 * 4096);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (inode, handle) = create(&a, "file").await;
        let (_, other) = create(&b, "other").await;
        fill(&a, handle, 0, 15 * 4096).await.unwrap();
        a.fsync(handle).await.unwrap();
        // What a holds beyond its need goes back.
        sleep(Duration::from_secs(3)).await;
        fill(&b, other, 0, 5 * 4096).await.unwrap();
        b.fsync(other).await.unwrap();
        for _ in 0..2 {
            assert_eq!(fill(&b, other, 5 * 4096, 1).await, Err(Error::Quota));
            assert_eq!(fill(&a, handle, 15 * 4096, 1).await, Err(Error::Quota));
        }
        fill(&a, handle, 0, 15 * 4096).await.unwrap();
        assert_eq!(a.fsync(handle).await, Ok(()), "what is mapped already needs nothing");
        let cut = SetAttributes { size_bytes: Some(10 * 4096), ..SetAttributes::default() };
        a.set_attributes(inode, cut).await.unwrap();
        sleep(Duration::from_secs(3)).await;
        fill(&b, other, 5 * 4096, 5 * 4096).await.unwrap();
        b.fsync(other).await.unwrap();
        assert_eq!(fill(&b, other, 10 * 4096, 1).await, Err(Error::Quota));
        let state = cluster.state();
        state.table.check().unwrap();
    });
}

// The end of a mount.

#[test]
fn an_unmount_waits_for_members_that_come_back_in_time() {
    in_virtual_time(async {
        let cluster = Cluster::new(67, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        cluster.state().silent = ALL.to_vec();
        write(&fs, handle, 0, "kept").await.unwrap();
        let ending = tokio::spawn({
            let fs = fs.clone();
            async move { fs.shutdown().await }
        });
        sleep(Duration::from_secs(5)).await;
        cluster.state().silent.clear();
        assert_eq!(ending.await.unwrap(), Ok(()));
        let other = mount(&cluster, "b").await;
        let seen = other.open(inode, READ).await.unwrap();
        assert_eq!(read(&other, seen).await, b"kept");
    });
}

/// Callers that wait for memory while the mount ends.
#[test]
fn an_unmount_ends_whoever_waits() {
    in_virtual_time(async {
        let cluster = Cluster::new(68, 0);
        let fs = mount_by(&cluster, MountConfig { memory_bytes: 2 << 20, ..config("a") }).await;
        let (_, handle) = create(&fs, "file").await;
        cluster.state().silent = ALL.to_vec();
        fill(&fs, handle, 0, 1 << 20).await.unwrap();
        let writers: Vec<_> = (1..4)
            .map(|at| {
                let fs = fs.clone();
                tokio::spawn(async move { fill(&fs, handle, at << 20, 1 << 20).await })
            })
            .collect();
        let begun = Instant::now();
        assert!(matches!(fs.shutdown().await, Err(Error::Unflushed(files)) if files.len() == 1));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        for writer in writers {
            let ended = timeout(Duration::from_secs(61), writer).await.expect("by its deadline").unwrap();
            assert!(ended.is_err());
        }
        assert_eq!(fs.unlink(InodeId::ROOT, b"file").await, Err(Error::SessionLost));
    });
}

/// Disks out of reach may have the room that those within reach have not: what waits for them is kept.
#[test]
fn full_disks_beside_silent_ones_lose_nothing_and_the_data_lands_when_these_are_back() {
    in_virtual_time(async {
        let cluster = Cluster::new(65, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        cluster.state().full = vec![1, 4];
        cluster.state().silent = vec![2, 3];
        write(&fs, handle, 0, "kept").await.unwrap();
        assert!(matches!(fs.fsync(handle).await, Err(Error::TimedOut(_))));
        assert_eq!(read(&fs, handle).await, b"kept");
        cluster.state().silent.clear();
        fs.fsync(handle).await.unwrap();
        assert_eq!(read(&fs, handle).await, b"kept");
        fs.release(handle).await.unwrap();
        fs.shutdown().await.unwrap();
        assert_eq!(fs.held_bytes(), 0);
    });
}
