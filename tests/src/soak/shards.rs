//! Shards that datanodes' disks still hold, counted from outside by the records of their segments (formats:
//! `docs/disk-format/shard-store.md`).

use crate::posix::data_extents;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SEGMENT_HEADER_BYTES: usize = 512;
const SECOND_HEADER_AT: u64 = 4096;
const FIRST_RECORD_AT: u64 = 8192;
const FIXED_BYTES: usize = 120;
const CRC_AT: usize = 116;
const HEADER_BYTES_MAX: usize = FIXED_BYTES + 4096 * 9;
const WINDOW_BYTES: usize = 4 << 20;

/// Volume, incarnation, chunk.
type Chunk = (u64, u64, u64);

/// Content of a disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// Highest version of each shard, which is a chunk's and has a number.
    shards: BTreeMap<(Chunk, u8), u64>,
    /// Highest version of a tombstone of each shard, and of each chunk as a whole.
    tombstones: BTreeMap<(Chunk, Option<u8>), u64>,
    /// Segment files, open and spare ones among them, with how many records each has.
    pub(super) segments: BTreeMap<String, usize>,
}

impl Disk {
    /// Reads the segments of a disk's directory; the store may be running.
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let mut disk = Self::default();
        for path in std::fs::read_dir(directory)?.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|e| e == "seg") {
                let records_count = disk.read_segment(&path)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                disk.segments.insert(name, records_count);
            }
        }
        Ok(disk)
    }

    /// Shards that no tombstone covers.
    pub(super) fn live_shards(&self) -> usize {
        self.live().count()
    }

    /// Chunks of which this disk has a shard that is live.
    pub(super) fn live_chunks(&self) -> BTreeSet<(u64, u64, u64)> {
        self.live().map(|(chunk, _)| chunk).collect()
    }

    fn live(&self) -> impl Iterator<Item = (Chunk, u8)> {
        let dead_by =
            |version: u64, grave: &(Chunk, Option<u8>)| self.tombstones.get(grave).is_some_and(|t| *t > version);
        let is_live = move |((chunk, shard), version): &(&(Chunk, u8), &u64)| {
            [(*chunk, Some(*shard)), (*chunk, None)].iter().all(|grave| !dead_by(**version, grave))
        };
        self.shards.iter().filter(is_live).map(|(shard, _)| *shard)
    }

    /// Adds a segment's records; how many they are.
    fn read_segment(&mut self, path: &PathBuf) -> io::Result<usize> {
        let file = match File::open(path) {
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let Some(segment) = Segment::read(&file) else { return Ok(0) };
        let mut records_count = 0;
        let mut window = vec![0; WINDOW_BYTES];
        for (start, end) in data_extents(&file)? {
            let mut at = start.max(FIRST_RECORD_AT).next_multiple_of(segment.alignment);
            while at < end {
                let read = read_some(&file, &mut window, at)?;
                records_count += self.add_records(&file, &segment, at, &window[..read]);
                at += WINDOW_BYTES as u64;
            }
        }
        Ok(records_count)
    }

    fn add_records(&mut self, file: &File, segment: &Segment, window_at: u64, window: &[u8]) -> usize {
        let mut records_count = 0;
        let alignment = usize::try_from(segment.alignment).expect("an alignment is small");
        for within in (0..window.len()).step_by(alignment) {
            if window[within..].starts_with(b"HFrc") {
                let at = window_at + within as u64;
                let mut header = vec![0; HEADER_BYTES_MAX];
                let read = read_some(file, &mut header, at).unwrap_or(0);
                records_count += usize::from(self.add(segment, at, &header[..read]));
            }
        }
        records_count
    }

    /// Adds what a record says, if its checksum says that it is one of this life of the segment.
    fn add(&mut self, segment: &Segment, at: u64, bytes: &[u8]) -> bool {
        let Some(length) = u32_at(bytes, 12).and_then(|length| usize::try_from(length).ok()) else { return false };
        let Some(header) = bytes.get(..length).filter(|_| length >= FIXED_BYTES) else { return false };
        let seed = segment.seed(at);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &header[..CRC_AT]), &header[FIXED_BYTES..]);
        if u32_at(header, CRC_AT) != Some(crc) {
            return false;
        }
        let field = |at: usize| u64_at(header, at).expect("the fixed part is there");
        let (version, volume, incarnation) = (field(40), field(48), field(56));
        let raise = |entry: &mut u64| *entry = version.max(*entry);
        match header[6] {
            1 => raise(self.shards.entry(((volume, incarnation, field(64)), header[104])).or_default()),
            2 => {
                // Feature bit 0: it names single shards, each by a byte behind its chunk.
                let item_bytes = if header[8] & 1 == 0 { 8 } else { 9 };
                for item in header[FIXED_BYTES..].chunks_exact(item_bytes) {
                    let Some(chunk) = u64_at(item, 0) else { continue };
                    let grave = ((volume, incarnation, chunk), item.get(8).copied());
                    raise(self.tombstones.entry(grave).or_default());
                }
            }
            _ => {}
        }
        true
    }
}

/// Header of a segment.
struct Segment {
    disk: u64,
    number: u32,
    generation: u64,
    alignment: u64,
}

impl Segment {
    /// The valid copy of the higher generation; `None` for a file that is being made.
    fn read(file: &File) -> Option<Self> {
        let copies = [0, SECOND_HEADER_AT].into_iter().filter_map(|at| {
            let mut sector = [0; SEGMENT_HEADER_BYTES];
            file.read_exact_at(&mut sector, at).ok()?;
            let (fields, crc) = sector.split_at(SEGMENT_HEADER_BYTES - 4);
            let valid = fields.starts_with(b"HFsg") && u32_at(crc, 0) == Some(crc32c::crc32c(fields));
            let alignment = if fields[6] == 1 { 512 } else { 4096 };
            let header = Self {
                number: u32_at(fields, 12)?,
                generation: u64_at(fields, 16)?,
                disk: u64_at(fields, 24)?,
                alignment,
            };
            valid.then_some(header)
        });
        copies.max_by_key(|header| header.generation)
    }

    fn seed(&self, offset: u64) -> u32 {
        let place = [
            &self.disk.to_le_bytes()[..],
            &self.number.to_le_bytes(),
            &self.generation.to_le_bytes(),
            &offset.to_le_bytes(),
        ];
        crc32c::crc32c(&place.concat())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// As much as there is, up to the buffer's length.
fn read_some(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64)? {
            0 => break,
            count => read += count,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shards_of_the_golden_directory_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        crate::golden::unpack(&crate::golden::directory().join("f335d94.tar.xz"), directory.path());
        let disks: Vec<Disk> =
            (1..=6).map(|number| Disk::read(&directory.path().join(format!("data-{number}/disk"))).unwrap()).collect();
        let mut disks_of_chunk = BTreeMap::<Chunk, usize>::new();
        for chunk in disks.iter().flat_map(Disk::live_chunks) {
            *disks_of_chunk.entry(chunk).or_default() += 1;
        }
        // A chunk of one page has one data shard and two parity shards, a large one six shards, each on a disk of its own.
        let counts: Vec<usize> = disks.iter().map(Disk::live_shards).collect();
        assert!(disks_of_chunk.values().all(|count| (3..=6).contains(count)), "{disks_of_chunk:?}");
        assert_eq!(disks_of_chunk.values().sum::<usize>(), counts.iter().sum::<usize>());
        // Most of the overwritten block's former chunks were not deleted yet when the cluster was killed; some were.
        assert_eq!((disks_of_chunk.len(), &counts[..]), (1020, &[520, 487, 500, 518, 549, 535][..]));
        assert!(disks.iter().all(|disk| !disk.tombstones.is_empty()));
        assert!(disks.iter().all(|disk| disk.segments.len() == 3));
    }
}
