//! The machines, and what they have for their own, by their numbers.

use holdfast_common::NodeId;

pub(crate) const VOLMGR: NodeId = NodeId(1);
pub(crate) const METANODES: [NodeId; 3] = [NodeId(2), NodeId(3), NodeId(4)];
pub(crate) const DATANODES: [NodeId; 4] = [NodeId(5), NodeId(6), NodeId(7), NodeId(8)];
pub(crate) const CLIENTS: usize = 2;
/// Machine that sends datanodes what no client and no table does.
pub(crate) const STRANGER: NodeId = NodeId(900);
/// Volumes from here on are the stranger's.
pub(crate) const STRANGER_VOLUMES: u64 = 1 << 40;
/// Sequences that no client comes to.
pub(crate) const STRANGE_SEQUENCES: u64 = 1 << 60;
/// Clients' machines have numbers from here on.
const FIRST_CLIENT: u64 = 1000;
/// Length of the keys that clients here have.
pub(crate) const BASE_KEY_BYTES: usize = 8;
/// Data and parity shards: one disk more than a stripe needs.
pub(crate) const CODE: (u32, u32) = (2, 1);

pub(crate) fn client_node(client: usize) -> NodeId {
    NodeId(FIRST_CLIENT + client as u64)
}

/// The key by which a client's next mount fences its former one.
pub(crate) fn key_of(client: usize) -> Vec<u8> {
    let key = format!("client {client}").into_bytes();
    debug_assert_eq!(key.len(), BASE_KEY_BYTES);
    key
}

/// Index of the client on a machine, if there is one.
pub(crate) fn client_of(node: NodeId) -> Option<usize> {
    usize::try_from(node.0.checked_sub(FIRST_CLIENT)?).ok()
}
