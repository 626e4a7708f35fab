//! The log on a disk that is full.

use super::*;
use holdfast_storage::simulated::{Fault, Faults};

/// Lets the disk have no block left.
fn fill(disk: &SimulatedDisk) {
    disk.set_capacity(0);
}

fn refused_for_room(disk: &SimulatedDisk) -> bool {
    matches!(open(disk), Err(RecoveryError::Io(error)) if is_no_space(&error))
}

/// Writes until the log waits. Says the last index that is durable.
pub(super) fn write_until_waiting(log: &mut Log, mut index: u64) -> u64 {
    loop {
        log.append(vec![entries(index + 1, 1)]).unwrap();
        if log.is_waiting() {
            return index;
        }
        log.sync().unwrap();
        index += 1;
    }
}

#[test]
fn a_full_disk_takes_the_spares_and_then_what_is_written_waits_for_room() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    assert_eq!(log.missing_bytes(), 0);
    write(&mut log, vec![state(0)]);
    let first = log.current.header.segment;
    fill(&disk);
    let index = write_until_waiting(&mut log, 0);
    assert_eq!(log.current.header.segment, first + 2, "two spares");
    assert_eq!(log.missing_bytes(), 2 * 4096);
    for _ in 0..3 {
        log.try_again().unwrap();
        log.fill_spares().unwrap();
        assert!(log.is_waiting(), "there is no room yet");
    }
    // Nothing of it was acknowledged, and what was before is there.
    assert!(refused_for_room(&disk.fork()));
    disk.set_capacity(1 << 30);
    assert_eq!(open(&disk.fork()).unwrap().1, replayed(&[state(0), entries(1, index)]));
    log.try_again().unwrap();
    assert!(!log.is_waiting());
    log.sync().unwrap();
    log.fill_spares().unwrap();
    assert_eq!(log.missing_bytes(), 0);
    let groups = open(&disk.fork()).unwrap().1;
    assert_eq!(groups, replayed(&[state(0), entries(1, index + 1)]));
}

#[test]
#[should_panic(expected = "what waits for room is not durable")]
fn nothing_is_synced_while_something_waits_for_room() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    fill(&disk);
    write_until_waiting(&mut log, 0);
    let _ = log.sync();
}

#[test]
fn on_a_full_disk_the_log_asks_for_what_makes_old_segments_obsolete_and_lives_on_them() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    (1..=10).for_each(|index| write(&mut log, vec![entries(index, 1)]));
    assert!(log.holders().is_empty(), "it is shorter than its bound");
    fill(&disk);
    let mut index = 10;
    let mut asked = 0;
    for _ in 0..500 {
        index += 1;
        write(&mut log, vec![entries(index, 1)]);
        if !log.holders().is_empty() {
            asked += 1;
            write(&mut log, vec![state(index)]);
        }
    }
    assert!(asked > 10);
    drop(log);
    let (log, groups) = open(&disk).unwrap();
    assert_eq!(
        groups[&RaftGroupId(7)].1.last().map_or(groups[&RaftGroupId(7)].0.snapshot.index, |entry| entry.index),
        LogIndex(index)
    );
    assert!(log.missing_bytes() <= 2 * 4096);
}

#[test]
fn starts_on_a_full_disk_need_no_room_as_long_as_there_are_spares() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    let mut history = vec![state(0)];
    write(&mut log, history.clone());
    fill(&disk);
    for life in 1..=2 {
        drop(log);
        disk.lose_power(&mut Random::new(life));
        let opened = open(&disk).unwrap();
        log = opened.0;
        assert_eq!(opened.1, replayed(&history));
        write(&mut log, vec![entries(life, 1)]);
        history.push(entries(life, 1));
    }
    // The Raft group is carried forward, and what it held makes room for more starts.
    assert_eq!(log.holders(), [RaftGroupId(7)]);
    let Record::Entries(_, all) = entries(1, 2) else { unreachable!() };
    write(&mut log, vec![state(0), Record::Carry(RaftGroupId(7), all, true)]);
    // What follows says that the carry is durable.
    write(&mut log, vec![entries(3, 1)]);
    for life in 3..=4 {
        drop(log);
        disk.lose_power(&mut Random::new(life));
        log = open(&disk).unwrap().0;
    }
    assert!(refused_for_room(&disk.fork()));
}

#[test]
fn a_start_that_dies_anywhere_on_a_full_disk_costs_no_spare() {
    let full = SimulatedDisk::default();
    let (mut log, _) = open(&full).unwrap();
    write(&mut log, vec![state(0), entries(1, 1)]);
    drop(log);
    fill(&full);
    full.lose_unsynced();
    for operations in 0..40 {
        for seed in 0..4 {
            let disk = full.fork();
            disk.die_after(operations);
            let _ = open(&disk);
            disk.lose_power(&mut Random::new(seed));
            let (log, groups) = open(&disk).unwrap_or_else(|error| panic!("dead after {operations}: {error}"));
            assert_eq!(groups, replayed(&[state(0), entries(1, 1)]));
            assert!(log.missing_bytes() <= 2 * 4096);
        }
    }
}

#[test]
fn a_sync_that_fails_for_want_of_room_is_never_retried() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    log.append(vec![state(0)]).unwrap();
    disk.fail_next(Fault::Sync);
    log.sync().unwrap_err();
    assert!(!is_no_space(&lasting(io::Error::from_raw_os_error(libc::ENOSPC))));
}

/// A file system that copies on write may find no room in the middle of a segment.
#[test]
fn whatever_waits_for_room_is_there_once_it_is_synced() {
    everything_synced_is_there(Faults { no_space_ppm: 200_000, ..Faults::default() });
}

/// Writes through the faults, takes the power away, and demands all that was synced.
pub(super) fn everything_synced_is_there(faults: Faults) {
    for seed in 0..40 {
        let disk = SimulatedDisk::new(seed);
        let (mut log, _) = open(&disk).unwrap();
        disk.set_faults(faults);
        let mut history = vec![state(0)];
        write_patiently(&mut log, vec![state(0)]);
        for index in 1..=80 {
            write_patiently(&mut log, vec![entries(index, 1)]);
            history.push(entries(index, 1));
            if index % 20 == 0 {
                write_patiently(&mut log, vec![state(index - 5)]);
                history.push(state(index - 5));
            }
            log.fill_spares().unwrap();
        }
        drop(log);
        disk.set_faults(Faults::default());
        disk.lose_power(&mut Random::new(seed));
        assert_eq!(open(&disk).unwrap().1, replayed(&history), "seed {seed}");
    }
}

fn write_patiently(log: &mut Log, records: Vec<Record>) {
    log.append(records).unwrap();
    while log.is_waiting() {
        log.try_again().unwrap();
    }
    log.sync().unwrap();
}
