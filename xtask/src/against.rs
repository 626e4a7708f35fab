//! `cargo xtask bench --against REV`: this build against that of a revision, in interleaved pairs of short runs on fresh
//! clusters, each first in every other pair. Both are measured by this build's benchmark.

use crate::command;
use crate::paired::{self, Comparison, GeometricMean, Series};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Sizes of the short set: some 15 s a run on two idle cores, so that ten pairs take less than ten minutes.
const SHORT_SIZES: [&str; 3] = ["--size-mb=160", "--files=1200", "--runtime=1.2"];
/// Figures of the short set.
const SHORT_FIGURES: &str = "seq_write_1m,seq_read_1m_cold,seq_read_1m_direct,rand_write_4k_fsync,create_4k_1t,\
                             create_4k_8p,stat_cold_1t,ls_l";

/// Figures measured in each pair.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Set {
    /// Sequential write, cold and direct read, random write with fsync, creation by one and by eight, stat, ls -lR
    Short,
}

impl Set {
    fn arguments(self) -> Vec<String> {
        match self {
            Self::Short => {
                let sizes = SHORT_SIZES.iter().map(|size| (*size).to_owned());
                sizes.chain([format!("--only={SHORT_FIGURES}")]).collect()
            }
        }
    }
}

/// One comparison: the other build, the number of pairs, the figures.
pub(crate) struct Plan<'a> {
    pub(crate) revision: &'a str,
    pub(crate) pairs: u32,
    pub(crate) set: Set,
    pub(crate) json: Option<&'a Path>,
    /// Further arguments of `holdfast-bench run`, for both builds.
    pub(crate) arguments: &'a [String],
}

/// Builds the revision, runs the pairs, prints the comparison; fails if this build is worse. `release` holds this build.
pub(crate) fn run(plan: &Plan<'_>, release: &Path) -> Result<ExitCode> {
    let commit =
        output(Command::new("git").args(["rev-parse", "--verify"]).arg(format!("{}^{{commit}}", plan.revision)))
            .with_context(|| format!("{} is no commit", plan.revision))?;
    let place = release.parent().context("the release directory has a parent")?.join("against");
    let old = build(&commit, &place)?;
    let sides = [old, release.join("holdfast")];
    let series = measure(plan, &release.join("holdfast-bench"), &sides, &place)?;
    let comparisons: Option<Vec<Comparison>> = series.iter().map(Comparison::of).collect();
    let comparisons = comparisons.context("a figure is zero; raise --runtime or --files")?;
    print!("{}", table(&comparisons));
    let mean = GeometricMean::of(&series).context("no figures were measured")?;
    let reasons = paired::reasons(&comparisons, mean);
    let GeometricMean { ratio, low, high } = mean;
    println!("{:<50} {:>14.3}   {low:.3} to {high:.3}", "geometric mean of the ratios", ratio);
    println!("{} pairs against {}; intervals: Student's t of the pairs' log ratios", plan.pairs, &commit[..12]);
    reasons.iter().for_each(|reason| println!("worse: {reason}"));
    if let Some(path) = plan.json {
        let raw: Vec<Value> = series.iter().map(|s| json!({"name": s.name, "old": s.old, "new": s.new})).collect();
        let all = json!({
            "against": commit, "pairs": plan.pairs, "interval": "95 percent, Student's t of the log ratios",
            "figures": comparisons, "geometric_mean": mean, "worse": reasons, "values": raw,
        });
        std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the commit out into a worktree of its own and builds it; both stay for the next run, whatever its revision is.
fn build(commit: &str, place: &Path) -> Result<PathBuf> {
    let (tree, target) = (place.join("tree"), place.join("target"));
    let mut git = Command::new("git");
    if tree.join(".git").exists() {
        git.arg("-C").arg(&tree).args(["checkout", "--quiet", "--detach", commit]);
    } else {
        // `cargo clean` removes a worktree without telling git.
        output(Command::new("git").args(["worktree", "prune"]))?;
        git.args(["worktree", "add", "--quiet", "--detach"]).arg(&tree).arg(commit);
    }
    output(&mut git)?;
    println!("building {}", &commit[..12]);
    let mut cargo = command::cargo();
    cargo.args(["build", "--release", "--quiet", "--package", "holdfast"]).current_dir(&tree);
    if !cargo.env("CARGO_TARGET_DIR", &target).status().context("cannot run cargo")?.success() {
        bail!("{commit} does not build");
    }
    Ok(target.join("release").join("holdfast"))
}

/// Runs all pairs; `sides` are the old and the new binary.
fn measure(plan: &Plan<'_>, bench: &Path, sides: &[PathBuf; 2], place: &Path) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    for pair in 0..plan.pairs {
        let began = Instant::now();
        let mut values = [None, None];
        let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            values[side] = Some(measure_once(plan, bench, &sides[side], &place.join("figures.json"))?);
        }
        let [Some(old), Some(new)] = values else { bail!("a side of a pair was not measured") };
        add_pair(&mut series, &old, &new)?;
        println!("pair {} of {} took {:.0} s", pair + 1, plan.pairs, began.elapsed().as_secs_f64());
    }
    Ok(series)
}

/// One run of the benchmark: its figures by name.
fn measure_once(plan: &Plan<'_>, bench: &Path, holdfast: &Path, figures: &Path) -> Result<Value> {
    let mut command = Command::new(bench);
    command.args(["run", "--holdfast"]).arg(holdfast).arg("--json").arg(figures);
    let captured =
        command.args(plan.set.arguments()).args(plan.arguments).output().context("cannot run the benchmark")?;
    if !captured.status.success() {
        bail!("the benchmark of {} failed:\n{}", holdfast.display(), String::from_utf8_lossy(&captured.stderr));
    }
    let text = std::fs::read_to_string(figures).context("the benchmark wrote no figures")?;
    let mut all: Value = serde_json::from_str(&text).context("the benchmark's figures are no JSON")?;
    Ok(all["systems"][0]["figures"].take())
}

/// Adds what one pair measured.
fn add_pair(series: &mut Vec<Series>, old: &Value, new: &Value) -> Result<()> {
    for (name, figure) in new.as_object().context("no figures were measured")? {
        let value = |side: &Value| side[name]["value"].as_f64().with_context(|| format!("{name} has no value"));
        if !series.iter().any(|known| known.name == *name) {
            let unit = figure["unit"].as_str().unwrap_or_default().to_owned();
            series.push(Series { name: name.clone(), unit, old: Vec::new(), new: Vec::new() });
        }
        let entry = series.iter_mut().find(|known| known.name == *name).context("it was just added")?;
        entry.old.push(value(old)?);
        entry.new.push(value(new)?);
    }
    Ok(())
}

fn table(comparisons: &[Comparison]) -> String {
    let mut text =
        format!("{:<24} {:>6} {:>12} {:>12} {:>8}   95% interval\n", "figure", "unit", "old", "new", "new/old");
    for c in comparisons {
        let worse = if c.is_worse() { "  worse" } else { "" };
        text += &format!(
            "{:<24} {:>6} {:>12.2} {:>12.2} {:>8.3}   {:.3} to {:.3}{worse}\n",
            c.name, c.unit, c.median_old, c.median_new, c.ratio, c.low, c.high
        );
    }
    text
}

/// A command's standard output without its last newline.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_kept_together_by_the_name_of_their_figure() {
        let side = |write: f64, stat: f64| json!({"write": {"value": write, "unit": "MB/s"}, "stat": {"value": stat, "unit": "ops/s"}});
        let mut series = Vec::new();
        add_pair(&mut series, &side(1.0, 10.0), &side(2.0, 20.0)).unwrap();
        add_pair(&mut series, &side(3.0, 30.0), &side(4.0, 40.0)).unwrap();
        let write = series.iter().find(|s| s.name == "write").unwrap();
        assert_eq!((write.unit.as_str(), &write.old[..], &write.new[..]), ("MB/s", &[1.0, 3.0][..], &[2.0, 4.0][..]));
        let failed = json!({"write": {"error": "no"}, "stat": {"value": 1.0, "unit": "ops/s"}});
        assert!(add_pair(&mut series, &failed, &side(1.0, 1.0)).is_err());
    }
}
