//! Modes, owners, times, extended attributes, and what the mount itself shows.

use holdfast_tests::posix::{errno, space};
use holdfast_tests::{Claim, Room, Run, attribute, claims, namespace};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

pub(crate) const CLAIMS: &[Claim] = &claims![
    30 => modes_and_owners_are_kept,
    30 => times_are_kept_to_the_nanosecond,
    30 => changes_advance_the_times_that_posix_says,
    30 => times_of_successive_changes_never_go_back,
    30 => extended_attributes_are_kept_listed_replaced_and_removed,
    30 => an_extended_attribute_may_be_as_large_as_linux_allows,
    30 => extended_attributes_are_refused_where_linux_refuses_them,
    30 => an_extended_attribute_without_a_name_behind_its_prefix_is_refused,
    30 => a_capability_stays_until_the_next_write,
    60 => other_users_get_what_the_modes_allow,
    30 => writing_takes_the_set_user_bit_away,
    30 => a_set_group_directory_passes_its_group_on,
    30 => the_umask_is_taken_off_new_files,
    30 => a_program_runs_from_the_mount_with_its_set_user_bit,
    30 => the_mount_shows_its_kind_and_allows_devices_and_set_user_bits,
    30 => statfs_promises_space_that_is_there,
];

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn modes_and_owners_are_kept(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("file"), "").unwrap();
    for mode in [0o000, 0o644, 0o1777, 0o4755, 0o2755, 0o7777] {
        set_mode(&d.join("file"), mode);
        assert_eq!(fs::metadata(d.join("file")).unwrap().mode() & 0o7777, mode);
    }
    set_mode(&d.join("file"), 0o644);
    chown(d.join("file"), Some(12_345), Some(4_000_000_000)).unwrap();
    chown(d.join("file"), None, Some(77)).unwrap();
    let found = fs::metadata(d.join("file")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (12_345, 77, 0o644));
    symlink("file", d.join("link")).unwrap();
    std::os::unix::fs::lchown(d.join("link"), Some(5), Some(6)).unwrap();
    assert_eq!(fs::symlink_metadata(d.join("link")).unwrap().uid(), 5);
    assert_eq!(fs::metadata(d.join("file")).unwrap().uid(), 12_345);
}

fn times_are_kept_to_the_nanosecond(room: &mut Room) {
    let d = room.directory();
    let file = File::create(d.join("file")).unwrap();
    // Long ago, before 1970, and beyond 2038.
    for (seconds, nanoseconds) in [(981_173_106, 123_456_789), (5_000_000_000, 1), (0, 999_999_999)] {
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let times = fs::FileTimes::new().set_modified(time).set_accessed(time + Duration::from_nanos(7));
        file.set_times(times).unwrap();
        let found = fs::metadata(d.join("file")).unwrap();
        assert_eq!((found.modified().unwrap(), found.accessed().unwrap()), (time, time + Duration::from_nanos(7)));
    }
    let before = SystemTime::UNIX_EPOCH - Duration::new(86_400, 250);
    file.set_times(fs::FileTimes::new().set_modified(before)).unwrap();
    assert_eq!(fs::metadata(d.join("file")).unwrap().modified().unwrap(), before);
    Run::new("touch").args(["-d", "2001-02-03 04:05:06.7 UTC"]).arg(d.join("touched")).ok();
    assert_eq!(fs::metadata(d.join("touched")).unwrap().mtime_nsec(), 700_000_000);
}

/// Modification and change time of a name.
fn stamps(path: &Path) -> (i128, i128) {
    let found = fs::symlink_metadata(path).unwrap();
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    (nanoseconds(found.mtime(), found.mtime_nsec()), nanoseconds(found.ctime(), found.ctime_nsec()))
}

fn changes_advance_the_times_that_posix_says(room: &mut Room) {
    let d = room.directory();
    let (dir, file) = (d.join("dir"), d.join("dir/file"));
    fs::create_dir(&dir).unwrap();
    fs::write(&file, "1").unwrap();
    let start = (stamps(&dir), stamps(&file));

    let handle = fs::OpenOptions::new().write(true).open(&file).unwrap();
    handle.write_all_at(b"22", 0).unwrap();
    drop(handle);
    let written = stamps(&file);
    assert!(written.0 > start.1.0 && written.1 > start.1.1, "write changes both of the file");
    assert_eq!(stamps(&dir), start.0, "write changes nothing of the directory");

    set_mode(&file, 0o600);
    let moded = stamps(&file);
    assert!(moded.0 == written.0 && moded.1 > written.1, "chmod changes the change time only");

    fs::hard_link(&file, d.join("dir/link")).unwrap();
    let (linked, linked_dir) = (stamps(&file), stamps(&dir));
    assert!(linked.0 == written.0 && linked.1 > moded.1, "link changes the change time of the file");
    assert!(linked_dir.0 > start.0.0 && linked_dir.1 > start.0.1, "link changes both of the directory");

    fs::remove_file(d.join("dir/link")).unwrap();
    assert!(stamps(&file).1 > linked.1 && stamps(&dir).0 > linked_dir.0, "unlink does as link does");
    let unlinked_dir = stamps(&dir);
    fs::rename(&file, d.join("elsewhere")).unwrap();
    assert!(stamps(&dir).0 > unlinked_dir.0, "rename changes the directory it leaves");
    attribute::set(&d.join("elsewhere"), b"user.a", b"1", 0).unwrap();
    let attributed = stamps(&d.join("elsewhere"));
    assert!(attributed.0 == written.0 && attributed.1 > linked.1, "an attribute changes the change time only");
}

fn times_of_successive_changes_never_go_back(room: &mut Room) {
    let d = room.directory();
    let mut last = 0;
    for number in 0..200 {
        let path = d.join(format!("{number}"));
        fs::write(&path, "x").unwrap();
        let now = stamps(&path).0;
        assert!(now >= last, "file {number} is {} ns older than the one before", last - now);
        last = now;
    }
}

fn extended_attributes_are_kept_listed_replaced_and_removed(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("file"), "x").unwrap();
    fs::create_dir(d.join("dir")).unwrap();
    for path in [d.join("file"), d.join("dir")] {
        let big = vec![3; 2000];
        let values: [(&[u8], &[u8]); 4] =
            [(b"user.empty", b""), (b"user.bytes", b"\0\xff\n"), (b"user.big", &big), (b"trusted.t", b"root's")];
        for (name, value) in values {
            attribute::set(&path, name, value, attribute::CREATE).unwrap();
        }
        for (name, value) in values {
            assert_eq!(attribute::get(&path, name).unwrap(), value);
        }
        let list = attribute::list(&path).unwrap();
        let mut names: Vec<_> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        assert_eq!(names, [b"trusted.t".as_slice(), b"user.big", b"user.bytes", b"user.empty"]);
        attribute::set(&path, b"user.bytes", b"replaced", attribute::REPLACE).unwrap();
        attribute::remove(&path, b"user.big").unwrap();
        assert_eq!(attribute::get(&path, b"user.bytes").unwrap(), b"replaced");
        assert_eq!(errno(attribute::get(&path, b"user.big")), libc::ENODATA);
    }
    let moved = d.join("moved");
    fs::rename(d.join("file"), &moved).unwrap();
    assert_eq!(attribute::get(&moved, b"user.bytes").unwrap(), b"replaced");
}

/// ext4 has not the room for it; XFS has, and so have we.
fn an_extended_attribute_may_be_as_large_as_linux_allows(room: &mut Room) {
    room.cluster();
    let path = room.directory().join("file");
    fs::write(&path, "x").unwrap();
    let largest = vec![3; 64 << 10];
    attribute::set(&path, b"user.largest", &largest, 0).unwrap();
    assert_eq!(attribute::get(&path, b"user.largest").unwrap(), largest);
}

fn extended_attributes_are_refused_where_linux_refuses_them(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("file"), "x").unwrap();
    let path = d.join("file");
    attribute::set(&path, b"user.a", b"1", 0).unwrap();
    assert_eq!(errno(attribute::set(&path, b"user.a", b"2", attribute::CREATE)), libc::EEXIST);
    assert_eq!(errno(attribute::set(&path, b"user.b", b"2", attribute::REPLACE)), libc::ENODATA);
    assert_eq!(errno(attribute::remove(&path, b"user.b")), libc::ENODATA);
    assert_eq!(errno(attribute::set(&path, b"nonsense", b"2", 0)), libc::EOPNOTSUPP);
    assert_eq!(errno(attribute::set(&path, b"user.a", &vec![1; 70_000], 0)), libc::E2BIG);
    let long = [b"user.".as_slice(), &[b'n'; 251]].concat();
    assert_eq!(errno(attribute::set(&path, &long, b"", 0)), libc::ERANGE);
    assert_eq!(attribute::get(&path, b"user.a").unwrap(), b"1");
    symlink("file", d.join("link")).unwrap();
    assert_eq!(errno(attribute::set(&d.join("link"), b"user.a", b"1", 0)), libc::EPERM);
}

fn an_extended_attribute_without_a_name_behind_its_prefix_is_refused(room: &mut Room) {
    let path = room.directory().join("file");
    fs::write(&path, "x").unwrap();
    for name in [b"user.".as_slice(), b"trusted."] {
        assert_eq!(errno(attribute::set(&path, name, b"1", 0)), libc::EINVAL);
    }
    let listed = attribute::list(&path).unwrap();
    assert!(listed.is_empty(), "{}", listed.escape_ascii());
}

/// `cp -a` and `tar` set attributes of a file that they have written and not closed yet.
fn a_capability_stays_until_the_next_write(room: &mut Room) {
    const NAME: &[u8] = b"security.capability";
    // struct vfs_cap_data, version 2: cap_net_raw, effective and permitted.
    let capability = [[1, 0, 0, 2], [0, 0x20, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
    let path = room.directory().join("program");
    let file = File::create(&path).unwrap();
    file.write_all_at(b"a program", 0).unwrap();
    assert_eq!(errno(attribute::get(&path, NAME)), libc::ENODATA);
    attribute::set(&path, NAME, &capability, 0).unwrap();
    drop(file);
    assert_eq!(attribute::get(&path, NAME).unwrap(), capability);
    let file = File::options().write(true).open(&path).unwrap();
    assert_eq!(attribute::get(&path, NAME).unwrap(), capability);
    file.write_all_at(b"another", 0).unwrap();
    drop(file);
    assert_eq!(errno(attribute::get(&path, NAME)), libc::ENODATA);
}

/// Whether a shell line succeeds as a user who owns nothing.
fn nobody_can(line: &str, within: &Path) -> bool {
    let program = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", line];
    Run::new("setpriv").args(program).within(within).end().status.is_some_and(|status| status.success())
}

/// A directory that everybody may enter, whatever the ones above it say to others.
fn enterable(room: &mut Room) -> std::path::PathBuf {
    let d = room.directory();
    set_mode(&d, 0o777);
    d
}

fn other_users_get_what_the_modes_allow(room: &mut Room) {
    let d = enterable(room);
    fs::create_dir(d.join("closed")).unwrap();
    set_mode(&d.join("closed"), 0o700);
    fs::create_dir(d.join("sticky")).unwrap();
    set_mode(&d.join("sticky"), 0o1777);
    for (path, mode) in [("private", 0o600), ("readable", 0o644), ("closed/file", 0o666), ("sticky/roots", 0o666)] {
        fs::write(d.join(path), "x").unwrap();
        set_mode(&d.join(path), mode);
    }
    assert!(!nobody_can("cat private", &d) && nobody_can("cat readable", &d) && !nobody_can("echo x > readable", &d));
    assert!(!nobody_can("cat closed/file", &d) && !nobody_can("ls closed", &d));
    assert!(nobody_can("echo x > sticky/roots", &d) && !nobody_can("rm -f sticky/roots", &d));
    assert!(nobody_can("touch own && chmod 600 own && cat own && mv own sticky/own && rm sticky/own", &d));
    assert!(!nobody_can("chmod 777 readable", &d) && !nobody_can("chown 65534 readable", &d));
    assert!(nobody_can("mkdir mine && rmdir mine", &d));
    assert_eq!(fs::read(d.join("readable")).unwrap(), b"x");
}

fn writing_takes_the_set_user_bit_away(room: &mut Room) {
    let d = enterable(room);
    fs::write(d.join("file"), "x").unwrap();
    set_mode(&d.join("file"), 0o4777);
    assert!(nobody_can("echo more >> file", &d));
    assert_eq!(fs::metadata(d.join("file")).unwrap().mode() & 0o7777, 0o777);
    fs::write(d.join("owned"), "x").unwrap();
    set_mode(&d.join("owned"), 0o4755);
    chown(d.join("owned"), Some(33), None).unwrap();
    assert_eq!(fs::metadata(d.join("owned")).unwrap().mode() & 0o7777, 0o755, "so does a change of owner");
}

fn a_set_group_directory_passes_its_group_on(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("dir")).unwrap();
    chown(d.join("dir"), None, Some(555)).unwrap();
    set_mode(&d.join("dir"), 0o2775);
    fs::write(d.join("dir/file"), "").unwrap();
    fs::create_dir(d.join("dir/below")).unwrap();
    let of = |name: &str| fs::metadata(d.join(name)).unwrap();
    assert_eq!((of("dir/file").gid(), of("dir/below").gid()), (555, 555));
    assert_eq!(of("dir/below").mode() & 0o2000, 0o2000);
}

fn the_umask_is_taken_off_new_files(room: &mut Room) {
    let d = room.directory();
    Run::shell("umask 027; touch file; mkdir dir; mkfifo fifo").within(&d).ok();
    let mode = |name: &str| fs::metadata(d.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("file"), mode("dir"), mode("fifo")), (0o640, 0o750, 0o640));
}

fn a_program_runs_from_the_mount_with_its_set_user_bit(room: &mut Room) {
    let d = enterable(room);
    fs::copy("/usr/bin/id", d.join("id")).unwrap();
    set_mode(&d.join("id"), 0o4755);
    let program = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "./id", "-u"];
    assert_eq!(Run::new("setpriv").args(program).within(&d).ok().trim(), "0");
}

fn the_mount_shows_its_kind_and_allows_devices_and_set_user_bits(room: &mut Room) {
    let mount = room.cluster().mount();
    let line = namespace::mounts().into_iter().find(|m| m.point == mount).expect("it is mounted");
    assert_eq!(line.kind, "fuse.holdfast");
    assert!(!line.options.contains("nodev") && !line.options.contains("nosuid"), "{}", line.options);
    let source = Run::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&mount).ok();
    assert!(source.contains("demo"), "the source names the volume: {source}");
}

fn statfs_promises_space_that_is_there(room: &mut Room) {
    let d = room.directory();
    room.cluster();
    let (free, total, inodes) = space(&d).unwrap();
    assert!(free > 1 << 30 && free <= total && inodes > 1000, "{free} of {total}, {inodes} inodes");
    // Six disks on one local file system count its space once, and a third of it is parity.
    let (local, ..) = space(&std::env::temp_dir()).unwrap();
    assert!(free <= local * 7 / 10, "{free} promised of {local} on the disk at 4+2");
    Run::new("df").arg("-h").arg(&d).ok();
}
