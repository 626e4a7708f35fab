//! Known part of a file's extents: a cache of the table's map. Pure.
//!
//! A range is known or not; within what is known, holes are what no extent covers. The cache belongs to one data
//! version of the inode; its owner drops it when the version moves on by more than the owner's own commits. A chunk's
//! record stays as long as an extent names it.

use super::ranges::Ranges;
use holdfast_common::{ChunkId, FileOffset};
use holdfast_proto::meta::{ChunkRecord, Extent, FileMap};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Extents of one file kept at most; beyond, the cache starts anew. About 10 MB.
const CACHED_EXTENTS_MAX: usize = 1 << 16;
/// Memory of an extent, a chunk's record and a known range, with their places in the trees, rounded up.
const EXTENT_BYTES: usize = 64;
const RECORD_BYTES: usize = 256;
const KNOWN_BYTES: usize = 32;

/// A part of a chunk that stands somewhere in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MappedRange {
    pub(crate) file_offset: FileOffset,
    pub(crate) length_bytes: u64,
    pub(crate) chunk: Arc<ChunkRecord>,
    pub(crate) chunk_offset: u64,
}

#[derive(Clone, Debug)]
struct CachedExtent {
    length_bytes: u64,
    chunk: ChunkId,
    chunk_offset: u64,
}

/// A chunk's record with the count of extents that name it.
#[derive(Debug)]
struct Named {
    record: Arc<ChunkRecord>,
    extents_count: usize,
}

/// The known part of one file's map.
#[derive(Debug, Default)]
pub(crate) struct ExtentMap {
    extents: BTreeMap<FileOffset, CachedExtent>,
    chunks: BTreeMap<ChunkId, Named>,
    known: Ranges,
}

impl ExtentMap {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Learns an answer of the table.
    pub(crate) fn learn(&mut self, map: &FileMap) {
        if self.extents.len() + map.extents.len() > CACHED_EXTENTS_MAX {
            self.clear();
        }
        let mut from = map.offset;
        let mut to = map.offset.saturating_add(map.covered_bytes);
        // What was known of the range before is of the same version, and given whole again.
        self.cut(FileOffset(from), FileOffset(to));
        let records: BTreeMap<u64, &ChunkRecord> = map.chunks.iter().map(|record| (record.chunk, record)).collect();
        for extent in &map.extents {
            if let Some(record) = records.get(&extent.chunk) {
                self.insert(extent, record);
            }
        }
        // Extents are given whole, so they may stick out of the asked range; that is known then, too.
        if let (Some(first), Some(last)) = (map.extents.first(), map.extents.last()) {
            from = from.min(first.file_offset);
            to = to.max(last.file_offset + last.length_bytes);
        }
        self.known.insert(from, to);
    }

    /// Puts a committed chunk's extents over what is there.
    pub(crate) fn commit(&mut self, chunks: &[ChunkRecord], extents: &[Extent]) {
        if self.extents.len() + extents.len() > CACHED_EXTENTS_MAX {
            self.clear();
        }
        for extent in extents {
            if let Some(record) = chunks.iter().find(|c| c.chunk == extent.chunk) {
                self.insert(extent, record);
                self.known.insert(extent.file_offset, extent.file_offset + extent.length_bytes);
            }
        }
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.extents.len() * EXTENT_BYTES + self.chunks.len() * RECORD_BYTES + self.known.len() * KNOWN_BYTES
    }

    fn insert(&mut self, extent: &Extent, record: &ChunkRecord) {
        let offset = FileOffset(extent.file_offset);
        self.cut(offset, offset + extent.length_bytes);
        let chunk = ChunkId(extent.chunk);
        let named = || Named { record: Arc::new(record.clone()), extents_count: 0 };
        self.chunks.entry(chunk).or_insert_with(named);
        let cached =
            CachedExtent { length_bytes: extent.length_bytes, chunk, chunk_offset: u64::from(extent.chunk_offset) };
        self.put(offset, cached);
    }

    /// Puts an extent whose chunk is known where there is none.
    fn put(&mut self, offset: FileOffset, extent: CachedExtent) {
        if let Some(named) = self.chunks.get_mut(&extent.chunk) {
            named.extents_count += 1;
            self.extents.insert(offset, extent);
        }
    }

    fn unname(&mut self, chunk: ChunkId) {
        if let Some(named) = self.chunks.get_mut(&chunk) {
            named.extents_count -= 1;
            if named.extents_count == 0 {
                self.chunks.remove(&chunk);
            }
        }
    }

    fn cut(&mut self, from: FileOffset, to: FileOffset) {
        let start = self.extents.range(..=from).next_back().map_or(from, |(o, _)| *o);
        let overlapping: Vec<FileOffset> =
            self.extents.range(start..to).filter(|(o, e)| **o + e.length_bytes > from).map(|(o, _)| *o).collect();
        for offset in overlapping {
            let Some(extent) = self.extents.remove(&offset) else { continue };
            let stop = offset + extent.length_bytes;
            if offset < from {
                self.put(offset, CachedExtent { length_bytes: from - offset, ..extent.clone() });
            }
            if stop > to {
                let chunk_offset = extent.chunk_offset + (to - offset);
                self.put(to, CachedExtent { length_bytes: stop - to, chunk_offset, chunk: extent.chunk });
            }
            self.unname(extent.chunk);
        }
    }

    /// The first offset in `from..to` that is not known.
    pub(crate) fn first_unknown(&self, from: FileOffset, to: FileOffset) -> Option<FileOffset> {
        self.known.first_missing(from.0, to.0).map(FileOffset)
    }

    /// The mapped parts of `from..to`, ascending, with holes between them. Only for known ranges.
    pub(crate) fn ranges(&self, from: FileOffset, to: FileOffset) -> Vec<MappedRange> {
        let start = self.extents.range(..=from).next_back().map_or(from, |(o, _)| *o);
        self.extents
            .range(start..to)
            .filter_map(|(offset, extent)| {
                let lo = from.max(*offset);
                let hi = to.min(*offset + extent.length_bytes);
                let chunk = &self.chunks.get(&extent.chunk)?.record;
                (lo < hi).then(|| MappedRange {
                    file_offset: lo,
                    length_bytes: hi - lo,
                    chunk: Arc::clone(chunk),
                    chunk_offset: extent.chunk_offset + (lo - *offset),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_common::Random;
    use proptest::prelude::*;

    fn record(chunk: u64) -> ChunkRecord {
        ChunkRecord { chunk, ..ChunkRecord::default() }
    }

    fn extent(file_offset: u64, length_bytes: u64, chunk: u64, chunk_offset: u32) -> Extent {
        Extent { file_offset, length_bytes, chunk, chunk_offset }
    }

    fn unknown(map: &ExtentMap, from: u64, to: u64) -> Option<u64> {
        map.first_unknown(FileOffset(from), FileOffset(to)).map(|offset| offset.0)
    }

    #[test]
    fn a_hole_inside_a_known_range_is_known() {
        let mut map = ExtentMap::default();
        map.learn(&FileMap {
            offset: 0,
            covered_bytes: 100,
            extents: vec![extent(0, 10, 1, 0), extent(50, 10, 1, 10)],
            chunks: vec![record(1)],
        });
        assert_eq!(unknown(&map, 0, 100), None);
        assert_eq!(unknown(&map, 0, 101), Some(100));
        let ranges: Vec<_> = map
            .ranges(FileOffset(5), FileOffset(55))
            .iter()
            .map(|r| (r.file_offset.0, r.length_bytes, r.chunk_offset))
            .collect();
        assert_eq!(ranges, [(5, 5, 5), (50, 5, 10)]);
    }

    proptest! {
        /// Random commits against a plain array of (chunk, offset).
        #[test]
        fn behaves_like_an_array(commits in proptest::collection::vec((0u64..200, 1u64..80), 1..40)) {
            let mut map = ExtentMap::default();
            let mut model: Vec<Option<(u64, u64)>> = vec![None; 300];
            for (chunk, (offset, length)) in (1u64..).zip(commits) {
                map.commit(&[record(chunk)], &[extent(offset, length, chunk, 7)]);
                for i in 0..length {
                    model[usize::try_from(offset + i).unwrap()] = Some((chunk, 7 + i));
                }
                let mut seen = vec![None; 300];
                for range in map.ranges(FileOffset(0), FileOffset(300)) {
                    for i in 0..range.length_bytes {
                        seen[usize::try_from(range.file_offset.0 + i).unwrap()] = Some((range.chunk.chunk, range.chunk_offset + i));
                    }
                }
                prop_assert_eq!(&seen, &model);
                let named: std::collections::BTreeSet<_> = model.iter().flatten().map(|(chunk, _)| *chunk).collect();
                prop_assert_eq!(map.chunks.keys().map(|chunk| chunk.0).collect::<Vec<_>>(), named.into_iter().collect::<Vec<_>>());
                for (at, cell) in (0u64..).zip(&model) {
                    prop_assert_eq!(unknown(&map, at, at + 1).is_none(), cell.is_some());
                }
            }
        }
    }

    /// Random answers of the table and commits against a plain array: what is known, mapped and held.
    #[test]
    fn answers_and_commits_behave_like_an_array() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let mut map = ExtentMap::default();
            // Not known, a hole, or a place in a chunk.
            let mut model: Vec<Option<Option<(u64, u64)>>> = vec![None; 200];
            let index = |at: u64| usize::try_from(at).unwrap();
            for chunk in 1..30u64 {
                let (from, length) = (random.below(100), random.below(60) + 1);
                if random.chance(40) {
                    map.commit(&[record(chunk)], &[extent(from, length, chunk, 7)]);
                    (0..length).for_each(|at| model[index(from + at)] = Some(Some((chunk, 7 + at))));
                    continue;
                }
                model[index(from)..index(from + length)].fill(Some(None));
                let mut extents = Vec::new();
                let mut at = from;
                while at < from + length && random.chance(70) {
                    let start = at + random.below(5);
                    let count = random.below(20) + 1;
                    if start >= from + length {
                        break;
                    }
                    // The last one is given whole, and may stick out.
                    extents.push(extent(start, count, chunk, 3));
                    (0..count).for_each(|at| model[index(start + at)] = Some(Some((chunk, 3 + at))));
                    at = start + count;
                }
                let chunks = vec![record(chunk)];
                map.learn(&FileMap { offset: from, covered_bytes: length, extents, chunks });
                for (at, cell) in (0u64..).zip(&model) {
                    assert_eq!(unknown(&map, at, at + 1).is_none(), cell.is_some(), "seed {seed}, at {at}");
                }
                let mut seen = vec![None; 200];
                for range in map.ranges(FileOffset(0), FileOffset(200)) {
                    for at in 0..range.length_bytes {
                        seen[index(range.file_offset.0 + at)] = Some((range.chunk.chunk, range.chunk_offset + at));
                    }
                }
                assert_eq!(seen, model.iter().map(|cell| cell.flatten()).collect::<Vec<_>>(), "seed {seed}");
                let named: std::collections::BTreeSet<_> = seen.iter().flatten().map(|(chunk, _)| chunk).collect();
                assert_eq!(map.chunks.len(), named.len(), "seed {seed}: records that no extent names are gone");
            }
            map.clear();
            assert_eq!((map.held_bytes(), unknown(&map, 0, 1)), (0, Some(0)));
        }
    }

    #[test]
    fn a_map_of_too_many_extents_begins_anew() {
        let mut map = ExtentMap::default();
        let part = |first: u64, count: u64| FileMap {
            offset: first * 10,
            covered_bytes: count * 10,
            extents: (first..first + count).map(|at| extent(at * 10, 5, 1, 0)).collect(),
            chunks: vec![record(1)],
        };
        let most = CACHED_EXTENTS_MAX as u64;
        map.learn(&part(0, most));
        let full = map.held_bytes();
        assert_eq!(unknown(&map, 0, most * 10), None);
        map.learn(&part(most, 1));
        assert_eq!((unknown(&map, 0, 10), unknown(&map, most * 10, most * 10 + 10)), (Some(0), None));
        assert!(map.held_bytes() < full / 1000);
    }

    #[test]
    fn an_extent_without_its_record_is_not_mapped() {
        let mut map = ExtentMap::default();
        map.learn(&FileMap { offset: 0, covered_bytes: 10, extents: vec![extent(0, 10, 1, 0)], chunks: vec![] });
        map.commit(&[], &[extent(20, 10, 2, 0)]);
        assert!(map.ranges(FileOffset(0), FileOffset(100)).is_empty());
        assert_eq!(unknown(&map, 20, 21), Some(20));
    }
}
