//! Files that are open while their names change, and several handles of one file.

use holdfast_tests::posix::{Mapping, errno, try_flock, try_lock_bytes};
use holdfast_tests::{Claim, Room, claims};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) const CLAIMS: &[Claim] = &claims![
    30 => an_open_file_survives_its_rename,
    30 => an_unlinked_open_file_keeps_its_bytes_and_takes_more,
    30 => a_file_renamed_over_is_still_there_for_who_has_it_open,
    30 => truncating_an_open_file_cuts_it_and_growing_shows_zeros,
    30 => opening_with_truncation_empties_for_every_handle,
    60 => appends_of_many_handles_all_land_whole,
    60 => appends_through_kept_handles_land_while_others_look_at_the_file_and_open_it,
    30 => a_mapped_file_survives_its_unlink,
    30 => nothing_can_be_made_in_a_removed_directory,
    30 => locks_exclude_each_other,
    30 => a_handle_keeps_the_access_it_was_opened_with,
    30 => what_one_handle_wrote_the_other_reads_at_once,
];

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn an_open_file_survives_its_rename(room: &mut Room) {
    let d = room.directory();
    let file = read_write(&d.join("one"));
    file.write_all_at(b"before ", 0).unwrap();
    fs::create_dir(d.join("dir")).unwrap();
    fs::rename(d.join("one"), d.join("dir/two")).unwrap();
    file.write_all_at(b"after", 7).unwrap();
    assert_eq!(bytes_of(&file), b"before after");
    drop(file);
    assert_eq!(fs::read(d.join("dir/two")).unwrap(), b"before after");
}

fn an_unlinked_open_file_keeps_its_bytes_and_takes_more(room: &mut Room) {
    let d = room.directory();
    let file = read_write(&d.join("file"));
    file.write_all_at(&vec![7; 100_000], 0).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(d.join("file")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read_dir(&d).unwrap().count(), 0);
    file.write_all_at(&vec![8; 100_000], 100_000).unwrap();
    file.sync_all().unwrap();
    let bytes = bytes_of(&file);
    assert!(bytes[..100_000].iter().all(|b| *b == 7) && bytes[100_000..].iter().all(|b| *b == 8));
    file.set_len(10).unwrap();
    assert_eq!(bytes_of(&file), [7; 10]);
    // The name is free for another file, which is not this one.
    fs::write(d.join("file"), "other").unwrap();
    assert_eq!(bytes_of(&file), [7; 10]);
}

fn a_file_renamed_over_is_still_there_for_who_has_it_open(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("target"), "old").unwrap();
    let old = read_write(&d.join("target"));
    fs::write(d.join("source"), "new").unwrap();
    fs::rename(d.join("source"), d.join("target")).unwrap();
    assert_eq!((bytes_of(&old).as_slice(), old.metadata().unwrap().nlink()), (b"old".as_slice(), 0));
    assert_eq!(fs::read(d.join("target")).unwrap(), b"new");
}

fn truncating_an_open_file_cuts_it_and_growing_shows_zeros(room: &mut Room) {
    let d = room.directory();
    let file = read_write(&d.join("file"));
    let length = 5_000_000;
    file.write_all_at(&vec![1; length], 0).unwrap();
    for cut in [4_999_999, 4_194_305, 4_194_304, 65_537, 4096, 4095, 1, 0] {
        file.set_len(cut).unwrap();
        assert_eq!(fs::metadata(d.join("file")).unwrap().len(), cut);
        file.set_len(cut + 10_000).unwrap();
        let mut tail = vec![9; 10_000];
        file.read_exact_at(&mut tail, cut).unwrap();
        assert!(tail.iter().all(|b| *b == 0), "bytes behind {cut} came back");
        let mut kept = vec![0; usize::try_from(cut).unwrap()];
        file.read_exact_at(&mut kept, 0).unwrap();
        assert!(kept.iter().all(|b| *b == 1), "bytes before {cut} changed");
        file.set_len(cut).unwrap();
    }
}

fn opening_with_truncation_empties_for_every_handle(room: &mut Room) {
    let d = room.directory();
    let file = read_write(&d.join("file"));
    file.write_all_at(&vec![1; 200_000], 0).unwrap();
    let second = File::create(d.join("file")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    second.write_all_at(b"new", 0).unwrap();
    assert_eq!(bytes_of(&file), b"new");
}

/// Handles that append at once, and records of each.
const WRITERS: usize = 4;
const RECORDS: usize = 300;

fn appends_of_many_handles_all_land_whole(room: &mut Room) {
    let path = room.directory().join("log");
    std::thread::scope(|scope| {
        let path = &path;
        (0..WRITERS).for_each(|writer| drop(scope.spawn(move || append_records(path, writer))));
    });
    check_records(&path);
}

/// An answer to stat or open says a size, which the kernel then takes for the place of the next append.
fn appends_through_kept_handles_land_while_others_look_at_the_file_and_open_it(room: &mut Room) {
    let path = room.directory().join("log");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (path, ended) = (&path, &ended);
        File::create(path).unwrap();
        let until_the_end = |look: fn(&Path) -> u64| {
            scope.spawn(move || {
                let mut last = 0;
                while !ended.load(Ordering::Relaxed) {
                    let size = look(path);
                    assert!(size >= last, "the file shrank from {last} to {size} bytes");
                    last = size;
                }
            });
        };
        until_the_end(|path| fs::metadata(path).unwrap().len());
        until_the_end(|path| File::open(path).unwrap().metadata().unwrap().len());
        until_the_end(|path| OpenOptions::new().append(true).open(path).unwrap().metadata().unwrap().len());
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || append_records(path, writer))).collect();
        let joined: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::Relaxed);
        joined.into_iter().for_each(|outcome| outcome.unwrap());
    });
    check_records(&path);
}

fn append_records(path: &Path, writer: usize) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    for record in 0..RECORDS {
        // Lengths that never fit a page, so that records cross every boundary.
        let line = format!("{writer} {record} {}\n", "x".repeat(50 + (writer * 37 + record * 11) % 200));
        assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
    }
}

fn check_records(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let mut next = [0; WRITERS];
    for line in text.lines() {
        let mut fields = line.split(' ');
        let mut number = || -> usize { fields.next().unwrap().parse().unwrap() };
        let (writer, record) = (number(), number());
        assert_eq!(record, next[writer], "a record of writer {writer} is missing or out of order");
        assert_eq!(fields.next().unwrap().len(), 50 + (writer * 37 + record * 11) % 200);
        next[writer] += 1;
    }
    assert_eq!(next, [RECORDS; WRITERS]);
}

fn a_mapped_file_survives_its_unlink(room: &mut Room) {
    let d = room.directory();
    let file = read_write(&d.join("file"));
    file.write_all_at(&[5; 20_000], 0).unwrap();
    let mut mapping = Mapping::new(&file, 20_000, true).unwrap();
    drop(file);
    fs::remove_file(d.join("file")).unwrap();
    assert!(mapping.bytes().iter().all(|b| *b == 5));
    mapping.bytes()[100] = 6;
    mapping.sync().unwrap();
    assert_eq!(mapping.bytes()[100], 6);
}

fn nothing_can_be_made_in_a_removed_directory(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("gone")).unwrap();
    let handle = File::open(d.join("gone")).unwrap();
    fs::remove_dir(d.join("gone")).unwrap();
    let through_handle = format!("/proc/self/fd/{}/file", std::os::fd::AsRawFd::as_raw_fd(&handle));
    assert_eq!(errno(File::create(through_handle)), libc::ENOENT);
    fs::create_dir(d.join("gone")).unwrap();
    assert_eq!(fs::read_dir(d.join("gone")).unwrap().count(), 0);
}

fn locks_exclude_each_other(room: &mut Room) {
    let d = room.directory();
    let (one, two) = (read_write(&d.join("file")), read_write(&d.join("file")));
    assert!(try_flock(&one).unwrap() && !try_flock(&two).unwrap());
    drop(one);
    assert!(try_flock(&two).unwrap());
    let (three, four) = (read_write(&d.join("bytes")), read_write(&d.join("bytes")));
    assert!(try_lock_bytes(&three, 100, 50).unwrap());
    assert!(!try_lock_bytes(&four, 149, 1).unwrap());
    assert!(try_lock_bytes(&four, 150, 1).unwrap());
}

fn a_handle_keeps_the_access_it_was_opened_with(room: &mut Room) {
    let d = room.directory();
    let file = read_write(&d.join("file"));
    let read_only = File::open(d.join("file")).unwrap();
    fs::set_permissions(d.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    file.write_all_at(b"still", 0).unwrap();
    assert_eq!(bytes_of(&read_only), b"still");
    assert_eq!(errno(read_only.write_at(b"no", 0)), libc::EBADF);
}

fn what_one_handle_wrote_the_other_reads_at_once(room: &mut Room) {
    let d = room.directory();
    let (one, two) = (read_write(&d.join("file")), read_write(&d.join("file")));
    for round in 0..200_u64 {
        let text = format!("{round:>100}");
        one.write_all_at(text.as_bytes(), round * 70).unwrap();
        let mut seen = vec![0; 100];
        two.read_exact_at(&mut seen, round * 70).unwrap();
        assert_eq!(seen, text.as_bytes());
        assert_eq!(two.metadata().unwrap().len(), round * 70 + 100);
    }
}
