//! Writes one chunk: chooses members, encodes, sends all shards at once, and tries elsewhere under a new id when any of
//! them fails (R1, R13, R16).

use crate::Error;
use crate::cluster_map::{ClusterMap, Member};
use crate::latency::Percentile99;
use crate::session::SessionKeeper;
use crate::task;
use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::limits::REQUEST_DEADLINE_MS;
use holdfast_common::{ChunkId, Incarnation, SessionId, VolumeId};
use holdfast_erasure::{CodeMode, Geometry, choose_slots, encode};
use holdfast_proto::data::{PutShardRequest, PutShardResponse, ShardHeader, Status};
use holdfast_proto::meta::{BlockGroup, ChunkRecord};
use holdfast_proto::method;
use holdfast_transport::Client;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A shard's deadline is 8 times the 99th percentile (R16) within these. The floor is above R16's 50 ms, because one
/// machine that carries a whole cluster stalls longer than that in a sync without anybody being ill.
const SHARD_DEADLINE_MIN: Duration = Duration::from_millis(500);
const SHARD_DEADLINE_MAX: Duration = Duration::from_secs(5);
/// Attempts that all ended in "no space" before the caller is told so (R16).
const NO_SPACE_ATTEMPTS_MAX: u32 = 3;
/// Pause when too few members are usable.
const MEMBERS_PAUSE: Duration = Duration::from_millis(100);

/// Writes chunks of one volume.
pub(crate) struct ChunkWriter {
    pub(crate) transport: Client,
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) session: Arc<SessionKeeper>,
    pub(crate) volume: VolumeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) code: CodeMode,
    pub(crate) latency: Mutex<Percentile99>,
}

/// Why one attempt failed.
enum Failure {
    NoSpace,
    Other(String),
}

/// An attempt's choice.
struct Plan {
    group: Arc<BlockGroup>,
    geometry: Geometry,
    members: Vec<Member>,
}

impl ChunkWriter {
    /// A writer whose latency estimate starts from a cautious value.
    pub(crate) fn initial_latency() -> Percentile99 {
        Percentile99::starting_at(SHARD_DEADLINE_MAX / 8)
    }

    /// Writes `pieces` as one chunk; every shard is durable when this answers (R2).
    pub(crate) async fn write(&self, pieces: &[Bytes], session: SessionId) -> Result<ChunkRecord, Error> {
        let length_bytes =
            u32::try_from(pieces.iter().map(Bytes::len).sum::<usize>()).map_err(|_| Error::FileTooLarge)?;
        let deadline = Instant::now() + Duration::from_millis(REQUEST_DEADLINE_MS.into());
        let mut no_space_count = 0;
        let mut refreshed = false;
        loop {
            let (chunk, nonce) = self.session.next_chunk().await?;
            let failure = match self.plan(chunk, length_bytes) {
                Some(plan) => {
                    refreshed = false;
                    match self.attempt(chunk, nonce, pieces, length_bytes, &plan, session).await {
                        Ok(record) => return Ok(record),
                        Err(failure) => failure,
                    }
                }
                None => {
                    if !std::mem::replace(&mut refreshed, true) {
                        let _ = self.session.refresh_groups().await;
                    } else {
                        sleep(MEMBERS_PAUSE).await;
                        refreshed = false;
                    }
                    Failure::Other(format!("fewer than {} members are usable", 1 + self.code.m()))
                }
            };
            match failure {
                Failure::NoSpace => {
                    no_space_count += 1;
                    if no_space_count >= NO_SPACE_ATTEMPTS_MAX {
                        return Err(Error::NoSpace);
                    }
                }
                Failure::Other(reason) => {
                    if Instant::now() >= deadline {
                        return Err(if no_space_count > 0 { Error::NoSpace } else { Error::WriteLost(reason) });
                    }
                    tracing::debug!(%chunk, reason, "a chunk is written anew");
                }
            }
        }
    }

    /// The group whose turn it is by the chunk's id and that can take the widest stripe.
    fn plan(&self, chunk: ChunkId, length_bytes: u32) -> Option<Plan> {
        let now = Instant::now();
        let open = self.map.open_groups();
        let count = open.len();
        let start = usize::try_from(chunk.0 % (count.max(1) as u64)).unwrap_or(0);
        let mut best: Option<Plan> = None;
        for index in 0..count {
            let Some(group) = self.map.group(open[(start + index) % count]) else { continue };
            let usable = self.map.usable_members(&group, now);
            let Some(geometry) = Geometry::new(self.code, length_bytes, usable.len()) else { continue };
            let slots: Vec<u8> = usable.iter().map(|m| m.slot).collect();
            let Some(chosen) = choose_slots(chunk, &slots, geometry.shards_count()) else { continue };
            let members =
                chosen.iter().filter_map(|slot| usable.iter().find(|m| m.slot == *slot).copied()).collect::<Vec<_>>();
            let wider = best.as_ref().is_none_or(|b| geometry.data_shards() > b.geometry.data_shards());
            if wider {
                let whole = usable.len() == group.slots.len();
                best = Some(Plan { group, geometry, members });
                if whole {
                    break;
                }
            }
        }
        best
    }

    async fn attempt(
        &self,
        chunk: ChunkId,
        nonce: u64,
        pieces: &[Bytes],
        length_bytes: u32,
        plan: &Plan,
        session: SessionId,
    ) -> Result<ChunkRecord, Failure> {
        let slots: Vec<u8> = plan.members.iter().map(|m| m.slot).collect();
        let record = ChunkRecord {
            chunk: chunk.0,
            nonce,
            group: plan.group.group,
            epoch: plan.group.epoch,
            length_bytes,
            data_shards: u32::from(plan.geometry.data_shards()),
            parity_shards: u32::from(plan.geometry.parity_shards()),
            slots: slots.into(),
            shard_length_bytes: plan.geometry.shard_length_bytes(),
        };
        let shards = encode(&plan.geometry, pieces);
        let puts = (0u8..).zip(shards).zip(&plan.members).map(|((index, payload), member)| {
            let request = self.put_request(&record, index, member, &payload, session);
            let timeout = self.shard_deadline();
            async move {
                let started = Instant::now();
                let sent = self.transport.call(member.address, method::DATA_PUT, &request, vec![payload], timeout);
                let answer = sent.await.and_then(|a| a.message::<PutShardResponse>()).map_err(|e| e.to_string());
                // At once: what a member did is known to others before the slowest has answered.
                self.judge(member, started.elapsed(), answer)
            }
        });
        let failures = task::all(puts).await.into_iter().filter_map(Result::err);
        let failure = failures.reduce(|first, next| match (first, next) {
            (Failure::NoSpace, next) => next,
            (other, _) => other,
        });
        failure.map_or(Ok(record), Err)
    }

    fn put_request(
        &self,
        record: &ChunkRecord,
        index: u8,
        member: &Member,
        payload: &Bytes,
        session: SessionId,
    ) -> PutShardRequest {
        let place = ShardPlace { volume: self.volume, chunk: ChunkId(record.chunk), shard: index };
        let header = ShardHeader {
            volume: self.volume.0,
            incarnation: self.incarnation.0,
            chunk: record.chunk,
            nonce: record.nonce,
            group: record.group,
            epoch: record.epoch,
            shard: u32::from(index),
            data_shards: record.data_shards,
            parity_shards: record.parity_shards,
            slots: record.slots.clone(),
            chunk_length_bytes: record.length_bytes,
            shard_length_bytes: record.shard_length_bytes,
            page_checksums: place.page_checksums(0, payload).into(),
        };
        PutShardRequest { disk: member.disk.0, header: Some(header), session: session.0 }
    }

    fn shard_deadline(&self) -> Duration {
        (self.latency.lock().estimate() * 8).clamp(SHARD_DEADLINE_MIN, SHARD_DEADLINE_MAX)
    }

    fn judge(
        &self,
        member: &Member,
        elapsed: Duration,
        answer: Result<PutShardResponse, String>,
    ) -> Result<(), Failure> {
        let now = Instant::now();
        match answer {
            Ok(response) => match response.status() {
                Status::Ok => {
                    self.latency.lock().add(elapsed);
                    self.map.works(member.disk);
                    Ok(())
                }
                Status::NoSpace => {
                    self.map.full(member.disk, now);
                    Err(Failure::NoSpace)
                }
                status => {
                    self.map.failed(member.disk, now);
                    Err(Failure::Other(format!(
                        "disk {} at {}: {status:?} {}",
                        member.disk, member.address, response.detail
                    )))
                }
            },
            Err(reason) => {
                self.latency.lock().add(elapsed);
                self.map.failed(member.disk, now);
                Err(Failure::Other(format!("disk {} at {}: {reason}", member.disk, member.address)))
            }
        }
    }
}
