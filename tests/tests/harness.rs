//! The harness itself: a hang is a failed test, and nothing is left behind. The hung file system is a FUSE mount that
//! nobody serves.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::forgetful::power::{self, Loss};
use holdfast_tests::forgetful::{self, JOURNAL_VARIABLE, ROOT_VARIABLE};
use holdfast_tests::namespace::{abort_and_detach_below, fuse_mounts_below, is_mounted};
use holdfast_tests::processes::{is_alive, tagged};
use holdfast_tests::wait::{self, seconds};
use holdfast_tests::{Claim, Room, Run, claims};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    60 => a_hung_call_ends_when_its_mount_is_aborted,
    90 => a_claim_that_hangs_in_a_mount_fails_and_leaves_nothing,
    60 => what_a_room_mounts_is_seen_by_nobody_else,
    60 => a_process_left_running_is_ended_with_its_room,
    60 => a_forgetful_disk_keeps_what_was_synced_and_forgets_the_rest,
];

/// Set in the rooms that the claims above start: what these are to do wrong.
const WRONG_VARIABLE: &str = "HOLDFAST_TEST_WRONG";
const HANGING: &[Claim] = &claims![1 => hangs];
const LEAVING: &[Claim] = &claims![20 => leaves_a_process_running];

fn main() -> ExitCode {
    match std::env::var(WRONG_VARIABLE).as_deref() {
        Ok("hang") => holdfast_tests::room::run(HANGING),
        Ok("leave") => holdfast_tests::room::run(LEAVING),
        _ => holdfast_tests::room::run(CLAIMS),
    }
}

/// Mounts a FUSE file system that will never answer, as long as the device is held.
fn mount_nothing(point: &Path) -> File {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("nobody"), point, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
    device
}

fn hangs(room: &mut Room) {
    let point = room.local_directory();
    let _device = mount_nothing(&point);
    println!("hanging in {}", point.display());
    let answer = fs::metadata(point.join("file"));
    panic!("the mount answered: {answer:?}");
}

fn leaves_a_process_running(_: &mut Room) {
    println!("left {}", holdfast_tests::command::tagged_command("sleep", "left").arg("300").spawn().unwrap().id());
}

fn a_hung_call_ends_when_its_mount_is_aborted(room: &mut Room) {
    let point = room.local_directory();
    let _device = mount_nothing(&point);
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| fs::metadata(point.join("file")));
        wait::for_state("the call hangs", seconds(10), || {
            let stuck = holdfast_tests::processes::stuck_threads();
            let own = format!("{} ", std::process::id());
            stuck.iter().any(|report| report.starts_with(&own) && report.contains("fuse_"))
        });
        assert!(!hung.is_finished());
        abort_and_detach_below(&point);
        assert!(hung.join().unwrap().is_err());
    });
    assert!(!is_mounted(&point) && fuse_mounts_below(&point).is_empty());
}

fn room_gone_wrong(how: &str) -> holdfast_tests::command::Ended {
    Run::new(std::env::current_exe().unwrap()).env(WRONG_VARIABLE, how).limit(seconds(60)).end()
}

fn a_claim_that_hangs_in_a_mount_fails_and_leaves_nothing(_: &mut Room) {
    let ended = room_gone_wrong("hang");
    assert_eq!(ended.status.and_then(|status| status.code()), Some(101), "{}", ended.describe());
    assert!(ended.stdout.contains("test hangs ... FAILED"), "{}", ended.describe());
    assert!(ended.stdout.contains("test result: FAILED. 0 passed; 1 failed"), "{}", ended.describe());
    assert!(ended.stderr.contains("watchdog: hangs did not end within 1 s"), "{}", ended.describe());
    assert!(ended.stderr.contains("fuse_"), "where it hung is not said: {}", ended.describe());
    let place = ended.stdout.lines().find_map(|line| line.strip_prefix("hanging in ")).unwrap();
    assert!(!Path::new(place).exists(), "{place} was left behind");
}

fn what_a_room_mounts_is_seen_by_nobody_else(room: &mut Room) {
    let point = room.local_directory();
    let nothing: Option<&str> = None;
    mount(Some("none"), &point, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
    fs::write(point.join("file"), "in here").unwrap();
    // The first process lives outside every room.
    let outside = fs::read_to_string("/proc/1/mountinfo").unwrap();
    assert!(is_mounted(&point) && !outside.contains(point.to_str().unwrap()));
    holdfast_tests::namespace::detach(&point);
}

fn a_process_left_running_is_ended_with_its_room(_: &mut Room) {
    let ended = room_gone_wrong("leave");
    let line = ended.stdout.lines().find_map(|line| line.strip_prefix("left ")).unwrap_or_default().to_owned();
    let pid: u32 = line.parse().unwrap_or_else(|_| panic!("{}", ended.describe()));
    assert!(!is_alive(pid), "process {pid} is left behind: {}", ended.describe());
    assert!(ended.stderr.contains("killing what a claim left running"), "{}", ended.describe());
    assert!(tagged(&format!("HOLDFAST_TEST_ROOM={pid}")).is_empty());
}

fn a_forgetful_disk_keeps_what_was_synced_and_forgets_the_rest(room: &mut Room) {
    let place = room.local_directory();
    let (root, journal) = (place.join("root"), place.join("journal"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&journal).unwrap();
    for name in ["changed", "synced", "shortened", "renamed", "replaced", "removed", "kept"] {
        fs::write(root.join(name), format!("{name} before").repeat(1000)).unwrap();
    }
    let script = format!(
        "r=${ROOT_VARIABLE}
        mkdir $r/below
        sync $r
        dd if=/dev/zero of=$r/changed bs=100 count=3 seek=7 conv=notrunc
        dd if=/dev/zero of=$r/synced bs=100 count=3 seek=7 conv=notrunc,fdatasync
        truncate --size 10 $r/shortened
        perl -e 'rename shift, shift or die' $r/renamed $r/replaced
        rm $r/removed
        touch $r/made
        dd if=/dev/zero of=$r/forgotten bs=4096 count=1 conv=fsync
        touch $r/below/made
        sync $r/below $r/below/made
        mkdir $r/unsynced
        touch $r/unsynced/made
        sync $r/unsynced $r/unsynced/made"
    );
    let mut run = Run::new("sh").arg("-ec").arg(&script);
    run = run.env("LD_PRELOAD", forgetful::library()).env(ROOT_VARIABLE, &root).env(JOURNAL_VARIABLE, &journal);
    run.ok();
    assert_eq!(fs::read(root.join("shortened")).unwrap().len(), 10, "the script did nothing");
    let taken = power::fail(&root, &journal, Loss::Everything);
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    for name in ["changed", "shortened", "renamed", "replaced", "removed", "kept"] {
        assert_eq!(read(name), format!("{name} before").repeat(1000), "{name}; {taken:?}");
    }
    assert_eq!(&fs::read(root.join("synced")).unwrap()[700..1000], [0; 300], "{taken:?}");
    assert!(root.join("below/made").exists(), "a synced name is gone; {taken:?}");
    assert!(!root.join("unsynced").exists(), "the directory's own name was not synced; {taken:?}");
    // Their content was synced, their names were not.
    assert!(!root.join("made").exists() && !root.join("forgotten").exists(), "{taken:?}");
}
