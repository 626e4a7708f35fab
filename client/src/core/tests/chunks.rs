//! How chunks reach their members: burnt ids, members that fail, are full, busy or gone.

use super::super::effects::{Call, PutChunk};
use super::super::*;
use super::bench::{BOTH, Bench, commit_of, mutate_says};
use bytes::Bytes;
use holdfast_common::limits::CHUNK_BYTES_MAX;
use holdfast_common::{ChunkId, DiskId};
use holdfast_proto::data::Status;
use holdfast_proto::meta::Code;
use holdfast_transport::RpcError;
use std::time::Duration;

const MEMBERS_PAUSE: Duration = Duration::from_millis(100);

fn disks(put: &PutChunk) -> Vec<DiskId> {
    put.members.iter().map(|member| member.disk).collect()
}

/// One chunk of a whole stripe on its way.
fn putting(bench: &mut Bench) -> (FileHandle, OpId, PutChunk) {
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 200 << 10);
    let fsync = bench.fsync(handle);
    let put = bench.take_put();
    (handle, fsync, put)
}

#[test]
fn a_failed_shard_burns_the_chunk_which_goes_whole_to_others_under_another_id() {
    let mut bench = Bench::mounted();
    let (_, fsync, first) = putting(&mut bench);
    bench.put_ends(first.write, ChunkId(first.record.chunk), 0, Err(RpcError::Deadline.into()));
    assert!(bench.puts.is_empty(), "the attempt ends when every member has answered or is past its deadline");
    bench.put_says(&first, 1, Status::Ok);
    bench.put_says(&first, 2, Status::Ok);
    let second = bench.take_put();
    assert!(first.record.chunk != second.record.chunk && first.record.nonce != second.record.nonce);
    assert_eq!(first.pieces, second.pieces);
    assert!(!disks(&second).contains(&disks(&first)[0]), "{:?} {:?}", disks(&first), disks(&second));
    // Late and twice: what comes of the first attempt now is nobody's.
    for shard in 0..3 {
        bench.put_says(&first, shard, Status::Ok);
        bench.put_says(&first, shard, Status::NoSpace);
    }
    assert_eq!((bench.count("Commit"), bench.puts.len()), (0, 0));
    bench.store(&second);
    let commit = bench.take("Commit");
    assert_eq!(commit_of(&commit).chunks, [second.record]);
    bench.committed(&commit);
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

#[test]
fn one_shard_said_twice_to_be_durable_is_one_shard() {
    let mut bench = Bench::mounted();
    let (_, _, put) = putting(&mut bench);
    for _ in 0..3 {
        bench.put_says(&put, 1, Status::Ok);
    }
    bench.put_says(&put, 2, Status::Ok);
    assert_eq!(bench.count("Commit"), 0);
    bench.put_says(&put, 0, Status::Ok);
    assert_eq!(bench.count("Commit"), 1);
}

#[test]
fn a_full_disk_is_left_out_and_the_others_take_the_data() {
    let mut bench = Bench::mounted();
    let (_, fsync, mut put) = putting(&mut bench);
    for _ in 0..3 {
        let full = disks(&put)[0];
        bench.store_but_first(&put, Status::NoSpace);
        put = bench.take_put();
        assert!(!disks(&put).contains(&full));
    }
    bench.store(&put);
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

#[test]
fn three_attempts_that_leave_too_few_disks_with_room_lose_the_data() {
    let mut bench = Bench::mounted();
    let (handle, fsync, mut put) = putting(&mut bench);
    let mut attempts = 0;
    loop {
        let shards = 0..disks(&put).len();
        shards.for_each(|shard| bench.put_says(&put, u8::try_from(shard).unwrap(), Status::NoSpace));
        attempts += 1;
        if bench.puts.is_empty() {
            bench.later(Duration::from_secs(1));
        }
        if bench.puts.is_empty() {
            break;
        }
        put = bench.take_put();
    }
    assert!((3..=6).contains(&attempts), "{attempts}");
    assert_eq!(bench.done(fsync), Some(Err(Error::NoSpace)));
    bench.assert_empty();
    // And back: a second later the disks are asked again.
    bench.later(Duration::from_secs(1));
    bench.written(handle, 0, 200 << 10);
    let fsync = bench.fsync(handle);
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

#[test]
fn want_of_space_is_not_to_blame_where_a_member_failed_besides() {
    let mut bench = Bench::mounted();
    let (_, fsync, mut put) = putting(&mut bench);
    for _ in 0..5 {
        bench.put_says(&put, 0, Status::NoSpace);
        bench.put_says(&put, 1, Status::DiskFailed);
        bench.put_says(&put, 2, Status::NoSpace);
        bench.later(Duration::from_secs(6));
        put = bench.take_put();
    }
    assert_eq!(bench.done(fsync), None);
}

#[test]
fn a_chunk_below_the_floor_is_written_with_ids_that_are_asked_for_now() {
    let mut bench = Bench::mounted();
    let (_, fsync, put) = putting(&mut bench);
    bench.held = vec!["ReserveChunks"];
    let first_disks = disks(&put);
    bench.store_but_first(&put, Status::BelowFloor);
    assert!(bench.puts.is_empty());
    let ids = bench.take("ReserveChunks");
    bench.mutated(&ids, MutateResponse { first_chunk: 90_000, ..MutateResponse::default() });
    let put = bench.take_put();
    assert_eq!(put.record.chunk, 90_000);
    let members = bench.core.members.usable(&bench.groups[0], 5, bench.now);
    assert_eq!(members.len(), 5, "none of {first_disks:?} is avoided for it");
    bench.store(&put);
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

#[test]
fn a_busy_member_is_given_time_and_a_misplaced_shard_has_the_groups_asked_for() {
    for (status, asks) in [(Status::Busy, 0), (Status::WrongDisk, 1)] {
        let mut bench = Bench::mounted();
        let (_, _, put) = putting(&mut bench);
        bench.held = vec!["GetGroups"];
        bench.store_but_first(&put, status);
        assert_eq!((bench.puts.len(), bench.count("GetGroups")), (0, asks), "{status:?}");
        bench.later(MEMBERS_PAUSE - Duration::from_nanos(1));
        assert!(bench.puts.is_empty());
        bench.later(Duration::from_nanos(1));
        assert_eq!(bench.puts.len(), 1);
        assert_eq!(bench.core.members.usable(&bench.groups[0], 5, bench.now).len(), 5, "{status:?}: none is avoided");
    }
}

/// All members of the only group fail, again and again, and come back.
#[test]
fn without_members_a_chunk_pauses_and_is_written_when_they_are_back() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    for disk in 1..=5 {
        bench.step(effects::Input::Unanswered { disk: DiskId(disk) });
    }
    bench.written(handle, 0, 200 << 10);
    let fsync = bench.fsync(handle);
    assert!(bench.puts.is_empty(), "all five are avoided");
    bench.later(Duration::from_millis(199));
    assert!(bench.puts.is_empty());
    bench.later(Duration::from_millis(101));
    assert_eq!(bench.puts.len(), 1, "they are not avoided any more at 250 ms, and looked for at 300");
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

#[test]
fn three_failed_members_narrow_the_stripe_and_keep_its_parity() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    for disk in [1, 2, 3] {
        bench.step(effects::Input::Unanswered { disk: DiskId(disk) });
    }
    bench.written(handle, 0, 200 << 10);
    bench.fsync(handle);
    let put = bench.take_put();
    let record = &put.record;
    assert_eq!((record.data_shards, record.parity_shards, record.length_bytes), (1, 1, 200 << 10));
    let mut used: Vec<_> = disks(&put).iter().map(|disk| disk.0).collect();
    used.sort_unstable();
    assert_eq!(used, [4, 5]);
    let slots: Vec<u8> = put.members.iter().map(|member| member.slot).collect();
    assert_eq!(record.slots, Bytes::from(slots), "a slot is written down for each shard in its order");
}

#[test]
fn a_refusal_of_chunk_ids_is_not_asked_about_without_a_pause() {
    let mut bench = Bench::mounted();
    bench.held = vec!["ReserveChunks"];
    let handle = bench.open(5, BOTH);
    bench.written(handle, 0, 10);
    let fsync = bench.fsync(handle);
    let ids = bench.take("ReserveChunks");
    bench.mutated(&ids, mutate_says(Code::Invalid));
    bench.later(Duration::from_millis(999));
    assert_eq!(bench.count("ReserveChunks"), 0);
    bench.held.clear();
    bench.later(Duration::from_millis(1));
    bench.settle();
    assert_eq!(bench.done(fsync), Some(Ok(())));
}

/// Slow: the deadline of a put follows what puts take, and is never short nor long.
#[test]
fn the_deadline_of_a_put_follows_the_latency_within_its_bounds() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    let timeout = |bench: &mut Bench, elapsed_ms: u64| {
        bench.written(handle, 0, 10);
        bench.fsync(handle);
        let put = bench.take_put();
        for shard in (0u8..).take(put.members.len()) {
            let (write, chunk) = (put.write, ChunkId(put.record.chunk));
            let answer = Ok(holdfast_proto::data::PutShardResponse::default());
            let elapsed = Duration::from_millis(elapsed_ms);
            bench.step(effects::Input::Put { write, chunk, shard, elapsed, answer });
        }
        bench.settle();
        put.timeout
    };
    assert_eq!(timeout(&mut bench, 1), Duration::from_secs(5), "nothing is known at first");
    let quick: Vec<_> = (0..2000).map(|_| timeout(&mut bench, 1)).collect();
    assert_eq!(quick.last(), Some(&Duration::from_millis(500)));
    let slow: Vec<_> = (0..200).map(|_| timeout(&mut bench, 3000)).collect();
    assert_eq!(slow.last(), Some(&Duration::from_secs(5)));
    assert!(slow.windows(2).all(|pair| pair[0] <= pair[1]));
}

#[test]
fn ids_are_used_once_and_the_chunk_is_as_long_as_what_it_holds() {
    let mut bench = Bench::mounted();
    let handle = bench.open(5, BOTH);
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..20u64 {
        bench.written(handle, 0, CHUNK_BYTES_MAX as usize / 2 + 1000);
        bench.begin(Call::Sync);
        for put in std::mem::take(&mut bench.puts) {
            let length: usize = put.pieces.iter().map(Bytes::len).sum();
            assert_eq!(length, put.record.length_bytes as usize);
            assert!(seen.insert(put.record.chunk), "round {round}: {} was used before", put.record.chunk);
            if round % 3 == 0 {
                bench.store_but_first(&put, Status::Conflict);
            } else {
                bench.store(&put);
            }
        }
        bench.later(Duration::from_secs(6));
        bench.puts.iter().for_each(|put| assert!(seen.insert(put.record.chunk)));
        bench.settle();
    }
    bench.assert_empty();
}
