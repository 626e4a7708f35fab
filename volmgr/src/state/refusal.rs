//! Reasons for which the cluster refuses a command. The text is what a person reads; the kind is what a program decides
//! by.

use holdfast_common::{DiskId, GroupId, NodeId, VolumeId};
use holdfast_erasure::{CodeMode, CodeModeError};

/// A refused command; the state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum Refusal {
    /// A node of this id never registered.
    #[error("node {0} is not known to this cluster")]
    UnknownNode(NodeId),
    /// The node registered with another role before.
    #[error("node {0} registered in another role before")]
    OtherRole(NodeId),
    /// Neither metanode nor datanode.
    #[error("a node must say whether it is a metanode or a datanode")]
    NoRole,
    /// The node registered with a higher generation before: a copy or an old state of it (R28).
    #[error(
        "node {node} starts as generation {got}, but generation {known} of it registered before: this is an old copy of its directory"
    )]
    OlderGeneration {
        node: NodeId,
        /// Generation that registered.
        known: u64,
        /// Generation that asks.
        got: u64,
    },
    /// Another process of the same node is alive (R28).
    #[error("node {node} is alive at {address}: two processes cannot be the same node")]
    LivingElsewhere {
        node: NodeId,
        /// Address of the living one.
        address: String,
    },
    /// The disk is none of this node's.
    #[error("disk {disk} is not known as a disk of node {node}")]
    UnknownDisk {
        disk: DiskId,
        /// Node that named it.
        node: NodeId,
    },
    /// Not a name a volume can have.
    #[error(
        "'{0}' cannot be a volume's name: 1 to 64 of the letters a-z, A-Z, 0-9, '.', '_' and '-', not starting with '-' or '.'"
    )]
    BadName(String),
    /// Not a code mode.
    #[error(transparent)]
    BadCode(#[from] CodeModeError),
    /// A volume of this name is there.
    #[error("a volume '{0}' exists already")]
    NameTaken(String),
    /// The code mode wants more disks than there are.
    #[error("code {code} needs {} disks, the cluster has {have}", code.width())]
    TooFewDisks {
        code: CodeMode,
        /// Disks in service.
        have: usize,
    },
    /// No metanodes to put the table on, or fewer than were chosen.
    #[error("a volume's table needs a metanode, the cluster has none")]
    NoMetanodes,
    /// The proposal's replicas are no odd number of distinct metanodes.
    #[error("the replicas chosen for the table are not an odd number of distinct metanodes")]
    BadReplicas,
    /// No volume of this name.
    #[error("no volume '{0}' in this cluster")]
    NoSuchVolume(String),
    /// No volume of this id and incarnation, or it is being deleted.
    #[error("no volume with id {0} in this incarnation")]
    NoSuchVolumeId(VolumeId),
    /// The proposed group does not follow the last one.
    #[error("group {0} does not follow the volume's last group")]
    GroupGap(GroupId),
    /// The proposed members are no distinct known disks, or not as many as the code mode has shards.
    #[error("the members chosen for group {0} are not distinct disks of the cluster, one for each shard")]
    BadMembers(GroupId),
}

/// Kind of a [`Refusal`], by which programs decide; its numbers are answered by apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalKind {
    /// An argument does not make sense, whatever the state.
    Invalid = 1,
    /// What was named is not there.
    NotFound = 2,
    /// What should be made is there.
    Exists = 3,
    /// The state does not allow it, and a retry will not help by itself.
    Forbidden = 4,
    /// Not now; a retry may help.
    Busy = 5,
}

impl RefusalKind {
    /// The kind of a reply's `refusal`; `None` for 0 and for what is unknown.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Invalid, Self::NotFound, Self::Exists, Self::Forbidden, Self::Busy]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

impl Refusal {
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::NoRole | Self::BadName(_) | Self::BadCode(_) => RefusalKind::Invalid,
            Self::UnknownNode(_) | Self::NoSuchVolume(_) | Self::NoSuchVolumeId(_) => RefusalKind::NotFound,
            Self::NameTaken(_) => RefusalKind::Exists,
            Self::OtherRole(_)
            | Self::OlderGeneration { .. }
            | Self::UnknownDisk { .. }
            | Self::TooFewDisks { .. }
            | Self::NoMetanodes => RefusalKind::Forbidden,
            Self::LivingElsewhere { .. } | Self::BadReplicas | Self::GroupGap(_) | Self::BadMembers(_) => {
                RefusalKind::Busy
            }
        }
    }
}
