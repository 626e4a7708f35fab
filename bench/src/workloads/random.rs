//! Pages of 4 KiB at random places of the large file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use holdfast_common::Random;

use super::sequential::require_large_file;
use super::{Aligned, Bench, at_once};
use crate::figures::{Figure, Unit};

const PAGE_BYTES: usize = 4096;
/// Writes between two looks at the clock where the clock would be a cost.
const BATCH: usize = 64;

pub(super) fn read_direct(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    read(bench, 1)
}

pub(super) fn read_direct_eight(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    read(bench, 8)
}

fn read(bench: &mut Bench<'_>, jobs: usize) -> anyhow::Result<Figure> {
    require_large_file(bench)?;
    bench.make_cold()?;
    let path = bench.path("big");
    let (pages, time) = (pages(bench), Duration::from_secs_f64(bench.options.runtime));
    let all = Mutex::new(Vec::new());
    let began = Instant::now();
    at_once(jobs, |job| {
        let file = open(&path, libc::O_DIRECT)?;
        let mut page = Aligned::new(PAGE_BYTES);
        let mut noise = Random::new(job as u64);
        let latencies = repeat(time, || {
            file.read_exact_at(page.bytes_mut(), noise.below(pages) * PAGE_BYTES as u64)?;
            Ok(())
        })?;
        if let Ok(mut all) = all.lock() {
            all.extend(latencies);
        }
        Ok(())
    })?;
    let elapsed = began.elapsed();
    Ok(figure(all.into_inner().unwrap_or_default(), elapsed))
}

pub(super) fn write_direct(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    write(bench, libc::O_DIRECT, |_| Ok(()))
}

pub(super) fn write_fsync(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    write(bench, 0, |file| Ok(file.sync_all()?))
}

fn write(bench: &mut Bench<'_>, flags: i32, after: fn(&File) -> anyhow::Result<()>) -> anyhow::Result<Figure> {
    require_large_file(bench)?;
    let pages = pages(bench);
    let file = open(&bench.path("big"), flags)?;
    let page = Aligned::new(PAGE_BYTES);
    let mut noise = Random::new(11);
    let began = Instant::now();
    let latencies = repeat(Duration::from_secs_f64(bench.options.runtime), || {
        file.write_all_at(page.bytes(), noise.below(pages) * PAGE_BYTES as u64)?;
        after(&file)
    })?;
    let elapsed = began.elapsed();
    Ok(figure(latencies, elapsed))
}

/// Through the page cache, the last fsync counted.
pub(super) fn write_buffered(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_large_file(bench)?;
    let (pages, time) = (pages(bench), Duration::from_secs_f64(bench.options.runtime));
    let file = open(&bench.path("big"), 0)?;
    let page = Aligned::new(PAGE_BYTES);
    let mut noise = Random::new(7);
    let (began, mut writes) = (Instant::now(), 0);
    while began.elapsed() < time {
        for _ in 0..BATCH {
            file.write_all_at(page.bytes(), noise.below(pages) * PAGE_BYTES as u64)?;
        }
        writes += BATCH;
    }
    file.sync_all()?;
    Ok(super::operations_per_s(writes, began.elapsed()))
}

fn pages(bench: &Bench<'_>) -> u64 {
    bench.options.size_mb as u64 * ((1 << 20) / PAGE_BYTES as u64)
}

fn open(path: &Path, flags: i32) -> anyhow::Result<File> {
    Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?)
}

/// Repeats an operation for a time; how long each took, in us.
fn repeat(time: Duration, mut operation: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    let began = Instant::now();
    let mut last = began;
    while last - began < time {
        operation()?;
        let now = Instant::now();
        latencies.push((now - last).as_secs_f64() * 1e6);
        last = now;
    }
    Ok(latencies)
}

fn figure(mut latencies: Vec<f64>, elapsed: Duration) -> Figure {
    latencies.sort_unstable_by(f64::total_cmp);
    let p99_us = latencies.get(latencies.len() * 99 / 100).copied();
    let value = latencies.len() as f64 / elapsed.as_secs_f64();
    Figure { value, unit: Unit::OperationsPerSecond, p99_us }
}
