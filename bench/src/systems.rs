//! The systems under test, and what it takes to start them and to leave nothing of them behind.

pub(crate) mod gluster;
pub(crate) mod holdfast;
pub(crate) mod mounted;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Longest wait for a mount to appear or to become free.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at a state that is waited for.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// A directory of one run; removed when dropped.
pub(crate) struct WorkDirectory(PathBuf);

impl WorkDirectory {
    /// A fresh directory below `parent`.
    pub(crate) fn new(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let path = parent.join(format!("holdfast-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(parent)?;
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(fs::canonicalize(path)?))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn subdirectory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        // A mount left inside would have its content removed with the directory.
        if let Some(mount) = mounts_below(&self.0).first() {
            eprintln!("{} is still mounted; {} stays", mount.display(), self.0.display());
        } else if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(path)).collect()
}

fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|point| point == path)
}

/// Waits until something holds.
fn wait_for(what: &str, timeout: Duration, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds()? {
        anyhow::ensure!(began.elapsed() < timeout, "{what}: not within {} s", timeout.as_secs());
        std::thread::sleep(POLL_PAUSE);
    }
    Ok(())
}

/// Unmounts; waits for users of the mount to go.
fn unmount(path: &Path) -> anyhow::Result<()> {
    let mut last = None;
    wait_for("unmounting", MOUNT_TIMEOUT, || match nix::mount::umount(path) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EBUSY) => {
            last = Some(nix::errno::Errno::EBUSY);
            Ok(false)
        }
        Err(error) => Err(error.into()),
    })
    .with_context(|| format!("cannot unmount {}{}", path.display(), last.map_or("", |_| " (busy)")))
}

/// Runs a command to its end; its output is part of the error.
fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{program} {} failed: {}{}",
        arguments.join(" "),
        text.trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(text)
}
