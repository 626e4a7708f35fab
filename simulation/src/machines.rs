//! The machines, by their numbers.

use holdfast_common::NodeId;

pub(crate) const VOLMGR: NodeId = NodeId(1);
pub(crate) const METANODES: [NodeId; 3] = [NodeId(2), NodeId(3), NodeId(4)];
pub(crate) const DATANODES: [NodeId; 4] = [NodeId(5), NodeId(6), NodeId(7), NodeId(8)];
pub(crate) const CLIENTS: usize = 2;
/// Machine that sends datanodes what no client and no table does.
pub(crate) const STRANGER: NodeId = NodeId(900);
/// Clients' machines have numbers from here on.
const FIRST_CLIENT: u64 = 1000;
/// Data and parity shards: one disk more than a stripe needs.
pub(crate) const CODE: (u32, u32) = (2, 1);

pub(crate) fn client_node(client: usize) -> NodeId {
    NodeId(FIRST_CLIENT + client as u64)
}

/// Index of the client on a machine, if there is one.
pub(crate) fn client_of(node: NodeId) -> Option<usize> {
    usize::try_from(node.0.checked_sub(FIRST_CLIENT)?).ok()
}
