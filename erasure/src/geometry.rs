//! Shape of a chunk's stripe: how many shards, how long, which bytes in which.

use std::ops::Range;

use holdfast_common::limits::{CHUNK_BYTES_MAX, PAGE_BYTES, SHARD_TARGET_BYTES, SHARDS_MAX};

use crate::CodeMode;

/// The stripe of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    length_bytes: u32,
    shard_length_bytes: u32,
    data_shards: u8,
    parity_shards: u8,
}

/// A part of a data shard that holds wanted bytes of the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Number of the shard in the chunk.
    pub shard: u8,
    /// Offset to read at in the shard: a multiple of 4 KiB.
    pub offset: u32,
    /// Bytes to read: a multiple of 4 KiB, not zero, within the shard.
    pub length_bytes: u32,
    /// Bytes of what was read before the wanted ones.
    pub skip_bytes: u32,
    /// Wanted bytes.
    pub take_bytes: u32,
}

impl Geometry {
    /// The stripe of a new chunk of `length_bytes` over at most `usable_slots` members (D2, R13): wide enough for
    /// [`SHARD_TARGET_BYTES`] a shard, narrowed to what is usable with the full parity.
    ///
    /// `None` if the chunk is empty or too long, or fewer than 1 + m members are usable.
    #[must_use]
    pub fn new(mode: CodeMode, length_bytes: u32, usable_slots: usize) -> Option<Self> {
        if length_bytes == 0 || length_bytes > CHUNK_BYTES_MAX {
            return None;
        }
        let room = usable_slots.checked_sub(usize::from(mode.m())).filter(|room| *room > 0)?;
        let wanted = length_bytes.div_ceil(SHARD_TARGET_BYTES).min(u32::from(mode.k()));
        let wanted = wanted.min(u32::try_from(room).unwrap_or(u32::MAX));
        let shard_length_bytes = shard_length(length_bytes, wanted);
        // Rounding up to pages can leave the last shards of a wide stripe without a byte; such are not stored.
        let data_shards = length_bytes.div_ceil(shard_length_bytes);
        Some(Self {
            length_bytes,
            shard_length_bytes,
            data_shards: u8::try_from(data_shards).ok()?,
            parity_shards: mode.m(),
        })
    }

    /// The stripe that a chunk record names: its shards are as long as the chunk needs, which is more than [`holds`] asks.
    ///
    /// `None` if the numbers do not belong together.
    #[must_use]
    pub fn recorded(data_shards: u32, parity_shards: u32, length_bytes: u32, shard_length_bytes: u32) -> Option<Self> {
        let (d, m) = (u8::try_from(data_shards).ok()?, u8::try_from(parity_shards).ok()?);
        let holds = d > 0
            && m > 0
            && usize::from(d) + usize::from(m) <= SHARDS_MAX
            && (1..=CHUNK_BYTES_MAX).contains(&length_bytes)
            && shard_length_bytes == shard_length(length_bytes, data_shards);
        holds.then_some(Self { length_bytes, shard_length_bytes, data_shards: d, parity_shards: m })
    }

    /// Length of the chunk.
    #[must_use]
    pub fn length_bytes(&self) -> u32 {
        self.length_bytes
    }

    /// Length of every shard: a multiple of 4 KiB.
    #[must_use]
    pub fn shard_length_bytes(&self) -> u32 {
        self.shard_length_bytes
    }

    /// Data shards: 0 .. d.
    #[must_use]
    pub fn data_shards(&self) -> u8 {
        self.data_shards
    }

    /// Parity shards: d .. d + m.
    #[must_use]
    pub fn parity_shards(&self) -> u8 {
        self.parity_shards
    }

    /// All shards: d + m.
    #[must_use]
    pub fn shards_count(&self) -> usize {
        usize::from(self.data_shards) + usize::from(self.parity_shards)
    }

    /// Pieces to read for a range of the chunk, in the chunk's order, widened to whole pages. What lies beyond the
    /// chunk's end is left out.
    pub fn pieces(&self, range: Range<u32>) -> impl Iterator<Item = Piece> + use<> {
        self.pieces_by_block(range, self.shard_length_bytes)
    }

    /// As [`Geometry::pieces`], with no piece across a multiple of `block_bytes` of its shard: a multiple of 4 KiB, not
    /// zero.
    pub fn pieces_by_block(&self, range: Range<u32>, block_bytes: u32) -> impl Iterator<Item = Piece> + use<> {
        assert!(block_bytes > 0 && block_bytes.is_multiple_of(PAGE_BYTES), "a block is whole pages");
        let shard_length = self.shard_length_bytes;
        let end = range.end.min(self.length_bytes);
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (shard, from) = (at / shard_length, at % shard_length);
            let take_bytes = (end - at).min(shard_length - from).min(block_bytes - from % block_bytes);
            at += take_bytes;
            let offset = from - from % PAGE_BYTES;
            let until = (from + take_bytes).next_multiple_of(PAGE_BYTES);
            Some(Piece {
                shard: u8::try_from(shard).expect("a byte of the chunk lies in one of its shards"),
                offset,
                length_bytes: until - offset,
                skip_bytes: from - offset,
                take_bytes,
            })
        })
    }
}

/// Whether data shards can hold a chunk: what a datanode asks of a shard, and all that a table asked of a chunk before feature
/// level 1. Such shards may be longer than [`Geometry::recorded`] lets them be, and may still be there.
///
/// # Errors
/// What is wrong, in words.
pub fn holds(data_shards: u8, length_bytes: u32, shard_length_bytes: u32) -> Result<(), &'static str> {
    if shard_length_bytes == 0 || !shard_length_bytes.is_multiple_of(PAGE_BYTES) {
        Err("a shard's length is a multiple of 4 KiB and not zero")
    } else if shard_length_bytes > CHUNK_BYTES_MAX || length_bytes > CHUNK_BYTES_MAX {
        Err("a shard or chunk is longer than the longest chunk")
    } else if u64::from(length_bytes) > u64::from(data_shards) * u64::from(shard_length_bytes) {
        Err("the data shards cannot hold the chunk")
    } else {
        Ok(())
    }
}

/// R14: a whole number of pages, so that an aligned page of the chunk lies in one shard.
fn shard_length(length_bytes: u32, data_shards: u32) -> u32 {
    length_bytes.div_ceil(data_shards).next_multiple_of(PAGE_BYTES)
}

const _: () = assert!(CHUNK_BYTES_MAX < u32::MAX - PAGE_BYTES);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mode(text: &str) -> CodeMode {
        text.parse().unwrap()
    }

    fn shape(mode_text: &str, length_bytes: u32, usable: usize) -> Option<(u8, u8, u32)> {
        Geometry::new(mode(mode_text), length_bytes, usable)
            .map(|g| (g.data_shards(), g.parity_shards(), g.shard_length_bytes()))
    }

    #[test]
    fn a_small_chunk_is_one_data_shard_with_full_parity() {
        assert_eq!(shape("4+2", 1, 6), Some((1, 2, 4096)));
        assert_eq!(shape("4+2", 4096, 6), Some((1, 2, 4096)));
        assert_eq!(shape("4+2", 65536, 6), Some((1, 2, 65536)));
        assert_eq!(shape("4+2", 65537, 6), Some((2, 2, 36864)));
    }

    #[test]
    fn a_full_chunk_is_a_full_stripe() {
        assert_eq!(shape("4+2", 4 << 20, 6), Some((4, 2, 1 << 20)));
        assert_eq!(shape("1+2", 4 << 20, 3), Some((1, 2, 4 << 20)));
    }

    #[test]
    fn a_stripe_narrows_and_keeps_its_parity() {
        assert_eq!(shape("4+2", 4 << 20, 5), Some((3, 2, 1_400_832)));
        assert_eq!(shape("4+2", 4 << 20, 4), Some((2, 2, 2 << 20)));
        assert_eq!(shape("4+2", 4 << 20, 3), Some((1, 2, 4 << 20)));
        assert_eq!(shape("4+2", 4 << 20, 2), None);
        assert_eq!(shape("4+2", 4 << 20, 0), None);
    }

    #[test]
    fn an_empty_or_oversized_chunk_has_no_geometry() {
        assert_eq!(shape("4+2", 0, 6), None);
        assert_eq!(shape("4+2", CHUNK_BYTES_MAX + 1, 6), None);
    }

    #[test]
    fn no_data_shard_of_a_wide_stripe_is_empty() {
        // 2,031,617 bytes over 31 shards would be 17 pages each, and 30 such shards hold them all.
        assert_eq!(shape("31+1", 31 * 65536 + 1, 32), Some((30, 1, 69632)));
    }

    #[test]
    fn an_aligned_page_is_read_from_one_shard() {
        let geometry = Geometry::new(mode("4+2"), (4 << 20) - 100, 6).unwrap();
        for page in 0..1024 {
            let pieces: Vec<_> = geometry.pieces(page * 4096..(page + 1) * 4096).collect();
            assert_eq!(pieces.len(), 1, "page {page}");
            assert_eq!((pieces[0].length_bytes, pieces[0].skip_bytes), (4096, 0));
        }
    }

    #[test]
    fn a_range_is_cut_at_blocks_and_shards() {
        let geometry = Geometry::new(mode("4+2"), 4 << 20, 6).unwrap();
        let block = 256 << 10;
        let pieces: Vec<_> = geometry
            .pieces_by_block((1 << 20) - block - 100..(1 << 20) + 200, block)
            .map(|piece| (piece.shard, piece.offset, piece.length_bytes, piece.skip_bytes, piece.take_bytes))
            .collect();
        let last = (1 << 20) - block;
        assert_eq!(pieces, [(0, last - 4096, 4096, 3996, 100), (0, last, block, 0, block), (1, 0, 4096, 0, 200)]);
    }

    #[test]
    fn numbers_that_do_not_belong_together_are_no_geometry() {
        assert!(Geometry::recorded(4, 2, 4 << 20, 1 << 20).is_some());
        for (d, m, length, shard) in [
            (4, 2, 4 << 20, (1 << 20) + 4096),
            (4, 2, 4 << 20, 0),
            (0, 2, 4096, 4096),
            (1, 0, 4096, 4096),
            (31, 2, 4096, 4096),
            (300, 2, 4096, 4096),
            (1, 2, 0, 0),
            (1, 2, CHUNK_BYTES_MAX + 1, CHUNK_BYTES_MAX + 4096),
        ] {
            assert_eq!(Geometry::recorded(d, m, length, shard), None, "{d} {m} {length} {shard}");
        }
    }

    #[test]
    fn shards_hold_a_chunk_if_they_are_whole_pages_and_long_enough_and_none_is_too_long() {
        let full = CHUNK_BYTES_MAX;
        for (d, length, shard) in [(1, 0, 4096), (1, 4096, 4096), (2, 4097, 4096), (4, 10, full), (1, full, full)] {
            assert_eq!(holds(d, length, shard), Ok(()), "{d} {length} {shard}");
        }
        for (d, length, shard) in [(1, 0, 0), (1, 10, 0), (1, 10, 4095), (1, 10, full + 4096), (2, full + 1, full)] {
            assert!(holds(d, length, shard).is_err(), "{d} {length} {shard}");
        }
        for (d, length, shard) in [(0, 1, 4096), (1, 4097, 4096), (2, 8193, 4096)] {
            assert!(holds(d, length, shard).is_err(), "{d} {length} {shard}");
        }
    }

    proptest! {
        #[test]
        fn a_geometry_holds_its_chunk_without_waste_and_reads_back_from_its_record(
            k in 1..=31_u32, m in 1..=31_u32, length in 1..=CHUNK_BYTES_MAX, usable in 0..40_usize,
        ) {
            prop_assume!(k + m <= 32);
            let mode = CodeMode::new(k, m).unwrap();
            let Some(g) = Geometry::new(mode, length, usable) else {
                prop_assert!(usable < usize::from(mode.m()) + 1);
                return Ok(());
            };
            prop_assert!(g.shards_count() <= usable && g.data_shards() <= mode.k());
            prop_assert_eq!(g.parity_shards(), mode.m());
            let (d, shard) = (u32::from(g.data_shards()), g.shard_length_bytes());
            prop_assert!(shard % PAGE_BYTES == 0 && d * shard >= length && (d - 1) * shard < length);
            prop_assert_eq!(Geometry::recorded(d, u32::from(g.parity_shards()), length, shard), Some(g));
            prop_assert_eq!(holds(g.data_shards(), length, shard), Ok(()));
        }

        #[test]
        fn pieces_cover_their_range_once_in_order_and_in_whole_pages(
            k in 1..=16_u32, length in 1..=CHUNK_BYTES_MAX, a in 0..=CHUNK_BYTES_MAX, b in 0..=CHUNK_BYTES_MAX + 9,
            blocks in 0..100_u32,
        ) {
            let g = Geometry::new(CodeMode::new(k, 2).unwrap(), length, 32).unwrap();
            let mut at = a.min(b);
            let end = a.max(b).min(length);
            let block = if blocks == 0 { g.shard_length_bytes() } else { blocks * PAGE_BYTES };
            for piece in g.pieces_by_block(a.min(b)..a.max(b), block) {
                prop_assert_eq!(piece.offset / block, (piece.offset + piece.length_bytes - 1) / block);
                prop_assert_eq!(u32::from(piece.shard) * g.shard_length_bytes() + piece.offset + piece.skip_bytes, at);
                prop_assert!(piece.take_bytes > 0 && piece.skip_bytes < PAGE_BYTES);
                prop_assert!(piece.offset % PAGE_BYTES == 0 && piece.length_bytes % PAGE_BYTES == 0);
                let surplus = piece.length_bytes - piece.skip_bytes - piece.take_bytes;
                prop_assert!(surplus < PAGE_BYTES);
                prop_assert!(piece.offset + piece.length_bytes <= g.shard_length_bytes());
                prop_assert!(piece.shard < g.data_shards());
                at += piece.take_bytes;
            }
            prop_assert_eq!(at, end.max(a.min(b)));
        }
    }
}
