//! Figures, their units, and how they are shown side by side.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Megabytes (10^6) per second.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Operations per second.
    #[serde(rename = "ops/s")]
    OperationsPerSecond,
    /// Seconds; less is better.
    #[serde(rename = "s")]
    Seconds,
}

impl Unit {
    fn shown(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::OperationsPerSecond => "ops/s",
            Self::Seconds => "s",
        }
    }
}

/// One measured value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// 99th percentile of the single operations' latency, where they were timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<f64>,
}

/// A value or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    Measured(Figure),
    Failed { error: String },
}

/// Figures of one system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) system: String,
    /// How its caches were made cold.
    pub(crate) cold_by: String,
    /// In the order they were measured.
    pub(crate) figures: Vec<(String, Outcome)>,
}

impl Report {
    fn figure(&self, name: &str) -> Option<&Outcome> {
        self.figures.iter().find(|(known, _)| known == name).map(|(_, outcome)| outcome)
    }

    /// Figures that could not be measured.
    pub(crate) fn failures(&self) -> usize {
        self.figures.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed { .. })).count()
    }
}

/// Merit of the first system's figure as a multiple of the second's.
fn ratio(first: &Outcome, second: &Outcome) -> Option<f64> {
    let (Outcome::Measured(first), Outcome::Measured(second)) = (first, second) else { return None };
    let ratio = match first.unit {
        Unit::Seconds => second.value / first.value,
        Unit::MegabytesPerSecond | Unit::OperationsPerSecond => first.value / second.value,
    };
    ratio.is_finite().then_some(ratio)
}

fn shown(outcome: Option<&Outcome>) -> String {
    match outcome {
        None => "-".to_owned(),
        Some(Outcome::Failed { .. }) => "failed".to_owned(),
        Some(Outcome::Measured(Figure { value, .. })) if *value >= 100.0 => format!("{value:.0}"),
        Some(Outcome::Measured(Figure { value, .. })) => format!("{value:.2}"),
    }
}

/// A table of all reports, one column each, and the ratios of the first to each other.
pub(crate) fn table(reports: &[Report]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in reports.iter().flat_map(|report| &report.figures) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut text = format!("{:<24} {:>6}", "figure", "unit");
    for report in reports {
        let _ = write!(text, " {:>12}", report.system);
    }
    for report in reports.iter().skip(1) {
        let _ = write!(text, " {:>12}", format!("x {}", report.system));
    }
    text.push('\n');
    for name in names {
        let outcomes: Vec<_> = reports.iter().map(|report| report.figure(name)).collect();
        let unit = outcomes.iter().find_map(|outcome| match outcome {
            Some(Outcome::Measured(figure)) => Some(figure.unit.shown()),
            Some(Outcome::Failed { .. }) | None => None,
        });
        let _ = write!(text, "{name:<24} {:>6}", unit.unwrap_or("-"));
        for outcome in &outcomes {
            let _ = write!(text, " {:>12}", shown(*outcome));
        }
        for other in outcomes.iter().skip(1) {
            let ratio = outcomes[0].zip(*other).and_then(|(first, other)| ratio(first, other));
            let _ = write!(text, " {:>12}", ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(system: &str, figures: &[(&str, Outcome)]) -> Report {
        let figures = figures.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.clone())).collect();
        Report { system: system.to_owned(), cold_by: String::new(), figures }
    }

    fn measured(value: f64, unit: Unit) -> Outcome {
        Outcome::Measured(Figure { value, unit, p99_us: None })
    }

    #[test]
    fn a_table_has_every_figure_of_every_system_and_more_is_better() {
        let failed = Outcome::Failed { error: "no".to_owned() };
        let ours = report(
            "ours",
            &[("write", measured(300.0, Unit::MegabytesPerSecond)), ("untar", measured(2.0, Unit::Seconds))],
        );
        let theirs = report(
            "theirs",
            &[
                ("write", measured(100.0, Unit::MegabytesPerSecond)),
                ("untar", measured(23.0, Unit::Seconds)),
                ("stat", failed),
            ],
        );
        let text = table(&[ours, theirs]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words,
            [
                vec!["figure", "unit", "ours", "theirs", "x", "theirs"],
                vec!["write", "MB/s", "300", "100", "3.00"],
                vec!["untar", "s", "2.00", "23.00", "11.50"],
                vec!["stat", "-", "-", "failed", "-"],
            ]
        );
    }

    #[test]
    fn a_report_survives_json() {
        let outcomes =
            [("a", measured(1.5, Unit::OperationsPerSecond)), ("b", Outcome::Failed { error: "no".to_owned() })];
        let before = report("x", &outcomes);
        let after: Report = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
        assert_eq!(after.figures, before.figures);
    }
}
