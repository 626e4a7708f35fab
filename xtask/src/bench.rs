//! `cargo xtask bench`: builds the file system and its benchmark, and runs `holdfast-bench run` with the arguments given, or
//! compares this build with a revision ([`against`]).

use crate::against::{self, Plan, Set};
use crate::{command, install};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Options of a benchmark, and arguments for `holdfast-bench run`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare with this revision in interleaved pairs; fails if this build is slower
    #[arg(long, value_name = "REV")]
    against: Option<String>,
    /// Pairs to run
    #[arg(long, value_name = "N", default_value_t = 10, requires = "against", value_parser = clap::value_parser!(u32).range(2..=1000))]
    pairs: u32,
    /// Figures to measure in each pair
    #[arg(long, value_enum, default_value_t = Set::Short, requires = "against")]
    set: Set,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Arguments of `holdfast-bench run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the benchmark and passes its exit code on.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    install::tools_of_bench()?;
    command::build(&["--release", "--package", "holdfast", "--package", "holdfast-bench"])?;
    let release = command::release_directory()?;
    match &arguments.against {
        None => run_once(arguments, &release),
        Some(revision) => {
            let Arguments { pairs, set, json, arguments, .. } = arguments;
            against::run(&Plan { revision, pairs: *pairs, set: *set, json: json.as_deref(), arguments }, &release)
        }
    }
}

fn run_once(arguments: &Arguments, release: &Path) -> Result<ExitCode> {
    let bench = release.join("holdfast-bench");
    let mut command = Command::new(&bench);
    command.args(["run", "--holdfast"]).arg(release.join("holdfast")).args(&arguments.arguments);
    if let Some(json) = &arguments.json {
        command.arg("--json").arg(json);
    }
    let status = command.status().with_context(|| format!("cannot run {}", bench.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
