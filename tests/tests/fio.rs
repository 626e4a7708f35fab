//! fio with its own checksums: sequential, random, overwriting, several jobs, direct and mapped.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::wait::seconds;
use holdfast_tests::{Claim, Room, Run, claims};
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    120 => sequential_writes_verify,
    120 => random_writes_verify,
    120 => random_overwrites_verify,
    120 => direct_writes_verify,
    120 => writes_with_an_fsync_each_verify,
    120 => four_jobs_at_once_verify,
    120 => mapped_writes_verify,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

fn fio(room: &mut Room, options: &str) {
    let d = room.directory();
    // Without a saved state, which fio would leave in the directory it runs in.
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
    let common = verify.into_iter().chain(["--name=job", "--group_reporting", "--fallocate=none"]);
    let run = Run::new("fio").args(common.clone()).arg(format!("--directory={}", d.display()));
    run.args(options.split(' ')).limit(seconds(100)).ok();
    // A second look, after everything is closed: verification only.
    let again = Run::new("fio").args(common).arg(format!("--directory={}", d.display()));
    again.args(options.split(' ')).arg("--verify_only=1").limit(seconds(100)).ok();
}

fn sequential_writes_verify(room: &mut Room) {
    fio(room, "--rw=write --bs=1M --size=256M --ioengine=psync --end_fsync=1");
}

fn random_writes_verify(room: &mut Room) {
    fio(room, "--rw=randwrite --bs=4k --size=48M --ioengine=psync --end_fsync=1");
}

fn random_overwrites_verify(room: &mut Room) {
    // Laid out first, then overwritten in uneven pieces; without a map of what was written, blocks are hit twice.
    fio(room, "--rw=write --bs=1M --size=32M --ioengine=psync --overwrite=1");
    fio(
        room,
        "--rw=randwrite --bsrange=4k-256k --bs_unaligned=0 --size=32M --ioengine=psync --overwrite=1 --verify_backlog=64",
    );
}

fn direct_writes_verify(room: &mut Room) {
    fio(room, "--rw=randwrite --bs=16k --size=32M --ioengine=libaio --iodepth=16 --direct=1");
}

fn writes_with_an_fsync_each_verify(room: &mut Room) {
    fio(room, "--rw=randwrite --bs=4k --size=4M --ioengine=psync --fsync=1");
}

fn four_jobs_at_once_verify(room: &mut Room) {
    fio(room, "--rw=randwrite --bs=32k --size=24M --numjobs=4 --ioengine=psync");
}

fn mapped_writes_verify(room: &mut Room) {
    fio(room, "--rw=randwrite --bs=8k --size=16M --ioengine=mmap");
}
