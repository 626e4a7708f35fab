//! A fresh Holdfast cluster: `holdfast up` in a directory of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::{MOUNT_TIMEOUT, WorkDirectory, is_mounted, unmount, wait_for};
use crate::workloads::System;

/// Longest wait for `up` to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a stop after a signal; `up` promises 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);

/// A running cluster. Dropped, it is stopped, by force if need be.
pub(crate) struct Holdfast {
    binary: PathBuf,
    ready: Ready,
    processes: Processes,
    up: Child,
    /// The client of the last remount; before the first, `up` itself is the client.
    client: Option<Child>,
    /// Process groups that the hang breaker ends: those of `up` and of the current client.
    groups: Arc<Mutex<Vec<Pid>>>,
    log: PathBuf,
    // Last, so that it is removed when all else is gone.
    work: WorkDirectory,
}

/// The line that `up --json` prints.
#[derive(Debug, Deserialize)]
struct Ready {
    volmgr: String,
    volume: String,
    mount: PathBuf,
    #[serde(default)]
    processes: Vec<Process>,
}

/// A role of its own process, in that line and in one that says it was started again.
#[derive(Debug, Deserialize)]
struct Process {
    role: String,
    index: u64,
    pid: u32,
}

/// The newest process of each role and index.
type Processes = Arc<Mutex<HashMap<(String, u64), u32>>>;

impl Holdfast {
    /// Starts a cluster below `parent` and mounts it.
    pub(crate) fn start(binary: &Path, parent: &Path, up_arguments: &[String]) -> anyhow::Result<Self> {
        let binary = std::fs::canonicalize(binary).with_context(|| format!("no binary {}", binary.display()))?;
        let work = WorkDirectory::new(parent, "holdfast")?;
        let (data, mount) = (work.path().join("data"), work.subdirectory("mount")?);
        let log = work.path().join("log");
        let mut command = Command::new(&binary);
        command.arg("up").arg("--json").arg("--listen").arg("127.0.0.1:0");
        command.arg("--dir").arg(data).arg("--mount").arg(&mount).args(up_arguments);
        let mut up = spawn(command, &log, Stdio::piped())?;
        let processes = Processes::default();
        let ready = match wait_until_ready(&mut up, &processes) {
            Ok(ready) => ready,
            Err(error) => {
                stop(&mut up);
                if is_mounted(&mount) {
                    detach(&mount);
                }
                return Err(error.context(tail(&log)));
            }
        };
        let groups = Arc::new(Mutex::new(vec![pid(&up)?]));
        Ok(Self { binary, ready, processes, up, client: None, groups, log, work })
    }

    pub(crate) fn mount(&self) -> &Path {
        &self.ready.mount
    }

    /// The process of a role as of `up`'s last word; none if all roles share one process.
    pub(crate) fn process(&self, role: &str, index: u64) -> Option<u32> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.get(&(role.to_owned(), index)).copied()
    }

    /// Stops it in the orderly way and says if that did not work.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        if self.client.is_some() {
            self.unmount_client()?;
        }
        killpg(pid(&self.up)?, Signal::SIGINT)?;
        let up = &mut self.up;
        wait_for("stopping holdfast", STOP_TIMEOUT, || Ok(up.try_wait()?.is_some()))
            .with_context(|| tail(&self.log))?;
        let status = self.up.wait()?;
        anyhow::ensure!(status.success(), "holdfast up ended with {status}; {}", tail(&self.log));
        Ok(())
    }

    /// Unmounts, and waits for the client's process to have flushed and gone.
    fn unmount_client(&mut self) -> anyhow::Result<()> {
        unmount(&self.ready.mount)?;
        if let Some(mut client) = self.client.take() {
            let ended = wait_for("stopping the client", STOP_TIMEOUT, || Ok(client.try_wait()?.is_some()));
            // Its number may become another process's.
            *self.groups.lock().unwrap_or_else(PoisonError::into_inner) = vec![pid(&self.up)?];
            if ended.is_err() {
                stop(&mut client);
            }
            ended.with_context(|| tail(&self.log))?;
        }
        Ok(())
    }
}

impl System for Holdfast {
    fn name(&self) -> &str {
        "holdfast"
    }

    fn cold_by(&self) -> &'static str {
        "remount, kernel caches dropped"
    }

    fn hang_breaker(&self) -> Box<dyn Fn() + Send> {
        let groups = Arc::clone(&self.groups);
        Box::new(move || {
            for group in groups.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let _ = killpg(*group, Signal::SIGKILL);
            }
        })
    }

    fn forget(&mut self) -> anyhow::Result<()> {
        self.unmount_client()?;
        let mut command = Command::new(&self.binary);
        command.arg("mount").arg(format!("{}/{}", self.ready.volmgr, self.ready.volume));
        command.arg(&self.ready.mount).arg("--foreground");
        let client = self.client.insert(spawn(command, &self.log, Stdio::null())?);
        let groups = vec![pid(&self.up)?, pid(client)?];
        *self.groups.lock().unwrap_or_else(PoisonError::into_inner) = groups;
        wait_for("mounting again", MOUNT_TIMEOUT, || {
            if let Some(status) = client.try_wait()? {
                anyhow::bail!("holdfast mount ended with {status}");
            }
            Ok(is_mounted(&self.ready.mount))
        })
        .with_context(|| tail(&self.log))
    }
}

impl Drop for Holdfast {
    fn drop(&mut self) {
        if let Some(client) = &mut self.client {
            stop(client);
        }
        stop(&mut self.up);
        if is_mounted(&self.ready.mount) {
            detach(&self.ready.mount);
        }
        let _ = &self.work;
    }
}

/// Starts a process in a group of its own that ends with this one.
fn spawn(mut command: Command, log: &Path, stdout: Stdio) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(log).process_group(0);
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
    command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))
}

fn wait_until_ready(up: &mut Child, processes: &Processes) -> anyhow::Result<Ready> {
    let stdout = up.stdout.take().context("stdout is piped")?;
    let (sender, ready) = mpsc::channel();
    let processes = Arc::clone(processes);
    let note = move |started: &Process| {
        let mut processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.insert((started.role.clone(), started.index), started.pid);
    };
    // Reads on after the first line: roles are started again, and `up` must never wait for a full pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(ready) = serde_json::from_str::<Ready>(&line) {
                ready.processes.iter().for_each(&note);
                let _ = sender.send(ready);
            } else if let Ok(started) = serde_json::from_str::<Process>(&line) {
                note(&started);
            }
        }
    });
    ready.recv_timeout(START_TIMEOUT).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => anyhow::anyhow!("holdfast up was not ready within {START_TIMEOUT:?}"),
        mpsc::RecvTimeoutError::Disconnected => anyhow::anyhow!("holdfast up ended before it was ready"),
    })
}

fn pid(child: &Child) -> anyhow::Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Ends a process and its group, whatever they do.
fn stop(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    if let Ok(group) = pid(child) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn detach(mount: &Path) {
    if let Err(error) = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH) {
        eprintln!("cannot detach {}: {error}", mount.display());
    }
}

/// The end of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(20).collect();
    match lines.is_empty() {
        true => "its log is empty".to_owned(),
        false => format!("its log ends with:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n")),
    }
}
