//! Registration of nodes and disks (R28).

use std::collections::BTreeMap;

use holdfast_common::{DiskId, FormatNonce, NodeId};
use holdfast_proto::cluster::{ClusterReply, DiskRecord, RegisterNode};
use holdfast_proto::control::Role;

use super::{ClusterState, DiskState, NodeState, Refusal};

impl ClusterState {
    pub(super) fn register_node(&mut self, command: RegisterNode) -> Result<ClusterReply, Refusal> {
        let role = match Role::try_from(i32::try_from(command.role).unwrap_or(0)) {
            Ok(role @ (Role::Metanode | Role::Datanode)) => role,
            Ok(Role::Unknown) | Err(_) => return Err(Refusal::NoRole),
        };
        if let Some(node) = self.node_of_registration(&command) {
            self.register_known(node, role, command)
        } else if command.node == 0 {
            self.register_new(role, command)
        } else {
            Err(Refusal::UnknownNode(NodeId(command.node)))
        }
    }

    /// Known node that a registration comes from: by its id, or by the nonce of an earlier registration whose answer
    /// was lost.
    fn node_of_registration(&self, command: &RegisterNode) -> Option<NodeId> {
        if command.node != 0 {
            return Some(NodeId(command.node)).filter(|node| self.nodes.contains_key(node));
        }
        let nonce = Some(FormatNonce(command.format_nonce)).filter(|nonce| *nonce != FormatNonce::NONE)?;
        self.nodes.iter().find(|(_, known)| known.format_nonce == nonce).map(|(node, _)| *node)
    }

    fn register_new(&mut self, role: Role, command: RegisterNode) -> Result<ClusterReply, Refusal> {
        let node = NodeId(self.next_node);
        if let Some(disk) = command.disks.iter().find(|disk| disk.disk != 0) {
            return Err(Refusal::UnknownDisk { disk: DiskId(disk.disk), node });
        }
        self.next_node += 1;
        let mut state = NodeState {
            role,
            address: command.address,
            generation: command.generation,
            disks: BTreeMap::new(),
            format_nonce: FormatNonce(command.format_nonce),
        };
        let disks = command.disks.iter().map(|record| self.put_disk(&mut state, record)).collect();
        self.nodes.insert(node, state);
        Ok(ClusterReply { node: node.0, disks, ..ClusterReply::default() })
    }

    fn register_known(&mut self, node: NodeId, role: Role, mut command: RegisterNode) -> Result<ClusterReply, Refusal> {
        let mut state = self.nodes.get(&node).cloned().ok_or(Refusal::UnknownNode(node))?;
        if state.role != role {
            return Err(Refusal::OtherRole(node));
        }
        if command.generation < state.generation {
            return Err(Refusal::OlderGeneration { node, known: state.generation, got: command.generation });
        }
        // An equal generation elsewhere is a copy that was started beside the original. A higher one while the original
        // is heard is one too; when the original falls silent it is its restart. Only the proposer hears heartbeats.
        let moved = state.address != command.address;
        if moved && (command.living_elsewhere || command.generation == state.generation) {
            return Err(Refusal::LivingElsewhere { node, address: state.address });
        }
        if command.node == 0 && command.disks.len() == state.disks.len() {
            for (record, known) in command.disks.iter_mut().zip(state.disks.keys()) {
                record.disk = known.0;
            }
        }
        if let Some(disk) = command.disks.iter().find(|d| d.disk != 0 && !state.disks.contains_key(&DiskId(d.disk))) {
            return Err(Refusal::UnknownDisk { disk: DiskId(disk.disk), node });
        }
        state.address = command.address;
        state.generation = command.generation;
        let disks = command.disks.iter().map(|record| self.put_disk(&mut state, record)).collect();
        self.nodes.insert(node, state);
        Ok(ClusterReply { node: node.0, disks, ..ClusterReply::default() })
    }

    /// Notes a disk under its id, or under a new one. A disk that is not mentioned stays known (R7).
    fn put_disk(&mut self, node: &mut NodeState, record: &DiskRecord) -> u64 {
        let disk = if record.disk == 0 {
            self.next_disk += 1;
            self.next_disk - 1
        } else {
            record.disk
        };
        node.disks.insert(
            DiskId(disk),
            DiskState {
                total_bytes: record.total_bytes,
                available_bytes: record.available_bytes,
                file_system: record.file_system,
            },
        );
        disk
    }

    /// Node that a disk is in.
    #[must_use]
    pub fn node_of_disk(&self, disk: DiskId) -> Option<NodeId> {
        self.nodes.iter().find(|(_, node)| node.disks.contains_key(&disk)).map(|(id, _)| *id)
    }
}
