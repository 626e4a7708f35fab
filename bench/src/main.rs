//! Workloads against a mounted directory, peers side by side.

mod figures;
mod interrupt;
mod rpc;
mod stalls;
mod systems;
mod workloads;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use figures::Report;
use systems::holdfast::Holdfast;
use systems::{gluster, mounted::Mounted};
use workloads::Options;

/// Measures file systems and Holdfast's transport.
#[derive(Parser)]
#[command(name = "holdfast-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start systems on this host, run the workloads on each, and compare.
    Run {
        /// The holdfast binary; without it only the peers run.
        #[arg(long)]
        holdfast: Option<PathBuf>,
        /// Where the systems keep their data; the same file system for all.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// What to compare with.
        #[arg(long, value_enum, value_delimiter = ',')]
        peers: Vec<Peer>,
        /// Further arguments of `holdfast up`, for example --up=--code --up=4+2.
        #[arg(long = "up", allow_hyphen_values = true)]
        up_arguments: Vec<String>,
        /// Write all figures to this file.
        #[arg(long)]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: Options,
    },
    /// Run the workloads in a directory that is there already.
    Dir {
        /// Directory to measure in.
        dir: PathBuf,
        /// Shell command that unmounts and mounts the directory's file system, for cold caches.
        #[arg(long)]
        remount: Option<String>,
        /// Name of the column.
        #[arg(long, default_value = "directory")]
        label: String,
        /// Write all figures to this file.
        #[arg(long)]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: Options,
    },
    /// CPU time of the transport, both ends together.
    Rpc {
        /// Time per case.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Worker threads of each end.
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Connections to the server.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Process 1 of the namespaces that `run` makes.
    #[command(hide = true)]
    InsideGluster {
        work: PathBuf,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Peer {
    /// GlusterFS, disperse 6 redundancy 2.
    Gluster,
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("holdfast-bench: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    if !matches!(command, Command::Rpc { .. }) {
        interrupt::install()?;
    }
    match command {
        Command::Run { holdfast, dir, peers, up_arguments, json, options } => {
            options.check(&figure_names())?;
            anyhow::ensure!(holdfast.is_some() || !peers.is_empty(), "give --holdfast PATH or --peers, or both");
            let mut reports = Vec::new();
            let ran = run_all(holdfast.as_deref(), &dir, &peers, &up_arguments, &options, &mut reports);
            // What was measured before something failed is worth seeing.
            let published = publish(&reports, &options, json.as_deref());
            ran.and(published)
        }
        Command::Dir { dir, remount, label, json, options } => {
            options.check(&figure_names())?;
            let report = workloads::run(&dir, &options, &mut Mounted { label, remount })?;
            publish(&[report], &options, json.as_deref())
        }
        Command::Rpc { seconds, threads, connections, json } => rpc::run(seconds, threads, connections, json),
        Command::InsideGluster { work, options } => gluster::run_inside(&work, &options),
    }
}

/// All figures that can be asked for.
fn figure_names() -> Vec<&'static str> {
    workloads::names().chain(stalls::names()).collect()
}

/// One report a system, in `reports` as soon as it is there.
fn run_all(
    holdfast: Option<&Path>,
    dir: &Path,
    peers: &[Peer],
    up_arguments: &[String],
    options: &Options,
    reports: &mut Vec<Report>,
) -> anyhow::Result<()> {
    if let Some(binary) = holdfast {
        let mut holdfast = Holdfast::start(binary, dir, up_arguments)?;
        let mount = holdfast.mount().to_owned();
        let report = reports.push_mut(workloads::run(&mount, options, &mut holdfast)?);
        holdfast.stop()?;
        report.figures.extend(stalls::run(binary, dir, up_arguments, options)?);
    }
    for peer in peers {
        reports.push(match peer {
            Peer::Gluster => gluster::run_in_namespaces(dir, options)?,
        });
    }
    Ok(())
}

/// Prints the table, writes the JSON, and fails if a figure is missing.
fn publish(reports: &[Report], options: &Options, json: Option<&Path>) -> anyhow::Result<()> {
    print!("{}", figures::table(reports));
    if let Some(path) = json {
        let systems: Vec<_> = reports
            .iter()
            .map(|report| {
                let figures: serde_json::Map<_, _> = report
                    .figures
                    .iter()
                    .map(|(name, outcome)| Ok((name.clone(), serde_json::to_value(outcome)?)))
                    .collect::<Result<_, serde_json::Error>>()?;
                Ok(serde_json::json!({"system": report.system, "cold_by": report.cold_by, "figures": figures}))
            })
            .collect::<anyhow::Result<_>>()?;
        let all = serde_json::json!({
            "size_mb": options.size_mb,
            "files": options.files,
            "runtime_s": options.runtime,
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "systems": serde_json::Value::Array(systems),
        });
        std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failures: usize = reports.iter().map(Report::failures).sum();
    anyhow::ensure!(failures == 0, "{failures} figures could not be measured");
    Ok(())
}
