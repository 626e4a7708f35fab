//! `soak MINUTES DIRECTORY [SEED]`: what `cargo xtask soak` runs. Its exit code is 0 without findings and 2 with known ones only.

use anyhow::{Context, Result};
use holdfast_tests::soak::{Options, run};
use holdfast_tests::{cluster, namespace};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    let minutes: f64 = words.next().context("usage: soak MINUTES DIRECTORY [SEED]")?.parse()?;
    let directory = words.next().context("usage: soak MINUTES DIRECTORY [SEED]")?.into();
    let seed = match words.next() {
        Some(word) => word.parse()?,
        None => std::time::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    namespace::enter()?;
    let findings = run(&Options { duration: Duration::try_from_secs_f64(minutes * 60.0)?, seed, directory });
    cluster::remove_directory(&cluster::room_directory());
    Ok(match findings.iter().all(|finding| finding.known().is_some()) {
        true if findings.is_empty() => ExitCode::SUCCESS,
        true => ExitCode::from(2),
        false => ExitCode::FAILURE,
    })
}
