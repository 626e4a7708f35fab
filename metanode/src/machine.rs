//! The table as consensus drives it: commands and snapshots as bytes.

use crate::sabotage::Sabotage;
use crate::table::{FrozenTable, Table, frees};
use bytes::Bytes;
use holdfast_common::{LogIndex, RaftGroupId, VolumeId};
use holdfast_consensus::{Broken, Snapshot, StateMachine};
use holdfast_proto::record::TableCommand;
use prost::Message;
use std::io::{self, Read, Write};

/// The Raft group of a volume's table: it has the volume's number (D4).
pub(crate) fn raft_group(volume: VolumeId) -> RaftGroupId {
    RaftGroupId(volume.0)
}

/// The volume whose table a Raft group of a metanode is; the reverse of [`raft_group`].
pub(crate) fn volume_of(group: RaftGroupId) -> VolumeId {
    VolumeId(group.0)
}

/// One replica of a metadata table.
#[derive(Debug, Default)]
pub(crate) struct TableMachine {
    table: Table,
    sabotage: Sabotage,
}

impl TableMachine {
    /// An empty one that breaks a rule.
    pub(crate) fn sabotaged(sabotage: Sabotage) -> Self {
        let mut table = Table::new();
        table.break_rule(sabotage);
        Self { table, sabotage }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }
}

struct FrozenMachine(FrozenTable);

impl Snapshot for FrozenMachine {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        self.0.write_to(to)
    }
}

impl StateMachine for TableMachine {
    fn apply(&mut self, _index: LogIndex, command: &[u8]) -> Result<Bytes, Broken> {
        let command = TableCommand::decode(command).map_err(|error| Broken(format!("undecodable command: {error}")))?;
        self.table.apply_encoded(&command).map_err(|broken| Broken(broken.0))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(FrozenMachine(self.table.freeze()))
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        self.table = Table::restore(from).map_err(|error| Broken(error.to_string()))?;
        self.table.break_rule(self.sabotage);
        Ok(())
    }

    fn frees(command: &[u8]) -> bool {
        let op = TableCommand::decode(command).ok().and_then(|command| command.mutation?.op);
        op.is_some_and(|op| frees(&op))
    }

    fn digest(&self) -> u64 {
        self.table.digest()
    }
}
