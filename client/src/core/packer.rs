//! Packs dirty ranges of many files into new chunks (D1). Pure.
//!
//! Ranges of a page or more start on a page of their chunk, so that an aligned read touches one shard (R14); smaller
//! ones are packed tightly, but do not cross a page that they would fit into.

use bytes::Bytes;
use holdfast_common::FileOffset;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX, PAGE_BYTES};

/// A chunk to be written, and what it holds.
#[derive(Debug, Default)]
pub(crate) struct PlannedChunk {
    /// The data, in order; the padding between ranges is zeros.
    pub(crate) pieces: Vec<Bytes>,
    /// Length of all the pieces.
    pub(crate) length_bytes: u32,
    /// File ranges that it holds, in the order of `pieces`.
    pub(crate) extents: Vec<PlannedExtent>,
}

/// A file range in a planned chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedExtent {
    /// Index of the file in the packed list.
    pub(crate) file: usize,
    pub(crate) file_offset: FileOffset,
    pub(crate) length_bytes: u32,
    pub(crate) chunk_offset: u32,
}

static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

impl PlannedChunk {
    fn room(&self, chunk_bytes_max: u32) -> u32 {
        chunk_bytes_max - self.length_bytes
    }

    /// Padding before a range of this length, so that it lies as the header says.
    fn padding(&self, file: usize, file_offset: FileOffset, length: usize) -> u32 {
        let used = self.length_bytes % PAGE_BYTES;
        if used == 0 || self.continues(file, file_offset) {
            return 0;
        }
        let fits = length <= (PAGE_BYTES - used) as usize;
        if fits { 0 } else { PAGE_BYTES - used }
    }

    fn continues(&self, file: usize, file_offset: FileOffset) -> bool {
        let at = |e: &PlannedExtent| e.file_offset + u64::from(e.length_bytes);
        self.extents.last().is_some_and(|e| e.file == file && at(e) == file_offset)
    }

    fn push(&mut self, file: usize, file_offset: FileOffset, bytes: Bytes) {
        let padding = self.padding(file, file_offset, bytes.len());
        if padding > 0 {
            self.pieces.push(Bytes::from_static(&ZEROS[..padding as usize]));
            self.length_bytes += padding;
        }
        let length_bytes = u32::try_from(bytes.len()).expect("a piece is not longer than a chunk");
        let chunk_offset = self.length_bytes;
        self.length_bytes += length_bytes;
        self.pieces.push(bytes);
        if let Some(last) = self.extents.last_mut()
            && last.file == file
            && last.file_offset + u64::from(last.length_bytes) == file_offset
            && last.chunk_offset + last.length_bytes == chunk_offset
        {
            last.length_bytes += length_bytes;
            return;
        }
        self.extents.push(PlannedExtent { file, file_offset, length_bytes, chunk_offset });
    }
}

/// Packs the files' ranges (ascending within a file) in their order. Every byte lands in exactly one chunk.
pub(crate) fn pack<'a>(files: impl IntoIterator<Item = &'a [(FileOffset, Bytes)]>) -> Vec<PlannedChunk> {
    pack_into(files, CHUNK_BYTES_MAX)
}

fn pack_into<'a>(
    files: impl IntoIterator<Item = &'a [(FileOffset, Bytes)]>,
    chunk_bytes_max: u32,
) -> Vec<PlannedChunk> {
    let mut chunks = vec![PlannedChunk::default()];
    for (file, ranges) in files.into_iter().enumerate() {
        for (offset, bytes) in ranges {
            let (mut offset, mut bytes) = (*offset, bytes.clone());
            while !bytes.is_empty() {
                let last = chunks.last_mut().expect("there is always one");
                let room = last.room(chunk_bytes_max).saturating_sub(last.padding(file, offset, bytes.len())) as usize;
                if room == 0 || last.extents.len() >= COMMIT_EXTENTS_MAX {
                    chunks.push(PlannedChunk::default());
                    continue;
                }
                let part = bytes.split_to(room.min(bytes.len()));
                let length = part.len() as u64;
                last.push(file, offset, part);
                offset = offset + length;
            }
        }
    }
    chunks.retain(|chunk| chunk.length_bytes > 0);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_common::Random;
    use proptest::prelude::*;

    #[test]
    fn a_long_file_is_cut_at_chunks_and_its_pieces_join_into_one_extent_each() {
        let mib = Bytes::from(vec![7; 1 << 20]);
        let ranges: Vec<_> = (0..9u64).map(|i| (FileOffset(i << 20), mib.clone())).collect();
        let chunks = pack([&ranges[..]]);
        let shape: Vec<_> = chunks.iter().map(|c| (c.length_bytes, c.extents.len())).collect();
        assert_eq!(shape, [(4 << 20, 1), (4 << 20, 1), (1 << 20, 1)]);
    }

    #[test]
    fn pages_lie_on_pages_and_small_files_share_one() {
        let small = [(FileOffset(0), Bytes::from(vec![1; 1000]))];
        let page = [(FileOffset(0), Bytes::from(vec![2; 4096]))];
        let chunks = pack([&small[..], &small[..], &page[..], &small[..]]);
        let offsets: Vec<_> = chunks[0].extents.iter().map(|e| e.chunk_offset).collect();
        assert_eq!(offsets, [0, 1000, 4096, 8192]);
    }

    proptest! {
        #[test]
        fn every_byte_lands_in_one_place(files in proptest::collection::vec(
            proptest::collection::vec((0u64..5000, 1usize..9000), 0..6), 1..6)) {
            let mut files: Vec<Vec<(FileOffset, Bytes)>> = files.into_iter().map(|f| {
                let mut at = 0;
                f.into_iter().map(|(gap, len)| {
                    let offset = at + gap;
                    at = offset + len as u64;
                    (FileOffset(offset), Bytes::from((0..len).map(|i| u8::try_from((offset + i as u64 * 31) % 251).unwrap()).collect::<Vec<_>>()))
                }).collect()
            }).collect();
            let limit = 16 << 10;
            files.push(vec![(FileOffset(0), Bytes::from(vec![9u8; limit as usize + 100]))]);
            let chunks = pack_into(files.iter().map(Vec::as_slice), limit);
            let mut back: Vec<Vec<(u64, u8)>> = vec![Vec::new(); files.len()];
            for chunk in &chunks {
                let data = chunk.pieces.concat();
                prop_assert_eq!(data.len(), chunk.length_bytes as usize);
                prop_assert!(chunk.length_bytes <= limit);
                for e in &chunk.extents {
                    for i in 0..e.length_bytes {
                        back[e.file].push((e.file_offset.0 + u64::from(i), data[(e.chunk_offset + i) as usize]));
                    }
                }
            }
            for (file, bytes) in files.iter().zip(back) {
                let wanted: Vec<_> = file.iter().flat_map(|(o, b)| b.iter().enumerate().map(move |(i, v)| (o.0 + i as u64, *v))).collect();
                prop_assert_eq!(bytes, wanted);
            }
        }
    }

    /// Random files: where a range lies in its chunk (R14).
    #[test]
    fn pages_lie_on_pages_and_what_fits_into_one_does_not_cross_two() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let files: Vec<Vec<(FileOffset, Bytes)>> = (0..random.below(20) + 1)
                .map(|_| {
                    let mut at = 0;
                    let range = |_| {
                        let (gap, length) = (random.below(3) * 500, random.index(9000) + 1);
                        let offset = at + gap;
                        at = offset + length as u64;
                        (FileOffset(offset), Bytes::from(vec![1; length]))
                    };
                    (0..5).map(range).collect()
                })
                .collect();
            for chunk in pack_into(files.iter().map(Vec::as_slice), 64 << 10) {
                let mut before = 0;
                for extent in &chunk.extents {
                    let (inside, length) = (extent.chunk_offset % PAGE_BYTES, extent.length_bytes);
                    assert!(extent.chunk_offset >= before, "seed {seed}: they follow each other");
                    assert!(extent.chunk_offset - before < PAGE_BYTES, "seed {seed}: no more padding than needed");
                    // One that goes on with the chunk before, or was joined of small ones, begins where it may.
                    let whole = files[extent.file]
                        .iter()
                        .any(|(offset, bytes)| (*offset, bytes.len()) == (extent.file_offset, length as usize));
                    let aligned = inside == 0 || inside + length <= PAGE_BYTES;
                    assert!(aligned || !whole, "seed {seed}: {extent:?}");
                    before = extent.chunk_offset + length;
                }
                assert_eq!(before, chunk.length_bytes, "seed {seed}: nothing behind the last");
            }
        }
    }

    #[test]
    fn a_chunk_holds_no_more_extents_than_a_commit() {
        let files: Vec<_> = (0..COMMIT_EXTENTS_MAX + 10).map(|_| [(FileOffset(0), Bytes::from_static(b"x"))]).collect();
        let chunks = pack(files.iter().map(<[_; 1]>::as_slice));
        let counts: Vec<_> = chunks.iter().map(|chunk| chunk.extents.len()).collect();
        assert_eq!(counts, [COMMIT_EXTENTS_MAX, 10]);
    }

    #[test]
    fn files_without_ranges_take_no_chunk_and_keep_their_numbers() {
        let some = [(FileOffset(7), Bytes::from_static(b"x"))];
        let chunks = pack([&[][..], &some[..], &[][..]]);
        assert_eq!(chunks.iter().map(|chunk| chunk.extents[0].file).collect::<Vec<_>>(), [1]);
        assert!(pack([&[][..]]).is_empty());
    }

    #[test]
    fn what_goes_on_in_its_file_goes_on_in_its_chunk() {
        let parts: Vec<_> = (0..4u64).map(|at| (FileOffset(at * 5000), Bytes::from(vec![1; 5000]))).collect();
        let chunks = pack([&parts[..]]);
        let extents: Vec<_> = chunks[0].extents.iter().map(|e| (e.chunk_offset, e.length_bytes)).collect();
        assert_eq!((extents, chunks[0].length_bytes), (vec![(0, 20_000)], 20_000), "one extent, and no padding");
    }
}
