//! Reasons why a datanode was not formatted or did not start.

use std::io;
use std::path::PathBuf;

use holdfast_node::ListenError;
use holdfast_node::superblock::SuperblockError;
use holdfast_storage::LockError;
use tokio::task::JoinError;

use crate::store::recover::OpenError;
use crate::store::volumes::VolumesError;

/// Reason why a datanode was not formatted or did not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum StartError {
    /// A directory is not what it should be.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// Somebody else uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The address is taken or not ours.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A disk was made by a newer version, or no disk opens.
    #[error("{}: {source}", path.display())]
    Disk { path: PathBuf, source: OpenError },
    /// The node's memory for disks that are away cannot be used.
    #[error("{}: {source}; remove it only if no disk of this node was ever away", path.display())]
    Memory { path: PathBuf, source: VolumesError },
    /// A node stores shards on disks.
    #[error("a datanode needs a disk at least")]
    NoDisks,
    /// A disk named twice, or the node's own directory.
    #[error("{} cannot be used twice", path.display())]
    SharedDirectory { path: PathBuf },
    /// The disk was formatted with another node.
    #[error("{} is a disk of another node or cluster", path.display())]
    ForeignDisk { path: PathBuf },
    /// Formatting would overwrite shards.
    #[error("{} holds files already; a disk is formatted in an empty directory", path.display())]
    NotEmpty { path: PathBuf },
    /// The volume manager's address makes no sense.
    #[error("'{0}' is no address of a volume manager, host:port")]
    BadVolmgr(String),
    /// The volume manager refuses this node.
    #[error("the volume manager refuses this node: {0}")]
    Refused(String),
    /// The volume manager answered something malformed.
    #[error("the volume manager's answer to the registration makes no sense")]
    BadRegistration,
    /// A task ended before its time.
    #[error("starting was interrupted: {0}")]
    Interrupted(#[from] JoinError),
}
