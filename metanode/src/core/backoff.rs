//! When disks are asked again that did not answer, or refused.

use super::patience::{PAUSE_MS_MIN, Patience};
use holdfast_common::{DiskId, Pauses};
use std::collections::BTreeMap;

/// The pauses of disks that failed and did not do what was asked since.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pauses: BTreeMap<DiskId, Pause>,
    patience: Patience,
}

#[derive(Debug)]
struct Pause {
    /// Time of the first failure.
    since_ms: u64,
    until_ms: u64,
    pauses: Pauses,
}

impl Backoff {
    pub(crate) fn new(patience: Patience) -> Self {
        Self { pauses: BTreeMap::new(), patience }
    }

    /// It did not answer, or refused: the next pause is twice as long.
    pub(crate) fn failed(&mut self, disk: DiskId, now_ms: u64) {
        let pauses = Pauses::from_ms(PAUSE_MS_MIN, self.patience.pause_ms_max);
        let pause = self.pauses.entry(disk).or_insert(Pause { since_ms: now_ms, until_ms: now_ms, pauses });
        pause.until_ms = now_ms + pause.pauses.next_ms();
    }

    /// It did what was asked.
    pub(crate) fn answered(&mut self, disk: DiskId) {
        self.pauses.remove(&disk);
    }

    /// Whether it is left alone now.
    pub(crate) fn is_paused(&self, disk: DiskId, now_ms: u64) -> bool {
        self.pauses.get(&disk).is_some_and(|pause| pause.until_ms > now_ms)
    }

    /// Time since the first failure; 0 if it does not fail.
    pub(crate) fn silent_ms(&self, disk: DiskId, now_ms: u64) -> u64 {
        self.pauses.get(&disk).map_or(0, |pause| now_ms.saturating_sub(pause.since_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_end_with_an_answer() {
        let (mut backoff, disk) = (Backoff::default(), DiskId(1));
        let mut now_ms = 5;
        for pause_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            backoff.failed(disk, now_ms);
            assert!(backoff.is_paused(disk, now_ms + pause_ms - 1));
            now_ms += pause_ms;
            assert!(!backoff.is_paused(disk, now_ms) && !backoff.is_paused(DiskId(2), now_ms));
            assert_eq!(backoff.silent_ms(disk, now_ms), now_ms - 5);
        }
        backoff.answered(disk);
        backoff.failed(disk, now_ms);
        assert_eq!((backoff.silent_ms(disk, now_ms), backoff.is_paused(disk, now_ms + 1_000)), (0, false));
    }
}
