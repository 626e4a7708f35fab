//! Volumes: made, found ready, deleted, forgotten.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::{DiskId, GroupId, Incarnation, NodeId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::cluster::{ActivateVolume, ClusterReply, ConfirmDrops, CreateVolume, DeleteVolume};
use holdfast_proto::control::{Role, VolumeState};

use super::{ClusterState, FIRST_VOLUME, Refusal, VolumeInfo};

/// Longest name of a volume: it goes into paths, metrics and mount tables.
const VOLUME_NAME_BYTES_MAX: usize = 64;
/// The first incarnation of every table; a restore from backup raises it.
const FIRST_INCARNATION: Incarnation = Incarnation(1);
/// The first block group of every volume.
const FIRST_GROUP: GroupId = GroupId(1);

/// Checks a volume's name.
///
/// # Errors
/// `Refusal::BadName`.
pub fn check_volume_name(name: &str) -> Result<(), Refusal> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let fits =
        (1..=VOLUME_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['-', '.']);
    if fits { Ok(()) } else { Err(Refusal::BadName(name.to_owned())) }
}

impl ClusterState {
    pub(super) fn create_volume(&mut self, command: CreateVolume, time_ns: i64) -> Result<ClusterReply, Refusal> {
        check_volume_name(&command.name)?;
        if let Some((volume, info)) = self.volume_named(&command.name) {
            if command.request != 0 && info.request == command.request {
                return Ok(ClusterReply { volume: volume.0, ..ClusterReply::default() });
            }
            return Err(Refusal::NameTaken(command.name));
        }
        let code = CodeMode::new(command.data_shards, command.parity_shards)?;
        let failed: BTreeSet<DiskId> = command.failed_disks.iter().copied().map(DiskId).collect();
        self.check_width(code, &failed)?;
        let replicas = self.check_replicas(&command.replicas)?;
        let volume = VolumeId(self.next_volume);
        self.next_volume += 1;
        self.volumes.insert(
            volume,
            VolumeInfo {
                incarnation: FIRST_INCARNATION,
                name: command.name,
                state: VolumeState::Creating,
                code,
                quota_bytes: command.quota_bytes,
                replicas,
                next_group: FIRST_GROUP,
                groups: BTreeMap::new(),
                created_ns: time_ns,
                request: command.request,
                drop_pending: BTreeSet::new(),
            },
        );
        Ok(ClusterReply { volume: volume.0, ..ClusterReply::default() })
    }

    /// Whether there are disks for every shard of a stripe, the failed ones not counted.
    ///
    /// # Errors
    /// [`Refusal::TooFewDisks`].
    pub fn check_width(&self, code: CodeMode, failed: &BTreeSet<DiskId>) -> Result<(), Refusal> {
        let have =
            self.nodes_of(Role::Datanode).flat_map(|(_, n)| n.disks.keys()).filter(|d| !failed.contains(d)).count();
        if have < code.width() { Err(Refusal::TooFewDisks { code, have }) } else { Ok(()) }
    }

    fn check_replicas(&self, proposed: &[u64]) -> Result<BTreeSet<NodeId>, Refusal> {
        if self.nodes_of(Role::Metanode).next().is_none() {
            return Err(Refusal::NoMetanodes);
        }
        let replicas: BTreeSet<NodeId> = proposed.iter().copied().map(NodeId).collect();
        let known = |node: &NodeId| self.nodes.get(node).is_some_and(|n| n.role == Role::Metanode);
        if replicas.len() != proposed.len() || replicas.len().is_multiple_of(2) || !replicas.iter().all(known) {
            return Err(Refusal::BadReplicas);
        }
        Ok(replicas)
    }

    /// A volume that is being deleted, or was, stays so: the report that it is ready may be older, and is no fault of the node that
    /// sent it.
    pub(super) fn activate_volume(&mut self, command: &ActivateVolume) -> ClusterReply {
        let volume = VolumeId(command.volume);
        if let Ok(info) = self.living_volume(volume, Incarnation(command.incarnation)) {
            info.state = VolumeState::Active;
        }
        ClusterReply { volume: volume.0, ..ClusterReply::default() }
    }

    /// The volume that is not being deleted, of exactly this incarnation.
    pub(super) fn living_volume(
        &mut self,
        volume: VolumeId,
        incarnation: Incarnation,
    ) -> Result<&mut VolumeInfo, Refusal> {
        self.volumes
            .get_mut(&volume)
            .filter(|info| info.incarnation == incarnation && info.state != VolumeState::Deleting)
            .ok_or(Refusal::NoSuchVolumeId(volume))
    }

    /// Frees the name at once; the volume stays listed until every node that may hold of it has confirmed.
    /// Deleting it again, or what was deleted and forgotten, is no error: the proposal may be a repetition.
    pub(super) fn delete_volume(&mut self, command: &DeleteVolume) -> Result<ClusterReply, Refusal> {
        let volume = VolumeId(command.volume);
        let mut pending: BTreeSet<NodeId> = self.nodes_of(Role::Datanode).map(|(node, _)| node).collect();
        let was_made = (FIRST_VOLUME..self.next_volume).contains(&volume.0);
        match self.volumes.get_mut(&volume) {
            Some(info) if info.incarnation.0 != command.incarnation => return Err(Refusal::NoSuchVolumeId(volume)),
            Some(info) if info.state != VolumeState::Deleting => {
                pending.extend(info.replicas.iter().copied());
                info.state = VolumeState::Deleting;
                info.drop_pending = pending;
            }
            None if !was_made => return Err(Refusal::NoSuchVolumeId(volume)),
            Some(_) | None => {}
        }
        Ok(ClusterReply { volume: volume.0, ..ClusterReply::default() })
    }

    pub(super) fn confirm_drops(&mut self, command: &ConfirmDrops) -> ClusterReply {
        for key in &command.volumes {
            let volume = VolumeId(key.volume);
            let Some(info) = self.volumes.get_mut(&volume) else { continue };
            if info.state == VolumeState::Deleting && info.incarnation.0 == key.incarnation {
                info.drop_pending.remove(&NodeId(command.node));
                if info.drop_pending.is_empty() {
                    self.volumes.remove(&volume);
                }
            }
        }
        ClusterReply::default()
    }
}
