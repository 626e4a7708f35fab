//! Paired comparison of two builds: ratios, their intervals and the verdict. Pure.
//!
//! Each pair gives the logarithm of one ratio new/old, above 0 if new is better. The interval is Student's t interval of
//! the mean of these logarithms, taken back by the exponential: slow drift of the machine falls on both sides of a pair and
//! drops out of its ratio.

use serde::Serialize;

/// A figure whose interval lies wholly below this is worse.
pub(crate) const FIGURE_RATIO_MIN: f64 = 0.95;
/// Lowest geometric mean of all figures' ratios.
pub(crate) const MEAN_RATIO_MIN: f64 = 0.98;

/// One figure of both builds, pair by pair; all values are positive.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) old: Vec<f64>,
    pub(crate) new: Vec<f64>,
}

impl Series {
    /// Logarithm of each pair's ratio, above 0 if new is better; `None` if a value is not positive.
    fn logarithms(&self) -> Option<Vec<f64>> {
        let less_is_better = self.unit == "s";
        let logarithm = |(old, new): (&f64, &f64)| {
            let ratio = if less_is_better { old / new } else { new / old };
            (*old > 0.0 && *new > 0.0 && ratio.is_finite()).then(|| ratio.ln())
        };
        self.old.iter().zip(&self.new).map(logarithm).collect()
    }
}

/// Comparison of one figure over all pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) median_old: f64,
    pub(crate) median_new: f64,
    /// Geometric mean of the pairs' ratios; above 1 new is better, whatever the unit.
    pub(crate) ratio: f64,
    /// Bounds of the 95 percent interval of `ratio`.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Comparison {
    /// `None` with fewer than two pairs, or with a value that is not positive.
    pub(crate) fn of(series: &Series) -> Option<Self> {
        let (center, half_width) = mean_and_half_width(&series.logarithms()?)?;
        Some(Self {
            name: series.name.clone(),
            unit: series.unit.clone(),
            median_old: median(&series.old)?,
            median_new: median(&series.new)?,
            ratio: center.exp(),
            low: (center - half_width).exp(),
            high: (center + half_width).exp(),
        })
    }

    /// Whether the whole interval lies below the bound.
    pub(crate) fn is_worse(&self) -> bool {
        self.high < FIGURE_RATIO_MIN
    }
}

/// Geometric mean of all figures' ratios, with the interval of the pairs' own geometric means: a wide one says that the machine
/// was too noisy to judge by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct GeometricMean {
    pub(crate) ratio: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl GeometricMean {
    /// `None` under the same conditions as a figure's comparison, or without figures.
    pub(crate) fn of(series: &[Series]) -> Option<Self> {
        let all: Vec<Vec<f64>> = series.iter().map(Series::logarithms).collect::<Option<_>>()?;
        let pairs = 0..all.first()?.len();
        let mean_of_pair = |pair: usize| {
            let figures: Option<Vec<f64>> = all.iter().map(|figure| figure.get(pair).copied()).collect();
            figures.map(|figures| figures.iter().sum::<f64>() / figures.len() as f64)
        };
        let means: Vec<f64> = pairs.map(mean_of_pair).collect::<Option<_>>()?;
        let (center, half_width) = mean_and_half_width(&means)?;
        Some(Self { ratio: center.exp(), low: (center - half_width).exp(), high: (center + half_width).exp() })
    }
}

/// Sentences that say why new is worse; none if it is not.
pub(crate) fn reasons(comparisons: &[Comparison], mean: GeometricMean) -> Vec<String> {
    let worse = comparisons.iter().filter(|c| c.is_worse()).map(|c| {
        format!("{}: the ratio's interval {:.3} to {:.3} lies below {FIGURE_RATIO_MIN}", c.name, c.low, c.high)
    });
    let ratio = mean.ratio;
    let low_mean = (ratio < MEAN_RATIO_MIN).then(|| format!("the geometric mean {ratio:.3} is below {MEAN_RATIO_MIN}"));
    worse.chain(low_mean).collect()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// Mean, and half the width of its 95 percent interval; `None` with fewer than two values.
fn mean_and_half_width(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let degrees = values.len().checked_sub(1).filter(|degrees| *degrees > 0)?;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / degrees as f64;
    Some((mean, t_quantile(degrees) * (variance / count).sqrt()))
}

/// 97.5 percent quantile of Student's t distribution: a table, and beyond it the expansion in 1/degrees of Fisher and Cornish
/// (Abramowitz and Stegun 26.7.5, two terms), which is within 0.001 there.
fn t_quantile(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    const NORMAL: f64 = 1.959_964;
    let index = degrees.saturating_sub(1);
    TABLE.get(index).copied().unwrap_or_else(|| {
        let (z, n) = (NORMAL, degrees as f64);
        z + (z.powi(3) + z) / (4.0 * n) + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 0.001
    }

    fn series(unit: &str, old: &[f64], new: &[f64]) -> Series {
        Series { name: "figure".to_owned(), unit: unit.to_owned(), old: old.to_vec(), new: new.to_vec() }
    }

    fn comparison(ratio: f64, low: f64, high: f64) -> Comparison {
        let (name, unit) = ("figure".to_owned(), "ops/s".to_owned());
        Comparison { name, unit, median_old: 1.0, median_new: ratio, ratio, low, high }
    }

    #[test]
    fn the_interval_is_that_of_the_textbook() {
        // Student's sleep data (1908), paired differences: mean 1.58, 95 percent interval 0.700 to 2.460.
        let differences = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];
        let (mean, half_width) = mean_and_half_width(&differences).unwrap();
        assert!(near(mean, 1.58) && near(mean - half_width, 0.700) && near(mean + half_width, 2.460));
        let old = vec![100.0; 10];
        let new: Vec<f64> = differences.iter().map(|d: &f64| 100.0 * d.exp()).collect();
        let found = Comparison::of(&series("ops/s", &old, &new)).unwrap();
        assert!(near(found.ratio, 1.58_f64.exp()) && near(found.low.ln(), 0.700) && near(found.high.ln(), 2.460));
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, known) in
            [(1, 12.706), (9, 2.262), (30, 2.042), (31, 2.040), (40, 2.021), (60, 2.000), (120, 1.980)]
        {
            assert!(near(t_quantile(degrees), known), "{degrees}: {}", t_quantile(degrees));
        }
    }

    #[test]
    fn twice_the_rate_and_half_the_seconds_are_both_a_ratio_of_two() {
        let faster = Comparison::of(&series("MB/s", &[100.0, 110.0, 90.0], &[200.0, 220.0, 180.0])).unwrap();
        let shorter = Comparison::of(&series("s", &[4.0, 6.0, 5.0], &[2.0, 3.0, 2.5])).unwrap();
        for found in [&faster, &shorter] {
            assert!(near(found.ratio, 2.0) && near(found.low, 2.0) && near(found.high, 2.0));
        }
        assert_eq!((faster.median_old, faster.median_new), (100.0, 200.0));
    }

    #[test]
    fn drift_that_falls_on_both_sides_of_a_pair_drops_out() {
        let found = Comparison::of(&series("ops/s", &[100.0, 50.0, 25.0, 400.0], &[90.0, 45.0, 22.5, 360.0])).unwrap();
        assert!(near(found.low, 0.9) && near(found.high, 0.9) && found.is_worse());
    }

    #[test]
    fn one_pair_or_a_value_of_zero_says_nothing() {
        assert_eq!(Comparison::of(&series("ops/s", &[1.0], &[1.0])), None);
        assert_eq!(Comparison::of(&series("ops/s", &[1.0, 1.0], &[1.0, 0.0])), None);
    }

    #[test]
    fn a_median_of_an_even_count_lies_in_the_middle() {
        assert_eq!(
            (median(&[4.0, 1.0, 3.0, 2.0]), median(&[3.0, 1.0, 2.0]), median(&[])),
            (Some(2.5), Some(2.0), None)
        );
    }

    #[test]
    fn worse_is_an_interval_below_its_bound_or_a_mean_below_its_own() {
        let mean = |ratio: f64| GeometricMean { ratio, low: ratio, high: ratio };
        assert!(reasons(&[comparison(0.90, 0.80, 0.96), comparison(1.10, 1.0, 1.2)], mean(0.99)).is_empty());
        assert_eq!(reasons(&[comparison(0.90, 0.85, 0.94), comparison(1.10, 1.0, 1.2)], mean(0.99)).len(), 1);
        assert_eq!(reasons(&[comparison(0.97, 0.9, 1.1)], mean(0.97)).len(), 1);
    }

    #[test]
    fn the_geometric_mean_is_over_all_figures_and_its_interval_over_the_pairs() {
        let twice = series("MB/s", &[1.0, 1.0, 1.0], &[2.0, 2.2, 1.8]);
        let half = series("ops/s", &[2.0, 2.2, 1.8], &[1.0, 1.0, 1.0]);
        let found = GeometricMean::of(&[twice.clone(), half]).unwrap();
        assert!(near(found.ratio, 1.0) && near(found.low, 1.0) && near(found.high, 1.0));
        let alone = Comparison::of(&twice).unwrap();
        let found = GeometricMean::of(&[twice]).unwrap();
        assert!(near(found.ratio, alone.ratio) && near(found.low, alone.low) && near(found.high, alone.high));
        assert_eq!(GeometricMean::of(&[]), None);
    }
}
