//! When to read ahead of a reader, and how far. Pure.

use holdfast_common::FileOffset;

/// Window of a reader that just became sequential.
const WINDOW_FIRST_BYTES: u64 = 1 << 20;
/// Largest window: two chunks at full width, so that one is being consumed while the next arrives.
const WINDOW_MAX_BYTES: u64 = 8 << 20;
/// The kernel's own readahead runs in parallel and may arrive out of order by this much.
const DISORDER_BYTES: u64 = 1 << 20;

/// One open file's reading pattern.
#[derive(Debug, Default)]
pub(crate) struct Readahead {
    /// One past the furthest byte read in this run.
    next_offset: FileOffset,
    /// One past the furthest byte asked for ahead.
    ahead_to: FileOffset,
    window_bytes: u64,
}

/// Advice for one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    /// Fetch whole blocks: neighbours will be wanted.
    pub(crate) sequential: bool,
    /// Load this range ahead.
    pub(crate) ahead: Option<(FileOffset, FileOffset)>,
}

impl Readahead {
    /// Takes note of a read and advises.
    pub(crate) fn read(&mut self, offset: FileOffset, length: u64, size_bytes: u64) -> Advice {
        let stop = offset + length;
        let sequential = offset <= self.next_offset + DISORDER_BYTES && stop + DISORDER_BYTES >= self.next_offset;
        if !sequential {
            *self = Self { next_offset: stop, ahead_to: stop, window_bytes: 0 };
            return Advice { sequential: false, ahead: None };
        }
        self.next_offset = self.next_offset.max(stop);
        self.ahead_to = self.ahead_to.max(stop);
        if self.window_bytes > 0 && self.ahead_to > self.next_offset + self.window_bytes / 2 {
            return Advice { sequential: true, ahead: None };
        }
        self.window_bytes = (self.window_bytes * 2).clamp(WINDOW_FIRST_BYTES, WINDOW_MAX_BYTES);
        let from = self.ahead_to;
        let to = (self.next_offset + self.window_bytes).min(FileOffset(size_bytes));
        if from >= to {
            return Advice { sequential: true, ahead: None };
        }
        self.ahead_to = to;
        Advice { sequential: true, ahead: Some((from, to)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn read(readahead: &mut Readahead, offset: u64, length: u64, size_bytes: u64) -> Advice {
        readahead.read(FileOffset(offset), length, size_bytes)
    }

    fn ahead(advice: &Advice) -> Option<(u64, u64)> {
        advice.ahead.map(|(from, to)| (from.0, to.0))
    }

    #[test]
    fn a_sequential_reader_is_kept_ahead_of_without_asking_twice() {
        let mut readahead = Readahead::default();
        let mut asked_to = 0;
        for i in 0..64 {
            let advice = read(&mut readahead, i * MIB / 8, MIB / 8, 100 * MIB);
            assert!(advice.sequential);
            if let Some((from, to)) = ahead(&advice) {
                assert!(from >= asked_to, "{from} was asked before");
                asked_to = to;
            }
            assert!(asked_to > (i + 1) * MIB / 8);
        }
        assert!(asked_to <= 64 * MIB / 8 + WINDOW_MAX_BYTES);
    }

    #[test]
    fn a_random_reader_is_left_alone() {
        let mut readahead = Readahead::default();
        for i in [50u64, 10, 90, 30] {
            let advice = read(&mut readahead, i * MIB, 4096, 100 * MIB);
            assert_eq!(advice, Advice { sequential: false, ahead: None });
        }
    }

    #[test]
    fn nothing_is_asked_behind_the_end() {
        let mut readahead = Readahead::default();
        assert_eq!(ahead(&read(&mut readahead, 0, 4096, 10_000)), Some((4096, 10_000)));
        assert_eq!(ahead(&read(&mut readahead, 4096, 4096, 10_000)), None);
    }

    #[test]
    fn the_window_doubles_up_to_its_most_and_begins_anew_after_a_jump() {
        let mut readahead = Readahead::default();
        let mut windows = Vec::new();
        for i in 0..200 {
            if let Some((_, to)) = ahead(&read(&mut readahead, i * MIB / 4, MIB / 4, 1000 * MIB)) {
                windows.push(to - (i + 1) * MIB / 4);
            }
        }
        assert_eq!(windows[..4], [MIB, 2 * MIB, 4 * MIB, 8 * MIB]);
        assert!(windows[4..].iter().all(|window| *window == WINDOW_MAX_BYTES));
        assert_eq!(read(&mut readahead, 500 * MIB, MIB, 1000 * MIB), Advice { sequential: false, ahead: None });
        let advice = read(&mut readahead, 501 * MIB, MIB, 1000 * MIB);
        assert_eq!(ahead(&advice), Some((502 * MIB, 502 * MIB + WINDOW_FIRST_BYTES)));
    }

    /// The kernel's own readahead brings reads out of order.
    #[test]
    fn a_little_disorder_is_still_sequential_and_asks_for_nothing_twice() {
        let mut readahead = Readahead::default();
        let mut asked_to = 0;
        for i in [1, 0, 3, 2, 5, 4, 7, 6, 9, 8] {
            let advice = read(&mut readahead, i * MIB / 4, MIB / 4, 100 * MIB);
            assert!(advice.sequential, "part {i}");
            if let Some((from, to)) = ahead(&advice) {
                assert!(from >= asked_to && to > from, "part {i}");
                asked_to = to;
            }
        }
        assert!(!read(&mut readahead, 0, 1, 100 * MIB).sequential, "that is too far back");
    }

    #[test]
    fn a_late_read_does_not_move_the_run_back() {
        let mut readahead = Readahead::default();
        for at in [0, 1, 0] {
            assert!(read(&mut readahead, at * MIB, MIB, 100 * MIB).sequential);
        }
        assert!(read(&mut readahead, 3 * MIB, MIB, 100 * MIB).sequential, "as far in front of the second as may be");
        assert!(!read(&mut readahead, 6 * MIB, MIB, 100 * MIB).sequential);
    }
}
