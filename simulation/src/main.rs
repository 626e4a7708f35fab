//! Runs seeds of the simulation: `cargo xtask sim`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use holdfast_simulation::{Coverage, Options, Sabotage, run};
use parking_lot::Mutex;

/// From so many seeds on, every kind of fault has to have happened.
const COVERED_SEEDS: usize = 500;

/// Runs seeds of the simulation of a whole cluster. Exit code 0 only if all hold, and if of 500 or more no kind of fault is missing.
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
    let ran = run(seed, options);
    let is_well = ran.is_ok() == (options.sabotage == Sabotage::None);
    match ran {
        Ok(report) => {
            println!("seed {seed} holds, trace {:016x}", report.trace);
            print_coverage(&report.coverage);
        }
        Err(why) => println!("seed {seed}: {why}"),
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
                            println!("seed {seed}: {why}\n    cargo xtask sim --seed {seed}{}", option_of(sabotage));
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
    let counts = coverage.counts();
    let missing: Vec<&str> = counts.iter().filter(|(_, count)| *count == 0).map(|(name, _)| *name).collect();
    let is_covered = missing.is_empty() || times.len() < COVERED_SEEDS || sabotage != Sabotage::None;
    if !is_covered {
        println!("never happened: {}", missing.join(", "));
    }
    let well = is_covered && (failed > 0) == (sabotage != Sabotage::None);
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The option that repeats a broken rule.
fn option_of(sabotage: Sabotage) -> String {
    if sabotage == Sabotage::None { String::new() } else { format!(" --sabotage {}", sabotage.name()) }
}

fn print_coverage(coverage: &Coverage) {
    for (name, count) in coverage.counts() {
        println!("{count:>12} {}", name.replace('_', " "));
    }
}
