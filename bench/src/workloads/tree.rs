//! A real tree from an archive.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::{Bench, seconds, timed};
use crate::figures::Figure;

pub(super) fn unpack(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    let tar = bench.options.tar.as_ref().context("no archive was given")?;
    let directory = bench.fresh_directory("tree")?;
    let mut command = Command::new("tar");
    command.arg("xf").arg(tar).arg("-C").arg(&directory);
    let time = timed(|| {
        anyhow::ensure!(command.status().context("cannot run tar")?.success(), "tar failed");
        nix::unistd::sync();
        Ok(())
    })?;
    Ok(seconds(time))
}

pub(super) fn read_cold(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_tree(bench)?;
    bench.make_cold()?;
    let directory = bench.path("tree");
    Ok(seconds(timed(|| read_all(&directory))?))
}

pub(super) fn remove(bench: &mut Bench<'_>) -> anyhow::Result<Figure> {
    require_tree(bench)?;
    let directory = bench.path("tree");
    Ok(seconds(timed(|| Ok(fs::remove_dir_all(&directory)?))?))
}

fn require_tree(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    if !bench.path("tree").exists() {
        unpack(bench)?;
    }
    Ok(())
}

/// Every file below a directory, in the order the directories give them.
fn read_all(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_all(&entry.path())?;
        } else if kind.is_file() {
            std::io::copy(&mut fs::File::open(entry.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}
