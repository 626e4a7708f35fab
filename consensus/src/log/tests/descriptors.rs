//! The log of a process that has no file descriptor left.

use std::sync::mpsc;

use super::full::{everything_synced_is_there, write_until_waiting};
use super::*;
use holdfast_storage::simulated::Faults;
use holdfast_storage::{is_no_space, is_out_of_descriptors};

fn last_index(groups: &Groups) -> LogIndex {
    let (state, entries) = &groups[&RaftGroupId(7)];
    entries.last().map_or(state.snapshot.index, |entry| entry.index)
}

/// Tries in vain, and then with descriptors. Says the index that is durable afterwards.
fn wait_and_go_on(disk: &SimulatedDisk, log: &mut Log, index: u64) -> u64 {
    for _ in 0..3 {
        log.try_again().unwrap();
        log.fill_spares().unwrap();
        assert!(log.lack().is_some_and(is_out_of_descriptors), "there is none yet");
    }
    assert_eq!(log.missing_bytes(), 0, "no spare is used up for it, and none counts as missing");
    disk.set_descriptors(usize::MAX);
    assert_eq!(last_index(&open(&disk.fork()).unwrap().1), LogIndex(index), "all that was acknowledged, and no more");
    log.try_again().unwrap();
    assert!(!log.is_waiting() && log.lack().is_none());
    log.sync().unwrap();
    assert_eq!(last_index(&open(&disk.fork()).unwrap().1), LogIndex(index + 1));
    index + 1
}

#[test]
fn without_a_descriptor_for_the_next_segment_what_is_written_waits_and_goes_on_with_one() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    let mut index = 0;
    for _ in 0..5 {
        disk.set_descriptors(0);
        let segment = log.current.header.segment;
        index = write_until_waiting(&mut log, index);
        assert_eq!(log.current.header.segment, segment, "there is no other");
        index = wait_and_go_on(&disk, &mut log, index);
    }
    assert_eq!(open(&disk).unwrap().1, replayed(&[state(0), entries(1, index)]));
}

/// A file that was to be used again is still an obsolete segment then, and not forgotten.
#[test]
fn a_segment_that_could_not_be_recycled_for_want_of_a_descriptor_is_recycled_later() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    let mut index = 0;
    for _ in 0..30 {
        disk.set_descriptors(0);
        index = write_until_waiting(&mut log, index);
        index = wait_and_go_on(&disk, &mut log, index);
        write(&mut log, vec![state(index)]);
        assert_eq!(segment_names(&disk).len(), log.segments.len() + 1, "each is known to the log");
    }
    assert!(segment_names(&disk).len() <= 5, "{:?}", segment_names(&disk));
}

#[test]
fn what_the_filler_could_not_prepare_for_want_of_a_descriptor_is_prepared_later() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    let (filler, fillings) = mpsc::channel::<(Preparation, mpsc::Sender<_>)>();
    log.set_filler(filler);
    let directory = disk.root();
    let thread = std::thread::spawn(move || {
        for (preparation, done) in fillings {
            let _ = done.send(preparation.run(&*directory));
        }
    });
    write(&mut log, vec![state(0)]);
    let mut index = 0;
    for _ in 0..30 {
        disk.set_descriptors(0);
        index = write_until_waiting(&mut log, index);
        index = wait_and_go_on(&disk, &mut log, index);
        write(&mut log, vec![state(index)]);
    }
    assert!(segment_names(&disk).len() <= 6, "{:?}", segment_names(&disk));
    drop(log);
    thread.join().unwrap();
}

#[test]
fn spares_that_cannot_be_made_for_want_of_a_descriptor_are_made_later() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    disk.set_capacity(0);
    let index = write_until_waiting(&mut log, 0);
    assert!(log.lack().is_some_and(is_no_space));
    disk.set_capacity(1 << 30);
    disk.set_descriptors(0);
    log.fill_spares().unwrap();
    assert_eq!(log.missing_bytes(), 2 * 4096);
    disk.set_descriptors(usize::MAX);
    log.fill_spares().unwrap();
    assert_eq!(log.missing_bytes(), 0);
    log.try_again().unwrap();
    log.sync().unwrap();
    assert_eq!(open(&disk).unwrap().1, replayed(&[state(0), entries(1, index + 1)]));
}

/// On a full disk the missing descriptor may be that of the spare.
#[test]
fn a_spare_is_not_lost_for_want_of_a_descriptor() {
    for seed in 0..20 {
        let disk = SimulatedDisk::new(seed);
        let (mut log, _) = open(&disk).unwrap();
        write(&mut log, vec![state(0)]);
        disk.set_capacity(0);
        disk.set_descriptors(0);
        let index = write_until_waiting(&mut log, 0);
        disk.set_descriptors(usize::MAX);
        disk.set_faults(Faults { no_descriptor_ppm: 700_000, ..Faults::default() });
        while log.is_waiting() {
            log.try_again().unwrap();
            assert_eq!(log.missing_bytes(), if log.is_waiting() { 0 } else { 4096 }, "seed {seed}");
        }
        log.sync().unwrap();
        disk.set_faults(Faults::default());
        assert_eq!(open(&disk).unwrap().1, replayed(&[state(0), entries(1, index + 1)]));
    }
}

#[test]
fn whatever_waits_for_room_or_a_descriptor_is_there_once_it_is_synced() {
    everything_synced_is_there(Faults { no_space_ppm: 100_000, no_descriptor_ppm: 500_000, ..Faults::default() });
}

#[test]
fn a_start_without_a_descriptor_says_so_and_the_next_one_finds_all() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0), entries(1, 1)]);
    drop(log);
    for allowed in 0..3 {
        disk.set_descriptors(allowed);
        if let Err(error) = open(&disk) {
            let RecoveryError::Io(error) = error else { panic!("{error}") };
            assert!(is_out_of_descriptors(&error), "{error}");
        }
    }
    for seed in 0..100 {
        let faulty = disk.fork();
        faulty.set_descriptors(usize::MAX);
        faulty.set_faults(Faults { no_descriptor_ppm: 200_000, ..Faults::default() });
        let _ = open(&faulty);
        faulty.set_faults(Faults::default());
        faulty.lose_power(&mut Random::new(seed));
        assert_eq!(open(&faulty).unwrap().1, replayed(&[state(0), entries(1, 1)]), "seed {seed}");
    }
}
