//! Time for which a mount stands still when a part of the cluster dies: every role a process of its own, a writer that
//! syncs and a reader at work, `kill -9`, and the longest time in which one of them finished nothing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::figures::{Figure, Outcome, Unit};
use crate::interrupt;
use crate::systems::holdfast::Holdfast;
use crate::workloads::{Aligned, HangWatch, Options, System};

/// Roles that die at the same time, one case after the other.
type Cases = &'static [&'static [(&'static str, u64)]];

/// A figure is the worst of its cases. Each metanode once, because one of them leads.
const STALLS: &[(&str, Cases)] = &[
    ("stall_metanode", &[&[("metanode", 0)], &[("metanode", 1)], &[("metanode", 2)]]),
    ("stall_volmgr", &[&[("volmgr", 0)]]),
    (
        "stall_two_datanodes",
        &[
            &[("datanode", 0), ("datanode", 1)],
            &[("datanode", 2), ("datanode", 3)],
            &[("datanode", 4), ("datanode", 5)],
        ],
    ),
];

/// Every role can be killed by itself.
const SEPARATE: &str = "--separate-processes";
const BLOCK_BYTES: usize = 4096;
/// The file that is read, 4 KiB at scattered places past all caches, so that every read asks a datanode.
const READ_BYTES: usize = 64 << 20;
/// Blocks between two reads: odd, so that every block has its turn.
const READ_STRIDE: usize = 7919;
/// Work before a death, so that all is warm and whole.
const BEFORE: Duration = Duration::from_secs(3);
/// Watched after the dead were started again.
const AFTER: Duration = Duration::from_secs(3);
/// Longest wait for `up` to start the dead again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    STALLS.iter().map(|(name, _)| *name)
}

/// Measures what `options` ask for, on a cluster of its own.
pub(crate) fn run(
    binary: &Path,
    directory: &Path,
    up_arguments: &[String],
    options: &Options,
) -> anyhow::Result<Vec<(String, Outcome)>> {
    let chosen: Vec<_> = STALLS.iter().filter(|(name, _)| options.wants(name)).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let mut arguments = up_arguments.to_vec();
    if !arguments.iter().any(|argument| argument == SEPARATE) {
        arguments.push(SEPARATE.to_owned());
    }
    let holdfast = Holdfast::start(binary, directory, &arguments)?;
    let hangs = HangWatch::start(Duration::from_secs(options.hang_timeout), holdfast.hang_breaker());
    fs::write(holdfast.mount().join("read"), vec![7; READ_BYTES])?;
    let mut figures = Vec::new();
    for (name, cases) in chosen {
        interrupt::check()?;
        let outcome = match worst(&holdfast, cases) {
            Ok(stall) => Outcome::Measured(Figure { value: stall.as_secs_f64(), unit: Unit::Seconds, p99_us: None }),
            Err(error) => Outcome::Failed { error: format!("{error:#}") },
        };
        eprintln!("  holdfast   {name:<24} {}", serde_json::to_string(&outcome)?);
        hangs.progress();
        figures.push(((*name).to_owned(), outcome));
    }
    holdfast.stop()?;
    Ok(figures)
}

fn worst(holdfast: &Holdfast, cases: Cases) -> anyhow::Result<Duration> {
    let mut worst = Duration::ZERO;
    for victims in cases {
        worst = worst.max(stall(holdfast, victims)?);
    }
    Ok(worst)
}

/// The longest gap in either worker's progress, from the deaths until a while after the dead are back.
fn stall(holdfast: &Holdfast, victims: &[(&str, u64)]) -> anyhow::Result<Duration> {
    let mount = holdfast.mount();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&mount.join("written"), &stop));
        let reader = scope.spawn(|| read(&mount.join("read"), &stop));
        let killed = kill_and_wait(holdfast, victims);
        stop.store(true, Ordering::Relaxed);
        let died = killed?;
        let mut longest = Duration::ZERO;
        for worker in [writer, reader] {
            let finished = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
            longest = longest.max(longest_gap(&finished, died));
        }
        Ok(longest)
    })
}

/// Kills roles after a while of calm; returns the time of it.
fn kill_and_wait(holdfast: &Holdfast, victims: &[(&str, u64)]) -> anyhow::Result<Instant> {
    std::thread::sleep(BEFORE);
    let find = |role: &str, index| holdfast.process(role, index).with_context(|| format!("there is no {role} {index}"));
    let pids = victims.iter().map(|(role, index)| find(role, *index)).collect::<anyhow::Result<Vec<u32>>>()?;
    for pid in &pids {
        kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL)?;
    }
    let died = Instant::now();
    for ((role, index), pid) in victims.iter().zip(pids) {
        while holdfast.process(role, *index) == Some(pid) {
            anyhow::ensure!(died.elapsed() < RESTART_TIMEOUT, "{role} {index} did not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    std::thread::sleep(AFTER);
    Ok(died)
}

/// Overwrites and syncs until told to stop; when each round was finished.
fn write(path: &Path, stop: &AtomicBool) -> anyhow::Result<Vec<Instant>> {
    let file = File::create(path)?;
    let bytes = [9; BLOCK_BYTES];
    let mut finished = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        file.write_all_at(&bytes, 0)?;
        file.sync_data()?;
        finished.push(Instant::now());
    }
    Ok(finished)
}

/// Reads scattered blocks until told to stop; when each was there.
fn read(path: &Path, stop: &AtomicBool) -> anyhow::Result<Vec<Instant>> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut block = Aligned::new(BLOCK_BYTES);
    let mut finished = Vec::new();
    for number in (0..READ_BYTES / BLOCK_BYTES).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let place = number * READ_STRIDE % (READ_BYTES / BLOCK_BYTES);
        file.read_exact_at(block.bytes_mut(), (place * BLOCK_BYTES) as u64)?;
        anyhow::ensure!(block.bytes().iter().all(|byte| *byte == 7), "block {place} was read wrongly");
        finished.push(Instant::now());
    }
    Ok(finished)
}

/// The longest time between two moments that ends after `from`.
fn longest_gap(finished: &[Instant], from: Instant) -> Duration {
    let gaps = finished.windows(2).filter(|pair| pair[1] > from);
    gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gaps_that_end_after_the_death_count() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let finished = [at(0), at(500), at(510), at(700), at(710)];
        assert_eq!(longest_gap(&finished, at(505)), Duration::from_millis(190));
        assert_eq!(longest_gap(&finished, at(400)), Duration::from_millis(500));
        assert_eq!(longest_gap(&[], at(0)), Duration::ZERO);
    }
}
