//! Waits of the leader's collecting (R4), in milliseconds. Simulations wait less, in the same order.

use holdfast_common::limits::REQUEST_DEADLINE_MS;

/// First pause after a disk failed.
pub(crate) const PAUSE_MS_MIN: u64 = 1_000;

/// Times of the sweep and of the collector. The default is what real metanodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest time that any request is believed to be under way.
    pub request_deadline_ms: u64,
    /// Shortest time between two raises of the floor: each time all disks are listed.
    pub raise_interval_ms: u64,
    /// Time between two notes of how far chunk ids have come.
    pub mark_interval_ms: u64,
    /// Longest pause before a disk that failed is asked again.
    pub pause_ms_max: u64,
}

impl Patience {
    const REAL: Self = Self {
        request_deadline_ms: REQUEST_DEADLINE_MS as u64,
        raise_interval_ms: 60_000,
        mark_interval_ms: 10_000,
        pause_ms_max: 60_000,
    };

    /// Time by which the floor stays behind the ids that are given out: a request ends within one deadline, and the ids
    /// it uses were given out at most one before.
    #[must_use]
    pub const fn floor_delay_ms(&self) -> u64 {
        2 * self.request_deadline_ms
    }

    /// A member that has done nothing it was asked for this long is not waited for: from feature level 2 on the table writes down
    /// what it owes. As long as a request may take: a restart or a full queue is over by then, and a comparison of the whole disk,
    /// which is the price, is not paid for it. Half of what the floor stays behind, so that waiting longer would free nothing
    /// sooner.
    #[must_use]
    pub const fn silence_ms_max(&self) -> u64 {
        self.request_deadline_ms
    }

    /// Whether the times stand in the order that the rules need: a debt may be settled by the first floor after it, marks are
    /// younger than the floor's delay, each raise finds a new mark, and nobody is left alone for longer than a request waits.
    #[must_use]
    pub const fn is_ordered(&self) -> bool {
        self.request_deadline_ms > 0
            && 2 * self.silence_ms_max() <= self.floor_delay_ms()
            && self.mark_interval_ms < self.request_deadline_ms
            && self.mark_interval_ms <= self.raise_interval_ms
            && self.raise_interval_ms <= self.floor_delay_ms()
            && PAUSE_MS_MIN <= self.pause_ms_max
            && self.pause_ms_max <= self.request_deadline_ms
    }
}

const _: () = assert!(Patience::REAL.is_ordered());

impl Default for Patience {
    fn default() -> Self {
        Self::REAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_out_of_order_are_seen() {
        let real = Patience::default();
        assert!(real.is_ordered());
        let wrong = [
            Patience { request_deadline_ms: 0, ..real },
            Patience { request_deadline_ms: 20_000, ..real },
            Patience { raise_interval_ms: 121_000, ..real },
            Patience { raise_interval_ms: 9_000, ..real },
            Patience { mark_interval_ms: 60_000, ..real },
            Patience { pause_ms_max: 999, ..real },
            Patience { pause_ms_max: 61_000, ..real },
        ];
        assert!(wrong.iter().all(|patience| !patience.is_ordered()));
    }
}
