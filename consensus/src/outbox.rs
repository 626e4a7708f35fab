//! The way out to other nodes. Consensus only hands bytes over; carrying them is somebody else's trade.

use std::path::PathBuf;

use bytes::Bytes;
use holdfast_common::{NodeId, RaftGroupId};

/// Largest message handed to an outbox. Most are far smaller.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// One message of one Raft group, opaque to its carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMessage {
    /// Raft group that the message belongs to.
    pub group: RaftGroupId,
    /// An eraftpb message, encoded.
    pub bytes: Bytes,
}

/// Carries messages to other nodes. Losing, delaying, reordering and doubling them is allowed; changing them is not.
pub trait Outbox: Send + Sync + 'static {
    /// Sends messages to a node. Called once per node and driver turn, by whoever drives: the driver's thread, or one
    /// that proposes or delivers. Must not block; may deliver to other nodes of the process.
    fn send(&self, to: NodeId, messages: Vec<GroupMessage>);

    /// Ships a snapshot: the message together with the file's content, for [`crate::Node::deliver_snapshot`] at the
    /// other end. Must not block. The outcome is reported to [`crate::Node::report_snapshot`]; the file may vanish
    /// at any time, which counts as a failure.
    fn send_snapshot(&self, to: NodeId, message: GroupMessage, file: PathBuf);
}
