//! Sessions: exactly once, fencing, expiry, reservations.

use super::{Fixture, ROOT, chunk, command, create, file_commit};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    CloseSession, Code, Commit, ExpireSessions, FileCommit, Kind, RaiseFloor, ReserveChunks, ReserveQuota, SetAttr,
};
use holdfast_proto::record::TableCommand;

#[test]
fn a_repeated_create_answers_as_the_first_time() {
    let mut fixture = Fixture::new();
    let command = fixture.next_command(create(ROOT, b"a", Kind::File));
    let first = fixture.table.apply(&command).unwrap();
    assert_eq!(first.code(), Code::Ok);
    let again = TableCommand { time_ns: command.time_ns + 5, ..command };
    assert_eq!(fixture.table.apply(&again).unwrap(), first);
    assert_eq!(fixture.table.apply_encoded(&again).unwrap(), prost::Message::encode_to_vec(&first));
}

#[test]
fn an_acknowledged_sequence_is_stale_and_its_reply_is_gone() {
    let mut fixture = Fixture::new();
    let first = fixture.next_command(create(ROOT, b"a", Kind::File));
    fixture.table.apply(&first).unwrap();
    assert!(fixture.table.remembered_reply(fixture.session.into(), first.sequence).is_some());
    fixture.run(create(ROOT, b"b", Kind::File));
    assert_eq!(fixture.table.remembered_reply(fixture.session.into(), first.sequence), None);
    assert_eq!(fixture.table.apply(&first).unwrap().code(), Code::SequenceStale);
}

#[test]
fn at_most_256_replies_are_kept_and_acknowledging_makes_room() {
    let mut fixture = Fixture::new();
    let op = || create(ROOT, b"a", Kind::File);
    for sequence in 1..=256 {
        assert_ne!(
            fixture.table.apply(&command(op(), 0, fixture.session, sequence)).unwrap().code(),
            Code::Unavailable
        );
    }
    let next = command(op(), 0, fixture.session, 257);
    assert_eq!(fixture.table.apply(&next).unwrap().code(), Code::Unavailable);
    let acknowledging = TableCommand { acknowledged_below: 2, ..next };
    assert_eq!(fixture.table.apply(&acknowledging).unwrap().code(), Code::Exists);
    fixture.table.check().unwrap();
}

#[test]
fn a_session_of_the_same_client_fences_the_former_one() {
    let mut fixture = Fixture::new();
    let former = fixture.session;
    fixture.ok(Op::ReserveQuota(ReserveQuota { bytes: 1 << 20 }));
    let late = fixture.next_command(create(ROOT, b"late", Kind::File));
    let session = fixture.open_session(b"client");
    assert_ne!(session, former);
    assert_eq!(fixture.table.apply(&late).unwrap().code(), Code::SessionExpired);
    assert_eq!(fixture.table.lookup(ROOT.into(), b"late"), Err(Code::NotFound));
    assert_eq!(fixture.table.sessions(), [session.into()]);
}

#[test]
fn closed_and_expired_sessions_give_back_what_they_held() {
    let mut fixture = Fixture::with_quota(1 << 20);
    fixture.ok(Op::ReserveQuota(ReserveQuota { bytes: 1 << 20 }));
    fixture.ok(Op::CloseSession(CloseSession {}));
    assert_eq!(fixture.run(create(ROOT, b"x", Kind::File)).code(), Code::SessionExpired);
    fixture.session = fixture.open_session(b"other");
    (fixture.sequence, _) = (0, fixture.ok(Op::ReserveQuota(ReserveQuota { bytes: 1 << 20 })));
    let expired = fixture.session;
    fixture.lead(Op::ExpireSessions(ExpireSessions { sessions: vec![expired, 999] }));
    assert_eq!(fixture.table.stat_fs().available_bytes, 1 << 20);
}

#[test]
fn a_reservation_over_the_quota_is_refused_and_what_it_covers_is_never_refused() {
    let mut fixture = Fixture::with_quota(3 * 4096);
    let inode = fixture.create(ROOT, b"f", Kind::File);
    fixture.refused(Op::ReserveQuota(ReserveQuota { bytes: 3 * 4096 + 1 }), Code::Quota);
    fixture.ok(Op::ReserveQuota(ReserveQuota { bytes: 2 * 4096 }));
    let other = fixture.open_session(b"other");
    let beyond = command(Op::ReserveQuota(ReserveQuota { bytes: 2 * 4096 }), 0, other, 1);
    assert_eq!(fixture.table.apply(&beyond).unwrap().code(), Code::Quota);
    // Covered: two pages. The third is free; a fourth is not.
    let id = fixture.reserve_chunk();
    let covered = FileCommit { quota_bytes: 2 * 4096, ..file_commit(inode, 0, 8192, id) };
    assert_eq!(fixture.commit_one(chunk(id, 8192), covered), Code::Ok);
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 8192), file_commit(inode, 8192, 4097, id)), Code::Quota);
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 8192), file_commit(inode, 8192, 4096, id)), Code::Ok);
    // Rewriting what is mapped needs no quota, nor does growing by a hole.
    let id = fixture.reserve_chunk();
    assert_eq!(fixture.commit_one(chunk(id, 8192), file_commit(inode, 1, 8000, id)), Code::Ok);
    fixture.ok(Op::SetAttr(SetAttr { inode, size_bytes: Some(1 << 40), ..SetAttr::default() }));
    assert_eq!(fixture.table.stat_fs().used_bytes, 3 * 4096);
}

#[test]
fn chunk_ids_belong_to_one_session_and_are_used_once() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let first = fixture.ok(Op::ReserveChunks(ReserveChunks { count: 3 })).first_chunk;
    let foreign = fixture.open_session(b"other");
    let op = Op::Commit(Commit { chunks: vec![chunk(first, 9)], files: vec![file_commit(inode, 0, 9, first)] });
    let answer = fixture.table.apply(&command(op, 0, foreign, 1)).unwrap();
    assert_eq!(answer.commits[0].code(), Code::RewriteChunk);
    assert_eq!(fixture.commit_one(chunk(first, 9), file_commit(inode, 0, 9, first)), Code::Ok);
    // The same attempt again is fine while it lives; another content under its id never is.
    assert_eq!(fixture.commit_one(chunk(first, 9), file_commit(inode, 20, 9, first)), Code::Ok);
    let other = holdfast_proto::meta::ChunkRecord { nonce: 1, ..chunk(first, 9) };
    assert_eq!(fixture.commit_one(other, file_commit(inode, 0, 9, first)), Code::RewriteChunk);
    fixture.lead(Op::RaiseFloor(RaiseFloor { floor: first + 2 }));
    let below = first + 1;
    assert_eq!(fixture.commit_one(chunk(below, 9), file_commit(inode, 0, 9, below)), Code::RewriteChunk);
    let at = first + 2;
    assert_eq!(fixture.commit_one(chunk(at, 9), file_commit(inode, 0, 9, at)), Code::Ok);
}

/// Interleaving: a failover loses one request, hundreds behind it go on, then it is tried again.
#[test]
fn the_oldest_request_is_executed_however_many_replies_wait_behind_it() {
    let mut fixture = Fixture::new();
    let oldest = fixture.next_command(create(ROOT, b"oldest", Kind::File));
    let later = |fixture: &mut Fixture, name: String| {
        let command = fixture.next_command(create(ROOT, name.leak().as_bytes(), Kind::File));
        let command = TableCommand { acknowledged_below: oldest.sequence, ..command };
        fixture.table.apply(&command).unwrap().code()
    };
    let codes: Vec<Code> = (0..300).map(|index| later(&mut fixture, format!("later-{index}"))).collect();
    assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 256);
    assert_eq!(codes[299], Code::Unavailable);
    assert_eq!(fixture.table.apply(&oldest).unwrap().code(), Code::Ok);
    fixture.table.check().unwrap();
    assert_eq!(fixture.run(create(ROOT, b"after", Kind::File)).code(), Code::Ok);
}
