//! The one binary of Holdfast: every role, up, administration and user commands.

mod args;
mod destroy;
mod mount;
mod mounting;
mod output;
mod recover;
mod roles;
mod serve;
mod signals;
mod up;
mod volume;
mod wakefulness;

use std::future::Future;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, VolmgrCommand};
use roles::RoleConfig;

/// Environment variable with the filter of the log.
const LOG_VARIABLE: &str = "HOLDFAST_LOG";
/// Threads of the runtime at least; one alone slows large transfers down. Half as many as cores otherwise: disks, Raft and
/// FUSE have threads of their own, and small requests spend their time waking one thread after the other.
const RUNTIME_THREADS_MIN: usize = 2;

fn main() -> ExitCode {
    // Started again as a role through /proc/self/exe, the process would be listed as "exe".
    let _ = nix::sys::prctl::set_name(c"holdfast");
    let cli = Cli::parse_from(args::words_by_name(std::env::args_os().collect()));
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Every role holds files and connections by the thousand.
    if let Err(error) = holdfast_storage::descriptors::raise_limit() {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(args) => block_on(up::run(args)),
        Command::Destroy(args) => destroy::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Volume(args) | Command::Volmgr(VolmgrCommand::Volume(args)) => block_on(volume::run(args)),
        Command::Volmgr(VolmgrCommand::Format { dir }) => {
            let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            block_on(serve::format(RoleConfig::Volmgr { dir, listen }))
        }
        Command::Volmgr(VolmgrCommand::Serve { dir, listen, json }) => {
            block_on(serve::serve(RoleConfig::Volmgr { dir, listen }, json))
        }
        Command::Metanode(command) => block_on(serve::metanode(command)),
        Command::Datanode(command) => block_on(serve::datanode(command)),
    }
}

/// Runs a command on a runtime of its own. The command's own future stays on this thread, which lives as long as the
/// process does.
fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2).max(RUNTIME_THREADS_MIN);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(command);
    // What still runs then is nobody's business any more; a blocked thread must not keep the process.
    runtime.shutdown_background();
    outcome
}
