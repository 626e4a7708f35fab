//! Two mounts of one volume: what one closed, the other opens, at once. Nothing here waits or looks twice.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::manifest::Manifest;
use holdfast_tests::posix::errno;
use holdfast_tests::random;
use holdfast_tests::{Claim, Mounted, Room, attribute, claims, tree};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

const CLAIMS: &[Claim] = &claims![
    120 => what_one_closed_the_other_opens_at_once,
    60 => names_that_one_changes_the_other_sees_at_once,
    60 => attributes_that_one_changes_the_other_sees_at_once,
    60 => a_way_walked_over_and_over_shows_every_change_at_once,
    60 => a_size_that_one_cuts_is_cut_for_the_other,
    60 => a_truncate_by_one_leaves_what_the_others_open_handle_writes_after_it,
    60 => a_log_that_one_cuts_takes_what_the_other_goes_on_to_append,
    60 => appends_by_turns_all_land,
    60 => both_create_in_one_directory_and_each_name_is_made_once,
    60 => a_file_removed_by_one_stays_readable_for_the_other_that_has_it_open,
    90 => a_tree_made_by_one_is_the_same_tree_for_the_other,
    60 => a_read_only_mount_reads_and_refuses_to_write,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// This claim's directory as both mounts see it, and the guard of the second.
fn both(room: &mut Room) -> (PathBuf, PathBuf, Mounted) {
    let one = room.directory();
    let cluster = room.cluster();
    let second = cluster.mount_again("demo");
    let two = second.point().join(one.strip_prefix(cluster.mount()).unwrap());
    (one, two, second)
}

fn what_one_closed_the_other_opens_at_once(room: &mut Room) {
    let (one, two, second) = both(room);
    let mut random = random::fresh("closed here, opened there");
    for round in 0..150 {
        // By turns, and the same file again and again: what the reader cached last time is always out of date.
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let name = format!("{}", round % 3);
        let length = [0, 1, 100, 4096, 70_000, 1 << 20][random.index(6)];
        let bytes = random.bytes(length);
        fs::write(writer.join(&name), &bytes).unwrap();
        assert_eq!(fs::metadata(reader.join(&name)).unwrap().len(), length as u64, "round {round}");
        assert!(fs::read(reader.join(&name)).unwrap() == bytes, "round {round}: other bytes");
    }
    for round in 0..60 {
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        // Bytes changed in the middle, the size and all else staying.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(writer.join("middle")).unwrap();
        let (at, bytes) = (random.below(200_000), random.bytes(3000));
        file.write_all_at(&bytes, at).unwrap();
        drop(file);
        let mut found = vec![0; 3000];
        fs::File::open(reader.join("middle")).unwrap().read_exact_at(&mut found, at).unwrap();
        assert_eq!(found, bytes, "round {round}");
    }
    second.unmount();
}

fn names_that_one_changes_the_other_sees_at_once(room: &mut Room) {
    let (one, two, _second) = both(room);
    for round in 0..50 {
        let (a, b) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        assert_eq!(errno(fs::metadata(b.join("file"))), libc::ENOENT);
        fs::write(a.join("file"), "x").unwrap();
        assert!(b.join("file").exists());
        fs::rename(a.join("file"), a.join("moved")).unwrap();
        assert!(!b.join("file").exists() && b.join("moved").exists());
        fs::create_dir(b.join("dir")).unwrap();
        fs::rename(b.join("moved"), b.join("dir/inside")).unwrap();
        assert_eq!(fs::read_dir(a.join("dir")).unwrap().count(), 1);
        assert_eq!(errno(fs::remove_dir(a.join("dir"))), libc::ENOTEMPTY);
        fs::remove_file(a.join("dir/inside")).unwrap();
        fs::remove_dir(b.join("dir")).unwrap();
        assert_eq!(errno(fs::metadata(a.join("dir"))), libc::ENOENT);
        assert_eq!((fs::read_dir(a).unwrap().count(), fs::read_dir(b).unwrap().count()), (0, 0));
    }
}

fn attributes_that_one_changes_the_other_sees_at_once(room: &mut Room) {
    let (one, two, _second) = both(room);
    fs::write(one.join("file"), "x").unwrap();
    let (a, b) = (one.join("file"), two.join("file"));
    for round in 0..50_u32 {
        let mode = 0o600 + round % 64;
        fs::set_permissions(&a, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&b).unwrap().mode() & 0o7777, mode);
        attribute::set(&b, b"user.round", round.to_string().as_bytes(), 0).unwrap();
        assert_eq!(attribute::get(&a, b"user.round").unwrap(), round.to_string().as_bytes());
        let times = |path: &PathBuf| {
            let found = fs::metadata(path).unwrap();
            (found.ino(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec(), found.nlink())
        };
        assert_eq!(times(&a), times(&b));
    }
}

/// Who walks a path again and again is shown its directories from one request. The other mount changes them, and another
/// thread on the same mount.
fn a_way_walked_over_and_over_shows_every_change_at_once(room: &mut Room) {
    let (one, two, _second) = both(room);
    fs::create_dir_all(one.join("a/b/c")).unwrap();
    fs::write(one.join("a/b/c/file"), "x").unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    for round in 0..120_u32 {
        let changer = if round % 2 == 0 { one.clone() } else { two.clone() };
        let (now, next) = if round % 2 == 0 { ("a/b", "a/bb") } else { ("a/bb", "a/b") };
        let bits = 0o700 + round % 64;
        assert_eq!(fs::metadata(one.join(now).join("c/file")).unwrap().len(), 1, "round {round}");
        let change = move || {
            fs::set_permissions(changer.join(now).join("c"), fs::Permissions::from_mode(bits)).unwrap();
            fs::rename(changer.join(now), changer.join(next)).unwrap();
        };
        std::thread::spawn(change).join().unwrap();
        assert_eq!(errno(fs::metadata(one.join(now).join("c/file"))), libc::ENOENT, "round {round}");
        assert_eq!(mode(one.join(next).join("c")), bits, "round {round}");
    }
    let last = one.join("a/b");
    fs::rename(last.join("c"), last.join("c0")).unwrap();
    assert!(last.join("c0/file").exists());
    // A walker that never rests: what was reported before it begins to walk, it must see.
    let moved = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..150 {
                let next = round + 1;
                fs::rename(two.join(format!("a/b/c{round}")), two.join(format!("a/b/c{next}"))).unwrap();
                moved.store(next, Ordering::SeqCst);
            }
        });
        for round in 0..150 {
            let way = last.join(format!("c{round}/file"));
            while moved.load(Ordering::SeqCst) <= round {
                let _ = fs::metadata(&way);
            }
            assert_eq!(errno(fs::metadata(&way)), libc::ENOENT, "round {round}");
        }
    });
    for round in 0..60 {
        let (remover, maker) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        fs::create_dir(maker.join("a/b/d")).unwrap();
        assert_eq!(errno(fs::metadata(last.join("d/none"))), libc::ENOENT);
        let first = fs::metadata(last.join("d")).unwrap().ino();
        fs::remove_dir(remover.join("a/b/d")).unwrap();
        fs::create_dir(remover.join("a/b/d")).unwrap();
        assert_ne!(fs::metadata(last.join("d")).unwrap().ino(), first, "round {round}");
        fs::remove_dir(maker.join("a/b/d")).unwrap();
        assert_eq!(errno(fs::metadata(last.join("d"))), libc::ENOENT, "round {round}");
    }
}

fn a_size_that_one_cuts_is_cut_for_the_other(room: &mut Room) {
    let (one, two, _second) = both(room);
    fs::write(one.join("file"), vec![7; 1 << 20]).unwrap();
    let open_there = fs::File::open(two.join("file")).unwrap();
    let mut buffer = vec![0; 4096];
    assert_eq!(open_there.read_at(&mut buffer, 500_000).unwrap(), 4096);
    OpenOptions::new().write(true).open(one.join("file")).unwrap().set_len(1000).unwrap();
    assert_eq!(fs::metadata(two.join("file")).unwrap().len(), 1000);
    assert_eq!(fs::read(two.join("file")).unwrap(), vec![7; 1000]);
    OpenOptions::new().write(true).open(two.join("file")).unwrap().set_len(2000).unwrap();
    let grown = fs::read(one.join("file")).unwrap();
    assert!(grown.len() == 2000 && grown[1000..].iter().all(|b| *b == 0));
}

fn a_truncate_by_one_leaves_what_the_others_open_handle_writes_after_it(room: &mut Room) {
    let (one, two, _second) = both(room);
    for (round, at) in [(0, 0), (1, 10_000), (2, 4096)] {
        let (writer, cutter) = (one.join(format!("{round}")), two.join(format!("{round}")));
        let file = OpenOptions::new().write(true).create_new(true).open(&writer).unwrap();
        file.write_all_at(&[1; 10_000], 0).unwrap();
        file.sync_all().unwrap();
        drop(OpenOptions::new().write(true).truncate(true).open(&cutter).unwrap());
        file.write_all_at(&[2; 5000], at).unwrap();
        file.sync_all().unwrap_or_else(|error| panic!("round {round}: the writer's fsync: {error}"));
        let expected = [vec![0; usize::try_from(at).unwrap()], vec![2; 5000]].concat();
        assert!(fs::read(&cutter).unwrap() == expected, "round {round}: the other mount reads something else");
        // And again, after the first answer has told the writer of the cut.
        file.write_all_at(&[3; 100], at).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let expected = [vec![0; usize::try_from(at).unwrap()], vec![3; 100], vec![2; 4900]].concat();
        assert!(fs::read(&cutter).unwrap() == expected && fs::read(&writer).unwrap() == expected, "round {round}");
    }
}

/// As logs are rotated: one appends and syncs, the other copies and truncates. The appender may leave a hole, up to the size
/// that its kernel believed; what it synced after a cut is there.
fn a_log_that_one_cuts_takes_what_the_other_goes_on_to_append(room: &mut Room) {
    let (one, two, _second) = both(room);
    let mut log = OpenOptions::new().append(true).create(true).open(one.join("log")).unwrap();
    for round in 0..5 {
        let mut expected = String::new();
        for number in 0..20 {
            let line = format!("round {round} line {number}\n");
            log.write_all(line.as_bytes()).unwrap();
            log.sync_all().unwrap_or_else(|error| panic!("round {round} line {number}: {error}"));
            expected.push_str(&line);
        }
        let found = fs::read(two.join("log")).unwrap();
        let found: Vec<u8> = found.into_iter().skip_while(|byte| *byte == 0).collect();
        assert_eq!(String::from_utf8_lossy(&found), expected, "round {round}");
        drop(OpenOptions::new().write(true).truncate(true).open(two.join("log")).unwrap());
    }
}

fn appends_by_turns_all_land(room: &mut Room) {
    let (one, two, _second) = both(room);
    let mut expected = String::new();
    for round in 0..100 {
        let directory = if round % 2 == 0 { &one } else { &two };
        let line = format!("round {round}\n");
        let mut file = OpenOptions::new().append(true).create(true).open(directory.join("log")).unwrap();
        file.write_all(line.as_bytes()).unwrap();
        expected.push_str(&line);
    }
    assert_eq!(fs::read_to_string(one.join("log")).unwrap(), expected);
    assert_eq!(fs::read_to_string(two.join("log")).unwrap(), expected);
}

fn both_create_in_one_directory_and_each_name_is_made_once(room: &mut Room) {
    let (one, two, _second) = both(room);
    let create = |directory: &PathBuf| {
        let made = (0..150).filter(|name| {
            let new = OpenOptions::new().write(true).create_new(true).open(directory.join(format!("{name}")));
            new.is_ok_and(|mut file| file.write_all(b"mine").is_ok())
        });
        made.count()
    };
    let (first, other) = std::thread::scope(|scope| {
        let threads = (scope.spawn(|| create(&one)), scope.spawn(|| create(&two)));
        (threads.0.join().unwrap(), threads.1.join().unwrap())
    });
    assert_eq!(first + other, 150, "{first} by one and {other} by the other");
    assert_eq!((fs::read_dir(&one).unwrap().count(), fs::read_dir(&two).unwrap().count()), (150, 150));
    assert!((0..150).all(|name| fs::read(two.join(format!("{name}"))).unwrap() == b"mine"));
}

fn a_file_removed_by_one_stays_readable_for_the_other_that_has_it_open(room: &mut Room) {
    let (one, two, _second) = both(room);
    fs::write(one.join("file"), vec![5; 300_000]).unwrap();
    let open = fs::File::open(two.join("file")).unwrap();
    fs::remove_file(one.join("file")).unwrap();
    assert_eq!(errno(fs::metadata(two.join("file"))), libc::ENOENT);
    let mut bytes = vec![0; 300_000];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|b| *b == 5));
}

fn a_tree_made_by_one_is_the_same_tree_for_the_other(room: &mut Room) {
    let (one, two, second) = both(room);
    tree::grow(&one, 300, 31);
    Manifest::of(&one).assert_same(&Manifest::of(&two), "the other mount sees another tree");
    second.unmount();
}

fn a_read_only_mount_reads_and_refuses_to_write(room: &mut Room) {
    let one = room.directory();
    fs::write(one.join("file"), "x").unwrap();
    let cluster = room.cluster();
    let second = cluster.mount_with("demo", &["-o", "ro"]);
    let two = second.point().join(one.strip_prefix(cluster.mount()).unwrap());
    assert_eq!(fs::read(two.join("file")).unwrap(), b"x");
    assert_eq!(errno(fs::write(two.join("other"), "y")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(two.join("file"))), libc::EROFS);
    second.unmount();
}
