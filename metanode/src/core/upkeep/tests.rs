//! Rounds of the upkeep, each entry applied to a table as it is proposed.

use super::*;
use crate::core::testing::{Rig, assignment, create, unlink};
use crate::table::refusal;
use holdfast_common::Term;
use holdfast_proto::control::GroupMember;

/// A round in which everything succeeds; its steps.
fn round(upkeep: &mut Upkeep, rig: &mut Rig) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        let step = upkeep.next(&mut rig.view());
        match &step {
            Step::Propose(op) => {
                let answer = rig.apply_own(op.clone());
                upkeep.proposed(Some(&answer), &mut rig.view());
            }
            Step::AskGroups(request) => upkeep.groups_given(Ok(groups(request)), &rig.view()),
            Step::Report => {}
            Step::Rest => return steps,
        }
        steps.push(step);
    }
}

fn groups(request: &AllocateGroupsRequest) -> Vec<Group> {
    let members = || (1..=6).map(|disk| GroupMember { disk, node: 100 + disk }).collect();
    let ids = request.first_group..request.first_group + u64::from(request.count);
    ids.map(|group| Group { group, members: members(), capacity_bytes: 32 << 30 }).collect()
}

fn names(steps: &[Step]) -> Vec<&'static str> {
    let name = |step: &Step| match step {
        Step::Propose(Op::Configure(_)) => "configure",
        Step::Propose(Op::RaiseFeatureLevel(_)) => "level",
        Step::Propose(Op::SetGroupState(_)) => "switch",
        Step::Propose(Op::AddGroups(_)) => "add",
        Step::Propose(Op::ExpireSessions(_)) => "expire",
        Step::Propose(Op::ReapOrphans(_)) => "reap",
        Step::Propose(Op::FreeDead(_)) => "free",
        Step::Propose(_) => "?",
        Step::AskGroups(_) => "ask",
        Step::Report => "report",
        Step::Rest => "rest",
    };
    steps.iter().map(name).collect()
}

#[test]
fn a_new_table_is_configured_raised_and_given_groups_in_one_round_and_that_is_reported() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::assigned());
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["configure", "level", "ask", "add", "report"]);
    assert_eq!(rig.table.capacity().open_bytes, SPARE_GROUP_BYTES);
    assert_eq!(rig.table.feature_level(), FEATURE_LEVEL);
    assert!(round(&mut upkeep, &mut rig).is_empty());
}

#[test]
fn without_an_assignment_a_table_that_has_no_entry_yet_is_left_alone() {
    let mut rig = Rig { term: Term(1), ..Rig::default() };
    assert!(round(&mut Upkeep::default(), &mut rig).is_empty());
}

#[test]
fn a_configuration_that_the_table_refuses_is_proposed_once() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::configured());
    round(&mut upkeep, &mut rig);
    rig.learn(TableAssignment { data_shards: 5, quota_bytes: 1, ..assignment() });
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["configure"]);
    assert!(round(&mut upkeep, &mut rig).is_empty());
    rig.learn(TableAssignment { quota_bytes: 1 << 40, ..assignment() });
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["configure"]);
    assert_eq!(rig.table.configuration().unwrap().quota_bytes, 1 << 40);
}

#[test]
fn groups_are_asked_for_again_only_after_a_pause_and_that_pause_ends_with_success() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::assigned());
    assert!(matches!(upkeep.next(&mut rig.view()), Step::Propose(Op::Configure(_))));
    let answer = rig.apply_own(Op::Configure(configure(&assignment())));
    upkeep.proposed(Some(&answer), &mut rig.view());
    assert!(matches!(upkeep.next(&mut rig.view()), Step::Propose(Op::RaiseFeatureLevel(_))));
    upkeep.proposed(None, &mut rig.view());
    let Step::AskGroups(asked) = upkeep.next(&mut rig.view()) else { panic!() };
    assert_eq!((asked.count, asked.first_group, asked.incarnation), (2, 1, 1));
    upkeep.groups_given(Err("dead"), &rig.view());
    assert_eq!(upkeep.next(&mut rig.view()), Step::Rest);
    rig.now_ms = GROUPS_RETRY_MS - 1;
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["level"]);
    rig.now_ms = GROUPS_RETRY_MS;
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["ask", "add", "report"]);
}

#[test]
fn a_silent_session_is_expired_and_one_that_keeps_alive_is_not() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::configured());
    let (silent, alive) = (rig.open_session(b"silent"), rig.open_session(b"alive"));
    round(&mut upkeep, &mut rig);
    while rig.now_ms < 33_000 {
        rig.now_ms += ROUND_INTERVAL_MS;
        rig.attendance.renew(holdfast_common::SessionId(alive), rig.now_ms);
        assert!(round(&mut upkeep, &mut rig).is_empty(), "at {} ms", rig.now_ms);
    }
    rig.now_ms += ROUND_INTERVAL_MS;
    let expired = round(&mut upkeep, &mut rig);
    assert_eq!(expired, [Step::Propose(Op::ExpireSessions(ExpireSessions { sessions: vec![silent] }))]);
    assert_eq!(rig.table.sessions(), [holdfast_common::SessionId(alive)]);
}

#[test]
fn orphans_are_reaped_in_batches_and_only_those_that_nobody_has_open() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::configured());
    let session = rig.open_session(b"a");
    round(&mut upkeep, &mut rig);
    let kept = rig.mutate(session, create(b"f", true)).attr.unwrap().inode;
    rig.mutate(session, unlink(b"f"));
    for _ in 0..ORPHANS_PER_ENTRY_MAX + 4 {
        rig.mutate(session, create(b"f", false));
        rig.mutate(session, unlink(b"f"));
    }
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["reap", "reap"]);
    assert_eq!(rig.table.orphans(InodeId(0), 9), [InodeId(kept)]);
    rig.attendance.keep_alive(holdfast_common::SessionId(session), &[kept], None, 0);
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["reap"]);
    assert!(rig.table.orphans(InodeId(0), 9).is_empty());
}

#[test]
fn what_may_have_been_reaped_stays_closed_until_it_is_known_to_be_gone() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::configured());
    let session = rig.open_session(b"a");
    round(&mut upkeep, &mut rig);
    let inode = rig.mutate(session, create(b"f", false)).attr.unwrap().inode;
    rig.mutate(session, unlink(b"f"));
    let step = upkeep.next(&mut rig.view());
    assert_eq!(names(&[step]), ["reap"]);
    upkeep.proposed(None, &mut rig.view());
    assert_eq!(upkeep.next(&mut rig.view()), Step::Rest);
    let session = holdfast_common::SessionId(session);
    assert!(!rig.attendance.open(session, InodeId(inode), 0));
    assert_eq!(names(&round(&mut upkeep, &mut rig)), ["reap"]);
    assert!(rig.attendance.open(session, InodeId(inode), 0), "forgotten once it is gone");
}

#[test]
fn a_full_group_is_closed_before_groups_are_asked_for() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::configured());
    round(&mut upkeep, &mut rig);
    let tiny = BlockGroup { capacity_bytes: 0, ..crate::core::testing::group(3) };
    rig.apply_own(Op::AddGroups(AddGroups { groups: vec![tiny] }));
    let steps = round(&mut upkeep, &mut rig);
    let full = SetGroupState { group: 3, state: GroupState::GroupFull.into() };
    assert_eq!(steps, [Step::Propose(Op::SetGroupState(full))]);
}

#[test]
fn a_refused_addition_of_groups_is_not_repeated_at_once() {
    let (mut upkeep, mut rig) = (Upkeep::default(), Rig::assigned());
    loop {
        match upkeep.next(&mut rig.view()) {
            Step::Propose(Op::AddGroups(_)) => upkeep.proposed(Some(&refusal(Code::Invalid)), &mut rig.view()),
            Step::Propose(op) => {
                let answer = rig.apply_own(op);
                upkeep.proposed(Some(&answer), &mut rig.view());
            }
            Step::AskGroups(request) => upkeep.groups_given(Ok(groups(&request)), &rig.view()),
            Step::Report => panic!("nothing was added"),
            Step::Rest => break,
        }
    }
    assert!(round(&mut upkeep, &mut rig).is_empty());
}
