//! Each claim of the model, shown by an answer that contradicts it.

use holdfast_proto::data::{DeleteShardsResponse, PutShardResponse, SetFloorRequest, SetFloorResponse, ShardName};

use super::*;

const NODE: NodeId = NodeId(5);
const VOLUME: u64 = 2;

fn header(chunk: u64, nonce: u64) -> ShardHeader {
    ShardHeader {
        volume: VOLUME,
        incarnation: 1,
        chunk,
        nonce,
        shard: 1,
        shard_length_bytes: 4096,
        ..Default::default()
    }
}

fn payload(nonce: u64) -> Bytes {
    vec![u8::try_from(nonce).expect("a small number"); 4096].into()
}

/// The answers of a datanode to one request.
fn answers(shards: &mut Shards, request: DataRequest, proven: bool, response: DataResponse) -> Result<(), String> {
    let requests = [(request, proven)];
    shards.begin(NODE, &requests);
    shards.executed(NODE, &requests, &[response], u64::MAX >> 1)
}

fn put(shards: &mut Shards, chunk: u64, nonce: u64, status: Status) -> Result<(), String> {
    let request = PutShardRequest { disk: 1, header: Some(header(chunk, nonce)), session: 1 };
    let response = PutShardResponse { status: status.into(), ..Default::default() };
    answers(shards, DataRequest::Put(request, payload(nonce)), true, DataResponse::Put(response))
}

fn delete(shards: &mut Shards, chunk: u64, nonce: u64, proven: bool, status: Status) -> Result<(), String> {
    let names = vec![ShardName { chunk, shard: 1, nonce }];
    let request = DeleteShardsRequest { volume: VOLUME, incarnation: 1, shards: names, ..Default::default() };
    let response = DeleteShardsResponse { status: status.into(), ..Default::default() };
    answers(shards, DataRequest::Delete(request), proven, DataResponse::Delete(response))
}

fn read(shards: &mut Shards, chunk: u64, nonce: u64, answer: Result<Bytes, Status>) -> Result<(), String> {
    let range = ShardRange {
        volume: VOLUME,
        incarnation: 1,
        chunk,
        nonce,
        shard: 1,
        length_bytes: 4096,
        ..ShardRange::default()
    };
    let status = answer.as_ref().err().copied().unwrap_or(Status::Ok);
    let response = ReadShardsResponse { results: vec![ShardData { status: status.into(), ..ShardData::default() }] };
    let request = DataRequest::Read(ReadShardsRequest { ranges: vec![range] });
    answers(shards, request, true, DataResponse::Read(response, answer.into_iter().collect()))
}

fn starts(shards: &mut Shards, held: &[(u64, u64)]) -> Result<usize, String> {
    let shard = |(chunk, nonce): &(u64, u64)| HeldShard {
        key: shard_key(volume_key(VOLUME, 1), *chunk, 1),
        nonce: Nonce(*nonce),
        length_bytes: 4096,
    };
    let held: Vec<HeldShard> = held.iter().map(shard).collect();
    shards.started(NODE, DiskId(1), &held).map(|ranges| ranges.len())
}

#[test]
fn what_was_answered_as_durable_must_be_there_whatever_the_disk_has_besides() {
    let mut shards = Shards::default();
    put(&mut shards, 1, 7, Status::Ok).expect("a first put");
    assert_eq!(read(&mut shards, 1, 7, Ok(payload(7))), Ok(()));
    assert!(read(&mut shards, 1, 7, Ok(payload(8))).is_err(), "other bytes");
    assert!(read(&mut shards, 1, 7, Err(Status::NotFound)).is_err());
    assert!(read(&mut shards, 1, 7, Err(Status::Corrupt)).is_err(), "nothing rots here");
    assert_eq!(read(&mut shards, 1, 7, Err(Status::DiskFailed)), Ok(()));
    assert_eq!(starts(&mut shards, &[(1, 7)]), Ok(1));
    assert!(starts(&mut shards, &[]).is_err());
}

#[test]
fn what_was_not_answered_may_be_there_or_not() {
    let mut shards = Shards::default();
    put(&mut shards, 1, 7, Status::Busy).expect("it may be refused");
    assert_eq!(starts(&mut shards, &[]), Ok(0));
    assert_eq!(starts(&mut shards, &[(1, 7)]), Ok(1));
    assert!(starts(&mut shards, &[(1, 8)]).is_err(), "an attempt that nobody made");
}

#[test]
fn another_attempt_is_neither_taken_nor_served_nor_deleted() {
    let mut shards = Shards::default();
    put(&mut shards, 1, 7, Status::Ok).expect("a first put");
    assert_eq!(put(&mut shards, 1, 7, Status::Ok), Ok(()), "the same again");
    assert_eq!(put(&mut shards, 1, 8, Status::Conflict), Ok(()));
    assert!(read(&mut shards, 1, 8, Ok(payload(7))).is_err());
    delete(&mut shards, 1, 8, true, Status::Ok).expect("it names nothing");
    assert!(read(&mut shards, 1, 7, Err(Status::NotFound)).is_err());
    assert!(put(&mut shards, 1, 8, Status::Ok).is_err());
    assert!(put(&mut one_held(), 1, 7, Status::Conflict).is_err(), "it is no longer what was put");
}

fn one_held() -> Shards {
    let mut shards = Shards::default();
    put(&mut shards, 1, 7, Status::Ok).expect("a first put");
    shards
}

#[test]
fn what_was_deleted_never_returns_and_only_a_proof_deletes() {
    let mut shards = one_held();
    assert!(delete(&mut shards, 1, 7, false, Status::Ok).is_err());
    assert_eq!(delete(&mut shards, 1, 7, false, Status::Forbidden), Ok(()));
    assert!(starts(&mut shards, &[]).is_err());
    delete(&mut shards, 1, 7, true, Status::Busy).expect("it may be refused");
    assert_eq!((starts(&mut shards, &[]), starts(&mut shards, &[(1, 7)])), (Ok(0), Ok(1)), "nobody knows");
    delete(&mut shards, 1, 7, true, Status::Ok).expect("a delete");
    assert!(starts(&mut shards, &[(1, 7)]).is_err());
}

#[test]
fn a_put_below_the_floor_is_refused() {
    let mut shards = Shards::default();
    let request = SetFloorRequest { volume: VOLUME, incarnation: 1, floor: 5, proof: None };
    let response = DataResponse::SetFloor(SetFloorResponse::default());
    answers(&mut shards, DataRequest::SetFloor(request), true, response).expect("a floor");
    assert!(put(&mut shards, 4, 1, Status::Ok).is_err());
    assert_eq!(put(&mut shards, 5, 1, Status::Ok), Ok(()));
}

#[test]
fn a_disk_that_rots_may_lose_but_not_alter() {
    let mut shards = one_held();
    shards.rotting = Some(NODE);
    assert_eq!(read(&mut shards, 1, 7, Err(Status::NotFound)), Ok(()));
    assert_eq!(read(&mut shards, 1, 7, Err(Status::Corrupt)), Ok(()));
    assert!(read(&mut shards, 1, 7, Ok(payload(8))).is_err());
}

#[test]
fn a_disk_that_failed_stays_out_of_service() {
    let mut shards = one_held();
    shards.failed(NODE);
    assert!(starts(&mut shards, &[(1, 7)]).is_err());
}
