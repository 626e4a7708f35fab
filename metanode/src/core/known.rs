//! The volume manager's last word: where nodes are, whether they live, which tables belong here. Pure: the monotonic
//! time is passed in, in nanoseconds.

use holdfast_common::{DiskId, NodeId, VolumeId};
use holdfast_proto::control::{Endpoint, HeartbeatResponse, TableAssignment};
use holdfast_proto::meta::NodeAddress;
use holdfast_proto::metanode::Neighbours as Record;
use prost::Message;
use std::collections::BTreeMap;

/// Lead over the volume manager's clock up to which a leader's clock is believed, an hour: clocks that are kept at all
/// agree by far better.
const CLOCK_AHEAD_NS_MAX: u64 = 3600 * 1_000_000_000;
/// About how many bytes of addresses one page has: a frame's header holds 1 MiB.
pub(crate) const ADDRESSES_PAGE_BYTES_MAX: usize = 256 << 10;

/// Addresses, liveness, assignments and the volume manager's clock.
#[derive(Debug, Default)]
pub(crate) struct Known {
    nodes: BTreeMap<NodeId, Place>,
    tables: BTreeMap<VolumeId, TableAssignment>,
    /// Equal for equal addresses, liveness and health of disks, on every metanode.
    fingerprint: u64,
    /// The volume manager's clock, nanoseconds since the epoch, and the monotonic time when it was heard.
    clock: Option<(i64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// As the volume manager wrote it.
    address: String,
    alive: bool,
    failed_disks: Vec<u64>,
    full_disks: Vec<u64>,
}

impl Known {
    /// Takes over what a former run wrote down.
    pub(crate) fn recalled(record: Record) -> Self {
        // Nodes may have come back with an older build since: what they know must be heard in this run.
        let unheard = |table: TableAssignment| TableAssignment { feature_level: 0, ..table };
        let tables = record.tables.into_iter().map(|table| (VolumeId(table.volume), unheard(table))).collect();
        let mut known = Self { tables, ..Self::default() };
        known.note_nodes(&record.nodes);
        known
    }

    /// Record to be written down.
    pub(crate) fn record(&self) -> Record {
        let endpoint = |(node, place): (&NodeId, &Place)| Endpoint {
            node: node.0,
            address: place.address.clone(),
            alive: place.alive,
            failed_disks: place.failed_disks.clone(),
            full_disks: place.full_disks.clone(),
        };
        Record { nodes: self.nodes.iter().map(endpoint).collect(), tables: self.tables.values().cloned().collect() }
    }

    /// Takes a heartbeat's answer in. Whether there is something new to be written down.
    pub(crate) fn learn(&mut self, response: &HeartbeatResponse, now_ns: u64) -> bool {
        let mut changed = self.note_nodes(&response.nodes);
        if response.time_ns != 0 {
            self.clock = Some((response.time_ns, now_ns));
        }
        // What is not mentioned stays (R7).
        for table in &response.tables {
            let former = self.tables.insert(VolumeId(table.volume), table.clone());
            changed |= former.map(lasting) != Some(lasting(table.clone()));
        }
        changed
    }

    /// Returns whether it was known.
    pub(crate) fn forget_table(&mut self, volume: VolumeId) -> bool {
        self.tables.remove(&volume).is_some()
    }

    /// Returns whether an address changed.
    fn note_nodes(&mut self, nodes: &[Endpoint]) -> bool {
        let mut changed = false;
        for node in nodes {
            let Endpoint { node: _, address, alive, failed_disks, full_disks } = node.clone();
            let place = Place { address, alive, failed_disks, full_disks };
            let former = self.nodes.insert(NodeId(node.node), place);
            changed |= former.is_none_or(|former| former.address != node.address);
        }
        self.fingerprint = fingerprint(&self.nodes);
        changed
    }

    /// As the volume manager wrote it; empty if it is not known.
    pub(crate) fn address_text(&self, node: NodeId) -> &str {
        self.nodes.get(&node).map_or("", |place| &place.address)
    }

    /// Whether a disk is worth asking: its node lives and it is in service, as far as is known.
    pub(crate) fn is_well(&self, node: NodeId, disk: DiskId) -> bool {
        self.nodes.get(&node).is_some_and(|place| place.alive && !place.failed_disks.contains(&disk.0))
    }

    pub(crate) fn addresses(&self) -> Vec<NodeAddress> {
        let address = |(node, place): (&NodeId, &Place)| NodeAddress {
            node: node.0,
            address: place.address.clone(),
            alive: place.alive,
            failed_disks: place.failed_disks.clone(),
            full_disks: place.full_disks.clone(),
        };
        self.nodes.iter().map(address).collect()
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

    /// Changes when an address, the liveness of a node or the health of a disk does.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn assignment(&self, volume: VolumeId) -> Option<&TableAssignment> {
        self.tables.get(&volume)
    }

    /// This node's clock as it may be stamped into an entry: at most [`CLOCK_AHEAD_NS_MAX`] ahead of the volume manager's. Table
    /// time never goes back, so that one leader's clock far ahead would hold it there for ever.
    pub(crate) fn stamp_ns(&self, wall_ns: i64, now_ns: u64) -> i64 {
        let Some((heard_ns, at_ns)) = self.clock else { return wall_ns };
        let ahead_ns = now_ns.saturating_sub(at_ns).saturating_add(CLOCK_AHEAD_NS_MAX);
        wall_ns.min(heard_ns.saturating_add_unsigned(ahead_ns))
    }
}

/// Free space changes with every heartbeat, and a feature level is not believed from the file: no reasons to write it.
fn lasting(table: TableAssignment) -> TableAssignment {
    TableAssignment { available_bytes: 0, feature_level: 0, ..table }
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
        mix(place.address.as_bytes());
        mix(&[u8::from(place.alive)]);
        // Nothing while all are well, as builds say it that know nothing of disks.
        for (kind, disks) in [(b"failed", &place.failed_disks), (b"full\0\0", &place.full_disks)] {
            for disk in disks {
                mix(kind);
                mix(&disk.to_le_bytes());
            }
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, alive: bool) -> Endpoint {
        Endpoint { node: 4, address: address.to_owned(), alive, ..Endpoint::default() }
    }

    #[test]
    fn the_health_of_disks_is_passed_on_and_changes_the_fingerprint() {
        let said = |failed_disks: &[u64], full_disks: &[u64]| {
            let (failed_disks, full_disks) = (failed_disks.to_vec(), full_disks.to_vec());
            let nodes = vec![Endpoint { failed_disks, full_disks, ..endpoint("a:1", true) }];
            let mut known = Known::default();
            known.learn(&HeartbeatResponse { nodes, ..Default::default() }, 0);
            known
        };
        let prints = [said(&[], &[]), said(&[7], &[]), said(&[], &[7]), said(&[7], &[7]), said(&[7, 8], &[])];
        let mut prints = prints.map(|known| known.fingerprint()).to_vec();
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), 5);
        let known = said(&[7], &[8]);
        let address = &known.addresses()[0];
        assert_eq!((&address.failed_disks[..], &address.full_disks[..]), (&[7][..], &[8][..]));
        let well = |disk| known.is_well(NodeId(4), DiskId(disk));
        assert_eq!([well(7), well(8), well(9)], [false, true, true], "a full disk deletes");
    }

    fn table(available_bytes: u64) -> TableAssignment {
        TableAssignment { volume: 9, available_bytes, ..TableAssignment::default() }
    }

    #[test]
    fn only_addresses_and_assignments_are_worth_writing_down() {
        let mut known = Known::default();
        let mut learn = |nodes, tables| known.learn(&HeartbeatResponse { nodes, tables, ..Default::default() }, 0);
        assert!(learn(vec![endpoint("a:1", true)], vec![]));
        assert!(!learn(vec![endpoint("a:1", false)], vec![]), "liveness changes by itself");
        assert!(learn(vec![endpoint("a:2", false)], vec![]));
        assert!(learn(vec![], vec![table(5)]));
        assert!(!learn(vec![], vec![table(6)]), "free space changes by itself");
        assert!(learn(vec![], vec![TableAssignment { quota_bytes: 7, ..table(6) }]));
        assert!(known.forget_table(VolumeId(9)) && !known.forget_table(VolumeId(9)));
        assert_eq!(known.address_text(NodeId(4)), "a:2");
        assert_eq!(known.address_text(NodeId(5)), "");
    }

    #[test]
    fn a_clock_far_ahead_is_believed_for_an_hour_and_the_time_passed_since_the_heartbeat() {
        let (hour, heard) = (3600 * 1_000_000_000, 1_800_000_000 * 1_000_000_000);
        let mut known = Known::default();
        known.learn(&HeartbeatResponse { time_ns: heard, ..Default::default() }, 100);
        assert_eq!(known.stamp_ns(i64::MAX, 100), heard + hour);
        assert_eq!(known.stamp_ns(i64::MAX, 150), heard + hour + 50);
        assert_eq!(known.stamp_ns(heard - 5, 150), heard - 5);
    }
}
