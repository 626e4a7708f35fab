//! Names: rename with its flags, links, symlinks, nodes, and what is refused.

use holdfast_tests::posix::{EXCHANGE, NOREPLACE, errno, make_node, rename_with};
use holdfast_tests::{Claim, Room, Run, claims};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) const CLAIMS: &[Claim] = &claims![
    90 => rename_keeps_inode_and_content,
    60 => rename_over_a_file_is_never_seen_half_done,
    30 => rename_noreplace_refuses_an_existing_name_and_leaves_both,
    30 => rename_exchange_swaps_a_file_and_a_directory,
    30 => rename_over_a_non_empty_directory_leaves_both,
    30 => rename_over_an_empty_directory_replaces_it,
    30 => rename_between_a_file_and_a_directory_is_refused,
    30 => rename_of_a_directory_below_itself_is_refused,
    30 => rename_between_two_names_of_one_file_changes_nothing,
    30 => hard_links_are_one_file,
    30 => a_hard_link_to_a_directory_is_refused,
    30 => symlinks_keep_what_they_say,
    30 => a_loop_of_symlinks_is_an_error,
    30 => names_of_255_bytes_of_any_value_work_and_256_are_refused,
    30 => nodes_keep_their_kind_and_device,
    30 => removing_what_is_not_there_or_not_of_that_kind_is_refused,
    30 => exclusive_creation_admits_exactly_one,
];

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn rename_keeps_inode_and_content(room: &mut Room) {
    let d = room.directory();
    fs::create_dir_all(d.join("a/b")).unwrap();
    fs::write(d.join("one"), "content").unwrap();
    let before = fs::metadata(d.join("one")).unwrap();
    fs::rename(d.join("one"), d.join("a/b/two")).unwrap();
    let after = fs::metadata(d.join("a/b/two")).unwrap();
    assert_eq!((after.ino(), after.len(), after.mtime_nsec()), (before.ino(), before.len(), before.mtime_nsec()));
    assert_eq!(content(&d.join("a/b/two")), "content");
    assert_eq!(errno(fs::metadata(d.join("one"))), libc::ENOENT);
    fs::rename(d.join("a"), d.join("moved")).unwrap();
    assert_eq!(content(&d.join("moved/b/two")), "content");
}

fn rename_over_a_file_is_never_seen_half_done(room: &mut Room) {
    let d = room.directory();
    let (target, stop) = (d.join("target"), AtomicBool::new(false));
    fs::write(&target, vec![b'0'; 5000]).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut bytes = Vec::new();
                File::open(&target).expect("the name is always there").read_to_end(&mut bytes).unwrap();
                assert!(
                    bytes.len() == 5000 && bytes.iter().all(|b| *b == bytes[0]),
                    "neither the old nor the new file"
                );
                reads += 1;
            }
            reads
        });
        for round in 0..150_u8 {
            let temporary = d.join("temporary");
            fs::write(&temporary, vec![b'a' + round % 26; 5000]).unwrap();
            fs::rename(&temporary, &target).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
    });
}

fn rename_noreplace_refuses_an_existing_name_and_leaves_both(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("one"), "1").unwrap();
    fs::write(d.join("two"), "2").unwrap();
    assert_eq!(errno(rename_with(&d.join("one"), &d.join("two"), NOREPLACE)), libc::EEXIST);
    assert_eq!((content(&d.join("one")), content(&d.join("two"))), ("1".into(), "2".into()));
    rename_with(&d.join("one"), &d.join("three"), NOREPLACE).unwrap();
    assert_eq!(content(&d.join("three")), "1");
}

fn rename_exchange_swaps_a_file_and_a_directory(room: &mut Room) {
    let d = room.directory();
    fs::create_dir_all(d.join("deep/dir")).unwrap();
    fs::write(d.join("deep/dir/inside"), "in").unwrap();
    fs::write(d.join("file"), "f").unwrap();
    rename_with(&d.join("file"), &d.join("deep/dir"), EXCHANGE).unwrap();
    assert_eq!((content(&d.join("file/inside")), content(&d.join("deep/dir"))), ("in".into(), "f".into()));
    // The directory moved between parents, so their link counts did too.
    assert_eq!((fs::metadata(&d).unwrap().nlink(), fs::metadata(d.join("deep")).unwrap().nlink()), (4, 2));
    assert_eq!(fs::metadata(d.join("file/..")).unwrap().ino(), fs::metadata(&d).unwrap().ino());
    assert_eq!(errno(rename_with(&d.join("file"), &d.join("nowhere"), EXCHANGE)), libc::ENOENT);
}

fn rename_over_a_non_empty_directory_leaves_both(room: &mut Room) {
    let d = room.directory();
    for name in ["one", "two"] {
        fs::create_dir(d.join(name)).unwrap();
        fs::write(d.join(name).join("inside"), name).unwrap();
    }
    let error = errno(fs::rename(d.join("one"), d.join("two")));
    assert!(error == libc::ENOTEMPTY || error == libc::EEXIST, "{error}");
    assert_eq!((content(&d.join("one/inside")), content(&d.join("two/inside"))), ("one".into(), "two".into()));
}

fn rename_over_an_empty_directory_replaces_it(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("full")).unwrap();
    fs::write(d.join("full/inside"), "x").unwrap();
    fs::create_dir(d.join("empty")).unwrap();
    fs::rename(d.join("full"), d.join("empty")).unwrap();
    assert_eq!(content(&d.join("empty/inside")), "x");
    assert!(!d.join("full").exists());
    assert_eq!(fs::metadata(&d).unwrap().nlink(), 3);
}

fn rename_between_a_file_and_a_directory_is_refused(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("dir")).unwrap();
    fs::write(d.join("file"), "f").unwrap();
    assert_eq!(errno(fs::rename(d.join("dir"), d.join("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(d.join("file"), d.join("dir"))), libc::EISDIR);
    assert!(d.join("dir").is_dir() && content(&d.join("file")) == "f");
}

fn rename_of_a_directory_below_itself_is_refused(room: &mut Room) {
    let d = room.directory();
    fs::create_dir_all(d.join("a/b/c")).unwrap();
    assert_eq!(errno(fs::rename(d.join("a"), d.join("a/b/c/d"))), libc::EINVAL);
    assert!(d.join("a/b/c").is_dir());
}

fn rename_between_two_names_of_one_file_changes_nothing(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("one"), "x").unwrap();
    fs::hard_link(d.join("one"), d.join("two")).unwrap();
    fs::rename(d.join("one"), d.join("two")).unwrap();
    assert_eq!((content(&d.join("one")), content(&d.join("two"))), ("x".into(), "x".into()));
    assert_eq!(fs::metadata(d.join("one")).unwrap().nlink(), 2);
}

fn hard_links_are_one_file(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("one"), "x").unwrap();
    fs::create_dir(d.join("dir")).unwrap();
    fs::hard_link(d.join("one"), d.join("dir/two")).unwrap();
    fs::write(d.join("dir/two"), "written through the other name").unwrap();
    let (one, two) = (fs::metadata(d.join("one")).unwrap(), fs::metadata(d.join("dir/two")).unwrap());
    assert_eq!((one.ino(), one.nlink(), one.len()), (two.ino(), 2, two.len()));
    assert_eq!(content(&d.join("one")), "written through the other name");
    fs::remove_file(d.join("one")).unwrap();
    assert_eq!(fs::metadata(d.join("dir/two")).unwrap().nlink(), 1);
    assert_eq!(content(&d.join("dir/two")), "written through the other name");
    fs::write(d.join("other"), "").unwrap();
    assert_eq!(errno(fs::hard_link(d.join("other"), d.join("dir/two"))), libc::EEXIST);
}

fn a_hard_link_to_a_directory_is_refused(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("dir")).unwrap();
    assert_eq!(errno(fs::hard_link(d.join("dir"), d.join("link"))), libc::EPERM);
}

fn symlinks_keep_what_they_say(room: &mut Room) {
    let d = room.directory();
    let long = "x/".repeat(2047) + "y";
    for (name, target) in [("dangling", "no/such//thing/../"), ("long", long.as_str()), ("odd", "a b\nc\\ü")] {
        symlink(target, d.join(name)).unwrap();
        assert_eq!(fs::read_link(d.join(name)).unwrap().as_os_str(), OsStr::new(target));
        let found = fs::symlink_metadata(d.join(name)).unwrap();
        assert!(found.is_symlink() && found.len() == target.len() as u64);
    }
    assert_eq!(errno(fs::metadata(d.join("dangling"))), libc::ENOENT);
    fs::write(d.join("file"), "through").unwrap();
    symlink("file", d.join("good")).unwrap();
    assert_eq!(content(&d.join("good")), "through");
    assert_eq!(errno(fs::read_link(d.join("file"))), libc::EINVAL);
}

fn a_loop_of_symlinks_is_an_error(room: &mut Room) {
    let d = room.directory();
    symlink("two", d.join("one")).unwrap();
    symlink("one", d.join("two")).unwrap();
    assert_eq!(errno(File::open(d.join("one"))), libc::ELOOP);
}

fn names_of_255_bytes_of_any_value_work_and_256_are_refused(room: &mut Room) {
    let d = room.directory();
    let all_bytes: Vec<u8> = (1..=255).map(|byte| if byte == b'/' { b'_' } else { byte }).collect();
    let umlauts = "ü".repeat(127);
    for name in [all_bytes.as_slice(), umlauts.as_bytes(), b"a", b"...", b" ", b"\n"] {
        let path = d.join(OsStr::from_bytes(name));
        fs::write(&path, "x").unwrap();
        assert!(fs::read_dir(&d).unwrap().any(|entry| entry.unwrap().file_name().as_bytes() == name));
        fs::remove_file(&path).unwrap();
    }
    let long = d.join("n".repeat(256));
    assert_eq!(errno(File::create(&long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(&long)), libc::ENAMETOOLONG);
    assert_eq!(fs::read_dir(&d).unwrap().count(), 0);
}

fn nodes_keep_their_kind_and_device(room: &mut Room) {
    let d = room.directory();
    let null = libc::makedev(1, 3);
    make_node(&d.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    make_node(&d.join("null"), libc::S_IFCHR | 0o666, null).unwrap();
    make_node(&d.join("block"), libc::S_IFBLK | 0o600, libc::makedev(259, 70_000)).unwrap();
    make_node(&d.join("plain"), libc::S_IFREG | 0o640, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(d.join("socket")).unwrap();
    let kind = |name: &str| fs::symlink_metadata(d.join(name)).unwrap();
    assert!(kind("fifo").file_type().is_fifo() && kind("socket").file_type().is_socket());
    assert!(kind("null").file_type().is_char_device() && kind("null").rdev() == null);
    assert!(kind("block").file_type().is_block_device() && kind("block").rdev() == libc::makedev(259, 70_000));
    assert!(kind("plain").is_file() && kind("plain").len() == 0);
    // As root the volume is mounted with devices.
    fs::write(d.join("null"), "into the void").unwrap();
    assert_eq!(fs::read(d.join("null")).unwrap(), b"");
    Run::shell("echo through > fifo & cat fifo").within(&d).ok();
}

fn removing_what_is_not_there_or_not_of_that_kind_is_refused(room: &mut Room) {
    let d = room.directory();
    fs::create_dir_all(d.join("full/inside")).unwrap();
    fs::write(d.join("file"), "").unwrap();
    assert_eq!(errno(fs::remove_file(d.join("nothing"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(d.join("nothing"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(d.join("full"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(d.join("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(d.join("full"))), libc::EISDIR);
    assert_eq!(errno(fs::create_dir(d.join("file"))), libc::EEXIST);
    assert_eq!(errno(File::open(d.join("file/below"))), libc::ENOTDIR);
}

fn exclusive_creation_admits_exactly_one(room: &mut Room) {
    let d = room.directory();
    for round in 0..10 {
        let path = d.join(format!("{round}"));
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let created = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
            all.into_iter()
                .map(|thread| thread.join().unwrap())
                .filter(|outcome| match outcome {
                    Ok(_) => true,
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
                        false
                    }
                })
                .count()
        });
        assert_eq!(created, 1);
    }
}
