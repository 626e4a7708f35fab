//! A cluster under test: `holdfast up` with every role as a process of its own, in a directory of its own, on ports that
//! the kernel chose. The guard ends and removes all of it, whatever state it is in.

mod mounted;
mod ready;

pub use mounted::Mounted;
pub use ready::{Process, Ready};

use crate::command::{Ended, Run, holdfast_binary, tagged_command, wait_or_kill};
use crate::forgetful::{self, power};
use crate::namespace::{self, is_mounted};
use crate::processes::{self, ProcessId};
use crate::variables;
use crate::wait::{self, seconds};
use nix::sys::signal::Signal;
use ready::{parse_process, parse_ready};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a start may take on a machine that builds at the same time; `lifecycle.rs` asserts the promised 30 s.
const START_LIMIT: Duration = Duration::from_secs(90);
/// What the end of killed processes may take.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// Promised: an asked-for stop ends within 20 s.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);

static NEXT_PART: AtomicU64 = AtomicU64::new(1);

/// The room's directory, on a real disk: datanodes write with `O_DIRECT`. `HOLDFAST_TEST_DIR`, or the temporary directory.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn room_directory() -> PathBuf {
    let base = std::env::var_os(variables::DIRECTORY).map_or_else(std::env::temp_dir, PathBuf::from);
    let root = base.join(format!("holdfast-test-{}", std::process::id()));
    std::fs::create_dir_all(&root).expect("the test directory can be made");
    root.canonicalize().expect("a directory just made has a path")
}

/// Removes a directory, unless something is still mounted below it: a removal must never reach into a volume.
pub fn remove_directory(root: &Path) {
    let mounted: Vec<_> = namespace::mounts().into_iter().filter(|m| m.point.starts_with(root)).collect();
    if let Some(line) = mounted.first() {
        eprintln!("harness: {} is still mounted; {} stays", line.point.display(), root.display());
        return;
    }
    if std::env::var_os(variables::KEEP).is_some() {
        eprintln!("harness: {} stays", root.display());
        return;
    }
    if let Err(error) = std::fs::remove_dir_all(root)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("harness: cannot remove {}: {error}", root.display());
    }
}

/// A running (or, between [`Cluster::stop`] and [`Cluster::up`], stopped) cluster.
pub struct Cluster {
    root: PathBuf,
    data: PathBuf,
    separate: bool,
    json: bool,
    forgetful: bool,
    part: String,
    arguments: Vec<OsString>,
    up: Option<Child>,
    ready: Option<Ready>,
}

impl Cluster {
    /// Makes and starts a cluster with these arguments of `up` besides the usual ones.
    ///
    /// # Panics
    /// If it is not ready in time; with what it said.
    #[track_caller]
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let mut cluster = Self::prepare(arguments);
        cluster.up();
        cluster
    }

    /// A cluster that is not started yet.
    ///
    /// # Panics
    /// If its directory cannot be made.
    #[must_use]
    pub fn prepare(arguments: &[&str]) -> Self {
        let part = format!("{}.{}", std::process::id(), NEXT_PART.fetch_add(1, Ordering::Relaxed));
        let root = room_directory().join(format!("cluster-{part}"));
        std::fs::create_dir_all(&root).expect("the cluster's directory can be made");
        let arguments = arguments.iter().map(OsString::from).collect();
        let data = root.join("data");
        Self { root, data, separate: true, json: true, forgetful: false, part, arguments, up: None, ready: None }
    }

    /// Another place for the data than below [`Self::root`].
    pub fn set_data(&mut self, data: &Path) {
        data.clone_into(&mut self.data);
    }

    /// All roles in the one process of `up`, as a user's first cluster runs.
    pub fn set_one_process(&mut self) {
        self.separate = false;
    }

    /// It speaks to people: nothing is known of its processes but that it is ready.
    pub fn set_human(&mut self) {
        self.json = false;
    }

    /// Its processes' disks forget what no sync covered when [`Self::fail_power`] is called.
    pub fn set_forgetful(&mut self) {
        self.forgetful = true;
    }

    fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// The directory that holds everything of this cluster.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is given as `--dir`.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// Where a role keeps its files.
    ///
    /// # Panics
    /// If there is no such role.
    #[must_use]
    pub fn role_directory(&self, role: &str, index: u64) -> PathBuf {
        match role {
            "volmgr" => self.data.join("volmgr"),
            "metanode" => self.data.join(format!("meta-{}", index + 1)),
            "datanode" => self.data.join(format!("data-{}", index + 1)),
            other => panic!("{other} has no directory"),
        }
    }

    /// Where the volume is mounted.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// What the running `up` said when it was ready.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("the cluster is up")
    }

    /// The process of `up` itself.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn up_pid(&self) -> ProcessId {
        self.up.as_ref().expect("the cluster is up").id()
    }

    /// What `up` has said: to its standard error since the cluster was made, and to its standard output since its last
    /// start.
    #[must_use]
    pub fn said(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        read(self.root.join("up.err")) + &read(self.out())
    }

    /// The command of `up`, with more arguments; nothing is started.
    #[must_use]
    pub fn up_command(&self) -> Command {
        let mut command = tagged_command(holdfast_binary(), &self.part);
        command.arg("up").arg("--dir").arg(self.data()).arg("--mount").arg(self.mount());
        command.args(["--listen", "127.0.0.1:0"]).args(&self.arguments);
        if self.json {
            command.arg("--json");
        }
        if self.separate {
            command.arg("--separate-processes");
        }
        if self.forgetful {
            command.env("LD_PRELOAD", forgetful::library());
            command.env(forgetful::ROOT_VARIABLE, self.data()).env(forgetful::JOURNAL_VARIABLE, self.journal());
        }
        command
    }

    /// Starts `up` and waits for nothing.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn spawn(&self) -> Child {
        let stdout = File::create(self.out()).expect("the cluster's directory can be written");
        let stderr = OpenOptions::new().create(true).append(true).open(self.root.join("up.err"));
        if self.forgetful {
            std::fs::create_dir_all(self.journal()).expect("the cluster's directory can be written");
        }
        let mut command = self.up_command();
        command.stdout(stdout).stderr(stderr.expect("the cluster's directory can be written"));
        die_with_parent(&mut command);
        command.spawn().expect("holdfast can be started")
    }

    fn out(&self) -> PathBuf {
        self.root.join("up.out")
    }

    /// Starts it, again if it ran before, and waits until it is ready.
    ///
    /// # Panics
    /// If it is not ready in time; with what it said.
    #[track_caller]
    pub fn up(&mut self) {
        if let Err(status) = self.try_up() {
            panic!("up ended before it was ready: {status}\n{}", self.said());
        }
    }

    /// The same, for a start that may be refused: how `up` ended, if it ended instead of being ready.
    ///
    /// # Errors
    /// The end of `up`.
    ///
    /// # Panics
    /// If it is neither ready nor ended in time; with what it said.
    #[track_caller]
    pub fn try_up(&mut self) -> Result<(), ExitStatus> {
        assert!(self.up.is_none(), "the cluster is up already");
        let (mut child, out) = (self.spawn(), self.out());
        let found = wait::until(START_LIMIT, || {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            let ready = text.lines().find_map(parse_ready);
            let ended = child.try_wait().ok().flatten();
            (ready.is_some() || ended.is_some()).then_some((ready, ended))
        });
        match found {
            Some((Some(ready), _)) => self.ready = Some(ready),
            Some((None, Some(ended))) => return Err(ended),
            Some((None, None)) | None => {
                self.up = Some(child);
                panic!("up was not ready within {} s\n{}", START_LIMIT.as_secs(), self.said());
            }
        }
        self.up = Some(child);
        let mount = self.mount();
        assert!(is_mounted(&mount), "up says it is ready, but nothing is mounted at {}", mount.display());
        Ok(())
    }

    /// Stops it as Ctrl-C does, and demands that it ends well within the promised time and leaves no mount.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn stop(&mut self) {
        processes::signal(self.up_pid(), Signal::SIGINT);
        let status = self.wait_for_end(STOP_LIMIT);
        assert!(status.is_some_and(|s| s.success()), "up ended with {status:?} after SIGINT\n{}", self.said());
        assert!(!is_mounted(&self.mount()), "up ended and left its mount behind");
        wait::for_state("every role has ended", seconds(5), || processes::tagged(&self.tag()).is_empty());
        if self.forgetful {
            // Nothing fails any more that this run wrote.
            std::fs::remove_dir_all(self.journal()).expect("the journal can be removed");
        }
    }

    /// Waits for the end of `up`; `None` if it does not come (it is then killed).
    ///
    /// # Panics
    /// If it is not running.
    pub fn wait_for_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut child = self.up.take().expect("the cluster is up");
        self.ready = None;
        wait_or_kill(&mut child, limit)
    }

    /// kill -9 of everything at once: `up`, every role, the mount. The mount stays behind, dead.
    ///
    /// # Panics
    /// If something does not die.
    #[track_caller]
    pub fn kill_everything(&mut self) {
        let up = self.up_pid();
        let roles = processes::tagged(&self.tag()).into_iter().filter(|pid| *pid != up);
        let pids: Vec<ProcessId> = std::iter::once(up).chain(roles).collect();
        let mut child = self.up.take().expect("the cluster is up");
        for pid in &pids {
            processes::signal(*pid, Signal::SIGKILL);
        }
        // `up` might have restarted a role between the list and its own death.
        let gone = wait::until(KILL_LIMIT, || {
            child.try_wait().ok().flatten()?;
            let left = processes::tagged(&self.tag());
            for pid in &left {
                processes::signal(*pid, Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
        assert!(gone.is_some(), "killed processes are still there: {:?}", processes::tagged(&self.tag()));
        self.ready = None;
    }

    /// A power failure: kill -9 of everything at once, and the disks lose what no sync covered. Only of a cluster that was
    /// [forgetful](Self::set_forgetful) from the start.
    ///
    /// # Panics
    /// If something does not die, or the disks cannot be put back.
    #[track_caller]
    pub fn fail_power(&mut self, loss: power::Loss) -> power::Taken {
        assert!(self.forgetful, "this cluster's disks remember everything");
        self.kill_everything();
        power::fail(&self.data, &self.journal(), loss)
    }

    /// The process of a role now, which is another than at the start if it was killed since.
    ///
    /// # Panics
    /// If there is no such role.
    #[track_caller]
    #[must_use]
    pub fn pid(&self, role: &str, index: u64) -> Option<ProcessId> {
        let is_it = |process: &&Process| process.role == role && process.index == index;
        let restarted = self.restarted();
        let last = restarted.iter().rev().find(is_it).or_else(|| self.ready().processes.iter().find(is_it));
        let last = last.unwrap_or_else(|| panic!("the cluster has no {role} {index}: {:?}", self.ready()));
        Some(last.pid).filter(|pid| processes::is_alive(*pid))
    }

    /// The roles that `up` has started again since it is up, in order.
    fn restarted(&self) -> Vec<Process> {
        let text = std::fs::read_to_string(self.out()).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        events.filter(|event: &Value| event["event"] == "restarted").filter_map(|event| parse_process(&event)).collect()
    }

    /// kill -9 of one role.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn kill(&self, role: &str, index: u64) -> ProcessId {
        let pid = self.pid(role, index).unwrap_or_else(|| panic!("{role} {index} does not run\n{}", self.said()));
        processes::signal(pid, Signal::SIGKILL);
        pid
    }

    /// Waits until a killed role runs again, as another process.
    ///
    /// # Panics
    /// If it does not within `limit`.
    #[track_caller]
    pub fn wait_for_another(&self, role: &str, index: u64, killed: ProcessId, limit: Duration) {
        wait::for_state(&format!("{role} {index} runs again"), limit, || {
            self.pid(role, index).is_some_and(|pid| pid != killed)
        });
    }

    /// Runs a `holdfast` command against this cluster's volume manager.
    ///
    /// # Panics
    /// If the command cannot be started.
    #[track_caller]
    #[must_use]
    pub fn admin(&self, arguments: &[&str]) -> Ended {
        Run::holdfast().args(arguments).args(["--volmgr", &self.ready().volmgr]).end()
    }

    /// The same, which has to succeed; its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn admin_ok(&self, arguments: &[&str]) -> String {
        let ended = self.admin(arguments);
        assert!(ended.status.is_some_and(|status| status.success()), "{}", ended.describe());
        ended.stdout
    }

    /// Mounts a volume of this cluster a second time, by `holdfast mount`.
    ///
    /// # Panics
    /// If it is not mounted in time.
    #[track_caller]
    #[must_use]
    pub fn mount_again(&self, volume: &str) -> Mounted {
        Mounted::mount(self, volume, &[])
    }

    /// The same with more arguments.
    ///
    /// # Panics
    /// If it is not mounted in time.
    #[track_caller]
    #[must_use]
    pub fn mount_with(&self, volume: &str, arguments: &[&str]) -> Mounted {
        Mounted::mount(self, volume, arguments)
    }

    /// What the environment of this cluster's processes says.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("{}={}", variables::PART, self.part)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut pids: Vec<ProcessId> = self.up.iter().map(Child::id).collect();
        pids.extend(processes::tagged(&self.tag()));
        // Aborting first: a process that waits in a dead mount could not die.
        namespace::abort_and_detach_below(&self.root);
        let stuck = processes::kill_all(&pids, KILL_LIMIT);
        if let Some(mut child) = self.up.take() {
            wait_or_kill(&mut child, seconds(5));
        }
        // It may have mounted between the two.
        namespace::abort_and_detach_below(&self.root);
        if stuck.is_empty() {
            remove_directory(&self.root);
        } else {
            eprintln!("harness: {stuck:?} could not be killed; {} stays", self.root.display());
        }
    }
}

/// Asks the kernel to kill the child when the room's main thread dies, however it dies.
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let set = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from);
    // SAFETY: the closure makes one system call between fork and exec; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}
