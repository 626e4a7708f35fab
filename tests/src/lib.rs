//! The end-to-end tests' harness. Each file of `tests/` is a room: one process, one mount namespace, a list of claims run
//! one after another, mostly on one shared cluster. A claim that hangs is a failed claim: a watchdog aborts the mounts
//! and ends the processes. See `docs/TESTING.md`.

pub mod attribute;
pub mod block;
pub mod cluster;
pub mod command;
pub mod diagnose;
pub mod forgetful;
pub mod golden;
pub mod manifest;
pub mod namespace;
pub mod posix;
pub mod processes;
pub mod random;
pub mod room;
pub mod soak;
pub mod tree;
mod variables;
pub mod wait;
mod watchdog;
pub mod workload;

pub use cluster::{Cluster, Mounted};
pub use command::Run;
pub use room::{Claim, Room};
