//! The state machine of the simulation: all commands in their order. It answers with the index of each.

use std::io::{self, Read, Write};

use bytes::Bytes;
use holdfast_common::LogIndex;

use crate::machine::{Broken, Snapshot, StateMachine};

#[derive(Clone, Default)]
pub(super) struct Ledger {
    pub(super) applied: LogIndex,
    pub(super) ids: Vec<u64>,
    digest: u64,
}

impl Ledger {
    fn add(&mut self, id: u64) {
        self.ids.push(id);
        // FNV-1a, by words.
        self.digest = (self.digest ^ id).wrapping_mul(0x100_0000_01B3);
    }

    /// The id in a command, if it is one.
    pub(super) fn id(command: &[u8]) -> Option<u64> {
        command.try_into().ok().map(u64::from_le_bytes)
    }
}

impl StateMachine for Ledger {
    fn apply(&mut self, index: LogIndex, command: &[u8]) -> Result<Bytes, Broken> {
        if index <= self.applied {
            return Err(Broken(format!("{index} after {}", self.applied)));
        }
        self.applied = index;
        self.add(Self::id(command).ok_or(Broken("no id".into()))?);
        Ok(Bytes::copy_from_slice(&index.0.to_le_bytes()))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(self.clone())
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|e| Broken(e.to_string()))?;
        let mut numbers = bytes.chunks_exact(8).map(|chunk| Self::id(chunk).unwrap());
        self.applied = LogIndex(numbers.next().ok_or(Broken("no index".into()))?);
        numbers.for_each(|id| self.add(id));
        Ok(())
    }

    fn digest(&self) -> u64 {
        self.digest
    }
}

impl Snapshot for Ledger {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.applied.0.to_le_bytes())?;
        self.ids.iter().try_for_each(|id| to.write_all(&id.to_le_bytes()))
    }
}
