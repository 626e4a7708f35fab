//! The stages of `cargo xtask test` and what each may take on two cores. Exceeding a budget is reported and fails nothing:
//! machines are noisy, but a stage that grows should be seen when it does.

use crate::tally::Tally;
use std::fmt;
use std::time::Duration;

/// A stage and its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    budget_seconds: u64,
}

pub(crate) const INSTALL: Stage = Stage { name: "install", budget_seconds: 30 };
pub(crate) const LINT: Stage = Stage { name: "lint", budget_seconds: 100 };
pub(crate) const BUILD: Stage = Stage { name: "build", budget_seconds: 660 };
pub(crate) const UNIT: Stage = Stage { name: "unit", budget_seconds: 75 };
pub(crate) const END_TO_END: Stage = Stage { name: "end to end", budget_seconds: 680 };
pub(crate) const SIMULATION: Stage = Stage { name: "simulation", budget_seconds: 45 };
pub(crate) const SOAK: Stage = Stage { name: "soak", budget_seconds: 210 };

/// Budget of all stages together.
const TOTAL_SECONDS: u64 = 30 * 60;

const _: () = {
    let stages = [INSTALL, LINT, BUILD, UNIT, SIMULATION, END_TO_END, SOAK];
    let (mut sum, mut index) = (0, 0);
    while index < stages.len() {
        sum += stages[index].budget_seconds;
        index += 1;
    }
    assert!(sum == TOTAL_SECONDS, "the stages' budgets add up to the whole");
};

/// Result of one stage.
#[derive(Debug)]
pub(crate) struct StageReport {
    pub(crate) stage: Stage,
    pub(crate) tally: Tally,
    pub(crate) took: Duration,
}

impl StageReport {
    fn budget(&self) -> Duration {
        Duration::from_secs(self.stage.budget_seconds)
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = if self.took > self.budget() { "  over its budget" } else { "" };
        let (took, budget) = (self.took.as_secs_f64(), self.budget().as_secs());
        write!(f, "{:<11} {took:>7.1} s of {budget:>4} s   {}{over}", self.stage.name, self.tally)
    }
}

/// The line below the table: the time of all stages, and which took longer than they may.
pub(crate) fn verdict(reports: &[StageReport]) -> String {
    let total: Duration = reports.iter().map(|report| report.took).sum();
    let limit = Duration::from_secs(TOTAL_SECONDS);
    let mut over: Vec<&str> =
        reports.iter().filter(|report| report.took > report.budget()).map(|report| report.stage.name).collect();
    if total > limit {
        over.push("all together");
    }
    let (took, limit) = (total.as_secs_f64(), limit.as_secs());
    let judged = if over.is_empty() { "within budget".to_owned() } else { format!("over budget: {}", over.join(", ")) };
    format!("{:<11} {took:>7.1} s of {limit:>4} s   {judged}", "all")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: Stage, seconds: u64) -> StageReport {
        StageReport { stage, tally: Tally::default(), took: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_stage_over_its_budget_is_named_in_its_row_and_at_the_end() {
        let reports = [report(LINT, 101), report(UNIT, 75)];
        assert!(reports[0].to_string().ends_with("over its budget") && !reports[1].to_string().contains("over"));
        assert_eq!(verdict(&reports), "all           176.0 s of 1800 s   over budget: lint");
        assert!(verdict(&reports[1..]).ends_with("within budget"));
    }

    #[test]
    fn all_together_may_be_too_long_too() {
        let reports = [report(BUILD, 1500), report(END_TO_END, 301)];
        assert!(verdict(&reports).ends_with("over budget: build, all together"));
    }
}
