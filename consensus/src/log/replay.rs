//! From records in their order to the Raft groups they describe. Pure.
//!
//! The log is a suffix of its history, so entries of a group may come before the first group record that is left: they
//! wait for it. Whatever has no group record at the end is damage, because its drop record would be there too.

use std::collections::BTreeMap;

use holdfast_common::{LogIndex, RaftGroupId, Term};

use super::record::{GroupState, HardState, LogEntry, Record};
use crate::sabotage::Sabotage;

/// A Raft group as its records leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// With the last hard state in it.
    pub(crate) state: GroupState,
    /// Index and term of the entry before the first of `entries`.
    pub(crate) before: (LogIndex, Term),
    /// Without a gap; the first is at most the one after the snapshot.
    pub(crate) entries: Vec<LogEntry>,
}

#[derive(Debug, Default)]
struct Partial {
    state: Option<GroupState>,
    hard: HardState,
    entries: BTreeMap<LogIndex, LogEntry>,
    /// Parts of a carry whose last one has not come.
    carry: Vec<LogEntry>,
}

impl Partial {
    /// Entries take the place of everything from the first one's index on.
    fn replace(&mut self, entries: Vec<LogEntry>) {
        if let Some(first) = entries.first() {
            drop(self.entries.split_off(&first.index));
        }
        self.entries.extend(entries.into_iter().map(|e| (e.index, e)));
    }
}

/// Contradiction between records of a Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Contradiction {
    #[error("group {group} has entries but no state")]
    NoState { group: RaftGroupId },
    #[error("group {group}: entry {index} contradicts its snapshot")]
    OtherTerm { group: RaftGroupId, index: LogIndex },
    #[error("group {group}: entry {index} is missing")]
    Gap { group: RaftGroupId, index: LogIndex },
    #[error("group {group}: entries up to {commit} were committed, {last} is the last")]
    CommittedLost { group: RaftGroupId, commit: LogIndex, last: LogIndex },
}

/// Takes records one by one.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    groups: BTreeMap<RaftGroupId, Partial>,
    tail_entries: u64,
    sabotage: Sabotage,
}

impl Replay {
    /// Keeps at most `tail_entries` entries below each group's snapshot.
    pub(crate) fn new(tail_entries: u64, sabotage: Sabotage) -> Self {
        Self { groups: BTreeMap::new(), tail_entries, sabotage }
    }

    pub(crate) fn take(&mut self, record: Record) {
        match record {
            Record::Group(group, state) => {
                let partial = self.groups.entry(group).or_default();
                partial.carry.clear();
                if state.installed {
                    partial.entries.clear();
                }
                let keep_from = state.snapshot.index.back(self.tail_entries);
                partial.entries = partial.entries.split_off(&keep_from);
                partial.hard = state.hard;
                partial.state = Some(state);
            }
            Record::Drop(group) => {
                self.groups.remove(&group);
            }
            Record::Hard(group, hard) => self.groups.entry(group).or_default().hard = hard,
            Record::Entries(group, entries) => self.groups.entry(group).or_default().replace(entries),
            Record::Carry(group, entries, is_last) => {
                let partial = self.groups.entry(group).or_default();
                let follows = partial.carry.last().zip(entries.first()).is_none_or(|(a, b)| a.index.next() == b.index);
                if !follows {
                    // A carry that a crash cut off; this is the next one.
                    partial.carry.clear();
                }
                partial.carry.extend(entries);
                if is_last || self.sabotage == Sabotage::CarryCountedInParts {
                    let carried = std::mem::take(&mut partial.carry);
                    partial.replace(carried);
                }
            }
        }
    }

    /// The Raft groups, or the first contradiction.
    pub(crate) fn finish(self) -> Result<BTreeMap<RaftGroupId, Replayed>, Contradiction> {
        self.groups.into_iter().map(|(group, partial)| Ok((group, complete(group, partial)?))).collect()
    }
}

fn complete(group: RaftGroupId, mut partial: Partial) -> Result<Replayed, Contradiction> {
    let Some(mut state) = partial.state else {
        return Err(Contradiction::NoState { group });
    };
    state.hard = partial.hard;
    let snapshot = state.snapshot;
    if let Some(entry) = partial.entries.get(&snapshot.index)
        && entry.term != snapshot.term
    {
        return Err(Contradiction::OtherTerm { group, index: snapshot.index });
    }
    // Below the snapshot only an unbroken tail is of use.
    let mut tail_start = snapshot.index.next();
    while partial.entries.contains_key(&tail_start.back(1)) {
        tail_start = tail_start.back(1);
    }
    let mut entries: Vec<LogEntry> = partial.entries.split_off(&tail_start).into_values().collect();
    let expected = (0..).map(|n| tail_start + n);
    if let Some((_, index)) = entries.iter().zip(expected).find(|(entry, index)| entry.index != *index) {
        return Err(Contradiction::Gap { group, index });
    }
    let mut before = (snapshot.index, snapshot.term);
    if tail_start <= snapshot.index {
        // The term of the entry before the tail is not known: the tail's first entry takes its place.
        let first = entries.remove(0);
        before = (first.index, first.term);
    }
    let last = entries.last().map_or(snapshot.index, |e| e.index);
    if state.hard.commit > last {
        return Err(Contradiction::CommittedLost { group, commit: state.hard.commit, last });
    }
    state.hard.commit = state.hard.commit.max(snapshot.index);
    Ok(Replayed { state, before, entries })
}

#[cfg(test)]
mod tests {
    use super::super::record::SnapshotMark;
    use super::*;

    fn entry(index: u64, term: u64) -> LogEntry {
        LogEntry { index: LogIndex(index), term: Term(term), kind: 0, data: bytes::Bytes::new() }
    }

    fn state(index: u64, term: u64, installed: bool) -> Record {
        let (index, term) = (LogIndex(index), Term(term));
        let snapshot = SnapshotMark { index, term, file: 1, bytes: 1 };
        let hard = HardState { term, vote: 0, commit: index };
        Record::Group(RaftGroupId(7), GroupState { hard, snapshot, installed, voters: vec![1], learners: vec![] })
    }

    fn replay(records: Vec<Record>) -> Result<BTreeMap<RaftGroupId, Replayed>, Contradiction> {
        let mut replay = Replay::new(100, Sabotage::None);
        records.into_iter().for_each(|record| replay.take(record));
        replay.finish()
    }

    #[test]
    fn entries_before_the_first_group_record_count() {
        let groups = replay(vec![
            Record::Entries(RaftGroupId(7), vec![entry(4, 1), entry(5, 1), entry(6, 1)]),
            state(4, 1, false),
        ])
        .unwrap();
        assert_eq!(groups[&RaftGroupId(7)].before, (LogIndex(4), Term(1)));
        assert_eq!(groups[&RaftGroupId(7)].entries, vec![entry(5, 1), entry(6, 1)]);
    }

    #[test]
    fn later_entries_replace_from_their_first_index_on() {
        let groups = replay(vec![
            state(0, 0, false),
            Record::Entries(RaftGroupId(7), vec![entry(1, 1), entry(2, 1), entry(3, 1)]),
            Record::Entries(RaftGroupId(7), vec![entry(2, 2)]),
        ])
        .unwrap();
        assert_eq!(groups[&RaftGroupId(7)].entries, vec![entry(1, 1), entry(2, 2)]);
    }

    #[test]
    fn an_installed_snapshot_clears_what_was_before() {
        let groups = replay(vec![
            state(0, 0, false),
            Record::Entries(RaftGroupId(7), vec![entry(1, 1), entry(2, 1), entry(3, 1)]),
            state(2, 5, true),
        ])
        .unwrap();
        assert_eq!(
            (groups[&RaftGroupId(7)].before, groups[&RaftGroupId(7)].entries.len()),
            ((LogIndex(2), Term(5)), 0)
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let gap = vec![state(2, 1, false), Record::Entries(RaftGroupId(7), vec![entry(4, 1)])];
        let orphan = vec![Record::Entries(RaftGroupId(7), vec![entry(1, 1)])];
        let lost = vec![
            state(0, 0, false),
            Record::Entries(RaftGroupId(7), vec![entry(1, 1)]),
            Record::Hard(RaftGroupId(7), HardState { term: Term(1), vote: 1, commit: LogIndex(2) }),
        ];
        let other = vec![Record::Entries(RaftGroupId(7), vec![entry(3, 1), entry(4, 1)]), state(3, 2, false)];
        let (two, three) = (LogIndex(2), LogIndex(3));
        let expected = [
            (gap, Contradiction::Gap { group: RaftGroupId(7), index: three }, "group 7: entry 3 is missing"),
            (orphan, Contradiction::NoState { group: RaftGroupId(7) }, "group 7 has entries but no state"),
            (
                lost,
                Contradiction::CommittedLost { group: RaftGroupId(7), commit: two, last: LogIndex(1) },
                "group 7: entries up to 2 were committed, 1 is the last",
            ),
            (
                other,
                Contradiction::OtherTerm { group: RaftGroupId(7), index: three },
                "group 7: entry 3 contradicts its snapshot",
            ),
        ];
        for (records, contradiction, sentence) in expected {
            assert_eq!(replay(records.clone()), Err(contradiction), "{records:?}");
            assert_eq!(contradiction.to_string(), sentence);
        }
    }

    #[test]
    fn a_dropped_group_is_gone() {
        assert_eq!(
            replay(vec![Record::Entries(RaftGroupId(7), vec![entry(1, 1)]), Record::Drop(RaftGroupId(7))]),
            Ok(BTreeMap::new())
        );
    }
}
