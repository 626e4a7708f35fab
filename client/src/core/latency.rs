//! An estimate of a high quantile of a latency that follows it over time. Pure.

use std::time::Duration;

/// Tracks about the 99th percentile by stochastic approximation: a sample above raises the estimate by a step, one
/// below lowers it by a hundredth of that; the step is a fraction of the estimate, so that it adapts at any scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percentile99 {
    estimate_us: u64,
}

impl Percentile99 {
    pub(crate) fn starting_at(estimate: Duration) -> Self {
        Self { estimate_us: u64::try_from(estimate.as_micros()).unwrap_or(u64::MAX).max(100) }
    }

    pub(crate) fn add(&mut self, sample: Duration) {
        let sample_us = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX);
        let step = (self.estimate_us / 8).max(100);
        if sample_us > self.estimate_us {
            self.estimate_us = self.estimate_us.saturating_add(step).min(sample_us.max(100));
        } else {
            self.estimate_us = self.estimate_us.saturating_sub(step.div_ceil(100)).max(100);
        }
    }

    pub(crate) fn estimate(&self) -> Duration {
        Duration::from_micros(self.estimate_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settles_above_nearly_all_samples() {
        let mut p99 = Percentile99::starting_at(Duration::from_secs(1));
        let sample = |i: u64| Duration::from_micros(500 + (i * 7919) % 1000);
        for i in 0..20_000 {
            p99.add(sample(i));
        }
        let above = (0..1000).filter(|i| sample(*i) > p99.estimate()).count();
        assert!(above < 100, "{above} of 1000 samples above {:?}", p99.estimate());
        assert!(p99.estimate() < Duration::from_micros(2000), "{:?}", p99.estimate());
    }

    #[test]
    fn follows_a_change_upwards_within_some_samples_and_downwards_within_some_thousand() {
        let mut p99 = Percentile99::starting_at(Duration::from_millis(1));
        let slow = Duration::from_millis(100);
        let count = (1..1000).find(|_| {
            p99.add(slow);
            p99.estimate() >= slow
        });
        assert!(count.is_some_and(|count| (2..60).contains(&count)), "{count:?}");
        (0..1000).for_each(|_| p99.add(slow));
        assert!(p99.estimate() <= slow, "not above what was seen: {:?}", p99.estimate());
        let quick = Duration::from_millis(1);
        (0..10_000).for_each(|_| p99.add(quick));
        assert!(p99.estimate() < quick * 2, "{:?}", p99.estimate());
    }

    #[test]
    fn one_sample_moves_it_by_an_eighth_at_most() {
        let mut p99 = Percentile99::starting_at(Duration::from_millis(80));
        p99.add(Duration::MAX);
        assert_eq!(p99.estimate(), Duration::from_millis(90));
        p99.add(Duration::ZERO);
        assert!(p99.estimate() < Duration::from_millis(90) && p99.estimate() > Duration::from_millis(89));
        let mut least = Percentile99::starting_at(Duration::ZERO);
        (0..1000).for_each(|_| least.add(Duration::ZERO));
        assert_eq!(least.estimate(), Duration::from_micros(100), "it never sticks at nothing");
    }
}
