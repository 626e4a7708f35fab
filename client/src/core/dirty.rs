//! The written and not yet flushed ranges of one file. Pure.
//!
//! Ranges never overlap; a later write cuts what it covers. Small adjoining writes grow one buffer, so that a file
//! written in lines does not become a map of lines. What is left of a buffer keeps all of it in memory: less than half is copied
//! out, so that no more than twice the bytes counted are held, and no more than once the buffer is copied.

use bytes::{Bytes, BytesMut};
use holdfast_common::FileOffset;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// A buffer grows up to this; beyond, the next write starts another. One kernel write request is at most 1 MiB.
const GROWING_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Clone)]
enum Piece {
    /// Still taking adjoining writes.
    Growing(BytesMut),
    Frozen(Part),
}

/// The part of a written buffer that no later write has overwritten.
#[derive(Debug, Clone)]
struct Part {
    bytes: Bytes,
    buffer_bytes: usize,
}

impl Part {
    fn whole(bytes: Bytes) -> Self {
        Self { buffer_bytes: bytes.len(), bytes }
    }

    fn of(bytes: Bytes, buffer_bytes: usize) -> Self {
        if bytes.len() < buffer_bytes / 2 {
            Self::whole(Bytes::copy_from_slice(&bytes))
        } else {
            Self { bytes, buffer_bytes }
        }
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Growing(b) => b.len(),
            Self::Frozen(part) => part.bytes.len(),
        }
    }

    fn freeze(self) -> Part {
        match self {
            Self::Growing(b) => Part { buffer_bytes: b.capacity(), bytes: b.freeze() },
            Self::Frozen(part) => part,
        }
    }
}

/// Ranges of one file by offset.
#[derive(Debug, Default, Clone)]
pub(crate) struct DirtyMap {
    pieces: BTreeMap<FileOffset, Piece>,
    bytes: usize,
}

fn end(offset: FileOffset, piece: &Piece) -> FileOffset {
    offset + piece.len() as u64
}

impl DirtyMap {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// One past the last byte; 0 if there is none.
    pub(crate) fn end(&self) -> FileOffset {
        self.pieces.last_key_value().map_or(FileOffset(0), |(offset, piece)| end(*offset, piece))
    }

    pub(crate) fn pieces_count(&self) -> usize {
        self.pieces.len()
    }

    /// Writes `data` at `offset` over what is there. Answers how many bytes held before it replaced.
    pub(crate) fn write(&mut self, offset: FileOffset, data: Bytes) -> usize {
        if data.is_empty() {
            return 0;
        }
        let before = self.bytes;
        let added = data.len();
        self.cut(offset, offset + data.len() as u64);
        self.bytes += added;
        if !self.grow(offset, &data) {
            let piece = if data.len() < GROWING_BYTES_MAX / 4 {
                Piece::Growing(BytesMut::from(&data[..]))
            } else {
                Piece::Frozen(Part::whole(data))
            };
            self.pieces.insert(offset, piece);
        }
        before + added - self.bytes
    }

    /// Appends to the range that ends at `offset`, if it still grows.
    fn grow(&mut self, offset: FileOffset, data: &Bytes) -> bool {
        let Some((start, Piece::Growing(buffer))) = self.pieces.range_mut(..offset).next_back() else {
            return false;
        };
        if *start + buffer.len() as u64 != offset || buffer.len() + data.len() > GROWING_BYTES_MAX {
            return false;
        }
        buffer.extend_from_slice(data);
        true
    }

    /// Forgets the data in `from..to`.
    pub(crate) fn cut(&mut self, from: FileOffset, to: FileOffset) {
        let first = self
            .pieces
            .range(..=from)
            .next_back()
            .filter(|(offset, piece)| end(**offset, piece) > from)
            .map(|(offset, _)| *offset);
        let keys: Vec<FileOffset> = first
            .into_iter()
            .chain(self.pieces.range((Excluded(from), Unbounded)).map(|(o, _)| *o).take_while(|o| *o < to))
            .collect();
        for start in keys {
            let Some(piece) = self.pieces.remove(&start) else { continue };
            let Part { bytes, buffer_bytes } = piece.freeze();
            self.bytes -= bytes.len();
            let stop = start + bytes.len() as u64;
            if start < from {
                self.insert(start, Part::of(bytes.slice(..to_index(from - start)), buffer_bytes));
            }
            if stop > to {
                self.insert(to, Part::of(bytes.slice(to_index(to - start)..), buffer_bytes));
            }
        }
    }

    fn insert(&mut self, offset: FileOffset, part: Part) {
        self.bytes += part.bytes.len();
        self.pieces.insert(offset, Piece::Frozen(part));
    }

    /// Takes ranges in ascending order, at most `limit_bytes` of them (the last one is cut there) and at most
    /// `limit_pieces`. What is left has higher offsets only, so that a crash between the commits of the two never
    /// shows a later byte without an earlier one.
    pub(crate) fn take(&mut self, limit_bytes: usize, limit_pieces: usize) -> FrozenRanges {
        let mut ranges = Vec::new();
        let mut room = limit_bytes;
        while room > 0 && ranges.len() < limit_pieces {
            let Some((offset, piece)) = self.pieces.pop_first() else { break };
            let Part { mut bytes, buffer_bytes } = piece.freeze();
            self.bytes -= bytes.len();
            if bytes.len() > room {
                let rest = bytes.split_off(room);
                self.insert(offset + room as u64, Part::of(rest, buffer_bytes));
                bytes = Part::of(bytes, buffer_bytes).bytes;
            }
            room -= bytes.len();
            ranges.push((offset, bytes));
        }
        FrozenRanges { ranges }
    }

    /// Parts in `from..to`, ascending. A range that is shown grows no more.
    pub(crate) fn parts(&mut self, from: FileOffset, to: FileOffset) -> Vec<(FileOffset, Bytes)> {
        let first = self.pieces.range(..=from).next_back().map_or(from, |(offset, _)| *offset);
        let mut parts = Vec::new();
        for (offset, piece) in self.pieces.range_mut(first..to) {
            if let Piece::Growing(buffer) = piece {
                *piece = Piece::Frozen(Piece::Growing(std::mem::take(buffer)).freeze());
            }
            if let Piece::Frozen(part) = piece {
                parts.extend(within(*offset, &part.bytes, from, to));
            }
        }
        parts
    }

    #[cfg(test)]
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces.iter().map(|(offset, piece)| (offset.0, end(*offset, piece).0))
    }
}

fn to_index(distance: u64) -> usize {
    usize::try_from(distance).expect("a distance inside one buffer")
}

/// Ranges taken out of a [`DirtyMap`] to be flushed: ascending, not overlapping, never changed again.
#[derive(Debug, Default, Clone)]
pub(crate) struct FrozenRanges {
    pub(crate) ranges: Vec<(FileOffset, Bytes)>,
}

impl FrozenRanges {
    pub(crate) fn bytes(&self) -> usize {
        self.ranges.iter().map(|(_, b)| b.len()).sum()
    }

    pub(crate) fn end(&self) -> FileOffset {
        self.ranges.last().map_or(FileOffset(0), |(offset, b)| *offset + b.len() as u64)
    }

    /// Parts in `from..to`, ascending.
    pub(crate) fn parts(&self, from: FileOffset, to: FileOffset) -> impl Iterator<Item = (FileOffset, Bytes)> + '_ {
        let first = self.ranges.partition_point(|(offset, bytes)| *offset + bytes.len() as u64 <= from);
        self.ranges[first..].iter().filter_map(move |(offset, bytes)| within(*offset, bytes, from, to))
    }
}

/// The part of `bytes`, which stand at `offset`, that lies in `from..to`.
fn within(offset: FileOffset, bytes: &Bytes, from: FileOffset, to: FileOffset) -> Option<(FileOffset, Bytes)> {
    let (lo, hi) = (from.max(offset), to.min(offset + bytes.len() as u64));
    (lo < hi).then(|| (lo, bytes.slice(to_index(lo - offset)..to_index(hi - offset))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_common::Random;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[test]
    fn small_adjoining_writes_become_one_piece() {
        let mut map = DirtyMap::default();
        for line in 0..100u64 {
            map.write(FileOffset(line * 10), Bytes::from_static(b"0123456789"));
        }
        assert_eq!(map.pieces_count(), 1);
        assert_eq!(map.bytes(), 1000);
    }

    #[test]
    fn taking_leaves_only_higher_offsets() {
        let mut map = DirtyMap::default();
        map.write(FileOffset(1000), Bytes::from(vec![2; 100]));
        map.write(FileOffset(0), Bytes::from(vec![1; 100]));
        let taken = map.take(150, 10);
        assert_eq!(taken.ranges.iter().map(|(o, b)| (o.0, b.len())).collect::<Vec<_>>(), [(0, 100), (1000, 50)]);
        assert_eq!(map.ranges().collect::<Vec<_>>(), [(1050, 1100)]);
        assert_eq!(map.bytes(), 50);
    }

    /// A buffer that tells when it is let go.
    struct Buffer {
        _kept: Arc<()>,
    }
    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &[7; 1 << 20]
        }
    }

    #[test]
    fn a_small_rest_of_a_large_buffer_does_not_keep_it() {
        let kept = Arc::new(());
        let buffer = || Bytes::from_owner(Buffer { _kept: Arc::clone(&kept) });
        let mut map = DirtyMap::default();
        // Each but the last is overwritten except for its first byte.
        for at in 0..50 {
            map.write(FileOffset(at), buffer());
        }
        assert_eq!((map.bytes(), Arc::strong_count(&kept)), ((1 << 20) + 49, 2));
        // A generation that takes all but little of a buffer leaves it no part of it, nor the other way round.
        let taken = map.take((1 << 20) - 100, 100);
        drop(taken);
        assert_eq!((map.bytes(), Arc::strong_count(&kept)), (149, 1));
        map.write(FileOffset(2 << 20), buffer());
        let taken = map.take(249, 100);
        map.cut(FileOffset(0), FileOffset(u64::MAX));
        assert_eq!((taken.bytes(), Arc::strong_count(&kept)), (249, 1));
    }

    proptest! {
        /// Random writes, cuts and takes against a plain array of bytes.
        #[test]
        fn behaves_like_an_array(ops in proptest::collection::vec((0u8..8, 0u64..300, 1usize..120), 1..60)) {
            let mut map = DirtyMap::default();
            let mut model: Vec<Option<u8>> = vec![None; 600];
            for (stamp, (kind, offset, length)) in (1u8..).zip(ops) {
                let span = usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + length;
                match kind {
                    0 => {
                        map.cut(FileOffset(offset), FileOffset(offset + length as u64));
                        model[span].fill(None);
                    }
                    1 => {
                        for (start, bytes) in map.take(length, 3).ranges {
                            for (i, b) in bytes.iter().enumerate() {
                                let cell = &mut model[usize::try_from(start.0).unwrap() + i];
                                prop_assert_eq!(*cell, Some(*b));
                                *cell = None;
                            }
                        }
                    }
                    _ => {
                        let replaced = map.write(FileOffset(offset), Bytes::from(vec![stamp; length]));
                        prop_assert_eq!(replaced, model[span.clone()].iter().flatten().count());
                        model[span].fill(Some(stamp));
                    }
                }
                prop_assert_eq!(map.bytes(), model.iter().flatten().count());
                let mut seen = vec![None; model.len()];
                for (start, bytes) in map.parts(FileOffset(5), FileOffset(model.len() as u64)) {
                    for (i, b) in bytes.iter().enumerate() {
                        seen[usize::try_from(start.0).unwrap() + i] = Some(*b);
                    }
                }
                prop_assert_eq!(&seen[5..], &model[5..]);
            }
        }
    }

    /// Random writes, cuts and takes: ranges do not overlap, and what is taken is below what is left, within its limits.
    #[test]
    fn what_is_taken_is_the_lowest_and_within_its_limits() {
        for seed in 0..200 {
            let (mut map, mut random) = (DirtyMap::default(), Random::new(seed));
            for _ in 0..80 {
                let (offset, length) = (random.below(1 << 20), random.index(100_000) + 1);
                match random.below(6) {
                    0 => map.cut(FileOffset(offset), FileOffset(offset + length as u64)),
                    1 => {
                        let before = map.bytes();
                        let (limit_bytes, limit_pieces) = (length, random.index(4) + 1);
                        let taken = map.take(limit_bytes, limit_pieces);
                        assert!(taken.bytes() <= limit_bytes && taken.ranges.len() <= limit_pieces, "seed {seed}");
                        assert_eq!(taken.bytes() + map.bytes(), before, "seed {seed}");
                        assert!(map.ranges().next().is_none_or(|(start, _)| start >= taken.end().0), "seed {seed}");
                        let full = taken.bytes() == limit_bytes || taken.ranges.len() == limit_pieces;
                        assert!(full || map.is_empty(), "seed {seed}: it takes as much as it may");
                    }
                    _ => drop(map.write(FileOffset(offset), Bytes::from(vec![1; length]))),
                }
                let ranges: Vec<_> = map.ranges().collect();
                assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "seed {seed}: {ranges:?}");
                assert!(ranges.iter().all(|(start, end)| start < end), "seed {seed}: {ranges:?}");
                assert_eq!((map.end().0, map.pieces_count()), (ranges.last().map_or(0, |r| r.1), ranges.len()));
            }
        }
    }

    /// A reader that was shown bytes keeps them as they were.
    #[test]
    fn bytes_that_were_shown_do_not_change_under_their_reader() {
        let mut map = DirtyMap::default();
        map.write(FileOffset(0), Bytes::from_static(b"first"));
        let shown = map.parts(FileOffset(0), FileOffset(100));
        map.write(FileOffset(5), Bytes::from_static(b" second"));
        map.write(FileOffset(0), Bytes::from_static(b"FIRST"));
        let frozen = map.take(1 << 20, 100);
        map.write(FileOffset(0), Bytes::from_static(b"third"));
        assert_eq!(shown, [(FileOffset(0), Bytes::from_static(b"first"))]);
        let text: Vec<u8> = frozen.parts(FileOffset(2), FileOffset(8)).flat_map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(text, b"RST se");
    }
}
