//! The directory of a metanode: what its superblock says it is, and where its log lies.

use holdfast_node::superblock::Kind;

/// Log and snapshots, below the directory.
pub(crate) const CONSENSUS_DIRECTORY: &str = "consensus";
/// The superblock's kind.
pub(crate) const KIND: Kind = Kind::superblock(*b"HFMETA\0\n", "a metanode's directory").with_second_copy();
