//! `cargo xtask sim`: builds the simulation of a whole cluster and runs seeds of it.

use crate::command::{self, TESTS_PROFILE};
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Options of the simulation, as `--help` of its own says them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// --seeds N [--jobs J] [--first S], or --seed S for one with every event printed; --sabotage NAME breaks a rule
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    passed_on: Vec<String>,
}

/// Runs it; its exit code is this one's.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    command::build(&["--profile", TESTS_PROFILE, "--package", "holdfast-simulation", "--bins"])?;
    let simulation = command::tests_directory()?.join("holdfast-simulation");
    let status = Command::new(&simulation).args(&arguments.passed_on).status();
    let status = status.with_context(|| format!("cannot run {}", simulation.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
