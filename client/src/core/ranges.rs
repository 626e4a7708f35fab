//! A set of numbers as ranges: what is known of a map, what was charged. Pure.

use std::collections::BTreeMap;

/// Ranges by their first number, with one past their last: not empty, not overlapping, not adjoining.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds `from..to`; answers how many of them were not there.
    pub(crate) fn insert(&mut self, mut from: u64, mut to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let (first, end) = (from, to);
        let mut there = 0;
        if let Some((start, stop)) = self.0.range(..from).next_back().map(|(start, stop)| (*start, *stop))
            && stop >= from
        {
            there += stop.min(end) - first;
            (from, to) = (start, to.max(stop));
            self.0.remove(&start);
        }
        while let Some((start, stop)) = self.0.range(from..=to).next().map(|(start, stop)| (*start, *stop)) {
            there += stop.min(end) - start.min(end);
            to = to.max(stop);
            self.0.remove(&start);
        }
        self.0.insert(from, to);
        end - first - there
    }

    /// Takes everything below `end` out; answers how many that were.
    pub(crate) fn take_below(&mut self, end: u64) -> u64 {
        let mut taken = 0;
        while let Some((start, stop)) = self.0.first_key_value().map(|(start, stop)| (*start, *stop))
            && start < end
        {
            self.0.remove(&start);
            taken += stop.min(end) - start;
            if stop > end {
                self.0.insert(end, stop);
            }
        }
        taken
    }

    /// The first one in `from..to` that is not there.
    pub(crate) fn first_missing(&self, from: u64, to: u64) -> Option<u64> {
        let there_to = self.0.range(..=from).next_back().map_or(from, |(_, stop)| from.max(*stop));
        (there_to < to).then_some(there_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Random insertions and takings against a plain array.
        #[test]
        fn behaves_like_an_array(ops in proptest::collection::vec((any::<bool>(), 0u64..100, 0u64..40), 1..40)) {
            let (mut ranges, mut model) = (Ranges::default(), vec![false; 140]);
            let index = |at: u64| usize::try_from(at).unwrap();
            for (takes, at, length) in ops {
                let there = |model: &[bool]| model.iter().filter(|there| **there).count() as u64;
                let before = there(&model);
                if takes {
                    model[..index(at)].fill(false);
                    prop_assert_eq!(ranges.take_below(at), before - there(&model));
                } else {
                    model[index(at)..index(at + length)].fill(true);
                    prop_assert_eq!(ranges.insert(at, at + length), there(&model) - before);
                }
                for (at, there) in (0u64..).zip(&model) {
                    prop_assert_eq!(ranges.first_missing(at, at + 1).is_none(), *there);
                }
                let runs = model.split(|there| !there).filter(|run| !run.is_empty()).count();
                prop_assert_eq!(ranges.len(), runs, "adjoining ranges are one");
            }
        }
    }
}
