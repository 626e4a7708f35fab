//! Space: the quota and the disks are reached and recovered from, at write(2), and nothing that was there is harmed.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::block::{Seen, Stamp, run_of_blocks};
use holdfast_tests::cluster::room_directory;
use holdfast_tests::posix::space;
use holdfast_tests::wait::{self, seconds};
use holdfast_tests::workload::blocks_of;
use holdfast_tests::{Claim, Cluster, Mounted, Room, Run, claims};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    120 => a_full_quota_is_said_at_write_and_removing_files_makes_room,
    90 => overwriting_within_a_full_quota_is_possible,
    60 => statfs_of_a_volume_with_a_quota_shows_the_quota,
    300 => full_disks_are_said_at_write_and_removing_files_makes_room,
];

const MEBIBYTE: u64 = 1 << 20;
const QUOTA_MEBIBYTES: u64 = 64;
/// The local file system that all six disks share in the last claim. A quarter is what logs and reserves may take.
const DISK_BYTES: u64 = 3 << 30;

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// A mounted volume with a quota.
fn with_quota(room: &mut Room, name: &str) -> Mounted {
    let cluster = room.cluster();
    cluster.admin_ok(&["volume", "create", name, "--quota", &format!("{QUOTA_MEBIBYTES}M")]);
    cluster.mount_again(name)
}

/// Writes a file of stamped mebibytes until it has that many or the file system says no; how many were accepted by
/// write(2) and fsync(2), and the error.
fn fill(path: &Path, file: u64, mebibytes: u64) -> (u64, Option<i32>) {
    let mut handle = match File::create(path) {
        Ok(handle) => handle,
        Err(error) => return (0, error.raw_os_error()),
    };
    for written in 0..mebibytes {
        let blocks = run_of_blocks(file, written * 256, 256, 1);
        if let Err(error) = handle.write_all(&blocks) {
            // What was accepted before must still become durable.
            handle.sync_all().unwrap();
            return (written, error.raw_os_error());
        }
    }
    handle.sync_all().unwrap();
    (mebibytes, None)
}

/// The first `mebibytes` are as written; behind them may be a part of the one that failed.
fn check(path: &Path, file: u64, mebibytes: u64) {
    let blocks = blocks_of(path);
    let count = blocks.len() as u64;
    assert!((mebibytes * 256..(mebibytes + 1) * 256 + 1).contains(&count), "{count} blocks of {mebibytes} MiB");
    for (seen, index) in blocks.into_iter().zip(0..) {
        assert_eq!(seen, Seen::Block(Stamp { file, index, generation: 1 }), "block {index} of {}", path.display());
    }
}

/// Space is freed a little later than the file is removed.
fn wait_for_room(what: &str, attempt: impl FnMut() -> io::Result<()>) {
    let mut attempt = attempt;
    wait::for_state(what, seconds(60), || match attempt() {
        Ok(()) => true,
        Err(error) => {
            let code = error.raw_os_error();
            assert!(code == Some(libc::ENOSPC) || code == Some(libc::EDQUOT), "{error}");
            false
        }
    });
}

fn a_full_quota_is_said_at_write_and_removing_files_makes_room(room: &mut Room) {
    let mounted = with_quota(room, "full");
    let d = mounted.point().to_owned();
    let (half, none) = fill(&d.join("half"), 1, QUOTA_MEBIBYTES / 2);
    assert_eq!(none, None);
    let (rest, error) = fill(&d.join("rest"), 2, QUOTA_MEBIBYTES);
    assert_eq!(error, Some(libc::EDQUOT));
    assert!((QUOTA_MEBIBYTES / 2 - 2..=QUOTA_MEBIBYTES / 2).contains(&rest), "{rest} MiB were accepted");
    check(&d.join("half"), 1, half);
    check(&d.join("rest"), 2, rest);
    // Names and sizes take no quota, so these go on; more data does not.
    fs::create_dir(d.join("dir")).unwrap();
    fs::rename(d.join("rest"), d.join("dir/rest")).unwrap();
    File::create(d.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(fill(&d.join("more"), 3, 4).1, Some(libc::EDQUOT));
    fs::remove_file(d.join("half")).unwrap();
    wait_for_room("a removed file makes room", || {
        File::create(d.join("again"))?.write_all(&run_of_blocks(4, 0, 256, 1))
    });
    assert_eq!(fill(&d.join("again"), 4, QUOTA_MEBIBYTES / 2 - 4).1, None);
    check(&d.join("again"), 4, QUOTA_MEBIBYTES / 2 - 4);
    check(&d.join("dir/rest"), 2, rest);
    mounted.unmount();
}

fn overwriting_within_a_full_quota_is_possible(room: &mut Room) {
    let mounted = with_quota(room, "overwriting");
    let path = mounted.point().join("file");
    let (mebibytes, error) = fill(&path, 1, QUOTA_MEBIBYTES * 2);
    assert_eq!(error, Some(libc::EDQUOT));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for index in (0..mebibytes).step_by(5) {
        file.write_all_at(&run_of_blocks(1, index * 256, 256, 2), index * MEBIBYTE).unwrap();
    }
    file.sync_all().unwrap();
    for (seen, index) in blocks_of(&path).into_iter().zip(0..mebibytes * 256) {
        let generation = if index / 256 % 5 == 0 { 2 } else { 1 };
        assert_eq!(seen, Seen::Block(Stamp { file: 1, index, generation }));
    }
}

fn statfs_of_a_volume_with_a_quota_shows_the_quota(room: &mut Room) {
    let mounted = with_quota(room, "shown");
    let (free, total, _) = space(mounted.point()).unwrap();
    assert_eq!((free, total), (QUOTA_MEBIBYTES * MEBIBYTE, QUOTA_MEBIBYTES * MEBIBYTE));
    assert_eq!(fill(&mounted.point().join("file"), 1, 16).1, None);
    wait::for_state("what was written is taken off", seconds(10), || {
        space(mounted.point()).unwrap().0 == (QUOTA_MEBIBYTES - 16) * MEBIBYTE
    });
}

/// A file system of its own, in a file: the disks can be filled without filling the machine's.
struct SmallDisk {
    point: std::path::PathBuf,
}

impl SmallDisk {
    fn new() -> Self {
        let (image, point) = (room_directory().join("disk.img"), room_directory().join("disk"));
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        Run::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"]).arg(&image).ok();
        fs::create_dir_all(&point).unwrap();
        // The loop device goes with the mount.
        Run::new("mount").args(["-o", "loop"]).arg(&image).arg(&point).ok();
        Self { point }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Run::new("umount").arg(&self.point).end();
        if !unmounted.status.is_some_and(|status| status.success()) {
            eprintln!("harness: {}", unmounted.describe());
        }
    }
}

fn full_disks_are_said_at_write_and_removing_files_makes_room(room: &mut Room) {
    room.drop_cluster();
    let disk = SmallDisk::new();
    let mut cluster = Cluster::prepare(&[]);
    cluster.set_data(&disk.point.join("data"));
    cluster.up();
    let d = cluster.mount();
    let promised = space(&d).unwrap().0 / MEBIBYTE;
    eprintln!("{promised} MiB are promised on a disk of {} MiB", DISK_BYTES / MEBIBYTE);
    assert!(promised > 200, "{promised} MiB leave nothing to fill");
    let (mut accepted, mut number, mut error) = (Vec::new(), 0, None);
    while error.is_none() {
        number += 1;
        assert!(number < 100, "the disk cannot be filled");
        let (mebibytes, said) = fill(&d.join(number.to_string()), number, 128);
        accepted.push((number, mebibytes));
        error = said;
    }
    let total: u64 = accepted.iter().map(|(_, mebibytes)| mebibytes).sum();
    eprintln!("{total} MiB were accepted");
    assert_eq!(error, Some(libc::ENOSPC));
    assert!(total * 10 >= promised * 8, "{total} MiB of the {promised} promised were accepted");
    for (number, mebibytes) in &accepted {
        if d.join(number.to_string()).exists() {
            check(&d.join(number.to_string()), *number, *mebibytes);
        }
    }
    // A full file system can be looked at and tidied, also after a restart.
    cluster.stop();
    cluster.up();
    for (number, _) in accepted.iter().take(accepted.len() / 2) {
        fs::remove_file(d.join(number.to_string())).unwrap();
    }
    wait_for_room("removed files make room", || {
        let mut file = File::create(d.join("again"))?;
        file.write_all(&run_of_blocks(9999, 0, 256 * 32, 1))?;
        file.sync_all()
    });
    check(&d.join("again"), 9999, 32);
    for (number, mebibytes) in accepted.iter().skip(accepted.len() / 2) {
        if d.join(number.to_string()).exists() {
            check(&d.join(number.to_string()), *number, *mebibytes);
        }
    }
    cluster.stop();
}
