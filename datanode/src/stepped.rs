//! A datanode that is stepped: the stores and decisions of the real one, without its threads, sockets and clock. The
//! simulation hands it messages and times; what it answers is durable when it is handed out, as on the wire.
//!
//! It executes at once and one thing at a time. How long its disks would have taken, and in which order messages come, is
//! the caller's. A process that dies is a dropped value; the next one is opened over the same directories.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, DiskId, NodeId, Nonce};
use holdfast_proto::control::{Disk, HeartbeatRequest, HeartbeatResponse};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, DropVolumeRequest, DropVolumeResponse, ListShardsRequest,
    ListShardsResponse, ProbeRequest, ProbeResponse, PutShardRequest, PutShardResponse, ReadShardsRequest,
    ReadShardsResponse, ReserveSpaceRequest, ReserveSpaceResponse, SetFloorRequest, SetFloorResponse,
};
use holdfast_storage::Directory;
use holdfast_transport::Refusal;

use crate::clock::HandClock;
use crate::disks::open_store;
use crate::error::StartError;
use crate::heartbeat;
use crate::memory::Memory;
use crate::protocol::{self, Denied, Everywhere, Judge, ListQuery, NodeDisks, ReadPlan};
use crate::store::recover::{self, OpenError};
use crate::store::segment::SegmentKind;
use crate::store::space::Shelves;
use crate::store::surroundings::Surroundings;
use crate::store::types::{Outcome, Request, ShardError, ShardKey, VolumeKey};
use crate::store::volumes::VOLUMES_FILE;
use crate::store::{DiskStatus, Store, StoreOptions, make_segment};

/// Identity of a datanode, and sizes of its stores.
#[derive(Clone, Debug)]
pub struct DatanodeOptions {
    /// Id that the volume manager gave it.
    pub node: NodeId,
    /// The cluster's secret: proofs are checked with it (R30).
    pub secret: ClusterSecret,
    /// Sizes of its stores, and the rule that they break.
    pub store: StoreOptions,
}

/// A request of the shard protocol.
#[derive(Clone, Debug)]
pub enum DataRequest {
    /// Stores a shard: its description, and the payload that travels as the frame's body.
    Put(PutShardRequest, Bytes),
    /// Reads ranges of shards.
    Read(ReadShardsRequest),
    /// Deletes chunks on a disk.
    Delete(DeleteShardsRequest),
    /// Raises a volume's floor on all disks.
    SetFloor(SetFloorRequest),
    /// Ends a volume's life on all disks.
    DropVolume(DropVolumeRequest),
    /// Lists shards of a volume on a disk.
    List(ListShardsRequest),
    /// Reserves space for a session.
    Reserve(ReserveSpaceRequest),
    /// Asks how the disks are.
    Probe(ProbeRequest),
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub enum DataResponse {
    /// To a put.
    Put(PutShardResponse),
    /// To a read: which ranges were read, and the bytes of those, one after another.
    Read(ReadShardsResponse, Vec<Bytes>),
    /// To a delete.
    Delete(DeleteShardsResponse),
    /// To a floor.
    SetFloor(SetFloorResponse),
    /// To a drop.
    DropVolume(DropVolumeResponse),
    /// To a list.
    List(ListShardsResponse),
    /// To a reservation.
    Reserve(ReserveSpaceResponse),
    /// To a probe.
    Probe(ProbeResponse),
    /// The request as a whole makes no sense; the transport answers it with an error.
    Refused(Refusal),
}

/// One shard on a disk, for checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldShard {
    /// Volume, chunk and number of the shard.
    pub key: ShardKey,
    /// The attempt it is of (R1).
    pub nonce: Nonce,
    /// Length of its payload, in whole pages.
    pub length_bytes: u32,
}

/// A datanode without threads; see the head of its file.
pub struct SteppedDatanode {
    judge: Judge,
    disks: NodeDisks<Store>,
    memory: Memory,
    clock: HandClock,
}

/// State of a request until its group commit has ended.
enum Pending {
    Put(Result<DiskId, Denied>),
    Delete(Result<DiskId, Denied>),
    SetFloor(Result<Request, Denied>),
    DropVolume(Result<Request, Denied>),
    Answered(DataResponse),
}

/// Requests to the writers of the disks, each with the number of the request of the node that it is a part of.
#[derive(Default)]
struct Batches(BTreeMap<DiskId, (Vec<usize>, Vec<Request>)>);

/// Outcomes by number of the request and disk.
type Outcomes = BTreeMap<(usize, DiskId), Outcome>;

impl Batches {
    fn add(&mut self, number: usize, disk: DiskId, request: Request) {
        let (numbers, requests) = self.0.entry(disk).or_default();
        numbers.push(number);
        requests.push(request);
    }
}

impl SteppedDatanode {
    /// Makes the files of a new disk.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn format(directory: &dyn Directory) -> io::Result<()> {
        recover::create(directory)
    }

    /// Opens a node as a start does. A disk that does not open is lost until the next one. `memory` is the directory of the
    /// node itself.
    ///
    /// # Errors
    /// What stops a start: the node's memory cannot be used, a disk was made by a newer version, or no disk opens.
    pub fn open(
        options: DatanodeOptions,
        disks: Vec<(DiskId, Arc<dyn Directory>)>,
        memory: &Arc<dyn Directory>,
        now: Duration,
    ) -> Result<Self, StartError> {
        let loaded = Memory::load(memory.clone())
            .map_err(|source| StartError::Memory { path: memory.path(VOLUMES_FILE), source });
        let (memory, clock) = (loaded?, HandClock::default());
        clock.set(now);
        let surroundings =
            Surroundings { clock: clock.reader(), shelves: Shelves::default(), witness: Some(memory.directory()) };
        let (mut open, mut lost, mut last) = (Vec::new(), Vec::new(), None);
        for (id, directory) in disks {
            let path = directory.path("");
            match open_store(directory, id, &memory, options.store.clone(), surroundings.clone()) {
                Ok(store) => open.push((id, store)),
                Err(source @ OpenError::Unsupported { .. }) => return Err(StartError::Disk { path, source }),
                Err(source) => {
                    lost.push(id);
                    last = Some(StartError::Disk { path, source });
                }
            }
        }
        if let Some(error) = last
            && open.is_empty()
        {
            return Err(error);
        }
        let judge = Judge::new(options.secret, options.store.sabotage);
        Ok(Self { judge, disks: NodeDisks::new(options.node, open, lost), memory, clock })
    }

    /// Executes a request. A write is a group commit of its own.
    pub fn handle(&mut self, now: Duration, request: DataRequest) -> DataResponse {
        self.handle_writes(now, vec![request]).pop().expect("one request has one answer")
    }

    /// Executes requests as if they had waited for the disks together: the writes of each disk are one group commit, in the
    /// order given. Reads among them see what was there before. One answer for each request, in the same order.
    pub fn handle_writes(&mut self, now: Duration, requests: Vec<DataRequest>) -> Vec<DataResponse> {
        self.clock.set(now);
        let mut batches = Batches::default();
        let mut pending = Vec::with_capacity(requests.len());
        for (number, request) in requests.into_iter().enumerate() {
            pending.push(self.begin(number, request, &mut batches));
        }
        let outcomes = self.commit(batches);
        pending.into_iter().enumerate().map(|(number, pending)| self.answer(number, pending, &outcomes)).collect()
    }

    fn begin(&self, number: usize, request: DataRequest, batches: &mut Batches) -> Pending {
        let find = |id| self.disks.find(id).map(|_| DiskId(id));
        let mut one = |planned: Result<(DiskId, Request), Denied>| {
            planned.map(|(disk, request)| {
                batches.add(number, disk, request);
                disk
            })
        };
        match request {
            DataRequest::Put(request, payload) => Pending::Put(one(protocol::put(request, payload, find))),
            DataRequest::Delete(request) => Pending::Delete(one(protocol::delete(request, &self.judge, find))),
            DataRequest::SetFloor(request) => {
                let planned = protocol::set_floor(request, &self.judge);
                Pending::SetFloor(planned.inspect(|request| self.begin_everywhere(number, request, batches)))
            }
            DataRequest::DropVolume(request) => {
                let planned = protocol::drop_volume(request, &self.judge);
                Pending::DropVolume(planned.inspect(|request| self.begin_everywhere(number, request, batches)))
            }
            DataRequest::Read(request) => Pending::Answered(self.read(&request)),
            DataRequest::List(request) => Pending::Answered(self.list(&request)),
            DataRequest::Reserve(request) => Pending::Answered(self.reserve(&request)),
            DataRequest::Probe(ProbeRequest {}) => {
                Pending::Answered(DataResponse::Probe(protocol::probe_answer(self.disks.node(), self.statuses())))
            }
        }
    }

    fn begin_everywhere(&self, number: usize, request: &Request, batches: &mut Batches) {
        for disk in self.disks.open().keys() {
            batches.add(number, *disk, request.clone());
        }
    }

    fn commit(&mut self, batches: Batches) -> Outcomes {
        let mut outcomes = Outcomes::new();
        for (disk, (numbers, requests)) in batches.0 {
            let store = self.disks.open_mut().get_mut(&disk).expect("only disks that were found have batches");
            outcomes.extend(numbers.into_iter().map(|number| (number, disk)).zip(store.commit(&requests)));
        }
        outcomes
    }

    fn answer(&self, number: usize, pending: Pending, outcomes: &Outcomes) -> DataResponse {
        let done = |disk: DiskId| outcomes[&(number, disk)].map_err(Denied::from).map(|done| (disk, done));
        match pending {
            Pending::Put(planned) => {
                let available = |(disk, _)| self.disks.open()[&disk].reader().available_bytes();
                DataResponse::Put(protocol::put_answer(planned.and_then(done).map(available)))
            }
            Pending::Delete(planned) => {
                DataResponse::Delete(protocol::delete_answer(planned.and_then(done).map(|(_, done)| done)))
            }
            Pending::SetFloor(planned) => {
                let done = planned.and_then(|request| self.finish_everywhere(number, &request, outcomes));
                DataResponse::SetFloor(protocol::set_floor_answer(&done))
            }
            Pending::DropVolume(planned) => {
                let done = planned.and_then(|request| self.finish_everywhere(number, &request, outcomes));
                DataResponse::DropVolume(protocol::drop_volume_answer(&done))
            }
            Pending::Answered(response) => response,
        }
    }

    fn finish_everywhere(&self, number: usize, request: &Request, outcomes: &Outcomes) -> Result<(), Denied> {
        let mut everywhere = Everywhere::new(&self.disks);
        for disk in self.disks.open().keys() {
            everywhere.note(outcomes[&(number, *disk)]);
        }
        let must = everywhere.must_be_remembered();
        everywhere.finish(if must { self.memory.remember(request) } else { Ok(()) })
    }

    fn read(&self, request: &ReadShardsRequest) -> DataResponse {
        let ReadPlan { mut results, by_disk } = match protocol::plan_read(request) {
            Ok(plan) => plan,
            Err(refusal) => return DataResponse::Refused(refusal),
        };
        for (disk, ranges) in by_disk {
            let reader = self.disks.find(disk).map(Store::reader);
            for (number, range) in ranges {
                let read = reader.as_ref().map_err(Clone::clone);
                results[number] = Some(read.and_then(|reader| Ok(reader.read(&range)?)));
            }
        }
        let (response, body) = protocol::read_answer(results);
        DataResponse::Read(response, body)
    }

    fn list(&self, request: &ListShardsRequest) -> DataResponse {
        let ListQuery { volume, after, max_count } = ListQuery::of(request);
        let disk = self.disks.find(request.disk);
        let listed = disk.and_then(|disk| Ok(disk.reader().list(&volume, after, max_count)?));
        DataResponse::List(protocol::list_answer(listed))
    }

    fn reserve(&self, request: &ReserveSpaceRequest) -> DataResponse {
        let (session, lease) = match protocol::reservation(request) {
            Ok(reservation) => reservation,
            Err(refusal) => return DataResponse::Refused(refusal),
        };
        let grants = request.disks.iter().map(|wanted| {
            let disk = self.disks.find(wanted.disk);
            let granted = disk.and_then(|disk| Ok(disk.reader().reserve(session, wanted.wanted_bytes, lease)?));
            protocol::grant(wanted.disk, granted)
        });
        DataResponse::Reserve(ReserveSpaceResponse { grants: grants.collect() })
    }

    /// One step of upkeep of each disk: a segment prepared ahead, then punches, compaction, a checkpoint. True if there is
    /// more to do. `idle` says that nobody waits for the disks.
    pub fn maintain(&mut self, now: Duration, idle: bool) -> bool {
        self.clock.set(now);
        let mut more = false;
        for store in self.disks.open_mut().values_mut() {
            if let Some(header) = store.plan_spare() {
                store.add_spare(make_segment(&*store.directory(), header, true));
            }
            more |= store.maintain(idle);
        }
        more
    }

    /// Begins a new segment on every disk, of small shards or of the larger ones: for tests of disks that have many. False if one
    /// could not be made.
    pub fn begin_segments(&mut self, now: Duration, of_small: bool) -> bool {
        self.clock.set(now);
        let kind = if of_small { SegmentKind::Small } else { SegmentKind::Bulk };
        self.disks.open_mut().values_mut().all(|store| store.roll(kind).is_ok())
    }

    /// Ends the process in order: every disk that serves writes its checkpoint.
    pub fn shut_down(mut self, now: Duration) {
        self.clock.set(now);
        for store in self.disks.open_mut().values_mut() {
            // Without one the next start scans.
            let _: Result<(), ShardError> = store.checkpoint();
        }
    }

    /// The heartbeat that is due. `dropped` is the last answer of [`SteppedDatanode::obey`].
    #[must_use]
    pub fn heartbeat(&self, cluster: ClusterId, generation: u64, dropped: &BTreeSet<VolumeKey>) -> HeartbeatRequest {
        heartbeat::message(cluster, self.disks.node(), generation, &self.statuses(), dropped)
    }

    /// Executes what the answer to a heartbeat asks for; the volumes that are dropped on every disk are to be reported by the
    /// next heartbeat, at once if there are new ones.
    pub fn obey(&mut self, now: Duration, response: &HeartbeatResponse) -> BTreeSet<VolumeKey> {
        self.clock.set(now);
        let ordered = heartbeat::ordered_drops(response).filter_map(|order| protocol::ordered_drop(order, &self.judge));
        let ordered: Vec<(VolumeKey, Request)> = ordered.collect();
        let mut done = BTreeSet::new();
        for (volume, request) in ordered {
            let mut batches = Batches::default();
            self.begin_everywhere(0, &request, &mut batches);
            let outcomes = self.commit(batches);
            done.extend(self.finish_everywhere(0, &request, &outcomes).ok().map(|()| volume));
        }
        done
    }

    /// Id that the volume manager gave it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.disks.node()
    }

    /// Status of every disk at the time of the last step; disks that were lost are out of service.
    #[must_use]
    pub fn statuses(&self) -> Vec<(DiskId, DiskStatus)> {
        let lost = self.disks.lost().iter().map(|disk| (*disk, DiskStatus::lost()));
        lost.chain(self.disks.open().iter().map(|(disk, store)| (*disk, store.reader().status()))).collect()
    }

    /// Status of every disk as registrations and heartbeats carry it.
    #[must_use]
    pub fn disk_reports(&self) -> Vec<Disk> {
        self.statuses().iter().map(heartbeat::report).collect()
    }

    /// Every shard that a disk holds, those of dropped volumes included until upkeep removed them. Nothing for a disk that is
    /// lost or not here.
    #[must_use]
    pub fn shards(&self, disk: DiskId) -> Vec<HeldShard> {
        let held = |(key, entry): (ShardKey, crate::store::index::Entry)| HeldShard {
            key,
            nonce: entry.nonce,
            length_bytes: entry.shard_length_bytes,
        };
        self.disks.open().get(&disk).map_or_else(Vec::new, |store| store.reader().all().into_iter().map(held).collect())
    }

    /// Whether a disk is out of service: lost at the start, or failed since.
    #[must_use]
    pub fn is_failed(&self, disk: DiskId) -> bool {
        self.disks.open().get(&disk).is_none_or(Store::is_failed)
    }

    /// Whether a disk failed for good, and that is written down: no later start serves it.
    #[must_use]
    pub fn is_failure_noted(&self, disk: DiskId) -> bool {
        self.disks.open().get(&disk).is_some_and(Store::is_failure_noted)
    }
}
