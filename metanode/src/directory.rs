//! The directory of a metanode: what its superblock says it is, and where its log lies.

use holdfast_node::superblock::Kind;

/// Directory of log and snapshots, in the metanode's.
pub(crate) const CONSENSUS_DIRECTORY: &str = "consensus";
pub(crate) const KIND: Kind = Kind::superblock(*b"HFMETA\0\n", "a metanode's directory").with_second_copy();
