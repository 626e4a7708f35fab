//! Interleavings that cost a lease, and the order that keeps promises, step by step.

use super::*;
use crate::Sabotage;
use crate::config::ELECTION_TICKS;
use crate::log::record::LogEntry;
use crate::status::Role;

mod restoring;

const TICK_NS: u64 = 1_000;
type Core = NodeCore<u64, u64>;
type Messages = BTreeMap<NodeId, Vec<crate::outbox::GroupMessage>>;

fn options(node: u64) -> CoreOptions {
    CoreOptions {
        node,
        seed: node,
        tick_ns: TICK_NS,
        snapshot_log_bytes: 1 << 20,
        tail_bytes: 1 << 20,
        tail_entries: 100,
        sabotage: Sabotage::None,
    }
}

fn core(node: u64) -> Core {
    NodeCore::new(options(node), BTreeMap::new(), 1)
}

fn voters(count: u64) -> Vec<NodeId> {
    (1..=count).map(NodeId).collect()
}

fn from(node: u64, messages: Messages, to: u64) -> Vec<Input<u64, u64>> {
    let messages = messages.into_iter().filter(|(id, _)| id.0 == to).flat_map(|(_, list)| list);
    messages.map(|m| Input::Message { from: NodeId(node), group: m.group, bytes: m.bytes }).collect()
}

/// A whole turn on a disk that is never slow: all effects at once.
fn turn(core: &mut Core, now: u64, inputs: Vec<Input<u64, u64>>) -> Effects<u64, u64> {
    let mut all = core.step(now, inputs);
    while !all.records.is_empty() {
        all.records.clear();
        let next = core.persisted();
        for (to, messages) in next.messages {
            all.messages.entry(to).or_default().extend(messages);
        }
        all.records = next.records;
        all.applies.extend(next.applies);
        all.reads.extend(next.reads);
        all.snapshots.extend(next.snapshots);
        all.freezes.extend(next.freezes);
        all.installs.extend(next.installs);
    }
    all
}

fn role(core: &Core) -> Role {
    core.status(RaftGroupId(7)).unwrap().0.role
}

/// Two of three replicas, the first of which leads.
fn pair() -> (Core, Core, u64) {
    let (mut one, mut two) = (core(1), core(2));
    one.create(RaftGroupId(7), &voters(3)).unwrap();
    two.create(RaftGroupId(7), &voters(3)).unwrap();
    turn(&mut two, 0, vec![]);
    let mut now = 0;
    let mut inputs = vec![];
    for _ in 0..30 {
        now += TICK_NS;
        inputs.push(Input::Tick);
        let out = turn(&mut one, now, std::mem::take(&mut inputs));
        let answers = turn(&mut two, now, from(1, out.messages, 2));
        inputs = from(2, answers.messages, 1);
    }
    assert_eq!(role(&one), Role::Leader);
    (one, two, now)
}

#[test]
fn a_group_says_nothing_before_its_creation_is_durable() {
    let (mut one, _, now) = pair();
    let beat = (0..4).find_map(|i| {
        let out = turn(&mut one, now + i, vec![Input::Tick]);
        Some(from(1, out.messages, 3)).filter(|inputs| !inputs.is_empty())
    });
    let mut three = core(3);
    three.create(RaftGroupId(7), &voters(3)).unwrap();
    let early = three.step(now, beat.expect("a leader beats"));
    assert!(early.messages.is_empty(), "it answered a leader that it could forget");
    assert!(!early.records.is_empty());
    let answered = (0..3).any(|_| !three.persisted().messages.is_empty());
    assert!(answered, "it answers once it is durable, and the term it learned too");
}

#[test]
fn a_replica_that_heard_a_leader_is_patient_for_an_election_timeout() {
    let (_, mut two, now) = pair();
    for tick in 1..ELECTION_TICKS as u64 {
        let out = turn(&mut two, now + tick * TICK_NS, vec![Input::Tick]);
        assert!(out.messages.is_empty(), "it asked for votes after {tick} ticks");
    }
}

#[test]
fn a_replica_gives_no_vote_in_the_first_election_timeout_of_a_later_life() {
    let state = GroupState {
        hard: HardState { term: Term(1), vote: 1, commit: LogIndex::ZERO },
        snapshot: SnapshotMark::default(),
        installed: false,
        voters: vec![1, 2, 3],
        learners: vec![],
    };
    let replayed = Replayed { state, before: (LogIndex::ZERO, Term::ZERO), entries: vec![] };
    let groups = |id| [(RaftGroupId(id), replayed.clone())].into();
    let mut candidate = NodeCore::<u64, u64>::new(core(1).options, groups(7), 1);
    let ask = |candidate: &mut Core| {
        (0..60).find_map(|i| {
            let out = turn(candidate, i, vec![Input::Tick]);
            Some(from(1, out.messages, 2)).filter(|inputs| !inputs.is_empty())
        })
    };
    let mut voter = NodeCore::<u64, u64>::new(core(2).options, groups(7), 1);
    for tick in 0..ELECTION_TICKS {
        let out = turn(&mut voter, 0, ask(&mut candidate).expect("it asks"));
        assert!(out.messages.is_empty(), "a vote after {tick} ticks");
        let quiet = turn(&mut voter, 0, vec![Input::Tick]);
        assert!(quiet.messages.is_empty());
    }
    assert!(!turn(&mut voter, 0, ask(&mut candidate).expect("it asks")).messages.is_empty());
}

#[test]
fn append_responses_and_votes_wait_for_the_disk_and_appends_of_a_leader_do_not() {
    let (mut one, mut two, now) = pair();
    let propose =
        |ticket| Input::Propose { group: RaftGroupId(7), command: Bytes::from_static(b"x"), ticket, frees: false };
    let early = one.step(now, vec![propose(1)]);
    assert!(!early.records.is_empty() && !early.messages.is_empty(), "the leader replicates while it writes");
    assert!(early.applies.is_empty());
    let append = from(1, early.messages, 2);
    let follower = two.step(now, append);
    assert!(!follower.records.is_empty() && follower.messages.is_empty(), "it acknowledged before it wrote");
    let response = from(2, two.persisted().messages, 1);
    one.persisted();
    let out = turn(&mut one, now, response);
    assert_eq!(out.applies.iter().flat_map(|a| &a.commands).filter_map(|c| c.ticket).collect::<Vec<_>>(), vec![1]);
}

#[test]
fn a_leader_serves_reads_under_its_lease_and_not_after_it() {
    let (mut one, _, now) = pair();
    let lease = one.status(RaftGroupId(7)).unwrap().1;
    assert!(lease > now && lease < now + ELECTION_TICKS as u64 * TICK_NS, "{lease} at {now}");
    let read = |ticket| Input::Read { group: RaftGroupId(7), ticket };
    assert_eq!(turn(&mut one, lease - 1, vec![read(1)]).reads.len(), 1);
    assert!(turn(&mut one, lease, vec![read(2)]).reads.is_empty());
}

#[test]
fn a_lone_voter_leads_at_once_and_reads_without_asking() {
    let mut one = core(1);
    one.create(RaftGroupId(7), &voters(1)).unwrap();
    turn(&mut one, 1, vec![]);
    assert_eq!(role(&one), Role::Leader);
    assert_eq!(turn(&mut one, 2, vec![Input::Read { group: RaftGroupId(7), ticket: 1 }]).reads.len(), 1);
}

#[test]
fn r29_a_leader_without_room_takes_what_frees_and_refuses_what_grows() {
    for (sabotage, taken) in [(Sabotage::None, vec![2]), (Sabotage::FreeingRefused, vec![])] {
        let mut one = Core::new(CoreOptions { sabotage, ..options(1) }, BTreeMap::new(), 1);
        one.create(RaftGroupId(7), &voters(1)).unwrap();
        turn(&mut one, 1, vec![]);
        one.set_tight(true);
        let propose = |ticket, frees| {
            let command = Bytes::from_static(b"x");
            Input::Propose { group: RaftGroupId(7), command, ticket, frees }
        };
        let out = turn(&mut one, 2, vec![propose(1, false), propose(2, true)]);
        let tickets: Vec<u64> = out.applies.iter().flat_map(|a| &a.commands).filter_map(|c| c.ticket).collect();
        assert_eq!(tickets, taken, "{sabotage:?}");
        let refused = [1, 2].into_iter().filter(|ticket| !taken.contains(ticket));
        let refused: Vec<_> = refused.map(|ticket| (ticket, ProposeError::NoSpace)).collect();
        assert_eq!(out.failed, refused, "{sabotage:?}");
    }
}

#[test]
fn a_peer_that_lost_what_it_acknowledged_stops_one_group_only() {
    let (mut one, mut two, now) = pair();
    two.create(RaftGroupId(8), &voters(1)).unwrap_err();
    two.create(RaftGroupId(8), &[NodeId(2)]).unwrap();
    turn(&mut two, now, vec![]);
    // A replica that forgot everything meets a heartbeat that commits what it had.
    let mut amnesiac = core(2);
    amnesiac.create(RaftGroupId(7), &voters(3)).unwrap();
    amnesiac.create(RaftGroupId(8), &[NodeId(2)]).unwrap();
    turn(&mut amnesiac, now, vec![]);
    let beat = (0..4).find_map(|i| {
        let out = turn(&mut one, now + i, vec![Input::Tick]);
        Some(from(1, out.messages, 2)).filter(|inputs| !inputs.is_empty())
    });
    turn(&mut amnesiac, now, beat.expect("a leader beats"));
    assert_eq!(role(&amnesiac), Role::Stopped);
    assert_eq!(amnesiac.status(RaftGroupId(8)).unwrap().0.role, Role::Leader);
}

#[test]
fn arbitrary_bytes_from_the_network_change_nothing() {
    let (mut one, _, now) = pair();
    let before = one.status(RaftGroupId(7)).unwrap().0;
    let mut random = holdfast_common::Random::new(5);
    for length in 0..500 {
        let bytes: Vec<u8> = (0..length % 60).map(|_| random.bits().to_le_bytes()[0]).collect();
        turn(&mut one, now, vec![Input::Message { from: NodeId(2), group: RaftGroupId(7), bytes: bytes.into() }]);
    }
    assert_eq!(one.status(RaftGroupId(7)).unwrap().0, before);
}

#[test]
fn a_stopped_group_does_not_hold_the_log_and_one_that_a_panic_left_half_changed_is_recalled() {
    let carried = |core: &mut Core| {
        let to_recall = core.carry_forward(&[RaftGroupId(7)]);
        let records = core.step(0, vec![]).records;
        (records.iter().any(|record| matches!(record, Record::Group(RaftGroupId(7), _))), to_recall)
    };
    let (mut one, _, _) = pair();
    one.stop(RaftGroupId(7), StopReason::SnapshotLost);
    assert_eq!(carried(&mut one), (true, vec![]));
    let (mut one, _, _) = pair();
    one.with(RaftGroupId(7), |_, _, _| panic!("half way"));
    assert_eq!(role(&one), Role::Stopped);
    assert_eq!(carried(&mut one), (false, vec![RaftGroupId(7)]));
}

#[test]
fn an_entry_of_an_unknown_kind_stops_its_group_and_is_never_read_as_a_command() {
    let data = Bytes::from_static(b"command");
    let entry = |index, kind| LogEntry { index: LogIndex(index), term: Term(1), kind, data: data.clone() };
    let hard = HardState { term: Term(1), vote: 1, commit: LogIndex(3) };
    let state =
        GroupState { hard, snapshot: SnapshotMark::default(), installed: false, voters: vec![1], learners: vec![] };
    let entries = vec![entry(1, 0), entry(2, 9), entry(3, 0)];
    let replayed = Replayed { state, before: (LogIndex::ZERO, Term::ZERO), entries };
    let mut core: Core = NodeCore::new(options(1), BTreeMap::from([(RaftGroupId(7), replayed)]), 1);
    let effects = core.step(0, vec![Input::Tick]);
    assert!(effects.applies.is_empty() && effects.records.is_empty());
    assert!(
        effects
            .broken
            .iter()
            .any(|(group, why)| *group == RaftGroupId(7) && why.to_string().contains("entry 2 is of a kind"))
    );
    assert_eq!(role(&core), Role::Stopped);
    assert_eq!(
        core.carry_forward(&[RaftGroupId(7)]),
        [RaftGroupId(7)],
        "its entries must be recalled, not written from memory"
    );
}
