//! Placement against random clusters, and the cases with names.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Broken promise of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Violation {
    /// Not one member for each shard.
    Width,
    /// A disk twice.
    SameDisk(DiskId),
    /// A disk that is none of the candidates, or under another node.
    UnknownDisk(DiskId),
    /// `crowded` has two members more than `idle`, which has a disk left.
    Crowded { crowded: NodeId, idle: NodeId },
}

/// Checks what every placement promises: the width, distinct disks, and as even over the nodes as their disks allow.
/// `candidates` are those that were to choose from: the living ones if they suffice.
fn check_group(candidates: &[Candidate], width: usize, members: &[Member]) -> Result<(), Violation> {
    if members.len() != width {
        return Err(Violation::Width);
    }
    let mut used = BTreeSet::new();
    for member in members {
        if !candidates.iter().any(|c| c.disk == member.disk && c.node == member.node) {
            return Err(Violation::UnknownDisk(member.disk));
        }
        if !used.insert(member.disk) {
            return Err(Violation::SameDisk(member.disk));
        }
    }
    let count = |node: NodeId| members.iter().filter(|m| m.node == node).count();
    for idle in candidates.iter().filter(|c| !used.contains(&c.disk)) {
        if let Some(crowded) = members.iter().find(|m| count(m.node) >= count(idle.node) + 2) {
            return Err(Violation::Crowded { crowded: crowded.node, idle: idle.node });
        }
    }
    Ok(())
}

fn cluster() -> impl Strategy<Value = Vec<Candidate>> {
    let disk = (0u64..4, 0u64..(8 << 40), 0u64..50, proptest::bool::weighted(0.9));
    proptest::collection::vec((1u64..9, disk), 1..24).prop_map(|disks| {
        disks
            .into_iter()
            .zip(1..)
            .map(|((node, (_, free_bytes, groups_count, alive)), disk)| Candidate {
                disk: DiskId(disk),
                node: NodeId(node),
                free_bytes,
                groups_count,
                alive: alive || node == 1,
            })
            .collect()
    })
}

/// Candidates that a placement chooses from.
fn choice(candidates: &[Candidate], width: usize) -> Vec<Candidate> {
    let alive: Vec<_> = candidates.iter().copied().filter(|c| c.alive).collect();
    if alive.len() >= width { alive } else { candidates.to_vec() }
}

fn even(disks: u64, free_bytes: u64) -> Vec<Candidate> {
    (1..=disks)
        .map(|d| Candidate { disk: DiskId(d), node: NodeId(100 + d), free_bytes, groups_count: 0, alive: true })
        .collect()
}

proptest! {
    #[test]
    fn every_placement_passes_its_check(candidates in cluster(), width in 2usize..14, group in 1u64..1_000_000) {
        match place_group(&candidates, width, GroupId(group)) {
            Ok(members) => {
                let from = choice(&candidates, width);
                if from.iter().all(|c| c.alive) {
                    prop_assert_eq!(check_group(&from, width, &members), Ok(()));
                } else {
                    // Every living disk is in it, however crowded their nodes get.
                    for c in candidates.iter().filter(|c| c.alive) {
                        prop_assert!(members.iter().any(|m| m.disk == c.disk));
                    }
                }
            }
            Err(error) => prop_assert!(error.have < width),
        }
    }

    #[test]
    fn groups_follow_free_space(first in 1u64..1000) {
        // Nine nodes, one of them three times as large: it carries about three times the groups of another.
        let mut candidates = even(9, 1 << 40);
        candidates[0].free_bytes = 3 << 40;
        let groups = place_groups(candidates, 3, GroupId(first), 440).expect("nine disks are enough");
        let of_disk = |d: u64| groups.iter().filter(|(_, m)| m.iter().any(|x| x.disk == DiskId(d))).count();
        let (large, small) = (of_disk(1), of_disk(2));
        prop_assert!(large * 10 >= small * 28 && large * 10 <= small * 32, "{large} against {small}");
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let candidates = even(4, 1);
    let member = |d: u64| Member { disk: DiskId(d), node: NodeId(100 + d) };
    assert_eq!(check_group(&candidates, 3, &[member(1), member(2)]), Err(Violation::Width));
    assert_eq!(check_group(&candidates, 3, &[member(1), member(2), member(1)]), Err(Violation::SameDisk(DiskId(1))));
    assert_eq!(check_group(&candidates, 3, &[member(1), member(2), member(9)]), Err(Violation::UnknownDisk(DiskId(9))));
    let mut same_node = candidates;
    same_node[0].node = NodeId(102);
    let crowded = [Member { disk: DiskId(1), node: NodeId(102) }, member(2), member(3)];
    assert_eq!(
        check_group(&same_node, 3, &crowded),
        Err(Violation::Crowded { crowded: NodeId(102), idle: NodeId(104) })
    );
}

#[test]
fn six_disks_of_six_nodes_give_every_slot_to_every_disk_in_turn() {
    let groups = place_groups(even(6, 1 << 30), 6, GroupId(1), 36).expect("six disks");
    let first_slots: BTreeSet<DiskId> = groups.iter().map(|(_, members)| members[0].disk).collect();
    assert_eq!(first_slots.len(), 6, "{groups:?}");
}

#[test]
fn a_dead_node_is_left_out_while_there_are_others_and_taken_when_there_are_not() {
    let mut candidates = even(7, 1 << 30);
    candidates[2].alive = false;
    let members = place_group(&candidates, 6, GroupId(1)).expect("six living");
    assert!(members.iter().all(|m| m.disk != DiskId(3)));
    let members = place_group(&candidates, 7, GroupId(1)).expect("seven in all");
    assert!(members.iter().any(|m| m.disk == DiskId(3)));
    assert_eq!(place_group(&candidates, 8, GroupId(1)), Err(TooFew { width: 8, have: 7 }));
}

#[test]
fn tables_go_to_the_living_metanodes_with_the_fewest() {
    let on = |node: u64, tables_count, alive| TableCandidate { node: NodeId(node), tables_count, alive };
    let four = [on(1, 5, true), on(2, 1, true), on(3, 0, false), on(4, 2, true)];
    assert_eq!(place_table(&four), [NodeId(2), NodeId(4), NodeId(1)]);
    assert_eq!(place_table(&four[..2]), [NodeId(2)]);
    assert_eq!(place_table(&[]), []);
    let two_dead = [on(1, 0, true), on(2, 0, false), on(3, 0, false)];
    assert_eq!(place_table(&two_dead), [], "a table without a majority cannot start");
}
