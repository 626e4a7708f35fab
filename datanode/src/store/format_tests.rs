//! Golden bytes of every on-disk structure (`docs/disk-format/shard-store.md`), and what a decoder does with bytes that
//! are none. If a golden test fails, old disks no longer read: raise the version instead of changing the bytes.

use std::fmt::Write;

use bytes::Bytes;
use holdfast_common::{ChunkId, DiskId};
use proptest::prelude::*;

use super::checkpoint;
use super::record::{Body, DecodeError, Place, decode, encode};
use super::segment::{SegmentHeader, SegmentKind};
use super::tests::{DISK, VOLUME, delete, fresh, put};
use super::types::{Request, Target};
use super::volumes::{VolumeState, Volumes};
use holdfast_common::Random;

const PLACE: Place = Place { disk: DISK, segment: 9, generation: 77, offset: 0x2000 };

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for row in bytes.chunks(16) {
        row.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

#[test]
fn golden_bytes_of_a_shards_header() {
    let mut meta = put(5, 6, 8192).meta;
    meta.page_checksums = Bytes::from_static(&[0xa1, 0xa2, 0xa3, 0xa4, 0xb1, 0xb2, 0xb3, 0xb4]);
    let bytes = encode(&PLACE, 100, 99, 98, 8192 + 512, &Body::Shard(meta));
    assert_eq!(hex(&bytes), GOLDEN_SHARD);
}

#[test]
fn golden_bytes_of_a_tombstone_and_a_filler() {
    let targets = |shard| [5, 0x0102_0304_0506_0708].map(|chunk| Target { chunk: ChunkId(chunk), shard }).to_vec();
    let whole_chunks = Body::Tombstone { volume: VOLUME, targets: targets(None) };
    assert_eq!(hex(&encode(&PLACE, 100, 99, 98, 512, &whole_chunks)), GOLDEN_TOMBSTONE_OF_CHUNKS);
    let body = Body::Tombstone { volume: VOLUME, targets: targets(Some(3)) };
    assert_eq!(hex(&encode(&PLACE, 100, 99, 98, 512, &body)), GOLDEN_TOMBSTONE);
    assert_eq!(hex(&encode(&PLACE, 100, 99, 0, 1024, &Body::Filler)), GOLDEN_FILLER);
}

#[test]
fn golden_bytes_of_a_segment_header_and_the_volumes_file() {
    let header = SegmentHeader { number: 9, kind: SegmentKind::Bulk, generation: 77, disk: DISK, size_bytes: 1 << 30 };
    let bytes = header.encode();
    assert_eq!(bytes.len(), 512);
    assert_eq!(hex(&bytes[..48]), GOLDEN_SEGMENT);
    assert_eq!(hex(&bytes[508..]), GOLDEN_SEGMENT_CRC);
    let mut volumes = Volumes::default();
    volumes.0.insert(VOLUME, VolumeState { floor: ChunkId(1000), dropped: false });
    assert_eq!(hex(&volumes.encode()), GOLDEN_VOLUMES);
}

const GOLDEN_SHARD: &str = "\
    48467263010001000000000086000000\n\
    00220000000000006400000000000000\n\
    63000000000000006200000000000000\n\
    03000000000000000100000000000000\n\
    05000000000000000600000000000000\n\
    05000000000000000200000000000000\n\
    00200000002000000104020602000000\n\
    00000000405bf33d050001020304a1a2\n\
    a3a4b1b2b3b4\n\
";
const GOLDEN_TOMBSTONE: &str = "\
    4846726301000200010000008a000000\n\
    00020000000000006400000000000000\n\
    63000000000000006200000000000000\n\
    03000000000000000100000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000002000000\n\
    0000000058a262720500000000000000\n\
    03080706050403020103\n\
";
const GOLDEN_TOMBSTONE_OF_CHUNKS: &str = "\
    48467263010002000000000088000000\n\
    00020000000000006400000000000000\n\
    63000000000000006200000000000000\n\
    03000000000000000100000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000002000000\n\
    000000002ff84dc80500000000000000\n\
    0807060504030201\n\
";
const GOLDEN_FILLER: &str = "\
    48467263010003000000000078000000\n\
    00040000000000006400000000000000\n\
    63000000000000000000000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000000000000\n\
    00000000000000000000000000000000\n\
    00000000d2743170\n\
";
const GOLDEN_SEGMENT: &str = "\
    48467367010002000000000009000000\n\
    4d000000000000000700000000000000\n\
    00000040000000000000000000000000\n\
";
const GOLDEN_SEGMENT_CRC: &str = "\
    6f95e57e\n\
";
const GOLDEN_VOLUMES: &str = "\
    4846766f010000000100000000000000\n\
    03000000000000000100000000000000\n\
    e80300000000000000a8533fc9\n\
";

fn target(chunk: u64, shard: Option<u8>) -> Target {
    Target { chunk: ChunkId(chunk), shard }
}

#[test]
fn records_read_back_at_their_place_and_nowhere_else() {
    let bodies = [
        Body::Shard(put(5, 6, 64 << 10).meta),
        Body::Tombstone { volume: VOLUME, targets: (1..200).map(|chunk| target(chunk, None)).collect() },
        Body::Tombstone { volume: VOLUME, targets: (1..200).map(|chunk| target(chunk, Some(1))).collect() },
        Body::Filler,
    ];
    for body in bodies {
        let payload = if let Body::Shard(meta) = &body { u64::from(meta.shard_length_bytes) } else { 0 };
        let header_bytes = encode(&PLACE, 1, 1, 1, 0, &body).len() as u64;
        let record_bytes = header_bytes.next_multiple_of(512) + payload;
        let bytes = encode(&PLACE, 100, 99, 98, record_bytes, &body);
        let header = decode(&bytes, &PLACE, 512).unwrap();
        assert_eq!((header.sequence, header.durable_sequence, header.version), (100, 99, 98));
        assert_eq!(header.body, body);
        for other in [
            Place { disk: DiskId(8), ..PLACE },
            Place { segment: 10, ..PLACE },
            Place { generation: 78, ..PLACE },
            Place { offset: 0x2200, ..PLACE },
        ] {
            assert_eq!(decode(&bytes, &other, 512), Err(DecodeError::NotARecord), "{other:?}");
        }
        for length in [0, 3, 4, 119, bytes.len() - 1] {
            assert!(matches!(decode(&bytes[..length], &PLACE, 512), Err(DecodeError::NeedBytes(_))), "{length}");
        }
    }
}

#[test]
fn an_unknown_version_or_required_feature_is_refused_and_not_skipped() {
    for (at, name) in [(4, "version"), (8, "feature")] {
        let mut bytes = encode(&PLACE, 100, 99, 98, 512, &Body::Filler);
        bytes[at] ^= 0x80;
        assert_eq!(decode(&bytes, &PLACE, 512), Err(DecodeError::NotARecord), "{name} without its checksum");
        reseal(&mut bytes);
        assert_eq!(decode(&bytes, &PLACE, 512), Err(DecodeError::Unsupported), "{name}");
    }
}

/// Gives a changed header a checksum that verifies, by trying the place's seed like the encoder does.
fn reseal(bytes: &mut [u8]) {
    use holdfast_common::checksum::{crc32c, crc32c_append};
    let mut seed = Vec::new();
    seed.extend_from_slice(&PLACE.disk.0.to_le_bytes());
    seed.extend_from_slice(&PLACE.segment.to_le_bytes());
    seed.extend_from_slice(&PLACE.generation.to_le_bytes());
    seed.extend_from_slice(&PLACE.offset.to_le_bytes());
    let crc = crc32c_append(crc32c_append(crc32c(&seed), &bytes[..116]), &bytes[120..]);
    bytes[116..120].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_checkpoint_reads_back_to_the_same_index_and_no_byte_of_it_can_change() {
    let (_disk, mut store) = fresh();
    for chunk in 1..=40 {
        let bytes = if chunk % 3 == 0 { 128 << 10 } else { 8192 };
        assert!(store.commit(&[Request::Put(put(chunk, 1, bytes))])[0].is_ok());
    }
    assert!(store.commit(&[delete(&[1, 2, 3, 4, 5, 6]), delete(&[9])]).iter().all(Result::is_ok));
    let state = store.shared.state.read();
    let bytes = checkpoint::encode(&state.index, DISK, 50, 60, 7);
    let read = checkpoint::decode(&bytes, DISK).unwrap();
    assert_eq!((read.durable_sequence, read.next_sequence, read.next_segment), (50, 60, 7));
    assert_eq!(read.index.volumes, state.index.volumes);
    assert_eq!(read.index.segments, state.index.segments);
    assert_eq!(read.index.tombstones, state.index.tombstones);
    assert_eq!(read.index.tombstone_records, state.index.tombstone_records);
    assert_eq!(read.index.punches, state.index.punches);
    assert_eq!(checkpoint::encode(&read.index, DISK, 50, 60, 7), bytes);
    assert!(checkpoint::decode(&bytes, DiskId(8)).is_none());
    let mut random = Random::new(5);
    for _ in 0..500 {
        let mut damaged = bytes.clone();
        let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        damaged[at] ^= 1 << random.below(8);
        assert!(checkpoint::decode(&damaged, DISK).is_none(), "byte {at}");
        assert!(checkpoint::decode(&bytes[..at], DISK).is_none(), "{at} bytes");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), seal: bool) {
        if bytes.len() > 120 && seal {
            // Random bytes with the right magic, length and checksum reach the fields behind.
            let kind = bytes[6] % 5;
            bytes[..8].copy_from_slice(&[b'H', b'F', b'r', b'c', 1, 0, kind, 0]);
            bytes[8..12].fill(0);
            bytes[8] = u8::from(bytes[7] == 0 && bytes[20] % 2 == 0);
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[12..16].copy_from_slice(&length.to_le_bytes());
            reseal(&mut bytes);
        }
        let _ = decode(&bytes, &PLACE, 512);
        let _ = Volumes::decode(&bytes);
        let _ = checkpoint::decode(&bytes, DISK);
    }
}
