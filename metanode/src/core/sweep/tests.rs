//! The sweep's decisions, on a table of one group of six disks.

use super::*;
use crate::core::testing::{Rig, VOLUME, commit_of};
use crate::table::COMMAND_VERSION;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, Configure, CreateNode, GroupSlot, Kind, Mutation, OpenSession, RaiseFeatureLevel,
    ReserveChunks, SetAttr, VacateSlot,
};
use holdfast_proto::record::TableCommand;

/// A table whose chunks 1 and 2, on slots 0, 3, 5, are freed.
fn table_with_freed_chunks() -> Table {
    let mut table = Table::new();
    let name = String::new();
    let configure = Configure { volume: 7, incarnation: 1, data_shards: 4, parity_shards: 2, quota_bytes: 0, name };
    apply(&mut table, 0, Op::Configure(configure));
    let slots = (1..=6).map(|i| GroupSlot { disk: 10 + i, node: 100 + i }).collect();
    let group = BlockGroup { group: 1, epoch: 1, slots, state: 0, used_bytes: 0, capacity_bytes: 1 << 30 };
    apply(&mut table, 0, Op::AddGroups(AddGroups { groups: vec![group] }));
    apply(&mut table, 0, Op::OpenSession(OpenSession { client_key: b"k"[..].into(), description: String::new() }));
    let file = CreateNode { parent: 1, name: b"f"[..].into(), kind: Kind::File.into(), ..CreateNode::default() };
    apply(&mut table, 1, Op::Create(file));
    apply(&mut table, 2, Op::ReserveChunks(ReserveChunks { count: 2 }));
    for chunk in [1, 2] {
        apply(&mut table, 2 + chunk, Op::Commit(commit_of(2, chunk, chunk * 9)));
    }
    apply(&mut table, 5, Op::SetAttr(SetAttr { inode: 2, size_bytes: Some(0), ..SetAttr::default() }));
    assert_eq!(table.freed_chunks(i64::MAX, (0, ChunkId(0)), 9).len(), 2);
    table
}

fn apply(table: &mut Table, sequence: u64, op: Op) {
    let session = u64::from(sequence > 0);
    let mutation = Some(Mutation { op: Some(op) });
    let command =
        TableCommand { version: COMMAND_VERSION, time_ns: 5, session, sequence, acknowledged_below: 0, mutation };
    assert_eq!(table.apply(&command).unwrap().code, 0);
}

/// Shards of both chunks, of which the disks 11, 14 and 16 hold numbers 0, 1 and 2.
fn both(shard: u8) -> [ShardName; 2] {
    [1, 2].map(|chunk| ShardName { chunk: ChunkId(chunk), shard, nonce: Nonce(1) })
}

fn disks(batch: &Batch) -> Vec<u64> {
    batch.by_disk.keys().map(|(_, disk)| disk.0).collect()
}

#[test]
fn nothing_is_deleted_before_the_delay_by_the_leaders_own_clock() {
    let mut sweep = Sweep::default();
    assert_eq!(sweep.mark(0, 100), None);
    assert_eq!(sweep.mark(9_999, 900), None);
    assert_eq!(sweep.mark(10_000, 950), Some(100), "only what was freed at the first mark or before");
    assert_eq!(sweep.mark(19_999, 999), Some(900));
    sweep.follow(Term(1));
    assert_eq!(sweep.mark(30_000, 1_000), None, "a new leader waits again");
}

#[test]
fn chunks_are_forgotten_when_every_member_confirmed() {
    let table = table_with_freed_chunks();
    let mut sweep = Sweep::default();
    let batch = sweep.next_batch(&table, i64::MAX, 0).unwrap();
    assert_eq!(disks(&batch), [11, 14, 16]);
    assert!(batch.by_disk.values().zip(0..).all(|(names, shard)| names == &both(shard)));
    sweep.note(DiskId(11), &both(0), true, 0);
    sweep.note(DiskId(14), &both(0), true, 0);
    assert_eq!(sweep.take_done(), None);
    sweep.note(DiskId(16), &both(0), true, 0);
    assert_eq!(sweep.take_done().unwrap().chunks, [1, 2]);
    assert_eq!(sweep.next_batch(&table, i64::MAX, 0), None);
}

#[test]
fn a_member_that_cannot_be_reached_is_asked_again_later_and_alone() {
    let table = table_with_freed_chunks();
    let mut sweep = Sweep::default();
    sweep.next_batch(&table, i64::MAX, 0).unwrap();
    sweep.note(DiskId(11), &both(0), true, 0);
    sweep.note(DiskId(14), &both(0), false, 0);
    sweep.note(DiskId(16), &both(0), true, 0);
    assert_eq!(sweep.take_done(), None);
    let again = |sweep: &mut Sweep, now_ms| {
        assert_eq!(sweep.next_batch(&table, i64::MAX, now_ms), None);
        disks(&sweep.next_batch(&table, i64::MAX, now_ms).unwrap())
    };
    assert!(again(&mut sweep, 999).is_empty());
    assert_eq!(again(&mut sweep, 1_000), [14]);
    sweep.note(DiskId(14), &both(0), false, 1_000);
    assert!(again(&mut sweep, 2_999).is_empty(), "the pause doubles");
    assert_eq!(again(&mut sweep, 3_000), [14]);
    sweep.note(DiskId(14), &both(0), true, 3_000);
    assert_eq!(sweep.take_done().unwrap().chunks, [1, 2]);
}

#[test]
fn a_vacated_slot_is_not_waited_for() {
    let mut table = table_with_freed_chunks();
    let mut sweep = Sweep::default();
    sweep.next_batch(&table, i64::MAX, 0).unwrap();
    sweep.note(DiskId(11), &both(0), true, 0);
    sweep.note(DiskId(16), &both(0), true, 0);
    apply(&mut table, 0, Op::VacateSlot(VacateSlot { group: 1, epoch: 1, slot: 3 }));
    assert_eq!(sweep.next_batch(&table, i64::MAX, 0), None);
    sweep.next_batch(&table, i64::MAX, 0).unwrap();
    assert_eq!(sweep.take_done().unwrap().chunks, [1, 2]);
}

#[test]
fn an_answer_of_an_unknown_status_confirms_nothing() {
    for status in 0..100 {
        let known = [Status::Ok, Status::Dropped].map(i32::from).contains(&status);
        assert_eq!(confirms(status), known, "status {status}");
    }
}

/// The table of above as its leader sees it.
fn rig() -> Rig {
    Rig { table: table_with_freed_chunks(), term: Term(1), ..Rig::default() }
}

const SECRET: ClusterSecret = ClusterSecret([3; 32]);

fn answer(status: Status) -> DeleteShardsResponse {
    DeleteShardsResponse { status: status.into(), ..DeleteShardsResponse::default() }
}

#[test]
fn a_round_asks_all_disks_at_once_with_proofs_and_forgets_what_all_confirmed() {
    let (mut sweep, mut rig) = (Sweep::default(), rig());
    sweep.follow(Term(1));
    assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Rest, "the delay has not passed");
    rig.now_ms = u64::from(FREED_CHUNK_DELAY_MS);
    let Step::Delete(requests) = sweep.next(&rig.view(), &SECRET) else { panic!() };
    let members: Vec<Member> = requests.iter().map(|(member, _)| *member).collect();
    assert_eq!(members, [(101, 11), (104, 14), (106, 16)].map(|(node, disk)| (NodeId(node), DiskId(disk))));
    for (member, request) in &requests {
        let shard = match member.1.0 {
            11 => 0,
            14 => 1,
            _ => 2,
        };
        let names: Vec<_> = request.shards.iter().map(|name| (name.chunk, name.shard, name.nonce)).collect();
        assert_eq!((request.disk, &names[..]), (member.1.0, &[(1, shard.into(), 1), (2, shard.into(), 1)][..]));
        assert!(request.chunks.is_empty());
        let mac = &request.proof.as_ref().unwrap().mac;
        assert!(SECRET.verify(VOLUME, Incarnation(1), Claim::DeleteShards(&[], &both(shard)), mac));
    }
    for member in &members {
        assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Wait);
        sweep.answered(*member, Some(&answer(Status::Ok)), &rig.view());
    }
    let Step::Forget(op) = sweep.next(&rig.view(), &SECRET) else { panic!() };
    let forgot = rig.apply_own(op);
    sweep.proposed(Some(&forgot));
    assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Rest);
    assert!(rig.table.freed_chunks(i64::MAX, (0, ChunkId(0)), 9).is_empty());
}

#[test]
fn a_chunk_is_not_forgotten_while_one_member_refuses_or_is_silent() {
    for last in [None, Some(answer(Status::Busy)), Some(answer(Status::Forbidden))] {
        let (mut sweep, mut rig) = (Sweep::default(), rig());
        sweep.follow(Term(1));
        sweep.next(&rig.view(), &SECRET);
        rig.now_ms = u64::from(FREED_CHUNK_DELAY_MS);
        let Step::Delete(requests) = sweep.next(&rig.view(), &SECRET) else { panic!() };
        for (index, (member, _)) in requests.iter().enumerate() {
            let said = if index == 1 { last.clone() } else { Some(answer(Status::Dropped)) };
            sweep.answered(*member, said.as_ref(), &rig.view());
        }
        assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Rest);
    }
}

#[test]
fn a_round_ends_when_the_table_did_not_forget_and_a_later_one_deletes_again() {
    let (mut sweep, mut rig) = (Sweep::default(), rig());
    sweep.follow(Term(1));
    sweep.next(&rig.view(), &SECRET);
    rig.now_ms = u64::from(FREED_CHUNK_DELAY_MS);
    let Step::Delete(requests) = sweep.next(&rig.view(), &SECRET) else { panic!() };
    requests.iter().for_each(|(member, _)| sweep.answered(*member, Some(&answer(Status::Ok)), &rig.view()));
    assert!(matches!(sweep.next(&rig.view(), &SECRET), Step::Forget(_)));
    sweep.proposed(None);
    assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Rest);
    assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Rest, "the end of the list");
    assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Delete(requests));
}

#[test]
fn an_answer_that_nobody_waits_for_any_more_confirms_nothing() {
    let (mut sweep, mut rig) = (Sweep::default(), rig());
    sweep.follow(Term(1));
    sweep.next(&rig.view(), &SECRET);
    rig.now_ms = u64::from(FREED_CHUNK_DELAY_MS);
    let Step::Delete(requests) = sweep.next(&rig.view(), &SECRET) else { panic!() };
    sweep.follow(Term(2));
    requests.iter().for_each(|(member, _)| sweep.answered(*member, Some(&answer(Status::Ok)), &rig.view()));
    assert_eq!(sweep.next(&rig.view(), &SECRET), Step::Rest);
    rig.now_ms *= 2;
    assert!(matches!(sweep.next(&rig.view(), &SECRET), Step::Delete(_)));
}

/// A leader whose disk 14 answers nothing, each second, until a step that is none of the sweep's own questions.
fn until_forgotten(sweep: &mut Sweep, rig: &mut Rig, up_to_ms: u64) -> Option<Op> {
    while rig.now_ms < up_to_ms {
        match sweep.next(&rig.view(), &SECRET) {
            Step::Delete(requests) => {
                for (member, _) in requests {
                    let answer = (member.1 != DiskId(14)).then(|| answer(Status::Ok));
                    sweep.answered(member, answer.as_ref(), &rig.view());
                }
            }
            Step::Forget(op) => return Some(op),
            Step::Rest => rig.now_ms += 1_000,
            Step::Wait => panic!(),
        }
    }
    None
}

#[test]
fn a_member_that_is_silent_for_a_minute_owes_and_is_waited_for_no_longer() {
    let (mut sweep, mut rig) = (Sweep::default(), rig());
    apply(&mut rig.table, 0, Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 }));
    sweep.follow(Term(1));
    let delay_ms = u64::from(FREED_CHUNK_DELAY_MS);
    assert_eq!(until_forgotten(&mut sweep, &mut rig, delay_ms + Patience::default().silence_ms_max()), None);
    let op = until_forgotten(&mut sweep, &mut rig, delay_ms + 3 * Patience::default().silence_ms_max()).unwrap();
    assert_eq!(op, Op::ForgetChunks(ForgetChunks { chunks: vec![1, 2], disks: vec![14] }));
    let forgot = rig.apply_own(op);
    sweep.proposed(Some(&forgot));
    assert!(rig.table.freed_chunks(i64::MAX, (0, ChunkId(0)), 9).is_empty());
    assert_eq!(rig.table.owed(DiskId(14)).unwrap().chunk, ChunkId(2));
}

#[test]
fn before_all_replicas_know_debts_a_silent_member_is_waited_for() {
    let (mut sweep, mut rig) = (Sweep::default(), rig());
    sweep.follow(Term(1));
    assert_eq!(until_forgotten(&mut sweep, &mut rig, 1_000_000), None);
}

/// Each rule that a simulation may break is broken by it.
#[test]
fn a_sabotaged_sweep_deletes_at_once_and_forgets_what_was_not_confirmed() {
    let sweep = |sabotage| {
        let mut sweep = Sweep::new(Patience::default(), sabotage);
        sweep.follow(Term(1));
        sweep
    };
    let at_once = |sabotage| sweep(sabotage).next(&rig().view(), &SECRET) != Step::Rest;
    assert_eq!((at_once(Sabotage::None), at_once(Sabotage::FreedChunksDeletedAtOnce)), (false, true));
    // One member confirms, then none answers.
    let forgets = |sabotage, confirming| {
        let (mut sweep, mut rig) = (sweep(sabotage), rig());
        sweep.next(&rig.view(), &SECRET);
        rig.now_ms = u64::from(FREED_CHUNK_DELAY_MS);
        let Step::Delete(requests) = sweep.next(&rig.view(), &SECRET) else { panic!() };
        for (index, (member, _)) in requests.iter().enumerate() {
            sweep.answered(*member, (index < confirming).then_some(&answer(Status::Ok)), &rig.view());
        }
        matches!(sweep.next(&rig.view(), &SECRET), Step::Forget(_))
    };
    assert_eq!((forgets(Sabotage::None, 1), forgets(Sabotage::UnconfirmedChunksForgotten, 1)), (false, true));
    assert_eq!((forgets(Sabotage::None, 0), forgets(Sabotage::SilenceConfirms, 0)), (false, true));
}
