//! What the volume manager said last: where nodes are, whether they live, which tables belong here. Kept in memory and,
//! without what changes by the second, in a small file, so that a metanode that starts while the volume manager is dead
//! finds its peers and tells clients where datanodes are.

use holdfast_common::{NodeId, VolumeId};
use holdfast_node::superblock::{self, Kind, SuperblockError};
use holdfast_proto::control::{Endpoint, HeartbeatResponse, TableAssignment};
use holdfast_proto::meta::NodeAddress;
use holdfast_proto::metanode::Neighbours as Record;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// The file.
const NEIGHBOURS: Kind = Kind {
    file: "neighbours",
    second: None,
    magic: *b"HFNEIGH\n",
    version: 1,
    // Ten thousand nodes take half of it.
    record_bytes_max: 1 << 20,
    name: "a metanode's directory",
};

#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<NodeId, Place>,
    tables: BTreeMap<VolumeId, TableAssignment>,
    /// Equal for equal addresses and liveness, on every metanode.
    fingerprint: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    text: String,
    /// `None` if the text does not resolve.
    address: Option<SocketAddr>,
    alive: bool,
}

/// Addresses and assignments, shared by everything on the node.
#[derive(Debug)]
pub(crate) struct Neighbours {
    directory: PathBuf,
    known: RwLock<Known>,
}

impl Neighbours {
    /// What the directory's file says; nothing if there is none or it is damaged.
    pub(crate) fn load(directory: &Path) -> Result<Self, SuperblockError> {
        let record = match superblock::read::<Record>(directory, NEIGHBOURS) {
            Ok(record) => record,
            Err(SuperblockError::NotFormatted { .. }) => Record::default(),
            // It is a copy of what the volume manager says again: no reason not to start.
            Err(error @ SuperblockError::Damaged { .. }) => {
                tracing::error!(%error, "starting without known addresses");
                Record::default()
            }
            Err(other) => return Err(other),
        };
        let tables = record.tables.into_iter().map(|table| (VolumeId(table.volume), table)).collect();
        let neighbours =
            Self { directory: directory.to_owned(), known: RwLock::new(Known { tables, ..Known::default() }) };
        neighbours.note_nodes(&record.nodes);
        Ok(neighbours)
    }

    pub(crate) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.known.read().nodes.get(&node)?.address
    }

    /// As the volume manager wrote it, or nothing.
    pub(crate) fn address_text(&self, node: NodeId) -> String {
        self.known.read().nodes.get(&node).map(|place| place.text.clone()).unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> Vec<NodeAddress> {
        let known = self.known.read();
        let address = |(node, place): (&NodeId, &Place)| NodeAddress {
            node: node.0,
            address: place.text.clone(),
            alive: place.alive,
        };
        known.nodes.iter().map(address).collect()
    }

    /// Changes when an address or the liveness of a node does.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.known.read().fingerprint
    }

    pub(crate) fn assignment(&self, volume: VolumeId) -> Option<TableAssignment> {
        self.known.read().tables.get(&volume).cloned()
    }

    /// Takes a heartbeat's answer in. Blocks: it may resolve names and writes the file if addresses or tables changed.
    ///
    /// # Errors
    /// The file could not be written; memory has the news all the same.
    pub(crate) fn learn(&self, response: &HeartbeatResponse) -> Result<(), SuperblockError> {
        let mut changed = self.note_nodes(&response.nodes);
        {
            let mut known = self.known.write();
            // What is not mentioned stays (R7).
            for table in &response.tables {
                let former = known.tables.insert(VolumeId(table.volume), table.clone());
                changed |= former.map(without_space) != Some(without_space(table.clone()));
            }
        }
        if changed { self.save() } else { Ok(()) }
    }

    pub(crate) fn forget_table(&self, volume: VolumeId) -> Result<(), SuperblockError> {
        let forgotten = self.known.write().tables.remove(&volume);
        if forgotten.is_some() { self.save() } else { Ok(()) }
    }

    /// Whether an address changed.
    fn note_nodes(&self, nodes: &[Endpoint]) -> bool {
        let mut places = BTreeMap::new();
        for node in nodes {
            let resolved = self
                .known
                .read()
                .nodes
                .get(&NodeId(node.node))
                .filter(|place| place.text == node.address)
                .and_then(|place| place.address);
            let address = resolved.or_else(|| resolve(&node.address));
            let place = Place { text: node.address.clone(), address, alive: node.alive };
            places.insert(NodeId(node.node), place);
        }
        let mut known = self.known.write();
        let mut changed = false;
        for (node, place) in places {
            let former = known.nodes.get(&node);
            changed |= former.is_none_or(|former| former.text != place.text);
            known.nodes.insert(node, place);
        }
        known.fingerprint = fingerprint(&known.nodes);
        changed
    }

    fn save(&self) -> Result<(), SuperblockError> {
        let record = {
            let known = self.known.read();
            let endpoint = |(node, place): (&NodeId, &Place)| Endpoint {
                node: node.0,
                address: place.text.clone(),
                alive: place.alive,
            };
            Record {
                nodes: known.nodes.iter().map(endpoint).collect(),
                tables: known.tables.values().cloned().collect(),
            }
        };
        superblock::write(&self.directory, NEIGHBOURS, &record)
    }
}

/// Free space changes with every heartbeat and is no reason to write a file.
fn without_space(table: TableAssignment) -> TableAssignment {
    TableAssignment { available_bytes: 0, ..table }
}

fn resolve(address: &str) -> Option<SocketAddr> {
    address.parse().ok().or_else(|| address.to_socket_addrs().ok()?.next())
}

fn fingerprint(nodes: &BTreeMap<NodeId, Place>) -> u64 {
    // FNV-1a: two metanodes that know the same must say the same.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for (node, place) in nodes {
        mix(&node.0.to_le_bytes());
        mix(place.text.as_bytes());
        mix(&[u8::from(place.alive)]);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(address: &str, alive: bool, available_bytes: u64) -> HeartbeatResponse {
        let node = Endpoint { node: 4, address: address.to_owned(), alive };
        let table = TableAssignment { volume: 9, replicas: vec![4], available_bytes, ..TableAssignment::default() };
        HeartbeatResponse { nodes: vec![node], tables: vec![table], drops: vec![] }
    }

    #[test]
    fn what_was_learnt_is_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::load(directory.path()).unwrap();
        neighbours.learn(&answer("127.0.0.1:77", true, 5)).unwrap();
        let again = Neighbours::load(directory.path()).unwrap();
        assert_eq!(again.address(NodeId(4)), Some("127.0.0.1:77".parse().unwrap()));
        assert_eq!(again.fingerprint(), neighbours.fingerprint());
        assert_eq!(again.assignment(VolumeId(9)).unwrap().replicas, [4]);
        again.forget_table(VolumeId(9)).unwrap();
        assert_eq!(Neighbours::load(directory.path()).unwrap().assignment(VolumeId(9)), None);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        Neighbours::load(directory.path()).unwrap().learn(&answer("127.0.0.1:77", true, 5)).unwrap();
        let file = directory.path().join("neighbours");
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(Neighbours::load(directory.path()).unwrap().address(NodeId(4)), None);
    }

    #[test]
    fn the_fingerprint_follows_addresses_and_liveness_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::load(directory.path()).unwrap();
        let fingerprint = |answer| {
            neighbours.learn(&answer).unwrap();
            neighbours.fingerprint()
        };
        let first = fingerprint(answer("127.0.0.1:77", true, 5));
        assert_eq!(fingerprint(answer("127.0.0.1:77", true, 6)), first);
        let dead = fingerprint(answer("127.0.0.1:77", false, 6));
        let moved = fingerprint(answer("127.0.0.1:78", true, 6));
        assert!(dead != first && moved != first && moved != dead);
    }
}
