//! A datanode's process: one disk, and requests that came together in one group commit.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_common::proof::{Claim, ClusterSecret, ShardName};
use holdfast_common::{ChunkId, ClusterId, DiskId, Incarnation, NodeId, VolumeId};
use holdfast_datanode::{ChunkKey, DataRequest, DataResponse, DatanodeOptions, SteppedDatanode, StoreOptions};
use holdfast_proto::control::{HeartbeatResponse, RegisterRequest, Role as NodeRole};
use holdfast_proto::data::{Proof, ReadShardsRequest};
use holdfast_storage::SimulatedDisk;
use holdfast_transport::RpcError;

use crate::clock::Times;
use crate::disk::directory;
use crate::machines::STRANGER_VOLUMES;
use crate::packet::{Answer, Packet, Request, Response, address_of};
use crate::role::{Moment, Role, Timer, Wish};
use crate::sabotage::Sabotage;
use crate::truth::shards::{name_of, volume_key};
use crate::truth::{Stage, Truth};

/// Interval of heartbeats.
const BEAT: Duration = Duration::from_secs(1);
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval of looks for upkeep; shorter while there is more to do.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Once in so many looks the machine dies in one of the next operations of its disk: most are upkeep's.
const UPKEEP_DEATHS_ONE_IN: u64 = 40;
const UPKEEP_OPERATIONS: u64 = 6;
/// The directory of the disk and the one of the node, on one simulated disk.
const DISK: &str = "disk";
const HOME: &str = "home";
/// The only ticket: at most one call is under way.
const BEAT_TICKET: u64 = 1;

/// Properties of a datanode that outlive its process.
#[derive(Clone)]
pub(crate) struct DatanodeIdentity {
    pub(crate) cluster: ClusterId,
    pub(crate) secret: ClusterSecret,
    pub(crate) node: NodeId,
    pub(crate) disk: DiskId,
    pub(crate) generation: u64,
    pub(crate) volmgr: NodeId,
}

pub(crate) struct DatanodeRole {
    identity: DatanodeIdentity,
    node: SteppedDatanode,
    requests: Vec<(u64, DataRequest)>,
    /// Answers to heartbeats, which may order something.
    orders: Vec<HeartbeatResponse>,
    registered: bool,
    beats: bool,
    looks: bool,
    wishes: Vec<Wish>,
}

/// Records after which a checkpoint of the index is due, by the life. Few: many checkpoints in a short life. More: segments are used
/// again between two. Most: there is none, and the next start scans.
const CHECKPOINT_RECORDS: [u64; 3] = [10, 400, 10_000];

/// Small segments, so that they are sealed, compacted and recycled in a short run.
fn store_options(sabotage: Sabotage, seed: u64) -> StoreOptions {
    let checkpoint_records = CHECKPOINT_RECORDS[usize::try_from(seed % 3).unwrap_or(0)];
    StoreOptions {
        small_segment_bytes_min: 144 << 10,
        small_segment_bytes_max: 144 << 10,
        bulk_segment_bytes: 8 << 20,
        limit_bytes: None,
        checkpoint_records,
        sabotage: sabotage.datanode(),
    }
}

/// Makes the two directories and formats the disk.
pub(crate) fn format(disk: &SimulatedDisk) -> std::io::Result<()> {
    let root = disk.root();
    root.make_directory(DISK)?;
    root.make_directory(HOME)?;
    root.sync_names()?;
    SteppedDatanode::format(&*root.directory(DISK)?)
}

impl DatanodeRole {
    pub(crate) fn start(
        identity: DatanodeIdentity,
        sabotage: Sabotage,
        disk: &SimulatedDisk,
        times: Times,
        seed: u64,
        truth: &mut Truth,
    ) -> Result<Self, String> {
        let store = store_options(sabotage, seed);
        let options = DatanodeOptions { node: identity.node, secret: identity.secret.clone(), store };
        let (home, disks) = (directory(disk, HOME)?, vec![(identity.disk, directory(disk, DISK)?)]);
        let mut node =
            SteppedDatanode::open(options, disks, &home, times.monotonic).map_err(|error| error.to_string())?;
        audit(&mut node, &identity, times, truth).unwrap_or_else(|wrong| panic!("{} starts: {wrong}", identity.node));
        Ok(Self {
            identity,
            node,
            requests: Vec::new(),
            orders: Vec::new(),
            registered: false,
            beats: true,
            looks: true,
            wishes: Vec::new(),
        })
    }

    fn beat(&mut self) {
        let identity = &self.identity;
        let request = if self.registered {
            Request::Heartbeat(self.node.heartbeat(identity.cluster, identity.generation, &BTreeSet::new()))
        } else {
            Request::Register(RegisterRequest {
                cluster: identity.cluster.to_string(),
                node: identity.node.0,
                role: NodeRole::Datanode.into(),
                address: address_of(identity.node).to_string(),
                generation: identity.generation,
                disks: self.node.disk_reports(),
                format_nonce: identity.node.0,
            })
        };
        let to = identity.volmgr;
        self.wishes.push(Wish::Call { ticket: BEAT_TICKET, to, request: Box::new(request), timeout: BEAT_TIMEOUT });
        self.wishes.push(Wish::Arm { timer: Timer::Beat, after: BEAT });
    }

    fn answer(response: DataResponse) -> Answer {
        Ok(match response {
            DataResponse::Put(response) => Response::Put(response),
            DataResponse::Read(response, body) => Response::Fetched(response, body.concat().into()),
            DataResponse::Delete(response) => Response::Deleted(response),
            DataResponse::SetFloor(response) => Response::FloorSet(response),
            DataResponse::List(response) => Response::Listed(response),
            DataResponse::Reserve(response) => Response::Reserved(response),
            DataResponse::DropVolume(_) => Response::Dropped,
            DataResponse::Refused(refusal) => return Err(RpcError::Refused(refusal).into()),
            _ => return Err(RpcError::Malformed("not asked for here").into()),
        })
    }

    /// Executes requests, and has the answers judged.
    fn execute(&mut self, requests: Vec<DataRequest>, moment: &Moment<'_>) -> Vec<DataResponse> {
        let (node, secret) = (self.identity.node, &self.identity.secret);
        let judged: Vec<(DataRequest, bool)> =
            requests.iter().map(|request| (request.clone(), is_proven(secret, request))).collect();
        moment.truth.lock().executing(node, &judged);
        let responses = self.node.handle_writes(moment.times.monotonic, requests);
        // Space is reserved before puts are taken, so that what is free for everybody was there before them.
        let available_bytes = || self.node.statuses().first().map_or(0, |(_, status)| status.available_bytes);
        let available_bytes = (!moment.disk.is_dead()).then(available_bytes);
        moment.truth.lock().executed(node, &judged, &responses, available_bytes);
        responses
    }

    fn look(&mut self, moment: &mut Moment<'_>) {
        let works = moment.truth.lock().stage == Stage::Work;
        // One that died in this turn stays dead.
        if works && moment.random.one_in(UPKEEP_DEATHS_ONE_IN) && !moment.disk.is_dead() {
            moment.disk.die_after(moment.random.below(UPKEEP_OPERATIONS));
        }
        let idle = self.requests.is_empty();
        let more = self.node.maintain(moment.times.monotonic, idle);
        let after = if more { LOOK_AGAIN } else { LOOK };
        self.wishes.push(Wish::Arm { timer: Timer::Look, after });
    }
}

/// Has everything read that a disk holds at a start, and compared.
fn audit(
    node: &mut SteppedDatanode,
    identity: &DatanodeIdentity,
    times: Times,
    truth: &mut Truth,
) -> Result<(), String> {
    let held = node.shards(identity.disk);
    for range in truth.shards.started(identity.node, identity.disk, &held)? {
        let request = DataRequest::Read(ReadShardsRequest { ranges: vec![range] });
        let response = node.handle(times.monotonic, request.clone());
        truth.shards.executed(identity.node, &[(request, true)], &[response], u64::MAX)?;
    }
    Ok(())
}

/// Whether a request needs no proof, or has a right one.
fn is_proven(secret: &ClusterSecret, request: &DataRequest) -> bool {
    let holds = |volume: u64, incarnation: u64, claim: Claim<'_>, proof: &Option<Proof>| {
        let mac = proof.as_ref().map_or(&[][..], |proof| &proof.mac[..]);
        secret.verify(VolumeId(volume), Incarnation(incarnation), claim, mac)
    };
    match request {
        DataRequest::Delete(delete) => {
            let chunks: Vec<ChunkId> = delete.chunks.iter().copied().map(ChunkId).collect();
            let shards: Vec<ShardName> = delete.shards.iter().map(name_of).collect();
            let claim = match &shards[..] {
                [] => Claim::DeleteChunks(&chunks),
                shards => Claim::DeleteShards(&chunks, shards),
            };
            holds(delete.volume, delete.incarnation, claim, &delete.proof)
        }
        DataRequest::SetFloor(floor) => {
            holds(floor.volume, floor.incarnation, Claim::SetFloor(ChunkId(floor.floor)), &floor.proof)
        }
        DataRequest::DropVolume(drop) => holds(drop.volume, drop.incarnation, Claim::DropVolume, &drop.proof),
        _ => true,
    }
}

/// The request of the shard protocol that travelled.
fn request_of(request: Request) -> Option<DataRequest> {
    match request {
        Request::Put(request, payload) => Some(DataRequest::Put(request, payload)),
        Request::Fetch(request) => Some(DataRequest::Read(request)),
        Request::Reserve(request) => Some(DataRequest::Reserve(request)),
        Request::Delete(request) => Some(DataRequest::Delete(request)),
        Request::SetFloor(request) => Some(DataRequest::SetFloor(request)),
        Request::List(request) => Some(DataRequest::List(request)),
        Request::DropVolume(request) => Some(DataRequest::DropVolume(request)),
        _ => None,
    }
}

impl Role for DatanodeRole {
    fn packet(&mut self, _: Times, _: NodeId, packet: Packet) {
        match packet {
            Packet::Call(call, request) => self.requests.extend(request_of(*request).map(|request| (call, request))),
            Packet::Answer(_, answer) => match *answer {
                Ok(Response::Registered(_)) => self.registered = true,
                Ok(Response::Heartbeat(response)) => self.orders.push(response),
                Ok(_) | Err(_) => {}
            },
            Packet::Raft(..) => {}
        }
    }

    fn timer(&mut self, _: Times, timer: Timer) {
        match timer {
            Timer::Beat => self.beats = true,
            Timer::Look => self.looks = true,
            Timer::Tick | Timer::Synced | Timer::Job | Timer::Creates | Timer::Sleep(_) => {}
        }
    }

    fn drive(&mut self, mut moment: Moment<'_>) -> Vec<Wish> {
        let _ = moment.disk.take_elapsed_ns();
        for order in std::mem::take(&mut self.orders).iter().filter(|order| !order.drops.is_empty()) {
            let volumes = order.drops.iter().map(|drop| volume_key(drop.volume, drop.incarnation));
            moment.truth.lock().shards.may_drop(self.identity.node, volumes);
            let done = self.node.obey(moment.times.monotonic, order);
            if !moment.disk.is_dead() {
                moment.truth.lock().shards.dropped(self.identity.node, done);
            }
        }
        let waiting = std::mem::take(&mut self.requests);
        let (calls, requests): (Vec<u64>, Vec<DataRequest>) = waiting.into_iter().unzip();
        let responses = self.execute(requests, &moment);
        let after_ns = moment.disk.take_elapsed_ns();
        for (call, response) in calls.into_iter().zip(responses) {
            self.wishes.push(Wish::Reply { call, answer: Box::new(Self::answer(response)), after_ns });
        }
        if std::mem::take(&mut self.looks) {
            self.look(&mut moment);
        }
        if std::mem::take(&mut self.beats) {
            self.beat();
        }
        let Self { node, identity, .. } = self;
        let has_failed =
            moment.disk.is_dead() || moment.disk.counts().failed_changes() > moment.before.failed_changes();
        assert!(
            has_failed || !node.is_failed(identity.disk),
            "{} takes its disk for failed, and it is not",
            identity.node
        );
        if self.node.is_failure_noted(self.identity.disk) && !moment.disk.is_dead() {
            moment.truth.lock().shards.failed(self.identity.node);
        }
        std::mem::take(&mut self.wishes)
    }

    fn shards(&self) -> Option<BTreeSet<u64>> {
        let disk = self.identity.disk;
        let held = || self.node.shards(disk).into_iter().map(|shard| shard.key.chunk);
        let of_volume = |chunk: &ChunkKey| chunk.volume.volume.0 < STRANGER_VOLUMES;
        let shards = || held().filter(of_volume).map(|chunk| chunk.chunk.0).collect();
        (!self.node.is_failed(disk)).then(shards)
    }
}
