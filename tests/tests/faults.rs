//! One process after another is killed, and kept dead for a while, under load: reads and writes go on within 30 s, and
//! the node comes back and is used again.

use holdfast_tests::block::{Seen, Stamp, run_of_blocks};
use holdfast_tests::wait::{self, seconds};
use holdfast_tests::workload::{Crew, Signal, blocks_of, wait_for_progress};
use holdfast_tests::{Claim, Cluster, Room, claims, processes};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const CLAIMS: &[Claim] = &claims![
    240 => any_one_metanode_may_die_and_comes_back,
    150 => the_volume_manager_may_die_and_comes_back,
    300 => any_two_datanodes_may_die_and_come_back,
    120 => a_metanode_and_two_datanodes_may_die_at_once,
    150 => nodes_that_hang_without_dying_hold_nobody_up,
    150 => a_metanode_that_lost_its_log_is_brought_back_and_votes,
    180 => a_lost_write_is_reported_to_its_writer_although_a_reader_closed_first,
    90 => a_mount_that_cannot_flush_ends_in_time_names_the_file_and_fails,
];

/// Promised: progress within this.
const PROGRESS_LIMIT: Duration = seconds(30);
/// A killed role is started again after a second; a busy machine gets more.
const RESTART_LIMIT: Duration = seconds(30);
/// Calls that must succeed while the nodes are dead.
const CALLS_WHILE_DEAD: u64 = 40;
const OLD_FILES: u64 = 24;
const OLD_BLOCKS: u64 = 40;

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// Files written before anything dies, to be read all the time.
fn write_old_files(directory: &Path) {
    std::fs::create_dir_all(directory).expect("a directory can be made");
    for file in 0..OLD_FILES {
        let bytes = run_of_blocks(1000 + file, 0, OLD_BLOCKS, 1);
        std::fs::write(directory.join(file.to_string()), bytes).expect("a file can be written");
    }
}

fn check_old_file(directory: &Path, file: u64) {
    let blocks = blocks_of(&directory.join(file.to_string()));
    assert_eq!(blocks.len() as u64, OLD_BLOCKS);
    for (seen, index) in blocks.into_iter().zip(0..) {
        assert_eq!(seen, Seen::Block(Stamp { file: 1000 + file, index, generation: 1 }));
    }
}

/// Writers and a reader at work; what `faults` does meanwhile must not fail a single call.
fn under_load(cluster: &Cluster, seed: u64, faults: impl FnOnce(&Signal, &AtomicU64)) {
    let top = cluster.mount().join(format!("load-{seed}"));
    let old = cluster.mount().join(format!("old-{seed}"));
    std::fs::create_dir_all(&top).expect("a directory can be made");
    write_old_files(&old);
    let mut crew = Crew::of_all_kinds(seed);
    let (reads, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for file in (0..OLD_FILES).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                check_old_file(&old, file);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let guard = StopReader(&stop);
        let ((), ends) = crew.work(&top, |signal| {
            wait_for_progress(signal, 50, PROGRESS_LIMIT, || {});
            faults(signal, &reads);
            wait_for_progress(signal, 50, PROGRESS_LIMIT, || {});
        });
        drop(guard);
        for (writer, end) in ends {
            assert!(end.is_ok(), "the {writer} got an error: {end:?}");
        }
    });
    crew.verify(&top);
    (0..OLD_FILES).for_each(|file| check_old_file(&old, file));
}

struct StopReader<'a>(&'a AtomicBool);

impl Drop for StopReader<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills these, keeps them dead until reads and writes have gone on, and lets them come back.
fn kill_and_let_come_back(cluster: &Cluster, victims: &[(&str, u64)], signal: &Signal, reads: &AtomicU64) {
    let mut last: Vec<u32> = victims.iter().map(|(role, index)| cluster.kill(role, *index)).collect();
    let mut keep_dead = || {
        for ((role, index), pid) in victims.iter().zip(&mut last) {
            if cluster.pid(role, *index).is_some_and(|now| now != *pid) {
                *pid = cluster.kill(role, *index);
            }
        }
    };
    let reads_goal = reads.load(Ordering::Relaxed) + CALLS_WHILE_DEAD / 4;
    let stall = wait_for_progress(signal, 1, PROGRESS_LIMIT, &mut keep_dead);
    wait_for_progress(signal, CALLS_WHILE_DEAD, PROGRESS_LIMIT, &mut keep_dead);
    wait::for_state("reads go on", PROGRESS_LIMIT, || {
        keep_dead();
        reads.load(Ordering::Relaxed) >= reads_goal
    });
    eprintln!("{victims:?} dead: the first call succeeded after {:.2} s", stall.as_secs_f64());
    for ((role, index), pid) in victims.iter().zip(&last) {
        cluster.wait_for_another(role, *index, *pid, RESTART_LIMIT);
        // The volume manager has nothing to do with calls; its claim asks it itself.
        if *role != "volmgr" {
            wait_until_used(cluster, role, *index);
        }
    }
}

/// A role is used again when something new is in its files: every metanode logs every change, and every datanode takes
/// its share of new chunks.
fn wait_until_used(cluster: &Cluster, role: &str, index: u64) {
    let directory = match role {
        "datanode" => cluster.role_directory(role, index).join("disk"),
        _ => cluster.role_directory(role, index),
    };
    let since = (SystemTime::now(), bytes_below(&directory));
    let started = Instant::now();
    wait::for_state(&format!("{role} {index} is used again"), seconds(60), || {
        let now = bytes_below(&directory);
        now != since.1 || newest_change(&directory).is_some_and(|change| change > since.0)
    });
    eprintln!("{role} {index} is used again after {:.2} s", started.elapsed().as_secs_f64());
}

fn files_below(directory: &Path) -> Vec<std::fs::Metadata> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .flat_map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => files_below(&entry.path()),
            Ok(found) => vec![found],
            Err(_) => Vec::new(),
        })
        .collect()
}

fn bytes_below(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files_below(directory).iter().map(MetadataExt::blocks).sum()
}

fn newest_change(directory: &Path) -> Option<SystemTime> {
    files_below(directory).iter().filter_map(|found| found.modified().ok()).max()
}

fn any_one_metanode_may_die_and_comes_back(room: &mut Room) {
    let cluster = room.cluster();
    under_load(cluster, 1, |signal, reads| {
        // One after the other, the first one twice: a metanode that did not really come back would leave the next death
        // without a majority.
        for index in [0, 1, 2, 0] {
            kill_and_let_come_back(cluster, &[("metanode", index)], signal, reads);
        }
    });
}

fn the_volume_manager_may_die_and_comes_back(room: &mut Room) {
    let cluster = room.cluster();
    under_load(cluster, 2, |signal, reads| {
        kill_and_let_come_back(cluster, &[("volmgr", 0)], signal, reads);
    });
    let shown = cluster.admin_ok(&["volume", "list", "--json"]);
    assert!(shown.contains("demo"), "{shown}");
    cluster.admin_ok(&["volume", "create", "after"]);
    let mounted = cluster.mount_again("after");
    std::fs::write(mounted.point().join("file"), "works").expect("a new volume can be written");
    mounted.unmount();
}

fn any_two_datanodes_may_die_and_come_back(room: &mut Room) {
    let cluster = room.cluster();
    under_load(cluster, 3, |signal, reads| {
        // Every datanode is among the dead once: what was written while the first two were away must be readable
        // without the next two.
        for pair in [[0, 1], [2, 3], [4, 5], [1, 4]] {
            kill_and_let_come_back(cluster, &pair.map(|index| ("datanode", index)), signal, reads);
            // From a mount that has cached nothing.
            let cold = cluster.mount_again("demo");
            (0..OLD_FILES).for_each(|file| check_old_file(&cold.point().join("old-3"), file));
            cold.unmount();
        }
    });
}

fn a_metanode_and_two_datanodes_may_die_at_once(room: &mut Room) {
    let cluster = room.cluster();
    under_load(cluster, 4, |signal, reads| {
        kill_and_let_come_back(cluster, &[("metanode", 2), ("datanode", 0), ("datanode", 5)], signal, reads);
    });
}

/// Without its log it must not serve; brought back by the command, it carries the quorum when another one dies.
fn a_metanode_that_lost_its_log_is_brought_back_and_votes(room: &mut Room) {
    let cluster = room.cluster();
    let directory = cluster.role_directory("metanode", 1);
    under_load(cluster, 6, |signal, reads| {
        std::fs::rename(directory.join("consensus"), directory.join("mislaid")).expect("a log can be mislaid");
        let killed = cluster.kill("metanode", 1);
        wait_for_progress(signal, CALLS_WHILE_DEAD, PROGRESS_LIMIT, || {});
        let said = cluster.admin_ok(&["metanode", "recover", "--json", "--dir", &directory.to_string_lossy()]);
        assert!(said.contains("\"recovered\":true"), "{said}");
        cluster.wait_for_another("metanode", 1, killed, RESTART_LIMIT);
        wait_until_used(cluster, "metanode", 1);
        kill_and_let_come_back(cluster, &[("metanode", 0)], signal, reads);
    });
}

/// A mount is silent for longer than its session lives, with data that it could not flush. That is lost with the session, and the
/// writer's fsync says so once, whoever closed the file meanwhile.
fn a_lost_write_is_reported_to_its_writer_although_a_reader_closed_first(room: &mut Room) {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    /// The table ends a session that was silent for 33 s.
    const SILENCE: Duration = seconds(45);
    let cluster = room.cluster();
    let second = cluster.mount_again("demo");
    let path = second.point().join("reported");
    let bytes = run_of_blocks(7, 0, 256, 1);
    let writer = std::fs::File::create(&path).expect("a file can be made");
    let reader = std::fs::File::open(&path).expect("a file can be opened");
    let pids: Vec<_> = (0..5).filter_map(|index| cluster.pid("datanode", index)).collect();
    assert_eq!(pids.len(), 5);
    pids.iter().for_each(|pid| assert!(processes::signal(*pid, SIGSTOP)));
    std::os::unix::fs::FileExt::write_all_at(&writer, &bytes, 0).expect("a write is taken in");
    assert!(processes::signal(second.pid(), SIGSTOP));
    // The time itself is the case.
    std::thread::sleep(SILENCE);
    assert!(processes::signal(second.pid(), SIGCONT));
    drop(reader);
    let lost = writer.sync_all().expect_err("what was written is lost, and fsync says that all is well");
    assert_eq!(lost.raw_os_error(), Some(libc::EIO), "{lost}");
    writer.sync_all().expect("a loss is told once");
    pids.iter().for_each(|pid| assert!(processes::signal(*pid, SIGCONT)));
    std::os::unix::fs::FileExt::write_all_at(&writer, &bytes, 0).expect("a write is taken in");
    writer.sync_all().expect("what is written anew is kept");
    drop(writer);
    // From a mount that has cached nothing.
    let cold = cluster.mount_again("demo");
    let found = std::fs::read(cold.point().join("reported")).expect("the file can be read");
    assert!(found == bytes, "{} of {} bytes are there", found.len(), bytes.len());
    cold.unmount();
    second.unmount();
}

fn a_mount_that_cannot_flush_ends_in_time_names_the_file_and_fails(room: &mut Room) {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    let cluster = room.cluster();
    let second = cluster.mount_again("demo");
    let mut file = std::fs::File::create(second.point().join("unflushed")).expect("a file can be made");
    let pids: Vec<_> = (0..5).filter_map(|index| cluster.pid("datanode", index)).collect();
    assert_eq!(pids.len(), 5);
    pids.iter().for_each(|pid| assert!(processes::signal(*pid, SIGSTOP)));
    std::io::Write::write_all(&mut file, b"never on a disk").expect("a write is taken in");
    let (status, said) = second.terminate();
    pids.iter().for_each(|pid| assert!(processes::signal(*pid, SIGCONT)));
    let status = status.unwrap_or_else(|| panic!("it did not end in time: {said}"));
    assert!(!status.success() && said.contains("/unflushed"), "{status}: {said}");
}

/// Stopped by a signal, a node accepts connections and answers nothing: the slow way to be dead.
fn nodes_that_hang_without_dying_hold_nobody_up(room: &mut Room) {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    let cluster = room.cluster();
    under_load(cluster, 5, |signal, reads| {
        for hung in
            [[("metanode", 0), ("datanode", 1)], [("metanode", 1), ("datanode", 4)], [("metanode", 2), ("datanode", 5)]]
        {
            let pids =
                hung.map(|(role, index)| cluster.pid(role, index).unwrap_or_else(|| panic!("{role} {index} is dead")));
            pids.iter().for_each(|pid| assert!(processes::signal(*pid, SIGSTOP)));
            let reads_goal = reads.load(Ordering::Relaxed) + CALLS_WHILE_DEAD / 4;
            let stall = wait_for_progress(signal, 1, PROGRESS_LIMIT, || {});
            wait_for_progress(signal, CALLS_WHILE_DEAD, PROGRESS_LIMIT, || {});
            wait::for_state("reads go on", PROGRESS_LIMIT, || reads.load(Ordering::Relaxed) >= reads_goal);
            eprintln!("{hung:?} hung: the first call succeeded after {:.2} s", stall.as_secs_f64());
            pids.iter().for_each(|pid| assert!(processes::signal(*pid, SIGCONT)));
            hung.iter().for_each(|(role, index)| wait_until_used(cluster, role, *index));
        }
    });
}
