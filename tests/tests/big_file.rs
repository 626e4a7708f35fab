//! One file of 4 GiB, written and read in one go, with the client's memory inside its budget all the time.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::block::{BLOCK_BYTES, Seen, Stamp, identify, run_of_blocks};
use holdfast_tests::processes::{ProcessId, resident_bytes};
use holdfast_tests::{Claim, Room, claims};
use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CLAIMS: &[Claim] = &claims![300 => four_gibibytes_pass_through_a_client_of_bounded_memory];

const MEBIBYTE: u64 = 1 << 20;
const FILE_BYTES: u64 = 4 << 30;
/// The default budget of a mount for dirty data, readahead and caches together.
const BUDGET_BYTES: u64 = 512 * MEBIBYTE;
/// What is not budgeted: the program, its stacks, the FUSE and network buffers, what the allocator keeps.
const OVERHEAD_BYTES: u64 = 160 * MEBIBYTE;
/// Blocks of one write or read: 1 MiB.
const RUN_BLOCKS: u64 = 256;

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// The most memory that a process was seen to have while `work` ran.
fn most_memory(pid: ProcessId, work: impl FnOnce()) -> u64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(resident_bytes(pid).map_or(0, |(now, _)| now));
                std::thread::sleep(Duration::from_millis(50));
            }
            most
        });
        let guard = Done(&done);
        work();
        drop(guard);
        watcher.join().unwrap()
    })
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn timed(what: &str, work: impl FnOnce()) {
    let started = Instant::now();
    work();
    let seconds = started.elapsed().as_secs_f64();
    let mebibytes = f64::from(u32::try_from(FILE_BYTES / MEBIBYTE).unwrap());
    eprintln!("{what}: {seconds:.1} s, {:.0} MiB/s", mebibytes / seconds);
}

fn four_gibibytes_pass_through_a_client_of_bounded_memory(room: &mut Room) {
    let mounted = room.cluster().mount_again("demo");
    let path = mounted.point().join("big");
    let writing = most_memory(mounted.pid(), || {
        timed("written", || {
            let mut file = File::create(&path).unwrap();
            for first in (0..FILE_BYTES / BLOCK_BYTES as u64).step_by(usize::try_from(RUN_BLOCKS).unwrap()) {
                file.write_all(&run_of_blocks(1, first, RUN_BLOCKS, 1)).unwrap();
            }
            file.sync_all().unwrap();
        });
    });
    assert_eq!(path.metadata().unwrap().len(), FILE_BYTES);
    let reading = most_memory(mounted.pid(), || {
        timed("read", || {
            let mut file = File::open(&path).unwrap();
            let mut run = vec![0; usize::try_from(RUN_BLOCKS).unwrap() * BLOCK_BYTES];
            for first in (0..FILE_BYTES / BLOCK_BYTES as u64).step_by(usize::try_from(RUN_BLOCKS).unwrap()) {
                file.read_exact(&mut run).unwrap();
                for (block, index) in run.chunks_exact(BLOCK_BYTES).zip(first..) {
                    assert_eq!(identify(block), Seen::Block(Stamp { file: 1, index, generation: 1 }));
                }
            }
            assert_eq!(file.read(&mut run).unwrap(), 0);
        });
    });
    eprintln!("memory: {} MiB writing, {} MiB reading", writing / MEBIBYTE, reading / MEBIBYTE);
    assert!(writing.max(reading) > 0);
    assert!(writing <= BUDGET_BYTES + OVERHEAD_BYTES, "{} MiB while writing", writing / MEBIBYTE);
    assert!(reading <= BUDGET_BYTES + OVERHEAD_BYTES, "{} MiB while reading", reading / MEBIBYTE);
    std::fs::remove_file(&path).unwrap();
    mounted.unmount();
}
