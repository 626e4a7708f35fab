//! The one log that all replicas must agree on, applied once by a table of the simulation's own.

use bytes::Bytes;
use holdfast_common::LogIndex;
use holdfast_metanode::Table;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, MutateResponse};
use holdfast_proto::record::TableCommand;
use prost::Message;

/// One entry, as the first replica that applied it had it.
pub(crate) struct Entry {
    bytes: Bytes,
    /// `None` for the empty entries of new leaders.
    command: Option<TableCommand>,
    answer: MutateResponse,
    digest: u64,
    /// A caller was told its outcome.
    claimed: bool,
}

/// An entry, as it is shown when it is first applied.
pub(crate) struct Applied<'a> {
    pub(crate) index: LogIndex,
    pub(crate) command: &'a TableCommand,
    pub(crate) answer: &'a MutateResponse,
}

#[derive(Default)]
pub(crate) struct Log {
    table: Table,
    /// By index, from 1 on.
    entries: Vec<Entry>,
    elections: u64,
}

impl Log {
    /// The highest index that any replica applied.
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex::ZERO + self.entries.len() as u64
    }

    /// The table of all entries so far.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// How many leaders have begun their term by an entry.
    pub(crate) fn elections(&self) -> u64 {
        self.elections
    }

    fn entry(&self, index: LogIndex) -> Option<&Entry> {
        self.entries.get(position(index)?)
    }

    /// A replica applied an entry. Gives it back when it is the first that did.
    pub(crate) fn applied(&mut self, index: LogIndex, bytes: &Bytes) -> Result<Option<Applied<'_>>, String> {
        if let Some(known) = self.entry(index) {
            let same = known.bytes == *bytes;
            return if same { Ok(None) } else { Err(format!("entry {index} is not the same on all replicas")) };
        }
        if index != self.last().next() {
            return Err(format!("entry {index} was applied after {}", self.last()));
        }
        let mut command = None;
        let mut answer = MutateResponse::default();
        if !bytes.is_empty() {
            let decoded = TableCommand::decode(bytes.clone()).map_err(|error| error.to_string())?;
            answer = self.table.apply(&decoded).map_err(|broken| format!("entry {index}: {}", broken.0))?;
            command = Some(decoded);
        } else {
            self.elections += 1;
        }
        let digest = self.table.digest();
        self.entries.push(Entry { bytes: bytes.clone(), command, answer, digest, claimed: false });
        let entry = self.entries.last();
        Ok(entry.and_then(|entry| Some(Applied { index, command: entry.command.as_ref()?, answer: &entry.answer })))
    }

    /// A replica's contents after an index must be everybody's.
    pub(crate) fn compare(&self, index: LogIndex, digest: u64) -> Result<(), String> {
        match self.entry(index) {
            Some(entry) if entry.digest != digest => Err(format!("contents after entry {index} differ")),
            Some(_) => Ok(()),
            None if index == LogIndex::ZERO => Ok(()),
            None => Err(format!("entry {index} is applied, and nobody knows it")),
        }
    }

    /// The entry of an operation whose caller was told `code`, above `low` up to `high`; each is told once.
    pub(crate) fn claim(
        &mut self,
        (low, high): (LogIndex, LogIndex),
        code: Code,
        is_it: impl Fn(&TableCommand, &Op, &MutateResponse) -> bool,
    ) -> Option<LogIndex> {
        let end = high.min(self.last());
        let mut index = low;
        while index < end {
            index = index.next();
            let entry = &mut self.entries[position(index)?];
            let Some(command) = &entry.command else { continue };
            let Some(op) = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) else { continue };
            if !entry.claimed && entry.answer.code() == code && is_it(command, op, &entry.answer) {
                entry.claimed = true;
                return Some(index);
            }
        }
        None
    }
}

/// Place of an entry, if the index is not the one before the first.
fn position(index: LogIndex) -> Option<usize> {
    usize::try_from(index.0.checked_sub(1)?).ok()
}
