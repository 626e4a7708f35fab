//! The room's processes. Everything that a room starts carries a tag in its environment, and so does everything that
//! these start in turn; so all of them are found again, whatever their parents and process groups have become. The
//! room never ends a process without its tag.

use crate::variables;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Age below which a process without an environment may still get one.
const YOUNG: Duration = Duration::from_secs(5);

/// A process, by its number.
pub type ProcessId = u32;

/// This room's tag.
#[must_use]
pub fn room_tag() -> String {
    format!("{}={}", variables::ROOM, std::process::id())
}

/// The living processes whose environment has this `NAME=value`.
#[must_use]
pub fn tagged(tag: &str) -> Vec<ProcessId> {
    let own = std::process::id();
    all().into_iter().filter(|pid| *pid != own && has_variable(*pid, tag)).collect()
}

fn has_variable(pid: ProcessId, tag: &str) -> bool {
    let environment = environment(pid);
    environment.split(|byte| *byte == 0).any(|variable| variable == tag.as_bytes())
}

/// The environment, once a young process has one. The kernel lets the parent go on while it still lays out the new program,
/// and until that is done the file is empty: without the wait nearly every process just started would be overlooked.
fn environment(pid: ProcessId) -> Vec<u8> {
    let settled = || {
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        (!bytes.is_empty() || !is_young(pid)).then_some(bytes)
    };
    crate::wait::until(2 * YOUNG, settled).unwrap_or_default()
}

/// Whether it lives, and was started a moment ago.
fn is_young(pid: ProcessId) -> bool {
    let age = || {
        let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
        let now_s: f64 = uptime.split(' ').next()?.parse().ok()?;
        // The 22nd field, in hundredths of a second since the boot.
        let started: f64 =
            stat_from_state(&Path::new("/proc").join(pid.to_string()))?.split(' ').nth(19)?.parse().ok()?;
        Some(now_s - started / 100.0)
    };
    is_alive(pid) && age().is_some_and(|age_s| age_s < YOUNG.as_secs_f64())
}

fn all() -> Vec<ProcessId> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Sends a signal; `false` if the process is gone.
///
/// # Panics
/// If the signal may not be sent: the room is root.
#[track_caller]
pub fn signal(pid: ProcessId, signal: Signal) -> bool {
    match kill(number(pid), signal) {
        Ok(()) => true,
        Err(Errno::ESRCH) => false,
        Err(error) => panic!("cannot signal {pid}: {error}"),
    }
}

fn number(pid: ProcessId) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("process ids are below 2^22"))
}

/// Whether it runs: neither gone nor waiting to be reaped.
#[must_use]
pub fn is_alive(pid: ProcessId) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// The state letter of `/proc/PID/stat`.
#[must_use]
pub fn state(pid: ProcessId) -> Option<char> {
    stat_from_state(&Path::new("/proc").join(pid.to_string()))?.chars().next()
}

/// Fields 3 and following of a process's or thread's `stat`: the state first. The name before them may hold anything.
fn stat_from_state(task: &Path) -> Option<String> {
    let line = std::fs::read_to_string(task.join("stat")).ok()?;
    Some(line.rsplit_once(')')?.1.trim_start().to_owned())
}

/// The executable's short name.
#[must_use]
pub fn name(pid: ProcessId) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The command line, arguments separated by spaces.
#[must_use]
pub fn command_line(pid: ProcessId) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// Resident memory, now and at its peak so far, in bytes.
#[must_use]
pub fn resident_bytes(pid: ProcessId) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// Threads that wait in the kernel without being interruptible, with their kernel stacks.
#[must_use]
pub fn stuck_threads() -> Vec<String> {
    let mut stuck = Vec::new();
    for pid in all() {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten().map(|entry| entry.path()) {
            if let Some(report) = stuck_thread(pid, &task) {
                stuck.push(report);
            }
        }
    }
    stuck
}

fn stuck_thread(pid: ProcessId, task: &Path) -> Option<String> {
    let state = stat_from_state(task)?.chars().next()?;
    let stack = std::fs::read_to_string(task.join("stack")).unwrap_or_default();
    // A thread waiting for FUSE may be in an interruptible sleep too; one that serves FUSE waits there by trade.
    let waits_for_fuse = stack.contains("fuse_") && !stack.contains("fuse_dev_do_read");
    (state == 'D' || waits_for_fuse).then(|| format!("{pid} {} state {state}\n{stack}", name(pid)))
}

/// Kills these at once, the first ones first, and waits until they are gone; those that would not die.
pub fn kill_all(pids: &[ProcessId], limit: Duration) -> Vec<ProcessId> {
    for pid in pids {
        signal(*pid, Signal::SIGKILL);
    }
    let gone = || pids.iter().all(|pid| !is_alive(*pid)).then_some(());
    if crate::wait::until(limit, gone).is_some() {
        return Vec::new();
    }
    pids.iter().copied().filter(|pid| is_alive(*pid)).collect()
}

/// Files that a process has open, as links say.
#[must_use]
pub fn open_files(pid: ProcessId) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tagged_process_is_found_and_killed_and_its_children_too() {
        let (name, value) = (variables::PART, format!("unit-{}", std::process::id()));
        let mut child =
            std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).env(name, &value).spawn().unwrap();
        let tag = format!("{name}={value}");
        let both = crate::wait::until(Duration::from_secs(10), || Some(tagged(&tag)).filter(|pids| pids.len() == 2));
        assert_eq!(kill_all(&both.unwrap(), Duration::from_secs(10)), Vec::<ProcessId>::new());
        assert!(tagged(&tag).is_empty());
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_found_from_its_first_moment() {
        let (name, value) = (variables::PART, format!("young-{}", std::process::id()));
        for _ in 0..20 {
            // As `sleep` is started by nobody but its parent, nothing but its own first moment is between.
            let mut child = std::process::Command::new("sleep").arg("60").env(name, &value).spawn().unwrap();
            let found = tagged(&format!("{name}={value}"));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(found, [child.id()]);
        }
    }

    #[test]
    fn the_memory_of_this_process_is_known() {
        let (now, peak) = resident_bytes(std::process::id()).unwrap();
        assert!(now > 0 && peak >= now);
    }
}
