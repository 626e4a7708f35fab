//! Listing directories while they change, positions in them, and what they count.

use holdfast_tests::posix::{DirectoryStream, make_node};
use holdfast_tests::{Claim, Room, Run, claims};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) const CLAIMS: &[Claim] = &claims![
    60 => lasting_names_are_listed_exactly_once_while_others_come_and_go,
    60 => a_listing_resumes_at_any_position_told,
    60 => a_directory_can_be_emptied_while_it_is_listed,
    30 => entries_tell_their_kind_and_inode,
    30 => a_directory_counts_its_subdirectories,
    30 => dot_dot_follows_a_moved_directory,
    30 => a_hundred_levels_deep_is_no_limit,
    60 => three_thousand_names_are_listed_completely,
];

fn fill(d: &Path, count: usize) -> BTreeSet<Vec<u8>> {
    let names: BTreeSet<_> = (0..count).map(|number| format!("lasting-{number:05}").into_bytes()).collect();
    for number in 0..count {
        fs::write(d.join(format!("lasting-{number:05}")), "").unwrap();
    }
    names
}

fn list(d: &Path) -> Vec<Vec<u8>> {
    let mut stream = DirectoryStream::open(d).unwrap();
    let mut names = Vec::new();
    while let Some((name, ..)) = stream.entry() {
        names.push(name);
    }
    names
}

fn lasting_names_are_listed_exactly_once_while_others_come_and_go(room: &mut Room) {
    let d = room.directory();
    let (lasting, stop) = (fill(&d, 500), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut round = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let path = d.join(format!("passing-{round}-{}", "x".repeat(100)));
                fs::write(&path, "").unwrap();
                fs::rename(&path, d.join(format!("renamed-{round}"))).unwrap();
                if round >= 30 {
                    fs::remove_file(d.join(format!("renamed-{}", round - 30))).unwrap();
                }
                round += 1;
            }
            round
        });
        for _ in 0..20 {
            let mut seen = BTreeMap::new();
            list(&d).into_iter().for_each(|name| *seen.entry(name).or_insert(0) += 1);
            for name in &lasting {
                assert_eq!(seen.get(name), Some(&1), "{}", String::from_utf8_lossy(name));
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(changer.join().unwrap() > 0);
    });
}

fn a_listing_resumes_at_any_position_told(room: &mut Room) {
    let d = room.directory();
    fill(&d, 300);
    let mut stream = DirectoryStream::open(&d).unwrap();
    let mut told = Vec::new();
    loop {
        let position = stream.position();
        let Some((name, ..)) = stream.entry() else { break };
        told.push((position, name));
    }
    assert_eq!(told.len(), 302);
    // A name before the position goes away, another comes: the positions of the rest stand.
    fs::remove_file(d.join(String::from_utf8(told[10].1.clone()).unwrap().replace("..", "lasting-00000"))).unwrap();
    fs::write(d.join("late"), "").unwrap();
    for (position, name) in told.iter().skip(20).step_by(17).rev() {
        stream.seek(*position);
        assert_eq!(stream.entry().map(|found| found.0).as_ref(), Some(name));
    }
}

fn a_directory_can_be_emptied_while_it_is_listed(room: &mut Room) {
    let d = room.directory();
    fill(&d, 1000);
    let mut stream = DirectoryStream::open(&d).unwrap();
    let mut removed = 0;
    while let Some((name, ..)) = stream.entry() {
        if name != b"." && name != b".." {
            fs::remove_file(d.join(String::from_utf8(name).unwrap())).unwrap();
            removed += 1;
        }
    }
    assert_eq!((removed, list(&d).len()), (1000, 2));
}

fn entries_tell_their_kind_and_inode(room: &mut Room) {
    let d = room.directory();
    fs::write(d.join("file"), "").unwrap();
    fs::create_dir(d.join("dir")).unwrap();
    symlink("file", d.join("link")).unwrap();
    make_node(&d.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    let kinds = [("file", libc::DT_REG), ("dir", libc::DT_DIR), ("link", libc::DT_LNK), ("fifo", libc::DT_FIFO)];
    let mut stream = DirectoryStream::open(&d).unwrap();
    let mut found = BTreeMap::new();
    while let Some((name, inode, kind)) = stream.entry() {
        found.insert(String::from_utf8(name).unwrap(), (inode, kind));
    }
    for (name, kind) in kinds {
        let inode = fs::symlink_metadata(d.join(name)).unwrap().ino();
        assert_eq!(found[name], (inode, kind), "{name}");
    }
    assert_eq!(found["."], (fs::metadata(&d).unwrap().ino(), libc::DT_DIR));
    assert_eq!(found[".."].1, libc::DT_DIR);
    for entry in fs::read_dir(&d).unwrap().map(Result::unwrap) {
        assert_eq!(entry.ino(), fs::symlink_metadata(entry.path()).unwrap().ino());
    }
}

fn a_directory_counts_its_subdirectories(room: &mut Room) {
    let d = room.directory();
    let links = || fs::metadata(&d).unwrap().nlink();
    assert_eq!(links(), 2);
    for name in ["a", "b", "c"] {
        fs::create_dir(d.join(name)).unwrap();
    }
    fs::write(d.join("file"), "").unwrap();
    assert_eq!(links(), 5);
    fs::rename(d.join("c"), d.join("a/c")).unwrap();
    fs::remove_dir(d.join("b")).unwrap();
    assert_eq!((links(), fs::metadata(d.join("a")).unwrap().nlink()), (3, 3));
}

fn dot_dot_follows_a_moved_directory(room: &mut Room) {
    let d = room.directory();
    fs::create_dir_all(d.join("from/moved")).unwrap();
    fs::create_dir_all(d.join("to/deep")).unwrap();
    fs::rename(d.join("from/moved"), d.join("to/deep/moved")).unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(d.join("to/deep/moved/..")), inode(d.join("to/deep")));
    assert_eq!(
        Run::shell("pwd -P").within(&d.join("to/deep/moved/..")).ok().trim_end(),
        d.join("to/deep").to_str().unwrap()
    );
}

fn a_hundred_levels_deep_is_no_limit(room: &mut Room) {
    let d = room.directory();
    let mut deep = d.clone();
    (0..100).for_each(|level| deep.push(format!("level-{level}")));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "x").unwrap();
    assert_eq!(fs::read(deep.join("bottom")).unwrap(), b"x");
    fs::rename(d.join("level-0"), d.join("renamed")).unwrap();
    Run::shell("test \"$(find . -name bottom | wc -l)\" = 1; rm -r renamed").within(&d).ok();
    assert_eq!(list(&d).len(), 2);
}

fn three_thousand_names_are_listed_completely(room: &mut Room) {
    let d = room.directory();
    let names = fill(&d, 3000);
    let listed = list(&d);
    assert_eq!(listed.len(), 3002);
    assert!(names.is_subset(&listed.into_iter().collect()));
    assert_eq!(Run::shell("ls -l | wc -l").within(&d).ok().trim(), "3001");
    Run::shell("rm -rf ./*").within(&d).ok();
    assert_eq!(list(&d).len(), 2);
}
