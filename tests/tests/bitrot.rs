//! Bits flipped in shards on disk: never served, read correctly from the others; and an error, not other bytes, where
//! there are not enough others.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::block::{Seen, Stamp, run_of_blocks};
use holdfast_tests::posix::data_extents;
use holdfast_tests::random;
use holdfast_tests::workload::blocks_of;
use holdfast_tests::{Claim, Cluster, Room, claims};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    150 => flipped_bits_on_two_datanodes_are_read_around,
    120 => flipped_bits_are_read_around_after_a_restart_too,
    120 => damage_beyond_the_parity_is_an_error_and_never_other_bytes,
    150 => a_datanode_with_bits_flipped_all_over_its_segments_harms_nothing,
];

/// A large file, whose shards are segments of their own, and small ones, which are packed.
const SIZES_IN_BLOCKS: [u64; 6] = [6000, 300, 40, 5, 1, 1];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

fn write_files(directory: &Path, first_id: u64) {
    fs::create_dir_all(directory).unwrap();
    for (size, file) in SIZES_IN_BLOCKS.into_iter().zip(first_id..) {
        let path = directory.join(file.to_string());
        fs::write(&path, run_of_blocks(file, 0, size, 1)).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    }
}

fn check_files(directory: &Path, first_id: u64) {
    for (size, file) in SIZES_IN_BLOCKS.into_iter().zip(first_id..) {
        let blocks = blocks_of(&directory.join(file.to_string()));
        assert_eq!(blocks.len() as u64, size);
        for (seen, index) in blocks.into_iter().zip(0..) {
            assert_eq!(seen, Seen::Block(Stamp { file, index, generation: 1 }), "block {index} of file {file}");
        }
    }
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

fn disk_files(cluster: &Cluster, datanode: u64) -> Vec<PathBuf> {
    let mut files = Vec::new();
    files_below(&cluster.role_directory("datanode", datanode).join("disk"), &mut files);
    files
}

/// Flips a bit in every block of these test files that is on a datanode's disk; how many it found.
fn flip_blocks_of(cluster: &Cluster, datanode: u64, ids: std::ops::Range<u64>) -> usize {
    const WINDOW: usize = 4 << 20;
    // Where a block's own fields end; the beginning of the next window overlaps.
    const FIELDS: usize = 32;
    let mut count = 0;
    for path in disk_files(cluster, datanode) {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for (start, end) in data_extents(&file).unwrap() {
            let mut at = start;
            while at < end {
                let mut window = vec![0; WINDOW + FIELDS];
                let read = file.read_at(&mut window, at).unwrap();
                window.truncate(read);
                for found in find_blocks(&window, &ids) {
                    let place = at + found as u64 + 1000;
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, place).unwrap();
                    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
                    count += 1;
                }
                at += WINDOW as u64;
            }
        }
        file.sync_all().unwrap();
    }
    count
}

/// Where blocks of these test files begin in a window; the last bytes of it are only looked into.
fn find_blocks(window: &[u8], ids: &std::ops::Range<u64>) -> Vec<usize> {
    let start = Stamp { file: 0, index: 0, generation: 1 }.block();
    let magic: [u8; 8] = start[..8].try_into().unwrap();
    let last = window.len().saturating_sub(31);
    let is_block = |at: &usize| {
        let id = u64::from_le_bytes(window[at + 8..at + 16].try_into().unwrap());
        window[*at..at + 8] == magic && ids.contains(&id)
    };
    (0..last).filter(|at| window[*at] == magic[0]).filter(is_block).collect()
}

fn ids_from(first: u64) -> std::ops::Range<u64> {
    first..first + SIZES_IN_BLOCKS.len() as u64
}

fn flipped_bits_on_two_datanodes_are_read_around(room: &mut Room) {
    let cluster = room.cluster();
    write_files(&cluster.mount().join("two"), 100);
    let flipped: Vec<usize> = (0..2).map(|datanode| flip_blocks_of(cluster, datanode, ids_from(100))).collect();
    eprintln!("flipped {flipped:?}");
    assert!(flipped.iter().all(|count| *count > 500), "the blocks were not found on the disks: {flipped:?}");
    // A mount that has cached nothing.
    let cold = cluster.mount_again("demo");
    check_files(&cold.point().join("two"), 100);
    cold.unmount();
    check_files(&cluster.mount().join("two"), 100);
}

fn flipped_bits_are_read_around_after_a_restart_too(room: &mut Room) {
    let cluster = room.cluster();
    write_files(&cluster.mount().join("restarted"), 200);
    cluster.stop();
    let flipped: Vec<usize> = (2..4).map(|datanode| flip_blocks_of(cluster, datanode, ids_from(200))).collect();
    assert!(flipped.iter().all(|count| *count > 500), "the blocks were not found on the disks: {flipped:?}");
    cluster.up();
    check_files(&cluster.mount().join("restarted"), 200);
}

fn damage_beyond_the_parity_is_an_error_and_never_other_bytes(room: &mut Room) {
    let cluster = room.cluster();
    write_files(&cluster.mount().join("beyond"), 300);
    let flipped: usize = (0..6).map(|datanode| flip_blocks_of(cluster, datanode, ids_from(300))).sum();
    let all: u64 = SIZES_IN_BLOCKS.iter().sum();
    assert!(flipped as u64 >= all, "{flipped} blocks of {all} were found on the disks");
    let cold = cluster.mount_again("demo");
    for file in ids_from(300) {
        let path = cold.point().join("beyond").join(file.to_string());
        match fs::read(&path) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "file {file}"),
            // A chunk of one data shard has its bytes in the parity too.
            Ok(_) => {
                let whole = blocks_of(&path).into_iter().zip(0..);
                whole.for_each(|(seen, index)| assert_eq!(seen, Seen::Block(Stamp { file, index, generation: 1 })));
            }
        }
    }
    // The large file's stripes have no data shard that is whole.
    let large = cold.point().join("beyond/300");
    assert_eq!(fs::read(large).unwrap_err().raw_os_error(), Some(libc::EIO));
    cold.unmount();
    room.drop_cluster();
}

fn a_datanode_with_bits_flipped_all_over_its_segments_harms_nothing(room: &mut Room) {
    const STRIDE: u64 = 32 << 10;
    let cluster = room.cluster();
    write_files(&cluster.mount().join("all"), 400);
    cluster.stop();
    let mut random = random::fresh("places of flipped bits");
    let mut flipped = 0;
    for path in disk_files(cluster, 4) {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // The small files beside the segments say what the disk is.
        if file.metadata().unwrap().len() < 1 << 20 {
            continue;
        }
        for (start, end) in data_extents(&file).unwrap() {
            let mut at = start + random.below(STRIDE);
            while at < end {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at).unwrap();
                flipped += 1;
                at += 1 + random.below(2 * STRIDE);
            }
        }
    }
    assert!(flipped > 50, "only {flipped} bits were flipped");
    cluster.up();
    check_files(&cluster.mount().join("all"), 400);
    write_files(&cluster.mount().join("new"), 500);
    let cold = cluster.mount_again("demo");
    check_files(&cold.point().join("new"), 500);
    cold.unmount();
}
