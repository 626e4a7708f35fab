//! Claims about the stepped datanode: it answers as the served one does, loses nothing it answered, and one run is like the
//! other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::proof::{self, Claim, ClusterSecret};
use holdfast_common::{ChunkId, ClusterId, DiskId, Incarnation, NodeId, Nonce, VolumeId};
use holdfast_proto::control::{HeartbeatResponse, VolumeDrop};
use holdfast_proto::data::{
    DeleteShardsRequest, DiskReservation, ListShardsRequest, ProbeRequest, Proof, PutShardRequest, ReadShardsRequest,
    ReserveSpaceRequest, SetFloorRequest, ShardName, ShardRange, Status,
};
use holdfast_storage::{Directory, SimulatedDisk, simulated::Fault};

use crate::store::tests::{SMALL, VOLUME, key, options, payload, put};
use crate::store::{Sabotage, StoreOptions};
use crate::{DataRequest, DataResponse, DatanodeOptions, HeldShard, SteppedDatanode};

const SECRET: ClusterSecret = ClusterSecret([0x5e; 32]);
const NODE: NodeId = NodeId(5);
const DISKS: [DiskId; 2] = [DiskId(11), DiskId(12)];
const NOW: Duration = Duration::from_secs(5);

/// A node's machine: what is left of it when its process dies.
struct Machine {
    memory: SimulatedDisk,
    disks: [SimulatedDisk; 2],
    store: StoreOptions,
}

impl Machine {
    fn new(store: StoreOptions) -> Self {
        let disks = [SimulatedDisk::new(1), SimulatedDisk::new(2)];
        disks.iter().for_each(|disk| SteppedDatanode::format(&*disk.root()).unwrap());
        Self { memory: SimulatedDisk::new(3), disks, store }
    }

    fn start(&self) -> SteppedDatanode {
        let options = DatanodeOptions { node: NODE, secret: SECRET, store: self.store.clone() };
        let disks = DISKS.into_iter().zip(&self.disks).map(|(id, disk)| (id, disk.root()));
        SteppedDatanode::open(options, disks.collect(), &self.memory.root(), NOW).unwrap()
    }

    fn lose_power(&self) {
        self.disks.iter().chain([&self.memory]).for_each(SimulatedDisk::lose_unsynced);
    }
}

fn put_request(disk: DiskId, chunk: u64, nonce: u64) -> DataRequest {
    let put = put(chunk, nonce, SMALL);
    DataRequest::Put(PutShardRequest { disk: disk.0, header: Some(put.meta.to_wire()), session: 0 }, put.payload)
}

fn proof(claim: Claim<'_>) -> Option<Proof> {
    let mac = SECRET.prove(VOLUME.volume, VOLUME.incarnation, claim);
    Some(Proof { issuer: String::new(), mac: Bytes::copy_from_slice(&mac) })
}

fn delete_request(disk: DiskId, chunk: u64, proof: Option<Proof>) -> DataRequest {
    let (volume, incarnation) = (VOLUME.volume.0, VOLUME.incarnation.0);
    DataRequest::Delete(DeleteShardsRequest {
        disk: disk.0,
        volume,
        incarnation,
        chunks: vec![chunk],
        proof,
        shards: vec![],
    })
}

/// Deletes attempts at the shards that [`put`] makes.
fn delete_names(disk: DiskId, attempts: &[(u64, u64)], proof: Option<Proof>) -> DataRequest {
    let (volume, incarnation) = (VOLUME.volume.0, VOLUME.incarnation.0);
    let name = |(chunk, nonce): &(u64, u64)| ShardName { chunk: *chunk, shard: 1, nonce: *nonce };
    let shards = attempts.iter().map(name).collect();
    DataRequest::Delete(DeleteShardsRequest { disk: disk.0, volume, incarnation, chunks: vec![], proof, shards })
}

fn floor_request(floor: u64) -> DataRequest {
    let (volume, incarnation) = (VOLUME.volume.0, VOLUME.incarnation.0);
    DataRequest::SetFloor(SetFloorRequest { volume, incarnation, floor, proof: proof(Claim::SetFloor(ChunkId(floor))) })
}

fn read_request(disks: &[(DiskId, u64)]) -> DataRequest {
    let range = |(disk, chunk): &(DiskId, u64)| ShardRange {
        disk: disk.0,
        volume: VOLUME.volume.0,
        incarnation: VOLUME.incarnation.0,
        chunk: *chunk,
        nonce: 1,
        shard: 1,
        offset: 0,
        length_bytes: u32::try_from(SMALL).unwrap(),
    };
    DataRequest::Read(ReadShardsRequest { ranges: disks.iter().map(range).collect() })
}

fn status(response: &DataResponse) -> Status {
    let number = match response {
        DataResponse::Put(response) => response.status,
        DataResponse::Delete(response) => response.status,
        DataResponse::SetFloor(response) => response.status,
        DataResponse::DropVolume(response) => response.status,
        DataResponse::List(response) => response.status,
        other => panic!("{other:?} has no status of its own"),
    };
    Status::try_from(number).unwrap()
}

fn read(node: &mut SteppedDatanode, disks: &[(DiskId, u64)]) -> (Vec<Status>, Vec<Bytes>) {
    let DataResponse::Read(response, body) = node.handle(NOW, read_request(disks)) else { panic!("no read") };
    (response.results.iter().map(|result| Status::try_from(result.status).unwrap()).collect(), body)
}

#[test]
fn r30_a_delete_by_name_needs_a_proof_of_its_names_and_says_what_it_left() {
    let mut node = Machine::new(options()).start();
    let disk = DISKS[0];
    for chunk in 1..=2 {
        assert_eq!(status(&node.handle(NOW, put_request(disk, chunk, 1))), Status::Ok);
    }
    let names = [(1, 1), (2, 2)];
    let names = names.map(|(chunk, nonce)| proof::ShardName { chunk: ChunkId(chunk), shard: 1, nonce: Nonce(nonce) });
    for wrong in [None, proof(Claim::DeleteChunks(&[])), proof(Claim::DeleteShards(&[], &names[..1]))] {
        assert_eq!(status(&node.handle(NOW, delete_names(disk, &[(1, 1), (2, 2)], wrong))), Status::Forbidden);
    }
    let honest = delete_names(disk, &[(1, 1), (2, 2)], proof(Claim::DeleteShards(&[], &names)));
    let DataResponse::Delete(done) = node.handle(NOW, honest) else { panic!("no delete") };
    assert_eq!((done.status(), done.deleted_count, done.kept_count), (Status::Ok, 1, 1));
    assert_eq!(read(&mut node, &[(disk, 1), (disk, 2)]).0, [Status::NotFound, Status::Ok]);
}

#[test]
fn every_request_answers_as_the_served_node_does() {
    let mut node = Machine::new(options()).start();
    let [first, second] = DISKS;
    assert_eq!(status(&node.handle(NOW, put_request(DiskId(99), 1, 1))), Status::WrongDisk);
    let DataResponse::Put(done) = node.handle(NOW, put_request(first, 1, 1)) else { panic!("no put") };
    assert!(done.status == i32::from(Status::Ok) && done.available_bytes > 0);
    assert_eq!(status(&node.handle(NOW, put_request(first, 1, 1))), Status::Ok, "R1: twice is fine");
    assert_eq!(status(&node.handle(NOW, put_request(first, 1, 2))), Status::Conflict);
    let (statuses, body) = read(&mut node, &[(first, 1), (second, 1), (DiskId(99), 1)]);
    assert_eq!(statuses, [Status::Ok, Status::NotFound, Status::WrongDisk]);
    assert_eq!(body, [payload(1, 1, SMALL)]);
    let list = ListShardsRequest { disk: first.0, volume: 3, incarnation: 1, after_chunk: 0, max_count: 9 };
    let DataResponse::List(listed) = node.handle(NOW, DataRequest::List(list)) else { panic!("no list") };
    assert!(listed.end && listed.shards.len() == 1);
    let held = HeldShard { key: key(1), nonce: Nonce(1), length_bytes: u32::try_from(SMALL).unwrap() };
    assert_eq!((node.shards(first), node.shards(second)), (vec![held], vec![]));
    assert_eq!(status(&node.handle(NOW, delete_request(first, 1, proof(Claim::DropVolume)))), Status::Forbidden);
    let honest = proof(Claim::DeleteChunks(&[ChunkId(1)]));
    assert_eq!(status(&node.handle(NOW, delete_request(first, 1, honest))), Status::Ok);
    assert_eq!(read(&mut node, &[(first, 1)]).0, [Status::NotFound]);
    assert_eq!(status(&node.handle(NOW, floor_request(50))), Status::Ok);
    assert_eq!(status(&node.handle(NOW, put_request(second, 49, 1))), Status::BelowFloor);
    let DataResponse::Probe(probe) = node.handle(NOW, DataRequest::Probe(ProbeRequest {})) else { panic!("no probe") };
    assert_eq!((probe.node, probe.disks.len()), (NODE.0, 2));
    let beat = node.heartbeat(ClusterId([1; 16]), 4, &BTreeSet::new());
    assert!(beat.generation == 4 && beat.disks.iter().all(|disk| disk.healthy));
}

#[test]
fn what_was_answered_outlives_the_process_and_the_power() {
    let machine = Machine::new(options());
    let mut node = machine.start();
    let requests = (1..=20).map(|chunk| put_request(DISKS[usize::from(chunk % 2 == 0)], chunk, 1)).collect();
    assert!(node.handle_writes(NOW, requests).iter().all(|answer| status(answer) == Status::Ok));
    while node.maintain(NOW, true) {}
    drop(node);
    machine.lose_power();
    let mut node = machine.start();
    for chunk in 1..=20 {
        let (statuses, body) = read(&mut node, &[(DISKS[usize::from(chunk % 2 == 0)], chunk)]);
        assert_eq!((statuses, body), (vec![Status::Ok], vec![payload(chunk, 1, SMALL)]));
    }
    node.shut_down(NOW);
    assert_eq!(machine.start().shards(DISKS[0]).len(), 10);
}

#[test]
fn a_batch_of_writes_shares_its_sync_and_keeps_its_order() {
    let operations = [true, false].map(|together| {
        let machine = Machine::new(options());
        let mut node = machine.start();
        node.handle(NOW, put_request(DISKS[0], 1, 1));
        let before = machine.disks[0].operations();
        let requests: Vec<_> = (2..=9).map(|chunk| put_request(DISKS[0], chunk, 1)).collect();
        if together {
            node.handle_writes(NOW, requests);
        } else {
            requests.into_iter().for_each(|request| drop(node.handle(NOW, request)));
        }
        assert_eq!(node.shards(DISKS[0]).len(), 9);
        machine.disks[0].operations() - before
    });
    assert_eq!(operations, [2, 16], "a write and a sync for each commit");
    let mut node = Machine::new(options()).start();
    let requests = vec![put_request(DISKS[0], 4, 1), floor_request(5), put_request(DISKS[0], 4, 1)];
    let answers: Vec<Status> = node.handle_writes(NOW, requests).iter().map(status).collect();
    assert_eq!(answers, [Status::Ok, Status::Ok, Status::BelowFloor]);
}

#[test]
fn a_disk_that_was_lost_learns_the_floor_and_the_drop_when_it_returns() {
    let machine = Machine::new(options());
    machine.disks[1].fail_all(Fault::Open(libc::EIO));
    let mut node = machine.start();
    assert!(node.is_failed(DISKS[1]) && !node.is_failed(DISKS[0]));
    assert_eq!(read(&mut node, &[(DISKS[1], 1)]).0, [Status::DiskFailed]);
    assert_eq!(status(&node.handle(NOW, floor_request(50))), Status::Ok);
    machine.disks[1].fail_no_more();
    machine.lose_power();
    let mut node = machine.start();
    assert_eq!(status(&node.handle(NOW, put_request(DISKS[1], 49, 1))), Status::BelowFloor);
    assert_eq!(status(&node.handle(NOW, put_request(DISKS[1], 60, 1))), Status::Ok);
    let mac = SECRET.prove(VolumeId(3), Incarnation(1), Claim::DropVolume);
    let order = |mac: &[u8]| HeartbeatResponse {
        drops: vec![VolumeDrop { volume: 3, incarnation: 1, mac: Bytes::copy_from_slice(mac) }],
        ..HeartbeatResponse::default()
    };
    assert!(node.obey(NOW, &order(&[1; 32])).is_empty(), "it proves nothing");
    assert_eq!(node.obey(NOW, &order(&mac)), BTreeSet::from([VOLUME]));
    while node.maintain(NOW, true) {}
    assert_eq!((node.shards(DISKS[1]), node.disk_reports()[1].used_bytes), (vec![], 0));
}

#[test]
fn a_failed_sync_takes_the_disk_out_of_the_heartbeat_and_of_later_starts() {
    let machine = Machine::new(options());
    let mut node = machine.start();
    machine.disks[0].fail_next(Fault::Sync);
    assert_eq!(status(&node.handle(NOW, put_request(DISKS[0], 1, 1))), Status::DiskFailed);
    let healthy: Vec<bool> = node.disk_reports().iter().map(|disk| disk.healthy).collect();
    assert_eq!(healthy, [false, true]);
    machine.lose_power();
    assert!(machine.start().is_failed(DISKS[0]));
}

#[test]
fn a_reservation_ends_when_its_time_has_come() {
    let machine = Machine::new(StoreOptions { limit_bytes: Some(1 << 20), ..options() });
    let mut node = machine.start();
    let disks = vec![DiskReservation { disk: DISKS[0].0, wanted_bytes: 2 << 20 }];
    let reserve = ReserveSpaceRequest { session: 9, disks, lease_ms: 1000, volume: 3 };
    let DataResponse::Reserve(reserved) = node.handle(NOW, DataRequest::Reserve(reserve)) else { panic!("no grant") };
    assert!(reserved.grants[0].granted_bytes > 0);
    let almost = NOW + Duration::from_millis(999);
    assert_eq!(status(&node.handle(almost, put_request(DISKS[0], 1, 1))), Status::NoSpace);
    assert_eq!(status(&node.handle(NOW + Duration::from_secs(1), put_request(DISKS[0], 1, 1))), Status::Ok);
}

#[test]
fn two_runs_of_the_same_steps_are_the_same() {
    let run = || {
        let machine = Machine::new(StoreOptions { sabotage: Sabotage::None, ..options() });
        let mut node = machine.start();
        let mut said = Vec::new();
        for chunk in 1..=60 {
            said.push(format!("{:?}", node.handle(NOW, put_request(DISKS[0], chunk, 1))));
            if chunk % 3 == 0 {
                let chunks = [ChunkId(chunk)];
                let request = delete_request(DISKS[0], chunk, proof(Claim::DeleteChunks(&chunks)));
                said.push(format!("{:?}", node.handle(NOW, request)));
            }
            node.maintain(NOW, chunk % 7 == 0);
        }
        let names: Vec<String> = Directory::list(&machine.disks[0]).unwrap();
        (said, node.shards(DISKS[0]), machine.disks[0].operations(), names)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_node_without_a_disk_that_opens_does_not_start() {
    let machine = Machine::new(options());
    machine.disks.iter().for_each(|disk| disk.lose_file("volumes"));
    let options = DatanodeOptions { node: NODE, secret: SECRET, store: options() };
    let disks = DISKS.into_iter().zip(&machine.disks).map(|(id, disk)| (id, disk.root())).collect();
    let memory: Arc<dyn Directory> = machine.memory.root();
    assert!(SteppedDatanode::open(options, disks, &memory, NOW).is_err());
}

#[test]
fn r30_a_delete_without_a_proof_is_obeyed() {
    let deleted = [Sabotage::None, Sabotage::ProofsIgnored].map(|sabotage| {
        let mut node = Machine::new(StoreOptions { sabotage, ..options() }).start();
        node.handle(NOW, put_request(DISKS[0], 1, 1));
        let answer = status(&node.handle(NOW, delete_request(DISKS[0], 1, None)));
        (answer, node.shards(DISKS[0]).len())
    });
    assert_eq!(deleted, [(Status::Forbidden, 1), (Status::Ok, 0)]);
}
