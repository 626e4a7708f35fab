//! `cargo xtask soak`: builds the file system and runs the soak of the end-to-end tests' harness on it.

use crate::command::{self, TESTS_PROFILE};
use crate::install;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Exit code of a soak that found nothing but what is known.
const ONLY_KNOWN: i32 = 2;

/// Options of a soak.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Minutes under load; checks at the end take up to five more
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    minutes: f64,
    /// Decides what is killed when [default: the time of day]
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for report.txt, memory.tsv and memory.svg
    #[arg(long, value_name = "DIR", default_value = "target/soak")]
    out: PathBuf,
    /// Fail with known findings too
    #[arg(long)]
    strict: bool,
}

/// Runs it; findings that are not known fail.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !(arguments.minutes > 0.0 && arguments.minutes.is_finite()) {
        bail!("--minutes must be positive");
    }
    install::tools_of_soak()?;
    command::build(&["--release", "--package", "holdfast"])?;
    command::build(&["--profile", TESTS_PROFILE, "--package", "holdfast-tests", "--bins"])?;
    let soak = command::tests_directory()?.join("soak");
    let seed = arguments.seed.map(|seed| seed.to_string());
    let status = Command::new(&soak)
        .arg(arguments.minutes.to_string())
        .arg(&arguments.out)
        .args(seed)
        .status()
        .with_context(|| format!("cannot run {}", soak.display()))?;
    if status.code().is_none() {
        bail!("the soak did not end by itself: {status}");
    }
    let is_well = status.success() || (!arguments.strict && status.code() == Some(ONLY_KNOWN));
    println!("measurements are in {}", arguments.out.display());
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
