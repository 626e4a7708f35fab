//! What this client knows of a file's extents: a cache of the table's map. Pure.
//!
//! A range is known or not; within what is known, holes are what no extent covers. The cache belongs to one data
//! version of the inode; its owner drops it when the version moves on by more than the owner's own commits.

use holdfast_common::ChunkId;
use holdfast_proto::meta::{ChunkRecord, Extent, FileMap};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Extents of one file kept at most; beyond, the cache starts anew. About 10 MB.
const CACHED_EXTENTS_MAX: usize = 1 << 16;

/// A part of a chunk that stands somewhere in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MappedRange {
    pub(crate) file_offset: u64,
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

/// The known part of one file's map.
#[derive(Debug, Default)]
pub(crate) struct ExtentMap {
    extents: BTreeMap<u64, CachedExtent>,
    chunks: HashMap<ChunkId, Arc<ChunkRecord>>,
    /// Known ranges: start to end, not overlapping, not adjoining.
    known: BTreeMap<u64, u64>,
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
        for record in &map.chunks {
            self.chunks.entry(ChunkId(record.chunk)).or_insert_with(|| Arc::new(record.clone()));
        }
        let mut from = map.offset;
        let mut to = map.offset.saturating_add(map.covered_bytes);
        for extent in &map.extents {
            self.insert(extent);
        }
        // Extents are given whole, so they may stick out of the asked range; that is known then, too.
        if let (Some(first), Some(last)) = (map.extents.first(), map.extents.last()) {
            from = from.min(first.file_offset);
            to = to.max(last.file_offset + last.length_bytes);
        }
        self.mark_known(from, to);
    }

    /// Puts a committed chunk's extents over what is there.
    pub(crate) fn commit(&mut self, chunks: &[ChunkRecord], extents: &[Extent]) {
        if self.extents.len() + extents.len() > CACHED_EXTENTS_MAX {
            self.clear();
        }
        for extent in extents {
            if let Some(record) = chunks.iter().find(|c| c.chunk == extent.chunk) {
                self.chunks.entry(ChunkId(record.chunk)).or_insert_with(|| Arc::new(record.clone()));
                self.insert(extent);
                self.mark_known(extent.file_offset, extent.file_offset + extent.length_bytes);
            }
        }
    }

    fn insert(&mut self, extent: &Extent) {
        self.cut(extent.file_offset, extent.file_offset + extent.length_bytes);
        self.extents.insert(
            extent.file_offset,
            CachedExtent {
                length_bytes: extent.length_bytes,
                chunk: ChunkId(extent.chunk),
                chunk_offset: u64::from(extent.chunk_offset),
            },
        );
    }

    fn cut(&mut self, from: u64, to: u64) {
        let start = self.extents.range(..=from).next_back().map_or(from, |(o, _)| *o);
        let overlapping: Vec<u64> =
            self.extents.range(start..to).filter(|(o, e)| **o + e.length_bytes > from).map(|(o, _)| *o).collect();
        for offset in overlapping {
            let Some(extent) = self.extents.remove(&offset) else { continue };
            let stop = offset + extent.length_bytes;
            if offset < from {
                self.extents.insert(offset, CachedExtent { length_bytes: from - offset, ..extent.clone() });
            }
            if stop > to {
                let skipped = to - offset;
                self.extents.insert(
                    to,
                    CachedExtent {
                        length_bytes: stop - to,
                        chunk_offset: extent.chunk_offset + skipped,
                        chunk: extent.chunk,
                    },
                );
            }
        }
    }

    fn mark_known(&mut self, mut from: u64, mut to: u64) {
        if from >= to {
            return;
        }
        if let Some((start, stop)) = self.known.range(..=from).next_back().map(|(s, e)| (*s, *e))
            && stop >= from
        {
            from = start;
            to = to.max(stop);
            self.known.remove(&start);
        }
        while let Some((start, stop)) = self.known.range(from..=to).next().map(|(s, e)| (*s, *e)) {
            to = to.max(stop);
            self.known.remove(&start);
        }
        self.known.insert(from, to);
    }

    /// The first offset in `from..to` that is not known.
    pub(crate) fn first_unknown(&self, from: u64, to: u64) -> Option<u64> {
        let known_to = self.known.range(..=from).next_back().map_or(from, |(_, e)| from.max(*e));
        (known_to < to).then_some(known_to)
    }

    /// The mapped parts of `from..to`, ascending; what lies between is holes. Only for known ranges.
    pub(crate) fn ranges(&self, from: u64, to: u64) -> Vec<MappedRange> {
        let start = self.extents.range(..=from).next_back().map_or(from, |(o, _)| *o);
        self.extents
            .range(start..to)
            .filter_map(|(offset, extent)| {
                let lo = from.max(*offset);
                let hi = to.min(offset + extent.length_bytes);
                let chunk = self.chunks.get(&extent.chunk)?;
                (lo < hi).then(|| MappedRange {
                    file_offset: lo,
                    length_bytes: hi - lo,
                    chunk: Arc::clone(chunk),
                    chunk_offset: extent.chunk_offset + (lo - offset),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(chunk: u64) -> ChunkRecord {
        ChunkRecord { chunk, ..ChunkRecord::default() }
    }

    fn extent(file_offset: u64, length_bytes: u64, chunk: u64, chunk_offset: u32) -> Extent {
        Extent { file_offset, length_bytes, chunk, chunk_offset }
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
        assert_eq!(map.first_unknown(0, 100), None);
        assert_eq!(map.first_unknown(0, 101), Some(100));
        let ranges: Vec<_> =
            map.ranges(5, 55).iter().map(|r| (r.file_offset, r.length_bytes, r.chunk_offset)).collect();
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
                for range in map.ranges(0, 300) {
                    for i in 0..range.length_bytes {
                        seen[usize::try_from(range.file_offset + i).unwrap()] = Some((range.chunk.chunk, range.chunk_offset + i));
                    }
                }
                prop_assert_eq!(&seen, &model);
                for (at, cell) in (0u64..).zip(&model) {
                    prop_assert_eq!(map.first_unknown(at, at + 1).is_none(), cell.is_some());
                }
            }
        }
    }
}
