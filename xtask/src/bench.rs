//! `cargo xtask bench`: builds the file system and its benchmark, and runs `holdfast-bench run` with the arguments given.

use crate::{command, install};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What is handed to `holdfast-bench run`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Arguments of `holdfast-bench run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the benchmark and passes its exit code on.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    install::tools_of_bench()?;
    let build = ["build", "--release", "--package", "holdfast", "--package", "holdfast-bench"];
    if !command::cargo().args(build).status().context("cannot run cargo")?.success() {
        bail!("the build failed");
    }
    let release = release_directory()?;
    let bench = release.join("holdfast-bench");
    let status = Command::new(&bench)
        .args(["run", "--holdfast"])
        .arg(release.join("holdfast"))
        .args(&arguments.arguments)
        .status()
        .with_context(|| format!("cannot run {}", bench.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// This program was built by the same cargo into the same directory as what it starts.
fn release_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot find this program's own path")?;
    Ok(executable.parent().context("this program has no directory")?.to_owned())
}
