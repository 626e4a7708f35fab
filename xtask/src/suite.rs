//! Running test programs and reading their results. Unit and model tests run two programs at a time; the rooms of the
//! end-to-end tests run one after another, because each starts a cluster of ten processes on two cores.

use crate::build::TestProgram;
use crate::command::{Captured, capture, tests_directory};
use crate::tally::Tally;
use anyhow::{Result, bail};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longest that one program of unit or model tests may take.
const UNIT_PROGRAM_LIMIT: Duration = Duration::from_secs(600);
/// Longest that one room of the end-to-end tests may take; each of its tests has its own, much shorter, deadline.
const ROOM_LIMIT: Duration = Duration::from_secs(1200);
/// The soak in the tests: a minute under load, some two until the last shard is gone, and what a failure takes.
const SOAK_MINUTES: &str = "1";
const SOAK_SEED: &str = "7";
const SOAK_LIMIT: Duration = Duration::from_secs(900);
/// Unit test programs running at once: most of them use one core most of the time.
const UNIT_PROGRAMS_AT_ONCE: usize = 2;

/// The package whose integration tests are the rooms.
const ROOMS_PACKAGE: &str = "holdfast-tests";

/// The package whose integration tests run seeds of the whole cluster.
const SIMULATION_PACKAGE: &str = "holdfast-simulation";

/// Unit and model tests: every program that is neither a room nor seeds of the simulation.
pub(crate) fn unit(programs: &[TestProgram], filters: &[String]) -> Result<Tally> {
    let queue: Mutex<Vec<&TestProgram>> =
        Mutex::new(programs.iter().filter(|p| !is_room(p) && !is_simulation(p)).rev().collect());
    let total = Mutex::new(Ok(Tally::default()));
    let worker = || {
        while let Some(program) = queue.lock().expect("no worker panics holding it").pop() {
            let outcome = run_program(program, filters, UNIT_PROGRAM_LIMIT, false);
            let mut total = total.lock().expect("no worker panics holding it");
            match (outcome, total.as_mut()) {
                (Ok(tally), Ok(sum)) => *sum += tally,
                (Err(error), Ok(_)) => *total = Err(error),
                (_, Err(_)) => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..UNIT_PROGRAMS_AT_ONCE {
            scope.spawn(worker);
        }
    });
    total.into_inner().expect("no worker panics holding it")
}

/// End-to-end tests: a filter may name a room or a part of a test's name.
pub(crate) fn end_to_end(programs: &[TestProgram], filters: &[String]) -> Result<Tally> {
    let rooms: Vec<&TestProgram> = programs.iter().filter(|p| is_room(p)).collect();
    if rooms.is_empty() {
        bail!("there are no end-to-end tests in {ROOMS_PACKAGE}");
    }
    let (room_names, test_names): (Vec<_>, Vec<_>) =
        filters.iter().cloned().partition(|filter| rooms.iter().any(|room| room.target == *filter));
    let mut total = Tally::default();
    for room in rooms {
        if room_names.is_empty() || room_names.contains(&room.target) {
            total += run_program(room, &test_names, ROOM_LIMIT, true)?;
        }
    }
    Ok(total)
}

/// Seeds of the simulation of a whole cluster; they use all cores by themselves.
pub(crate) fn simulation(programs: &[TestProgram], filters: &[String]) -> Result<Tally> {
    let mut total = Tally::default();
    for program in programs.iter().filter(|program| is_simulation(program)) {
        total += run_program(program, filters, UNIT_PROGRAM_LIMIT, false)?;
    }
    Ok(total)
}

/// A minute of the soak, with the same kills each time. Findings that are known fail too.
pub(crate) fn soak() -> Result<Tally> {
    let mut command = Command::new(tests_directory()?.join("soak"));
    command.args([SOAK_MINUTES, "target/soak-test", SOAK_SEED]);
    let captured = capture(&mut command, SOAK_LIMIT, |line| {
        if line.starts_with("kill: ") || line.starts_with("after ") {
            println!("  {line}");
        }
    })?;
    let is_well = captured.status.is_some_and(|status| status.success());
    if !is_well {
        println!("---- output of the soak ----\n{}---- end of output ----", captured.output);
    }
    Ok(Tally::check(is_well))
}

fn is_simulation(program: &TestProgram) -> bool {
    program.package == SIMULATION_PACKAGE && program.integration
}

fn is_room(program: &TestProgram) -> bool {
    program.package == ROOMS_PACKAGE && program.integration
}

fn run_program(program: &TestProgram, filters: &[String], limit: Duration, live: bool) -> Result<Tally> {
    let started = Instant::now();
    let mut command = Command::new(&program.executable);
    command.args(filters).current_dir(&program.directory).env("CARGO_MANIFEST_DIR", &program.directory);
    let captured = capture(&mut command, limit, |line| {
        if live && line.starts_with("test ") && !line.starts_with("test result: ") {
            println!("  {}::{}", program.target, line.trim_start_matches("test "));
        }
    })?;
    let tally = judge(&captured);
    if tally.failed > 0 {
        println!(
            "---- output of {} {} ----\n{}---- end of output ----",
            program.package, program.target, captured.output
        );
    }
    if tally != Tally::default() {
        println!("{:<20} {:<18} {:>6.1} s  {tally}", program.package, program.target, started.elapsed().as_secs_f64());
    }
    Ok(tally)
}

/// A program that ended badly has at least one failure, whatever it counted before it died.
fn judge(captured: &Captured) -> Tally {
    let mut tally = Tally::of_output(&captured.output).unwrap_or_default();
    let ended_well = captured.status.is_some_and(|status| status.success());
    if !ended_well && tally.failed == 0 {
        tally += Tally::FAILED;
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(script: &str) -> Tally {
        judge(&capture(Command::new("sh").args(["-c", script]), Duration::from_secs(20), |_| {}).unwrap())
    }

    #[test]
    fn a_program_that_dies_without_a_result_has_failed_once() {
        assert_eq!(judged("kill -9 $$"), Tally::FAILED);
    }

    #[test]
    fn a_program_that_says_ok_but_exits_badly_has_failed() {
        assert_eq!(judged("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 1").failed, 1);
    }

    #[test]
    fn failures_that_were_counted_are_not_counted_again() {
        let tally = judged("echo 'test result: FAILED. 2 passed; 3 failed; 1 ignored'; exit 101");
        assert_eq!(tally, Tally { passed: 2, failed: 3, skipped: 1 });
    }
}
