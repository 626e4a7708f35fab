//! The cluster as the volume manager knows it for good: nodes, disks, volumes, groups, drops. Pure and deterministic.
//!
//! Every change is one entry of Raft group 1, applied here. What only heartbeats know (liveness, free space) is no
//! part of it; a decision that used such knowledge carries it in its command, and apply checks what must hold whatever
//! was proposed. A refused command leaves the state as it was. Ids ascend and are never reused (R3).

mod groups;
mod nodes;
mod persist;
mod refusal;
mod volumes;

pub(crate) use refusal::{Refusal, RefusalKind};
pub use volumes::check_volume_name;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, DiskId, FormatNonce, GroupId, Incarnation, NodeId, RaftGroupId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::cluster::cluster_command::Op;
use holdfast_proto::cluster::{ClusterCommand, ClusterReply, Initialise};
use holdfast_proto::control::{Role, VolumeState};

/// Version of [`ClusterCommand`] that this code writes and understands.
pub(crate) const COMMAND_VERSION: u32 = 1;
/// The node id of the first volume manager; other nodes' ids start above.
pub(crate) const VOLMGR_NODE: NodeId = NodeId(1);
/// The volume manager's own Raft group; volume ids, which name Raft groups too, start above.
pub(crate) const VOLMGR_GROUP: RaftGroupId = RaftGroupId(1);

/// The first volume id.
const FIRST_VOLUME: u64 = VOLMGR_GROUP.0 + 1;

/// A command that a correct volume manager never proposes, or one of a newer version: the replica stops (R26).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenCommand {
    /// Not a command at all.
    #[error("an entry is no cluster command")]
    Undecodable,
    /// Written by a newer program.
    #[error("a command of version {0}, which this program does not know")]
    UnknownVersion(u32),
    /// Written by a newer program, or empty.
    #[error("a command of a kind this program does not know")]
    UnknownKind,
    /// A log of one cluster in the directory of another.
    #[error("the log initialises cluster {got}, the state is of {have}")]
    OtherCluster {
        /// Cluster of the state.
        have: ClusterId,
        /// Cluster of the command.
        got: ClusterId,
    },
    /// An initialise command with an id or a secret of a wrong length.
    #[error("the initialising command is malformed")]
    MalformedInitialise,
}

/// A disk as it was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskState {
    /// Size when it registered last, in bytes.
    pub total_bytes: u64,
    /// Free space, when it registered last: what is known until the first heartbeat.
    pub available_bytes: u64,
    /// st_dev on its host: disks that share one share its free space.
    pub file_system: u64,
}

/// A node as it was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Metanode or datanode; it never changes.
    pub role: Role,
    /// Address that it listens on, host:port.
    pub address: String,
    /// Raised at each of its starts (R28).
    pub generation: u64,
    /// Of a datanode.
    pub disks: BTreeMap<DiskId, DiskState>,
    /// Drawn when it was formatted; names it before it has an id.
    pub format_nonce: FormatNonce,
}

/// One member of a block group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Disk that keeps its shards.
    pub disk: DiskId,
    /// Node that the disk is in.
    pub node: NodeId,
}

/// A volume as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Life of its table (R3).
    pub incarnation: Incarnation,
    /// Unique among the volumes that are not being deleted.
    pub name: String,
    /// Creating, active or being deleted.
    pub state: VolumeState,
    /// Its k + m, for life.
    pub code: CodeMode,
    /// Most logical bytes mapped; 0: no quota.
    pub quota_bytes: u64,
    /// Metanodes that host its table.
    pub replicas: BTreeSet<NodeId>,
    /// First id of a block group that was not given out.
    pub next_group: GroupId,
    /// Groups with the members they were made with; the table owns what became of them (R12).
    pub groups: BTreeMap<GroupId, Vec<Member>>,
    /// Wall time of its creation, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Random number of the proposal that made it: a repetition of that one is answered alike.
    pub request: u64,
    /// While it is deleted: nodes that have not confirmed yet.
    pub drop_pending: BTreeSet<NodeId>,
}

/// State of the cluster: what the volume manager's log says, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterState {
    cluster: Option<ClusterId>,
    secret: Option<ClusterSecret>,
    next_node: u64,
    next_disk: u64,
    next_volume: u64,
    nodes: BTreeMap<NodeId, NodeState>,
    volumes: BTreeMap<VolumeId, VolumeInfo>,
}

impl Default for ClusterState {
    fn default() -> Self {
        Self {
            cluster: None,
            secret: None,
            next_node: VOLMGR_NODE.0 + 1,
            next_disk: 1,
            next_volume: FIRST_VOLUME,
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
        }
    }
}

impl ClusterState {
    /// Applies one command and answers its proposer; a refusal is an answer, and changes nothing.
    ///
    /// # Errors
    /// [`BrokenCommand`]: the replica must stop.
    pub fn apply(&mut self, command: ClusterCommand) -> Result<ClusterReply, BrokenCommand> {
        if command.version != COMMAND_VERSION {
            return Err(BrokenCommand::UnknownVersion(command.version));
        }
        let result = match command.op.ok_or(BrokenCommand::UnknownKind)? {
            Op::Initialise(initialise) => return self.initialise(&initialise),
            Op::RegisterNode(register) => self.register_node(register),
            Op::CreateVolume(create) => self.create_volume(create, command.time_ns),
            Op::ActivateVolume(activate) => Ok(self.activate_volume(&activate)),
            Op::DeleteVolume(delete) => self.delete_volume(&delete),
            Op::ConfirmDrops(confirm) => Ok(self.confirm_drops(&confirm)),
            Op::AllocateGroups(allocate) => self.allocate_groups(allocate),
        };
        Ok(result.unwrap_or_else(|refusal| ClusterReply {
            refusal: refusal.kind() as u32,
            detail: refusal.to_string(),
            ..ClusterReply::default()
        }))
    }

    fn initialise(&mut self, command: &Initialise) -> Result<ClusterReply, BrokenCommand> {
        let cluster = <[u8; 16]>::try_from(&command.cluster[..])
            .map(ClusterId)
            .map_err(|_| BrokenCommand::MalformedInitialise)?;
        let secret = <[u8; 32]>::try_from(&command.secret[..])
            .map(ClusterSecret)
            .map_err(|_| BrokenCommand::MalformedInitialise)?;
        match self.cluster {
            Some(have) if have != cluster => return Err(BrokenCommand::OtherCluster { have, got: cluster }),
            Some(_) => {}
            None => {
                self.cluster = Some(cluster);
                self.secret = Some(secret);
            }
        }
        Ok(ClusterReply::default())
    }

    /// Id of the cluster, once initialised.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The secret of its nodes, once initialised.
    #[must_use]
    pub fn secret(&self) -> Option<&ClusterSecret> {
        self.secret.as_ref()
    }

    /// Every node, by id.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeState> {
        &self.nodes
    }

    /// Every volume, by id, those being deleted too.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, VolumeInfo> {
        &self.volumes
    }

    /// The volume of this name that is not being deleted.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &VolumeInfo)> {
        self.volumes.iter().find(|(_, v)| v.name == name && v.state != VolumeState::Deleting).map(|(id, v)| (*id, v))
    }

    /// Nodes of a role, by id.
    pub fn nodes_of(&self, role: Role) -> impl Iterator<Item = (NodeId, &NodeState)> {
        self.nodes.iter().filter(move |(_, node)| node.role == role).map(|(id, node)| (*id, node))
    }
}

#[cfg(test)]
mod tests;
