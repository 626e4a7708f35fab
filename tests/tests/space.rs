//! Space: the quota and the disks are reached and recovered from, at write(2), and nothing that was there is harmed.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::block::{Seen, Stamp, run_of_blocks};
use holdfast_tests::cluster::room_directory;
use holdfast_tests::posix::{errno, fallocate, space};
use holdfast_tests::wait::{self, seconds};
use holdfast_tests::workload::blocks_of;
use holdfast_tests::{Claim, Cluster, Mounted, Room, Run, claims};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    120 => a_full_quota_is_said_at_write_and_removing_files_makes_room,
    90 => overwriting_within_a_full_quota_is_possible,
    60 => statfs_of_a_volume_with_a_quota_shows_the_quota,
    60 => fallocate_beyond_the_quota_is_refused_and_one_within_it_is_not,
    60 => fallocate_beyond_what_is_free_is_refused_and_changes_nothing,
    300 => one_full_disk_under_all_datanodes_is_said_at_write_and_removing_files_makes_room,
    300 => full_disks_of_the_datanodes_are_said_at_write_and_removing_files_makes_room,
];

const MEBIBYTE: u64 = 1 << 20;
const QUOTA_MEBIBYTES: u64 = 64;
/// The local file system that a whole cluster is on; logs and reserves take a part.
const SHARED_DISK_BYTES: u64 = 2 << 30;
/// The local file system of each datanode's disk.
const OWN_DISK_BYTES: u64 = 320 << 20;

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// A mounted volume with a quota.
fn with_quota(room: &mut Room, name: &str) -> Mounted {
    let cluster = room.cluster();
    cluster.admin_ok(&["volume", "create", name, "--quota", &format!("{QUOTA_MEBIBYTES}M")]);
    cluster.mount_again(name)
}

/// Writes a file of stamped mebibytes until it has that many or write(2) says no; how many were accepted, and the error.
/// What was accepted must become durable.
fn fill(path: &Path, file: u64, mebibytes: u64) -> (u64, Option<i32>) {
    let mut handle = match File::create(path) {
        Ok(handle) => handle,
        Err(error) => return (0, error.raw_os_error()),
    };
    let write = |handle: &mut File, index: u64| handle.write_all(&run_of_blocks(file, index * 256, 256, 1));
    let refused = (0..mebibytes).find_map(|index| write(&mut handle, index).err().map(|error| (index, error)));
    let (accepted, error) = refused.map_or((mebibytes, None), |(index, error)| (index, error.raw_os_error()));
    if let Err(lost) = handle.sync_all() {
        panic!("{}: write(2) accepted {accepted} MiB ({error:?} after them), but fsync(2) says {lost}", path.display());
    }
    (accepted, error)
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
    let expected = (QUOTA_MEBIBYTES - 16) * MEBIBYTE;
    wait::until(seconds(10), || (space(mounted.point()).unwrap().0 == expected).then_some(()));
    assert_eq!(space(mounted.point()).unwrap().0, expected, "what was written is taken off");
}

/// A file system of its own, in a file: the disks can be filled without filling the machine's.
struct SmallDisk {
    point: std::path::PathBuf,
}

impl SmallDisk {
    fn new(name: &str, bytes: u64, point: &Path) -> Self {
        let image = room_directory().join(name);
        File::create(&image).unwrap().set_len(bytes).unwrap();
        Run::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"]).arg(&image).ok();
        fs::create_dir_all(point).unwrap();
        // The loop device goes with the mount.
        Run::new("mount").args(["-o", "loop"]).arg(&image).arg(point).ok();
        fs::remove_dir(point.join("lost+found")).unwrap();
        Self { point: point.to_owned() }
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

/// Writes files until write(2) says no; each file's number with the mebibytes that it took.
fn fill_disks(d: &Path) -> Vec<(u64, u64)> {
    let promised = space(d).unwrap().0 / MEBIBYTE;
    eprintln!("{promised} MiB are promised");
    assert!(promised > 200, "{promised} MiB leave nothing to fill");
    let (mut accepted, mut number, mut error) = (Vec::new(), 0, None);
    while error.is_none() {
        number += 1;
        assert!(number < 100, "the disks cannot be filled");
        let (mebibytes, said) = fill(&d.join(number.to_string()), number, 128);
        accepted.push((number, mebibytes));
        error = said;
    }
    let total: u64 = accepted.iter().map(|(_, mebibytes)| mebibytes).sum();
    eprintln!("{total} MiB were accepted");
    assert_eq!(error, Some(libc::ENOSPC));
    assert!(total * 10 >= promised * 8, "{total} MiB of the {promised} promised were accepted");
    accepted
}

fn check_all(d: &Path, files: &[(u64, u64)]) {
    for (number, mebibytes) in files {
        let path = d.join(number.to_string());
        // Not even the name of the last one may have found room.
        if *mebibytes > 0 || path.exists() {
            check(&path, *number, *mebibytes);
        }
    }
}

fn fill_and_recover(cluster: &mut Cluster) {
    let d = cluster.mount();
    let files = fill_disks(&d);
    check_all(&d, &files);
    // A full file system can be looked at and tidied, also after a restart.
    cluster.stop();
    cluster.up();
    check_all(&d, &files);
    let (removed, kept) = files.split_at(files.len() / 2);
    for (number, _) in removed {
        fs::remove_file(d.join(number.to_string())).unwrap();
    }
    wait_for_room("removed files make room", || {
        let mut file = File::create(d.join("again"))?;
        file.write_all(&run_of_blocks(9999, 0, 256 * 32, 1))?;
        file.sync_all()
    });
    check(&d.join("again"), 9999, 32);
    check_all(&d, kept);
    cluster.stop();
}

fn fallocate_beyond_the_quota_is_refused_and_one_within_it_is_not(room: &mut Room) {
    let mounted = with_quota(room, "allocated");
    let file = File::create(mounted.point().join("file")).unwrap();
    assert_eq!(errno(fallocate(&file, 0, 0, (QUOTA_MEBIBYTES + 1) * MEBIBYTE)), libc::EDQUOT);
    assert_eq!(file.metadata().unwrap().len(), 0);
    fallocate(&file, 0, 0, QUOTA_MEBIBYTES / 2 * MEBIBYTE).unwrap();
    assert_eq!(file.metadata().unwrap().len(), QUOTA_MEBIBYTES / 2 * MEBIBYTE);
    drop(file);
    mounted.unmount();
}

/// (ext4 fills the disk first and then says no.)
fn fallocate_beyond_what_is_free_is_refused_and_changes_nothing(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("file"), [7; 100_000]).unwrap();
    let file = fs::OpenOptions::new().write(true).open(d.join("file")).unwrap();
    let seen = || (file.metadata().unwrap().len(), file.metadata().unwrap().blocks());
    let (free, ..) = space(&d).unwrap();
    let before = seen();
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        for length in [free + (1 << 30), 1 << 62] {
            let refused = errno(fallocate(&file, mode, 0, length));
            assert!(refused == libc::ENOSPC || refused == libc::EDQUOT, "mode {mode}, {length} bytes: errno {refused}");
        }
    }
    assert_eq!(seen(), before);
    assert_eq!(fs::read(d.join("file")).unwrap(), [7; 100_000]);
}

fn one_full_disk_under_all_datanodes_is_said_at_write_and_removing_files_makes_room(room: &mut Room) {
    room.drop_cluster();
    let disk = SmallDisk::new("shared.img", SHARED_DISK_BYTES, &room.local_directory());
    let mut cluster = Cluster::prepare(&[]);
    cluster.set_data(&disk.point.join("data"));
    cluster.up();
    fill_and_recover(&mut cluster);
}

fn full_disks_of_the_datanodes_are_said_at_write_and_removing_files_makes_room(room: &mut Room) {
    room.drop_cluster();
    let base = room.local_directory();
    let mut disks = Vec::new();
    let mut cluster = Cluster::start(&[]);
    cluster.stop();
    // Each disk, as it was formatted, moves to a file system of its own.
    for datanode in 0..6 {
        let place = cluster.role_directory("datanode", datanode).join("disk");
        let kept = base.join(format!("kept-{datanode}"));
        fs::rename(&place, &kept).unwrap();
        disks.push(SmallDisk::new(&format!("own-{datanode}.img"), OWN_DISK_BYTES, &place));
        Run::new("cp").arg("-a").arg(kept.join(".")).arg(&place).ok();
    }
    cluster.up();
    fill_and_recover(&mut cluster);
    drop(disks);
}
