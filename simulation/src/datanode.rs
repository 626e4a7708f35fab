//! A datanode's process: one disk, and requests that came together in one group commit.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, DiskId, NodeId};
use holdfast_datanode::{DataRequest, DataResponse, DatanodeOptions, SteppedDatanode, StoreOptions};
use holdfast_proto::control::{RegisterRequest, Role as NodeRole};
use holdfast_proto::data::DeleteShardsRequest;
use holdfast_storage::SimulatedDisk;

use crate::clock::Times;
use crate::disk::directory;
use crate::packet::{Packet, Request, Response, address_of};
use crate::role::{Moment, Role, Timer, Wish};
use crate::sabotage::Sabotage;

/// How often the volume manager is told.
const BEAT: Duration = Duration::from_secs(1);
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often upkeep looks for something to do, and how often when there is more.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The directory of the disk and the one of the node, on one simulated disk.
const DISK: &str = "disk";
const HOME: &str = "home";
/// The only ticket: at most one call is under way.
const BEAT_TICKET: u64 = 1;

/// What a datanode keeps for all its lives.
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
    registered: bool,
    beats: bool,
    looks: bool,
    wishes: Vec<Wish>,
}

/// Small segments, so that they are sealed, compacted and recycled in a short run.
fn store_options(sabotage: Sabotage) -> StoreOptions {
    StoreOptions {
        small_segment_bytes_min: 256 << 10,
        small_segment_bytes_max: 1 << 20,
        bulk_segment_bytes: 8 << 20,
        limit_bytes: None,
        checkpoint_records: 100,
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
    ) -> Result<Self, String> {
        let options =
            DatanodeOptions { node: identity.node, secret: identity.secret.clone(), store: store_options(sabotage) };
        let (home, disks) = (directory(disk, HOME)?, vec![(identity.disk, directory(disk, DISK)?)]);
        let node = SteppedDatanode::open(options, disks, &home, times.monotonic).map_err(|error| error.to_string())?;
        Ok(Self {
            identity,
            node,
            requests: Vec::new(),
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

    fn answer(response: DataResponse) -> Result<Response, String> {
        Ok(match response {
            DataResponse::Put(response) => Response::Put(response),
            DataResponse::Read(response, body) => Response::Fetched(response, body.concat().into()),
            DataResponse::Delete(response) => Response::Deleted(response),
            DataResponse::SetFloor(response) => Response::FloorSet(response),
            DataResponse::List(response) => Response::Listed(response),
            DataResponse::Reserve(response) => Response::Reserved(response),
            DataResponse::Refused(refusal) => return Err(format!("refused: {refusal:?}")),
            other => return Err(format!("not asked for here: {other:?}")),
        })
    }

    fn look(&mut self, moment: &mut Moment<'_>) {
        let idle = self.requests.is_empty();
        let more = self.node.maintain(moment.times.monotonic, idle);
        let after = if more { LOOK_AGAIN } else { LOOK };
        self.wishes.push(Wish::Arm { timer: Timer::Look, after });
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
        _ => None,
    }
}

fn deletion_of(request: &DataRequest) -> Option<DeleteShardsRequest> {
    if let DataRequest::Delete(request) = request { Some(request.clone()) } else { None }
}

impl Role for DatanodeRole {
    fn packet(&mut self, times: Times, _: NodeId, packet: Packet) {
        match packet {
            Packet::Call(call, request) => self.requests.extend(request_of(*request).map(|request| (call, request))),
            Packet::Answer(_, answer) => match *answer {
                Ok(Response::Registered(_)) => self.registered = true,
                Ok(Response::Heartbeat(response)) => drop(self.node.obey(times.monotonic, &response)),
                Ok(_) | Err(_) => {}
            },
            Packet::Raft(..) => {}
        }
    }

    fn timer(&mut self, _: Times, timer: Timer) {
        match timer {
            Timer::Beat => self.beats = true,
            Timer::Look => self.looks = true,
            Timer::Tick | Timer::Synced | Timer::Job | Timer::Sleep(_) => {}
        }
    }

    fn drive(&mut self, mut moment: Moment<'_>) -> Vec<Wish> {
        let _ = moment.disk.take_elapsed_ns();
        let waiting = std::mem::take(&mut self.requests);
        let (calls, requests): (Vec<u64>, Vec<DataRequest>) = waiting.into_iter().unzip();
        let deletions: Vec<Option<DeleteShardsRequest>> = requests.iter().map(deletion_of).collect();
        deletions.iter().flatten().for_each(|deletion| moment.truth.lock().delete(deletion));
        let responses = self.node.handle_writes(moment.times.monotonic, requests);
        for (deletion, response) in deletions.iter().zip(&responses) {
            if let (Some(deletion), DataResponse::Delete(response)) = (deletion, response) {
                moment.truth.lock().chunks.deleted(deletion, response);
            }
        }
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
        std::mem::take(&mut self.wishes)
    }

    fn shards(&self) -> Option<BTreeSet<u64>> {
        let disk = self.identity.disk;
        let shards = || self.node.shards(disk).into_iter().map(|shard| shard.key.chunk.chunk.0).collect();
        (!self.node.is_failed(disk)).then(shards)
    }
}
