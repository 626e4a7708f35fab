//! Segments that each Raft group still needs. Pure.
//!
//! A group needs the segment of its last [`Record::Group`] and those of its entries above its snapshot, as they stand.
//! Everything older than the oldest need of all groups can be recycled: the log is always a suffix of its history.

use std::collections::{BTreeMap, VecDeque};

use holdfast_common::{LogIndex, RaftGroupId};

use super::record::Record;

#[derive(Debug, Default)]
struct Pins {
    /// Segment of the last group record; none while replay has not met one.
    state: Option<u64>,
    snapshot: LogIndex,
    /// (index of the first entry, segment it is in), ascending in both; the next run ends it.
    runs: VecDeque<(LogIndex, u64)>,
    last: LogIndex,
    /// Parts of a carry whose last one has not come: (index of the first entry, count, segment).
    carry: Vec<(LogIndex, u64, u64)>,
}

impl Pins {
    fn oldest(&self) -> u64 {
        let entries = self.runs.iter().rev().find(|(first, _)| *first <= self.snapshot.next()).or(self.runs.front());
        let entries = entries.filter(|_| self.last > self.snapshot).map_or(u64::MAX, |(_, segment)| *segment);
        entries.min(self.state.unwrap_or(0))
    }

    fn append(&mut self, first: LogIndex, count: u64, segment: u64) {
        while self.runs.back().is_some_and(|(start, _)| *start >= first) {
            self.runs.pop_back();
        }
        if self.runs.back().is_none_or(|(_, s)| *s != segment) {
            self.runs.push_back((first, segment));
        }
        self.last = first + (count - 1);
    }

    fn carry(&mut self, first: LogIndex, count: u64, segment: u64, is_last: bool) {
        if self.carry.last().is_some_and(|(start, count, _)| *start + *count != first) {
            self.carry.clear();
        }
        self.carry.push((first, count, segment));
        if is_last {
            let parts = std::mem::take(&mut self.carry);
            parts.into_iter().for_each(|(first, count, segment)| self.append(first, count, segment));
        }
    }

    fn set_snapshot(&mut self, index: LogIndex, installed: bool) {
        self.snapshot = index;
        if installed {
            self.runs.clear();
            self.last = index;
        }
        while self.runs.get(1).is_some_and(|(start, _)| *start <= index.next()) {
            self.runs.pop_front();
        }
    }
}

/// Needs of all Raft groups.
#[derive(Debug, Default)]
pub(crate) struct AllPins {
    groups: BTreeMap<RaftGroupId, Pins>,
}

impl AllPins {
    /// Takes note of a record written to, or found in, `segment`.
    pub(crate) fn note(&mut self, record: &Record, segment: u64) {
        match record {
            Record::Group(group, state) => {
                let pins = self.groups.entry(*group).or_default();
                pins.state = Some(segment);
                pins.carry.clear();
                pins.set_snapshot(state.snapshot.index, state.installed);
            }
            Record::Drop(group) => {
                self.groups.remove(group);
            }
            Record::Hard(..) => {}
            Record::Entries(group, entries) => {
                let pins = self.groups.entry(*group).or_default();
                if let Some(first) = entries.first() {
                    pins.append(first.index, entries.len() as u64, segment);
                }
            }
            Record::Carry(group, entries, is_last) => {
                let pins = self.groups.entry(*group).or_default();
                if let Some(first) = entries.first() {
                    pins.carry(first.index, entries.len() as u64, segment, *is_last);
                }
            }
        }
    }

    /// Oldest segment that any Raft group needs.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.groups.values().map(Pins::oldest).min()
    }

    /// Raft groups that need `segment` or an older one.
    pub(crate) fn holders(&self, segment: u64) -> Vec<RaftGroupId> {
        self.groups.iter().filter(|(_, pins)| pins.oldest() <= segment).map(|(group, _)| *group).collect()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::Term;

    use super::super::record::{GroupState, HardState, LogEntry, SnapshotMark};
    use super::*;

    fn entries(first: u64, count: u64) -> Record {
        let entry = |index| LogEntry { index: LogIndex(index), term: Term(1), kind: 0, data: bytes::Bytes::new() };
        Record::Entries(RaftGroupId(7), (first..first + count).map(entry).collect())
    }

    fn state(index: u64, installed: bool) -> Record {
        let snapshot = SnapshotMark { index: LogIndex(index), ..SnapshotMark::default() };
        let hard = HardState::default();
        Record::Group(RaftGroupId(7), GroupState { hard, snapshot, installed, voters: vec![1], learners: vec![] })
    }

    #[test]
    fn a_group_needs_its_state_record_and_its_entries_above_the_snapshot() {
        let mut pins = AllPins::default();
        pins.note(&state(0, false), 1);
        pins.note(&entries(1, 10), 2);
        pins.note(&entries(11, 10), 3);
        assert_eq!(pins.oldest(), Some(1));
        pins.note(&state(5, false), 4);
        assert_eq!(pins.oldest(), Some(2));
        pins.note(&state(10, false), 4);
        assert_eq!(pins.oldest(), Some(3));
        pins.note(&state(20, false), 5);
        assert_eq!(pins.oldest(), Some(5));
        pins.note(&entries(21, 1), 6);
        assert_eq!(pins.holders(4), []);
        assert_eq!(pins.holders(5), [RaftGroupId(7)]);
    }

    #[test]
    fn replaced_entries_are_needed_no_more() {
        let mut pins = AllPins::default();
        pins.note(&entries(1, 10), 2);
        pins.note(&entries(4, 10), 3);
        pins.note(&state(3, false), 4);
        assert_eq!(pins.oldest(), Some(3));
        pins.note(&entries(4, 1), 5);
        assert_eq!(pins.oldest(), Some(4));
    }

    #[test]
    fn an_installed_snapshot_needs_nothing_before_it() {
        let mut pins = AllPins::default();
        pins.note(&entries(1, 10), 2);
        pins.note(&state(3, true), 4);
        assert_eq!(pins.oldest(), Some(4));
    }

    #[test]
    fn a_dropped_group_needs_nothing() {
        let mut pins = AllPins::default();
        pins.note(&state(0, false), 1);
        pins.note(&Record::Drop(RaftGroupId(7)), 2);
        assert_eq!(pins.oldest(), None);
    }
}
