//! What the volume manager said last: where nodes are, whether they live, which tables belong here. Kept in memory and,
//! without what changes by the second, in a small file, so that a metanode that starts while the volume manager is dead
//! finds its peers and tells clients where datanodes are.

use holdfast_common::{NodeId, VolumeId};
use holdfast_node::superblock::{self, Kind, SuperblockError};
use holdfast_proto::control::{Endpoint, HeartbeatResponse, TableAssignment};
use holdfast_proto::meta::NodeAddress;
use holdfast_proto::metanode::Neighbours as Record;
use parking_lot::RwLock;
use prost::Message;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// How far ahead of the volume manager's clock a leader's may be believed: clocks that are kept at all agree by far better.
const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(3600);
/// About how many bytes of addresses one page has: a frame's header holds 1 MiB.
const ADDRESSES_PAGE_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<NodeId, Place>,
    tables: BTreeMap<VolumeId, TableAssignment>,
    /// Equal for equal addresses and liveness, on every metanode.
    fingerprint: u64,
    /// The volume manager's clock, nanoseconds since the epoch, and when it was heard.
    clock: Option<(i64, Instant)>,
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
        // Nodes may have come back with an older build since: what they know must be heard in this run.
        let unheard = |table: TableAssignment| TableAssignment { feature_level: 0, ..table };
        let tables = record.tables.into_iter().map(|table| (VolumeId(table.volume), unheard(table))).collect();
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

    /// A page of the addresses above a node, ascending, and whether more follow.
    pub(crate) fn addresses_after(&self, after: NodeId) -> (Vec<NodeAddress>, bool) {
        let mut page = self.addresses();
        page.retain(|address| address.node > after.0);
        let mut bytes = 0;
        let fits = page.iter().take_while(|address| {
            let fits = bytes < ADDRESSES_PAGE_BYTES_MAX;
            bytes += address.encoded_len();
            fits
        });
        let count = fits.count();
        let more = count < page.len();
        page.truncate(count);
        (page, more)
    }

    /// Changes when an address or the liveness of a node does.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.known.read().fingerprint
    }

    pub(crate) fn assignment(&self, volume: VolumeId) -> Option<TableAssignment> {
        self.known.read().tables.get(&volume).cloned()
    }

    /// This node's clock as it may be stamped into an entry: at most [`CLOCK_AHEAD_MAX`] ahead of the volume manager's. Table time
    /// never goes back, so that one leader's clock far ahead would hold it there for ever.
    pub(crate) fn stamp_ns(&self, wall_ns: i64) -> i64 {
        let Some((heard_ns, at)) = self.known.read().clock else { return wall_ns };
        let ahead_ns = i64::try_from((at.elapsed() + CLOCK_AHEAD_MAX).as_nanos()).unwrap_or(i64::MAX);
        wall_ns.min(heard_ns.saturating_add(ahead_ns))
    }

    /// Takes a heartbeat's answer in. Blocks: it may resolve names and writes the file if addresses or tables changed.
    ///
    /// # Errors
    /// The file could not be written; memory has the news all the same.
    pub(crate) fn learn(&self, response: &HeartbeatResponse) -> Result<(), SuperblockError> {
        let mut changed = self.note_nodes(&response.nodes);
        {
            let mut known = self.known.write();
            if response.time_ns != 0 {
                known.clock = Some((response.time_ns, Instant::now()));
            }
            // What is not mentioned stays (R7).
            for table in &response.tables {
                let former = known.tables.insert(VolumeId(table.volume), table.clone());
                changed |= former.map(lasting) != Some(lasting(table.clone()));
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

/// Free space changes with every heartbeat, and a feature level is not believed from the file: no reasons to write it.
fn lasting(table: TableAssignment) -> TableAssignment {
    TableAssignment { available_bytes: 0, feature_level: 0, ..table }
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
        let table = TableAssignment {
            volume: 9,
            replicas: vec![4],
            available_bytes,
            feature_level: 1,
            ..TableAssignment::default()
        };
        HeartbeatResponse { nodes: vec![node], tables: vec![table], ..HeartbeatResponse::default() }
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
        // What other builds know is not: they may have been exchanged since.
        assert_eq!(neighbours.assignment(VolumeId(9)).unwrap().feature_level, 1);
        assert_eq!(again.assignment(VolumeId(9)).unwrap().feature_level, 0);
        again.forget_table(VolumeId(9)).unwrap();
        assert_eq!(Neighbours::load(directory.path()).unwrap().assignment(VolumeId(9)), None);
    }

    #[test]
    fn a_clock_far_ahead_of_the_volume_managers_is_not_stamped_into_entries() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::load(directory.path()).unwrap();
        let (second, now) = (1_000_000_000, 1_800_000_000 * 1_000_000_000);
        let (ahead, behind) = (now + 80 * 365 * 86_400 * second, now - 5 * second);
        assert_eq!(neighbours.stamp_ns(ahead), ahead, "nobody's clock was heard");
        neighbours.learn(&HeartbeatResponse { time_ns: now, ..HeartbeatResponse::default() }).unwrap();
        let stamped = neighbours.stamp_ns(ahead);
        assert!((now..now + 3700 * second).contains(&stamped), "{stamped}");
        assert_eq!(neighbours.stamp_ns(behind), behind);
        assert_eq!(neighbours.stamp_ns(now + 60 * second), now + 60 * second);
    }

    #[test]
    fn addresses_come_in_pages_of_bounded_size() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::load(directory.path()).unwrap();
        let long = "x".repeat(ADDRESSES_PAGE_BYTES_MAX / 3);
        let endpoint = |node| Endpoint { node, address: long.clone(), alive: true };
        neighbours.note_nodes(&(1..=7).map(endpoint).collect::<Vec<_>>());
        let (mut seen, mut pages) = (vec![], 0);
        loop {
            let (page, more) = neighbours.addresses_after(NodeId(seen.last().copied().unwrap_or(0)));
            seen.extend(page.iter().map(|address| address.node));
            pages += 1;
            if !more {
                break;
            }
        }
        assert_eq!((seen, pages), ((1..=7).collect::<Vec<u64>>(), 3));
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
