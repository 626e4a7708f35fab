//! State and soft state put together: what placement chooses from, and what answers show.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::{DiskId, NodeId, VolumeId};
use holdfast_erasure::CodeMode;
use holdfast_proto::control::{Disk, Endpoint, Node, Role, TableAssignment, Volume};

use super::Manager;
use crate::capacity::{self, DiskSpace};
use crate::placement::{Candidate, TableCandidate};
use crate::state::{ClusterState, NodeState, VolumeInfo};

/// The cluster at one moment: the state, with what heartbeats added.
pub(super) struct View<'a> {
    manager: &'a Manager,
    state: &'a ClusterState,
    now_ms: u64,
    alive: BTreeSet<NodeId>,
    spaces: Vec<DiskSpace>,
    /// Computed once for each code mode, however many volumes have it.
    available: RefCell<BTreeMap<(u8, u8), u64>>,
}

impl<'a> View<'a> {
    pub(super) fn new(manager: &'a Manager, state: &'a ClusterState, now_ms: u64) -> Self {
        let nodes = state.nodes().keys().copied();
        let alive = nodes.filter(|node| manager.liveness.is_alive(now_ms, *node)).collect();
        let mut view = Self { manager, state, now_ms, alive, spaces: Vec::new(), available: RefCell::default() };
        view.spaces = view.disk_spaces();
        view
    }

    fn is_alive(&self, node: NodeId) -> bool {
        self.alive.contains(&node)
    }

    fn available_bytes(&self, code: CodeMode) -> u64 {
        let mut known = self.available.borrow_mut();
        let compute = || capacity::available_bytes(&self.spaces, code);
        *known.entry((code.k(), code.m())).or_insert_with(compute)
    }

    /// A node's disks as it reported them last; as registered until its first report. A disk that a node no longer
    /// reports is out of service.
    fn disks_of(&self, id: NodeId, node: &NodeState) -> Vec<Disk> {
        let reported = self.manager.disks.get(&id);
        let registered = node.disks.iter().map(|(disk, known)| {
            let found = reported.map(|all| all.iter().find(|r| r.disk == disk.0));
            match found {
                Some(Some(report)) => *report,
                Some(None) => Disk { disk: disk.0, healthy: false, ..Disk::default() },
                None => Disk {
                    disk: disk.0,
                    healthy: true,
                    total_bytes: known.total_bytes,
                    available_bytes: known.available_bytes,
                    file_system: known.file_system,
                    ..Disk::default()
                },
            }
        });
        registered.collect()
    }

    /// Disks that their node said are out of service.
    pub(super) fn failed_disks(&self) -> BTreeSet<DiskId> {
        self.state
            .nodes_of(Role::Datanode)
            .flat_map(|(id, node)| self.disks_of(id, node))
            .filter(|disk| !disk.healthy)
            .map(|disk| DiskId(disk.disk))
            .collect()
    }

    fn disk_spaces(&self) -> Vec<DiskSpace> {
        let mut spaces = Vec::new();
        for (id, node) in self.state.nodes_of(Role::Datanode) {
            let (alive, host) = (self.is_alive(id), host_of(&node.address));
            let healthy = self.disks_of(id, node).into_iter().filter(|disk| disk.healthy);
            spaces.extend(healthy.map(|disk| DiskSpace {
                disk: DiskId(disk.disk),
                node: id,
                host: host.to_owned(),
                file_system: disk.file_system,
                available_bytes: disk.available_bytes,
                alive,
            }));
        }
        spaces
    }

    /// The disks in service, for [`crate::placement::place_groups`].
    pub(super) fn group_candidates(&self) -> Vec<Candidate> {
        let own = capacity::own_space(&self.spaces);
        let groups = self.state.groups_per_disk();
        let candidate = |space: &DiskSpace| Candidate {
            disk: space.disk,
            node: space.node,
            free_bytes: own.get(&space.disk).copied().unwrap_or(0),
            groups_count: groups.get(&space.disk).copied().unwrap_or(0),
            alive: space.alive,
        };
        self.spaces.iter().map(candidate).collect()
    }

    /// The metanodes, for [`crate::placement::place_table`].
    pub(super) fn table_candidates(&self) -> Vec<TableCandidate> {
        let tables = self.state.tables_per_node();
        self.state
            .nodes_of(Role::Metanode)
            .map(|(node, _)| TableCandidate {
                node,
                tables_count: tables.get(&node).copied().unwrap_or(0),
                alive: self.is_alive(node),
            })
            .collect()
    }

    pub(super) fn endpoint(&self, node: NodeId) -> Endpoint {
        let address = self.state.nodes().get(&node).map(|n| n.address.clone()).unwrap_or_default();
        let disks = self.state.nodes().get(&node).map(|known| self.disks_of(node, known)).unwrap_or_default();
        let failed = disks.iter().filter(|disk| !disk.healthy).map(|disk| disk.disk);
        let full = disks.iter().filter(|disk| disk.healthy && self.manager.full_disks.contains(&DiskId(disk.disk)));
        Endpoint {
            node: node.0,
            address,
            alive: self.is_alive(node),
            failed_disks: failed.collect(),
            full_disks: full.map(|disk| disk.disk).collect(),
        }
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.state.nodes().keys().map(|node| self.endpoint(*node)).collect()
    }

    pub(super) fn node(&self, id: NodeId, node: &NodeState) -> Node {
        let silent = self.manager.liveness.silent_ms(self.now_ms, id);
        Node {
            node: id.0,
            role: node.role as i32,
            address: node.address.clone(),
            alive: self.is_alive(id),
            generation: node.generation,
            disks: self.disks_of(id, node),
            last_seen_ms_ago: silent.unwrap_or(0),
        }
    }

    pub(super) fn volume(&self, id: VolumeId, info: &VolumeInfo) -> Volume {
        let report = self.manager.tables.get(&(id, info.incarnation));
        let leader = report.map(|r| r.node).filter(|node| self.is_alive(*node));
        let report = report.map(|r| r.report).unwrap_or_default();
        let quota_left = match info.quota_bytes {
            0 => u64::MAX,
            quota => quota.saturating_sub(report.used_bytes),
        };
        Volume {
            volume: id.0,
            incarnation: info.incarnation.0,
            name: info.name.clone(),
            state: info.state as i32,
            data_shards: info.code.k().into(),
            parity_shards: info.code.m().into(),
            quota_bytes: info.quota_bytes,
            metanodes: info.replicas.iter().map(|node| self.endpoint(*node)).collect(),
            leader_node: leader.map_or(0, |node| node.0),
            used_bytes: report.used_bytes,
            available_bytes: self.available_bytes(info.code).min(quota_left),
            inodes_count: report.inodes_count,
            groups_count: info.groups.len() as u64,
            created_ns: u64::try_from(info.created_ns).unwrap_or(0),
            cluster: self.manager.cluster.to_string(),
        }
    }

    pub(super) fn assignment(&self, id: VolumeId, info: &VolumeInfo) -> TableAssignment {
        TableAssignment {
            volume: id.0,
            incarnation: info.incarnation.0,
            name: info.name.clone(),
            replicas: info.replicas.iter().map(|node| node.0).collect(),
            data_shards: info.code.k().into(),
            parity_shards: info.code.m().into(),
            quota_bytes: info.quota_bytes,
            available_bytes: self.available_bytes(info.code),
            feature_level: self.feature_level(&info.replicas),
        }
    }

    /// Highest feature level that the builds on all these metanodes know; 0 until each was heard.
    fn feature_level(&self, replicas: &BTreeSet<NodeId>) -> u32 {
        let level = |node: &NodeId| self.manager.feature_levels.get(node).copied().unwrap_or(0);
        replicas.iter().map(level).min().unwrap_or(0)
    }
}

/// Address without its port: the host of a node, as far as its address tells.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}
