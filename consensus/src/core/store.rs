//! Entries that raft-rs reads back: those since a little before the last snapshot, all in memory. Pure.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_common::{LogIndex, Term};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::wire::{conf_state, entry_from_log, log_from_entry};
use crate::log::record::{GroupState, LogEntry, SnapshotMark};
use crate::log::replay::Replayed;

/// Bytes that an entry is counted with beside its data.
const ENTRY_COST_BYTES: u64 = 64;

/// Stable part of a Raft group's log, or entries about to become stable in this turn.
pub(crate) struct EntryStore {
    hard: HardState,
    conf: ConfState,
    /// Index and term before the first entry.
    before: (LogIndex, Term),
    entries: VecDeque<Entry>,
    snapshot: SnapshotMark,
    /// Cost of the entries above the snapshot.
    bytes_above_snapshot: u64,
}

fn cost(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_COST_BYTES
}

impl EntryStore {
    /// Also says which entry is of a kind that this program does not know, if one is; that one and what follows are left out.
    pub(crate) fn new(group: Replayed) -> (Self, Option<LogIndex>) {
        let state = group.state;
        let unknown = group.entries.iter().find(|entry| entry_from_log((*entry).clone()).is_none()).map(|e| e.index);
        let entries: VecDeque<Entry> = group.entries.into_iter().map_while(entry_from_log).collect();
        let mut hard = HardState::default();
        (hard.term, hard.vote) = (state.hard.term.0, state.hard.vote);
        hard.commit = unknown.map_or(state.hard.commit, |index| state.hard.commit.min(index.back(1))).0;
        let mut store = Self {
            hard,
            conf: conf_state(&state.voters, &state.learners),
            before: group.before,
            entries,
            snapshot: state.snapshot,
            bytes_above_snapshot: 0,
        };
        store.bytes_above_snapshot = store.above_snapshot().map(cost).sum();
        (store, unknown)
    }

    fn above_snapshot(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().skip(self.offset(self.snapshot.index.next()))
    }

    /// Position of an index that is at least the first.
    fn offset(&self, index: LogIndex) -> usize {
        usize::try_from(index - self.first()).expect("entries fit memory")
    }

    fn first(&self) -> LogIndex {
        self.before.0.next()
    }

    fn last(&self) -> LogIndex {
        self.before.0 + self.entries.len() as u64
    }

    pub(crate) fn set_hard(&mut self, hard: HardState) {
        self.hard = hard;
    }

    pub(crate) fn mark(&self) -> SnapshotMark {
        self.snapshot
    }

    pub(crate) fn bytes_above_snapshot(&self) -> u64 {
        self.bytes_above_snapshot
    }

    /// Replaces everything from the first entry's index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let index = LogIndex(first.index);
        assert!(index >= self.first() && index <= self.last().next(), "entries must be consecutive");
        let keep = self.offset(index);
        let replaced: u64 = self.entries.iter().skip(keep).map(cost).sum();
        self.entries.truncate(keep);
        self.entries.extend(entries.iter().cloned());
        self.bytes_above_snapshot -= replaced;
        self.bytes_above_snapshot += entries.iter().map(cost).sum::<u64>();
    }

    /// A local snapshot became current: keeps a tail below it for followers that are a little behind.
    pub(crate) fn set_mark(&mut self, mark: SnapshotMark, tail_entries: u64, tail_bytes: u64) {
        self.snapshot = mark;
        self.bytes_above_snapshot = self.above_snapshot().map(cost).sum();
        let mut first_kept = mark.index.next();
        let mut bytes = 0;
        while first_kept > self.first() && mark.index.next() - first_kept < tail_entries {
            let below = first_kept.back(1);
            bytes += cost(&self.entries[self.offset(below)]);
            if bytes > tail_bytes {
                break;
            }
            first_kept = below;
        }
        if first_kept > self.first() {
            let count = self.offset(first_kept);
            let last_dropped = &self.entries[count - 1];
            self.before = (LogIndex(last_dropped.index), Term(last_dropped.term));
            self.entries.drain(..count);
        }
    }

    /// A leader's snapshot takes the place of everything.
    pub(crate) fn install(&mut self, mark: SnapshotMark, conf: ConfState) {
        self.before = (mark.index, mark.term);
        self.entries.clear();
        self.snapshot = mark;
        self.conf = conf;
        self.bytes_above_snapshot = 0;
    }

    /// Everything but the entries, as a log record has it.
    pub(crate) fn group_state(&self, snapshot: SnapshotMark, installed: bool) -> GroupState {
        GroupState {
            hard: super::wire::hard_state(&self.hard),
            snapshot,
            installed,
            voters: self.conf.voters.clone(),
            learners: self.conf.learners.clone(),
        }
    }

    /// The entries that a restart needs.
    pub(crate) fn live_entries(&self) -> Vec<LogEntry> {
        self.above_snapshot().map(log_from_entry).collect()
    }

    pub(crate) fn term_of(&self, index: LogIndex) -> Option<Term> {
        self.try_term_of(index).ok()
    }

    fn try_term_of(&self, index: LogIndex) -> Result<Term, StorageError> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        if index < self.first() {
            return Err(StorageError::Compacted);
        }
        self.entries.get(self.offset(index)).map(|entry| Term(entry.term)).ok_or(StorageError::Unavailable)
    }

    pub(crate) fn conf(&self) -> &ConfState {
        &self.conf
    }
}

/// Data that a snapshot message carries beside its metadata: number and length of the sender's file.
pub(crate) fn snapshot_data(mark: SnapshotMark) -> Bytes {
    let mut data = BytesMut::with_capacity(16);
    data.put_u64_le(mark.file);
    data.put_u64_le(mark.bytes);
    data.freeze()
}

/// The sender's file number, out of what [`snapshot_data`] made.
pub(crate) fn snapshot_file(mut data: &[u8]) -> Option<u64> {
    (data.len() == 16).then(|| data.get_u64_le())
}

impl Storage for EntryStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let (low, high) = (LogIndex(low), LogIndex(high));
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last().next() {
            return Err(StorageError::Unavailable.into());
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0;
        let wanted = self.entries.range(self.offset(low)..self.offset(high));
        let fitting = wanted.enumerate().take_while(|(position, entry)| {
            bytes += cost(entry);
            *position == 0 || bytes <= bytes_max
        });
        Ok(fitting.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        Ok(self.try_term_of(LogIndex(index))?.0)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.snapshot.index == LogIndex::ZERO || self.snapshot.index < LogIndex(request_index) {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot::default();
        snapshot.data = snapshot_data(self.snapshot);
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.snapshot.index.0, self.snapshot.term.0);
        metadata.set_conf_state(self.conf.clone());
        Ok(snapshot)
    }
}
