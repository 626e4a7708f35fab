//! Processes and mounts that keep a mount busy. Nothing here touches the mount itself, and the look is over after a
//! while whatever happens: a process that hangs can make reading its `/proc/PID/maps` hang.

use super::mountinfo::{self, MountEntry};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

/// Longest search: a process may hang in a way that hangs its observers.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// Most holders named.
const HOLDERS_MAX: usize = 16;

/// A process or mount that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process of the PID namespace of this one.
    Process {
        /// As `kill` takes it.
        pid: u32,
        /// Name of its program, cut by the kernel to 15 bytes.
        command: String,
        /// The first use that was found; it may have others.
        holding: Holding,
    },
    /// Another file system mounted below.
    Mount {
        /// Mount point of the other one.
        point: PathBuf,
    },
}

/// A process's use of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Its working directory is this one.
    WorkingDirectory(PathBuf),
    /// Its root directory.
    RootDirectory,
    /// It runs a program from there.
    Program(PathBuf),
    /// It has this file open.
    OpenFile(PathBuf),
    /// A mapping of a file that it may have closed.
    Mapping,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command, holding } => match holding {
                Holding::WorkingDirectory(path) => write!(f, "{command} ({pid}) works in {}", path.display()),
                Holding::RootDirectory => write!(f, "{command} ({pid}) has its root directory there"),
                Holding::Program(path) => write!(f, "{command} ({pid}) runs {}", path.display()),
                Holding::OpenFile(path) => write!(f, "{command} ({pid}) has {} open", path.display()),
                Holding::Mapping => write!(f, "{command} ({pid}) has mapped a file of it"),
            },
            Self::Mount { point } => write!(f, "another file system is mounted at {}", point.display()),
        }
    }
}

/// Finds the holders of `mount` as far as the time allows; one line for each process.
pub(super) fn of(mount: &MountEntry) -> Vec<Holder> {
    let (sender, found) = mpsc::channel();
    let mount = mount.clone();
    let thread = std::thread::Builder::new().name("holdfast-holders".into());
    if thread.spawn(move || look(&mount, &sender)).is_err() {
        return Vec::new();
    }
    let end = Instant::now() + LOOK_LIMIT;
    let mut holders = Vec::new();
    // The sender is dropped when the look is over.
    while holders.len() < HOLDERS_MAX {
        let Ok(holder) = found.recv_timeout(end.saturating_duration_since(Instant::now())) else { break };
        holders.push(holder);
    }
    holders
}

fn look(mount: &MountEntry, found: &Sender<Holder>) {
    for below in mountinfo::read().unwrap_or_default().into_iter().filter(|other| other.parent == mount.id) {
        let _ = found.send(Holder::Mount { point: below.point });
    }
    let mut unclear = Vec::new();
    for pid in processes() {
        match links(pid, mount) {
            Some(holding) => {
                let _ = found.send(process(pid, holding));
            }
            None => unclear.push(pid),
        }
    }
    // Last, because this is what can hang.
    for pid in unclear.into_iter().filter(|pid| maps(*pid, mount)) {
        let _ = found.send(process(pid, Holding::Mapping));
    }
}

fn process(pid: u32, holding: Holding) -> Holder {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder::Process { pid, command: command.trim_end().to_owned(), holding }
}

fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The use that a process's links show. readlink(2) there answers from the kernel's own memory.
fn links(pid: u32, mount: &MountEntry) -> Option<Holding> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let target = |link: &str| fs::read_link(proc.join(link)).ok().filter(|path| path.starts_with(&mount.point));
    if let Some(path) = target("cwd") {
        return Some(Holding::WorkingDirectory(path));
    }
    if target("root").is_some() {
        return Some(Holding::RootDirectory);
    }
    if let Some(path) = target("exe") {
        return Some(Holding::Program(path));
    }
    let files = fs::read_dir(proc.join("fdinfo")).ok()?;
    files.filter_map(|entry| Some(entry.ok()?.file_name())).find_map(|number| {
        let info = fs::read_to_string(proc.join("fdinfo").join(&number)).ok()?;
        (mount_id(&info)? == mount.id).then(|| {
            let path = fs::read_link(proc.join("fd").join(&number)).unwrap_or_default();
            Holding::OpenFile(path)
        })
    })
}

/// Of `/proc/PID/fdinfo/N`: the mount through which the file was opened, which a path does not tell for sure.
fn mount_id(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

fn maps(pid: u32, mount: &MountEntry) -> bool {
    let list = fs::read(Path::new("/proc").join(pid.to_string()).join("maps")).unwrap_or_default();
    maps_device(&list, &format!("{:02x}:{:02x}", mount.device.major, mount.device.minor))
}

/// Whether `/proc/PID/maps` has a mapping of a file of this device: `7f00-7f01 r--p 00000000 00:34 99 /path`.
fn maps_device(list: &[u8], device: &str) -> bool {
    list.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        fields.nth(3) == Some(device.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_known_by_its_device() {
        let list = b"55d0-55d1 r--p 00000000 fe:00 12 /usr/bin/x\n7f00-7f01 rw-s 00000000 00:34 99 /mnt/demo/db\n";
        assert!(maps_device(list, "00:34"));
        assert!(!maps_device(list, "00:35"));
        assert!(!maps_device(b"", "00:34"));
    }

    #[test]
    fn the_mount_of_an_open_file_is_read_from_its_fdinfo() {
        assert_eq!(mount_id("pos:\t0\nflags:\t02\nmnt_id:\t27\nino:\t5\n"), Some(27));
        assert_eq!(mount_id("pos:\t0\n"), None);
    }

    #[test]
    fn a_holder_is_named_in_a_sentence() {
        let holder =
            Holder::Process { pid: 7, command: "bash".into(), holding: Holding::WorkingDirectory("/mnt/x".into()) };
        assert_eq!(holder.to_string(), "bash (7) works in /mnt/x");
        assert_eq!(Holder::Mount { point: "/mnt/x".into() }.to_string(), "another file system is mounted at /mnt/x");
    }
}
