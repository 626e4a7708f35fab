//! The superblocks of R28: the node's, and one of each of its disks. Framed as all superblocks are
//! (`docs/disk-format/superblocks.md`).

use std::path::Path;

use holdfast_common::{ClusterId, DiskId, FormatNonce, NodeId};
use holdfast_node::superblock::{self, Kind, SuperblockError};
use holdfast_proto::node::DiskSuperblock as Record;

/// Superblock of a datanode's directory.
pub const NODE_KIND: Kind = Kind::superblock(*b"HFDATA\0\n", "a datanode's directory").with_second_copy();
/// Superblock of a disk's directory.
pub(crate) const DISK_KIND: Kind = Kind::superblock(*b"HFDISK\0\n", "a datanode's disk").with_second_copy();

/// Identity of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSuperblock {
    /// Zeros until its node registered.
    pub cluster: ClusterId,
    /// 0 until its node registered.
    pub node: NodeId,
    /// 0 until its node registered.
    pub disk: DiskId,
    /// Drawn when its node was formatted, the same on all of the node's disks.
    pub format_nonce: FormatNonce,
}

impl DiskSuperblock {
    /// Superblock of a disk that is being formatted.
    #[must_use]
    pub fn fresh(format_nonce: FormatNonce) -> Self {
        Self { cluster: ClusterId([0; 16]), node: NodeId(0), disk: DiskId(0), format_nonce }
    }

    /// The cluster, once its node has registered.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        (self.node.0 != 0).then_some(self.cluster)
    }

    /// Reads the superblock of a disk. Changes nothing.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn read(directory: &Path) -> Result<Self, SuperblockError> {
        let record: Record = superblock::read_newest(directory, DISK_KIND, |record: &Record| record.disk)?;
        let cluster = match record.node {
            0 => [0; 16],
            _ => record.cluster[..].try_into().map_err(|_| SuperblockError::damaged(directory))?,
        };
        Ok(Self {
            cluster: ClusterId(cluster),
            node: NodeId(record.node),
            disk: DiskId(record.disk),
            format_nonce: FormatNonce(record.format_nonce),
        })
    }

    /// Replaces it; durable when it returns.
    ///
    /// # Errors
    /// [`SuperblockError::Io`].
    pub fn write(&self, directory: &Path) -> Result<(), SuperblockError> {
        let cluster = self.cluster().map(|cluster| cluster.0.to_vec()).unwrap_or_default().into();
        let record = Record { cluster, node: self.node.0, disk: self.disk.0, format_nonce: self.format_nonce.0 };
        superblock::write(directory, DISK_KIND, &record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_no_node_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let fresh = DiskSuperblock::fresh(FormatNonce(8));
        let used = DiskSuperblock { cluster: ClusterId([7; 16]), node: NodeId(3), disk: DiskId(5), ..fresh };
        for disk in [fresh, used] {
            disk.write(directory.path()).unwrap();
            assert_eq!(DiskSuperblock::read(directory.path()).unwrap(), disk);
            let bytes = std::fs::read(directory.path().join(superblock::FILE_NAME)).unwrap();
            assert_eq!(bytes[..12], *b"HFDISK\0\n\x01\0\0\0");
        }
        let error = holdfast_node::NodeSuperblock::read(directory.path(), NODE_KIND).unwrap_err();
        assert_eq!(NODE_KIND.magic, *b"HFDATA\0\n");
        assert!(matches!(error, SuperblockError::OtherKind { .. }), "{error}");
    }
}
