//! Settings of a node, with the defaults and their reasons.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_common::NodeId;

/// Largest command. A batch of the log holds a few of them; bigger data belongs in chunks.
pub const COMMAND_BYTES_MAX: usize = 2 << 20;

/// Directory of snapshots, below the directory of a node.
pub(crate) const SNAPSHOT_DIRECTORY: &str = "snapshots";
/// Directory of the log, likewise.
pub(crate) const LOG_DIRECTORY: &str = "log";

/// Log that a node must find. A replica that lost its log has forgotten its votes, and must not take part again before
/// it was recovered (R23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ExpectedLog {
    /// One is made if there is none: tests and simulations.
    #[default]
    AnyOrNone,
    /// There must be one, of whatever identity: directories made before identities were written down.
    Any,
    /// The one with this identity, and nothing is made in its place.
    Identity([u8; 16]),
}

/// Settings of a [`crate::Node`].
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node's id, its identity in every Raft group. Never 0.
    pub node: NodeId,
    /// Directory of log and snapshots. Made if missing, if the log may be; the caller holds its lock.
    pub directory: PathBuf,
    /// The log that must be there.
    pub log: ExpectedLog,
    /// Seed of the election timeouts; nodes should differ.
    pub seed: u64,
    /// Length of a tick. Heartbeats go every [`HEARTBEAT_TICKS`], elections after [`ELECTION_TICKS`] or more.
    pub tick: Duration,
    /// Size of one segment of the log. A command may take a quarter of it at most.
    pub segment_bytes: u32,
    /// Bytes of log above which Raft groups that pin its oldest segment are carried forward or snapshot (R25).
    pub log_bytes_max: u64,
    /// A group is snapshot when its log since the last one reaches this, or half of that snapshot if that is more (R25).
    pub snapshot_log_bytes: u64,
    /// Bytes of entries kept below a snapshot for followers that are a little behind.
    pub tail_bytes: u64,
    /// Count of entries kept below a snapshot for followers that are a little behind.
    pub tail_entries: u64,
    /// Inputs waiting for the driver, in bytes; beyond it proposals are refused and messages dropped.
    pub queue_bytes_max: usize,
    /// Inputs waiting for the driver, in count.
    pub queue_inputs_max: usize,
}

/// Ticks between two heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// Ticks without a leader before an election, at least; a replica draws from here to twice this.
pub const ELECTION_TICKS: usize = 10;

const _: () = assert!(HEARTBEAT_TICKS * 3 <= ELECTION_TICKS, "two lost heartbeats must not cost a leader");

impl NodeConfig {
    /// The defaults for a node that lives in `directory`.
    #[must_use]
    pub fn new(node: NodeId, directory: PathBuf) -> Self {
        Self { node, directory, seed: node.0, ..Self::default() }
    }

    pub(crate) fn command_bytes_max(&self) -> usize {
        command_bytes_max(self.segment_bytes)
    }
}

/// Largest command that a node with segments of this size takes: the largest turn still fits a batch of the log.
pub(crate) fn command_bytes_max(segment_bytes: u32) -> usize {
    COMMAND_BYTES_MAX.min(usize::try_from(segment_bytes / 4).unwrap_or(COMMAND_BYTES_MAX))
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            node: NodeId(1),
            directory: PathBuf::from("."),
            log: ExpectedLog::AnyOrNone,
            seed: 1,
            tick: Duration::from_millis(100),
            segment_bytes: 16 << 20,
            log_bytes_max: 256 << 20,
            snapshot_log_bytes: 64 << 20,
            tail_bytes: 8 << 20,
            tail_entries: 4096,
            queue_bytes_max: 64 << 20,
            queue_inputs_max: 16 << 10,
        }
    }
}
