//! The node's conversation with the volume manager: it says where it is and how its disks are, and drops the volumes it
//! is told to. Everything else on the node goes on while the volume manager is dead.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_common::{ClusterId, DiskId, NodeId};
use holdfast_node::{Complaint, HomeLost, NodeSuperblock, VolumeManager, is_final, look_at_home};
use holdfast_proto::control::{
    Disk, DroppedVolume, HeartbeatRequest, HeartbeatResponse, RegisterRequest, Role, VolumeDrop,
};

use crate::service::DataService;
use crate::store::DiskStatus;
use crate::store::types::VolumeKey;
use crate::superblock::NODE_KIND;

/// Longest time to make a drop durable on all disks.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a look at the superblocks.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Drops executed for one heartbeat; the rest comes with the next.
const DROPS_PER_HEARTBEAT_MAX: usize = 64;

/// State of the conversation with the volume manager.
pub(crate) struct Heart {
    pub(crate) service: Arc<DataService>,
    pub(crate) volmgr: VolumeManager,
    pub(crate) superblock: NodeSuperblock,
    pub(crate) directory: PathBuf,
    pub(crate) address: SocketAddr,
}

/// The request by which a node says where it is.
pub(crate) fn registration(
    superblock: &NodeSuperblock,
    address: SocketAddr,
    disks: &[(DiskId, DiskStatus)],
) -> RegisterRequest {
    superblock.registration(Role::Datanode, address, disks.iter().map(report).collect())
}

/// One disk's line in a registration or heartbeat.
pub(crate) fn report((disk, status): &(DiskId, DiskStatus)) -> Disk {
    Disk {
        disk: disk.0,
        healthy: !status.failed,
        total_bytes: status.total_bytes,
        available_bytes: status.unreserved_bytes,
        used_bytes: status.used_bytes,
        shards_count: status.shards_count,
        file_system: status.file_system,
    }
}

/// A heartbeat of a node, with the volumes that are dropped on all its disks.
pub(crate) fn message(
    cluster: ClusterId,
    node: NodeId,
    generation: u64,
    disks: &[(DiskId, DiskStatus)],
    dropped: &BTreeSet<VolumeKey>,
) -> HeartbeatRequest {
    let drop = |key: &VolumeKey| DroppedVolume { volume: key.volume.0, incarnation: key.incarnation.0 };
    HeartbeatRequest {
        cluster: cluster.to_string(),
        node: node.0,
        generation,
        disks: disks.iter().map(report).collect(),
        tables: Vec::new(),
        dropped: dropped.iter().map(drop).collect(),
        feature_level: 0,
    }
}

/// The drops that a heartbeat's answer asks for and that are executed now.
pub(crate) fn ordered_drops(response: &HeartbeatResponse) -> impl Iterator<Item = &VolumeDrop> {
    response.drops.iter().take(DROPS_PER_HEARTBEAT_MAX)
}

/// Registers unless that was done, then sends heartbeats. Returns only when the node must serve no more, with the reason:
/// the volume manager refuses it for good, or its directory is gone or another.
pub(crate) async fn run(heart: Heart, registered: bool) -> String {
    let interval = Duration::from_millis(heart.superblock.heartbeat_interval_ms.max(10).into());
    let mut complaint = Complaint::new("the volume manager does not answer");
    if !registered {
        let request = || async { registration(&heart.superblock, heart.address, &heart.service.statuses().await) };
        if let Err(status) = heart.volmgr.register_at_last(request, |status| complaint.about(status)).await {
            return status.message().to_owned();
        }
    }
    let (mut dropped, mut reported) = (BTreeSet::new(), BTreeSet::new());
    loop {
        if let Err(why) = heart.look_at_home().await {
            return why.to_string();
        }
        match heart.volmgr.heartbeat(heart.request(&dropped).await).await {
            Ok(response) => {
                complaint.end();
                reported = std::mem::replace(&mut dropped, heart.obey(response).await);
            }
            Err(status) if is_final(&status) => return status.message().to_owned(),
            Err(status) => complaint.about(&status),
        }
        // What was newly dropped is reported at once: the volume's deletion waits for it.
        if dropped.is_subset(&reported) {
            tokio::time::sleep(interval).await;
        }
    }
}

impl Heart {
    /// Takes disks out of service whose directory is gone or another.
    ///
    /// # Errors
    /// The node's own directory is.
    async fn look_at_home(&self) -> Result<(), HomeLost> {
        let (service, superblock, directory) = (self.service.clone(), self.superblock.clone(), self.directory.clone());
        let look = move || {
            service.disks().for_each(|disk| disk.look_at_home());
            superblock.check_home(&directory, NODE_KIND)
        };
        // A disk that hangs must not make the whole node look dead.
        tokio::time::timeout(LOOK_TIMEOUT, look_at_home(look)).await.unwrap_or(Ok(()))
    }

    async fn request(&self, dropped: &BTreeSet<VolumeKey>) -> HeartbeatRequest {
        let NodeSuperblock { cluster, node, generation, .. } = self.superblock;
        message(cluster, node, generation, &self.service.statuses().await, dropped)
    }

    /// Executes the drops that are asked for; those durable on every disk are to be reported.
    async fn obey(&self, response: HeartbeatResponse) -> BTreeSet<VolumeKey> {
        let mut done = BTreeSet::new();
        for order in ordered_drops(&response) {
            done.extend(self.service.obey_drop(order, Instant::now() + DROP_TIMEOUT).await);
        }
        done
    }
}
