//! What the callers of a stepped node rely on.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use holdfast_storage::{SimulatedDisk, simulated::Fault};

use super::*;
use crate::machine::{Broken, Snapshot};
use crate::status::Role;

mod admission;
mod full;

const GROUP: RaftGroupId = RaftGroupId(7);
const TICK_NS: u64 = 100_000_000;

/// Counts the bytes of its commands; one that begins with `!` breaks it.
#[derive(Clone, Default)]
struct Total(u64);

impl StateMachine for Total {
    fn apply(&mut self, _: LogIndex, command: &[u8]) -> Result<Bytes, Broken> {
        if command.starts_with(b"!") {
            return Err(Broken("told to".to_owned()));
        }
        self.0 += command.len() as u64;
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(self.clone())
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).map_err(|error| Broken(error.to_string()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

impl Snapshot for Total {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.0.to_le_bytes())
    }
}

type Node = SteppedNode<Total>;

struct Disks {
    log: SimulatedDisk,
    snapshots: SimulatedDisk,
}

impl Disks {
    fn new() -> Self {
        Self { log: SimulatedDisk::new(1), snapshots: SimulatedDisk::new(2) }
    }

    fn open(&self, node: u64) -> Node {
        let options = SteppedOptions::small(NodeId(node), node);
        Node::open(options, self.log.root(), self.snapshots.root(), |_| Total::default()).unwrap()
    }
}

/// Turns until nothing is left to do, on a disk that is never slow.
fn settle(node: &mut Node, now_ns: u64) -> Vec<Turn> {
    let mut turns = Vec::new();
    while node.has_work() || node.is_syncing() {
        let turn = if node.is_syncing() { node.synced() } else { node.turn(now_ns) };
        turns.push(turn.unwrap());
    }
    turns
}

fn alone(disks: &Disks) -> Node {
    let mut node = disks.open(1);
    node.create_group(GROUP, &[NodeId(1)]).unwrap();
    settle(&mut node, 1);
    assert_eq!(node.status(GROUP).unwrap().role, Role::Leader);
    node
}

#[test]
fn a_group_is_known_when_it_is_durable() {
    let disks = Disks::new();
    let mut node = disks.open(1);
    assert_eq!(node.create_group(GROUP, &[NodeId(2)]), Err(GroupError::BadVoters));
    node.create_group(GROUP, &[NodeId(1)]).unwrap();
    let turn = node.turn(1).unwrap();
    assert!(turn.syncing && turn.created.is_empty() && node.groups().is_empty());
    let turns = settle(&mut node, 1);
    assert_eq!(turns.iter().flat_map(|turn| &turn.created).collect::<Vec<_>>(), [&GROUP]);
    assert_eq!(node.groups(), [GROUP]);
    node.create_group(GROUP, &[NodeId(1)]).unwrap();
    assert_eq!(node.create_group(GROUP, &[NodeId(1), NodeId(2)]), Err(GroupError::Exists(GROUP)));
    node.drop_group(GROUP);
    settle(&mut node, 1);
    assert_eq!((node.groups(), node.jobs()), (vec![], 1));
    drop(node);
    disks.log.lose_unsynced();
    assert!(disks.open(1).groups().is_empty());
}

#[test]
fn a_group_that_is_dropped_while_it_holds_an_old_segment_is_not_written_behind_its_drop() {
    const BUSY: RaftGroupId = RaftGroupId(8);
    let disks = Disks::new();
    let mut node = alone(&disks);
    node.create_group(BUSY, &[NodeId(1)]).unwrap();
    settle(&mut node, 1);
    // More than the log's bound, while the idle group's state is in the first segment. No tick: nothing is carried.
    for ticket in 0..60 {
        node.propose(BUSY, Bytes::from(vec![1; 10 << 10]), ticket);
        settle(&mut node, 1);
        while node.write_snapshot() {}
        settle(&mut node, 1);
    }
    assert_eq!(node.log.holders(), [GROUP], "the log is not held by the idle group");
    node.drop_group(GROUP);
    node.tick();
    let turns = settle(&mut node, TICK_NS);
    assert_eq!(turns.iter().flat_map(|turn| &turn.dropped).collect::<Vec<_>>(), [&GROUP]);
    drop(node);
    assert_eq!(disks.open(1).groups(), [BUSY]);
}

#[test]
fn what_comes_during_a_sync_waits_for_it_but_reads_under_the_lease_do_not() {
    let disks = Disks::new();
    let mut node = alone(&disks);
    node.propose(GROUP, Bytes::from_static(b"abc"), 1);
    assert!(node.turn(2).unwrap().syncing);
    node.propose(GROUP, Bytes::from_static(b"de"), 2);
    assert!(!node.has_work(), "it waits");
    node.read(3, GROUP, 3);
    assert!(node.has_work());
    assert_eq!(node.turn(3).unwrap(), Turn { syncing: true, reads: vec![(3, Ok(()))], ..Turn::default() });
    let synced = node.synced().unwrap();
    assert_eq!(synced.proposals, [(1, Ok(Bytes::copy_from_slice(&3u64.to_le_bytes())))]);
    let turns = settle(&mut node, 3);
    assert!(turns.iter().any(|turn| turn.proposals == [(2, Ok(Bytes::copy_from_slice(&5u64.to_le_bytes())))]));
}

#[test]
fn every_proposal_and_read_is_answered() {
    let disks = Disks::new();
    let mut node = alone(&disks);
    node.propose(GROUP, Bytes::from(vec![0; 64 << 10]), 1);
    node.propose(RaftGroupId(8), Bytes::new(), 2);
    node.read(2, RaftGroupId(8), 3);
    // One batch: what stands behind the command that breaks the state is answered too.
    for (ticket, command) in [(4, "ab"), (5, "!"), (6, "c")] {
        node.propose(GROUP, Bytes::from_static(command.as_bytes()), ticket);
    }
    let mut turns = settle(&mut node, 2);
    // What the break itself costs is told in the turn after.
    node.tick();
    turns.extend(settle(&mut node, 2));
    let mut answers: Vec<_> = turns.iter().flat_map(|turn| turn.proposals.clone()).collect();
    answers.sort_by_key(|(ticket, _)| *ticket);
    let (unknown, two) = (Err(ProposeError::Unknown), Ok(Bytes::copy_from_slice(&2u64.to_le_bytes())));
    let expected = [
        (1, Err(ProposeError::TooLarge)),
        (2, Err(ProposeError::Stopped)),
        (4, two),
        (5, unknown.clone()),
        (6, unknown),
    ];
    assert_eq!(answers, expected);
    assert!(turns.iter().any(|turn| turn.reads == [(3, Err(ReadError::Stopped))]));
    assert!(turns.iter().any(|turn| turn.broken.iter().any(|(group, _)| *group == GROUP)));
    assert_eq!(node.status(GROUP).unwrap().role, Role::Stopped);
    node.read(2, GROUP, 7);
    assert!(settle(&mut node, 2).iter().any(|turn| turn.reads == [(7, Err(ReadError::Stopped))]));
}

#[test]
fn a_new_replica_gets_the_leaders_snapshot_once_it_is_written() {
    let disks = [Disks::new(), Disks::new(), Disks::new()];
    let voters = [1, 2, 3].map(NodeId);
    let mut nodes: Vec<Node> = (1..).zip(&disks).map(|(id, disks)| disks.open(id)).collect();
    nodes[..2].iter_mut().for_each(|node| node.create_group(GROUP, &voters).unwrap());
    let mut now_ns = 0;
    let mut shipped = 0;
    for round in 0..200_u64 {
        now_ns += TICK_NS;
        if round == 100 {
            nodes[2].create_group(GROUP, &voters).unwrap();
        }
        for from in 0..3 {
            nodes[from].tick();
            nodes[from].propose(GROUP, Bytes::from(vec![0; 4 << 10]), round);
            let turns = settle(&mut nodes[from], now_ns);
            nodes[from].write_snapshot();
            for turn in turns {
                for (to, messages) in turn.messages {
                    let to = usize::try_from(to.0).unwrap() - 1;
                    messages.into_iter().for_each(|message| nodes[to].deliver(NodeId(from as u64 + 1), message));
                }
                for out in turn.snapshots {
                    shipped += 1;
                    let to = usize::try_from(out.to.0).unwrap() - 1;
                    let mut damaged = out.bytes.clone();
                    *damaged.last_mut().unwrap() ^= 1;
                    nodes[to].deliver_snapshot(NodeId(from as u64 + 1), out.message.clone(), &damaged);
                    nodes[to].deliver_snapshot(NodeId(from as u64 + 1), out.message, &out.bytes);
                    nodes[from].report_snapshot(GROUP, out.to, true);
                }
            }
        }
    }
    assert!(shipped > 0);
    let total = nodes[2].state(GROUP).unwrap().0;
    assert!(total > 300 << 10 && nodes[0].state(GROUP).unwrap().0 - total < 64 << 10, "{total}");
    drop(nodes);
    // And every one is there again after a crash.
    for (id, disks) in (1..).zip(&disks) {
        disks.log.lose_unsynced();
        disks.snapshots.lose_unsynced();
        assert!(disks.open(id).state(GROUP).unwrap().0 > 0);
    }
}

#[test]
fn a_failed_sync_is_the_end() {
    let disks = Disks::new();
    let mut node = alone(&disks);
    node.propose(GROUP, Bytes::from_static(b"abc"), 1);
    assert!(node.turn(2).unwrap().syncing);
    disks.log.fail_next(Fault::Sync);
    node.synced().unwrap_err();
    node.turn(3).unwrap_err();
    node.synced().unwrap_err();
    assert_eq!(node.status(GROUP).unwrap().role, Role::Stopped);
}
