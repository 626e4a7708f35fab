//! Data directories that former builds wrote (`tests/golden/`): each opens and reads back equal, or is refused with one
//! plain sentence.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::{Claim, Cluster, Room, claims, golden};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

const CLAIMS: &[Claim] = &claims![
    180 => what_former_builds_wrote_reads_back_equal_or_is_refused_with_a_sentence,
    60 => a_directory_of_a_newer_format_is_refused_with_a_sentence,
];

/// More would not be one sentence.
const SENTENCE_BYTES_MAX: usize = 400;

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

fn what_former_builds_wrote_reads_back_equal_or_is_refused_with_a_sentence(room: &mut Room) {
    room.drop_cluster();
    for manifest in manifests() {
        eprintln!("{}", manifest.display());
        let mut cluster = Cluster::prepare(&[]);
        golden::unpack(&manifest.with_extension("tar.xz"), &cluster.data());
        match cluster.try_up() {
            Ok(()) => reads_back_equal(&mut cluster, &manifest),
            Err(status) => is_refused_with_a_sentence(&cluster, status),
        }
    }
}

fn a_directory_of_a_newer_format_is_refused_with_a_sentence(room: &mut Room) {
    /// Offset of a superblock's version.
    const VERSION_AT: u64 = 8;
    /// Superblocks have one copy in it, so that no other takes the place of the changed one.
    const BUILD: &str = "f335d94.tar.xz";
    room.drop_cluster();
    for superblock in ["superblock", "meta-2/superblock", "data-3/disk/superblock"] {
        let mut cluster = Cluster::prepare(&[]);
        golden::unpack(&golden::directory().join(BUILD), &cluster.data());
        let file = OpenOptions::new().write(true).open(cluster.data().join(superblock)).unwrap();
        file.write_all_at(&[200], VERSION_AT).unwrap();
        let status = cluster.try_up().expect_err("a version that nobody knows was opened");
        is_refused_with_a_sentence(&cluster, status);
    }
}

fn manifests() -> Vec<PathBuf> {
    let files = fs::read_dir(golden::directory()).unwrap().map(|entry| entry.unwrap().path());
    let mut manifests: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "manifest")).collect();
    manifests.sort();
    assert!(!manifests.is_empty(), "no golden directory in {}", golden::directory().display());
    manifests
}

fn is_refused_with_a_sentence(cluster: &Cluster, status: ExitStatus) {
    let said = cluster.said();
    let said = said.trim_end();
    assert!(!status.success(), "it ended without being ready, as if all were well: {said}");
    assert!(said.starts_with("holdfast: "), "refused without saying so: {status}: {said}");
    assert!(!said.contains('\n') && said.len() <= SENTENCE_BYTES_MAX, "refused with more than a sentence:\n{said}");
}

fn reads_back_equal(cluster: &mut Cluster, manifest: &Path) {
    let expected = fs::read_to_string(manifest).unwrap();
    let same = |found: &str, when: &str| {
        let differ: Vec<_> = expected.lines().zip(found.lines()).filter(|(old, new)| old != new).take(5).collect();
        assert!(expected == found, "{when}, {} holds something else (then, now): {differ:#?}", manifest.display());
    };
    same(&golden::describe(&cluster.mount()), "as it was found");
    // It is a cluster like any other: it takes what is new and keeps what is old.
    fs::write(cluster.mount().join("new"), vec![7; 3_000_000]).unwrap();
    cluster.stop();
    cluster.up();
    assert_eq!(fs::read(cluster.mount().join("new")).unwrap(), vec![7; 3_000_000]);
    fs::remove_file(cluster.mount().join("new")).unwrap();
    same(&golden::describe(&cluster.mount()), "after a write and a restart");
    cluster.stop();
}
