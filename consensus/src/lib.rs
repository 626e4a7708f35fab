//! raft-rs as a sans-IO core, the shared write-ahead log, snapshots, and the driver of many Raft groups.

mod admission;
mod clock;
mod config;
mod core;
mod driver;
mod formatting;
mod group;
mod log;
mod machine;
mod node;
mod opening;
mod order;
mod outbox;
mod queue;
mod recovering;
mod reserve;
mod room;
mod sabotage;
#[cfg(test)]
mod simulation;
mod snapshot;
mod status;
mod stepped;
mod stop;
mod turn;

pub use admission::{Admission, Admitted};
pub use config::{COMMAND_BYTES_MAX, ELECTION_TICKS, ExpectedLog, HEARTBEAT_TICKS, NodeConfig};
pub use formatting::{examine_log, format_log, format_log_as};
pub use group::Group;
pub use log::LogFailed;
pub use machine::{Broken, Snapshot, StateMachine};
pub use node::Node;
pub use outbox::{GroupMessage, MESSAGE_BYTES_MAX, Outbox};
pub use recovering::{RecoverError, Recovering};
pub use reserve::release_reserve;
pub use sabotage::Sabotage;
pub use status::{AdmissionError, GroupError, GroupStatus, OpenError, ProposeError, ReadError, Role};
pub use stepped::{AdmissionOut, SnapshotOut, SteppedNode, SteppedOptions, Turn};
pub use stop::{Panicked, StopReason};
