//! The volume manager's last word ([`Known`]), shared by everything on the node, with addresses resolved. Without what
//! changes by the second it is also in a small file, so that a metanode that starts while the volume manager is dead finds
//! its peers and tells clients where datanodes are.

use crate::core::known::Known;
use holdfast_common::{NodeId, VolumeId};
use holdfast_node::superblock::{self, Kind, SuperblockError};
use holdfast_proto::control::{Endpoint, HeartbeatResponse};
use holdfast_proto::metanode::Neighbours as Record;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// File of the addresses that were heard last.
const NEIGHBOURS: Kind = Kind {
    file: "neighbours",
    second: None,
    magic: *b"HFNEIGH\n",
    version: 1,
    // Ten thousand nodes take half of it.
    record_bytes_max: 1 << 20,
    name: "a metanode's directory",
};

/// Addresses and assignments, shared by everything on the node. Its lock is taken last and let go at once.
#[derive(Debug)]
pub(crate) struct Neighbours {
    directory: PathBuf,
    started: Instant,
    told: RwLock<Told>,
}

#[derive(Debug, Default)]
struct Told {
    known: Known,
    resolved: BTreeMap<NodeId, Resolved>,
}

#[derive(Debug)]
struct Resolved {
    text: String,
    /// `None` if the text does not resolve.
    address: Option<SocketAddr>,
}

impl Neighbours {
    /// Loads the directory's file; empty if there is none or it is damaged. Blocks: it may resolve names.
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
        let neighbours = Self { directory: directory.to_owned(), started: Instant::now(), told: RwLock::default() };
        let resolved = neighbours.resolve(&record.nodes);
        *neighbours.told.write() = Told { known: Known::recalled(record), resolved };
        Ok(neighbours)
    }

    /// A look at all that was learnt. The lock is held meanwhile: nothing else may be locked.
    pub(crate) fn known<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.told.read().known)
    }

    pub(crate) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.told.read().resolved.get(&node)?.address
    }

    /// [`Known::stamp_ns`] of now.
    pub(crate) fn stamp_ns(&self, wall_ns: i64) -> i64 {
        let now_ns = self.now_ns();
        self.known(|known| known.stamp_ns(wall_ns, now_ns))
    }

    /// Takes a heartbeat's answer in. Blocks: it may resolve names and writes the file if addresses or tables changed.
    ///
    /// # Errors
    /// The file could not be written; memory has the news all the same.
    pub(crate) fn learn(&self, response: &HeartbeatResponse) -> Result<(), SuperblockError> {
        let resolved = self.resolve(&response.nodes);
        let changed = {
            let mut told = self.told.write();
            told.resolved.extend(resolved);
            told.known.learn(response, self.now_ns())
        };
        if changed { self.save() } else { Ok(()) }
    }

    pub(crate) fn forget_table(&self, volume: VolumeId) -> Result<(), SuperblockError> {
        let forgotten = self.told.write().known.forget_table(volume);
        if forgotten { self.save() } else { Ok(()) }
    }

    /// The addresses of these nodes: as they are known, else looked for, outside the lock.
    fn resolve(&self, nodes: &[Endpoint]) -> BTreeMap<NodeId, Resolved> {
        let mut places = BTreeMap::new();
        for node in nodes {
            let known = {
                let told = self.told.read();
                let same = told.resolved.get(&NodeId(node.node)).filter(|place| place.text == node.address);
                same.and_then(|place| place.address)
            };
            let address = known.or_else(|| resolve(&node.address));
            places.insert(NodeId(node.node), Resolved { text: node.address.clone(), address });
        }
        places
    }

    fn save(&self) -> Result<(), SuperblockError> {
        let record = self.known(Known::record);
        superblock::write(&self.directory, NEIGHBOURS, &record)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Blocks: it may look the name up.
pub(crate) fn resolve(address: &str) -> Option<SocketAddr> {
    address.parse().ok().or_else(|| address.to_socket_addrs().ok()?.next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::known::ADDRESSES_PAGE_BYTES_MAX;
    use holdfast_proto::control::TableAssignment;

    impl Neighbours {
        fn assignment(&self, volume: VolumeId) -> Option<TableAssignment> {
            self.known(|known| known.assignment(volume).cloned())
        }

        fn fingerprint(&self) -> u64 {
            self.known(Known::fingerprint)
        }
    }

    fn answer(address: &str, alive: bool, available_bytes: u64) -> HeartbeatResponse {
        let node = Endpoint { node: 4, address: address.to_owned(), alive, ..Default::default() };
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
        let endpoint = |node| Endpoint { node, address: long.clone(), alive: true, ..Default::default() };
        let nodes = (1..=7).map(endpoint).collect();
        neighbours.learn(&HeartbeatResponse { nodes, ..HeartbeatResponse::default() }).unwrap();
        let (mut seen, mut pages) = (vec![], 0);
        loop {
            let after = NodeId(seen.last().copied().unwrap_or(0));
            let (page, more) = neighbours.known(|known| known.addresses_after(after));
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
