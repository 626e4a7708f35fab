//! GlusterFS on this host, disperse 6 redundancy 2.
//!
//! Everything of it lives in network, mount and process namespaces of its own, of which this program is process 1: when
//! it ends, in whichever way, the kernel ends the daemons and drops mounts, addresses and the bridge. What remains is a
//! work directory, which the outer process removes. Gluster refuses loopback addresses, hence the bridge.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{WorkDirectory, run, unmount, wait_for};
use crate::figures::Report;
use crate::workloads::{self, Options, System};

const NAME: &str = "gluster";
const BRIDGE: &str = "hfbench0";
const ADDRESS: &str = "10.213.0.1";
const VOLUME: &str = "bench";
const BRICKS: usize = 6;
/// Longest wait for the management daemon to answer and for the bricks to come up.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts it below `parent`, runs the workloads, and removes it.
pub(crate) fn run_in_namespaces(parent: &Path, options: &Options) -> anyhow::Result<Report> {
    install()?;
    let work = WorkDirectory::new(parent, NAME)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"]);
    command.arg(std::env::current_exe()?).arg("inside-gluster").arg(work.path()).args(options.arguments());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    let output = command.spawn().context("cannot run unshare")?.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "the Gluster run ended with {}", output.status);
    serde_json::from_slice(&output.stdout).context("the Gluster run's report does not parse")
}

/// What runs as process 1 of the namespaces; prints the report as JSON.
pub(crate) fn run_inside(work: &Path, options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(std::process::id() == 1, "this command is started by `run --peers gluster` only");
    network()?;
    for directory in ["/run", "/var/lib/glusterd", "/var/log/glusterfs"] {
        run("mount", &["-t", "tmpfs", "tmpfs", directory])?;
    }
    run("glusterd", &[])?;
    wait_for("glusterd", START_TIMEOUT, || Ok(gluster(&["pool", "list"]).is_ok()))?;
    create_volume(work)?;
    let mount = work.join("mount");
    std::fs::create_dir(&mount)?;
    let mut client = Client { mount };
    client.mount()?;
    let mount = client.mount.clone();
    let report = workloads::run(&mount, options, &mut client)?;
    println!("{}", serde_json::to_string(&report)?);
    unmount(&mount)
}

fn network() -> anyhow::Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
    run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", BRIDGE])?;
    run("ip", &["link", "set", BRIDGE, "up"])?;
    Ok(())
}

fn create_volume(work: &Path) -> anyhow::Result<()> {
    let bricks = work.join("bricks");
    let bricks: Vec<String> = (0..BRICKS).map(|index| format!("{ADDRESS}:{}/{index}", bricks.display())).collect();
    let count = BRICKS.to_string();
    let mut arguments = vec!["volume", "create", VOLUME, "disperse", &count, "redundancy", "2"];
    arguments.extend(bricks.iter().map(String::as_str));
    // Without it, Gluster refuses six bricks on one host, and bricks on the root file system.
    arguments.push("force");
    std::fs::create_dir(work.join("bricks"))?;
    gluster(&arguments)?;
    gluster(&["volume", "start", VOLUME])?;
    wait_for("the bricks", START_TIMEOUT, || {
        let status = gluster(&["volume", "status", VOLUME, "--xml"])?;
        // One line a brick and more for the self-heal daemon; "1" is up.
        Ok(status.matches("<status>1</status>").count() >= BRICKS)
    })
}

fn gluster(arguments: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["--mode=script"];
    all.extend(arguments);
    run("gluster", &all)
}

struct Client {
    mount: PathBuf,
}

impl Client {
    fn mount(&self) -> anyhow::Result<()> {
        let mount = self.mount.to_str().context("the work directory's name is not UTF-8")?;
        run("mount", &["-t", "glusterfs", &format!("{ADDRESS}:/{VOLUME}"), mount])?;
        Ok(())
    }
}

impl System for Client {
    fn name(&self) -> &str {
        NAME
    }

    fn cold_by(&self) -> &'static str {
        "remount, kernel caches dropped"
    }

    fn forget(&mut self) -> anyhow::Result<()> {
        unmount(&self.mount)?;
        self.mount()
    }

    fn hang_breaker(&self) -> Box<dyn Fn() + Send> {
        // From process 1, this is every other process of its namespace and none outside.
        Box::new(|| {
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        })
    }
}

/// Installs Debian's packages if they are missing.
fn install() -> anyhow::Result<()> {
    if run("gluster", &["--version"]).is_ok() {
        return Ok(());
    }
    eprintln!("installing glusterfs-server and glusterfs-client from Debian");
    let packages = ["glusterfs-server", "glusterfs-client"];
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    run("apt-get", &["update"])?;
    run("apt-get", &arguments)?;
    Ok(())
}
