//! Sources of a range's bytes, put together from layers: the newest first. Pure.

use super::effects::PlanPiece;
use super::extent_map::MappedRange;
use bytes::Bytes;
use holdfast_common::FileOffset;
use std::collections::BTreeMap;

/// A range being looked up. Nothing that is put covers what was put before.
#[derive(Debug)]
pub(crate) struct Plan {
    from: FileOffset,
    to: FileOffset,
    /// Pieces by their offset, with their ends.
    pieces: BTreeMap<FileOffset, (FileOffset, PlanPiece)>,
}

impl Plan {
    pub(crate) fn new(from: FileOffset, to: FileOffset) -> Self {
        Self { from, to, pieces: BTreeMap::new() }
    }

    /// The parts of `from..to` that no layer has given, ascending.
    fn gaps_in(&self, from: FileOffset, to: FileOffset) -> Vec<(FileOffset, FileOffset)> {
        let mut gaps = Vec::new();
        // A layer outside of the range has nothing to give.
        if from >= to {
            return gaps;
        }
        let mut at = self.pieces.range(..=from).next_back().map_or(from, |(_, (end, _))| from.max(*end));
        for (start, (end, _)) in self.pieces.range(from..to) {
            if at < *start {
                gaps.push((at, *start));
            }
            at = at.max(*end);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    /// The parts of the range that no layer has given yet, ascending.
    pub(crate) fn gaps(&self) -> Vec<(FileOffset, FileOffset)> {
        self.gaps_in(self.from, self.to)
    }

    /// Puts bytes that stand at `start`.
    pub(crate) fn put_bytes(&mut self, start: FileOffset, bytes: &Bytes) {
        let (from, to) = (start.max(self.from), (start + bytes.len() as u64).min(self.to));
        let index = |offset: FileOffset| usize::try_from(offset - start).expect("an offset inside a buffer");
        for (lo, hi) in self.gaps_in(from, to) {
            self.pieces.insert(lo, (hi, PlanPiece::Bytes(bytes.slice(index(lo)..index(hi)))));
        }
    }

    /// Puts a part of a chunk.
    pub(crate) fn put_mapped(&mut self, range: &MappedRange) {
        let (from, to) = (range.file_offset.max(self.from), (range.file_offset + range.length_bytes).min(self.to));
        for (lo, hi) in self.gaps_in(from, to) {
            let piece = PlanPiece::Chunk {
                chunk: range.chunk.clone(),
                offset: range.chunk_offset + (lo - range.file_offset),
                length_bytes: hi - lo,
            };
            self.pieces.insert(lo, (hi, piece));
        }
    }

    /// The pieces; what no layer gave is zeros.
    pub(crate) fn finish(mut self) -> Vec<PlanPiece> {
        for (lo, hi) in self.gaps() {
            self.pieces.insert(lo, (hi, PlanPiece::Zeros(hi - lo)));
        }
        self.pieces.into_values().map(|(_, piece)| piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_common::Random;
    use holdfast_proto::meta::ChunkRecord;
    use std::sync::Arc;

    fn mapped(file_offset: u64, length_bytes: u64, chunk_offset: u64) -> MappedRange {
        MappedRange {
            file_offset: FileOffset(file_offset),
            length_bytes,
            chunk: Arc::new(ChunkRecord::default()),
            chunk_offset,
        }
    }

    #[test]
    fn a_newer_layer_hides_an_older_one_and_holes_are_zeros() {
        let mut plan = Plan::new(FileOffset(10), FileOffset(30));
        plan.put_bytes(FileOffset(12), &Bytes::from_static(b"new"));
        plan.put_bytes(FileOffset(8), &Bytes::from_static(b"olderolder"));
        plan.put_mapped(&mapped(16, 4, 100));
        assert_eq!(plan.gaps(), [(FileOffset(20), FileOffset(30))]);
        let chunk = Arc::new(ChunkRecord::default());
        assert_eq!(
            plan.finish(),
            [
                PlanPiece::Bytes(Bytes::from_static(b"de")),
                PlanPiece::Bytes(Bytes::from_static(b"new")),
                PlanPiece::Bytes(Bytes::from_static(b"der")),
                PlanPiece::Chunk { chunk, offset: 102, length_bytes: 2 },
                PlanPiece::Zeros(10),
            ]
        );
    }

    /// Random layers against a plain array of bytes.
    #[test]
    fn behaves_like_an_array() {
        for seed in 0..500 {
            let mut random = Random::new(seed);
            let from = random.below(50);
            let to = from + random.below(60) + 1;
            let mut plan = Plan::new(FileOffset(from), FileOffset(to));
            // Nothing, a byte, or the offset in a chunk.
            let mut model: Vec<Option<Result<u8, u64>>> = vec![None; 200];
            for stamp in 1..=u8::try_from(random.below(8) + 1).unwrap() {
                let (start, length) = (random.below(100), random.below(30) + 1);
                let put_bytes = random.chance(50);
                if put_bytes {
                    plan.put_bytes(FileOffset(start), &Bytes::from(vec![stamp; usize::try_from(length).unwrap()]));
                } else {
                    plan.put_mapped(&mapped(start, length, 1000 * u64::from(stamp)));
                }
                for at in start..start + length {
                    let there = if put_bytes { Ok(stamp) } else { Err(1000 * u64::from(stamp) + at - start) };
                    model[usize::try_from(at).unwrap()].get_or_insert(there);
                }
                let gaps: Vec<u64> = plan.gaps().into_iter().flat_map(|(lo, hi)| lo.0..hi.0).collect();
                let missing: Vec<u64> =
                    (from..to).filter(|at| model[usize::try_from(*at).unwrap()].is_none()).collect();
                assert_eq!(gaps, missing, "seed {seed}");
            }
            let seen: Vec<Option<Result<u8, u64>>> = plan
                .finish()
                .into_iter()
                .flat_map(|piece| match piece {
                    PlanPiece::Bytes(bytes) => bytes.iter().map(|byte| Some(Ok(*byte))).collect::<Vec<_>>(),
                    PlanPiece::Zeros(count) => (0..count).map(|_| None).collect(),
                    PlanPiece::Chunk { offset, length_bytes, .. } => {
                        (offset..offset + length_bytes).map(|at| Some(Err(at))).collect()
                    }
                })
                .collect();
            let wanted = &model[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
            assert_eq!(seen, wanted, "seed {seed}");
        }
    }
}
