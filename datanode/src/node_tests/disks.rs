//! Claims about a node some of whose disks cannot be read, or are not there.

use super::*;

fn damage(disk: &std::path::Path, copies: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = copies.iter().map(|name| disk.join(name));
    let saved = paths.map(|path| {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&bytes[..20], b"rotten"].concat()).unwrap();
        (path, bytes)
    });
    saved.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_with_one_good_copy_of_its_superblock_serves() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    rig.put(&node, 12, 2, 8 * KIB).await;
    node.shutdown().await;
    for copy in ["superblock", "superblock-copy"] {
        let saved = damage(&rig.path("disk1"), &[copy]);
        let node = rig.start().await;
        let (response, _) = rig.read(&node, vec![range(12, 2, 0, 8 * KIB)]).await;
        assert_eq!(status(response.results[0].status), Status::Ok);
        node.shutdown().await;
        saved.into_iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_superblock_is_reported_lost_by_its_id_and_learns_what_it_missed() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    rig.put(&node, 11, 1, 8 * KIB).await;
    rig.put(&node, 12, 2, 8 * KIB).await;
    node.shutdown().await;
    let saved = damage(&rig.path("disk1"), &["superblock", "superblock-copy"]);
    let node = rig.start().await;
    let (response, _) = rig.read(&node, vec![range(11, 1, 0, 4096), range(12, 2, 0, 4096)]).await;
    let statuses: Vec<Status> = response.results.iter().map(|result| status(result.status)).collect();
    assert_eq!(statuses, [Status::Ok, Status::DiskFailed]);
    let beats = rig.volmgr.0.lock().heartbeats.len();
    until("a heartbeat", || rig.volmgr.0.lock().heartbeats.len() > beats).await;
    let mut health: Vec<_> =
        rig.volmgr.0.lock().heartbeats.last().unwrap().disks.iter().map(|d| (d.disk, d.healthy)).collect();
    health.sort_unstable();
    assert_eq!(health, [(11, true), (12, false)]);
    // While it is away, a floor is set, and the volume's life ends.
    let floor = SetFloorRequest { volume: 3, incarnation: 1, floor: 50, proof: proof(Claim::SetFloor(ChunkId(50))) };
    let set: SetFloorResponse = rig.call(&node, method::DATA_SET_FLOOR, floor).await;
    assert_eq!(status(set.status), Status::Ok);
    node.shutdown().await;
    saved.into_iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let node = rig.start().await;
    assert_eq!(status(rig.put(&node, 12, 49, 8 * KIB).await.status), Status::BelowFloor);
    node.shutdown().await;
    let saved = damage(&rig.path("disk1"), &["superblock", "superblock-copy"]);
    let node = rig.start().await;
    let request = DropVolumeRequest { volume: 3, incarnation: 1, proof: proof(Claim::DropVolume) };
    let dropped: DropVolumeResponse = rig.call(&node, method::DATA_DROP_VOLUME, request).await;
    assert_eq!(status(dropped.status), Status::Ok);
    node.shutdown().await;
    saved.into_iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let node = rig.start().await;
    assert_eq!(status(rig.put(&node, 12, 60, 8 * KIB).await.status), Status::Dropped);
    until("what it held is given back", || {
        let script = rig.volmgr.0.lock();
        script.heartbeats.last().is_some_and(|beat| beat.disks.iter().all(|disk| disk.used_bytes == 0))
    })
    .await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_one_process_count_the_space_of_their_file_system_once() {
    let rig = Rig::new().await;
    let process = Process::default();
    let available = async |node: &Datanode| {
        let probe: ProbeResponse = rig.call(node, method::DATA_PROBE, ProbeRequest {}).await;
        probe.disks[0].available_bytes
    };
    let node = start_in(rig.config(), &process).await.unwrap();
    let alone = available(&node).await;
    let config = DatanodeConfig {
        directory: rig.path("node2"),
        disks: vec![rig.path("disk2"), rig.path("disk3")],
        ..rig.config()
    };
    format(&config.directory, &config.disks).await.unwrap();
    let apart = start(config.clone()).await.unwrap();
    let beside_another_process = available(&node).await;
    assert!(beside_another_process > alone / 4 * 3, "{beside_another_process} of {alone}");
    apart.shutdown().await;
    let beside = start_in(config, &process).await.unwrap();
    let shared = available(&node).await;
    assert!(shared < alone / 4 * 3 && shared > alone / 4, "half of {alone}: {shared}");
    beside.shutdown().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_which_every_disk_is_away_says_why_and_does_not_start() {
    let rig = Rig::new().await;
    rig.start().await.shutdown().await;
    for disk in ["disk0", "disk1"] {
        std::fs::remove_dir_all(rig.path(disk)).unwrap();
        std::fs::create_dir(rig.path(disk)).unwrap();
    }
    let error = start(rig.config()).await.err().unwrap().to_string();
    assert!(error.contains("is not formatted as a datanode's disk"), "{error}");
}

async fn healthy(rig: &Rig, expected: &[(u64, bool)]) {
    until("the disks' health is reported", || {
        let script = rig.volmgr.0.lock();
        let last = script.heartbeats.last();
        last.is_some_and(|beat| beat.disks.iter().map(|disk| (disk.disk, disk.healthy)).eq(expected.iter().copied()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_whose_directory_was_removed_or_swapped_stops_serving_and_says_so() {
    for swapped in [false, true] {
        let rig = Rig::new().await;
        let node = rig.start().await;
        rig.put(&node, 11, 1, 8 * KIB).await;
        rig.put(&node, 12, 2, 8 * KIB).await;
        healthy(&rig, &[(11, true), (12, true)]).await;
        std::fs::rename(rig.path("disk1"), rig.path("elsewhere")).unwrap();
        if swapped {
            std::fs::create_dir(rig.path("disk1")).unwrap();
        }
        healthy(&rig, &[(11, true), (12, false)]).await;
        let (response, _) = rig.read(&node, vec![range(11, 1, 0, 4096), range(12, 2, 0, 4096)]).await;
        let statuses: Vec<Status> = response.results.iter().map(|result| status(result.status)).collect();
        assert_eq!(statuses, [Status::Ok, Status::DiskFailed]);
        node.shutdown().await;
        // It is as good as before once it is back in its place.
        let _ = std::fs::remove_dir_all(rig.path("disk1"));
        std::fs::rename(rig.path("elsewhere"), rig.path("disk1")).unwrap();
        let node = rig.start().await;
        let (response, _) = rig.read(&node, vec![range(12, 2, 0, 4096)]).await;
        assert_eq!(status(response.results[0].status), Status::Ok);
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_own_directory_was_removed_stops_serving_and_says_why() {
    let rig = Rig::new().await;
    let node = rig.start().await;
    std::fs::remove_dir_all(rig.path("node")).unwrap();
    let why = tokio::time::timeout(TIMEOUT, node.refused()).await.unwrap();
    assert!(why.contains("is not formatted"), "{why}");
}

/// Set in the process whose soft limit is lowered.
const CHILD: &str = "HOLDFAST_LOW_SOFT_LIMIT";
/// Soft limit that a shell might give it.
const SOFT_LIMIT: u64 = 256;

fn open_files_max() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to an rlimit of ours, and this call writes nothing else.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit
}

/// In a process of its own, because limits are a process's.
#[test]
fn a_start_raises_the_limit_of_open_files_as_far_as_it_may() {
    if std::env::var_os(CHILD).is_none() {
        let claim = "node_tests::disks::a_start_raises_the_limit_of_open_files_as_far_as_it_may";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", claim, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{complaint}");
        return;
    }
    let hard = open_files_max().rlim_max;
    assert!(hard > SOFT_LIMIT, "this system allows only {hard} open files: nothing can be raised");
    let low = libc::rlimit { rlim_cur: SOFT_LIMIT, rlim_max: hard };
    // SAFETY: the pointer is to an rlimit of ours, which the call only reads.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low) }, 0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let rig = Rig::new().await;
        assert_eq!(open_files_max().rlim_cur, SOFT_LIMIT, "formatting needs few");
        let node = rig.start().await;
        assert_eq!(open_files_max().rlim_cur, hard);
        node.shutdown().await;
    });
}
