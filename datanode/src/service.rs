//! The shard protocol (`proto/schema/data.proto`) over the disks of this node. What is asked for and answered is decided in
//! [`crate::protocol`]; here it waits for disks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{DiskId, NodeId};
use holdfast_proto::control::VolumeDrop;
use holdfast_proto::data::{
    DeleteShardsRequest, DropVolumeRequest, ListShardsRequest, ListShardsResponse, PutShardRequest, ReadShardsRequest,
    ReserveSpaceRequest, ReserveSpaceResponse, SetFloorRequest,
};
use holdfast_proto::method;
use holdfast_transport::{Call, Refusal, Reply, Service};

use crate::disk::Disk;
use crate::memory::Memory;
use crate::protocol::{self, Denied, Everywhere, Judge, ListQuery, NodeDisks, ReadPlan, ReadResult};
use crate::store::types::{Done, ReadRange, Request, ShardError, VolumeKey};
use crate::store::{DiskStatus, Granted, Sabotage};

/// A disk that says nothing of itself for this long is reported as out of service.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Ranges of one disk are spread over this many of its reading threads.
const READ_PARTS_MAX: usize = 3;
/// A part of a read has this many bytes at least, unless it is the last.
const READ_PART_BYTES_MIN: u64 = 256 << 10;

/// Serves the shard protocol.
pub(crate) struct DataService {
    judge: Judge,
    disks: NodeDisks<Arc<Disk>>,
    memory: Arc<Memory>,
}

impl DataService {
    pub(crate) fn new(
        node: NodeId,
        secret: ClusterSecret,
        disks: Vec<Arc<Disk>>,
        lost: Vec<DiskId>,
        memory: Arc<Memory>,
    ) -> Self {
        let disks = NodeDisks::new(node, disks.into_iter().map(|disk| (disk.id, disk)), lost);
        Self { judge: Judge::new(secret, Sabotage::None), disks, memory }
    }

    pub(crate) fn disks(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.open().values()
    }

    async fn put(&self, request: PutShardRequest, payload: Bytes, deadline: Instant) -> Result<u64, Denied> {
        let (disk, request) = protocol::put(request, payload, |id| self.disks.find(id))?;
        disk.write(request, deadline).await?;
        Ok(disk.reader().available_bytes())
    }

    async fn delete(&self, request: DeleteShardsRequest, deadline: Instant) -> Result<Done, Denied> {
        let (disk, request) = protocol::delete(request, &self.judge, |id| self.disks.find(id))?;
        Ok(disk.write(request, deadline).await?)
    }

    async fn set_floor(&self, request: SetFloorRequest, deadline: Instant) -> Result<(), Denied> {
        self.everywhere(&protocol::set_floor(request, &self.judge)?, deadline).await
    }

    async fn drop_volume(&self, request: DropVolumeRequest, deadline: Instant) -> Result<(), Denied> {
        self.everywhere(&protocol::drop_volume(request, &self.judge)?, deadline).await
    }

    /// Drops a volume as the volume manager's heartbeat asks; which, once every disk remembers it.
    pub(crate) async fn obey_drop(&self, order: &VolumeDrop, deadline: Instant) -> Option<VolumeKey> {
        let (volume, request) = protocol::ordered_drop(order, &self.judge)?;
        self.everywhere(&request, deadline).await.ok().map(|()| volume)
    }

    /// Does a thing on every disk. For a disk that is away the node remembers it: it learns it when it returns.
    async fn everywhere(&self, request: &Request, deadline: Instant) -> Result<(), Denied> {
        let mut everywhere = Everywhere::new(&self.disks);
        for disk in self.disks() {
            everywhere.note(disk.write(request.clone(), deadline).await);
        }
        if !everywhere.must_be_remembered() {
            return everywhere.finish(Ok(()));
        }
        let (memory, request) = (self.memory.clone(), request.clone());
        let remembered = tokio::task::spawn_blocking(move || memory.remember(&request)).await;
        everywhere.finish(remembered.map_err(std::io::Error::other).and_then(|done| done))
    }

    async fn read(&self, request: ReadShardsRequest) -> Result<Reply, Refusal> {
        let ReadPlan { mut results, by_disk } = protocol::plan_read(&request)?;
        let parts = by_disk.into_iter().flat_map(|(disk, ranges)| split(ranges).into_iter().map(move |p| (disk, p)));
        let running: Vec<_> = parts.map(|(disk, part)| self.read_part(disk, part)).collect();
        for part in running {
            for (number, result) in part.await {
                results[number] = Some(result);
            }
        }
        let (response, body) = protocol::read_answer(results);
        Ok(Reply::with_body(&response, body))
    }

    /// Starts at once, on a thread of the disk; the future only waits.
    fn read_part(
        &self,
        disk: u64,
        part: Vec<(usize, ReadRange)>,
    ) -> impl Future<Output = Vec<(usize, ReadResult)>> + use<> {
        let numbers: Vec<usize> = part.iter().map(|(number, _)| *number).collect();
        let started = self.disks.find(disk).map(|disk| {
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

    async fn list(&self, request: ListShardsRequest) -> ListShardsResponse {
        let ListQuery { volume, after, max_count } = ListQuery::of(&request);
        let listed = async {
            let disk = self.disks.find(request.disk)?;
            Ok(disk.run(move |reader| reader.list(&volume, after, max_count)).await??)
        };
        protocol::list_answer(listed.await)
    }

    async fn reserve(&self, request: ReserveSpaceRequest) -> Result<ReserveSpaceResponse, Refusal> {
        let (session, lease) = protocol::reservation(&request)?;
        let mut grants = Vec::with_capacity(request.disks.len());
        for wanted in request.disks {
            let granted: Result<Granted, Denied> = async {
                let disk = self.disks.find(wanted.disk)?;
                let bytes = wanted.wanted_bytes;
                Ok(disk.run(move |reader| reader.reserve(session, bytes, lease)).await??)
            }
            .await;
            grants.push(protocol::grant(wanted.disk, granted));
        }
        Ok(ReserveSpaceResponse { grants })
    }

    /// Status of every disk; disks that were lost are out of service.
    pub(crate) async fn statuses(&self) -> Vec<(DiskId, DiskStatus)> {
        let mut statuses: Vec<_> = self.disks.lost().iter().map(|disk| (*disk, DiskStatus::lost())).collect();
        for disk in self.disks() {
            // A disk whose readers are all stuck is no use to anybody, and must not make the node look dead.
            let status = tokio::time::timeout(STATUS_TIMEOUT, disk.run(|reader| reader.status())).await;
            statuses.push((disk.id, status.ok().and_then(Result::ok).unwrap_or(DiskStatus::lost())));
        }
        statuses
    }
}

impl Service for DataService {
    async fn call(&self, mut call: Call) -> Result<Reply, Refusal> {
        let deadline = call.deadline.into_std();
        if deadline <= Instant::now() {
            return Err(Refusal::Deadline);
        }
        Ok(match call.method {
            method::DATA_PUT => {
                let put = self.put(call.message()?, call.body, deadline).await;
                Reply::message(&protocol::put_answer(put))
            }
            method::DATA_READ => self.read(call.message()?).await?,
            method::DATA_DELETE => {
                Reply::message(&protocol::delete_answer(self.delete(call.message()?, deadline).await))
            }
            method::DATA_SET_FLOOR => {
                Reply::message(&protocol::set_floor_answer(&self.set_floor(call.message()?, deadline).await))
            }
            method::DATA_LIST => Reply::message(&self.list(call.message()?).await),
            method::DATA_DROP_VOLUME => {
                Reply::message(&protocol::drop_volume_answer(&self.drop_volume(call.message()?, deadline).await))
            }
            method::DATA_RESERVE => Reply::message(&self.reserve(call.message()?).await?),
            method::DATA_PROBE => Reply::message(&protocol::probe_answer(self.disks.node(), self.statuses().await)),
            _ => return Err(Refusal::UnknownMethod),
        })
    }
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
