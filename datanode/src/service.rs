//! The shard protocol (`proto/schema/data.proto`) over the disks of this node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{ChunkId, DiskId, Incarnation, NodeId, SessionId, VolumeId};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, DiskGrant, DiskReport, DropVolumeRequest, DropVolumeResponse,
    ListShardsRequest, ListShardsResponse, ProbeResponse, Proof, PutShardRequest, PutShardResponse, ReadShardsRequest,
    ReadShardsResponse, ReserveSpaceRequest, ReserveSpaceResponse, SetFloorRequest, SetFloorResponse, ShardData,
    ShardRange, ShardSummary, Status,
};
use holdfast_proto::method;
use holdfast_transport::{BODY_BYTES_MAX, Call, Refusal, Reply, Service};

use crate::disk::Disk;
use crate::memory::Memory;
use crate::store::types::{
    ChunkKey, Put, ReadData, ReadRange, Request, SessionKey, ShardError, ShardKey, ShardMeta, VolumeKey,
};
use crate::store::{DiskStatus, Granted};
use crate::units::{saturating_u32, to_usize};

/// Ranges of one read request.
pub const READ_RANGES_MAX: usize = 8192;
/// Shards of one page of a list.
pub const LIST_SHARDS_MAX: usize = 4096;
/// Disks one reservation request names.
const RESERVE_DISKS_MAX: usize = 4096;
/// A disk that says nothing of itself for this long is reported as out of service.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Ranges of one disk are spread over this many of its reading threads.
const READ_PARTS_MAX: usize = 3;
/// A part of a read has this many bytes at least, unless it is the last.
const READ_PART_BYTES_MIN: u64 = 256 << 10;

/// What the node serves.
pub(crate) struct DataService {
    node: NodeId,
    secret: ClusterSecret,
    disks: BTreeMap<DiskId, Arc<Disk>>,
    /// Disks of this node that could not be opened.
    lost: Vec<DiskId>,
    memory: Arc<Memory>,
}

/// A refusal of one request, as it travels.
#[derive(Clone, Debug)]
struct Denied(Status, String);

impl From<ShardError> for Denied {
    fn from(error: ShardError) -> Self {
        let status = match error {
            ShardError::NotFound => Status::NotFound,
            ShardError::Corrupt => Status::Corrupt,
            ShardError::Conflict => Status::Conflict,
            ShardError::NoSpace => Status::NoSpace,
            ShardError::BelowFloor(_) => Status::BelowFloor,
            ShardError::DiskFailed => Status::DiskFailed,
            ShardError::Invalid(_) => Status::Invalid,
            ShardError::Dropped => Status::Dropped,
            ShardError::Busy => Status::Busy,
        };
        Self(status, error.to_string())
    }
}

fn invalid(why: &str) -> Denied {
    Denied(Status::Invalid, why.to_owned())
}

/// Status and detail of an answer.
fn said<T>(result: &Result<T, Denied>) -> (i32, String) {
    match result {
        Ok(_) => (Status::Ok.into(), String::new()),
        Err(Denied(status, detail)) => ((*status).into(), detail.clone()),
    }
}

type ReadResult = Result<ReadData, Denied>;

impl DataService {
    pub(crate) fn new(
        node: NodeId,
        secret: ClusterSecret,
        disks: Vec<Arc<Disk>>,
        lost: Vec<DiskId>,
        memory: Arc<Memory>,
    ) -> Self {
        Self { node, secret, disks: disks.into_iter().map(|disk| (disk.id, disk)).collect(), lost, memory }
    }

    pub(crate) fn disks(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.values()
    }

    fn disk(&self, id: u64) -> Result<&Arc<Disk>, Denied> {
        let id = DiskId(id);
        match self.disks.get(&id) {
            Some(disk) => Ok(disk),
            None if self.lost.contains(&id) => Err(ShardError::DiskFailed.into()),
            None => Err(Denied(Status::WrongDisk, format!("node {} has no disk {id}", self.node))),
        }
    }

    fn check_proof(&self, volume: &VolumeKey, claim: Claim<'_>, proof: Option<Proof>) -> Result<(), Denied> {
        let mac = proof.unwrap_or_default().mac;
        if self.secret.verify(volume.volume, volume.incarnation, claim, &mac) {
            Ok(())
        } else {
            Err(Denied(Status::Forbidden, "the proof does not hold".to_owned()))
        }
    }

    async fn put(&self, request: PutShardRequest, payload: Bytes, deadline: Instant) -> Result<u64, Denied> {
        let disk = self.disk(request.disk)?;
        let header = request.header.ok_or_else(|| invalid("the shard's header is missing"))?;
        let meta = ShardMeta::try_from(header).map_err(invalid)?;
        let session = SessionKey { volume: meta.key.chunk.volume.volume, session: SessionId(request.session) };
        let put = Put { meta, payload, session };
        disk.write(Request::Put(put), deadline).await?;
        Ok(disk.reader().available_bytes())
    }

    async fn delete(&self, request: DeleteShardsRequest, deadline: Instant) -> Result<u32, Denied> {
        let volume = volume_key(request.volume, request.incarnation);
        let chunks: Vec<ChunkId> = request.chunks.into_iter().map(ChunkId).collect();
        self.check_proof(&volume, Claim::DeleteChunks(&chunks), request.proof)?;
        let disk = self.disk(request.disk)?;
        Ok(disk.write(Request::Delete { volume, chunks }, deadline).await?.deleted_count)
    }

    async fn set_floor(&self, request: SetFloorRequest, deadline: Instant) -> Result<(), Denied> {
        let volume = volume_key(request.volume, request.incarnation);
        let floor = ChunkId(request.floor);
        self.check_proof(&volume, Claim::SetFloor(floor), request.proof)?;
        self.everywhere(&Request::SetFloor { volume, floor }, deadline).await
    }

    async fn drop_volume(&self, request: DropVolumeRequest, deadline: Instant) -> Result<(), Denied> {
        let volume = volume_key(request.volume, request.incarnation);
        self.check_proof(&volume, Claim::DropVolume, request.proof)?;
        self.everywhere(&Request::DropVolume { volume }, deadline).await
    }

    /// Drops a volume as the volume manager's heartbeat asks; true once every disk remembers it.
    pub(crate) async fn drop_proven(&self, volume: VolumeKey, mac: &[u8], deadline: Instant) -> bool {
        if !self.secret.verify(volume.volume, volume.incarnation, Claim::DropVolume, mac) {
            tracing::error!(?volume, "a drop without a valid proof was ignored");
            return false;
        }
        self.everywhere(&Request::DropVolume { volume }, deadline).await.is_ok()
    }

    /// Does a thing on every disk. For a disk that is away the node remembers it: it learns it when it returns.
    async fn everywhere(&self, request: &Request, deadline: Instant) -> Result<(), Denied> {
        let mut result = Ok(());
        let mut away = !self.lost.is_empty();
        for disk in self.disks.values() {
            match disk.write(request.clone(), deadline).await {
                Ok(_) => {}
                Err(ShardError::DiskFailed) => away = true,
                Err(error) => result = Err(error.into()),
            }
        }
        if away {
            let (memory, request) = (self.memory.clone(), request.clone());
            let remembered = tokio::task::spawn_blocking(move || memory.remember(&request)).await;
            if let Err(error) = remembered.map_err(std::io::Error::other).and_then(|done| done) {
                tracing::error!(%error, "what a disk that is away has to learn cannot be written down");
                return Err(ShardError::Busy.into());
            }
        }
        result
    }

    async fn read(&self, request: ReadShardsRequest) -> Result<Reply, Refusal> {
        if request.ranges.len() > READ_RANGES_MAX {
            return Err(Refusal::Malformed("too many ranges in one read"));
        }
        let mut results: Vec<Option<ReadResult>> = Vec::new();
        results.resize_with(request.ranges.len(), || None);
        let mut wanted: BTreeMap<u64, Vec<(usize, ReadRange)>> = BTreeMap::new();
        let mut total_bytes = 0;
        for (number, range) in request.ranges.iter().enumerate() {
            total_bytes += u64::from(range.length_bytes);
            match read_range(range) {
                _ if total_bytes > u64::from(BODY_BYTES_MAX) => {
                    results[number] = Some(Err(invalid("the answer would not fit a frame")));
                }
                Ok(key) => wanted.entry(range.disk).or_default().push((number, key)),
                Err(denied) => results[number] = Some(Err(denied)),
            }
        }
        let parts = wanted.into_iter().flat_map(|(disk, ranges)| split(ranges).into_iter().map(move |p| (disk, p)));
        let running: Vec<_> = parts.map(|(disk, part)| self.read_part(disk, part)).collect();
        for part in running {
            for (number, result) in part.await {
                results[number] = Some(result);
            }
        }
        Ok(read_reply(results))
    }

    /// Starts at once, on a thread of the disk; the future only waits.
    fn read_part(
        &self,
        disk: u64,
        part: Vec<(usize, ReadRange)>,
    ) -> impl Future<Output = Vec<(usize, ReadResult)>> + use<> {
        let numbers: Vec<usize> = part.iter().map(|(number, _)| *number).collect();
        let started = self.disk(disk).map(|disk| {
            disk.start_run(move |reader| {
                part.into_iter().map(|(number, range)| (number, reader.read(&range))).collect::<Vec<_>>()
            })
        });
        async move {
            let all = |denied: Denied| numbers.into_iter().map(|n| (n, Err(denied.clone()))).collect();
            let running = match started {
                Ok(Ok(running)) => running,
                Ok(Err(error)) => return all(error.into()),
                Err(denied) => return all(denied),
            };
            match running.await {
                Ok(read) => read.into_iter().map(|(n, result)| (n, result.map_err(Denied::from))).collect(),
                Err(_) => all(ShardError::Busy.into()),
            }
        }
    }

    async fn list(&self, request: ListShardsRequest) -> Result<(Vec<ShardSummary>, bool), Denied> {
        let volume = volume_key(request.volume, request.incarnation);
        let after = ChunkId(request.after_chunk);
        let max_count = to_usize(request.max_count.into()).clamp(1, LIST_SHARDS_MAX);
        let listed = self.disk(request.disk)?.run(move |reader| reader.list(&volume, after, max_count)).await?;
        let (shards, end) = listed?;
        let summaries = shards.into_iter().map(|(key, entry)| ShardSummary {
            chunk: key.chunk.chunk.0,
            nonce: entry.nonce,
            shard: key.shard.into(),
            group: entry.stripe.group.0,
            shard_length_bytes: entry.shard_length_bytes,
            slots: Bytes::copy_from_slice(&entry.stripe.slots),
            epoch: entry.stripe.epoch,
            data_shards: entry.stripe.data_shards.into(),
            parity_shards: entry.stripe.parity_shards.into(),
            chunk_length_bytes: entry.chunk_length_bytes,
        });
        Ok((summaries.collect(), end))
    }

    async fn reserve(&self, request: ReserveSpaceRequest) -> Result<ReserveSpaceResponse, Refusal> {
        if request.disks.len() > RESERVE_DISKS_MAX {
            return Err(Refusal::Malformed("too many disks in one reservation"));
        }
        let lease = Duration::from_millis(request.lease_ms.into());
        let session = SessionKey { volume: VolumeId(request.volume), session: SessionId(request.session) };
        let mut grants = Vec::with_capacity(request.disks.len());
        for wanted in request.disks {
            let granted: Result<Granted, Denied> = async {
                let disk = self.disk(wanted.disk)?;
                let bytes = wanted.wanted_bytes;
                Ok(disk.run(move |reader| reader.reserve(session, bytes, lease)).await??)
            }
            .await;
            let (status, _) = said(&granted);
            let granted = granted.unwrap_or_default();
            grants.push(DiskGrant {
                disk: wanted.disk,
                status,
                granted_bytes: granted.granted_bytes,
                available_bytes: granted.available_bytes,
                file_system: granted.file_system,
                file_system_free_bytes: granted.file_system_free_bytes,
            });
        }
        Ok(ReserveSpaceResponse { grants })
    }

    /// What every disk says of itself; disks that were lost are out of service.
    pub(crate) async fn statuses(&self) -> Vec<(DiskId, DiskStatus)> {
        let mut statuses: Vec<_> = self.lost.iter().map(|disk| (*disk, DiskStatus::lost())).collect();
        for disk in self.disks.values() {
            // A disk whose readers are all stuck is no use to anybody, and must not make the node look dead.
            let status = tokio::time::timeout(STATUS_TIMEOUT, disk.run(|reader| reader.status())).await;
            statuses.push((disk.id, status.ok().and_then(Result::ok).unwrap_or(DiskStatus::lost())));
        }
        statuses
    }

    async fn probe(&self) -> ProbeResponse {
        let report = |(disk, status): (DiskId, DiskStatus)| DiskReport {
            disk: disk.0,
            status: if status.failed { Status::DiskFailed } else { Status::Ok }.into(),
            total_bytes: status.total_bytes,
            available_bytes: status.available_bytes,
            shards_count: status.shards_count,
            used_bytes: status.used_bytes,
        };
        ProbeResponse { node: self.node.0, disks: self.statuses().await.into_iter().map(report).collect() }
    }
}

impl Service for DataService {
    async fn call(&self, call: Call) -> Result<Reply, Refusal> {
        let deadline = call.deadline.into_std();
        if deadline <= Instant::now() {
            return Err(Refusal::Deadline);
        }
        Ok(match call.method {
            method::DATA_PUT => {
                let result = self.put(call.message()?, call.body, deadline).await;
                let (status, detail) = said(&result);
                let available_bytes = result.unwrap_or_default();
                Reply::message(&PutShardResponse { status, detail, available_bytes })
            }
            method::DATA_READ => self.read(call.message()?).await?,
            method::DATA_DELETE => {
                let result = self.delete(call.message()?, deadline).await;
                let (status, detail) = said(&result);
                let deleted_count = result.unwrap_or_default();
                Reply::message(&DeleteShardsResponse { status, detail, deleted_count })
            }
            method::DATA_SET_FLOOR => {
                let (status, detail) = said(&self.set_floor(call.message()?, deadline).await);
                Reply::message(&SetFloorResponse { status, detail })
            }
            method::DATA_LIST => {
                let result = self.list(call.message()?).await;
                let (status, _) = said(&result);
                let (shards, end) = result.unwrap_or_default();
                Reply::message(&ListShardsResponse { status, shards, end })
            }
            method::DATA_DROP_VOLUME => {
                let (status, detail) = said(&self.drop_volume(call.message()?, deadline).await);
                Reply::message(&DropVolumeResponse { status, detail })
            }
            method::DATA_RESERVE => Reply::message(&self.reserve(call.message()?).await?),
            method::DATA_PROBE => Reply::message(&self.probe().await),
            _ => return Err(Refusal::UnknownMethod),
        })
    }
}

fn volume_key(volume: u64, incarnation: u64) -> VolumeKey {
    VolumeKey { volume: VolumeId(volume), incarnation: Incarnation(incarnation) }
}

fn read_range(range: &ShardRange) -> Result<ReadRange, Denied> {
    let shard = u8::try_from(range.shard).map_err(|_| invalid("no chunk has that many shards"))?;
    let chunk = ChunkKey { volume: volume_key(range.volume, range.incarnation), chunk: ChunkId(range.chunk) };
    let key = ShardKey { chunk, shard };
    Ok(ReadRange { key, nonce: range.nonce, offset: range.offset, length_bytes: range.length_bytes })
}

/// Spreads the ranges of a disk over its reading threads, where there is enough to read.
fn split(ranges: Vec<(usize, ReadRange)>) -> Vec<Vec<(usize, ReadRange)>> {
    let total_bytes: u64 = ranges.iter().map(|(_, range)| u64::from(range.length_bytes)).sum();
    let part_bytes = (total_bytes / READ_PARTS_MAX as u64).max(READ_PART_BYTES_MIN);
    let mut parts: Vec<Vec<(usize, ReadRange)>> = vec![Vec::new()];
    let mut bytes = 0;
    for range in ranges {
        if bytes >= part_bytes {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += u64::from(range.1.length_bytes);
        parts.last_mut().expect("never empty").push(range);
    }
    parts
}

fn read_reply(results: Vec<Option<ReadResult>>) -> Reply {
    let mut body = Vec::with_capacity(results.len());
    let mut response = ReadShardsResponse { results: Vec::with_capacity(results.len()) };
    for result in results {
        let result = result.unwrap_or_else(|| Err(ShardError::Busy.into()));
        let (status, detail) = said(&result);
        response.results.push(match result {
            Ok(ReadData { bytes, page_checksums }) => {
                let length_bytes = saturating_u32(bytes.len());
                body.push(bytes);
                ShardData { status, length_bytes, page_checksums, detail }
            }
            Err(_) => ShardData { status, detail, ..ShardData::default() },
        });
    }
    Reply::with_body(&response, body)
}
