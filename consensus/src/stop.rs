//! Reasons why one Raft group, or all of them, take part no more on a node.

use std::any::Any;

use holdfast_common::LogIndex;

use crate::log::LogFailed;
use crate::machine::Broken;

/// Reason why a Raft group takes part no more on this node. Its other replicas go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// It was dropped here.
    #[error("dropped")]
    Dropped,
    /// The node was shut down.
    #[error("shut down")]
    ShutDown,
    /// The node was shut down while records waited for room or a file descriptor: what they say was promised to nobody.
    #[error("shut down while its log waited for room on the disk or a file descriptor")]
    ShutDownWaiting,
    /// The log failed: nothing may be acknowledged or voted any more on this node.
    #[error("the log failed: {what}")]
    LogFailed {
        /// Words of the system.
        what: String,
    },
    /// The log has an entry whose kind only a newer version knows.
    #[error("entry {0} is of a kind that this program does not know: use a newer one")]
    UnknownEntry(LogIndex),
    /// The state of a snapshot was gone when the snapshot became current.
    #[error("a delivered snapshot was lost")]
    SnapshotLost,
    /// A command met a broken invariant (R26).
    #[error("apply of {index}: {broken}")]
    Broken {
        /// Index of the command's entry.
        index: LogIndex,
        /// Reason that the state machine gave.
        broken: Broken,
    },
    /// The state machine panicked over a command.
    #[error("apply of {index}: {panicked}")]
    ApplyPanicked {
        /// Index of the command's entry.
        index: LogIndex,
        /// Words of the panic.
        panicked: Panicked,
    },
    /// Consensus panicked: a bug, or a peer that lost what it had acknowledged.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl From<&LogFailed> for StopReason {
    fn from(LogFailed(error): &LogFailed) -> Self {
        Self::LogFailed { what: error.to_string() }
    }
}

impl From<LogFailed> for StopReason {
    fn from(failed: LogFailed) -> Self {
        Self::from(&failed)
    }
}

/// Words of a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(pub String);

impl Panicked {
    /// Takes the words out of a payload that [`std::panic::catch_unwind`] caught.
    pub(crate) fn of(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Self(text.unwrap_or("without a text").to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_what_happened_and_to_what() {
        let index = LogIndex(7);
        let failed = LogFailed::from(std::io::Error::other("no such device"));
        assert_eq!(StopReason::from(&failed).to_string(), failed.to_string());
        let broken = StopReason::Broken { index, broken: Broken("inode 3 is not there".to_owned()) };
        assert_eq!(broken.to_string(), "apply of 7: inode 3 is not there");
        let caught = std::panic::catch_unwind(|| panic!("{} is too much", 8)).unwrap_err();
        let panicked = Panicked::of(&*caught);
        assert_eq!(StopReason::from(panicked.clone()).to_string(), "panicked: 8 is too much");
        let while_applying = StopReason::ApplyPanicked { index, panicked };
        assert_eq!(while_applying.to_string(), "apply of 7: panicked: 8 is too much");
    }
}
