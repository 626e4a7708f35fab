//! The log over a disk that forgets.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::SEGMENT_HEADER_BYTES;
use super::record::{GroupState, HardState, LogEntry, SnapshotMark};
use super::replay::{Replay, Replayed};
use super::*;
use holdfast_common::{LogIndex, RaftGroupId, Random, Term};
use holdfast_storage::SimulatedDisk;

mod descriptors;
mod full;

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 4096,
    bytes_max: 8 * 4096,
    tail_entries: 0,
    identity: [9; 16],
    expected: ExpectedLog::AnyOrNone,
    sabotage: Sabotage::None,
};

type Groups = BTreeMap<RaftGroupId, (GroupState, Vec<LogEntry>)>;

fn open(disk: &SimulatedDisk) -> Result<(Log, Groups), RecoveryError> {
    let (log, groups) = Log::open(Arc::new(disk.clone()), OPTIONS)?;
    Ok((log, simplified(groups)))
}

/// The part that must survive: the tail below a snapshot may be shorter after segments were recycled.
fn simplified(groups: BTreeMap<RaftGroupId, Replayed>) -> Groups {
    let needed = |group: Replayed| {
        let snapshot = group.state.snapshot.index;
        (group.state, group.entries.into_iter().filter(|entry| entry.index > snapshot).collect())
    };
    groups.into_iter().map(|(id, group)| (id, needed(group))).collect()
}

fn replayed(records: &[Record]) -> Groups {
    let mut replay = Replay::new(0, Sabotage::None);
    records.iter().for_each(|record| replay.take(record.clone()));
    simplified(replay.finish().unwrap())
}

fn segment_names(disk: &SimulatedDisk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| segment::parse_name(name).is_some()).collect()
}

fn write(log: &mut Log, records: Vec<Record>) {
    log.append(records).unwrap();
    log.sync().unwrap();
}

fn state(index: u64) -> Record {
    let (file, index) = (index, LogIndex(index));
    let snapshot = SnapshotMark { index, term: Term(1), file, bytes: 10 };
    let hard = HardState { term: Term(1), vote: 1, commit: index };
    Record::Group(RaftGroupId(7), GroupState { hard, snapshot, installed: false, voters: vec![1], learners: vec![] })
}

fn entries(first: u64, count: u64) -> Record {
    let data = Bytes::from(vec![0xAB; 100]);
    let entry = |index| LogEntry { index: LogIndex(index), term: Term(1), kind: 0, data: data.clone() };
    Record::Entries(RaftGroupId(7), (first..first + count).map(entry).collect())
}

#[test]
fn what_was_synced_is_there_and_what_was_not_may_be() {
    let disk = SimulatedDisk::default();
    let (mut log, groups) = open(&disk).unwrap();
    assert!(groups.is_empty());
    let mut history = vec![state(0)];
    write(&mut log, history.clone());
    for first in 1..100 {
        history.push(entries(first, 1));
        write(&mut log, vec![entries(first, 1)]);
    }
    drop(log);
    disk.lose_power(&mut Random::new(1));
    assert_eq!(open(&disk).unwrap().1, replayed(&history));
    assert!(segment_names(&disk).len() > 5, "several segments");
}

#[test]
fn a_tail_torn_at_any_byte_is_there_whole_or_not_at_all() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0), entries(1, 1)]);
    let name = segment::name(log.current.header.segment);
    let before = disk.bytes(&name);
    let start = log.current.offset as usize;
    write(&mut log, vec![entries(2, 2)]);
    let after = disk.bytes(&name);
    let end = (start..after.len()).rev().find(|at| after[*at] != before[*at]).unwrap() + 1;
    let (old, new) = (replayed(&[state(0), entries(1, 1)]), replayed(&[state(0), entries(1, 3)]));
    for cut in start..=end {
        let torn = disk.fork();
        torn.damage(&name, &[&after[..cut], &before[cut..]].concat());
        let (mut log, groups) = open(&torn).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(groups, if cut == end { new.clone() } else { old.clone() }, "cut at {cut}");
        // It goes on from there, and the torn bytes never come back.
        write(&mut log, vec![entries(2, 1)]);
        assert_eq!(open(&torn).unwrap().1, replayed(&[state(0), entries(1, 2)]), "cut at {cut}");
    }
}

#[test]
fn damage_before_the_watermark_is_refused() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    for first in 1..33 {
        write(&mut log, vec![entries(first, 1)]);
    }
    drop(log);
    let mut names: Vec<String> = segment_names(&disk);
    names.sort();
    let head = names.pop().unwrap();
    assert!(names.len() > 1);
    let refused = |disk: &SimulatedDisk| matches!(open(disk), Err(RecoveryError::Damaged { .. }));
    for name in &names {
        for at in [0, 4, 30, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + 20, SEGMENT_HEADER_BYTES + 60, 3000] {
            let (damaged, mut bytes) = (disk.fork(), disk.bytes(name));
            bytes[at] ^= 1;
            damaged.damage(name, &bytes);
            // Padding between batches and behind the header is not covered, and not needed.
            let padding = at == 3000 && disk.bytes(name)[2990..3010].iter().all(|b| *b == 0);
            assert!(refused(&damaged) || padding, "{name} at {at}");
        }
        let missing = disk.fork();
        missing.remove(name).unwrap();
        assert!(refused(&missing), "{name} missing");
    }
    // In the head, all but the last batch is covered by a watermark.
    let (damaged, mut bytes) = (disk.fork(), disk.bytes(&head));
    assert!(super::batch::scan(&bytes, Sabotage::None).unwrap().batches.len() > 2);
    bytes[SEGMENT_HEADER_BYTES + 50] ^= 1;
    damaged.damage(&head, &bytes);
    assert!(refused(&damaged));
}

#[test]
fn a_log_that_must_be_there_is_not_made_and_another_is_not_taken() {
    let disk = SimulatedDisk::default();
    let expect = |expected| Log::open(Arc::new(disk.clone()), LogOptions { expected, ..OPTIONS });
    for expected in [ExpectedLog::Any, ExpectedLog::Identity([9; 16])] {
        assert!(matches!(expect(expected), Err(RecoveryError::Missing)));
        assert_eq!(disk.operations(), 0, "nothing is made");
    }
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    drop(log);
    let operations = disk.operations();
    assert!(matches!(expect(ExpectedLog::Identity([8; 16])), Err(RecoveryError::Foreign)));
    assert_eq!(disk.operations(), operations, "nothing is changed");
    for expected in [ExpectedLog::Any, ExpectedLog::Identity([9; 16])] {
        let (log, groups) = expect(expected).unwrap();
        assert_eq!((log.identity(), groups.len()), ([9; 16], 1));
    }
}

#[test]
fn what_a_start_has_read_from_the_page_cache_stays() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0), entries(1, 1)]);
    log.append(vec![entries(2, 1)]).unwrap();
    drop(log);
    disk.lose_process();
    let expected = replayed(&[state(0), entries(1, 2)]);
    assert_eq!(open(&disk).unwrap().1, expected);
    for seed in 0..20 {
        let later = disk.fork();
        later.lose_power(&mut Random::new(seed));
        assert_eq!(open(&later).unwrap().1, expected, "seed {seed}");
    }
}

#[test]
fn a_failed_sync_is_never_retried() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    log.append(vec![entries(1, 1)]).unwrap();
    disk.fail_next(holdfast_storage::simulated::Fault::Sync);
    log.sync().unwrap_err();
    disk.lose_process();
    let operations = disk.operations();
    log.sync().unwrap_err();
    log.append(vec![entries(1, 1)]).unwrap_err();
    assert_eq!(disk.operations(), operations, "it was tried again");
}

#[test]
fn segments_are_recycled_and_their_former_bytes_never_pass() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vec![state(0)]);
    let mut index = 0;
    for round in 0..40 {
        for _ in 0..10 {
            write(&mut log, vec![entries(index + 1, 2)]);
            index += 2;
        }
        write(&mut log, vec![state(index)]);
        let segments = segment_names(&disk).len();
        assert!(segments <= 8, "round {round}: {segments} segments");
    }
    let expected = replayed(&[state(index)]);
    assert_eq!(open(&disk.fork()).unwrap().1, expected);
    while log.current.offset > 2048 {
        write(&mut log, vec![state(index)]);
    }
    // A fresh segment of recycled bytes: everything old in it is refused.
    let name = segment::name(log.current.header.segment);
    let used = log.current.offset as usize;
    assert!(disk.bytes(&name)[used..].iter().any(|b| *b != 0), "the file is a recycled one");
    assert_eq!(batch::scan(&disk.bytes(&name), Sabotage::None).unwrap().later_watermark, Position::default());
}

#[test]
fn groups_that_hold_old_segments_are_named_until_they_are_carried_forward() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    let idle = |record: Record| match record {
        Record::Group(_, state) => Record::Group(RaftGroupId(1), state),
        other => other,
    };
    write(&mut log, vec![idle(state(0)), state(0)]);
    let mut index = 0;
    while log.holders().is_empty() {
        write(&mut log, vec![entries(index + 1, 10)]);
        index += 10;
        write(&mut log, vec![state(index)]);
        assert!(index < 10_000, "never over its bound");
    }
    assert_eq!(log.holders(), [RaftGroupId(1)]);
    write(&mut log, vec![idle(state(0))]);
    assert!(log.holders().is_empty());
}

/// Written as plain entries, each part would cut off what follows it, until the last one is there.
#[test]
fn a_carry_of_several_batches_counts_whole_or_not_at_all_wherever_the_power_fails() {
    let full = SimulatedDisk::default();
    let (mut log, _) = open(&full).unwrap();
    write(&mut log, vec![state(0)]);
    (1..=100).for_each(|index| write(&mut log, vec![entries(index, 1)]));
    drop(log);
    let expected = replayed(&[state(0), entries(1, 100)]);
    let Record::Entries(_, all) = entries(1, 100) else { unreachable!() };
    let carry = vec![state(0), Record::Carry(RaftGroupId(7), all, true)];
    let mut whole = 0;
    for operations in 0..200 {
        let disk = full.fork();
        let (mut log, _) = open(&disk).unwrap();
        let start = log.current.header.segment;
        disk.die_after(operations);
        let done = log.append(carry.clone()).is_ok() && log.sync().is_ok();
        assert!(!done || log.pins.oldest().unwrap() >= start, "the old segments are needed no more");
        drop(log);
        disk.lose_power(&mut Random::new(operations));
        assert_eq!(open(&disk).unwrap().1, expected, "dead after {operations} operations");
        // The next carry follows on the remains of this one.
        let (mut log, _) = open(&disk).unwrap();
        write(&mut log, carry.clone());
        assert_eq!(open(&disk.fork()).unwrap().1, expected, "dead after {operations} operations, then carried");
        whole += u64::from(done);
    }
    assert!((1..200).contains(&whole));
}

/// A carry counts as a whole: the entries behind a part that counted alone would be gone.
#[test]
fn r25_a_part_of_a_carry_that_counts_takes_away_what_follows_it() {
    let full = SimulatedDisk::default();
    let (mut log, _) = open(&full).unwrap();
    write(&mut log, vec![state(0), entries(1, 20), entries(21, 20), entries(41, 20)]);
    let Record::Entries(_, all) = entries(1, 60) else { unreachable!() };
    let part = Record::Carry(RaftGroupId(7), all[..20].to_vec(), false);
    write(&mut log, vec![state(0), part]);
    drop(log);
    for (sabotage, left) in [(Sabotage::None, 60), (Sabotage::CarryCountedInParts, 20)] {
        let options = LogOptions { sabotage, ..OPTIONS };
        let (_, groups) = Log::open(Arc::new(full.fork()), options).unwrap();
        assert_eq!(simplified(groups)[&RaftGroupId(7)].1.len(), left, "{sabotage:?}");
    }
}

/// R23: it would vote without what its former life promised.
#[test]
fn a_log_that_must_be_there_is_made_only_by_who_breaks_the_rule() {
    for (sabotage, is_made) in [(Sabotage::None, false), (Sabotage::MissingLogMade, true)] {
        let options = LogOptions { sabotage, expected: ExpectedLog::Identity([9; 16]), ..OPTIONS };
        let opened = Log::open(Arc::new(SimulatedDisk::default()), options);
        assert_eq!(opened.is_ok(), is_made, "{sabotage:?}");
    }
}

#[test]
fn what_a_group_has_is_recalled_from_the_segments() {
    let disk = SimulatedDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    let idle = |record: Record| match record {
        Record::Group(_, state) => Record::Group(RaftGroupId(1), state),
        Record::Entries(_, entries) => Record::Entries(RaftGroupId(1), entries),
        other => other,
    };
    write(&mut log, vec![idle(state(0)), idle(entries(1, 50)), state(0)]);
    let mut index = 0;
    while log.holders().is_empty() {
        write(&mut log, vec![entries(index + 1, 10)]);
        index += 10;
        write(&mut log, vec![state(index)]);
    }
    assert_eq!(log.holders(), [RaftGroupId(1)]);
    let recalled = log.recall(RaftGroupId(1)).unwrap();
    let history: Vec<Record> = [idle(state(0)), idle(entries(1, 50))].into();
    assert_eq!(replayed(&recalled), replayed(&history));
    let (held_from, current) = (log.start, log.current.header.segment);
    write(&mut log, recalled);
    assert!(held_from < current && log.start >= current, "it holds from {}, before from {held_from}", log.start);
    assert_eq!(open(&disk.fork()).unwrap().1[&RaftGroupId(1)], replayed(&history)[&RaftGroupId(1)]);
}

/// Random records, deaths and starts against the plain replay of everything that was acknowledged.
#[test]
fn no_acknowledged_record_is_lost_and_none_comes_back() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::default();
        let mut history: Vec<Record> = Vec::new();
        let mut last = BTreeMap::new();
        for _life in 0..12 {
            disk.die_after(random.below(120));
            let mut pending = Vec::new();
            if let Ok((mut log, groups)) = open(&disk) {
                assert_eq!(groups, replayed(&history), "after a start");
                loop {
                    pending = turn(&mut random, &mut last, &groups_now(&history));
                    if log.append(pending.clone()).is_err() || log.sync().is_err() {
                        break;
                    }
                    history.append(&mut pending);
                }
            }
            if random.below(3) == 0 {
                disk.lose_process()
            } else {
                disk.lose_power(&mut random)
            }
            // The batch that was never acknowledged may have become durable or not; starting decides it for good.
            let groups = open(&disk).unwrap().1;
            let with_pending = [history.clone(), pending].concat();
            if groups != replayed(&history) {
                assert_eq!(groups, replayed(&with_pending));
                history = with_pending;
            }
            last = groups.iter().map(|(id, (s, e))| (*id, e.last().map_or(s.snapshot.index, |e| e.index))).collect();
        }
    }
}

fn groups_now(history: &[Record]) -> Groups {
    replayed(history)
}

/// The records of a turn that raft could have written.
fn turn(random: &mut Random, last: &mut BTreeMap<RaftGroupId, LogIndex>, groups: &Groups) -> Vec<Record> {
    let mut records = Vec::new();
    for group in (1..=3).map(RaftGroupId) {
        let Some((state, _)) = groups.get(&group) else {
            let Record::Group(_, state) = state(0) else { unreachable!() };
            records.push(Record::Group(group, state));
            last.insert(group, LogIndex::ZERO);
            continue;
        };
        let end = last[&group];
        match random.below(12) {
            0 => {
                let index = state.snapshot.index + random.below(end - state.snapshot.index + 1);
                let Record::Group(_, mut next) = self::state(index.0) else { unreachable!() };
                next.hard.commit = index;
                let entry = groups[&group].1.iter().find(|e| e.index == index);
                next.snapshot.term = entry.map_or(state.snapshot.term, |e| e.term);
                records.push(Record::Group(group, next));
            }
            1 if random.below(10) == 0 => {
                records.push(Record::Drop(group));
                last.remove(&group);
            }
            2..=4 => {}
            _ => {
                let low = state.hard.commit.max(state.snapshot.index);
                let first = if random.below(6) == 0 { low + random.below(end - low + 1) + 1 } else { end.next() };
                let first = first.min(end.next());
                let count = 1 + random.below(4);
                let data = Bytes::from(vec![random.bits().to_le_bytes()[0]; random.index(200)]);
                let term = Term(random.bits());
                let entry = |n| LogEntry { index: first + n, term, kind: 0, data: data.clone() };
                records.push(Record::Entries(group, (0..count).map(entry).collect()));
                last.insert(group, first + (count - 1));
            }
        }
    }
    records
}
