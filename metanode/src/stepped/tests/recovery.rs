//! What the callers of a stepped metanode rely on that lost its log.

use super::super::*;
use super::world::{CLUSTER, VOLUME, World};
use super::{create, lookup, open_session};
use holdfast_common::InodeId;
use holdfast_proto::control::{Cluster, Endpoint, Node, Role, Volume};

const LOST: u64 = 2;

fn cluster(alive: bool, generation: u64) -> Cluster {
    let node = Node { node: LOST, role: Role::Metanode.into(), alive, generation, ..Node::default() };
    Cluster { cluster: CLUSTER.to_string(), nodes: vec![node], volumes_count: 1 }
}

fn volume() -> Volume {
    let replica = |node| Endpoint { node, ..Endpoint::default() };
    Volume { volume: VOLUME.0, incarnation: 1, metanodes: (1..=3).map(replica).collect(), ..Volume::default() }
}

/// Answers the present question as the world does; `None` if there is nothing more to ask.
fn answer(world: &mut World, recovery: &SteppedRecovery) -> Option<Answer> {
    Some(match recovery.question() {
        Question::Cluster => Answer::Cluster(Some(cluster(false, 1))),
        Question::Volumes => Answer::Volumes(Some(vec![volume()])),
        Question::Admit { node, .. } if !world.nodes.contains_key(&node.0) => Answer::Admit(None),
        Question::Admit { node, request } => {
            let ticket = world.ask(node.0, |ticket| Event::Admit { ticket, request });
            world.until("an answer", |world| world.admitted.contains_key(&ticket));
            Answer::Admit(world.admitted.remove(&ticket))
        }
        Question::Piece { node, request } => {
            let ticket = world.ask(node.0, |ticket| Event::AdmittedPiece { ticket, request });
            world.pump();
            Answer::Piece(world.pieces.remove(&ticket))
        }
        Question::Pause => {
            (0..10).for_each(|_| world.step());
            Answer::Paused
        }
        Question::Nothing => return None,
    })
}

#[test]
fn a_metanode_without_its_log_comes_back_with_what_was_acknowledged_and_no_sooner() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    world.kill(LOST);
    let created = world.mutate(session, create(b"f", false));
    world.kill(3);
    let mut recovery = world.recovery(LOST);
    for _ in 0..12 {
        let answer = answer(&mut world, &recovery).expect("another replica is dead");
        recovery.answered(answer).unwrap();
    }
    world.start(3);
    while let Some(answer) = answer(&mut world, &recovery) {
        recovery.answered(answer).unwrap();
    }
    drop(recovery);
    world.start(LOST);
    assert!(world.table(LOST).lookup(InodeId(1), b"f").is_ok());
    world.kill(1);
    world.until("a leader", |world| world.leader().is_some());
    assert_eq!(world.read(session, lookup(b"f")).attr, created.attr);
}

#[test]
fn a_metanode_comes_back_once_the_volume_manager_hears_it_no_more_and_never_as_an_older_start() {
    let mut world = World::new(Sabotage::None);
    world.kill(LOST);
    let mut recovery = world.recovery(LOST);
    recovery.answered(Answer::Cluster(Some(cluster(true, 1)))).unwrap();
    assert_eq!(recovery.question(), Question::Pause);
    recovery.answered(Answer::Cluster(Some(cluster(false, 1)))).unwrap();
    assert_eq!(recovery.question(), Question::Pause, "an answer to another question");
    recovery.answered(Answer::Paused).unwrap();
    assert_eq!(recovery.question(), Question::Cluster);
    assert!(recovery.answered(Answer::Cluster(Some(cluster(false, 3)))).is_err());
}
