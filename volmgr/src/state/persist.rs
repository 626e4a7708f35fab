//! The state as a snapshot, and back. The record is versioned; a newer one is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, DiskId, FormatNonce, GroupId, Incarnation, NodeId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::cluster::{ClusterSnapshot, DiskRecord, NodeRecord, VolumeRecord};
use holdfast_proto::control::{Role, VolumeState};
use prost::Message;

use super::groups::{group_record, members_of};
use super::{ClusterState, DiskState, NodeState, VolumeInfo};

const SNAPSHOT_VERSION: u32 = 1;

/// A snapshot that cannot be read back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Not a snapshot.
    #[error("the snapshot cannot be decoded")]
    Undecodable,
    /// Written by a newer program.
    #[error("the snapshot has version {0}, which this program does not know")]
    UnknownVersion(u32),
    /// A field has a value it cannot have.
    #[error("the snapshot's {0} does not make sense")]
    Malformed(&'static str),
}

impl ClusterState {
    /// The state as bytes; equal states give equal bytes.
    #[must_use]
    pub fn to_snapshot(&self) -> Vec<u8> {
        ClusterSnapshot {
            version: SNAPSHOT_VERSION,
            cluster: self.cluster.map(|c| Bytes::copy_from_slice(&c.0)).unwrap_or_default(),
            secret: self.secret.as_ref().map(|s| Bytes::copy_from_slice(&s.0)).unwrap_or_default(),
            next_node: self.next_node,
            next_disk: self.next_disk,
            next_volume: self.next_volume,
            nodes: self.nodes.iter().map(|(id, node)| node_record(*id, node)).collect(),
            volumes: self.volumes.iter().map(|(id, volume)| volume_record(*id, volume)).collect(),
        }
        .encode_to_vec()
    }

    /// The state a snapshot holds.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, RestoreError> {
        let record = ClusterSnapshot::decode(bytes).map_err(|_| RestoreError::Undecodable)?;
        if record.version != SNAPSHOT_VERSION {
            return Err(RestoreError::UnknownVersion(record.version));
        }
        let cluster = optional(&record.cluster).map_err(|()| RestoreError::Malformed("cluster id"))?;
        let secret = optional(&record.secret).map_err(|()| RestoreError::Malformed("secret"))?;
        Ok(Self {
            cluster: cluster.map(ClusterId),
            secret: secret.map(ClusterSecret),
            next_node: record.next_node,
            next_disk: record.next_disk,
            next_volume: record.next_volume,
            nodes: record.nodes.iter().map(node_of).collect::<Result<_, _>>()?,
            volumes: record.volumes.iter().map(volume_of).collect::<Result<_, _>>()?,
        })
    }
}

fn optional<const N: usize>(bytes: &[u8]) -> Result<Option<[u8; N]>, ()> {
    if bytes.is_empty() { Ok(None) } else { <[u8; N]>::try_from(bytes).map(Some).map_err(|_| ()) }
}

fn node_record(id: NodeId, node: &NodeState) -> NodeRecord {
    let disks = node.disks.iter().map(|(disk, state)| DiskRecord {
        disk: disk.0,
        total_bytes: state.total_bytes,
        available_bytes: state.available_bytes,
        file_system: state.file_system,
    });
    NodeRecord {
        node: id.0,
        role: (node.role as i32).unsigned_abs(),
        address: node.address.clone(),
        generation: node.generation,
        disks: disks.collect(),
        format_nonce: node.format_nonce.0,
    }
}

fn node_of(record: &NodeRecord) -> Result<(NodeId, NodeState), RestoreError> {
    let role = i32::try_from(record.role).ok().and_then(|r| Role::try_from(r).ok());
    let disks: BTreeMap<_, _> = record
        .disks
        .iter()
        .map(|d| {
            let state = DiskState {
                total_bytes: d.total_bytes,
                available_bytes: d.available_bytes,
                file_system: d.file_system,
            };
            (DiskId(d.disk), state)
        })
        .collect();
    let state = NodeState {
        role: role.ok_or(RestoreError::Malformed("role"))?,
        address: record.address.clone(),
        generation: record.generation,
        disks,
        format_nonce: FormatNonce(record.format_nonce),
    };
    Ok((NodeId(record.node), state))
}

fn volume_record(id: VolumeId, volume: &VolumeInfo) -> VolumeRecord {
    VolumeRecord {
        volume: id.0,
        incarnation: volume.incarnation.0,
        name: volume.name.clone(),
        state: (volume.state as i32).unsigned_abs(),
        data_shards: volume.code.k().into(),
        parity_shards: volume.code.m().into(),
        quota_bytes: volume.quota_bytes,
        replicas: volume.replicas.iter().map(|n| n.0).collect(),
        next_group: volume.next_group.0,
        groups: volume.groups.iter().map(|(group, members)| group_record(*group, members)).collect(),
        created_ns: volume.created_ns,
        request: volume.request,
        drop_pending: volume.drop_pending.iter().map(|n| n.0).collect(),
    }
}

fn volume_of(record: &VolumeRecord) -> Result<(VolumeId, VolumeInfo), RestoreError> {
    let state = i32::try_from(record.state).ok().and_then(|s| VolumeState::try_from(s).ok());
    let info = VolumeInfo {
        incarnation: Incarnation(record.incarnation),
        name: record.name.clone(),
        state: state.ok_or(RestoreError::Malformed("volume state"))?,
        code: CodeMode::new(record.data_shards, record.parity_shards)
            .map_err(|_| RestoreError::Malformed("code mode"))?,
        quota_bytes: record.quota_bytes,
        replicas: record.replicas.iter().copied().map(NodeId).collect(),
        next_group: GroupId(record.next_group),
        groups: record.groups.iter().map(|group| (GroupId(group.group), members_of(group))).collect(),
        created_ns: record.created_ns,
        request: record.request,
        drop_pending: record.drop_pending.iter().copied().map(NodeId).collect(),
    };
    Ok((VolumeId(record.volume), info))
}
