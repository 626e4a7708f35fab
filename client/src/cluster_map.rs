//! Where things are: block groups, node addresses, and which disks failed lately and are avoided for a while.
//!
//! Groups and addresses come from the table's leader, which learns addresses from the volume manager; only when no
//! metanode answers does the client ask the volume manager itself.

use holdfast_common::{DiskId, GroupId, NodeId};
use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::control::{Endpoint, ShowVolumeRequest, Volume};
use holdfast_proto::meta::{BlockGroup, ChunkRecord, GroupState, NodeAddress};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint as GrpcEndpoint;

/// First time a failing disk is left out; doubles with each further failure.
const AVOID_FIRST: Duration = Duration::from_millis(250);
/// Longest time a failing disk is left out: so long after its return it is used again at the latest.
const AVOID_MAX: Duration = Duration::from_secs(5);
/// A disk without space is asked again after this.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// The volume manager is asked at most this often.
const VOLMGR_INTERVAL: Duration = Duration::from_secs(1);
const VOLMGR_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Places {
    groups: HashMap<GroupId, Arc<BlockGroup>>,
    /// Groups that take chunks, in a stable order.
    open: Vec<GroupId>,
    nodes: HashMap<NodeId, NodePlace>,
    version: u64,
}

#[derive(Clone, Copy, Debug)]
struct NodePlace {
    address: SocketAddr,
    alive: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failures: u32,
    avoid_until: Option<Instant>,
}

/// Where a shard is to be found or put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) slot: u8,
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
}

/// The client's view of the cluster. Shared by all its parts.
#[derive(Debug)]
pub(crate) struct ClusterMap {
    volmgr: String,
    volume: String,
    places: RwLock<Places>,
    health: Mutex<HashMap<DiskId, Health>>,
    last_volmgr: tokio::sync::Mutex<Option<Instant>>,
}

impl ClusterMap {
    pub(crate) fn new(volmgr: &str, volume: &str) -> Self {
        Self {
            volmgr: volmgr.to_owned(),
            volume: volume.to_owned(),
            places: RwLock::default(),
            health: Mutex::default(),
            last_volmgr: tokio::sync::Mutex::new(None),
        }
    }

    /// Asks the volume manager for the volume, for mounting.
    pub(crate) async fn ask_volmgr(&self) -> Result<Volume, tonic::Status> {
        let endpoint = GrpcEndpoint::from_shared(format!("http://{}", self.volmgr))
            .map_err(|e| tonic::Status::invalid_argument(e.to_string()))?
            .connect_timeout(VOLMGR_TIMEOUT)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|e| tonic::Status::unavailable(root_cause(&e)))?;
        let mut admin = AdminClient::new(channel);
        let response = admin.show_volume(ShowVolumeRequest { name: self.volume.clone() }).await?;
        Ok(response.into_inner())
    }

    /// Renews the metanodes' addresses from the volume manager, if it answers; asked seldom, by one at a time.
    pub(crate) async fn refresh_from_volmgr(&self) {
        let Ok(mut last) = self.last_volmgr.try_lock() else { return };
        if last.is_some_and(|at| at.elapsed() < VOLMGR_INTERVAL) {
            return;
        }
        match timeout(VOLMGR_TIMEOUT, self.ask_volmgr()).await {
            Ok(Ok(volume)) => self.learn_endpoints(&volume.metanodes),
            Ok(Err(status)) => tracing::debug!(%status, "the volume manager did not answer"),
            Err(_) => tracing::debug!("the volume manager did not answer in time"),
        }
        *last = Some(Instant::now());
    }

    pub(crate) fn learn_endpoints(&self, endpoints: &[Endpoint]) {
        let mut places = self.places.write();
        for endpoint in endpoints {
            if let Ok(address) = endpoint.address.parse() {
                places.nodes.insert(NodeId(endpoint.node), NodePlace { address, alive: endpoint.alive });
            }
        }
    }

    /// Learns the leader's answer to GetGroups.
    pub(crate) fn learn(&self, groups: Vec<BlockGroup>, nodes: &[NodeAddress], version: u64) {
        let mut places = self.places.write();
        places.open = groups.iter().filter(|g| g.state() == GroupState::GroupOpen).map(|g| GroupId(g.group)).collect();
        places.open.sort_unstable();
        places.groups = groups.into_iter().map(|g| (GroupId(g.group), Arc::new(g))).collect();
        for node in nodes {
            if let Ok(address) = node.address.parse() {
                places.nodes.insert(NodeId(node.node), NodePlace { address, alive: node.alive });
            }
        }
        places.version = version;
    }

    pub(crate) fn version(&self) -> u64 {
        self.places.read().version
    }

    pub(crate) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.places.read().nodes.get(&node).map(|n| n.address)
    }

    /// The open groups' ids, in a stable order.
    pub(crate) fn open_groups(&self) -> Vec<GroupId> {
        self.places.read().open.clone()
    }

    pub(crate) fn group(&self, group: GroupId) -> Option<Arc<BlockGroup>> {
        self.places.read().groups.get(&group).cloned()
    }

    /// The members of a group that a new chunk may use now: present, thought alive, not avoided.
    pub(crate) fn usable_members(&self, group: &BlockGroup, now: Instant) -> Vec<Member> {
        let health = self.health.lock();
        let avoided = |disk| health.get(&disk).and_then(|h| h.avoid_until).is_some_and(|until| now < until);
        let mut members = self.reachable_members(group);
        members.retain(|member| !avoided(member.disk));
        members
    }

    /// The members of a group whose nodes are thought alive, also those without space.
    pub(crate) fn reachable_members(&self, group: &BlockGroup) -> Vec<Member> {
        let places = self.places.read();
        (0u8..)
            .zip(&group.slots)
            .filter(|(_, slot)| slot.disk != 0)
            .filter_map(|(index, slot)| {
                let node = NodeId(slot.node);
                let place = places.nodes.get(&node).filter(|p| p.alive)?;
                Some(Member { slot: index, disk: DiskId(slot.disk), node, address: place.address })
            })
            .collect()
    }

    /// Where shard `shard` of a chunk is, if its slot and node are known.
    pub(crate) fn locate(&self, chunk: &ChunkRecord, shard: usize) -> Option<Member> {
        let places = self.places.read();
        let slot = *chunk.slots.get(shard)?;
        let member = places.groups.get(&GroupId(chunk.group))?.slots.get(usize::from(slot))?;
        let address = places.nodes.get(&NodeId(member.node))?.address;
        (member.disk != 0).then_some(Member { slot, disk: DiskId(member.disk), node: NodeId(member.node), address })
    }

    /// Whether a read should turn to other members first.
    pub(crate) fn avoided(&self, member: &Member, now: Instant) -> bool {
        let dead = self.places.read().nodes.get(&member.node).is_some_and(|n| !n.alive);
        dead || self.health.lock().get(&member.disk).and_then(|h| h.avoid_until).is_some_and(|until| now < until)
    }

    pub(crate) fn failed(&self, disk: DiskId, now: Instant) {
        let mut health = self.health.lock();
        let entry = health.entry(disk).or_default();
        let pause = AVOID_FIRST.saturating_mul(1 << entry.failures.min(8)).min(AVOID_MAX);
        entry.failures = entry.failures.saturating_add(1);
        entry.avoid_until = Some(now + pause);
    }

    pub(crate) fn full(&self, disk: DiskId, now: Instant) {
        self.health.lock().entry(disk).or_default().avoid_until = Some(now + FULL_PAUSE);
    }

    pub(crate) fn works(&self, disk: DiskId) {
        self.health.lock().remove(&disk);
    }
}

/// The innermost reason of an error, which is what a person can act on.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::GroupSlot;

    fn map() -> (ClusterMap, BlockGroup) {
        let map = ClusterMap::new("127.0.0.1:1", "v");
        let group = BlockGroup {
            group: 1,
            slots: (1..=3).map(|i| GroupSlot { disk: i, node: 10 + i }).collect(),
            ..BlockGroup::default()
        };
        let nodes: Vec<_> = (11..=13)
            .map(|node| NodeAddress { node, address: format!("127.0.0.1:{node}"), alive: node != 13 })
            .collect();
        map.learn(vec![group.clone()], &nodes, 5);
        (map, group)
    }

    #[tokio::test]
    async fn dead_nodes_and_failing_disks_take_no_new_chunks_until_they_work() {
        let (map, group) = map();
        let now = Instant::now();
        let slots = |at| map.usable_members(&group, at).iter().map(|m| m.slot).collect::<Vec<_>>();
        assert_eq!(slots(now), [0, 1]);
        map.failed(DiskId(1), now);
        assert_eq!(slots(now), [1]);
        assert_eq!(slots(now + AVOID_FIRST), [0, 1]);
        map.failed(DiskId(1), now);
        assert_eq!(slots(now + AVOID_FIRST), [1]);
        map.works(DiskId(1));
        assert_eq!(slots(now), [0, 1]);
    }

    #[test]
    fn a_shard_is_located_through_its_chunks_slot_set() {
        let (map, _) = map();
        let chunk = ChunkRecord { group: 1, slots: vec![2, 0].into(), ..ChunkRecord::default() };
        assert_eq!(map.locate(&chunk, 0).map(|m| m.disk), Some(DiskId(3)));
        assert_eq!(map.locate(&chunk, 1).map(|m| m.disk), Some(DiskId(1)));
        assert_eq!(map.locate(&chunk, 2), None);
    }
}
