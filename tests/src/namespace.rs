//! A mount namespace of the room's own: whatever is mounted here is seen by nobody else, and is gone when the last process
//! of the room is. And the way out of a hung FUSE mount: aborting its connection through the kernel's control files, after
//! which every request waiting in it fails.
//!
//! Nothing here touches a mounted path itself (no stat, no open): that is what would hang.

use crate::variables;
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/sys/fs/fuse/connections";

/// Moves this process into a mount namespace of its own. Must run before any thread is started: a namespace is a
/// thread's.
///
/// # Errors
/// When not root, or when a sandbox forbids it.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot enter a mount namespace; the end-to-end tests run as root")?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("cannot make the mounts private")?;
    if !mounts().iter().any(|m| m.kind == "fusectl" && m.point == Path::new(CONTROL)) {
        mount(Some("none"), CONTROL, Some("fusectl"), MsFlags::empty(), nothing)
            .context("cannot mount the FUSE control files, without which a hung mount could not be aborted")?;
    }
    let_go_of_inherited();
    Ok(())
}

/// The namespace begins with copies of everybody's FUSE mounts, and a copy keeps its file system alive: somebody's
/// `umount` outside would not end it before this room ends. What the room itself was told to work on stays.
fn let_go_of_inherited() {
    let told = [variables::DIRECTORY, variables::PLAIN_DIRECTORY];
    let mut needed: Vec<PathBuf> = told.iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    needed.extend(std::env::current_exe());
    for line in fuse_mounts_below(Path::new("/")).iter().rev() {
        if !needed.iter().any(|path| path.starts_with(&line.point)) {
            detach(&line.point);
        }
    }
}

/// One line of the kernel's table of mounts.
#[derive(Clone, Debug)]
pub struct MountLine {
    /// Minor number of its device: the name of its FUSE connection.
    pub minor: u32,
    /// Where.
    pub point: PathBuf,
    /// `fuse.holdfast`, say.
    pub kind: String,
    /// Options of the mount point.
    pub options: String,
}

/// What is mounted in this namespace.
#[must_use]
pub fn mounts() -> Vec<MountLine> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(parse).collect()
}

/// `36 35 0:45 / /mnt/x rw,relatime shared:1 - fuse.holdfast demo rw,user_id=0`
fn parse(line: &str) -> Option<MountLine> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let minor = fields.nth(2)?.split_once(':')?.1.parse().ok()?;
    let point = PathBuf::from(fields.nth(1)?);
    let options = fields.next()?.to_owned();
    Some(MountLine { minor, point, kind: right.split(' ').next()?.to_owned(), options })
}

/// The FUSE mounts at or below a directory, the innermost last.
#[must_use]
pub fn fuse_mounts_below(directory: &Path) -> Vec<MountLine> {
    mounts()
        .into_iter()
        .filter(|m| m.kind.starts_with("fuse") && m.kind != "fusectl" && m.point.starts_with(directory))
        .collect()
}

/// Whether something is mounted exactly here.
#[must_use]
pub fn is_mounted(point: &Path) -> bool {
    mounts().iter().any(|m| m.point == point)
}

/// Aborts a FUSE connection: all its requests fail, now and from now on. One that is gone is as good.
///
/// The control files show the connections of the whole machine, and the number of one that is gone is given to the next
/// mount of anybody: so only a number that the table of mounts gives for one of ours *now*, which that mount holds.
fn abort(minor: u32) {
    if let Err(error) = std::fs::write(format!("{CONTROL}/{minor}/abort"), "1")
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("harness: cannot abort FUSE connection {minor}: {error}");
    }
}

/// Aborts and lazily unmounts everything of FUSE at or below a directory.
pub fn abort_and_detach_below(directory: &Path) {
    let ours = fuse_mounts_below(directory);
    ours.iter().for_each(|line| abort(line.minor));
    ours.iter().rev().for_each(|line| detach(&line.point));
}

/// Lazily unmounts one mount point, as deep as mounts are stacked there.
pub fn detach(point: &Path) {
    while is_mounted(point) {
        if let Err(error) = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            eprintln!("harness: cannot unmount {}: {error}", point.display());
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let line = "36 35 0:45 / /mnt/x rw,relatime shared:1 master:2 - fuse.holdfast demo rw,user_id=0";
        let parsed = parse(line).unwrap();
        assert_eq!((parsed.minor, parsed.point.as_path()), (45, Path::new("/mnt/x")));
        assert_eq!((parsed.kind.as_str(), parsed.options.as_str()), ("fuse.holdfast", "rw,relatime"));
        assert!(parse("nonsense").is_none());
    }
}
