//! Real mounts of a tiny file system, each test in a mount namespace of its own; a watchdog aborts what hangs.

mod tiny;

use super::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;
use tiny::Tiny;

const LIMIT: Duration = Duration::from_secs(20);
const SOURCE: &str = "127.0.0.1:7400/demo";

/// A temporary directory in a mount namespace that ends with the test's threads: whatever a test leaves mounted goes too.
fn place_to_mount() -> (tempfile::TempDir, MountPoint) {
    unshare(CloneFlags::CLONE_NEWNS).expect("the tests run as root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let root = tempfile::tempdir().unwrap();
    let point = MountPoint::prepare(&root.path().join("mnt"), true).unwrap();
    (root, point)
}

/// Aborts the mount's connection when the test takes too long, so that no access to it hangs for ever.
struct Watchdog {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}
impl Watchdog {
    fn over(place: &Place) -> Self {
        let (stop, stopped) = mpsc::channel();
        let place = place.clone();
        let thread = std::thread::spawn(move || {
            if stopped.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the watchdog aborts {}", place.point.display());
                place.abort().expect("an abort");
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}
impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// A child that is killed with the test.
struct Killed(Child);
impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(point: &MountPoint, options: &str) -> (Mount, Watchdog, Tiny) {
    let tiny = Tiny::default();
    let options = MountOptions::parse(options).unwrap();
    let mount = Mount::start_serving(tiny.clone(), SOURCE, point, &options).unwrap();
    let watchdog = Watchdog::over(&mount.place);
    (mount, watchdog, tiny)
}

fn entry_at(point: &MountPoint) -> Option<MountEntry> {
    mountinfo::topmost(&mountinfo::read().unwrap(), point.path()).cloned()
}

fn unmounted(mount: &Mount, how: UnmountHow) -> Result<(), UnmountError> {
    wait(mount.unmount(how))
}

/// Runs a future to its end, by a deadline.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("an end in time") })
}

#[test]
fn a_mount_is_shown_as_ours_works_and_ends_by_unmount() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, _) = started(&point, "");
    let entry = entry_at(&point).expect("it is mounted");
    assert_eq!((entry.kind.as_str(), entry.source.to_str()), (FILE_SYSTEM_TYPE, Some(SOURCE)));
    let shown = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = shown.lines().find(|line| line.contains(FILE_SYSTEM_TYPE)).unwrap();
    assert!(line.contains("default_permissions") && line.contains("allow_other"), "{line}");
    assert!(!line.contains("nodev") && !line.contains("nosuid"), "{line}");
    assert_eq!(std::fs::read(point.path().join("file")).unwrap(), tiny::CONTENT);
    let read_ahead = std::fs::read_to_string(format!("/sys/class/bdi/0:{}/read_ahead_kb", mount.place.device.minor));
    assert_eq!(read_ahead.unwrap().trim(), "1024");
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
    assert_eq!(wait(mount.wait_unmounted()), SessionEnd::Unmounted);
    assert_eq!(entry_at(&point), None);
    unmounted(&mount, UnmountHow::IfUnused).expect("unmounting what is unmounted is fine");
}

#[test]
fn options_are_the_kernels_to_keep() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, _) = started(&point, "ro,nodev,nosuid,noexec,noatime");
    let shown = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = shown.lines().find(|line| line.contains(FILE_SYSTEM_TYPE)).unwrap();
    assert!(line.contains("ro,nosuid,nodev,noexec,noatime"), "{line}");
    let error = std::fs::write(point.path().join("file"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn a_busy_mount_names_its_holder_stays_and_is_then_detached_lazily() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, _) = started(&point, "");
    let child = Command::new("sleep").arg("60").current_dir(point.path()).stdin(Stdio::null()).spawn().unwrap();
    let child = Killed(child);
    let error = unmounted(&mount, UnmountHow::IfUnused).unwrap_err();
    let expected = format!("sleep ({}) works in {}", child.0.id(), point.path().display());
    assert!(error.to_string().contains("is in use: ") && error.to_string().contains(&expected), "{error}");
    assert_eq!(std::fs::read(point.path().join("file")).unwrap(), tiny::CONTENT, "it still works");
    unmounted(&mount, UnmountHow::Lazily).unwrap();
    assert_eq!(entry_at(&point), None);
    assert_eq!(*mount.ended.borrow(), None, "the child still uses it");
    drop(child);
    assert_eq!(wait(mount.wait_unmounted()), SessionEnd::Unmounted);
}

#[test]
fn open_files_mappings_and_mounts_below_are_holders() {
    let (_root, point) = place_to_mount();
    let (mounted, _watchdog, _) = started(&point, "");
    let holders = |mounted: &Mount| match unmounted(mounted, UnmountHow::IfUnused) {
        Err(UnmountError::Busy { holders, .. }) => holders,
        other => panic!("not busy: {other:?}"),
    };
    let pid = std::process::id();
    let file = std::fs::File::open(point.path().join("file")).unwrap();
    let opened = holders(&mounted);
    assert!(
        matches!(&opened[..], [Holder::Process { pid: by, holding: Holding::OpenFile(path), .. }]
            if *by == pid && *path == point.path().join("file")),
        "{opened:?}"
    );
    // SAFETY: a new private mapping of a file that is open; it is unmapped below and nothing else knows it.
    let mapping =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    assert_ne!(mapping, libc::MAP_FAILED);
    drop(file);
    let mapped = holders(&mounted);
    assert!(
        matches!(&mapped[..], [Holder::Process { pid: by, holding: Holding::Mapping, .. }] if *by == pid),
        "{mapped:?}"
    );
    // SAFETY: the mapping made above, of the same length, not used any more.
    assert_eq!(unsafe { libc::munmap(mapping, 4096) }, 0);
    let below = point.path().join("directory");
    mount(Some("none"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    assert_eq!(holders(&mounted), [Holder::Mount { point: below.clone() }]);
    umount2(&below, MntFlags::empty()).unwrap();
    unmounted(&mounted, UnmountHow::IfUnused).unwrap();
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, _) = started(&point, "");
    umount2(point.path(), MntFlags::empty()).unwrap();
    assert_eq!(wait(mount.wait_unmounted()), SessionEnd::Unmounted);
    unmounted(&mount, UnmountHow::IfUnused).expect("unmounting what is unmounted is fine");
}

#[test]
fn what_is_mounted_over_it_is_not_unmounted_instead() {
    let (_root, point) = place_to_mount();
    let (mounted, _watchdog, _) = started(&point, "");
    mount(Some("other"), point.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let error = unmounted(&mounted, UnmountHow::Lazily).unwrap_err();
    assert!(error.to_string().ends_with("is covered by another mount: other (tmpfs)"), "{error}");
    assert_eq!(entry_at(&point).map(|entry| entry.kind).as_deref(), Some("tmpfs"));
    umount2(point.path(), MntFlags::empty()).unwrap();
    unmounted(&mounted, UnmountHow::IfUnused).unwrap();
}

#[test]
fn an_abort_frees_a_process_that_hangs_in_a_request() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    let file = point.path().join("hangs");
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || sender.send(std::fs::read(file)));
    assert!(tiny.wait_for("read", LIMIT), "the read reached the file system");
    mount.abort().unwrap();
    let outcome = receiver.recv_timeout(LIMIT).expect("the reader comes back");
    assert!(outcome.is_err());
    reader.join().unwrap().unwrap();
    assert_ne!(wait(mount.wait_unmounted()), SessionEnd::Failed(String::new()));
    assert_eq!(entry_at(&point), None);
    assert!(mount.abort_file().parent().is_some_and(|connection| !connection.exists()), "the connection is gone");
}

#[test]
fn dead_mounts_of_ours_are_detached_when_a_mount_point_is_prepared() {
    let (_root, point) = place_to_mount();
    for _ in 0..2 {
        let device = open_device().unwrap();
        // The device is closed without a session, as the death of the process does it.
        Place::mount(SOURCE, point.path(), &MountOptions::default(), &device).unwrap();
    }
    assert_eq!(std::fs::metadata(point.path()).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(MountPoint::prepare(point.path(), false).unwrap(), point);
    assert_eq!(entry_at(&point), None);
}

#[test]
fn a_living_mount_is_not_mounted_over() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, _) = started(&point, "");
    let error = MountPoint::prepare(point.path(), true).unwrap_err();
    assert!(error.to_string().contains("already: 127.0.0.1:7400/demo (fuse.holdfast)"), "{error}");
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn a_mount_that_hangs_is_said_to_hang() {
    let (_root, point) = place_to_mount();
    let device = open_device().unwrap();
    let place = Place::mount(SOURCE, point.path(), &MountOptions::default(), &device).unwrap();
    let _watchdog = Watchdog::over(&place);
    let begun = Instant::now();
    let error = MountPoint::prepare(point.path(), false).unwrap_err();
    assert!(matches!(error, MountError::Hangs(_)), "{error}");
    assert!(begun.elapsed() < LIMIT);
    place.abort().unwrap();
    assert_eq!(entry_at(&point), None);
}

#[test]
fn a_mount_that_fails_to_start_leaves_nothing() {
    let (_root, point) = place_to_mount();
    let error = Mount::start_serving(Tiny::refusing(), SOURCE, &point, &MountOptions::default()).unwrap_err();
    assert!(matches!(error, MountError::Failed { .. }), "{error}");
    assert_eq!(entry_at(&point), None);
    assert_eq!(std::fs::read_dir(point.path()).unwrap().count(), 0);
}

#[test]
fn a_dropped_mount_is_detached() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, _) = started(&point, "");
    let mut ended = mount.ended.clone();
    drop(mount);
    assert_eq!(entry_at(&point), None);
    assert_eq!(wait(ended.wait_for(Option::is_some)).unwrap().clone(), Some(SessionEnd::Unmounted));
}

#[test]
fn a_time_before_1970_comes_through_kernel_and_fuser_unchanged() {
    use std::time::UNIX_EPOCH;
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    let file = std::fs::File::open(point.path().join("file")).unwrap();
    for ns in [-1_i64, -1_500_000_000, -2_000_000_000, 1_500_000_000] {
        let distance = Duration::from_nanos(ns.unsigned_abs());
        let time = if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
        file.set_times(std::fs::FileTimes::new().set_accessed(time)).unwrap();
        assert_eq!(crate::fuse::from_request_time(tiny.atime().expect("it was set")), ns);
    }
    drop(file);
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn the_ends_of_the_kernels_time_do_not_kill_an_event_loop() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    let file = std::ffi::CString::new(point.path().join("file").to_str().unwrap()).unwrap();
    for (tv_sec, tv_nsec) in [(i64::MIN, 0), (i64::MIN, 5), (i64::MIN + 1, 5), (i64::MAX, 999_999_999)] {
        let times = [libc::timespec { tv_sec, tv_nsec }, libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }];
        // SAFETY: a path that ends with a zero byte, and the two times that the call reads.
        assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, file.as_ptr(), times.as_ptr(), 0) }, 0);
        let clamped = if tv_sec < 0 { i64::MIN } else { i64::MAX };
        assert_eq!(crate::fuse::from_request_time(tiny.atime().expect("it was set")), clamped);
    }
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
    assert_eq!(wait(mount.wait_unmounted()), SessionEnd::Unmounted);
}

#[test]
fn writes_do_not_ask_for_capabilities_one_by_one() {
    use std::io::Write;
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    let mut file = std::fs::OpenOptions::new().write(true).open(point.path().join("file")).unwrap();
    for _ in 0..10 {
        file.write_all(b"x").unwrap();
    }
    drop(file);
    assert_eq!((tiny.count("write"), tiny.count("getxattr")), (10, 1));
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn a_large_write_comes_in_requests_of_a_mebibyte() {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    // Of memory that is not aligned to pages, direct requests get one page less, and there is one more of them.
    let unaligned = vec![7; (4 << 20) + 4096];
    let data = &unaligned[unaligned.as_ptr().align_offset(4096)..][..4 << 20];
    for (flags, expected) in [(0, 4), (libc::O_DIRECT, 8)] {
        let file = OpenOptions::new().write(true).custom_flags(flags).open(point.path().join("file")).unwrap();
        file.write_all_at(data, 0).unwrap();
        assert_eq!(tiny.count("write"), expected);
    }
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn a_close_flushes_only_what_was_open_for_writing() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    drop(std::fs::File::open(point.path().join("file")).unwrap());
    assert_eq!((tiny.count("open"), tiny.count("flush")), (1, 0));
    drop(OpenOptions::new().write(true).open(point.path().join("file")).unwrap());
    assert_eq!((tiny.count("open"), tiny.count("flush")), (2, 1));
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn a_dirty_mapping_is_written_back_through_any_handle_at_its_own_offset() {
    let (_root, point) = place_to_mount();
    let (mount, _watchdog, tiny) = started(&point, "");
    let path = point.path().join("file");
    let mapped = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let appending = OpenOptions::new().append(true).open(&path).unwrap();
    let length = tiny::CONTENT.len();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new shared mapping of a file that is open; it is unmapped below and nothing else knows it.
    let mapping =
        unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, mapped.as_raw_fd(), 0) };
    assert_ne!(mapping, libc::MAP_FAILED);
    // SAFETY: the first byte of the mapping, which is writable and inside of the file.
    unsafe { mapping.cast::<u8>().write_volatile(b'W') };
    // SAFETY: the mapping made above, not used any more.
    assert_eq!(unsafe { libc::msync(mapping, length, libc::MS_SYNC) }, 0);
    assert_eq!(tiny.last_write_offset(), Some(0));
    // SAFETY: the mapping made above, of the same length, not used any more.
    assert_eq!(unsafe { libc::munmap(mapping, length) }, 0);
    drop((mapped, appending));
    unmounted(&mount, UnmountHow::IfUnused).unwrap();
}

#[test]
fn a_mount_can_be_shared_between_tasks() {
    fn shared<T: Send + Sync + 'static>(_: Option<T>) {}
    fn sent<T: Send>(_: T) {}
    shared(None::<Mount>);
    fn both(mount: &Mount) {
        sent(mount.unmount(UnmountHow::IfUnused));
        sent(mount.wait_unmounted());
    }
    let _: fn(&Mount) = both;
}
