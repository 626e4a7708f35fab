//! What a recovering node takes, and what it leaves.

use std::io::Write;

use holdfast_common::{RaftGroupId, Term};
use holdfast_storage::SimulatedDisk;

use super::*;
use crate::machine::Snapshot;
use crate::reserve::Reserve;

const GROUP: RaftGroupId = RaftGroupId(7);

struct Bytes(&'static [u8]);

impl Snapshot for Bytes {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(self.0)
    }
}

/// A snapshot file of a Raft group of voters 1 to 3.
fn file(group: RaftGroupId, index: u64) -> Vec<u8> {
    let (index, term) = (LogIndex(index), Term(4));
    let disk = SimulatedDisk::default();
    let reserve = Reserve::open(disk.root()).unwrap();
    let header = SnapshotHeader { group, index, term, voters: vec![1, 2, 3], learners: vec![] };
    let mark = SnapshotMark { index, term, file: 1, bytes: 0 };
    assert!(snapshot::write_frozen(&disk, &reserve, &header, mark, &Bytes(b"state"), Sabotage::None).1);
    disk.bytes(&snapshot::name(group, 1))
}

fn admission() -> Admission {
    Admission { group: GROUP, to: NodeId(1), generation: 5, leader: NodeId(2), term: Term(4), index: LogIndex(10) }
}

struct Disks(SimulatedDisk, SimulatedDisk);

impl Disks {
    fn open(&self) -> Recovering {
        let options = SteppedOptions::small(NodeId(1), 1);
        Recovering::open_stepped(options, 5, self.0.root(), self.1.root()).unwrap()
    }
}

fn take(recovering: &mut Recovering, admission: &Admission, file: &[u8]) -> Result<(), RecoverError> {
    recovering.receive(admission, |disk, name| disk.create_empty(name)?.write_at(0, file))
}

#[test]
fn what_was_taken_is_there_after_a_crash_with_term_vote_and_commit() {
    let disks = Disks(SimulatedDisk::default(), SimulatedDisk::default());
    let mut recovering = disks.open();
    take(&mut recovering, &admission(), &file(GROUP, 12)).unwrap();
    assert!(recovering.has(GROUP));
    // Twice, or an older one: it stays as it is.
    take(&mut recovering, &admission(), &file(GROUP, 10)).unwrap();
    drop(recovering);
    disks.0.lose_unsynced();
    disks.1.lose_unsynced();
    assert_eq!(disks.open().recovered, [(GROUP, LogIndex(12))].into());
    let (_, groups) = Log::open(disks.0.root(), SteppedOptions::small(NodeId(1), 1).log_options()).unwrap();
    let state = &groups[&GROUP].state;
    assert_eq!(state.hard, HardState { term: Term(4), vote: 2, commit: LogIndex(12) });
    assert_eq!((state.snapshot.index, state.voters.clone()), (LogIndex(12), vec![1, 2, 3]));
}

#[test]
fn what_does_not_fit_is_not_taken_and_leaves_nothing() {
    let disks = Disks(SimulatedDisk::default(), SimulatedDisk::default());
    let mut recovering = disks.open();
    for stale in [Admission { generation: 4, ..admission() }, Admission { to: NodeId(3), ..admission() }] {
        assert!(matches!(take(&mut recovering, &stale, &file(GROUP, 12)), Err(RecoverError::Stale)));
    }
    let mut damaged = file(GROUP, 12);
    *damaged.last_mut().unwrap() ^= 1;
    let own = Admission { leader: NodeId(1), ..admission() };
    let older = Admission { term: Term(3), ..admission() };
    let wrong = [
        (admission(), file(GROUP, 9)),
        (admission(), file(RaftGroupId(8), 12)),
        (admission(), damaged),
        (own, file(GROUP, 12)),
        (older, file(GROUP, 12)),
    ];
    for (admission, file) in wrong {
        assert!(matches!(take(&mut recovering, &admission, &file), Err(RecoverError::Snapshot(_))));
    }
    assert!(!recovering.has(GROUP) && disks.1.list().unwrap().is_empty());
    take(&mut recovering, &admission(), &file(GROUP, 10)).unwrap();
}

#[test]
fn a_death_at_any_moment_leaves_a_group_recovered_or_not() {
    let file = file(GROUP, 12);
    let mut whole = 0;
    for operations in 0..40 {
        for seed in 0..4 {
            let disks = Disks(SimulatedDisk::default(), SimulatedDisk::default());
            let mut recovering = disks.open();
            disks.0.die_after(operations);
            disks.1.die_after(operations);
            let taken = take(&mut recovering, &admission(), &file).is_ok();
            drop(recovering);
            let random = &mut holdfast_common::Random::new(seed);
            disks.0.lose_power(random);
            disks.1.lose_power(random);
            let mut recovering = disks.open();
            assert!(recovering.has(GROUP) || !taken);
            whole += u64::from(taken);
            take(&mut recovering, &admission(), &file).unwrap();
        }
    }
    assert!(whole > 0);
}
