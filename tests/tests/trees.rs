//! Trees: copied, compared, archived and removed, real ones and one with everything that a name can be.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::manifest::Manifest;
use holdfast_tests::wait::seconds;
use holdfast_tests::{Claim, Room, Run, claims, tree};
use std::fs;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    300 => ten_thousand_real_files_are_copied_and_compared,
    120 => a_tree_of_odd_names_links_times_and_attributes_is_copied_exactly,
    120 => a_tar_archive_is_unpacked_to_the_same_tree,
    120 => a_tree_copied_within_the_volume_is_the_same,
    120 => a_removed_tree_leaves_nothing,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

fn ten_thousand_real_files_are_copied_and_compared(room: &mut Room) {
    let (d, local) = (room.directory(), room.local_directory());
    let count = tree::real_sources(&local, 10_000);
    Run::new("cp").arg("-a").arg(local.join(".")).arg(&d).limit(seconds(200)).ok();
    Run::new("diff").arg("-r").arg("--no-dereference").arg(&local).arg(&d).limit(seconds(100)).ok();
    assert_eq!(tree::count_files(&d), count);
}

fn a_tree_of_odd_names_links_times_and_attributes_is_copied_exactly(room: &mut Room) {
    let (d, local) = (room.directory(), room.local_directory());
    tree::grow(&local, 600, 21);
    Run::new("cp").arg("-a").arg(local.join(".")).arg(&d).ok();
    Manifest::of(&local).assert_same(&Manifest::of(&d), "the copy on the volume differs");
    // And back again, so that what was read is what was stored.
    let back = room.local_directory().with_extension("back");
    Run::new("cp").arg("-a").arg(d.join(".")).arg(&back).ok();
    Manifest::of(&local).assert_same(&Manifest::of(&back), "the copy of the copy differs");
}

fn a_tar_archive_is_unpacked_to_the_same_tree(room: &mut Room) {
    let (d, local) = (room.directory(), room.local_directory());
    tree::grow(&local, 300, 22);
    let archive = d.join("archive.tar");
    Run::new("tar").args(["--xattrs", "--format=posix", "-cf"]).arg(&archive).arg("-C").arg(&local).arg(".").ok();
    fs::create_dir(d.join("unpacked")).unwrap();
    Run::new("tar").args(["--xattrs", "-xpf"]).arg(&archive).arg("-C").arg(d.join("unpacked")).ok();
    Manifest::of(&local).assert_same(&Manifest::of(&d.join("unpacked")), "the unpacked tree differs");
}

fn a_tree_copied_within_the_volume_is_the_same(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("one")).unwrap();
    tree::grow(&d.join("one"), 300, 23);
    Run::new("cp").arg("-a").arg(d.join("one")).arg(d.join("two")).ok();
    let one = Manifest::of(&d.join("one"));
    one.assert_same(&Manifest::of(&d.join("two")), "the copy differs");
    fs::rename(d.join("one"), d.join("moved")).unwrap();
    one.assert_same(&Manifest::of(&d.join("moved")), "moving changed the tree");
}

fn a_removed_tree_leaves_nothing(room: &mut Room) {
    let d = room.directory();
    fs::create_dir(d.join("tree")).unwrap();
    tree::grow(&d.join("tree"), 500, 24);
    Run::new("rm").arg("-r").arg(d.join("tree")).ok();
    assert_eq!(fs::read_dir(&d).unwrap().count(), 0);
    fs::remove_dir(&d).unwrap();
}
