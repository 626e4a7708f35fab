//! The life of a cluster made by `up`: start, stop, signals, a busy mount, an unmount from outside, a dead mount, removal.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::cluster::STOP_LIMIT;
use holdfast_tests::command::tagged_command;
use holdfast_tests::manifest::Manifest;
use holdfast_tests::namespace::is_mounted;
use holdfast_tests::wait::{self, seconds};
use holdfast_tests::{Claim, Cluster, Room, Run, claims, processes, tree};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const CLAIMS: &[Claim] = &claims![
    120 => up_mounts_a_new_cluster_within_thirty_seconds,
    120 => after_ctrl_c_and_up_everything_is_the_same,
    90 => sigterm_stops_it_as_ctrl_c_does,
    90 => a_second_signal_does_not_wait,
    90 => a_busy_mount_is_named_with_its_holder_and_detached,
    90 => an_unmount_from_outside_leaves_the_cluster_running,
    120 => the_dead_mount_of_a_crash_is_detached_by_the_next_up,
    60 => the_roles_die_with_a_killed_up,
    90 => volumes_are_created_listed_shown_and_deleted,
    90 => a_mount_command_returns_when_it_is_mounted_and_ends_with_umount,
    120 => destroy_removes_a_stopped_cluster_and_nothing_else,
    120 => one_process_serves_all_roles_too,
    120 => idle_cores_of_a_virtual_machine_stay_awake_while_it_is_busy_and_no_longer,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

fn up_mounts_a_new_cluster_within_thirty_seconds(room: &mut Room) {
    let started = Instant::now();
    let cluster = room.cluster();
    let took = started.elapsed();
    assert!(took < seconds(30), "{:.1} s", took.as_secs_f64());
    // Before, there was neither a data directory nor a mount point.
    assert!(cluster.data().is_dir() && is_mounted(&cluster.mount()));
    let ready = cluster.ready();
    assert_eq!(ready.volume, "demo");
    assert_eq!(ready.cluster.len(), 32);
    let count = |role: &str| ready.processes.iter().filter(|process| process.role == role).count();
    assert_eq!((count("volmgr"), count("metanode"), count("datanode")), (1, 3, 6));
    let mut pids: Vec<_> = ready.processes.iter().filter(|p| p.role != "mount").map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 10, "every role is a process of its own");
    fs::write(cluster.mount().join("file"), "works").unwrap();
    assert_eq!(fs::read(cluster.mount().join("file")).unwrap(), b"works");
}

fn after_ctrl_c_and_up_everything_is_the_same(room: &mut Room) {
    let d = room.directory();
    let cluster = room.cluster();
    tree::grow(&d, 300, 41);
    let before = Manifest::of(&d);
    let id = cluster.ready().cluster.clone();
    for _ in 0..2 {
        cluster.stop();
        assert_eq!(fs::read_dir(cluster.mount()).map(Iterator::count).unwrap_or(0), 0, "nothing is under the mount");
        cluster.up();
        assert_eq!(cluster.ready().cluster, id);
        before.assert_same(&Manifest::of(&d), "another tree after a restart");
    }
    // Written, not synced, right before the signal.
    fs::write(d.join("last"), vec![7; 3_000_000]).unwrap();
    cluster.stop();
    cluster.up();
    assert_eq!(fs::read(d.join("last")).unwrap(), vec![7; 3_000_000]);
}

fn sigterm_stops_it_as_ctrl_c_does(room: &mut Room) {
    let d = room.directory();
    let cluster = room.cluster();
    fs::write(d.join("file"), "kept").unwrap();
    processes::signal(cluster.up_pid(), Signal::SIGTERM);
    let status = cluster.wait_for_end(STOP_LIMIT);
    assert!(status.is_some_and(|s| s.success()), "{status:?}\n{}", cluster.said());
    assert!(!is_mounted(&cluster.mount()));
    cluster.up();
    assert_eq!(fs::read(d.join("file")).unwrap(), b"kept");
}

fn a_second_signal_does_not_wait(room: &mut Room) {
    let d = room.directory();
    let cluster = room.cluster();
    fs::write(d.join("much"), vec![7; 32 << 20]).unwrap();
    // Metanodes that do not answer keep the flush from ending.
    for index in 0..3 {
        processes::signal(cluster.pid("metanode", index).unwrap(), Signal::SIGSTOP);
    }
    processes::signal(cluster.up_pid(), Signal::SIGINT);
    // Two signals at once would be one: the first must have been taken.
    let ended = wait::until(seconds(2), || (!processes::is_alive(cluster.up_pid())).then_some(()));
    assert!(ended.is_none(), "it did not wait for the flush\n{}", cluster.said());
    processes::signal(cluster.up_pid(), Signal::SIGINT);
    assert!(cluster.wait_for_end(seconds(5)).is_some(), "it did not end within 5 s\n{}", cluster.said());
    wait::for_state("every role has ended", seconds(5), || processes::tagged(&cluster.tag()).is_empty());
    cluster.up();
    let started = Instant::now();
    fs::write(d.join("file"), "works").unwrap();
    let took = started.elapsed();
    assert!(took < seconds(30), "the first write after it took {:.1} s", took.as_secs_f64());
}

fn a_busy_mount_is_named_with_its_holder_and_detached(room: &mut Room) {
    room.drop_cluster();
    let mut cluster = Cluster::prepare(&[]);
    // What it says to people, who are the ones to let go of the mount.
    cluster.set_human();
    cluster.up();
    let d = cluster.mount().join("dir");
    fs::create_dir(&d).unwrap();
    fs::write(d.join("file"), "kept").unwrap();
    let mut holder = tagged_command("sleep", "holder").arg("300").current_dir(&d).spawn().unwrap();
    processes::signal(cluster.up_pid(), Signal::SIGINT);
    let status = cluster.wait_for_end(STOP_LIMIT);
    let said = cluster.said();
    assert!(status.is_some(), "it did not end\n{said}");
    assert!(said.contains(&holder.id().to_string()) && said.contains("sleep"), "the holder is not named:\n{said}");
    assert!(!is_mounted(&cluster.mount()));
    holder.kill().unwrap();
    holder.wait().unwrap();
    cluster.up();
    assert_eq!(fs::read(d.join("file")).unwrap(), b"kept");
    let said = cluster.said();
    assert!(said.contains("Try:") && said.contains("volume manager"), "the ready block teaches nothing:\n{said}");
    cluster.stop();
}

fn an_unmount_from_outside_leaves_the_cluster_running(room: &mut Room) {
    let d = room.directory();
    let cluster = room.cluster();
    fs::write(d.join("file"), "kept").unwrap();
    Run::new("umount").arg(cluster.mount()).limit(STOP_LIMIT).ok();
    wait::for_state("it is said that the mount is gone", seconds(10), || cluster.said().contains("unmounted"));
    assert!(processes::is_alive(cluster.up_pid()));
    let again = cluster.mount_again("demo");
    let there = again.point().join(d.file_name().unwrap()).join("file");
    assert_eq!(fs::read(there).unwrap(), b"kept");
    again.unmount();
    cluster.stop();
    cluster.up();
    assert_eq!(fs::read(d.join("file")).unwrap(), b"kept");
}

fn the_dead_mount_of_a_crash_is_detached_by_the_next_up(room: &mut Room) {
    let d = room.directory();
    let cluster = room.cluster();
    fs::write(d.join("file"), "kept").unwrap();
    fs::File::open(d.join("file")).unwrap().sync_all().unwrap();
    cluster.kill_everything();
    let error = fs::metadata(cluster.mount()).unwrap_err().raw_os_error();
    assert!(is_mounted(&cluster.mount()) && error == Some(libc::ENOTCONN), "the mount is not dead: {error:?}");
    cluster.up();
    assert_eq!(fs::read(d.join("file")).unwrap(), b"kept");
    let stacked = holdfast_tests::namespace::fuse_mounts_below(&cluster.mount());
    assert_eq!(stacked.len(), 1, "the dead mount is still below the new one");
}

fn the_roles_die_with_a_killed_up(room: &mut Room) {
    let cluster = room.cluster();
    processes::signal(cluster.up_pid(), Signal::SIGKILL);
    assert!(cluster.wait_for_end(seconds(5)).is_some());
    wait::for_state("every role has died", seconds(10), || processes::tagged(&cluster.tag()).is_empty());
    cluster.up();
}

fn volumes_are_created_listed_shown_and_deleted(room: &mut Room) {
    let cluster = room.cluster();
    cluster.admin_ok(&["volume", "create", "photos", "--code", "2+1", "--quota", "10G"]);
    cluster.admin_ok(&["volmgr", "volume", "create", "copies", "--code", "1+2"]);
    let json = |text: String| -> serde_json::Value { serde_json::from_str(&text).unwrap() };
    let shown = json(cluster.admin_ok(&["volume", "show", "photos", "--json"]));
    assert_eq!((shown["code"].as_str(), shown["quota_bytes"].as_u64()), (Some("2+1"), Some(10 << 30)));
    let listed = cluster.admin_ok(&["volume", "list"]);
    assert!(["demo", "photos", "copies"].iter().all(|name| listed.contains(name)), "{listed}");
    for name in ["photos", "copies"] {
        let mounted = cluster.mount_again(name);
        fs::write(mounted.point().join("file"), vec![1; 300_000]).unwrap();
        assert_eq!(fs::read(mounted.point().join("file")).unwrap(), vec![1; 300_000]);
        mounted.unmount();
    }
    cluster.admin_ok(&["volume", "delete", "photos"]);
    wait::for_state("the volume is gone from the list", seconds(30), || {
        !cluster.admin_ok(&["volume", "list"]).contains("photos")
    });
    cluster.admin_ok(&["volume", "create", "photos"]);
    let mounted = cluster.mount_again("photos");
    assert_eq!(fs::read_dir(mounted.point()).unwrap().count(), 0, "the new volume holds what the deleted one held");
    mounted.unmount();
}

fn a_mount_command_returns_when_it_is_mounted_and_ends_with_umount(room: &mut Room) {
    let point = room.local_directory();
    let cluster = room.cluster();
    fs::write(cluster.mount().join("here"), "x").unwrap();
    let source = format!("{}/demo", cluster.ready().volmgr);
    Run::holdfast().arg("mount").arg(source).arg(&point).ok();
    assert!(is_mounted(&point), "it returned before it was mounted");
    assert_eq!(fs::read(point.join("here")).unwrap(), b"x");
    fs::write(point.join("there"), "y").unwrap();
    Run::new("umount").arg(&point).limit(STOP_LIMIT).ok();
    assert!(!is_mounted(&point));
    assert_eq!(fs::read(cluster.mount().join("there")).unwrap(), b"y");
}

fn destroy_removes_a_stopped_cluster_and_nothing_else(room: &mut Room) {
    let cluster = room.cluster();
    let destroy = |more: &[&str]| Run::holdfast().args(["destroy", "--dir"]).arg(cluster.data()).args(more).end();
    let running = destroy(&["--yes"]);
    assert!(!running.status.unwrap().success() && running.stderr.contains("running"), "{}", running.describe());
    fs::write(cluster.mount().join("file"), "still works").unwrap();
    cluster.stop();
    // There is nobody to answer the question.
    let unanswered = Run::holdfast().args(["destroy", "--dir"]).arg(cluster.data()).end();
    assert!(!unanswered.status.unwrap().success() && cluster.data().join("superblock").exists());
    fs::write(cluster.data().join("mine"), "not the cluster's").unwrap();
    Run::holdfast().args(["destroy", "--yes", "--dir"]).arg(cluster.data()).ok();
    let left: Vec<_> = fs::read_dir(cluster.data()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine"]);
    fs::remove_file(cluster.data().join("mine")).unwrap();
    cluster.up();
    assert!(!cluster.mount().join("file").exists(), "the removed cluster came back");
    cluster.stop();
    Run::holdfast().args(["destroy", "--yes", "--dir"]).arg(cluster.data()).ok();
    assert!(!cluster.data().exists());
    room.drop_cluster();
}

fn one_process_serves_all_roles_too(room: &mut Room) {
    room.drop_cluster();
    let mut cluster = Cluster::prepare(&[]);
    cluster.set_one_process();
    cluster.up();
    assert_eq!(processes::tagged(&cluster.tag()), [cluster.up_pid()]);
    let d = cluster.mount().join("tree");
    fs::create_dir(&d).unwrap();
    tree::grow(&d, 200, 42);
    let before = Manifest::of(&d);
    cluster.stop();
    cluster.up();
    before.assert_same(&Manifest::of(&d), "another tree after a restart");
    cluster.kill_everything();
    cluster.up();
    assert!(d.is_dir());
    cluster.stop();
}

fn idle_cores_of_a_virtual_machine_stay_awake_while_it_is_busy_and_no_longer(room: &mut Room) {
    const DEVICE: &str = "/dev/cpu_dma_latency";
    room.drop_cluster();
    let mut cluster = Cluster::prepare(&[]);
    cluster.set_one_process();
    cluster.up();
    let driver = fs::read_to_string("/sys/devices/system/cpu/cpuidle/current_driver").unwrap_or_default();
    let expected = driver.trim() == "haltpoll" && fs::OpenOptions::new().write(true).open(DEVICE).is_ok();
    let held = || processes::open_files(cluster.up_pid()).iter().any(|file| file == Path::new(DEVICE));
    let let_go = || wait::for_state("idle cores may halt", seconds(30), || !held());
    let_go();
    let (mount, ended) = (cluster.mount(), AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        for thread in 0..4 {
            let (file, ended) = (mount.join(format!("file-{thread}")), &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    fs::write(&file, "busy").unwrap();
                    fs::remove_file(&file).unwrap();
                }
            });
        }
        let seen = wait::until(if expected { seconds(30) } else { seconds(3) }, || held().then_some(())).is_some();
        ended.store(true, Ordering::Relaxed);
        seen
    });
    assert_eq!(seen, expected, "the driver of idle cores is '{}'", driver.trim());
    let_go();
    cluster.stop();
}
