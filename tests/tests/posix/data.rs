//! Bytes of files: written at random, with holes, mapped, direct, and by several at once.

use holdfast_tests::block::{BLOCK_BYTES, BLOCK_BYTES_U64, Seen, Stamp, identify};
use holdfast_tests::posix::{Aligned, Mapping, data_extents, errno, fallocate, seek};
use holdfast_tests::random::{self, Random};
use holdfast_tests::{Claim, Room, Run, claims};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

pub(crate) const CLAIMS: &[Claim] = &claims![
    120 => random_operations_read_back_as_on_a_plain_array,
    60 => random_operations_of_many_handles_read_back_after_reopening,
    30 => writes_across_every_boundary_read_back,
    30 => a_sparse_file_shows_its_data_and_its_holes,
    30 => fallocate_extends_punches_and_zeroes,
    30 => a_shared_mapping_and_system_calls_agree,
    30 => a_private_mapping_changes_nothing,
    30 => direct_and_buffered_access_agree,
    30 => a_file_may_begin_with_eight_tebibytes_of_hole,
    30 => space_used_is_what_was_written,
    30 => copy_file_range_and_sendfile_copy,
    60 => writers_of_different_blocks_keep_each_others_bytes,
    30 => every_kind_of_sync_returns,
    30 => reading_at_and_beyond_the_end_gives_what_is_there,
];

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

/// A file and what it must hold.
struct Modelled {
    file: File,
    model: Vec<u8>,
    trace: Vec<String>,
}

const MODEL_BYTES_MAX: u64 = 6 << 20;

impl Modelled {
    fn new(file: File) -> Self {
        Self { file, model: Vec::new(), trace: Vec::new() }
    }

    /// Mostly small and near boundaries; sometimes beyond a chunk.
    fn range(random: &mut Random) -> (u64, u64) {
        let unit = [1, 512, 4096, 65_536, 1 << 20][random.index(5)];
        let start = (random.below(MODEL_BYTES_MAX) / unit * unit).saturating_add(random.below(3)).saturating_sub(1);
        let longest = [100, 5000, 70_000, 300_000, 5 << 20][random.index(5)];
        (start, (1 + random.below(longest)).min(MODEL_BYTES_MAX - start.min(MODEL_BYTES_MAX - 1)))
    }

    fn grow(&mut self, end: u64) {
        let end = usize_of(end);
        if end > self.model.len() {
            self.model.resize(end, 0);
        }
    }

    fn step(&mut self, random: &mut Random) {
        let (start, length) = Self::range(random);
        let action = random.below(100);
        self.trace.push(format!("{action} {start}+{length}"));
        match action {
            0..45 => self.write(start, random.bytes(usize_of(length))),
            45..75 => self.check(start, length),
            75..82 => {
                self.file.set_len(start).unwrap();
                self.model.resize(usize_of(start), 0);
            }
            82..88 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(&self.file, mode, start, length).unwrap();
                self.zero(start, length);
            }
            88..92 => {
                fallocate(&self.file, libc::FALLOC_FL_ZERO_RANGE, start, length).unwrap();
                self.grow(start + length);
                self.zero(start, length);
            }
            92..95 => {
                fallocate(&self.file, 0, start, length).unwrap();
                self.grow(start + length);
            }
            95..98 => self.file.sync_data().unwrap(),
            _ => self.write_mapped(random),
        }
        assert_eq!(self.file.metadata().unwrap().len(), self.model.len() as u64, "{}", self.tail());
    }

    fn write(&mut self, start: u64, bytes: Vec<u8>) {
        self.file.write_all_at(&bytes, start).unwrap();
        self.grow(start + bytes.len() as u64);
        self.model[usize_of(start)..][..bytes.len()].copy_from_slice(&bytes);
    }

    fn write_mapped(&mut self, random: &mut Random) {
        if self.model.is_empty() {
            return;
        }
        let mut mapping = Mapping::new(&self.file, self.model.len(), true).unwrap();
        for _ in 0..5 {
            let at = random.index(self.model.len());
            mapping.bytes()[at] = b'm';
            self.model[at] = b'm';
        }
        mapping.sync().unwrap();
    }

    fn zero(&mut self, start: u64, length: u64) {
        let end = usize_of(start + length).min(self.model.len());
        if let Some(range) = self.model.get_mut(usize_of(start)..end) {
            range.fill(0);
        }
    }

    fn check(&self, start: u64, length: u64) {
        let start = usize_of(start).min(self.model.len());
        let end = (start + usize_of(length)).min(self.model.len());
        let mut found = vec![0; end - start];
        self.file.read_exact_at(&mut found, start as u64).unwrap();
        if let Some(at) = found.iter().zip(&self.model[start..end]).position(|(a, b)| a != b) {
            panic!("byte {} is {:#x}, not {:#x}\n{}", start + at, found[at], self.model[start + at], self.tail());
        }
    }

    fn tail(&self) -> String {
        self.trace[self.trace.len().saturating_sub(40)..].join("\n")
    }
}

fn random_operations_read_back_as_on_a_plain_array(room: &mut Room) {
    let path = room.directory().join("file");
    let mut random = random::fresh("random operations");
    for _ in 0..3 {
        let mut modelled = Modelled::new(read_write(&path));
        for _ in 0..150 {
            modelled.step(&mut random);
        }
        modelled.check(0, MODEL_BYTES_MAX * 2);
        modelled.file = read_write(&path);
        modelled.check(0, MODEL_BYTES_MAX * 2);
        fs::remove_file(&path).unwrap();
    }
}

fn random_operations_of_many_handles_read_back_after_reopening(room: &mut Room) {
    let d = room.directory();
    let mut random = random::fresh("random operations on many files");
    let name = |number: usize| d.join(format!("{number}"));
    let mut files: Vec<Modelled> = (0..6).map(|number| Modelled::new(read_write(&name(number)))).collect();
    for _ in 0..150 {
        let chosen = random.index(files.len());
        if random.one_in(8) {
            // What is still being written belongs to the file, not to the handle.
            files[chosen].file = read_write(&name(chosen));
        }
        files[chosen].step(&mut random);
    }
    for (number, modelled) in files.iter_mut().enumerate() {
        modelled.file = read_write(&name(number));
        modelled.check(0, MODEL_BYTES_MAX * 2);
    }
}

fn writes_across_every_boundary_read_back(room: &mut Room) {
    let file = read_write(&room.directory().join("file"));
    let boundaries: [u64; 6] = [4096, 65_536, 262_144, 1 << 20, 4 << 20, 8 << 20];
    for (boundary, seed) in boundaries.into_iter().zip(1..) {
        let bytes = Random::new(seed).bytes(3000);
        file.write_all_at(&bytes, boundary - 1500).unwrap();
    }
    for (boundary, seed) in boundaries.into_iter().zip(1..) {
        let mut found = vec![0; 3000];
        file.read_exact_at(&mut found, boundary - 1500).unwrap();
        assert_eq!(found, Random::new(seed).bytes(3000), "around {boundary}");
    }
}

fn a_sparse_file_shows_its_data_and_its_holes(room: &mut Room) {
    let file = read_write(&room.directory().join("file"));
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.write_all_at(&[2; 8192], 10 << 20).unwrap();
    file.set_len(20 << 20).unwrap();
    file.sync_all().unwrap();
    let expected = [(1 << 20, (1 << 20) + 4096), (10 << 20, (10 << 20) + 8192)];
    assert_eq!(data_extents(&file).unwrap(), expected);
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE).unwrap(), 0);
    assert_eq!(seek(&file, 10 << 20, libc::SEEK_HOLE).unwrap(), (10 << 20) + 8192);
    assert_eq!(errno(seek(&file, 11 << 20, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(errno(seek(&file, 20 << 20, libc::SEEK_HOLE)), libc::ENXIO);
    let mut all = vec![9; 20 << 20];
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(all.iter().filter(|b| **b != 0).count(), 4096 + 8192);
}

fn fallocate_extends_punches_and_zeroes(room: &mut Room) {
    let file = read_write(&room.directory().join("file"));
    fallocate(&file, 0, 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 0, 900_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    file.write_all_at(&[7; 100_000], 0).unwrap();
    fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 10_000, 50_000).unwrap();
    fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 99_990, 20).unwrap();
    let mut found = vec![1; 100_010];
    file.read_exact_at(&mut found, 0).unwrap();
    let is_zero = |at: usize| (10_000..60_000).contains(&at) || at >= 99_990;
    assert!(found.iter().enumerate().all(|(at, byte)| *byte == if is_zero(at) { 0 } else { 7 }));
    assert_eq!(file.metadata().unwrap().len(), 100_010);
    assert_eq!(errno(fallocate(&file, 0, 0, 0)), libc::EINVAL);
}

fn a_shared_mapping_and_system_calls_agree(room: &mut Room) {
    let path = room.directory().join("file");
    let file = read_write(&path);
    file.set_len(40_000).unwrap();
    let mut mapping = Mapping::new(&file, 40_000, true).unwrap();
    file.write_all_at(b"by write", 5000).unwrap();
    assert_eq!(&mapping.bytes()[5000..5008], b"by write");
    mapping.bytes()[20_000..20_010].copy_from_slice(b"by mapping");
    mapping.sync().unwrap();
    let mut found = vec![0; 10];
    file.read_exact_at(&mut found, 20_000).unwrap();
    assert_eq!(found, b"by mapping");
    mapping.bytes()[39_999] = b'!';
    drop((mapping, file));
    // Unmapped and closed without a sync: the bytes are the file's all the same.
    assert_eq!(fs::read(&path).unwrap()[39_999], b'!');
}

fn a_private_mapping_changes_nothing(room: &mut Room) {
    let path = room.directory().join("file");
    fs::write(&path, vec![1; 10_000]).unwrap();
    let mut mapping = Mapping::new(&read_write(&path), 10_000, false).unwrap();
    mapping.bytes().fill(2);
    drop(mapping);
    assert_eq!(fs::read(&path).unwrap(), vec![1; 10_000]);
}

fn direct_and_buffered_access_agree(room: &mut Room) {
    let path = room.directory().join("file");
    let buffered = read_write(&path);
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut random = random::fresh("direct and buffered");
    let mut model = vec![0; 1 << 20];
    buffered.set_len(1 << 20).unwrap();
    for _ in 0..60 {
        let (at, pages) = (random.below(200), 1 + random.below(50));
        let (start, length) = (at * BLOCK_BYTES_U64, usize_of(pages) * BLOCK_BYTES);
        let mut buffer = Aligned::zeroed(length);
        random.fill(buffer.bytes());
        let (writer, reader) = if random.one_in(2) { (&direct, &buffered) } else { (&buffered, &direct) };
        writer.write_all_at(buffer.bytes(), start).unwrap();
        model[usize_of(start)..][..length].copy_from_slice(buffer.bytes());
        let mut found = Aligned::zeroed(1 << 20);
        reader.read_exact_at(found.bytes(), 0).unwrap();
        assert!(found.bytes() == model, "after a write of {pages} pages at page {at}");
    }
}

fn a_file_may_begin_with_eight_tebibytes_of_hole(room: &mut Room) {
    let file = read_write(&room.directory().join("file"));
    let far = 8 << 40;
    file.write_all_at(b"far", far).unwrap();
    file.sync_all().unwrap();
    let found = file.metadata().unwrap();
    assert_eq!(found.len(), far + 3);
    assert!(found.blocks() <= 1024, "{} sectors for three bytes", found.blocks());
    let mut bytes = [1; 6];
    file.read_exact_at(&mut bytes, far - 3).unwrap();
    assert_eq!(&bytes, b"\0\0\0far");
    assert_eq!(seek(&file, 0, libc::SEEK_DATA).unwrap(), far);
}

fn space_used_is_what_was_written(room: &mut Room) {
    let file = read_write(&room.directory().join("file"));
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 2048);
    file.write_all_at(&vec![2; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 2048, "overwriting takes no more");
    file.set_len(4096).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 8);
}

fn copy_file_range_and_sendfile_copy(room: &mut Room) {
    let d = room.directory();
    let bytes = Random::new(5).bytes(3_000_001);
    fs::write(d.join("source"), &bytes).unwrap();
    // The standard library's copy uses copy_file_range and what else the kernel offers.
    fs::copy(d.join("source"), d.join("copy")).unwrap();
    assert_eq!(fs::read(d.join("copy")).unwrap(), bytes);
    Run::shell("cat source > catted; cp --reflink=auto source copied; dd if=source of=dd bs=7k status=none")
        .within(&d)
        .ok();
    for name in ["catted", "copied", "dd"] {
        assert_eq!(fs::read(d.join(name)).unwrap(), bytes, "{name}");
    }
}

fn writers_of_different_blocks_keep_each_others_bytes(room: &mut Room) {
    const WRITERS: u64 = 4;
    const BLOCKS: u64 = 512;
    let path = room.directory().join("file");
    read_write(&path).set_len(BLOCKS * BLOCK_BYTES_U64).unwrap();
    let write = |writer: u64| {
        let (file, mut random) = (read_write(&path), Random::new(writer));
        let mut generations = vec![0; usize_of(BLOCKS)];
        for generation in 1..400 {
            let index = random.below(BLOCKS / WRITERS) * WRITERS + writer;
            file.write_all_at(&Stamp { file: 1, index, generation }.block(), index * BLOCK_BYTES_U64).unwrap();
            generations[usize_of(index)] = generation;
        }
        generations
    };
    let last: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let file = read_write(&path);
    for index in 0..BLOCKS {
        let mut block = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut block, index * BLOCK_BYTES_U64).unwrap();
        let generation = last[usize_of(index % WRITERS)][usize_of(index)];
        let expected = if generation == 0 { Seen::Hole } else { Seen::Block(Stamp { file: 1, index, generation }) };
        assert_eq!(identify(&block), expected, "block {index}");
    }
}

fn every_kind_of_sync_returns(room: &mut Room) {
    let d = room.directory();
    let mut file =
        OpenOptions::new().create(true).append(true).custom_flags(libc::O_SYNC).open(d.join("file")).unwrap();
    for _ in 0..20 {
        file.write_all(b"durable when it returns").unwrap();
    }
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    File::open(&d).unwrap().sync_all().unwrap();
    Run::new("sync").arg("--file-system").arg(d.join("file")).ok();
}

fn reading_at_and_beyond_the_end_gives_what_is_there(room: &mut Room) {
    let mut file = read_write(&room.directory().join("file"));
    file.write_all_at(&[1; 10_001], 0).unwrap();
    let mut buffer = vec![0; 8192];
    assert_eq!(file.read_at(&mut buffer, 10_000).unwrap(), 1);
    assert_eq!(file.read_at(&mut buffer, 10_001).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
    assert_eq!(file.seek(SeekFrom::End(-1)).unwrap(), 10_000);
    file.write_all(b"xy").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10_002);
}
