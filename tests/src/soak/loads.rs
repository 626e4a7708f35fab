//! Loads of the mount that nobody kills: fio with its own checksums, a database that syncs each transaction, copies and
//! removals of a tree, and the crew of writers that know what they were promised. No call of these may fail.

use crate::manifest::Manifest;
use crate::wait::{self, seconds};
use crate::workload::Crew;
use crate::{Run, tree};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest that one program may take: stalls while something dies are part of it, hangs are not.
const PROGRAM_LIMIT: Duration = seconds(240);
/// How long a crew works; some 100 MB.
const SHIFT: Duration = seconds(40);
/// Longest that the crew may take to stop.
const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// One load: works below a directory until told to stop, and panics with what went wrong; the rounds it did.
pub(super) type Load = fn(&Path, u64, &AtomicBool) -> u64;

/// All of them, by the names of their directories.
pub(super) const LOADS: [(&str, Load); 4] =
    [("fio", fio), ("database", database), ("trees", trees), ("steady", steady)];

fn rounds(stop: &AtomicBool, mut round: impl FnMut(u64)) -> u64 {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        round(done);
        done += 1;
    }
    done
}

fn fio(directory: &Path, _seed: u64, stop: &AtomicBool) -> u64 {
    const JOBS: [&str; 4] = [
        "--rw=randwrite --bs=4k --size=4M --ioengine=psync --fsync=16",
        "--rw=write --bs=1M --size=48M --ioengine=psync --end_fsync=1",
        "--rw=randwrite --bs=16k --size=16M --ioengine=libaio --iodepth=8 --direct=1",
        "--rw=randwrite --bs=8k --size=8M --ioengine=mmap",
    ];
    rounds(stop, |round| {
        let job = JOBS[usize::try_from(round).expect("rounds are few") % JOBS.len()];
        for more in ["", "--verify_only=1"] {
            let common =
                ["--name=job", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fallocate=none"];
            let run = Run::new("fio").args(common).arg(format!("--directory={}", directory.display()));
            run.args(job.split(' ').chain(more.split_whitespace())).limit(PROGRAM_LIMIT).ok();
        }
        for entry in fs::read_dir(directory).expect("fio's directory can be listed").flatten() {
            fs::remove_file(entry.path()).expect("fio's file can be removed");
        }
    })
}

fn database(directory: &Path, _seed: u64, stop: &AtomicBool) -> u64 {
    const TRANSACTIONS: u64 = 10;
    let database = directory.join("soak.db");
    let sqlite = |script: &str| Run::new("sqlite3").arg("-bail").arg(&database).arg(script).limit(PROGRAM_LIMIT).ok();
    sqlite("PRAGMA journal_mode=DELETE; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);");
    let insert = "INSERT INTO t(v) VALUES(randomblob(700));".repeat(usize::try_from(TRANSACTIONS).expect("few"));
    let done = rounds(stop, |round| {
        // Every statement is a transaction of its own, synced.
        let said = sqlite(&format!("PRAGMA synchronous=FULL; {insert} SELECT count(*) FROM t;"));
        assert_eq!(said.trim(), ((round + 1) * TRANSACTIONS).to_string(), "rows of acknowledged transactions");
    });
    assert_eq!(sqlite("PRAGMA integrity_check;").trim(), "ok");
    done
}

fn trees(directory: &Path, seed: u64, stop: &AtomicBool) -> u64 {
    let local = tempfile::tempdir().expect("the temporary directory can be written");
    let source = local.path().join("source");
    fs::create_dir(&source).expect("a directory can be made");
    tree::grow(&source, 150, seed);
    let expected = Manifest::of(&source);
    rounds(stop, |_| {
        let copy = directory.join("copy");
        Run::new("cp").arg("-a").arg(&source).arg(&copy).limit(PROGRAM_LIMIT).ok();
        expected.assert_same(&Manifest::of(&copy), "the copy differs");
        Run::new("rm").arg("-r").arg(&copy).limit(PROGRAM_LIMIT).ok();
    })
}

/// Crews in shifts: what one has made is looked at and removed before the next one comes, so that the volume does not grow.
fn steady(directory: &Path, seed: u64, stop: &AtomicBool) -> u64 {
    let mut calls = 0;
    rounds(stop, |shift| {
        let mut crew = Crew::of_shift(0, shift, seed);
        let begun = Instant::now();
        let (done, ends) = crew.work(directory, |signal| {
            // A writer that ended before it was told met an error.
            let at_work = signal.at_work();
            let is_over = || stop.load(Ordering::Relaxed) || begun.elapsed() > SHIFT || signal.at_work() < at_work;
            wait::until(FOREVER, || is_over().then_some(()));
            signal.progress()
        });
        for (writer, end) in ends {
            assert!(end.is_ok(), "the {writer} got an error: {end:?}");
        }
        crew.verify(directory);
        Run::new("find").arg(directory).args(["-mindepth", "1", "-delete"]).limit(PROGRAM_LIMIT).ok();
        calls += done;
    });
    calls
}
