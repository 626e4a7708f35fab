//! A directory is brought back whatever line a death falls on, and what was there is kept.

use super::*;
use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, NodeId};
use holdfast_consensus::format_log;
use holdfast_node::superblock::SuperblockError;
use std::collections::BTreeMap;
use tempfile::TempDir;

fn registered(log: Option<[u8; 16]>) -> NodeSuperblock {
    NodeSuperblock {
        cluster: ClusterId([7; 16]),
        node: NodeId(3),
        generation: 5,
        secret: ClusterSecret([5; 32]),
        log,
        ..NodeSuperblock::fresh().unwrap()
    }
}

/// A metanode with a whole log.
fn whole() -> TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let log = format_log(&temporary.path().join(CONSENSUS_DIRECTORY)).unwrap();
    registered(Some(log)).write(temporary.path(), KIND).unwrap();
    temporary
}

/// One whose log is another's, so that there is something to be kept.
fn lost() -> TempDir {
    let temporary = whole();
    registered(Some([9; 16])).write(temporary.path(), KIND).unwrap();
    temporary
}

fn superblock(directory: &Path) -> NodeSuperblock {
    NodeSuperblock::read(directory, KIND).unwrap()
}

/// All files but the lock, with their content.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false if entry.file_name() == "lock" => {}
            false => drop(found.insert(entry.path(), std::fs::read(entry.path()).unwrap())),
        }
    }
    found
}

fn recover(directory: &Path) -> Option<PathBuf> {
    let (home, found) = Home::look(directory).unwrap();
    let (begun, aside) = home.begin(&found).unwrap();
    begun.finish().unwrap();
    aside
}

fn assert_serves(directory: &Path) {
    let identity = superblock(directory);
    assert_eq!(identity.recovering, None);
    let log = ExpectedLog::Identity(identity.log.unwrap());
    examine_log(&directory.join(CONSENSUS_DIRECTORY), log).unwrap();
}

/// The first of the steps that a recovery begins with.
fn begin_and_die(directory: &Path, steps: u32) {
    let (mut home, _) = Home::look(directory).unwrap();
    let new = [11; 16];
    home.raise(Some(new)).unwrap();
    if steps > 1 {
        set_aside(directory).unwrap();
    }
    if steps > 2 {
        std::fs::create_dir_all(home.consensus().join("log")).unwrap();
    }
    if steps > 3 {
        format_log_as(&home.consensus(), new).unwrap();
    }
}

#[test]
fn a_death_after_each_step_leaves_what_serves_nothing_and_can_be_recovered() {
    for steps in 1..=4 {
        let temporary = lost();
        let directory = temporary.path();
        let old: Vec<Vec<u8>> = files(&directory.join(CONSENSUS_DIRECTORY)).into_values().collect();
        begin_and_die(directory, steps);
        let died = superblock(directory);
        assert!(died.recovering.is_some() && died.log == Some([9; 16]), "step {steps}");
        recover(directory);
        assert_serves(directory);
        let kept: Vec<Vec<u8>> = files(&directory.join("consensus-lost-1")).into_values().collect();
        assert_eq!(kept, old, "step {steps}");
        assert!(!directory.join("consensus-lost-2").exists(), "step {steps}");
        assert_eq!(superblock(directory).generation, died.generation + 1, "each run is a start of its own");
    }
}

#[test]
fn a_recovery_that_is_under_way_goes_on_in_its_log() {
    let temporary = lost();
    let directory = temporary.path();
    let (home, found) = Home::look(directory).unwrap();
    let (begun, aside) = home.begin(&found).unwrap();
    assert_eq!(aside, Some(directory.join("consensus-lost-1")));
    assert!(matches!(Home::look(directory), Err(RecoverFailed::Start(StartError::Lock(_)))), "it runs");
    drop(begun);
    let new = superblock(directory).recovering;
    let (home, found) = Home::look(directory).unwrap();
    assert!(matches!(found, Found::Unfinished));
    let (begun, aside) = home.begin(&found).unwrap();
    assert_eq!((aside, begun.identity().recovering), (None, new));
    begun.finish().unwrap();
    drop(begun);
    assert_eq!(superblock(directory).log, new);
    assert_serves(directory);
    assert!(matches!(Home::look(directory), Err(RecoverFailed::Healthy { .. })));
}

#[test]
fn a_new_log_that_is_lost_too_is_set_aside_like_the_old_one() {
    let temporary = lost();
    let directory = temporary.path();
    begin_and_die(directory, 4);
    let segment = files(&directory.join(CONSENSUS_DIRECTORY)).into_keys().next().unwrap();
    std::fs::write(segment, b"damage").unwrap();
    assert_eq!(recover(directory), Some(directory.join("consensus-lost-2")));
    assert_serves(directory);
}

#[test]
fn what_needs_no_recovery_is_refused_and_left_as_it_is() {
    let temporary = whole();
    let directory = temporary.path();
    let before = files(directory);
    assert!(matches!(Home::look(directory), Err(RecoverFailed::Healthy { .. })));
    assert_eq!(files(directory), before);
    NodeSuperblock { node: NodeId(0), ..registered(None) }.write(directory, KIND).unwrap();
    assert!(matches!(Home::look(directory), Err(RecoverFailed::Unregistered { .. })));
    let none = tempfile::tempdir().unwrap();
    let error = Home::look(none.path()).unwrap_err();
    let is_none =
        |error| matches!(error, RecoverFailed::Start(StartError::Superblock(SuperblockError::NotFormatted { .. })));
    assert!(is_none(error));
    assert_eq!(std::fs::read_dir(none.path()).unwrap().count(), 0, "not even a lock");
}

#[test]
fn a_directory_that_named_no_log_never_takes_the_new_one_for_its_own_before_it_is_full() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    registered(None).write(directory, KIND).unwrap();
    let (home, found) = Home::look(directory).unwrap();
    let (begun, aside) = home.begin(&found).unwrap();
    assert_eq!(aside, None, "nothing was left");
    let during = superblock(directory);
    assert!(during.log.is_some() && during.log != during.recovering, "a build without recoveries refuses it");
    begun.finish().unwrap();
    assert_serves(directory);
}
