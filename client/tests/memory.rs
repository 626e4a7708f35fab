//! What a client keeps of what it has done, by the memory of its process. A program of its own: nothing else runs beside it.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, end the test when something is not as it must be.
#[path = "model/amiss.rs"]
#[allow(dead_code)] // As below.
mod amiss;
#[path = "model/cluster.rs"]
#[allow(dead_code)] // The model test uses all of it.
mod cluster;

use bytes::Bytes;
use cluster::{Cluster, in_virtual_time};
use holdfast_client::{FileSystem, MountConfig, OpenMode, Sabotage, WriteAt};
use holdfast_common::{InodeId, Owner, Random};
use std::sync::Arc;

/// Overwrites, each with its fsync, after which the process must have taken all the memory that it needs.
const WARM_UP: u64 = 10_000;
/// And then so many; `HOLDFAST_FSYNCS` for more.
const FSYNCS: u64 = 40_000;
const GROWTH_KIB_MAX: u64 = 8 << 10;
const FILES: u64 = 8;
const FILE_BYTES: u64 = 1 << 20;

/// Resident memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn fsyncs_and_overwrites_leave_nothing_in_memory() {
    let total = std::env::var("HOLDFAST_FSYNCS").map_or(FSYNCS, |count| count.parse().unwrap());
    in_virtual_time(async {
        let cluster = Cluster::new(1, 0);
        let config = MountConfig {
            volmgr: String::new(),
            volume: "model".into(),
            client_key: "a".into(),
            description: "a".into(),
            read_only: false,
            memory_bytes: 64 << 20,
            sabotage: Sabotage::None,
        };
        let fs = FileSystem::mount_over(config, &cluster.volume(), Arc::new(cluster.clone()), 1).await.unwrap();
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let mut handles = Vec::new();
        for file in 0..FILES {
            let name = file.to_string();
            handles.push(fs.create(InodeId::ROOT, name.as_bytes(), 0o644, Owner::ROOT, true, mode).await.unwrap().1);
        }
        let mut random = Random::new(1);
        let mut warm_kib = 0;
        for count in 0..total {
            if count == WARM_UP {
                warm_kib = resident_kib();
            }
            let handle = handles[usize::try_from(random.below(FILES)).unwrap()];
            let data = Bytes::from(vec![7; usize::try_from(random.below(9000) + 1).unwrap()]);
            fs.write(handle, WriteAt::Offset(random.below(FILE_BYTES)), data, false).await.unwrap();
            fs.fsync(handle).await.unwrap();
            if count.is_multiple_of(1000) {
                cluster.sweep();
            }
        }
        let grown_kib = resident_kib().saturating_sub(warm_kib);
        println!("{grown_kib} KiB more after {total} fsyncs than after {WARM_UP}, which is {warm_kib} KiB");
        assert!(grown_kib < GROWTH_KIB_MAX, "{grown_kib} KiB more after {total} fsyncs than after {WARM_UP}");
    });
}
