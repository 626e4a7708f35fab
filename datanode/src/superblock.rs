//! The two superblocks of R28: of the node's directory (with the cluster's secret, so it is nobody else's to read) and of
//! each disk's. Byte tables in `docs/disk-format/shard-store.md`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_common::checksum::crc32c;
use holdfast_common::durable::sync_parent;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, DiskId, NodeId};

/// Name of both files.
pub const SUPERBLOCK_FILE: &str = "superblock";
/// First bytes of a node's.
pub const NODE_MAGIC: [u8; 8] = *b"HFDATA\0\n";
/// First bytes of a disk's.
pub const DISK_MAGIC: [u8; 8] = *b"HFDISK\0\n";
/// Version of both formats.
pub const FORMAT_VERSION: u32 = 1;
/// Feature bits this code understands.
pub const FEATURES_KNOWN: u32 = 0;

/// Bytes before the fields: magic, version, required features.
const HEAD_BYTES: usize = 16;
const NODE_BYTES: usize = HEAD_BYTES + 16 + 8 + 8 + 8 + 4 + 32 + 4;
const DISK_BYTES: usize = HEAD_BYTES + 16 + 8 + 8 + 8 + 4;

/// Why a superblock was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// There is none.
    #[error("{} is not formatted as the directory of a {kind}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
        /// What it should be of.
        kind: &'static str,
    },
    /// The directory belongs to something else.
    #[error("{} is not the directory of a {kind} but of something else", path.display())]
    OtherKind {
        /// The directory.
        path: PathBuf,
        /// What it should be of.
        kind: &'static str,
    },
    /// Written by a newer program.
    #[error("{} has format version {found}, this program knows up to {FORMAT_VERSION}: use a newer holdfast", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It does not verify.
    #[error("the superblock of {} is damaged", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
    },
    /// It is there already.
    #[error("{} is formatted already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The system says so.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSuperblock {
    /// Its cluster; zeros until it registered.
    pub cluster: ClusterId,
    /// Its id; 0 until it registered.
    pub node: NodeId,
    /// Raised at every start.
    pub generation: u64,
    /// Random, of the formatting: ties disks to their node, and repeated registrations to each other.
    pub format_nonce: u64,
    /// As the volume manager wants it.
    pub heartbeat_interval_ms: u32,
    /// The cluster's secret; zeros until it registered.
    pub secret: ClusterSecret,
}

/// Whose a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSuperblock {
    /// Its cluster; zeros until its node registered.
    pub cluster: ClusterId,
    /// Its node; 0 likewise.
    pub node: NodeId,
    /// Its id; 0 likewise.
    pub disk: DiskId,
    /// The node's.
    pub format_nonce: u64,
}

impl NodeSuperblock {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(NODE_MAGIC);
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.format_nonce.to_le_bytes());
        out.extend_from_slice(&self.heartbeat_interval_ms.to_le_bytes());
        out.extend_from_slice(&self.secret.0);
        sealed(out)
    }

    /// Reads the superblock of a node's directory.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn read(directory: &Path) -> Result<Self, SuperblockError> {
        let bytes: [u8; NODE_BYTES] = read(directory, NODE_MAGIC, "datanode")?;
        Ok(Self {
            cluster: ClusterId(part(&bytes, 16)),
            node: NodeId(u64::from_le_bytes(part(&bytes, 32))),
            generation: u64::from_le_bytes(part(&bytes, 40)),
            format_nonce: u64::from_le_bytes(part(&bytes, 48)),
            heartbeat_interval_ms: u32::from_le_bytes(part(&bytes, 56)),
            secret: ClusterSecret(part(&bytes, 60)),
        })
    }

    /// Replaces it; durable when it returns.
    ///
    /// # Errors
    /// [`SuperblockError::Io`].
    pub fn write(&self, directory: &Path) -> Result<(), SuperblockError> {
        replace_private(directory, &self.encode())
    }
}

impl DiskSuperblock {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(DISK_MAGIC);
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.disk.0.to_le_bytes());
        out.extend_from_slice(&self.format_nonce.to_le_bytes());
        sealed(out)
    }

    /// Reads the superblock of a disk.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn read(directory: &Path) -> Result<Self, SuperblockError> {
        let bytes: [u8; DISK_BYTES] = read(directory, DISK_MAGIC, "disk")?;
        Ok(Self {
            cluster: ClusterId(part(&bytes, 16)),
            node: NodeId(u64::from_le_bytes(part(&bytes, 32))),
            disk: DiskId(u64::from_le_bytes(part(&bytes, 40))),
            format_nonce: u64::from_le_bytes(part(&bytes, 48)),
        })
    }

    /// Replaces it; durable when it returns.
    ///
    /// # Errors
    /// [`SuperblockError::Io`].
    pub fn write(&self, directory: &Path) -> Result<(), SuperblockError> {
        replace_private(directory, &self.encode())
    }
}

fn head(magic: [u8; 8]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    out
}

fn sealed(mut out: Vec<u8>) -> Vec<u8> {
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Bytes of a fixed layout, whose length the compiler knows.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

/// Reads and checks; what it returns has the right length, magic, version and checksum.
fn read<const N: usize>(directory: &Path, magic: [u8; 8], kind: &'static str) -> Result<[u8; N], SuperblockError> {
    let path = directory.to_owned();
    let bytes = match std::fs::read(directory.join(SUPERBLOCK_FILE)) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(SuperblockError::Missing { path, kind });
        }
        Err(source) => return Err(SuperblockError::Io { path, source }),
    };
    if bytes.len() < HEAD_BYTES + 4 {
        return Err(SuperblockError::Damaged { path });
    }
    if bytes[..8] != magic {
        return Err(SuperblockError::OtherKind { path, kind });
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if crc32c(body).to_le_bytes() != crc {
        return Err(SuperblockError::Damaged { path });
    }
    let found = u32::from_le_bytes(part(&bytes, 8));
    let features = u32::from_le_bytes(part(&bytes, 12));
    if found != FORMAT_VERSION || features & !FEATURES_KNOWN != 0 {
        return Err(SuperblockError::Newer { path, found });
    }
    bytes.try_into().map_err(|_| SuperblockError::Damaged { path })
}

/// Like `durable::replace_file`, but readable by the owner only from its first byte on.
fn replace_private(directory: &Path, bytes: &[u8]) -> Result<(), SuperblockError> {
    let write = || -> io::Result<()> {
        let path = directory.join(SUPERBLOCK_FILE);
        let temporary = directory.join("superblock.tmp");
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_parent(&path)
    };
    write().map_err(|source| SuperblockError::Io { path: directory.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn node() -> NodeSuperblock {
        NodeSuperblock {
            cluster: ClusterId([7; 16]),
            node: NodeId(3),
            generation: 9,
            format_nonce: 0x1122_3344_5566_7788,
            heartbeat_interval_ms: 500,
            secret: ClusterSecret([0x5c; 32]),
        }
    }

    #[test]
    fn superblocks_read_back_and_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let disk = DiskSuperblock { cluster: ClusterId([7; 16]), node: NodeId(3), disk: DiskId(5), format_nonce: 8 };
        node().write(directory.path()).unwrap();
        assert_eq!(NodeSuperblock::read(directory.path()).unwrap(), node());
        let mode = std::fs::metadata(directory.path().join(SUPERBLOCK_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(DiskSuperblock::read(directory.path()), Err(SuperblockError::OtherKind { .. })));
        disk.write(directory.path()).unwrap();
        assert_eq!(DiskSuperblock::read(directory.path()).unwrap(), disk);
    }

    #[test]
    fn missing_damaged_and_newer_superblocks_say_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SUPERBLOCK_FILE);
        assert!(matches!(NodeSuperblock::read(directory.path()), Err(SuperblockError::Missing { .. })));
        let mut bytes = node().encode();
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(NodeSuperblock::read(directory.path()), Err(SuperblockError::Damaged { .. })));
        let mut newer = node().encode();
        newer.truncate(NODE_BYTES - 4);
        newer[8] = 2;
        newer.extend_from_slice(b"what a newer version adds");
        std::fs::write(&path, sealed(newer)).unwrap();
        let error = NodeSuperblock::read(directory.path()).unwrap_err();
        assert!(error.to_string().contains("has format version 2, this program knows up to 1"), "{error}");
    }
}
