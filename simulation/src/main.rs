//! Runs seeds of the simulation: `cargo xtask sim`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use holdfast_simulation::{Coverage, Options, Sabotage, run};
use parking_lot::Mutex;

/// Runs seeds of the simulation of a whole cluster. Exit code 0 only if all hold.
#[derive(Parser)]
#[command(name = "sim")]
struct Arguments {
    /// Count of seeds to run.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Seeds at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// This seed alone, every event of it printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the trace of each seed that holds: equal runs have equal ones.
    #[arg(long)]
    traces: bool,
    /// Do not print the events of the seed.
    #[arg(long)]
    quiet: bool,
    /// A rule to be broken: its name in docs/TESTING.md. Success is then that some seed finds it.
    #[arg(long)]
    sabotage: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let sabotage = match arguments.sabotage.as_deref().map(Sabotage::named) {
        None => Sabotage::None,
        Some(Some(sabotage)) => sabotage,
        Some(None) => {
            eprintln!("there is no such sabotage; there are: {}", Sabotage::names().join(", "));
            return ExitCode::from(2);
        }
    };
    std::panic::set_hook(Box::new(|_| ()));
    match arguments.seed {
        Some(seed) => one(seed, Options { sabotage, shown: !arguments.quiet }),
        None => many(&arguments, sabotage),
    }
}

fn one(seed: u64, options: Options) -> ExitCode {
    match run(seed, options) {
        Ok(report) => {
            println!("seed {seed} holds, trace {:016x}", report.trace);
            print_coverage(&report.coverage);
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("seed {seed}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments, sabotage: Sabotage) -> ExitCode {
    let next = AtomicU64::new(arguments.first);
    let end = arguments.first + arguments.seeds;
    let (failed, found) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new((Coverage::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || found.load(Ordering::Relaxed) {
                        return;
                    }
                    let begun = Instant::now();
                    let ran = run(seed, Options { sabotage, shown: false });
                    let mut total = total.lock();
                    total.1.push(begun.elapsed());
                    match ran {
                        Ok(report) => {
                            if arguments.traces {
                                println!("seed {seed} trace {:016x}", report.trace);
                            }
                            total.0.add(&report.coverage);
                        }
                        Err(why) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            println!("seed {seed}: {why}\n    cargo xtask sim --seed {seed}");
                            found.store(sabotage != Sabotage::None, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (coverage, mut times) = total.into_inner();
    times.sort_unstable();
    let failed = failed.into_inner();
    print_coverage(&coverage);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!("{} seeds, {failed} failed, {} ms a seed at the median", times.len(), median.as_millis());
    let well = if sabotage == Sabotage::None { failed == 0 } else { failed > 0 };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_coverage(coverage: &Coverage) {
    for (name, count) in coverage.counts() {
        println!("{count:>12} {}", name.replace('_', " "));
    }
}
