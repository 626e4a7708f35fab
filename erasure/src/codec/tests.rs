//! Every erasure pattern of small codes, random ones of wide codes, and the matrix pinned.

use proptest::prelude::*;

use super::*;
use crate::CodeMode;

fn geometry(d: u8, m: u8, length_bytes: u32) -> Geometry {
    let shard = length_bytes.div_ceil(d.into()).next_multiple_of(4096);
    Geometry::recorded(d.into(), m.into(), length_bytes, shard).unwrap()
}

/// Bytes without a pattern that shards could share.
fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).flatten().take(length).collect();
    bytes.truncate(length);
    bytes.into()
}

fn joined(geometry: &Geometry, shards: &[Bytes]) -> Vec<u8> {
    let mut bytes = shards[..usize::from(geometry.data_shards())].concat();
    assert!(bytes[to_usize(geometry.length_bytes())..].iter().all(|b| *b == 0), "the padding is zeros");
    bytes.truncate(to_usize(geometry.length_bytes()));
    bytes
}

fn without(shards: &[Bytes], lost: impl Fn(usize) -> bool) -> Vec<Option<Bytes>> {
    shards.iter().enumerate().map(|(i, s)| (!lost(i)).then(|| s.clone())).collect()
}

#[test]
fn every_loss_of_up_to_m_shards_is_rebuilt_for_all_small_codes() {
    for (d, m) in (1..=6_u8).flat_map(|d| (1..=4_u8).map(move |m| (d, m))) {
        let geometry = geometry(d, m, u32::from(d) * 4096 - 1000);
        let data = noise(to_usize(geometry.length_bytes()), u64::from(d) * 31 + u64::from(m));
        let shards = encode(&geometry, std::slice::from_ref(&data));
        assert_eq!(joined(&geometry, &shards), data);
        let count = geometry.shards_count();
        for lost in 0_u32..1 << count {
            let mut damaged = without(&shards, |i| lost >> i & 1 == 1);
            let wanted: Vec<usize> = (0..count).collect();
            let result = reconstruct(&geometry, &mut damaged, &wanted);
            if lost.count_ones() <= u32::from(m) {
                assert_eq!(result, Ok(()), "{d}+{m} without {lost:b}");
                assert!(damaged.iter().zip(&shards).all(|(a, b)| a.as_ref() == Some(b)), "{d}+{m} without {lost:b}");
            } else {
                let present = count - usize::try_from(lost.count_ones()).unwrap();
                assert_eq!(result, Err(ReconstructError::TooFew { present, needed: d.into() }));
                assert_eq!(damaged, without(&shards, |i| lost >> i & 1 == 1), "an error changes nothing");
            }
        }
    }
}

#[test]
fn the_code_of_one_data_shard_makes_copies() {
    for m in 1..=31 {
        assert!(codec(1, m).parity_rows.iter().all(|row| row[..] == [1]), "1+{m}");
    }
}

#[test]
fn the_generator_matrix_is_pinned() {
    assert_eq!(codec(4, 2).parity_rows, [[27, 28, 18, 20], [28, 27, 20, 18]]);
    assert_eq!(codec(2, 2).parity_rows, [[3, 2], [2, 3]]);
}

#[test]
fn full_shards_share_the_memory_of_the_data() {
    let geometry = geometry(4, 2, 4 << 20);
    let data = noise(4 << 20, 5);
    let shards = encode(&geometry, std::slice::from_ref(&data));
    for (i, shard) in shards[..4].iter().enumerate() {
        assert_eq!(shard.as_ptr(), data[i << 20..].as_ptr());
    }
}

#[test]
fn malformed_calls_are_refused() {
    let geometry = geometry(2, 1, 8192);
    let shards = encode(&geometry, &[noise(8192, 1)]);
    assert_eq!(reconstruct(&geometry, &mut [None, None], &[0]), Err(ReconstructError::WrongCount(3)));
    assert_eq!(reconstruct(&geometry, &mut without(&shards, |_| false), &[3]), Err(ReconstructError::WrongCount(3)));
    let mut unequal = without(&shards, |i| i == 0);
    unequal[1] = Some(shards[1].slice(..100));
    assert_eq!(reconstruct(&geometry, &mut unequal, &[0]), Err(ReconstructError::UnequalLengths));
}

#[test]
#[should_panic(expected = "the data has the geometry's length")]
fn data_of_another_length_is_a_broken_invariant() {
    let _ = encode(&geometry(2, 1, 8192), &[noise(8191, 1)]);
}

#[derive(Clone, Debug)]
struct Case {
    geometry: Geometry,
    data: Bytes,
    pieces: Vec<Bytes>,
    lost: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    (1..=31_u32, 1..=31_u32, 1..=600_000_u32, any::<u64>(), prop::collection::vec(any::<prop::sample::Index>(), 0..6))
        .prop_filter("at most 32 shards", |(k, m, ..)| k + m <= 32)
        .prop_flat_map(|(k, m, length, seed, cuts)| {
            let geometry = Geometry::new(CodeMode::new(k, m).unwrap(), length, 32).unwrap();
            let data = noise(to_usize(length), seed);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let pieces: Vec<Bytes> = cuts.windows(2).map(|w| data.slice(w[0]..w[1])).collect();
            let all: Vec<usize> = (0..geometry.shards_count()).collect();
            let lost = prop::sample::subsequence(all, 0..=usize::from(geometry.parity_shards()));
            (Just(geometry), Just(data), Just(pieces), lost)
        })
        .prop_map(|(geometry, data, pieces, lost)| Case { geometry, data, pieces, lost })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_loss_of_up_to_m_shards_is_rebuilt_whatever_the_lengths_and_pieces(case in case()) {
        let Case { geometry, data, pieces, lost } = case;
        let shards = encode(&geometry, &pieces);
        prop_assert_eq!(joined(&geometry, &shards), &data[..]);
        let mut damaged = without(&shards, |i| lost.contains(&i));
        reconstruct(&geometry, &mut damaged, &lost).unwrap();
        prop_assert!(damaged.iter().zip(&shards).all(|(a, b)| a.as_ref() == Some(b)));
    }

    #[test]
    fn our_rebuilding_agrees_with_the_library(case in case()) {
        let Case { geometry, pieces, lost, .. } = case;
        let shards = encode(&geometry, &pieces);
        let mut theirs: Vec<Option<Vec<u8>>> =
            without(&shards, |i| lost.contains(&i)).into_iter().map(|s| s.map(|s| s.to_vec())).collect();
        codec(geometry.data_shards(), geometry.parity_shards()).inner.reconstruct(&mut theirs).unwrap();
        prop_assert!(theirs.iter().zip(&shards).all(|(a, b)| a.as_deref() == Some(&b[..])));
    }

    #[test]
    fn a_part_of_a_shard_is_rebuilt_from_the_same_part_of_others(
        case in case(), from in any::<prop::sample::Index>(), until in any::<prop::sample::Index>(),
    ) {
        let Case { geometry, pieces, lost, .. } = case;
        let length = to_usize(geometry.shard_length_bytes());
        let (a, b) = (from.index(length), until.index(length));
        let part = a.min(b)..a.max(b) + 1;
        let shards: Vec<Bytes> = encode(&geometry, &pieces).iter().map(|s| s.slice(part.clone())).collect();
        let mut damaged = without(&shards, |i| lost.contains(&i));
        let wanted = &lost[..lost.len().min(1)];
        reconstruct(&geometry, &mut damaged, wanted).unwrap();
        for (i, shard) in damaged.iter().enumerate() {
            match lost.contains(&i) && !wanted.contains(&i) {
                true => prop_assert_eq!(shard, &None, "only the wanted are rebuilt"),
                false => prop_assert_eq!(shard.as_ref(), Some(&shards[i])),
            }
        }
    }
}
