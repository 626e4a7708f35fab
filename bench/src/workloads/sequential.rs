//! Large files, 1 MiB at a time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Aligned, Bench, at_once, megabytes_per_s, timed};
use crate::figures::Figure;

/// Bytes of one read or write.
const BLOCK_BYTES: usize = 1 << 20;
/// Files at once.
const JOBS: usize = 4;

pub(super) fn write(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let (path, blocks) = (bench.path("big"), bench.options.size_mb);
    let block = Aligned::new(BLOCK_BYTES);
    Ok(megabytes_per_s(blocks, timed(|| write_file(&path, blocks, &block))?))
}

pub(super) fn read_cold(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_large_file(bench)?;
    bench.make_cold()?;
    read_once(bench, 0)
}

pub(super) fn read_warm(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_large_file(bench)?;
    read_once(bench, 0)?;
    read_once(bench, 0)
}

pub(super) fn read_direct(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_large_file(bench)?;
    read_once(bench, libc::O_DIRECT)
}

pub(super) fn write_four(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let blocks = bench.options.size_mb / JOBS;
    let block = Aligned::new(BLOCK_BYTES);
    let paths: Vec<_> = (0..JOBS).map(|job| bench.path(&format!("job{job}"))).collect();
    let time = timed(|| at_once(JOBS, |job| write_file(&paths[job], blocks, &block)))?;
    Ok(megabytes_per_s(blocks * JOBS, time))
}

pub(super) fn read_four_cold(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let blocks = bench.options.size_mb / JOBS;
    if !bench.path("job0").exists() {
        write_four(bench)?;
    }
    let paths: Vec<_> = (0..JOBS).map(|job| bench.path(&format!("job{job}"))).collect();
    bench.make_cold()?;
    let time = timed(|| at_once(JOBS, |job| read_file(&paths[job], blocks, 0)))?;
    Ok(megabytes_per_s(blocks * JOBS, time))
}

/// The file that the reads and the random workloads use.
pub(super) fn require_large_file(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    if !bench.path("big").exists() {
        write(bench)?;
    }
    Ok(())
}

fn read_once(bench: &Bench<'_>, flags: i32) -> anyhow::Result<Figure> {
    let (path, blocks) = (bench.path("big"), bench.options.size_mb);
    Ok(megabytes_per_s(blocks, timed(|| read_file(&path, blocks, flags))?))
}

fn write_file(path: &Path, blocks: usize, block: &Aligned) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..blocks {
        file.write_all(block.bytes())?;
    }
    file.sync_all()?;
    Ok(())
}

fn read_file(path: &Path, blocks: usize, flags: i32) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut block = Aligned::new(BLOCK_BYTES);
    let mut bytes = 0;
    loop {
        match file.read(block.bytes_mut())? {
            0 => break,
            read => bytes += read,
        }
    }
    anyhow::ensure!(bytes == blocks * BLOCK_BYTES, "read {bytes} bytes of {blocks} MiB");
    Ok(())
}
