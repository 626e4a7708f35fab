//! The seeds that every run of the tests goes through.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_simulation::{Coverage, Options, Report, run};

/// How many seeds; more by `cargo xtask sim --seeds N`.
const SEEDS: u64 = 500;
const JOBS: usize = 2;
/// How many of them are run twice.
const REPEATED: u64 = 40;

fn held(seed: u64) -> Report {
    run(seed, Options::default()).unwrap_or_else(|why| panic!("seed {seed}: {why}\n    cargo xtask sim --seed {seed}"))
}

/// Runs seeds beside one another; what all of them covered.
fn cover(seeds: u64) -> Coverage {
    let (next, total) = (AtomicU64::new(0), Mutex::new(Coverage::default()));
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let report = held(seed);
                    total.lock().expect("no run panics here").add(&report.coverage);
                }
            });
        }
    });
    total.into_inner().expect("no run panics here")
}

#[test]
fn every_promise_holds_in_all_seeds_and_every_kind_of_fault_has_happened() {
    let coverage = cover(SEEDS);
    for (name, count) in coverage.counts() {
        println!("{count:>12} {name}");
        assert!(count > 0, "{name} never happened in {SEEDS} seeds");
    }
}

/// In other orders, so that nothing of one run, nor where its memory lies, reaches the next.
#[test]
fn one_seed_gives_one_trace() {
    let first: Vec<Report> = (0..REPEATED).map(held).collect();
    let mut again: Vec<Report> = (0..REPEATED).rev().map(held).collect();
    again.reverse();
    assert_eq!(first, again);
    assert_ne!(first[0].trace, first[1].trace);
}
