//! Interface of a replicated state machine. The consensus crate knows its commands as bytes only.

use std::io::{self, Read, Write};

use bytes::Bytes;
use holdfast_common::LogIndex;

/// A broken invariant: the replica stops this Raft group, loudly, and the process lives on (R26).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// A deterministic state machine, driven by committed commands in the order of their indices.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one committed command and returns its proposer's answer.
    ///
    /// # Errors
    /// [`Broken`] if an invariant does not hold: this replica then stops the group. A command that is merely refused
    /// says so in its answer.
    fn apply(&mut self, index: LogIndex, command: &[u8]) -> Result<Bytes, Broken>;

    /// A frozen copy of the state, made in constant time; it is written by another thread without stalling `apply`.
    fn snapshot(&self) -> Box<dyn Snapshot>;

    /// Replaces the state by what a [`Snapshot::write_to`] wrote. Only called on a freshly made state machine.
    ///
    /// # Errors
    /// [`Broken`] if the bytes are not such a snapshot.
    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken>;

    /// Whether a command is taken although the log's disk is nearly full: it frees something, or lets what was begun come to
    /// an end; it must not make the state much larger. Without any, a full disk heals only by other people's deletes.
    #[must_use]
    fn frees(command: &[u8]) -> bool {
        let _ = command;
        false
    }

    /// A digest of the state, equal on all replicas at the same index; 0 if there is none.
    fn digest(&self) -> u64 {
        0
    }
}

/// A frozen state, on its way into a snapshot file.
pub trait Snapshot: Send {
    /// Writes everything [`StateMachine::restore`] needs.
    ///
    /// # Errors
    /// Those of `to`.
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()>;
}
