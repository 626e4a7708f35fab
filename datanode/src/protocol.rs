//! Meaning of the requests of the shard protocol, and answers to their outcomes. Pure: the service and the stepped
//! datanode decide here and do elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::proof::{Claim, ClusterSecret, ShardName};
use holdfast_common::{ChunkId, DiskId, Incarnation, NodeId, Nonce, SessionId, VolumeId};
use holdfast_proto::control::VolumeDrop;
use holdfast_proto::data::{
    self, DeleteShardsRequest, DeleteShardsResponse, DiskGrant, DiskReport, DropVolumeRequest, DropVolumeResponse,
    ListShardsRequest, ListShardsResponse, ProbeResponse, Proof, PutShardRequest, PutShardResponse, ReadShardsRequest,
    ReadShardsResponse, ReserveSpaceRequest, SetFloorRequest, SetFloorResponse, ShardData, ShardRange, ShardSummary,
    Status,
};
use holdfast_transport::{BODY_BYTES_MAX, Refusal};

use crate::store::index::Entry;
use crate::store::types::{
    ChunkKey, Done, Outcome, Put, ReadData, ReadRange, Request, SessionKey, ShardError, ShardKey, ShardMeta, VolumeKey,
};
use crate::store::units::{saturating_u32, to_usize};
use crate::store::{DiskStatus, Granted, Sabotage};

/// Most ranges of one read request.
pub const READ_RANGES_MAX: usize = 8192;
/// Most shards of one page of a list.
pub const LIST_SHARDS_MAX: usize = 4096;
/// Most disks that one reservation request names.
const RESERVE_DISKS_MAX: usize = 4096;

/// A refusal of one request, as it travels.
#[derive(Clone, Debug)]
pub(crate) struct Denied(Status, String);

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

/// Status and detail of an answer; detail is empty if all went well.
fn said<T>(result: &Result<T, Denied>) -> (i32, String) {
    match result {
        Ok(_) => (Status::Ok.into(), String::new()),
        Err(Denied(status, detail)) => ((*status).into(), detail.clone()),
    }
}

/// The disks of a node: those that are open, by id, and those that could not be opened.
pub(crate) struct NodeDisks<D> {
    node: NodeId,
    open: BTreeMap<DiskId, D>,
    lost: Vec<DiskId>,
}

impl<D> NodeDisks<D> {
    pub(crate) fn new(node: NodeId, open: impl IntoIterator<Item = (DiskId, D)>, lost: Vec<DiskId>) -> Self {
        Self { node, open: open.into_iter().collect(), lost }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn lost(&self) -> &[DiskId] {
        &self.lost
    }

    pub(crate) fn open(&self) -> &BTreeMap<DiskId, D> {
        &self.open
    }

    pub(crate) fn open_mut(&mut self) -> &mut BTreeMap<DiskId, D> {
        &mut self.open
    }

    /// The disk that a request names.
    pub(crate) fn find(&self, id: u64) -> Result<&D, Denied> {
        let id = DiskId(id);
        match self.open.get(&id) {
            Some(disk) => Ok(disk),
            None if self.lost.contains(&id) => Err(ShardError::DiskFailed.into()),
            None => Err(Denied(Status::WrongDisk, format!("node {} has no disk {id}", self.node))),
        }
    }
}

fn volume_key(volume: u64, incarnation: u64) -> VolumeKey {
    VolumeKey { volume: VolumeId(volume), incarnation: Incarnation(incarnation) }
}

/// Judges proofs (R30).
pub(crate) struct Judge {
    secret: ClusterSecret,
    sabotage: Sabotage,
}

impl Judge {
    pub(crate) fn new(secret: ClusterSecret, sabotage: Sabotage) -> Self {
        Self { secret, sabotage }
    }

    fn holds(&self, volume: &VolumeKey, claim: Claim<'_>, mac: &[u8]) -> bool {
        self.sabotage == Sabotage::ProofsIgnored || self.secret.verify(volume.volume, volume.incarnation, claim, mac)
    }

    fn check(&self, volume: &VolumeKey, claim: Claim<'_>, proof: Option<Proof>) -> Result<(), Denied> {
        if self.holds(volume, claim, &proof.unwrap_or_default().mac) {
            Ok(())
        } else {
            Err(Denied(Status::Forbidden, "the proof does not hold".to_owned()))
        }
    }
}

/// Plans a put: its disk, and the request to that disk's writer.
pub(crate) fn put<D>(
    request: PutShardRequest,
    payload: Bytes,
    find: impl FnOnce(u64) -> Result<D, Denied>,
) -> Result<(D, Request), Denied> {
    let disk = find(request.disk)?;
    let header = request.header.ok_or_else(|| invalid("the shard's header is missing"))?;
    let meta = ShardMeta::try_from(header).map_err(invalid)?;
    let session = SessionKey { volume: meta.key.chunk.volume.volume, session: SessionId(request.session) };
    Ok((disk, Request::Put(Put { meta, payload, session })))
}

/// Answers a put with what may still be written there.
pub(crate) fn put_answer(result: Result<u64, Denied>) -> PutShardResponse {
    let (status, detail) = said(&result);
    PutShardResponse { status, detail, available_bytes: result.unwrap_or_default() }
}

/// Plans a delete that is proven (R30): its disk, and the request to that disk's writer.
pub(crate) fn delete<D>(
    request: DeleteShardsRequest,
    judge: &Judge,
    find: impl FnOnce(u64) -> Result<D, Denied>,
) -> Result<(D, Request), Denied> {
    let volume = volume_key(request.volume, request.incarnation);
    let chunks: Vec<ChunkId> = request.chunks.into_iter().map(ChunkId).collect();
    let shards: Result<Vec<ShardName>, Denied> = request.shards.iter().map(shard_name).collect();
    let shards = shards?;
    let claim = match &shards[..] {
        [] => Claim::DeleteChunks(&chunks),
        shards => Claim::DeleteShards(&chunks, shards),
    };
    judge.check(&volume, claim, request.proof)?;
    Ok((find(request.disk)?, Request::Delete { volume, chunks, shards }))
}

fn shard_name(wire: &data::ShardName) -> Result<ShardName, Denied> {
    let shard = u8::try_from(wire.shard).map_err(|_| invalid("no chunk has that many shards"))?;
    Ok(ShardName { chunk: ChunkId(wire.chunk), shard, nonce: Nonce(wire.nonce) })
}

pub(crate) fn delete_answer(result: Result<Done, Denied>) -> DeleteShardsResponse {
    let (status, detail) = said(&result);
    let Done { deleted_count, kept_count } = result.unwrap_or_default();
    DeleteShardsResponse { status, detail, deleted_count, kept_count }
}

/// Plans a floor that is proven (R30): the request to the writer of each disk.
pub(crate) fn set_floor(request: SetFloorRequest, judge: &Judge) -> Result<Request, Denied> {
    let volume = volume_key(request.volume, request.incarnation);
    let floor = ChunkId(request.floor);
    judge.check(&volume, Claim::SetFloor(floor), request.proof)?;
    Ok(Request::SetFloor { volume, floor })
}

pub(crate) fn set_floor_answer(result: &Result<(), Denied>) -> SetFloorResponse {
    let (status, detail) = said(result);
    SetFloorResponse { status, detail }
}

/// Plans the end of a volume's life, if it is proven (R30): the request to the writer of each disk.
pub(crate) fn drop_volume(request: DropVolumeRequest, judge: &Judge) -> Result<Request, Denied> {
    let volume = volume_key(request.volume, request.incarnation);
    judge.check(&volume, Claim::DropVolume, request.proof)?;
    Ok(Request::DropVolume { volume })
}

pub(crate) fn drop_volume_answer(result: &Result<(), Denied>) -> DropVolumeResponse {
    let (status, detail) = said(result);
    DropVolumeResponse { status, detail }
}

/// Plans a drop that the answer to a heartbeat asks for: the request to the writer of each disk; `None` if it proves
/// nothing.
pub(crate) fn ordered_drop(order: &VolumeDrop, judge: &Judge) -> Option<(VolumeKey, Request)> {
    let volume = volume_key(order.volume, order.incarnation);
    if !judge.holds(&volume, Claim::DropVolume, &order.mac) {
        tracing::error!(?volume, "a drop without a valid proof was ignored");
        return None;
    }
    Some((volume, Request::DropVolume { volume }))
}

/// A request that goes to every disk. One that is away learns it when it returns: the node remembers it.
#[derive(Default)]
pub(crate) struct Everywhere {
    away: bool,
    denied: Option<Denied>,
}

impl Everywhere {
    pub(crate) fn new<D>(disks: &NodeDisks<D>) -> Self {
        Self { away: !disks.lost.is_empty(), denied: None }
    }

    /// A disk answered.
    pub(crate) fn note(&mut self, outcome: Outcome) {
        match outcome {
            Ok(_) => {}
            Err(ShardError::DiskFailed) => self.away = true,
            Err(error) => self.denied = Some(error.into()),
        }
    }

    /// Whether the node has to remember it before it is answered.
    pub(crate) fn must_be_remembered(&self) -> bool {
        self.away
    }

    /// All disks have answered, and it was remembered if it had to be.
    pub(crate) fn finish(self, remembered: io::Result<()>) -> Result<(), Denied> {
        if let Err(error) = remembered {
            tracing::error!(%error, "what a disk that is away has to learn cannot be written down");
            return Err(ShardError::Busy.into());
        }
        self.denied.map_or(Ok(()), Err)
    }
}

pub(crate) type ReadResult = Result<ReadData, Denied>;

/// A read, sorted by disks. `results` is in the order of the request's ranges; those that make no sense are answered.
pub(crate) struct ReadPlan {
    pub(crate) results: Vec<Option<ReadResult>>,
    /// Numbers of ranges with what they ask for.
    pub(crate) by_disk: BTreeMap<u64, Vec<(usize, ReadRange)>>,
}

pub(crate) fn plan_read(request: &ReadShardsRequest) -> Result<ReadPlan, Refusal> {
    if request.ranges.len() > READ_RANGES_MAX {
        return Err(Refusal::Malformed("too many ranges in one read"));
    }
    let mut results: Vec<Option<ReadResult>> = Vec::new();
    results.resize_with(request.ranges.len(), || None);
    let mut by_disk: BTreeMap<u64, Vec<(usize, ReadRange)>> = BTreeMap::new();
    let mut total_bytes = 0;
    for (number, range) in request.ranges.iter().enumerate() {
        total_bytes += u64::from(range.length_bytes);
        match read_range(range) {
            _ if total_bytes > u64::from(BODY_BYTES_MAX) => {
                results[number] = Some(Err(invalid("the answer would not fit a frame")));
            }
            Ok(wanted) => by_disk.entry(range.disk).or_default().push((number, wanted)),
            Err(denied) => results[number] = Some(Err(denied)),
        }
    }
    Ok(ReadPlan { results, by_disk })
}

fn read_range(range: &ShardRange) -> Result<ReadRange, Denied> {
    let shard = u8::try_from(range.shard).map_err(|_| invalid("no chunk has that many shards"))?;
    let chunk = ChunkKey { volume: volume_key(range.volume, range.incarnation), chunk: ChunkId(range.chunk) };
    let key = ShardKey { chunk, shard };
    Ok(ReadRange { key, nonce: Nonce(range.nonce), offset: range.offset, length_bytes: range.length_bytes })
}

/// The answer to a read and its body, in pieces.
pub(crate) fn read_answer(results: Vec<Option<ReadResult>>) -> (ReadShardsResponse, Vec<Bytes>) {
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
    (response, body)
}

/// A page of a list that is wanted.
#[derive(Clone, Copy)]
pub(crate) struct ListQuery {
    pub(crate) volume: VolumeKey,
    pub(crate) after: ChunkId,
    pub(crate) max_count: usize,
}

impl ListQuery {
    pub(crate) fn of(request: &ListShardsRequest) -> Self {
        Self {
            volume: volume_key(request.volume, request.incarnation),
            after: ChunkId(request.after_chunk),
            max_count: to_usize(request.max_count.into()).clamp(1, LIST_SHARDS_MAX),
        }
    }
}

pub(crate) fn list_answer(result: Result<(Vec<(ShardKey, Entry)>, bool), Denied>) -> ListShardsResponse {
    let (status, _) = said(&result);
    let (shards, end) = result.unwrap_or_default();
    let summary = |(key, entry): (ShardKey, Entry)| ShardSummary {
        chunk: key.chunk.chunk.0,
        nonce: entry.nonce.0,
        shard: key.shard.into(),
        group: entry.stripe.group.0,
        shard_length_bytes: entry.shard_length_bytes,
        slots: Bytes::copy_from_slice(&entry.stripe.slots),
        epoch: entry.stripe.epoch.0,
        data_shards: entry.stripe.data_shards.into(),
        parity_shards: entry.stripe.parity_shards.into(),
        chunk_length_bytes: entry.chunk_length_bytes,
    };
    ListShardsResponse { status, shards: shards.into_iter().map(summary).collect(), end }
}

/// Session to reserve space for, and for how long.
pub(crate) fn reservation(request: &ReserveSpaceRequest) -> Result<(SessionKey, Duration), Refusal> {
    if request.disks.len() > RESERVE_DISKS_MAX {
        return Err(Refusal::Malformed("too many disks in one reservation"));
    }
    let session = SessionKey { volume: VolumeId(request.volume), session: SessionId(request.session) };
    Ok((session, Duration::from_millis(request.lease_ms.into())))
}

pub(crate) fn grant(disk: u64, result: Result<Granted, Denied>) -> DiskGrant {
    let (status, _) = said(&result);
    let granted = result.unwrap_or_default();
    DiskGrant {
        disk,
        status,
        granted_bytes: granted.granted_bytes,
        available_bytes: granted.available_bytes,
        file_system: granted.file_system,
        file_system_free_bytes: granted.file_system_free_bytes,
    }
}

pub(crate) fn probe_answer(node: NodeId, statuses: Vec<(DiskId, DiskStatus)>) -> ProbeResponse {
    let report = |(disk, status): (DiskId, DiskStatus)| DiskReport {
        disk: disk.0,
        status: if status.failed { Status::DiskFailed } else { Status::Ok }.into(),
        total_bytes: status.total_bytes,
        available_bytes: status.available_bytes,
        shards_count: status.shards_count,
        used_bytes: status.used_bytes,
    };
    ProbeResponse { node: node.0, disks: statuses.into_iter().map(report).collect() }
}
