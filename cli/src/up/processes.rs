//! Every role of a cluster in a process of its own: started, watched, started again when it dies, stopped.
//!
//! The children are in process groups of their own, so that Ctrl-C on the terminal reaches only `up`, and the kernel
//! kills them when `up` dies, however it dies. That promise is tied to the *thread* that made them: one thread, which
//! lives as long as the process, makes them all.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use holdfast_common::Pauses;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::absent::log_changes;
use super::members::{Absent, Event, RoleInfo, Started, format_if_new, role_configs};
use super::plan::Plan;
use super::progress::Progress;
use crate::roles::{Lost, RoleConfig};
use crate::wakefulness;

/// Pause before a role that died is started again; doubled while it does not come up.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest a role may take to stop by itself; then it is killed, which it survives.
const STOP_DEADLINE: Duration = Duration::from_secs(6);
/// Events that wait to be told.
const EVENTS_MAX: usize = 256;

type Spawned = std::io::Result<Child>;

/// Roles that run as processes of their own.
pub(crate) struct Processes {
    run: PathBuf,
    spawner: Spawner,
    /// True: everybody is to stop. The nodes first, then the volume manager.
    stop_nodes: watch::Sender<bool>,
    stop_volmgr: watch::Sender<bool>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    nodes: JoinSet<()>,
    volmgr: JoinSet<()>,
}

/// The first line of a role on its standard output.
#[derive(Deserialize)]
#[serde(untagged)]
enum FirstLine {
    Ready { address: String, pid: u32 },
    Lost { lost: String },
}

impl Processes {
    /// `run` is where the process ids are noted.
    pub(crate) fn new(run: PathBuf) -> Result<Self> {
        Ok(Self {
            spawner: Spawner::start(run.clone())?,
            run,
            stop_nodes: watch::Sender::new(false),
            stop_volmgr: watch::Sender::new(false),
            events: mpsc::channel(EVENTS_MAX),
            nodes: JoinSet::new(),
            volmgr: JoinSet::new(),
        })
    }

    /// Starts one role and watches over it from then on.
    pub(crate) async fn start(&mut self, config: RoleConfig, index: u32) -> Result<RoleInfo> {
        let running = Running::start(&self.spawner, &config, index).await?;
        let info = running.info.clone();
        self.watch_over(config, running);
        Ok(info)
    }

    /// Formats what is new and starts all nodes at once.
    pub(crate) async fn start_nodes(&mut self, plan: &Plan, volmgr: &str, progress: &Progress) -> Result<Started> {
        let mut starting = JoinSet::new();
        for (index, config) in role_configs(plan, volmgr) {
            let spawner = self.spawner.clone();
            starting.spawn(async move {
                format_if_new(&config).await?;
                match Running::start(&spawner, &config, index).await {
                    Err(error) if error.is::<Lost>() => Ok((index, config, Err(error.to_string()))),
                    started => anyhow::Ok((index, config, Ok(started?))),
                }
            });
        }
        let count = starting.len();
        let mut nodes = Started::default();
        while let Some(started) = starting.join_next().await {
            match started.context("a node's start was interrupted")?? {
                (_, config, Ok(running)) => {
                    nodes.roles.push(running.info.clone());
                    self.watch_over(config, running);
                }
                (index, config, Err(reason)) => {
                    let role = RoleInfo::absent(&config, index);
                    nodes.absent.push(Absent { role: role.clone(), reason });
                    let watcher = self.watcher(config);
                    self.nodes.spawn(watcher.run_when_back(role, self.stop_nodes.subscribe()));
                }
            }
            progress.say(format!("starting nodes, {} of {count}", nodes.count()));
        }
        nodes.sort();
        Ok(nodes)
    }

    fn watcher(&self, config: RoleConfig) -> Watcher {
        Watcher { spawner: self.spawner.clone(), config, events: self.events.0.clone() }
    }

    fn watch_over(&mut self, config: RoleConfig, running: Running) {
        let watcher = self.watcher(config);
        if matches!(watcher.config, RoleConfig::Volmgr { .. }) {
            self.volmgr.spawn(watcher.run(running, self.stop_volmgr.subscribe()));
        } else {
            self.nodes.spawn(watcher.run(running, self.stop_nodes.subscribe()));
        }
    }

    pub(crate) async fn next_event(&mut self) -> Event {
        match self.events.1.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Stops the nodes, then the volume manager.
    pub(crate) async fn stop(mut self) {
        self.stop_nodes.send_replace(true);
        while self.nodes.join_next().await.is_some() {}
        self.stop_volmgr.send_replace(true);
        while self.volmgr.join_next().await.is_some() {}
        // Notes of a crash stay and are overwritten by the next start.
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// A child that said that it is ready.
struct Running {
    info: RoleInfo,
    child: Child,
    /// Kept, so that the child may go on writing.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Running {
    async fn start(spawner: &Spawner, config: &RoleConfig, index: u32) -> Result<Self> {
        let name = config.kind().title(index);
        let mut child =
            spawner.spawn(command_of(config)?).await.with_context(|| format!("{name} cannot be started"))?;
        let output = child.stdout.take().ok_or_else(|| anyhow!("{name} has no output"))?;
        let mut output = BufReader::new(output).lines();
        let Some(line) = output.next_line().await.with_context(|| format!("{name} cannot be read from"))? else {
            let status = child.wait().await?;
            // Its own sentence is on standard error.
            bail!("{name} did not start: it {}", how_it_ended(status));
        };
        let first: FirstLine = serde_json::from_str(&line).with_context(|| format!("{name} says '{line}'"))?;
        let (address, pid) = match first {
            FirstLine::Ready { address, pid } => (address, pid),
            FirstLine::Lost { lost } => {
                child.wait().await?;
                return Err(Lost(lost).into());
            }
        };
        let info = RoleInfo::new(config, index, address, pid);
        note_pid(&spawner.run, &info).with_context(|| format!("cannot write below {}", spawner.run.display()))?;
        Ok(Self { info, child, _output: output })
    }

    /// Asks it to stop, and kills it if it does not.
    async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_DEADLINE, self.child.wait()).await.is_err() {
            tracing::warn!(role = self.info.kind.name(), index = self.info.index, "did not stop in time and is killed");
            let _ = self.child.kill().await;
        }
    }
}

/// A reader of the file sees the old id or the new one, never half of it.
fn note_pid(run: &Path, info: &RoleInfo) -> std::io::Result<()> {
    std::fs::create_dir_all(run)?;
    let name = format!("{}-{}", info.kind.name(), info.index);
    let temporary = run.join(format!("{name}.new"));
    std::fs::write(&temporary, format!("{}\n", info.pid))?;
    std::fs::rename(&temporary, run.join(format!("{name}.pid")))
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

/// This binary again, as the role.
fn command_of(config: &RoleConfig) -> Result<std::process::Command> {
    // The file itself, so that a binary that was replaced meanwhile is not mixed into a running cluster.
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("holdfast").arg(config.kind().name()).arg("serve").arg("--json").arg("--dir").arg(config.dir());
    wakefulness::hand_down(&mut command);
    match config {
        RoleConfig::Volmgr { listen, .. } => {
            command.arg("--listen").arg(listen.to_string());
        }
        RoleConfig::Metanode { listen, volmgr, .. } => {
            command.arg("--listen").arg(listen.to_string()).arg("--volmgr").arg(volmgr);
        }
        RoleConfig::Datanode { listen, volmgr, disks, .. } => {
            command.arg("--listen").arg(listen.to_string()).arg("--volmgr").arg(volmgr);
            for disk in disks {
                command.arg("--disk").arg(disk);
            }
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let parent = Pid::this();
    // SAFETY: between fork and exec only prctl and getppid run, both async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if Pid::parent() == parent { Ok(()) } else { Err(std::io::ErrorKind::NotConnected.into()) }
        });
    }
    Ok(command)
}

/// The task that keeps one role running.
struct Watcher {
    spawner: Spawner,
    config: RoleConfig,
    events: mpsc::Sender<Event>,
}

impl Watcher {
    async fn run(self, mut running: Running, mut stop: watch::Receiver<bool>) {
        loop {
            let ended = tokio::select! {
                status = running.child.wait() => status,
                () = told(&mut stop) => return running.stop().await,
            };
            let how = ended.map_or_else(|error| error.to_string(), how_it_ended);
            let role = running.info.clone();
            // Nobody may be left to hear it.
            let _ = self.events.send(Event::Died { role: role.clone(), how }).await;
            running = tokio::select! {
                again = self.restart(&role, false) => again,
                () = told(&mut stop) => return,
            };
        }
    }

    /// As [`Self::run`], for a metanode that lost its log.
    async fn run_when_back(self, role: RoleInfo, mut stop: watch::Receiver<bool>) {
        let running = tokio::select! {
            running = self.restart(&role, true) => running,
            () = told(&mut stop) => return,
        };
        self.run(running, stop).await;
    }

    /// Starts the role again where it listened before, so that nobody has to learn a new address. A metanode that lost its log is
    /// tried again when something about the log has changed.
    async fn restart(&self, role: &RoleInfo, mut is_lost: bool) -> Running {
        let mut pauses = Pauses::new(RESTART_PAUSE, RESTART_PAUSE_MAX);
        let mut pause = pauses.next_pause();
        loop {
            match is_lost {
                true => log_changes(self.config.dir()).await,
                false => tokio::time::sleep(pause).await,
            }
            let config = listening_at(&self.config, &role.address);
            match Running::start(&self.spawner, &config, role.index).await {
                Ok(running) => {
                    let _ = self.events.send(Event::Restarted { role: running.info.clone() }).await;
                    return running;
                }
                Err(error) => {
                    is_lost = error.is::<Lost>();
                    let reason = format!("{error:#}");
                    let _ = self.events.send(Event::NotRestarted { role: role.clone(), reason }).await;
                    pause = pauses.next_pause();
                }
            }
        }
    }
}

/// Waits until everybody is told to stop, or nobody is left to tell.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn listening_at(config: &RoleConfig, address: &str) -> RoleConfig {
    let mut config = config.clone();
    if let Ok(address) = address.parse() {
        match &mut config {
            RoleConfig::Volmgr { listen, .. }
            | RoleConfig::Metanode { listen, .. }
            | RoleConfig::Datanode { listen, .. } => *listen = address,
        }
    }
    config
}

/// The thread that makes children.
#[derive(Clone)]
struct Spawner {
    run: PathBuf,
    requests: std_mpsc::Sender<(std::process::Command, oneshot::Sender<Spawned>)>,
}

impl Spawner {
    fn start(run: PathBuf) -> Result<Self> {
        let (requests, inbox) = std_mpsc::channel::<(std::process::Command, oneshot::Sender<Spawned>)>();
        let runtime = tokio::runtime::Handle::current();
        let serve = move || {
            let _entered = runtime.enter();
            for (command, answer) in inbox {
                let spawned = tokio::process::Command::from(command).kill_on_drop(true).spawn();
                // A start that was given up: the child is killed as it is dropped.
                let _ = answer.send(spawned);
            }
            // The children must not lose this thread before the process ends.
            loop {
                std::thread::park();
            }
        };
        std::thread::Builder::new().name("holdfast-spawner".into()).spawn(serve).context("cannot start a thread")?;
        Ok(Self { run, requests })
    }

    async fn spawn(&self, command: std::process::Command) -> Spawned {
        let (answer, spawned) = oneshot::channel();
        let gone = || std::io::Error::other("the thread that makes processes is gone");
        self.requests.send((command, answer)).map_err(|_| gone())?;
        spawned.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_role_says_where_it_is_or_that_its_log_is_lost() {
        let ready = r#"{"address":"127.0.0.1:1","pid":7,"ready":true,"role":"metanode"}"#;
        assert!(matches!(serde_json::from_str(ready).unwrap(), FirstLine::Ready { pid: 7, .. }));
        let lost = r#"{"lost":"there is no log","ready":false,"role":"metanode"}"#;
        assert!(matches!(serde_json::from_str(lost).unwrap(), FirstLine::Lost { lost } if lost == "there is no log"));
    }
}
