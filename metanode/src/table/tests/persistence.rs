//! Commands and snapshots as bytes.

use super::{Fixture, ROOT, chunk, command, create, file_commit};
use crate::table::dead::PiecesMax;
use crate::table::records::Owed;
use crate::table::snapshot::RestoreError;
use crate::table::{FEATURE_LEVEL, Table};
use holdfast_common::{ChunkId, DiskId};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Code, Fallocate, ForgetChunks, Kind, Mutation, RaiseFeatureLevel, ReserveChunks, ReserveQuota, SetAttr, SetXattr,
    Unlink,
};
use holdfast_proto::record::TableCommand;
use prost::Message;

#[test]
fn the_bytes_of_a_command_are_pinned() {
    let bytes = TableCommand { acknowledged_below: 2, ..command(create(ROOT, b"name", Kind::File), 0x0102, 9, 3) };
    let golden = "080111020100000000000018092003280232151a13080112046e616d65180120a403280530064801";
    assert_eq!(hex(&bytes.encode_to_vec()), golden);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A snapshot as builds wrote it that knew no feature levels.
#[test]
fn the_bytes_of_a_snapshot_at_level_0_are_pinned_and_read_as_level_0() {
    let mut table = Table::new();
    table.apply(&command(super::configure(0), 0x0102, 0, 0)).unwrap();
    assert_eq!(hex(&image(&table)), GOLDEN_LEVEL_0);
    let restored = Table::restore(&mut unhex(GOLDEN_LEVEL_0).as_slice()).unwrap();
    assert!(restored == table && restored.feature_level() == 0);
}

#[test]
fn the_bytes_of_a_snapshot_at_level_1_are_pinned() {
    let mut table = Table::new();
    table.apply(&command(super::configure(0), 0x0102, 0, 0)).unwrap();
    table.apply(&command(raise(1), 0x0103, 0, 0)).unwrap();
    assert_eq!(hex(&image(&table)), GOLDEN_LEVEL_1);
    assert_eq!(Table::restore(&mut unhex(GOLDEN_LEVEL_1).as_slice()).unwrap().feature_level(), 1);
}

#[test]
fn the_bytes_of_a_snapshot_at_level_3_with_a_debt_are_pinned() {
    let mut table = Table::new();
    table.apply(&command(super::configure(0), 0x0102, 0, 0)).unwrap();
    table.apply(&command(raise(3), 0x0103, 0, 0)).unwrap();
    table.owed.insert(DiskId(5), Owed { chunk: ChunkId(9), entries: 2 });
    assert_eq!(hex(&image(&table)), GOLDEN_LEVEL_3);
    let restored = Table::restore(&mut unhex(GOLDEN_LEVEL_3).as_slice()).unwrap();
    assert!(restored == table && restored.feature_level() == 3);
}

/// R26: a replica that went on would do something else than the others.
#[test]
fn a_feature_level_that_is_not_known_halts_the_replica() {
    let mut fixture = Fixture::new();
    assert!(fixture.table.apply(&command(raise(FEATURE_LEVEL + 1), 0, 0, 0)).is_err());
    let mut table = Table::new();
    table.counters.feature_level = FEATURE_LEVEL + 1;
    let refusal = Table::restore(&mut image(&table).as_slice());
    assert!(matches!(refusal, Err(RestoreError::FeatureLevel(_))), "{refusal:?}");
}

#[test]
fn the_feature_level_rises_and_never_falls() {
    let mut fixture = Fixture::at_level(0, 0);
    for (level, then) in [(0, 0), (1, 1), (0, 1)] {
        assert_eq!(fixture.lead(raise(level)).code(), Code::Ok);
        assert_eq!(fixture.table.feature_level(), then);
    }
}

/// A build that knows no levels must not read a table of level 1 as one of level 0, nor may the two be mixed up.
#[test]
fn version_and_feature_level_of_a_snapshot_fit_together() {
    let (plain, level) = (unhex(GOLDEN_LEVEL_0), unhex(GOLDEN_LEVEL_1));
    assert_eq!((plain[8], level[8]), (1, 2));
    for (mut image, other) in [(plain, 2), (level, 1)] {
        image[8] = other;
        assert!(matches!(Table::restore(&mut image.as_slice()), Err(RestoreError::Version)));
    }
}

fn raise(level: u32) -> Op {
    Op::RaiseFeatureLevel(RaiseFeatureLevel { level })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

const GOLDEN_LEVEL_0: &str = concat!(
    "48465441424c450a",
    "01000000",
    "69000000",
    "0a6c79da",
    "2a0a28080710011804200232047465737438014002490100000000000000500158016902010000000000",
    "00",
    "3812360a300801100218ed032002408020510201000000000000590201000000000000",
    "61020100000000000069020100000000000010011810",
    "044a020802",
);

/// Above level 1 with what a disk owes.
const GOLDEN_LEVEL_3: &str = concat!(
    "48465441424c450a",
    "02000000",
    "7b000000",
    "0c43115d",
    "2c0a2a080710011804200232047465737438014002490100000000000000500158016903010000000000",
    "0078033812360a300801100218ed03200240802051020100000000000059020100000000000061020100",
    "0000000000690201000000000000100118100f6a0d08051109000000000000001802044a020803",
);

const GOLDEN_LEVEL_1: &str = concat!(
    "48465441424c450a",
    "02000000",
    "6b000000",
    "41eb2d3c",
    "2c0a2a080710011804200232047465737438014002490100000000000000500158016903010000000000",
    "0078013812360a300801100218ed03200240802051020100000000000059020100000000000061020100",
    "000000000069020100000000000010011810044a020802",
);

/// A table with something in each of its trees.
pub(super) fn full_table() -> Fixture {
    let mut fixture = Fixture::with_quota(1 << 30);
    let directory = fixture.create(ROOT, b"d", Kind::Directory);
    fixture.create(directory, b"s", Kind::Symlink);
    let inode = fixture.create(directory, b"f", Kind::File);
    let first = fixture.ok(Op::ReserveChunks(ReserveChunks { count: 5 })).first_chunk;
    for id in [first, first + 2] {
        assert_eq!(fixture.commit_one(chunk(id, 100), file_commit(inode, 50, 100, id)), Code::Ok);
    }
    let beyond = Fallocate { inode, offset: 8192, length_bytes: 8192, keep_size: true, ..Fallocate::default() };
    fixture.ok(Op::Fallocate(beyond));
    leave_dead(&mut fixture, directory);
    let value = b"value"[..].into();
    fixture.ok(Op::SetXattr(SetXattr { inode, name: b"user.x"[..].into(), value, create: true, replace: false }));
    fixture.ok(Op::ReserveQuota(ReserveQuota { bytes: 12345 }));
    fixture.create(ROOT, b"orphan", Kind::File);
    fixture.ok(Op::Unlink(Unlink { parent: ROOT, name: b"orphan"[..].into(), directory: false }));
    fixture.open_session(b"other");
    let freed = fixture.reserve_chunk();
    let emptied = fixture.create(ROOT, b"emptied", Kind::File);
    assert_eq!(fixture.commit_one(chunk(freed, 100), file_commit(emptied, 0, 100, freed)), Code::Ok);
    fixture.ok(Op::SetAttr(SetAttr { inode: emptied, size_bytes: Some(0), ..SetAttr::default() }));
    fixture.lead(Op::ForgetChunks(ForgetChunks { chunks: vec![freed], disks: vec![2, 3] }));
    fixture
}

/// A file with dead intervals and fresh extents.
fn leave_dead(fixture: &mut Fixture, directory: u64) {
    let inode = fixture.create(directory, b"badly split", Kind::File);
    for at in 0..5 {
        let id = fixture.reserve_chunk();
        assert_eq!(fixture.commit_one(chunk(id, 100), file_commit(inode, at * 90, 100, id)), Code::Ok);
    }
    fixture.table.pieces_max = PiecesMax(1);
    for at in [0, 300] {
        let id = fixture.reserve_chunk();
        assert_eq!(fixture.commit_one(chunk(id, 200), file_commit(inode, at, 150, id)), Code::Ok);
    }
    fixture.table.pieces_max = PiecesMax::default();
}

pub(super) fn image(table: &Table) -> Vec<u8> {
    let mut image = Vec::new();
    table.freeze().write_to(&mut image).unwrap();
    image
}

#[test]
fn a_restored_snapshot_equals_its_table_and_goes_on_alike() {
    let mut fixture = full_table();
    let mut restored = Table::restore(&mut image(&fixture.table).as_slice()).unwrap();
    assert!(restored == fixture.table);
    restored.check().unwrap();
    assert_eq!(restored.digest(), fixture.table.digest());
    let next = fixture.next_command(create(ROOT, b"next", Kind::File));
    assert_eq!(restored.apply(&next), fixture.table.apply(&next));
    assert!(restored == fixture.table);
}

#[test]
fn a_frozen_copy_does_not_see_later_changes() {
    let mut fixture = full_table();
    let before = image(&fixture.table);
    let frozen = fixture.table.freeze();
    fixture.create(ROOT, b"later", Kind::File);
    let mut late = Vec::new();
    frozen.write_to(&mut late).unwrap();
    assert!(late == before && image(&fixture.table) != before);
}

#[test]
fn an_unconfigured_table_can_be_restored() {
    let restored = Table::restore(&mut image(&Table::new()).as_slice()).unwrap();
    assert!(restored == Table::new());
}

#[test]
fn every_flipped_or_missing_byte_of_a_snapshot_is_found() {
    let image = image(&full_table().table);
    for at in 0..image.len() {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        assert!(Table::restore(&mut damaged.as_slice()).is_err(), "byte {at}");
        assert!(Table::restore(&mut &image[..at]).is_err(), "cut at {at}");
    }
    let mut newer = image;
    newer[8] = 3;
    assert!(matches!(Table::restore(&mut newer.as_slice()), Err(RestoreError::Version)));
}

#[test]
fn commands_that_are_not_understood_halt_the_replica() {
    let mut fixture = Fixture::new();
    let mut unknown = fixture.next_command(create(ROOT, b"a", Kind::File));
    unknown.mutation = Some(Mutation { op: None });
    assert!(fixture.table.apply(&unknown).is_err());
    let newer = TableCommand { version: 2, ..fixture.next_command(create(ROOT, b"a", Kind::File)) };
    assert!(fixture.table.apply(&newer).is_err());
}

#[test]
fn nothing_but_configuration_is_taken_by_an_empty_table() {
    let mut table = Table::new();
    let answer = table.apply(&command(create(ROOT, b"a", Kind::File), 1, 1, 1)).unwrap();
    assert_eq!(answer.code(), Code::Unavailable);
    assert!(table == Table::new());
    assert_eq!(table.apply(&command(super::configure(0), 1, 0, 0)).unwrap().code(), Code::Ok);
    let other = holdfast_proto::meta::Configure {
        volume: 8,
        incarnation: 1,
        data_shards: 4,
        parity_shards: 2,
        quota_bytes: 0,
        name: String::new(),
    };
    assert_eq!(table.apply(&command(Op::Configure(other), 1, 0, 0)).unwrap().code(), Code::Invalid);
    assert_eq!(table.apply(&command(super::configure(77), 1, 0, 0)).unwrap().code(), Code::Ok);
    assert_eq!(table.stat_fs().quota_bytes, 77);
}

/// Its kind's number is of a newer version: it must not pass for a file of no kind.
#[test]
fn an_inode_of_an_unknown_kind_is_not_restored() {
    let mut table = full_table().table;
    let id = table.orphans(holdfast_common::InodeId(0), 1)[0];
    table.inodes.get_mut(&id).unwrap().kind = Kind::Unknown;
    assert!(matches!(Table::restore(&mut image(&table).as_slice()), Err(RestoreError::Malformed(_))));
}
