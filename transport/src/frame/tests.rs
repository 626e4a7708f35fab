//! Golden bytes, and frames out of every splitting of the stream.

use proptest::prelude::*;

use super::*;

const HEADER_MAX: u32 = 1 << 10;
const BODY_MAX: u32 = 300 << 10;

fn head(kind: Kind) -> Head {
    Head {
        kind,
        method: 0x0102,
        stream: 0x1122_3344_5566_7788,
        header_bytes: 3,
        body_bytes: 5,
        deadline_ms: 0x0a0b_0c0d,
    }
}

#[test]
fn the_bytes_of_a_frame_header_are_pinned() {
    let golden = [
        b'H', b'F', b'T', b'1', 2, 0, 0x02, 0x01, // magic, kind, flags, method
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // stream
        3, 0, 0, 0, 5, 0, 0, 0, // lengths
        0x0d, 0x0c, 0x0b, 0x0a, 36, 204, 195, 129, // deadline, checksum
    ];
    assert_eq!(head(Kind::Request).encode(), golden);
    assert_eq!(Head::decode(&golden), Ok(head(Kind::Request)));
}

#[test]
fn every_kind_reads_back() {
    use Kind::{Hello, OneWay, Ping, Pong, Push, Refusal, Request, Response};
    for kind in [Hello, Request, Response, Refusal, OneWay, Push, Ping, Pong] {
        assert_eq!(Head::decode(&head(kind).encode()), Ok(head(kind)));
    }
}

fn resealed(change: impl FnOnce(&mut [u8; FIXED_BYTES])) -> [u8; FIXED_BYTES] {
    let mut raw = head(Kind::Request).encode();
    change(&mut raw);
    let crc = crc32c(&raw[..28]);
    raw[28..].copy_from_slice(&crc.to_le_bytes());
    raw
}

#[test]
fn each_way_to_be_no_frame_has_its_error() {
    let decode = |raw: [u8; FIXED_BYTES]| feed(&[&raw]).1;
    assert_eq!(decode(resealed(|raw| raw[3] = b'2')), Err(FrameError::BadMagic(u32::from_le_bytes(*b"HFT2"))));
    assert_eq!(decode(resealed(|raw| raw[4] = 0)), Err(FrameError::UnknownKind(0)));
    assert_eq!(decode(resealed(|raw| raw[4] = 9)), Err(FrameError::UnknownKind(9)));
    assert_eq!(decode(resealed(|raw| raw[5] = 0x80)), Err(FrameError::UnknownFlags(0x80)));
    assert_eq!(
        decode(resealed(|raw| raw[16..20].copy_from_slice(&(HEADER_MAX + 1).to_le_bytes()))),
        Err(FrameError::HeaderTooLarge(HEADER_MAX + 1))
    );
    assert_eq!(
        decode(resealed(|raw| raw[20..24].copy_from_slice(&u32::MAX.to_le_bytes()))),
        Err(FrameError::BodyTooLarge(u32::MAX))
    );
    assert_eq!(decode(head(Kind::Ping).encode()), Err(FrameError::Truncated));
}

#[test]
fn any_flipped_bit_of_the_fixed_header_is_noticed() {
    for bit in 0..FIXED_BYTES * 8 {
        let mut raw = head(Kind::Response).encode();
        raw[bit / 8] ^= 1 << (bit % 8);
        assert!(Head::decode(&raw).is_err(), "bit {bit}");
    }
}

#[test]
fn the_error_stays() {
    let mut decoder = Decoder::new(HEADER_MAX, BODY_MAX);
    decoder.space().put_slice(&[0xff; 40]);
    let error = decoder.next_frame().unwrap_err();
    decoder.space().put_slice(&head(Kind::Ping).encode());
    assert_eq!(decoder.next_frame(), Err(error));
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn a_large_body_is_read_straight_into_a_buffer_of_its_own_size() {
    let head = Head { header_bytes: 0, body_bytes: BODY_MAX, ..head(Kind::Response) };
    let mut decoder = Decoder::new(HEADER_MAX, BODY_MAX);
    decoder.space().put_slice(&head.encode());
    decoder.space().put_slice(&[1; 100]);
    assert_eq!(decoder.next_frame(), Ok(None));
    let rest = decoder.space();
    assert_eq!(rest.remaining_mut(), to_usize(BODY_MAX) - 100);
    let buffer = rest.get_ref().as_ptr();
    decoder.space().put_bytes(2, to_usize(BODY_MAX) - 100);
    let body = decoder.next_frame().unwrap().unwrap().body;
    assert_eq!((body.as_ptr(), body[0], body[100]), (buffer, 1, 2));
}

/// Puts the pieces through a decoder, never more at once than it has space for; its frames and how it ended.
fn feed(pieces: &[&[u8]]) -> (Vec<Frame>, Result<(), FrameError>) {
    let mut decoder = Decoder::new(HEADER_MAX, BODY_MAX);
    let mut frames = Vec::new();
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() {
            let mut space = decoder.space();
            let taken = space.remaining_mut().min(piece.len());
            assert!(taken > 0, "the decoder always has space");
            space.put_slice(&piece[..taken]);
            piece = &piece[taken..];
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Err(error)),
                }
            }
        }
    }
    (frames, decoder.finish())
}

fn some_frame() -> impl Strategy<Value = Frame> {
    let length = prop_oneof![4 => 0..200_usize, 1 => 60_000..70_000_usize, 1 => 0..300_000_usize];
    (1..=8_u8, any::<u16>(), any::<u64>(), any::<u32>(), 0..1024_usize, length, any::<u8>()).prop_map(
        |(kind, method, stream, deadline_ms, header_len, body_len, fill)| Frame {
            head: Head {
                kind: Kind::from_wire(kind).unwrap(),
                method,
                stream,
                header_bytes: u32::try_from(header_len).unwrap(),
                body_bytes: u32::try_from(body_len).unwrap(),
                deadline_ms,
            },
            header: Bytes::from(vec![fill; header_len]),
            body: (0..body_len).map(|i| u8::try_from(i % 251).unwrap() ^ fill).collect(),
        },
    )
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|f| [&f.head.encode()[..], &f.header, &f.body].concat()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_split(
        frames in prop::collection::vec(some_frame(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let bytes = wire(&frames);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(feed(&pieces), (frames, Ok(())));
    }

    #[test]
    fn a_truncated_stream_gives_the_whole_frames_and_says_so(
        frames in prop::collection::vec(some_frame(), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = wire(&frames);
        let cut = cut.index(bytes.len());
        let (got, end) = feed(&[&bytes[..cut]]);
        let whole = wire(&got).len();
        prop_assert_eq!(&got[..], &frames[..got.len()]);
        prop_assert_eq!(end, if whole == cut { Ok(()) } else { Err(FrameError::Truncated) });
    }

    #[test]
    fn random_bytes_never_panic_nor_pass(bytes in prop::collection::vec(any::<u8>(), 32..4096), keep_magic in any::<bool>()) {
        let mut bytes = bytes;
        if keep_magic {
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        }
        let (frames, end) = feed(&[&bytes]);
        prop_assert!(end.is_err() && frames.is_empty());
    }

    #[test]
    fn a_damaged_stream_never_panics(
        frames in prop::collection::vec(some_frame(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..10),
    ) {
        let mut bytes = wire(&frames);
        for (at, flip) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let (got, _) = feed(&[&bytes]);
        prop_assert!(got.len() <= frames.len() * 2 + 1);
    }
}
