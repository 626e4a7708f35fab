//! Room that a volume has left, from what disks report. Pure.

use std::collections::BTreeMap;

use holdfast_common::{DiskId, NodeId};
use holdfast_erasure::CodeMode;

/// Space of one disk in service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    /// Host that its node runs on: the address without the port.
    pub(crate) host: String,
    /// st_dev on that host; 0: a file system of its own.
    pub(crate) file_system: u64,
    /// Free space of that file system.
    pub(crate) available_bytes: u64,
    /// Its node answers heartbeats.
    pub(crate) alive: bool,
}

/// The free space that each disk can count as its own: disks that share a file system of a host share its free space.
#[must_use]
pub(crate) fn own_space(disks: &[DiskSpace]) -> BTreeMap<DiskId, u64> {
    let key = |d: &DiskSpace| match d.file_system {
        0 => (String::new(), d.disk.0),
        file_system => (d.host.clone(), file_system),
    };
    let mut sharers: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for disk in disks {
        *sharers.entry(key(disk)).or_default() += 1;
    }
    disks.iter().map(|d| (d.disk, d.available_bytes / sharers.get(&key(d)).copied().unwrap_or(1).max(1))).collect()
}

/// Data bytes that the worst stripe could still store (R29): every stripe has its shards on distinct disks, full parity,
/// and as many data shards as living disks allow (R13). When too few disks live for any stripe, writes wait for them, so
/// that the answer is then what all of them could take.
#[must_use]
pub(crate) fn available_bytes(disks: &[DiskSpace], code: CodeMode) -> u64 {
    let own = own_space(disks);
    let living: Vec<u64> = disks.iter().filter(|d| d.alive).filter_map(|d| own.get(&d.disk).copied()).collect();
    let (k, m) = (usize::from(code.k()), usize::from(code.m()));
    let space = if living.len() > m { living } else { own.into_values().collect() };
    let data_shards = k.min(space.len().saturating_sub(m));
    if data_shards == 0 {
        return 0;
    }
    let shard_bytes = stripes_height(&space, data_shards + m);
    shard_bytes.saturating_mul(data_shards as u64)
}

/// The largest T with sum of min(space, T) >= width * T: how high stripes of `width` distinct disks can be piled.
fn stripes_height(space: &[u64], width: usize) -> u64 {
    let fits = |height: u64| {
        let sum: u128 = space.iter().map(|s| u128::from(*s.min(&height))).sum();
        sum >= u128::from(height) * width as u128
    };
    let total: u128 = space.iter().map(|s| u128::from(*s)).sum();
    let (mut low, mut high) = (0u64, u64::try_from(total / width.max(1) as u128).unwrap_or(u64::MAX));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(disk: u64, host: &str, file_system: u64, available_bytes: u64) -> DiskSpace {
        DiskSpace {
            disk: DiskId(disk),
            node: NodeId(disk),
            host: host.to_owned(),
            file_system,
            available_bytes,
            alive: true,
        }
    }

    fn code(k: u32, m: u32) -> CodeMode {
        CodeMode::new(k, m).expect("a code mode")
    }

    #[test]
    fn disks_that_share_a_file_system_count_its_free_space_once() {
        let disks: Vec<_> = (1..=6).map(|d| disk(d, "127.0.0.1", 77, 600 * GIB)).collect();
        assert_eq!(available_bytes(&disks, code(4, 2)), 400 * GIB);
        let other_hosts: Vec<_> = (1..=6).map(|d| disk(d, &format!("host{d}"), 77, 600 * GIB)).collect();
        assert_eq!(available_bytes(&other_hosts, code(4, 2)), 2400 * GIB);
    }

    #[test]
    fn the_smallest_disk_bounds_a_stripe_over_all_and_not_one_that_can_leave_it_out() {
        let mut disks: Vec<_> = (1..=3).map(|d| disk(d, "a", 0, 100 * GIB)).collect();
        disks[0].available_bytes = 10 * GIB;
        assert_eq!(available_bytes(&disks, code(2, 1)), 20 * GIB);
        disks.push(disk(4, "a", 0, 100 * GIB));
        assert_eq!(available_bytes(&disks, code(2, 1)), (310 * GIB / 3) * 2, "every byte of the four can be used");
    }

    #[test]
    fn more_disks_than_a_stripe_is_wide_are_all_used() {
        let disks: Vec<_> = (1..=6).map(|d| disk(d, "a", 0, 100 * GIB)).collect();
        assert_eq!(available_bytes(&disks, code(1, 2)), 200 * GIB);
        assert_eq!(available_bytes(&disks, code(2, 1)), 400 * GIB);
    }

    #[test]
    fn with_members_dead_stripes_narrow_and_with_too_few_alive_nothing_is_called_full() {
        let mut disks: Vec<_> = (1..=6).map(|d| disk(d, "a", 0, 100 * GIB)).collect();
        disks[0].alive = false;
        disks[1].alive = false;
        assert_eq!(available_bytes(&disks, code(4, 2)), 200 * GIB, "2+2");
        for d in &mut disks {
            d.alive = false;
        }
        assert_eq!(available_bytes(&disks, code(4, 2)), 400 * GIB);
        assert_eq!(available_bytes(&[], code(4, 2)), 0);
    }
}
