//! Contents of a log, and their bytes (docs/disk-format/log.md). Pure. Knows nothing of raft-rs.

use bytes::{Buf, BufMut, Bytes};
use holdfast_common::{LogIndex, RaftGroupId, Term};

/// One entry of a Raft group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    /// Raft's entry type: 0 is a command.
    pub(crate) kind: u8,
    pub(crate) data: Bytes,
}

/// Promises of a replica: its term, vote and commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct HardState {
    pub(crate) term: Term,
    pub(crate) vote: u64,
    pub(crate) commit: LogIndex,
}

/// The current snapshot of a Raft group; index 0 is the empty state machine, which has no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct SnapshotMark {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    /// Number in the file's name.
    pub(crate) file: u64,
    pub(crate) bytes: u64,
}

/// Everything of a group but its entries: creates it, makes a snapshot current, or carries it forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupState {
    pub(crate) hard: HardState,
    pub(crate) snapshot: SnapshotMark,
    /// The snapshot came from the leader: entries before this record are no part of its history.
    pub(crate) installed: bool,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
}

/// One record of one Raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Group(RaftGroupId, GroupState),
    Drop(RaftGroupId),
    Hard(RaftGroupId, HardState),
    /// Consecutive entries, not none; they replace whatever the group has from the first one's index on.
    Entries(RaftGroupId, Vec<LogEntry>),
    /// All entries of a group once more, so that older segments may go. They may take several records, in order and with nothing
    /// of their group between them; they count only when the last one is there, because each by itself would cut off what
    /// follows it.
    Carry(RaftGroupId, Vec<LogEntry>, IsLast),
}

/// Whether a part of a carry is its last one.
pub(crate) type IsLast = bool;

const GROUP: u8 = 1;
const DROP: u8 = 2;
const HARD: u8 = 3;
const ENTRIES: u8 = 4;
const CARRY: u8 = 5;

/// Bytes an entry takes beside its data.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 13;

/// The bytes are not records, though their checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl Record {
    /// The Raft group whose record it is.
    pub(crate) fn group(&self) -> RaftGroupId {
        match self {
            Self::Group(group, _)
            | Self::Drop(group)
            | Self::Hard(group, _)
            | Self::Entries(group, _)
            | Self::Carry(group, ..) => *group,
        }
    }

    /// Upper bound of the bytes that [`Self::encode`] adds.
    pub(crate) fn encoded_bytes(&self) -> usize {
        9 + match self {
            Self::Group(_, state) => 61 + 8 * (state.voters.len() + state.learners.len()),
            Self::Drop(_) => 0,
            Self::Hard(..) => 24,
            Self::Entries(_, entries) | Self::Carry(_, entries, _) => {
                13 + entries.iter().map(|e| ENTRY_OVERHEAD_BYTES + e.data.len()).sum::<usize>()
            }
        }
    }

    /// Divides entries into records of at most `bytes_max`, or of one entry.
    pub(crate) fn split(self, bytes_max: usize) -> Vec<Self> {
        let whole = self.encoded_bytes() <= bytes_max;
        let (group, entries, carry) = match self {
            Self::Entries(group, entries) if !whole => (group, entries, None),
            Self::Carry(group, entries, is_last) if !whole => (group, entries, Some(is_last)),
            other => return vec![other],
        };
        let mut parts: Vec<Vec<LogEntry>> = vec![Vec::new()];
        let mut used = 0;
        for entry in entries {
            let bytes = ENTRY_OVERHEAD_BYTES + entry.data.len();
            if used > 0 && 22 + used + bytes > bytes_max {
                parts.push(Vec::new());
                used = 0;
            }
            used += bytes;
            parts.last_mut().expect("never empty").push(entry);
        }
        let last = parts.len() - 1;
        let numbered = parts.into_iter().enumerate();
        let part = |(number, part)| match carry {
            Some(is_last) => Self::Carry(group, part, is_last && number == last),
            None => Self::Entries(group, part),
        };
        numbered.map(part).collect()
    }

    pub(crate) fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Group(group, state) => {
                head(to, GROUP, *group);
                hard(to, &state.hard);
                let snapshot = &state.snapshot;
                for number in [snapshot.index.0, snapshot.term.0, snapshot.file, snapshot.bytes] {
                    to.put_u64_le(number);
                }
                to.put_u8(u8::from(state.installed));
                for members in [&state.voters, &state.learners] {
                    to.put_u16_le(u16::try_from(members.len()).expect("a group has few members"));
                    members.iter().for_each(|id| to.put_u64_le(*id));
                }
            }
            Self::Drop(group) => head(to, DROP, *group),
            Self::Hard(group, state) => {
                head(to, HARD, *group);
                hard(to, state);
            }
            Self::Entries(group, entries) => {
                head(to, ENTRIES, *group);
                put_entries(to, entries);
            }
            Self::Carry(group, entries, is_last) => {
                head(to, CARRY, *group);
                to.put_u8(u8::from(*is_last));
                put_entries(to, entries);
            }
        }
    }

    /// Reads one record off the front.
    pub(crate) fn decode(from: &mut Bytes) -> Result<Self, Malformed> {
        need(from, 9)?;
        let kind = from.get_u8();
        let group = RaftGroupId(from.get_u64_le());
        match kind {
            GROUP => decode_group(group, from),
            DROP => Ok(Self::Drop(group)),
            HARD => {
                need(from, 24)?;
                Ok(Self::Hard(group, decode_hard(from)))
            }
            ENTRIES => Ok(Self::Entries(group, decode_entries(from)?)),
            CARRY => {
                need(from, 1)?;
                let is_last = decode_flag(from)?;
                Ok(Self::Carry(group, decode_entries(from)?, is_last))
            }
            _ => Err(Malformed("unknown kind")),
        }
    }
}

fn head(to: &mut Vec<u8>, kind: u8, group: RaftGroupId) {
    to.put_u8(kind);
    to.put_u64_le(group.0);
}

fn hard(to: &mut Vec<u8>, state: &HardState) {
    to.put_u64_le(state.term.0);
    to.put_u64_le(state.vote);
    to.put_u64_le(state.commit.0);
}

fn put_entries(to: &mut Vec<u8>, entries: &[LogEntry]) {
    to.put_u64_le(entries.first().map_or(LogIndex::ZERO, |e| e.index).0);
    to.put_u32_le(u32::try_from(entries.len()).expect("a batch is bounded"));
    for entry in entries {
        to.put_u64_le(entry.term.0);
        to.put_u8(entry.kind);
        to.put_u32_le(u32::try_from(entry.data.len()).expect("a batch is bounded"));
        to.put_slice(&entry.data);
    }
}

fn decode_flag(from: &mut Bytes) -> Result<bool, Malformed> {
    match from.get_u8() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("flag")),
    }
}

fn need(from: &Bytes, bytes: usize) -> Result<(), Malformed> {
    if from.remaining() < bytes { Err(Malformed("too short")) } else { Ok(()) }
}

fn decode_hard(from: &mut Bytes) -> HardState {
    HardState { term: Term(from.get_u64_le()), vote: from.get_u64_le(), commit: LogIndex(from.get_u64_le()) }
}

fn decode_group(group: RaftGroupId, from: &mut Bytes) -> Result<Record, Malformed> {
    need(from, 57)?;
    let hard = decode_hard(from);
    let snapshot = SnapshotMark {
        index: LogIndex(from.get_u64_le()),
        term: Term(from.get_u64_le()),
        file: from.get_u64_le(),
        bytes: from.get_u64_le(),
    };
    let installed = decode_flag(from)?;
    let voters = decode_members(from)?;
    let learners = decode_members(from)?;
    Ok(Record::Group(group, GroupState { hard, snapshot, installed, voters, learners }))
}

fn decode_members(from: &mut Bytes) -> Result<Vec<u64>, Malformed> {
    need(from, 2)?;
    let count = usize::from(from.get_u16_le());
    need(from, count * 8)?;
    Ok((0..count).map(|_| from.get_u64_le()).collect())
}

fn decode_entries(from: &mut Bytes) -> Result<Vec<LogEntry>, Malformed> {
    need(from, 12)?;
    let first = from.get_u64_le();
    let count = from.get_u32_le();
    if count == 0 || first == 0 || first.checked_add(u64::from(count)).is_none() {
        return Err(Malformed("entries"));
    }
    let mut entries = Vec::with_capacity((count as usize).min(from.remaining() / ENTRY_OVERHEAD_BYTES));
    for index in first..first + u64::from(count) {
        need(from, ENTRY_OVERHEAD_BYTES)?;
        let term = Term(from.get_u64_le());
        let kind = from.get_u8();
        let length = from.get_u32_le() as usize;
        need(from, length)?;
        // A copy, so that one entry kept in memory does not keep its whole segment there.
        entries.push(LogEntry {
            index: LogIndex(index),
            term,
            kind,
            data: Bytes::copy_from_slice(&from.split_to(length)),
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let hard = || {
            (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, vote, commit)| HardState {
                term: Term(term),
                vote,
                commit: LogIndex(commit),
            })
        };
        let state = (hard(), any::<[u64; 4]>(), any::<bool>(), prop::collection::vec(any::<u64>(), 0..4)).prop_map(
            |(hard, [index, term, file, bytes], installed, voters)| GroupState {
                hard,
                snapshot: SnapshotMark { index: LogIndex(index), term: Term(term), file, bytes },
                installed,
                learners: voters.iter().map(|v| v ^ 1).collect(),
                voters,
            },
        );
        let entries = (1..1u64 << 60, prop::collection::vec((any::<u64>(), any::<u8>(), any::<Vec<u8>>()), 1..5))
            .prop_map(|(first, list)| {
                list.into_iter()
                    .zip(first..)
                    .map(|((term, kind, data), index)| LogEntry {
                        index: LogIndex(index),
                        term: Term(term),
                        kind,
                        data: data.into(),
                    })
                    .collect::<Vec<_>>()
            });
        prop_oneof![
            (any::<u64>(), state).prop_map(|(g, s)| Record::Group(RaftGroupId(g), s)),
            any::<u64>().prop_map(|g| Record::Drop(RaftGroupId(g))),
            (any::<u64>(), hard()).prop_map(|(g, h)| Record::Hard(RaftGroupId(g), h)),
            (any::<u64>(), entries.clone()).prop_map(|(g, e)| Record::Entries(RaftGroupId(g), e)),
            (any::<u64>(), entries, any::<bool>()).prop_map(|(g, e, last)| Record::Carry(RaftGroupId(g), e, last)),
        ]
    }

    proptest! {
        #[test]
        fn a_record_reads_back_and_is_no_longer_than_announced(record in any_record()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert!(bytes.len() <= record.encoded_bytes());
            let mut from = Bytes::from(bytes);
            prop_assert_eq!(Record::decode(&mut from), Ok(record));
            prop_assert!(from.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            let _ = Record::decode(&mut Bytes::from(bytes));
        }
    }
}
