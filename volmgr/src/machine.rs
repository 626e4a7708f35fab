//! The cluster state as a consensus state machine. Snapshots share the state until the next change copies it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_common::LogIndex;
use holdfast_common::checksum::crc32c;
use holdfast_consensus::{Broken, Snapshot, StateMachine};
use holdfast_proto::cluster::ClusterCommand;
use holdfast_proto::cluster::cluster_command::Op;
use prost::Message;

use crate::state::{BrokenCommand, ClusterState};

/// The state machine of the volume manager's Raft group.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterMachine {
    state: Arc<ClusterState>,
}

impl ClusterMachine {
    #[must_use]
    pub(crate) fn state(&self) -> &ClusterState {
        &self.state
    }
}

impl StateMachine for ClusterMachine {
    fn apply(&mut self, index: LogIndex, command: &[u8]) -> Result<Bytes, Broken> {
        let broken = |error: BrokenCommand| Broken(format!("entry {index} of the volume manager: {error}"));
        let command = ClusterCommand::decode(command).map_err(|_| broken(BrokenCommand::Undecodable))?;
        let reply = Arc::make_mut(&mut self.state).apply(command).map_err(broken)?;
        Ok(reply.encode_to_vec().into())
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(Frozen(Arc::clone(&self.state)))
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|error| Broken(format!("the snapshot cannot be read: {error}")))?;
        self.state = Arc::new(ClusterState::from_snapshot(&bytes).map_err(|error| Broken(error.to_string()))?);
        Ok(())
    }

    /// Nodes must be able to register, and volumes to go; what is new waits.
    fn frees(command: &[u8]) -> bool {
        match ClusterCommand::decode(command).ok().and_then(|command| command.op) {
            Some(Op::CreateVolume(_) | Op::AllocateGroups(_)) | None => false,
            Some(
                Op::Initialise(_)
                | Op::RegisterNode(_)
                | Op::ActivateVolume(_)
                | Op::DeleteVolume(_)
                | Op::ConfirmDrops(_),
            ) => true,
        }
    }

    fn digest(&self) -> u64 {
        u64::from(crc32c(&self.state.to_snapshot()))
    }
}

struct Frozen(Arc<ClusterState>);

impl Snapshot for Frozen {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.0.to_snapshot())
    }
}
