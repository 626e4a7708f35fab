//! Identity of a metanode or a datanode.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, FormatNonce, NodeId, random_bytes};
use holdfast_proto::control::{Disk, RegisterRequest, RegisterResponse, Role};
use holdfast_proto::node::NodeSuperblock as Record;

use crate::home::{HomeLost, check_home};
use crate::superblock::{self, Kind, SuperblockError};

/// Between heartbeats until the volume manager said otherwise.
const HEARTBEAT_INTERVAL_MS_DEFAULT: u32 = 500;

/// Identity of a node, as its directory's superblock says it (R28).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSuperblock {
    /// Zeros until it registered.
    pub cluster: ClusterId,
    /// 0 until it registered.
    pub node: NodeId,
    /// Raised at every start: peers remember the highest they saw, so that a cloned or rolled back node is known.
    pub generation: u64,
    /// Zeros until it registered: proofs are made and checked with it (R30).
    pub secret: ClusterSecret,
    /// Random, of the formatting, not 0: ties disks to their node, and repeated registrations to each other.
    pub format_nonce: FormatNonce,
    /// Given by the volume manager at each registration.
    pub heartbeat_interval_ms: u32,
    /// Identity of a metanode's log (R23); none of a datanode, and in directories made before it was written down.
    pub log: Option<[u8; 16]>,
    /// Of a metanode that lost its log: identity of the new one, while it is being filled from the other replicas. It serves nothing
    /// meanwhile.
    pub recovering: Option<[u8; 16]>,
}

/// One start of one formatted node: no two are the same.
#[derive(PartialEq, Eq)]
struct Start {
    node: NodeId,
    generation: u64,
    format_nonce: FormatNonce,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start {} of node {}", self.generation, self.node)
    }
}

impl NodeSuperblock {
    /// Of a directory that is being formatted.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn fresh() -> io::Result<Self> {
        Ok(Self {
            cluster: ClusterId([0; 16]),
            node: NodeId(0),
            generation: 0,
            secret: ClusterSecret([0; 32]),
            // 0 would say that there is none.
            format_nonce: FormatNonce(u64::from_le_bytes(random_bytes()?).max(1)),
            heartbeat_interval_ms: HEARTBEAT_INTERVAL_MS_DEFAULT,
            log: None,
            recovering: None,
        })
    }

    /// Whether the volume manager has given it an id.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.node.0 != 0
    }

    /// The cluster, once it has registered.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.is_registered().then_some(self.cluster)
    }

    /// Reads a directory's. Changes nothing.
    ///
    /// # Errors
    /// [`SuperblockError`]: no directory of the kind, one of a newer format, or a damaged one.
    pub fn read(directory: &Path, kind: Kind) -> Result<Self, SuperblockError> {
        let record: Record =
            superblock::read_newest(directory, kind, |record: &Record| (record.generation, record.node))?;
        let log_of = |bytes: &[u8]| match bytes {
            [] => Ok(None),
            bytes => bytes.try_into().map(Some).map_err(|_| SuperblockError::damaged(directory)),
        };
        let mut read = Self {
            cluster: ClusterId([0; 16]),
            node: NodeId(record.node),
            generation: record.generation,
            secret: ClusterSecret([0; 32]),
            format_nonce: FormatNonce(record.format_nonce),
            heartbeat_interval_ms: record.heartbeat_interval_ms,
            log: log_of(&record.log)?,
            recovering: log_of(&record.recovering)?,
        };
        if read.is_registered() {
            let damaged = || SuperblockError::damaged(directory);
            read.cluster = ClusterId(record.cluster[..].try_into().map_err(|_| damaged())?);
            read.secret = ClusterSecret(record.secret[..].try_into().map_err(|_| damaged())?);
        }
        Ok(read)
    }

    /// Replaces a directory's; durable when it returns.
    ///
    /// # Errors
    /// [`SuperblockError::Io`]; the old one then stands.
    pub fn write(&self, directory: &Path, kind: Kind) -> Result<(), SuperblockError> {
        let mut record = Record {
            node: self.node.0,
            generation: self.generation,
            format_nonce: self.format_nonce.0,
            heartbeat_interval_ms: self.heartbeat_interval_ms,
            log: self.log.map(|log| log.to_vec().into()).unwrap_or_default(),
            recovering: self.recovering.map(|log| log.to_vec().into()).unwrap_or_default(),
            ..Record::default()
        };
        if self.is_registered() {
            record.cluster = self.cluster.0.to_vec().into();
            record.secret = self.secret.0.to_vec().into();
        }
        superblock::write(directory, kind, &record)
    }

    /// Raises the generation, durably before anything is sent: peers refuse a lower one than they heard.
    ///
    /// # Errors
    /// [`SuperblockError`].
    pub fn raise_generation(directory: &Path, kind: Kind) -> Result<Self, SuperblockError> {
        let mut raised = Self::read(directory, kind)?;
        raised.generation += 1;
        raised.write(directory, kind)?;
        Ok(raised)
    }

    /// Looks whether a directory is still the one of this node, as of this start: another one may have come in its place, or
    /// none, while the process serves on through open files. Blocks.
    ///
    /// # Errors
    /// [`HomeLost`]. A copy that cannot be read says nothing while the other one can.
    pub fn check_home(&self, directory: &Path, kind: Kind) -> Result<(), HomeLost> {
        check_home(directory, &self.start(), Self::read(directory, kind).map(|found| found.start()))
    }

    fn start(&self) -> Start {
        Start { node: self.node, generation: self.generation, format_nonce: self.format_nonce }
    }

    /// The request by which it registers its address and disks.
    #[must_use]
    pub fn registration(&self, role: Role, address: SocketAddr, disks: Vec<Disk>) -> RegisterRequest {
        RegisterRequest {
            cluster: self.cluster().map(|cluster| cluster.to_string()).unwrap_or_default(),
            node: self.node.0,
            role: role.into(),
            address: address.to_string(),
            generation: self.generation,
            disks,
            format_nonce: self.format_nonce.0,
        }
    }

    /// Its superblock after the volume manager's answer; `None` if the answer makes no sense, or contradicts what it
    /// is.
    #[must_use]
    pub fn registered(&self, answer: &RegisterResponse) -> Option<Self> {
        let cluster: ClusterId = answer.cluster.parse().ok()?;
        let secret = ClusterSecret(answer.secret[..].try_into().ok()?);
        let known = !self.is_registered() || (self.node.0 == answer.node && self.cluster == cluster);
        let heartbeat_interval_ms = match answer.heartbeat_interval_ms {
            0 => self.heartbeat_interval_ms,
            wanted => wanted,
        };
        (answer.node != 0 && known).then(|| Self {
            cluster,
            node: NodeId(answer.node),
            secret,
            heartbeat_interval_ms,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind::superblock(*b"HFTESTS1", "a test directory");

    fn answer() -> RegisterResponse {
        RegisterResponse {
            cluster: ClusterId([7; 16]).to_string(),
            node: 5,
            secret: vec![9; 32].into(),
            heartbeat_interval_ms: 250,
            ..RegisterResponse::default()
        }
    }

    #[test]
    fn a_node_is_formatted_started_and_registered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let fresh = NodeSuperblock::fresh().unwrap();
        assert!(fresh.format_nonce != FormatNonce::NONE && fresh.cluster().is_none());
        fresh.write(path, KIND).unwrap();
        let started = NodeSuperblock::raise_generation(path, KIND).unwrap();
        assert_eq!(started, NodeSuperblock { generation: 1, ..fresh });
        assert_eq!(started.registration(Role::Metanode, "127.0.0.1:1".parse().unwrap(), Vec::new()).cluster, "");
        let registered = started.registered(&answer()).unwrap();
        registered.write(path, KIND).unwrap();
        assert_eq!(NodeSuperblock::read(path, KIND).unwrap(), registered);
        assert_eq!((registered.node, registered.cluster()), (NodeId(5), Some(ClusterId([7; 16]))));
        assert_eq!((registered.heartbeat_interval_ms, registered.generation), (250, 1));
    }

    #[test]
    fn its_bytes_are_pinned() {
        let directory = tempfile::tempdir().unwrap();
        let pinned = NodeSuperblock { generation: 3, format_nonce: FormatNonce(9), ..NodeSuperblock::fresh().unwrap() };
        pinned.write(directory.path(), KIND).unwrap();
        let bytes = std::fs::read(directory.path().join(superblock::FILE_NAME)).unwrap();
        assert_eq!(bytes[..30], *b"HFTESTS1\x01\0\0\0\x0e\0\0\0\x18\x03\x29\x09\0\0\0\0\0\0\0\x30\xf4\x03");
        assert_eq!(bytes.len(), 34);
    }

    #[test]
    fn the_logs_of_a_metanode_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let both = NodeSuperblock { log: Some([1; 16]), recovering: Some([2; 16]), ..NodeSuperblock::fresh().unwrap() };
        both.write(directory.path(), KIND).unwrap();
        assert_eq!(NodeSuperblock::read(directory.path(), KIND).unwrap(), both);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_not_taken() {
        let node = NodeSuperblock::fresh().unwrap().registered(&answer()).unwrap();
        let foreign = ClusterId([8; 16]).to_string();
        for wrong in [
            RegisterResponse { node: 0, ..answer() },
            RegisterResponse { node: 6, ..answer() },
            RegisterResponse { cluster: foreign, ..answer() },
            RegisterResponse { cluster: "?".to_owned(), ..answer() },
            RegisterResponse { secret: vec![9; 31].into(), ..answer() },
        ] {
            assert_eq!(node.registered(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_directory_that_was_removed_replaced_or_started_again_is_noticed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("home");
        std::fs::create_dir(&path).unwrap();
        let mine = NodeSuperblock { generation: 3, ..NodeSuperblock::fresh().unwrap() };
        mine.write(&path, KIND).unwrap();
        mine.check_home(&path, KIND).unwrap();
        NodeSuperblock { generation: 4, ..mine.clone() }.write(&path, KIND).unwrap();
        assert!(mine.check_home(&path, KIND).unwrap_err().to_string().contains("holds start 4"));
        NodeSuperblock::fresh().unwrap().write(&path, KIND).unwrap();
        assert!(mine.check_home(&path, KIND).is_err());
        std::fs::remove_dir_all(&path).unwrap();
        assert!(mine.check_home(&path, KIND).unwrap_err().to_string().contains("is not formatted"));
    }
}
