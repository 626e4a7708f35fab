//! Space reserved on the disks ahead of writes, so that ENOSPC is said at write(2) and not at close.
//!
//! What is dirty must be covered by reservations on enough disks for some stripe. Reservations are soft: they last a
//! lease, puts draw on them, and what is not renewed falls back to everybody.

use crate::Error;
use crate::cluster_map::{ClusterMap, Member};
use crate::metadata::Metadata;
use holdfast_erasure::CodeMode;
use holdfast_proto::data::{DiskGrant, DiskReservation, ReserveSpaceRequest, ReserveSpaceResponse, Status};
use holdfast_proto::method;
use holdfast_transport::Client;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Covered beyond the present need, so that one round of requests serves many writes.
const SLACK_BYTES: u64 = 128 << 20;
/// How long a reservation lasts at the datanodes.
const LEASE: Duration = Duration::from_secs(20);
/// A cover older than this is renewed before it is relied on.
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// A datanode that does not answer by then is left out; the write itself will find other members.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(1);
/// A shard takes its length and a header with checksums: one page in sixteen covers it from 64 KiB on.
const OVERHEAD_DIVISOR: u64 = 16;
/// One part in so many of a shared file system's free bytes is not relied on.
const SHARED_MARGIN_DIVISOR: u64 = 8;

#[derive(Debug, Default)]
struct Cover {
    /// Dirty bytes that reservations cover.
    bytes: u64,
    since: Option<Instant>,
}

/// The reservations of one mount.
pub(crate) struct Space {
    transport: Client,
    map: Arc<ClusterMap>,
    metadata: Arc<Metadata>,
    code: CodeMode,
    cover: Mutex<Cover>,
    /// Held while reservations are changed.
    changing: tokio::sync::Mutex<()>,
}

/// Data bytes that disks with these grants could store in the best stripe: d shards on the d + m roomiest.
fn storable_bytes(mut grants: Vec<u64>, code: CodeMode) -> u64 {
    grants.sort_unstable_by(|a, b| b.cmp(a));
    let parity = usize::from(code.m());
    (1..=u64::from(code.k()))
        .zip(parity..)
        .filter_map(|(data, last)| Some(grants.get(last)?.saturating_mul(data)))
        .max()
        .unwrap_or(0)
}

/// What each disk can be relied on for, without what records take: disks that share a file system with others of their
/// host get their part of its free bytes at most, less a margin for what else grows there (logs, segments made ahead).
fn shared_once(granted: &[(IpAddr, DiskGrant)]) -> Vec<u64> {
    let mut sharers: BTreeMap<(IpAddr, u64), u64> = BTreeMap::new();
    for (host, grant) in granted {
        *sharers.entry((*host, grant.file_system)).or_default() += 1;
    }
    granted
        .iter()
        .map(|(host, grant)| {
            let free = grant.file_system_free_bytes - grant.file_system_free_bytes / SHARED_MARGIN_DIVISOR;
            let part = match sharers.get(&(*host, grant.file_system)) {
                Some(count) if grant.file_system != 0 && *count > 1 => free / count,
                _ => u64::MAX,
            };
            let bytes = grant.granted_bytes.min(part);
            bytes - bytes / (OVERHEAD_DIVISOR + 1)
        })
        .collect()
}

impl Space {
    pub(crate) fn new(transport: Client, map: Arc<ClusterMap>, metadata: Arc<Metadata>, code: CodeMode) -> Self {
        Self { transport, map, metadata, code, cover: Mutex::default(), changing: tokio::sync::Mutex::new(()) }
    }

    /// Makes `dirty_bytes`, the caller's write included, be covered. `flush` writes back what is dirty, and answers what
    /// is dirty then; it is called once before the disks are called full.
    pub(crate) async fn cover(&self, dirty_bytes: u64, flush: impl AsyncFnOnce() -> u64) -> Result<(), Error> {
        if self.is_covered(dirty_bytes) {
            return Ok(());
        }
        let _one = self.changing.lock().await;
        if self.is_covered(dirty_bytes) || self.raise(dirty_bytes).await {
            return Ok(());
        }
        let dirty_bytes = flush().await;
        if self.raise(dirty_bytes).await { Ok(()) } else { Err(Error::NoSpace) }
    }

    fn is_covered(&self, dirty_bytes: u64) -> bool {
        let cover = self.cover.lock();
        cover.bytes >= dirty_bytes && cover.since.is_some_and(|since| since.elapsed() < RENEW_AFTER)
    }

    /// Flushed data has drawn on the reservations.
    pub(crate) fn flushed(&self, bytes: usize) {
        let mut cover = self.cover.lock();
        cover.bytes = cover.bytes.saturating_sub(bytes as u64);
    }

    /// Asks every disk of the open groups. Answers whether the need is covered, or cannot be judged.
    async fn raise(&self, dirty_bytes: u64) -> bool {
        let target = dirty_bytes + SLACK_BYTES;
        let share = target / u64::from(self.code.k());
        let wanted_bytes = share + share / OVERHEAD_DIVISOR;
        let mut asking = JoinSet::new();
        for (address, disks) in self.disks() {
            let request = ReserveSpaceRequest {
                session: self.metadata.session().0,
                disks: disks.into_iter().map(|disk| DiskReservation { disk, wanted_bytes }).collect(),
                lease_ms: u32::try_from(LEASE.as_millis()).expect("seconds"),
            };
            let transport = self.transport.clone();
            asking.spawn(async move {
                let answer = transport.unary(address, method::DATA_RESERVE, &request, RESERVE_TIMEOUT).await;
                answer.map(|response: ReserveSpaceResponse| (address.ip(), response.grants))
            });
        }
        let mut granted = Vec::new();
        while let Some(answer) = asking.join_next().await {
            if let Ok(Ok((host, grants))) = answer {
                let known = grants.into_iter().filter(|g| matches!(g.status(), Status::Ok | Status::NoSpace));
                granted.extend(known.map(|grant| (host, grant)));
            }
        }
        let grants = shared_once(&granted);
        // With too few members in reach nothing can be said of space; the write waits for them.
        if grants.len() <= usize::from(self.code.m()) {
            return true;
        }
        let bytes = storable_bytes(grants, self.code);
        *self.cover.lock() = Cover { bytes, since: Some(Instant::now()) };
        bytes >= dirty_bytes
    }

    fn disks(&self) -> BTreeMap<SocketAddr, BTreeSet<u64>> {
        let mut disks: BTreeMap<SocketAddr, BTreeSet<u64>> = BTreeMap::new();
        for group in self.map.open_groups().into_iter().filter_map(|g| self.map.group(g)) {
            for Member { disk, address, .. } in self.map.reachable_members(&group) {
                disks.entry(address).or_default().insert(disk.0);
            }
        }
        disks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_share_a_file_system_do_not_count_its_free_bytes_twice() {
        let grant = |file_system| DiskGrant {
            granted_bytes: 1700,
            file_system,
            file_system_free_bytes: 1600,
            ..DiskGrant::default()
        };
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let granted = [(here, grant(5)), (here, grant(5)), (there, grant(5)), (here, grant(0))];
        assert_eq!(shared_once(&granted), [659, 659, 1600, 1600]);
    }

    #[test]
    fn the_best_stripe_decides_what_can_be_stored() {
        let code = CodeMode::new(4, 2).unwrap();
        assert_eq!(storable_bytes(vec![10; 6], code), 40);
        // Two full disks: 2+2 over the other four.
        assert_eq!(storable_bytes(vec![10, 0, 10, 10, 0, 10], code), 20);
        // One nearly full disk: 3+2 beats 4+2.
        assert_eq!(storable_bytes(vec![10, 10, 10, 10, 10, 1], code), 30);
        assert_eq!(storable_bytes(vec![10, 10], code), 0);
    }
}
