//! The volume manager: cluster membership, placement and volumes.
//!
//! `state`, `placement`, `capacity`, `liveness` and the manager, which puts them together, decide and do no I/O.
//! `machine` puts the state into a Raft group, and the server is the shell: gRPC, clock, disk.

mod capacity;
mod liveness;
mod machine;
mod manager;
mod placement;
mod server;
mod state;
mod stepped;

pub use manager::{Denial, DenialKind, Now, Sabotage, VolmgrRequest, VolmgrResponse};
pub use server::{StartError, Volmgr, VolmgrConfig, cluster_of, format, start};
pub use state::check_volume_name;
pub use stepped::{Answers, SteppedOpenError, SteppedVolmgr, VolmgrOptions};
