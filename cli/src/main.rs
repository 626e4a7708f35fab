//! The one binary of Holdfast: every role, up, administration and user commands.

mod args;
mod destroy;
mod mount;
mod mounting;
mod output;
mod roles;
mod serve;
mod signals;
mod up;
mod volume;

use std::future::Future;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, VolmgrCommand};
use roles::RoleConfig;

/// The environment variable that says what is logged.
const LOG_VARIABLE: &str = "HOLDFAST_LOG";

fn main() -> ExitCode {
    // Started again as a role through /proc/self/exe, the process would be listed as "exe".
    let _ = nix::sys::prctl::set_name(c"holdfast");
    tune_allocator();
    let cli = Cli::parse_from(args::words_by_name(std::env::args_os().collect()));
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
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

/// Has glibc keep the memory of chunks (4 MiB, freed all the time) instead of giving it back to the kernel, which has to
/// zero it again page by page: encoding a chunk takes a fifth of the time. Few arenas, so that what one thread freed
/// serves another.
fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 64 << 20), (libc::M_TRIM_THRESHOLD, 256 << 20), (libc::M_ARENA_MAX, 2)]
    {
        // SAFETY: called before there is a second thread; mallopt takes two integers.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Runs a command on a runtime of its own. The command's own future stays on this thread, which lives as long as the
/// process does.
fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    // Disks, Raft and FUSE have threads of their own; with as many more as there are cores, small requests spend most of
    // their time waking one thread after the other (create by one process: 339/s with 4 on 2 cores, 468/s with 1).
    let threads = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
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
