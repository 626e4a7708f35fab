//! The metadata table of a volume and the server that hosts its replicas.
//!
//! `table` and `core` decide and do no I/O. Around them: `machine` puts the table into a Raft group, `outbox` and
//! `inbox` carry Raft over transport, `service` answers clients, `upkeep`, `sweep` and `collect` do a leader's work once `leading` has started them, `heartbeat` talks
//! to the volume manager, `server` starts and stops it all, `recover` brings back one that lost its log. `stepped` is a metanode without any of that, for simulations.

mod collect;
mod core;
mod directory;
mod heartbeat;
mod hosted;
mod inbox;
mod leading;
mod machine;
mod neighbours;
mod outbox;
mod recover;
mod sabotage;
mod server;
mod service;
mod stepped;
mod sweep;
mod table;
mod upkeep;

pub use self::core::patience::Patience;
pub use recover::{RecoverConfig, RecoverFailed, RecoverProgress, Recovered, RecoveredTable, recover};
pub use sabotage::Sabotage;
pub use server::{Metanode, MetanodeConfig, StartError, cluster_of, format, start};
pub use stepped::{
    Answer, Event, MetanodeOptions, Now, Output, Question, RecoveryStopped, SteppedMetanode, SteppedRecovery,
};
pub use table::{COMMAND_VERSION, FEATURE_LEVEL, Table, frees, is_leader_only, refusal};
