//! What a leader gives a voter that lost its log, and when (R23).

use super::full::{Trio, put};
use super::*;

fn ask(trio: &mut Trio, of: usize, to: u64) -> u64 {
    let ticket = 1_000 + to;
    trio.sites[of].node.admit(GROUP, NodeId(to), 5, ticket);
    ticket
}

fn answer(trio: &mut Trio, of: usize, rounds: usize) -> Option<Result<AdmissionOut, AdmissionError>> {
    for _ in 0..rounds {
        trio.round();
        if let Some((_, result)) = trio.sites[of].admitted.pop() {
            return Some(result);
        }
    }
    None
}

#[test]
fn it_gives_a_snapshot_above_an_entry_that_every_other_voter_has() {
    let (mut trio, leader) = Trio::elected();
    let lost = (leader + 1) % 3;
    trio.down = Some(lost);
    for _ in 0..5 {
        trio.sites[leader].ask(&put());
    }
    trio.round();
    let to = trio.sites[lost].id;
    ask(&mut trio, leader, to);
    let AdmissionOut { admission, bytes } = answer(&mut trio, leader, 20).unwrap().unwrap();
    let status = trio.sites[leader].node.status(GROUP).unwrap();
    assert_eq!((admission.to, admission.generation, admission.term), (NodeId(to), 5, status.term));
    assert!(admission.index > LogIndex(5) && admission.index <= status.applied && !bytes.is_empty());
}

#[test]
fn it_waits_for_every_other_voter_and_says_who_is_missing() {
    let (mut trio, leader) = Trio::elected();
    let (lost, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    // The lost one is up here, so that there is a quorum: its acknowledgements do not count.
    trio.down = Some(dead);
    let (to, missing) = (trio.sites[lost].id, NodeId(trio.sites[dead].id));
    ask(&mut trio, leader, to);
    assert_eq!(answer(&mut trio, leader, 150), Some(Err(AdmissionError::Late { missing: vec![missing] })));
    ask(&mut trio, leader, to);
    assert_eq!(answer(&mut trio, leader, 30), None);
    trio.down = None;
    answer(&mut trio, leader, 30).unwrap().unwrap();
}

#[test]
fn who_does_not_lead_and_who_is_no_other_voter_is_told_so() {
    let (mut trio, leader) = Trio::elected();
    let (id, follower) = (trio.sites[leader].id, (leader + 1) % 3);
    ask(&mut trio, follower, 1 + (id + 1) % 3);
    let refused = AdmissionError::NotLeader { leader: Some(NodeId(id)) };
    assert_eq!(answer(&mut trio, follower, 2), Some(Err(refused)));
    for to in [id, 9] {
        ask(&mut trio, leader, to);
        assert_eq!(answer(&mut trio, leader, 2), Some(Err(AdmissionError::NotAVoter)));
    }
    trio.sites[leader].node.admit(RaftGroupId(8), NodeId(2), 5, 1);
    assert_eq!(answer(&mut trio, leader, 2), Some(Err(AdmissionError::Stopped)));
}
