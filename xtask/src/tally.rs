//! Counting what passed, failed and was skipped.

use std::fmt;
use std::ops::AddAssign;

/// Tests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Tally {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    /// One check of a stage.
    pub(crate) fn check(succeeded: bool) -> Self {
        if succeeded { Self::PASSED } else { Self::FAILED }
    }

    /// Adds up the `test result:` lines of a test binary's output.
    pub(crate) fn of_output(output: &str) -> Option<Self> {
        let mut found = None;
        for line in output.lines() {
            // The line may follow what a test printed without a newline.
            let Some((_, result)) = line.split_once("test result: ") else { continue };
            let Some(tally) = Self::of_result(result) else { continue };
            *found.get_or_insert_with(Self::default) += tally;
        }
        found
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; ...`
    fn of_result(result: &str) -> Option<Self> {
        let (_, counts) = result.split_once(". ")?;
        let mut tally = Self::default();
        for part in counts.split("; ") {
            let (count, what) = part.split_once(' ')?;
            match what {
                "passed" => tally.passed = count.parse().ok()?,
                "failed" => tally.failed = count.parse().ok()?,
                "ignored" => tally.skipped = count.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_one_binary_are_added_up() {
        let output = "running 2 tests\ntest a ... ok\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             noise test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        assert_eq!(Tally::of_output(output), Some(Tally { passed: 5, failed: 4, skipped: 1 }));
    }

    #[test]
    fn an_output_without_a_result_is_no_tally() {
        assert_eq!(Tally::of_output("running 2 tests\ntest result: what\n"), None);
    }

    #[test]
    fn the_closing_line_is_the_one_that_is_read_for() {
        assert_eq!(Tally { passed: 5, failed: 4, skipped: 1 }.to_string(), "5 passed, 4 failed, 1 skipped");
    }
}
