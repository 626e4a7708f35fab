//! What a client may hold and take: memory, and quota.

use crate::cluster::{Cluster, in_virtual_time};
use crate::scenarios::{create, mount};
use bytes::Bytes;
use holdfast_client::{Error, FileHandle, FileSystem, WriteAt};
use std::time::Duration;
use tokio::time::sleep;

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
