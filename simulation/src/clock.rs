//! Clocks of simulated machines: each runs at its own rate from its own start, and its wall clock may be set.

use std::time::Duration;

use holdfast_common::Random;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// Time of wall clocks at the start of the simulation: some day in 2027.
const WALL_START_NS: i64 = 1_800_000_000 * 1_000_000_000;

/// Times on a machine's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Since the machine's start; never goes back.
    pub(crate) monotonic: Duration,
    pub(crate) wall_ns: i64,
}

impl Times {
    pub(crate) fn monotonic_ns(self) -> u64 {
        u64::try_from(self.monotonic.as_nanos()).expect("a short simulation")
    }
}

/// The clock of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// Thousandths of the true rate.
    rate: u64,
    offset: u64,
    wall_offset_ns: i64,
}

impl Clock {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self { rate: 980 + random.below(41), offset: random.below(1000) * MS, wall_offset_ns: 0 }
    }

    /// Its times at a true time, in nanoseconds.
    pub(crate) fn times(&self, now: u64) -> Times {
        let passed = now / 1000 * self.rate;
        let wall = WALL_START_NS + i64::try_from(passed).unwrap_or(i64::MAX) + self.wall_offset_ns;
        Times { monotonic: Duration::from_nanos(passed + self.offset), wall_ns: wall }
    }

    /// The true time that passes while this clock counts `duration`, rounded up: nothing wakes early.
    pub(crate) fn true_ns(&self, duration: Duration) -> u64 {
        let counted = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2000);
        counted / self.rate * 1000 + 2000
    }

    /// Somebody sets the wall clock.
    pub(crate) fn set_wall(&mut self, by_ns: i64) {
        self.wall_offset_ns += by_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_never_shorter_than_its_clock_says() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let (clock, now) = (Clock::new(&mut random), random.below(1 << 40));
            let wanted = Duration::from_nanos(random.below(1 << 36));
            let later = clock.times(now + clock.true_ns(wanted));
            assert!(later.monotonic >= clock.times(now).monotonic + wanted, "{clock:?} {now} {wanted:?}");
        }
    }
}
