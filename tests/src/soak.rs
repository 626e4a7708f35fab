//! The soak: a mixed load on a cluster of separate processes while members, metanodes, the volume manager and clients are
//! killed at random; then everything is read, deleted, and looked for on the disks. `cargo xtask soak` runs it.
//!
//! Everything that starts a process of the cluster runs on the calling thread: such processes die with the thread that
//! started them.

mod deck;
mod loads;
mod memory;
mod panics;
mod shards;
mod victim;

use crate::cluster::{Cluster, STOP_LIMIT};
use crate::processes;
use crate::wait::{self, seconds};
use deck::{Death, Deck};
use loads::LOADS;
use memory::Memory;
use shards::Disk;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use victim::Victim;

/// A killed role is started again after a second; a busy machine gets more.
const RESTART_LIMIT: Duration = seconds(60);
/// Longest that loads may take to end when they are told to: a program's own limit and a verification.
const END_LIMIT: Duration = seconds(300);
/// Longest wait for deleted data to be gone: the floor follows two request deadlines behind (120 s), noted every 10 s and raised once
/// a minute; then every disk is compared, one that did not answer after a pause of up to a minute; and room.
const SETTLE_LIMIT: Duration = seconds(300);
/// Files of segments that a disk of an empty volume may keep: one open of each kind, and two spare ones.
const SEGMENTS_KEPT: usize = 4;
/// Shorter runs say nothing of memory: caches still fill.
const MEMORY_JUDGED_FROM: Duration = Duration::from_secs(600);
const DATANODES: u64 = 6;
/// Measurements of a whole run.
const SAMPLES: u32 = 600;

/// Subject of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A wrong byte, an error, a hang of a load.
    Broken,
    /// Shards on the disks after everything was deleted.
    ShardsLeft,
    /// Segment files beyond open and spare ones.
    SegmentsLeft,
    /// Memory that was not flat over the second half.
    Memory,
}

/// Findings that are known, each with its reason; an entry goes when its fault is mended.
pub const KNOWN: &[(Kind, &str)] = &[];

/// Something that should not be.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its subject.
    pub kind: Kind,
    /// One line that says it, with the numbers.
    pub text: String,
}

impl Finding {
    /// Why it is known to fail, if it is.
    #[must_use]
    pub fn known(&self) -> Option<&'static str> {
        KNOWN.iter().find(|(kind, _)| *kind == self.kind).map(|(_, why)| *why)
    }
}

/// Length, seed, and place of the results.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time under load.
    pub duration: Duration,
    /// Decides what dies when.
    pub seed: u64,
    /// Gets `report.txt`, `memory.tsv` and `memory.svg`.
    pub directory: PathBuf,
}

/// Runs a soak.
///
/// # Panics
/// If the cluster cannot be started, or the results cannot be written.
#[must_use]
pub fn run(options: &Options) -> Vec<Finding> {
    let mut cluster = Cluster::start(&[]);
    let mut soak =
        Soak { memory: Memory::default(), deaths: BTreeMap::new(), findings: Vec::new(), text: String::new() };
    let started = Instant::now();
    let _ = writeln!(soak.text, "soak of {} s, seed {}", options.duration.as_secs(), options.seed);
    soak.under_load(&cluster, options);
    soak.delete_everything(&cluster);
    soak.settle(&cluster);
    if let Err(said) = panics::caught(|| cluster.stop()) {
        soak.add(Kind::Broken, format!("the cluster did not stop well: {said}"));
    }
    let _ = writeln!(soak.text, "killed: {:?}; {:.0} s in all\n", soak.deaths, started.elapsed().as_secs_f64());
    if options.duration >= MEMORY_JUDGED_FROM {
        soak.memory.growing().into_iter().for_each(|text| soak.findings.push(Finding { kind: Kind::Memory, text }));
    }
    soak.publish(&options.directory);
    soak.findings
}

struct Soak {
    memory: Memory,
    deaths: BTreeMap<&'static str, u32>,
    findings: Vec<Finding>,
    text: String,
}

impl Soak {
    fn add(&mut self, kind: Kind, text: String) {
        eprintln!("finding: {text}");
        self.findings.push(Finding { kind, text });
    }

    /// The loads in threads, and deaths on this one.
    fn under_load(&mut self, cluster: &Cluster, options: &Options) {
        let top = cluster.mount().join("soak");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = LOADS
                .iter()
                .map(|(name, load)| {
                    let (directory, stop) = (top.join(name), &stop);
                    fs::create_dir_all(&directory).expect("a directory can be made on the volume");
                    (*name, scope.spawn(move || panics::caught(|| load(&directory, options.seed, stop))))
                })
                .collect();
            // Without `stop` the scope would never end.
            if let Err(said) = panics::caught(|| self.kill_until_the_end(cluster, options)) {
                self.add(Kind::Broken, said);
            }
            stop.store(true, Ordering::Relaxed);
            let ended = || threads.iter().all(|(_, thread)| thread.is_finished()).then_some(());
            if wait::until(END_LIMIT, ended).is_none() {
                self.add(Kind::Broken, format!("a load did not end within {} s", END_LIMIT.as_secs()));
                crate::diagnose::print_stuck_threads();
                crate::namespace::abort_and_detach_below(cluster.root());
            }
            for (name, thread) in threads {
                match thread.join().expect("panics of a load are caught") {
                    Ok(rounds) => drop(writeln!(self.text, "{name}: {rounds} rounds or calls")),
                    Err(said) => self.add(Kind::Broken, format!("{name}: {said}")),
                }
            }
        });
    }

    fn kill_until_the_end(&mut self, cluster: &Cluster, options: &Options) {
        let (started, mut deck) = (Instant::now(), Deck::new(options.seed));
        let place = || PathBuf::from("soak/client");
        let mut victim = Some(Victim::start(cluster, place(), options.seed));
        let interval = (options.duration / SAMPLES).max(seconds(1));
        let (mut next_sample, mut next_death) = (started, started + seconds(5));
        while started.elapsed() < options.duration {
            let now = Instant::now();
            if now >= next_sample {
                self.sample(cluster, victim.as_ref(), started.elapsed());
                next_sample = now + interval;
            }
            if now >= next_death {
                victim = self.kill(cluster, deck.deal(), victim);
                next_death = Instant::now() + Duration::from_millis(deck.pause_ms());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        match victim.map(Victim::end) {
            Some(Ok(calls)) => drop(writeln!(self.text, "killed clients: {calls} calls")),
            Some(Err(said)) => self.add(Kind::Broken, format!("client: {said}")),
            None => {}
        }
    }

    fn sample(&mut self, cluster: &Cluster, victim: Option<&Victim>, at: Duration) {
        let roles = cluster.ready().processes.iter().filter(|process| process.role != "mount");
        let mut pids: Vec<(String, u32)> =
            roles.filter_map(|p| Some((format!("{}-{}", p.role, p.index), cluster.pid(&p.role, p.index)?))).collect();
        // The mount of `up` is in its own process.
        pids.push(("up-and-mount".to_owned(), cluster.up_pid()));
        pids.extend(victim.map(|victim| ("client".to_owned(), victim.pid())));
        for (name, pid) in pids {
            if let Some((bytes, _)) = processes::resident_bytes(pid) {
                self.memory.add(&name, at, bytes);
            }
        }
    }

    /// Kills, and waits until what died runs again; so no more is dead at once than may be.
    fn kill(&mut self, cluster: &Cluster, death: Death, victim: Option<Victim>) -> Option<Victim> {
        eprintln!("kill: {death:?}");
        let roles: &[(&str, u64)] = match death {
            Death::Datanode(index) => &[("datanode", index)],
            Death::TwoDatanodes(one, two) => &[("datanode", one), ("datanode", two)],
            Death::Metanode(index) => &[("metanode", index)],
            Death::VolumeManager => &[("volmgr", 0)],
            Death::Client => &[],
        };
        let killed: Vec<_> = roles.iter().map(|(role, index)| cluster.kill(role, *index)).collect();
        for ((role, index), pid) in roles.iter().zip(killed) {
            *self.deaths.entry(role).or_default() += 1;
            let again = panics::caught(|| cluster.wait_for_another(role, *index, pid, RESTART_LIMIT));
            again.unwrap_or_else(|said| self.add(Kind::Broken, said));
        }
        match (death, victim) {
            (Death::Client, Some(victim)) => {
                *self.deaths.entry("client").or_default() += 1;
                victim.kill(cluster).map_err(|said| self.add(Kind::Broken, format!("client: {said}"))).ok()
            }
            (_, victim) => victim,
        }
    }

    fn delete_everything(&mut self, cluster: &Cluster) {
        let top = cluster.mount().join("soak");
        let removed = panics::caught(|| crate::Run::new("rm").arg("-r").arg(&top).limit(END_LIMIT).ok());
        if let Err(said) = removed {
            self.add(Kind::Broken, format!("not everything could be deleted: {said}"));
        }
    }

    /// Waits until nothing is left, and reports what is.
    fn settle(&mut self, cluster: &Cluster) {
        let read = || -> Vec<Disk> {
            let disk = |index| Disk::read(&cluster.role_directory("datanode", index).join("disk"));
            (0..DATANODES).map(|index| disk(index).expect("a disk can be read")).collect()
        };
        let started = Instant::now();
        let mut disks = read();
        while started.elapsed() < SETTLE_LIMIT && !disks.iter().all(is_empty) {
            std::thread::sleep(STOP_LIMIT / 10);
            disks = read();
        }
        let shards: Vec<usize> = disks.iter().map(Disk::live_shards).collect();
        let segments: Vec<usize> = disks.iter().map(|disk| disk.segments.len()).collect();
        let chunks: BTreeSet<_> = disks.iter().flat_map(Disk::live_chunks).collect();
        let waited = started.elapsed().as_secs();
        let _ = writeln!(self.text, "after {waited} s: live shards {shards:?}, segment files {segments:?} by disk");
        if disks.iter().all(is_empty) {
            let _ = writeln!(self.text, "what was deleted or orphaned was gone from all disks after {waited} s");
        }
        if !chunks.is_empty() {
            let text = format!(
                "{} live shards of {} chunks left by disk: {shards:?}",
                shards.iter().sum::<usize>(),
                chunks.len()
            );
            self.add(Kind::ShardsLeft, text);
        }
        if segments.iter().any(|count| *count > SEGMENTS_KEPT) {
            self.add(Kind::SegmentsLeft, format!("segment files by disk: {segments:?}, more than {SEGMENTS_KEPT}"));
            for disk in disks.iter().filter(|disk| disk.segments.len() > SEGMENTS_KEPT) {
                let _ = writeln!(self.text, "segment files with their records: {:?}", disk.segments);
            }
        }
    }

    fn publish(&mut self, directory: &Path) {
        self.text.push_str(&self.memory.table());
        for finding in &self.findings {
            let known = finding.known().map_or(String::new(), |why| format!(" (known: {why})"));
            let _ = writeln!(self.text, "finding{known}: {}", finding.text);
        }
        fs::create_dir_all(directory).expect("the directory of the results can be made");
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("results can be written");
        write("report.txt", &self.text);
        write("memory.tsv", &self.memory.values());
        write("memory.svg", &self.memory.svg());
        println!("{}", self.text);
    }
}

fn is_empty(disk: &Disk) -> bool {
    disk.live_shards() == 0 && disk.segments.len() <= SEGMENTS_KEPT
}
