//! Many small files and directories.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Aligned, Bench, at_once, operations_per_s, timed};
use crate::figures::Figure;

const FILE_BYTES: usize = 4096;
/// Threads of the parallel workloads, each in a directory of its own.
const JOBS: usize = 8;
/// The directory of the workloads with one thread.
const ONE: &str = "one";

pub(super) fn create_one(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let (directory, count) = (bench.fresh_directory(ONE)?, bench.options.files);
    Ok(operations_per_s(count, timed(|| create(&directory, count, false))?))
}

pub(super) fn create_fsync(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let (directory, count) = (bench.fresh_directory("synced")?, bench.options.files / 10);
    Ok(operations_per_s(count, timed(|| create(&directory, count, true))?))
}

pub(super) fn stat_one(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    one(bench, true, stat)
}

pub(super) fn read_one(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    one(bench, true, read)
}

pub(super) fn unlink_one(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    one(bench, false, unlink)
}

/// `ls -lR` of everything, attributes and all.
pub(super) fn list(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_one(bench)?;
    bench.make_cold()?;
    let mut ls = Command::new("ls");
    ls.arg("-lR").arg(&bench.root).stdout(Stdio::null());
    let time = timed(|| {
        anyhow::ensure!(ls.status()?.success(), "ls failed");
        Ok(())
    })?;
    Ok(operations_per_s(bench.options.files, time))
}

pub(super) fn create_eight(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    for job in 0..JOBS {
        bench.fresh_directory(&format!("job{job}"))?;
    }
    let count = bench.options.files / JOBS;
    let time = eight(bench, |directory, count| create(directory, count, false))?;
    Ok(operations_per_s(count * JOBS, time))
}

pub(super) fn read_eight(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    eight_existing(bench, true, read)
}

pub(super) fn stat_eight(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    eight_existing(bench, true, stat)
}

pub(super) fn unlink_eight(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    eight_existing(bench, false, unlink)
}

pub(super) fn make_directories(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let (parent, count) = (bench.fresh_directory("directories")?, bench.options.files / 2);
    let time = timed(|| {
        for index in 0..count {
            fs::create_dir(parent.join(format!("d{index}")))?;
        }
        Ok(())
    })?;
    Ok(operations_per_s(count, time))
}

pub(super) fn rename_directories(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    // Made anew, because a run before this one may have renamed them.
    make_directories(bench)?;
    let (parent, count) = (bench.path("directories"), bench.options.files / 2);
    let time = timed(|| {
        for index in 0..count {
            fs::rename(parent.join(format!("d{index}")), parent.join(format!("e{index}")))?;
        }
        Ok(())
    })?;
    Ok(operations_per_s(count, time))
}

type Work = fn(&Path, usize) -> anyhow::Result<()>;

fn one(bench: &mut Bench<'_>, cold: bool, work: Work) -> anyhow::Result<Figure> {
    require_one(bench)?;
    if cold {
        bench.make_cold()?;
    }
    let (directory, count) = (bench.path(ONE), bench.options.files);
    Ok(operations_per_s(count, timed(|| work(&directory, count))?))
}

fn require_one(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    if !name(&bench.path(ONE), 0).exists() {
        create_one(bench)?;
    }
    Ok(())
}

fn eight_existing(bench: &mut Bench<'_>, cold: bool, work: Work) -> anyhow::Result<Figure> {
    if !name(&bench.path("job0"), 0).exists() {
        create_eight(bench)?;
    }
    if cold {
        bench.make_cold()?;
    }
    let time = eight(bench, work)?;
    Ok(operations_per_s(bench.options.files / JOBS * JOBS, time))
}

fn eight(bench: &Bench<'_>, work: Work) -> anyhow::Result<Duration> {
    let count = bench.options.files / JOBS;
    let directories: Vec<_> = (0..JOBS).map(|job| bench.path(&format!("job{job}"))).collect();
    timed(|| at_once(JOBS, |job| work(&directories[job], count)))
}

fn name(directory: &Path, index: usize) -> PathBuf {
    directory.join(format!("f{index}"))
}

fn create(directory: &Path, count: usize, sync: bool) -> anyhow::Result<()> {
    let content = Aligned::new(FILE_BYTES);
    for index in 0..count {
        let mut file = OpenOptions::new().write(true).create_new(true).open(name(directory, index))?;
        file.write_all(content.bytes())?;
        if sync {
            file.sync_all()?;
        }
    }
    Ok(())
}

fn stat(directory: &Path, count: usize) -> anyhow::Result<()> {
    for index in 0..count {
        let length = fs::metadata(name(directory, index))?.len();
        anyhow::ensure!(length == FILE_BYTES as u64, "file {index} has {length} bytes");
    }
    Ok(())
}

fn read(directory: &Path, count: usize) -> anyhow::Result<()> {
    let expected = Aligned::new(FILE_BYTES);
    let mut content = [0; FILE_BYTES * 2];
    for index in 0..count {
        let length = fs::File::open(name(directory, index))?.read(&mut content)?;
        anyhow::ensure!(&content[..length] == expected.bytes(), "file {index} has another content");
    }
    Ok(())
}

fn unlink(directory: &Path, count: usize) -> anyhow::Result<()> {
    for index in 0..count {
        fs::remove_file(name(directory, index))?;
    }
    Ok(())
}
