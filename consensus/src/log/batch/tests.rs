//! Golden bytes of the log, and that foreign bytes never pass.

use bytes::Bytes;
use holdfast_common::{LogIndex, RaftGroupId, Term};
use proptest::prelude::*;

use super::super::record::{GroupState, HardState, LogEntry, SnapshotMark};
use super::*;

const HEADER: SegmentHeader = SegmentHeader { log: *b"0123456789abcdef", segment: 3 };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn entry(index: u64, data: &'static [u8]) -> LogEntry {
    LogEntry { index: LogIndex(index), term: Term(2), kind: 0, data: Bytes::from_static(data) }
}

fn sample() -> Vec<Record> {
    let hard = HardState { term: Term(2), vote: 1, commit: LogIndex(4) };
    let snapshot = SnapshotMark { index: LogIndex(4), term: Term(1), file: 9, bytes: 100 };
    let state = GroupState { hard, snapshot, installed: true, voters: vec![1, 2], learners: vec![3] };
    vec![
        Record::Group(RaftGroupId(7), state),
        Record::Entries(RaftGroupId(7), vec![entry(5, b"ab"), entry(6, b"")]),
        Record::Hard(RaftGroupId(7), hard),
        Record::Drop(RaftGroupId(8)),
    ]
}

fn segment(batches: &[(Position, Vec<Record>)]) -> Vec<u8> {
    let mut bytes = HEADER.encode().to_vec();
    for (watermark, records) in batches {
        let offset = u32::try_from(bytes.len()).unwrap();
        bytes.extend(HEADER.encode_batch(offset, *watermark, 1, records));
    }
    bytes.resize(8192, 0);
    bytes
}

#[test]
fn the_bytes_of_a_segment_header_are_pinned() {
    let bytes = HEADER.encode();
    assert_eq!(
        hex(&bytes[..40]),
        "48464c530200000000000000303132333435363738396162636465660300000000000000".to_owned() + "9daaabcd"
    );
    assert!(bytes[40..].iter().all(|b| *b == 0));
}

#[test]
fn the_bytes_of_a_batch_are_pinned() {
    let bytes = HEADER.encode_batch(1024, Position { segment: 2, offset: 512 }, 1, &sample());
    let head = "48464c42????????f00000000400000002000000000000000002000000000000".to_owned() + "0100000000000000";
    let group = concat!(
        "010700000000000000",
        "020000000000000001000000000000000400000000000000",
        "0400000000000000010000000000000009000000000000006400000000000000",
        "01",
        "020001000000000000000200000000000000",
        "01000300000000000000",
    );
    let entries = concat!(
        "040700000000000000",
        "050000000000000002000000",
        "0200000000000000000200000061620200000000000000",
        "0000000000",
    );
    let rest = concat!("030700000000000000020000000000000001000000000000000400000000000000", "020800000000000000");
    let text = hex(&bytes);
    let expected = head + group + entries + rest;
    assert_eq!(text[..8], expected[..8]);
    assert_eq!(text[16..24], hex(&u32::try_from((expected.len() - 80) / 2).unwrap().to_le_bytes()));
    assert_eq!(text[24..expected.len()], expected[24..]);
    assert_eq!(text[8..16], *"1b351bdc");
    assert_eq!(bytes.len(), 512);
}

#[test]
fn the_bytes_of_a_carry_are_pinned_and_a_segment_of_version_1_is_read() {
    let mut bytes = Vec::new();
    Record::Carry(RaftGroupId(7), vec![entry(5, b"ab")], true).encode(&mut bytes);
    let expected =
        "050700000000000000".to_owned() + "01" + "050000000000000001000000" + "020000000000000000020000006162";
    assert_eq!(hex(&bytes), expected);
    let mut bytes = segment(&[(Position::default(), sample())]);
    bytes[4] = 1;
    let crc = crc32c(&bytes[..36]).to_le_bytes();
    bytes[36..40].copy_from_slice(&crc);
    assert_eq!(scan(&bytes, Sabotage::None).unwrap().batches.len(), 1);
}

#[test]
fn batches_are_found_with_their_records() {
    let watermark = Position { segment: 2, offset: 512 };
    let bytes = Bytes::from(segment(&[(watermark, sample()), (watermark, vec![Record::Drop(RaftGroupId(1))])]));
    let scan = scan(&bytes, Sabotage::None).unwrap();
    assert_eq!(scan.batches.len(), 2);
    assert_eq!(records(&bytes, &scan.batches[0]), Ok(sample()));
    assert_eq!(records(&bytes, &scan.batches[1]), Ok(vec![Record::Drop(RaftGroupId(1))]));
    assert_eq!((scan.end(), scan.later_watermark), (1536, Position::default()));
}

#[test]
fn bytes_of_another_log_segment_or_offset_never_pass() {
    let batch = HEADER.encode_batch(512, Position::default(), 1, &sample());
    let found = |header: SegmentHeader, offset: usize| {
        let mut bytes = header.encode().to_vec();
        bytes.resize(8192, 0);
        bytes[offset..offset + batch.len()].copy_from_slice(&batch);
        let scan = scan(&bytes, Sabotage::None).unwrap();
        scan.batches.len() + usize::from(scan.later_watermark > Position::default())
    };
    assert_eq!(found(HEADER, 512), 1);
    assert_eq!(found(SegmentHeader { segment: 4, ..HEADER }, 512), 0);
    assert_eq!(found(SegmentHeader { log: [0; 16], ..HEADER }, 512), 0);
    assert_eq!(found(HEADER, 1024), 0);
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let mut bytes = HEADER.encode().to_vec();
    bytes[4] = 3;
    assert_eq!(scan(&bytes, Sabotage::None), Err(HeaderError::Damaged));
    let crc = crc32c(&bytes[..36]).to_le_bytes();
    bytes[36..40].copy_from_slice(&crc);
    assert_eq!(scan(&bytes, Sabotage::None), Err(HeaderError::NewerVersion(3)));
}

proptest! {
    #[test]
    fn any_flipped_bit_ends_the_batches_before_it(bit in 0usize..1024 * 8) {
        let mut bytes = segment(&[(Position::default(), sample())]);
        let used = scan(&bytes, Sabotage::None).unwrap().batches[0].payload_end as usize;
        let at = bit / 8;
        bytes[at] ^= 1 << (bit % 8);
        // Neither what is behind the segment's header nor what is behind the records is covered, or needed.
        match scan(&bytes, Sabotage::None) {
            Ok(scan) if (512..used).contains(&at) => prop_assert_eq!(scan.batches.len(), 0),
            Ok(scan) => prop_assert!(scan.batches.len() == 1 && at >= 40),
            Err(error) => prop_assert!(error == HeaderError::Damaged && at < 40),
        }
    }

    #[test]
    fn split_keeps_all_records_in_order_and_within_bounds(sizes in prop::collection::vec(0usize..900, 1..60)) {
        let entries: Vec<LogEntry> = sizes.iter().zip(5..)
            .map(|(size, n)| LogEntry { index: LogIndex(n), term: Term(1), kind: 0, data: vec![1; *size].into() })
            .collect();
        let batches = split(vec![Record::Drop(RaftGroupId(1)), Record::Entries(RaftGroupId(7), entries.clone()), Record::Drop(RaftGroupId(2))], 4096);
        prop_assert!(batches.iter().all(|batch| batch_bytes(batch) <= 4096));
        let records: Vec<Record> = batches.into_iter().flatten().collect();
        prop_assert_eq!(records.first(), Some(&Record::Drop(RaftGroupId(1))));
        prop_assert_eq!(records.last(), Some(&Record::Drop(RaftGroupId(2))));
        let parts = records.into_iter().filter_map(|r| match r { Record::Entries(RaftGroupId(7), e) => Some(e), _ => None });
        prop_assert_eq!(parts.flatten().collect::<Vec<_>>(), entries);
    }
}
