//! Pauses between attempts. Pure: the caller sleeps, or steps when the time has come.

use std::time::Duration;

/// Pauses that double from a first one up to a longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    /// A schedule at its beginning.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// A schedule at its beginning, in milliseconds.
    #[must_use]
    pub const fn from_ms(first_ms: u64, max_ms: u64) -> Self {
        Self::new(Duration::from_millis(first_ms), Duration::from_millis(max_ms))
    }

    /// The pause before the next attempt. Each call means that one has failed.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.max);
        pause
    }

    /// [`Pauses::next_pause`] in milliseconds.
    pub fn next_ms(&mut self) -> u64 {
        u64::try_from(self.next_pause().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut pauses = Pauses::from_ms(30, 200);
        assert_eq!(pauses.next_pause(), Duration::from_millis(30));
        let said: Vec<u64> = (0..4).map(|_| pauses.next_ms()).collect();
        assert_eq!(said, [60, 120, 200, 200]);
    }
}
