//! `cargo xtask test`: the stages in their order, each with its time and its budget, and one closing line.

use crate::budget::{self, StageReport};
use crate::tally::Tally;
use crate::{build, install, lint, suite};
use anyhow::Result;
use std::process::ExitCode;
use std::time::Instant;

/// The part of the tests to run; all of them by default.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Formatting, clippy, cargo deny
    Lint,
    /// Unit and model tests of every crate
    Unit,
    /// Seeds of the simulation of a whole cluster
    Sim,
    /// End-to-end tests on a mounted cluster
    E2e,
    /// A minute of mixed load while parts of a cluster are killed
    Soak,
}

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this part only; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Run only tests whose name contains one of these; for end-to-end tests, also the name of a room
    filters: Vec<String>,
}

/// Results of the stages so far.
struct Run {
    reports: Vec<StageReport>,
}

impl Run {
    /// Runs one stage. A stage that could not be carried out counts as one failure; whether it was carried out.
    fn stage(&mut self, stage: budget::Stage, body: impl FnOnce() -> Result<Tally>) -> bool {
        let name = stage.name;
        println!("==> {name}");
        let started = Instant::now();
        let outcome = body();
        let carried_out = outcome.is_ok();
        let tally = outcome.unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            Tally::FAILED
        });
        let report = StageReport { stage, tally, took: started.elapsed() };
        println!("<== {report}");
        self.reports.push(report);
        carried_out
    }

    /// Prints the table and the closing line.
    fn close(self) -> ExitCode {
        let mut total = Tally::default();
        println!();
        for report in &self.reports {
            println!("{report}");
            total += report.tally;
        }
        println!("{}", budget::verdict(&self.reports));
        println!("\n{total}");
        if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Runs the stages that were asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut run = Run { reports: Vec::new() };
    if !run.stage(budget::INSTALL, || install::tools_of_test().map(|()| Tally::default())) {
        return Ok(run.close());
    }
    if wants(Part::Lint) {
        run.stage(budget::LINT, lint::run);
    }
    if wants(Part::Unit) || wants(Part::Sim) || wants(Part::E2e) || wants(Part::Soak) {
        let mut programs = Vec::new();
        run.stage(budget::BUILD, || {
            let built = build::run()?;
            let tally = Tally { failed: usize::from(built.is_none()), ..Tally::default() };
            programs = built.unwrap_or_default();
            Ok(tally)
        });
        if programs.is_empty() {
            return Ok(run.close());
        }
        if wants(Part::Unit) {
            run.stage(budget::UNIT, || suite::unit(&programs, &arguments.filters));
        }
        if wants(Part::Sim) {
            run.stage(budget::SIMULATION, || suite::simulation(&programs, &arguments.filters));
        }
        if wants(Part::E2e) {
            run.stage(budget::END_TO_END, || suite::end_to_end(&programs, &arguments.filters));
        }
        // Filters name tests, of which the soak has none.
        if wants(Part::Soak) && (arguments.filters.is_empty() || arguments.only.contains(&Part::Soak)) {
            run.stage(budget::SOAK, suite::soak);
        }
    }
    Ok(run.close())
}
