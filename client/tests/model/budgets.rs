//! What a client may hold and take: memory, quota, and time where a member is dead.

use crate::cluster::{Cluster, in_virtual_time};
use crate::scenarios::{READ, config, create, mount, mount_by};
use bytes::Bytes;
use holdfast_client::{Error, FileHandle, FileSystem, MountConfig, WriteAt};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PAGE: usize = 4096;

async fn write_zeros(fs: &FileSystem, handle: FileHandle, offset: u64, length: usize) -> Result<(), Error> {
    fs.write(handle, WriteAt::Offset(offset), Bytes::from(vec![7; length]), false).await
}

/// Interleaving: a file is flushed in two generations, the first of which holds many small pieces of one page; another mount takes
/// whatever quota is free in between.
#[test]
fn a_generation_of_small_pieces_leaves_the_next_one_the_quota_that_it_was_charged() {
    in_virtual_time(async {
        for seed in 0..30 {
            // The first write reserves 64 MiB ahead; four pages are left for others.
            let cluster = Cluster::new(seed, (64 << 20) + 516 * PAGE as u64);
            let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
            let (_, handle) = create(&a, "file").await;
            let (_, other) = create(&b, "other").await;
            write_zeros(&a, handle, 0, 512 * PAGE).await.unwrap();
            for at in 1..1024 {
                write_zeros(&a, handle, at * 2, 1).await.unwrap();
            }
            let taking = tokio::spawn(async move {
                for _ in 0..100 {
                    if write_zeros(&b, other, 0, 1100 * PAGE).await.is_ok() {
                        break;
                    }
                    sleep(Duration::from_micros(10)).await;
                }
                b.fsync(other).await
            });
            write_zeros(&a, handle, 2048, 1).await.unwrap();
            assert_eq!(a.fsync(handle).await, Ok(()), "seed {seed}");
            assert_eq!(taking.await.unwrap(), Ok(()), "seed {seed}");
        }
    });
}

/// The member is found dead by the first round of requests; the next one fetches what replaces all its parts.
#[test]
fn a_read_of_many_parts_around_a_dead_member_takes_one_round_more() {
    in_virtual_time(async {
        let cluster = Cluster::new(12, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        // Each in a chunk of its own.
        for part in 0..64u64 {
            write_zeros(&fs, handle, part * PAGE as u64, PAGE).await.unwrap();
            fs.fsync(handle).await.unwrap();
        }
        let other = mount(&cluster, "b").await;
        let reading = other.open(inode, READ).await.unwrap();
        for silent in [vec![1], vec![2], vec![3], vec![4]] {
            sleep(Duration::from_secs(60)).await;
            // Nothing is kept of what a reader reads here and there.
            assert_eq!(other.read(reading, 1 << 30, 1).await.unwrap().concat(), b"");
            cluster.state().silent = silent;
            let begun = Instant::now();
            let seen = other.read(reading, 0, 64 * 4096).await.unwrap().concat();
            assert_eq!(seen, vec![7; 64 * PAGE]);
            // The first round ends at its deadline, 300 ms to 4 s. With the timer's milliseconds the second one takes up to 4 ms;
            // one for each of the dead member's parts would take 40.
            let beyond = begun.elapsed().as_millis() % 100;
            assert!((300..=4010).contains(&begun.elapsed().as_millis()) && beyond <= 10, "{:?}", begun.elapsed());
        }
    });
}

/// Files of many pieces are written, flushed and read from one end to the other by a mount that has room for few of them.
#[test]
fn what_a_mount_holds_stays_within_its_budget() {
    in_virtual_time(async {
        let cluster = Cluster::new(13, 0);
        let memory_bytes = 2 << 20;
        let fs = mount_by(&cluster, MountConfig { memory_bytes, ..config("a") }).await;
        let mut files = Vec::new();
        let (mut forgotten, mut before) = (0, 0);
        for round in 0..400u64 {
            if round < 20 {
                files.push(create(&fs, &round.to_string()).await.1);
            }
            let handle = files[usize::try_from(round * 7 % files.len() as u64).unwrap()];
            // Some 60 extents a round: two pages each.
            for piece in 0..60 {
                write_zeros(&fs, handle, (round / 20 * 60 + piece) * 12288, 8192).await.unwrap();
            }
            fs.fsync(handle).await.unwrap();
            for at in 0..8 {
                fs.read(handle, at << 17, 1 << 17).await.unwrap();
            }
            cluster.sweep();
            forgotten += u32::from(fs.held_bytes() < before);
            before = fs.held_bytes();
        }
        let most = fs.most_held_bytes();
        assert!(most <= memory_bytes as u64, "{most} bytes");
        assert!(
            most > memory_bytes as u64 / 2 && forgotten > 10,
            "{most} bytes, {forgotten} times less: nothing was shown"
        );
    });
}
