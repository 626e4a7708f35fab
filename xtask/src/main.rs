//! The project's own tasks: `cargo xtask test` proves the tree, `cargo xtask bench` measures it, `cargo xtask soak` wears it.

mod against;
mod bench;
mod budget;
mod build;
mod circles;
mod code;
mod command;
mod documents;
mod functions;
mod house;
mod install;
mod lint;
mod paired;
mod purity;
mod rules;
mod sim;
mod soak;
mod source;
mod suite;
mod tally;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The tasks of Holdfast's own development")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, lint, build, and run every test
    Test(test::Arguments),
    /// Build the benchmark and run it; arguments are passed on to `holdfast-bench run`
    Bench(bench::Arguments),
    /// Run seeds of the simulation of a whole cluster; exit code 0 only if all hold
    Sim(sim::Arguments),
    /// Mixed load while members and clients are killed at random; then nothing may be wrong, and nothing left
    Soak(soak::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Sim(arguments) => sim::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
