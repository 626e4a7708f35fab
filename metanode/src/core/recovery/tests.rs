//! Whom a recovering metanode asks, and what it makes of the answers.

use super::*;
use holdfast_proto::control::{Endpoint, Node};
use holdfast_proto::raft::{Missing, OtherLeader};

const ME: NodeId = NodeId(1);

fn volume(id: u64, replicas: &[u64], state: VolumeState) -> Volume {
    let replica = |node: &u64| Endpoint { node: *node, address: format!("h:{node}"), ..Endpoint::default() };
    Volume {
        volume: id,
        incarnation: 4,
        name: format!("v{id}"),
        state: state.into(),
        metanodes: replicas.iter().map(replica).collect(),
        leader_node: 3,
        ..Volume::default()
    }
}

fn table() -> Needed {
    needed(&[volume(9, &[1, 2, 3], VolumeState::Active)], ME).remove(0)
}

fn admitted() -> Admitted {
    Admitted { leader: 3, term: 5, index: 10, snapshot_bytes: 6, transfer: 1 }
}

#[test]
fn tables_that_are_assigned_here_are_needed_unless_their_volume_goes() {
    let volumes = [
        volume(7, &[1, 2, 3], VolumeState::Creating),
        volume(8, &[2, 3, 4], VolumeState::Active),
        volume(9, &[1, 2, 3], VolumeState::Deleting),
    ];
    let needed = needed(&volumes, ME);
    assert_eq!(needed.iter().map(|table| table.volume.0).collect::<Vec<_>>(), [7]);
    assert_eq!(needed[0].others, [(NodeId(2), "h:2".to_owned()), (NodeId(3), "h:3".to_owned())].into());
}

#[test]
fn only_a_majority_of_others_can_bring_a_replica_back() {
    let hopeless = |replicas: &[u64]| needed(&[volume(9, replicas, VolumeState::Active)], ME)[0].is_hopeless();
    assert!(hopeless(&[1]) && hopeless(&[1, 2]));
    assert!(!hopeless(&[1, 2, 3]) && !hopeless(&[1, 2, 3, 4, 5]));
}

#[test]
fn an_old_copy_another_cluster_and_a_living_twin_do_not_come_back() {
    let node = |alive, generation| Node {
        node: 1,
        role: Role::Metanode.into(),
        address: "h:1".to_owned(),
        alive,
        generation,
        ..Node::default()
    };
    let cluster = |nodes| Cluster { cluster: "c".to_owned(), nodes, volumes_count: 0 };
    assert_eq!(standing(&cluster(vec![node(false, 6)]), "c", ME, 6), Standing::Free);
    assert_eq!(standing(&cluster(vec![node(true, 6)]), "c", ME, 6), Standing::Heard("h:1".to_owned()));
    let refused = |cluster, ours| matches!(standing(&cluster, ours, ME, 6), Standing::Refused(_));
    assert!(refused(cluster(vec![node(false, 7)]), "c"), "a later start is known");
    assert!(refused(cluster(vec![node(false, 6)]), "d"), "another cluster");
    assert!(refused(cluster(vec![]), "c"), "nobody knows it");
    assert!(refused(cluster(vec![Node { role: Role::Datanode.into(), ..node(false, 6) }]), "c"));
}

#[test]
fn who_is_said_to_lead_is_asked_first_and_each_once() {
    let table = table();
    let mut asking = Asking::new(table.clone());
    assert_eq!(asking.next(), Some(NodeId(3)), "as the volume manager said");
    assert_eq!(asking.heard(NodeId(3), Heard::LedBy(Some(NodeId(3)))), None);
    assert_eq!(asking.next(), Some(NodeId(2)));
    assert_eq!(asking.heard(NodeId(2), Heard::LedBy(Some(NodeId(3)))), None);
    assert_eq!(asking.next(), None, "it was asked: the next round asks anew");
    let mut asking = Asking::new(table);
    asking.next();
    assert_eq!(asking.heard(NodeId(3), Heard::Admitted(admitted())), Some(admitted()));
}

#[test]
fn what_is_waited_for_is_said() {
    let table = table();
    let said = |first, second| {
        let mut asking = Asking::new(table.clone());
        asking.heard(NodeId(2), first);
        asking.heard(NodeId(3), second);
        asking.waits().to_string()
    };
    let silent = said(Heard::Silent("refused".to_owned()), Heard::LedBy(None));
    let expected = "volume 'v9' waits: every other replica of its table must run; node 2 at h:2 does not answer (refused); \
                    node 3 knows no leader";
    assert_eq!(silent, expected);
    let missing = said(Heard::LedBy(Some(NodeId(3))), Heard::Missing(vec![NodeId(2), NodeId(4)]));
    assert!(missing.ends_with("; node 3, which leads, waits for node 2 and node 4"), "{missing}");
}

#[test]
fn an_answer_is_taken_for_what_it_says() {
    let heard = |outcome| Heard::of(AdmitAnswer { outcome }, NodeId(3));
    assert_eq!(heard(Some(Outcome::Admitted(admitted()))), Heard::Admitted(admitted()));
    let other = Admitted { leader: 2, ..admitted() };
    assert!(matches!(heard(Some(Outcome::Admitted(other))), Heard::Refused(_)), "of another leader");
    assert_eq!(heard(Some(Outcome::OtherLeader(OtherLeader { node: 0 }))), Heard::LedBy(None));
    let missing = Missing { nodes: vec![2] };
    assert_eq!(heard(Some(Outcome::Missing(missing))), Heard::Missing(vec![NodeId(2)]));
    assert!(matches!(heard(None), Heard::Refused(_)), "of a later build");
}

#[test]
fn a_snapshot_is_fetched_in_pieces_that_are_whole() {
    let mut fetching = Fetching::new(&admitted());
    assert_eq!(fetching.next(), Some(0));
    fetching.take(true, crc32c(b"abcd"), b"abcd").unwrap();
    assert_eq!(fetching.next(), Some(4));
    assert!(fetching.take(false, 0, b"").is_err(), "the leader has forgotten it");
    assert!(fetching.take(true, 1, b"ef").is_err(), "damaged");
    assert!(fetching.take(true, crc32c(b""), b"").is_err(), "nothing");
    assert!(fetching.take(true, crc32c(b"efg"), b"efg").is_err(), "too much");
    fetching.take(true, crc32c(b"ef"), b"ef").unwrap();
    assert_eq!(fetching.next(), None);
}
