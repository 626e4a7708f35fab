//! What the callers of a stepped metanode rely on.

mod recovery;
mod world;

use super::*;
use crate::core::testing::{commit_of, create, unlink};
use crate::machine::raft_group;
use holdfast_common::{ChunkId, InodeId, Random};
use holdfast_proto::data::ShardSummary;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{GetAttr, KeepAlive, Lookup, OpenSession, ReserveChunks, SetAttr, read_request};
use world::{VOLUME, World};

fn open_session(world: &mut World) -> u64 {
    let op = OpenSession { client_key: b"a"[..].into(), description: String::new() };
    world.mutate(0, Op::OpenSession(op)).session
}

fn lookup(name: &'static [u8]) -> read_request::Op {
    read_request::Op::Lookup(Lookup { parent: 1, name: name.into() })
}

fn keep_alive(released: &[u64], open: Option<&[u64]>) -> read_request::Op {
    let (attach, open) = (open.is_some(), open.unwrap_or_default().to_vec());
    read_request::Op::KeepAlive(KeepAlive { released: released.to_vec(), attach, open, ..KeepAlive::default() })
}

/// A file of one chunk; its inode.
fn written_file(world: &mut World, session: u64) -> u64 {
    let inode = world.mutate(session, create(b"f", false)).attr.unwrap().inode;
    world.mutate(session, Op::ReserveChunks(ReserveChunks { count: 1 }));
    let committed = world.mutate(session, Op::Commit(commit_of(inode, 1, 0)));
    assert_eq!(committed.commits[0].code, 0);
    inode
}

#[test]
fn a_volume_is_made_and_answers_at_its_leader_whom_followers_name() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    let created = world.mutate(session, create(b"f", false));
    assert_eq!(world.read(session, lookup(b"f")).attr, created.attr);
    let leader = world.leader().unwrap();
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    let request = world.mutation(session, 99, create(b"g", false));
    let mutation = world.ask(follower, |ticket| Event::Mutate { ticket, request });
    let request = World::read_request(session, lookup(b"f"));
    let read = world.ask(follower, |ticket| Event::Read { ticket, request });
    world.pump();
    let named = format!("node-{leader}:1");
    assert_eq!((world.mutated[&mutation].code(), &world.mutated[&mutation].leader), (Code::NotLeader, &named));
    assert_eq!((world.reads[&read].code(), &world.reads[&read].leader), (Code::NotLeader, &named));
    world.until("all have it", |world| (1..=3).all(|node| world.table(node).lookup(InodeId(1), b"f").is_ok()));
}

#[test]
fn a_create_repeated_at_the_next_leader_happens_once_and_its_open_file_is_kept() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    let created = world.mutate(session, create(b"f", true));
    let inode = created.attr.unwrap().inode;
    let former = world.leader().unwrap();
    world.kill(former);
    assert_eq!(world.repeat(session, create(b"f", true)), created);
    assert_ne!(world.leader(), Some(former));
    assert!(world.read(session, keep_alive(&[], None)).attach_needed);
    world.mutate(session, unlink(b"f"));
    assert!(!world.read(session, keep_alive(&[], Some(&[inode]))).attach_needed);
    (0..40).for_each(|_| world.step());
    let attr = |world: &mut World| world.read(session, read_request::Op::GetAttr(GetAttr { inode })).code();
    assert_eq!(attr(&mut world), Code::Ok, "it is open");
    world.read(session, keep_alive(&[inode], None));
    (0..40).for_each(|_| world.step());
    assert_eq!(attr(&mut world), Code::Stale);
}

/// Interleaving: a create is applied, its inode loses its name, a round of upkeep sees the orphan, the create is answered.
#[test]
fn an_orphan_is_kept_while_the_create_that_opens_it_is_answered_late() {
    let is_kept = |sabotage| {
        let mut world = World::new(sabotage);
        let session = open_session(&mut world);
        let leader = world.leader().unwrap();
        let hold = |world: &mut World, holds| world.nodes.get_mut(&leader).unwrap().hold_creates(holds);
        hold(&mut world, true);
        world.sequence += 1;
        let request = world.mutation(session, world.sequence, create(b"f", true));
        let asked = world.ask(leader, |ticket| Event::Mutate { ticket, request });
        world.until("it is there", |world| world.table(leader).lookup(InodeId(1), b"f").is_ok());
        let inode = InodeId(world.table(leader).lookup(InodeId(1), b"f").unwrap().inode);
        world.mutate(session, unlink(b"f"));
        (0..40).for_each(|_| world.step());
        assert!(!world.mutated.contains_key(&asked), "it is held");
        hold(&mut world, false);
        world.until("it is answered", |world| world.mutated.contains_key(&asked));
        assert_eq!(world.mutated[&asked].attr.unwrap().inode, inode.0);
        (0..40).for_each(|_| world.step());
        world.table(leader).get_attr(inode).is_ok()
    };
    assert_eq!([Sabotage::None, Sabotage::ReapedUnderCreates].map(is_kept), [true, false]);
}

#[test]
fn what_was_answered_is_there_after_all_were_killed() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    let created = world.mutate(session, create(b"f", false));
    (1..=3).for_each(|node| world.kill(node));
    (1..=3).for_each(|node| world.start(node));
    world.until("a leader", |world| world.leader().is_some());
    assert_eq!(world.read(session, lookup(b"f")).attr, created.attr);
}

#[test]
fn a_freed_chunk_is_deleted_after_its_delay_and_forgotten_when_its_last_member_confirmed() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    let inode = written_file(&mut world, session);
    world.silent_disk = 4;
    let freed_ns = world.now_ns;
    world.mutate(session, Op::SetAttr(SetAttr { inode, size_bytes: Some(0), ..SetAttr::default() }));
    world.until("the deletion", |world| !world.deleted.is_empty());
    assert!(world.now_ns - freed_ns >= 10_000_000_000);
    assert_eq!(world.deleted, [(1, vec![1]), (4, vec![1]), (6, vec![1])]);
    let freed = |world: &World| world.table(world.leader().unwrap()).freed_chunks(i64::MAX, (0, ChunkId(0)), 9).len();
    (0..200).for_each(|_| world.step());
    assert_eq!(freed(&world), 1);
    assert!(world.deleted[3..].iter().all(|(disk, _)| *disk == 4), "the others have confirmed");
    world.silent_disk = 0;
    world.until("it is forgotten", |world| freed(world) == 0);
}

#[test]
fn a_silent_session_is_expired_and_one_that_keeps_alive_is_not() {
    let mut world = World::new(Sabotage::None);
    let silent = open_session(&mut world);
    let op = OpenSession { client_key: b"b"[..].into(), description: String::new() };
    let alive = world.mutate(0, Op::OpenSession(op)).session;
    for _ in 0..34 {
        assert_eq!(world.read(alive, keep_alive(&[], Some(&[]))).code(), Code::Ok);
        (0..20).for_each(|_| world.step());
    }
    assert_eq!(world.read(alive, keep_alive(&[], None)).code(), Code::Ok);
    assert_eq!(world.read(silent, keep_alive(&[], None)).code(), Code::SessionExpired);
}

#[test]
fn a_dropped_volume_is_gone_and_reported() {
    let mut world = World::new(Sabotage::None);
    world.drops_volume = true;
    world.until("all report it", |world| world.reports.values().all(|report| !report.dropped.is_empty()));
    let request = world.mutation(0, 1, create(b"f", false));
    let ticket = world.ask(1, |ticket| Event::Mutate { ticket, request });
    world.pump();
    assert_eq!(world.mutated[&ticket].code(), Code::NoSuchVolume);
    assert_eq!(world.nodes[&1].tables().count(), 0);
}

#[test]
fn a_request_that_was_given_up_is_not_answered_and_holds_up_nothing() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    let leader = world.leader().unwrap();
    world.cut = (1..=3).filter(|node| *node != leader).collect();
    let request = world.mutation(session, 50, create(b"f", true));
    let ticket = world.ask(leader, |ticket| Event::Mutate { ticket, request });
    world.ask(leader, |_| Event::GiveUp { ticket });
    world.pump();
    assert!(!world.nodes[&leader].waiting.values().any(|waiting| matches!(waiting, Waiting::Mutate { .. })));
    world.cut.clear();
    (0..100).for_each(|_| world.step());
    assert!(!world.mutated.contains_key(&ticket));
    world.sequence = 60;
    assert_eq!(world.mutate(session, unlink(b"f")).code(), Code::Ok, "it happened all the same");
    assert!(!world.read(session, keep_alive(&[], Some(&[]))).attach_needed);
    world.until("it is reaped", |world| world.table(world.leader().unwrap()).orphans(InodeId(0), 9).is_empty());
}

#[test]
fn a_leader_tells_the_disks_its_floor_and_deletes_what_nobody_committed_below_it() {
    let mut world = World::new(Sabotage::None);
    let session = open_session(&mut world);
    written_file(&mut world, session);
    world.mutate(session, Op::ReserveChunks(ReserveChunks { count: 1 }));
    // Disk 1 should hold shard 0 of chunk 1; what disks say beyond that is nobody's.
    let shard = |chunk, shard| ShardSummary { chunk, shard, nonce: 1, ..ShardSummary::default() };
    world.listed = vec![shard(1, 0), shard(2, 0), shard(3, 0)];
    (0..1_500).for_each(|_| world.step());
    world.until("the orphan is deleted on all disks", |world| {
        let on_all =
            (1..=6).all(|disk| world.deleted.iter().any(|(other, chunks)| *other == disk && chunks.contains(&2)));
        on_all && !world.floors.is_empty()
    });
    assert!(world.floors.iter().all(|floor| *floor == 3), "{:?}", world.floors);
    assert!(world.deleted.contains(&(1, vec![2])) && world.deleted.contains(&(2, vec![1, 2])), "{:?}", world.deleted);
}

#[test]
fn a_refused_node_says_nothing_any_more_and_the_others_go_on() {
    for sabotage in [Sabotage::None, Sabotage::RefusedServesOn] {
        let mut world = World::new(sabotage);
        let session = open_session(&mut world);
        let former = world.leader().unwrap();
        let request = World::read_request(session, lookup(b"f"));
        world.ask(former, |_| Event::Refused);
        let ticket = world.ask(former, |ticket| Event::Read { ticket, request });
        (0..100).for_each(|_| world.step());
        assert_eq!(world.reads.contains_key(&ticket), sabotage == Sabotage::RefusedServesOn);
        world.kill(former);
        assert_eq!(world.mutate(session, create(b"g", false)).code(), Code::Ok);
    }
}

#[test]
fn a_node_hears_no_older_start_of_another() {
    let mut world = World::new(Sabotage::None);
    let heard = |world: &mut World, generation| {
        let message = GroupMessage { group: raft_group(VOLUME), bytes: Bytes::from_static(b"rubbish") };
        world.ask(1, |_| Event::Raft { from: NodeId(2), generation, message });
        world.nodes[&1].has_work()
    };
    world.pump();
    assert!(heard(&mut world, 1));
    world.pump();
    assert!(!heard(&mut world, 0));
    world.nodes.get_mut(&1).unwrap().starts = Starts::sabotaged(Sabotage::OldStartsHeard);
    assert!(heard(&mut world, 0));
}

/// A leader that is cut off answers no read once others may have written, unless it is sabotaged.
#[test]
fn a_read_without_a_barrier_is_stale() {
    for (sabotage, stale) in [(Sabotage::None, false), (Sabotage::ReadsWithoutBarrier, true)] {
        let mut world = World::new(sabotage);
        let session = open_session(&mut world);
        let former = world.leader().unwrap();
        world.cut.insert(former);
        world.until("another leads", |world| world.leader().is_some());
        world.mutate(session, create(b"f", false));
        let request = World::read_request(session, lookup(b"f"));
        let ticket = world.ask(former, |ticket| Event::Read { ticket, request });
        world.pump();
        let said = world.reads.get(&ticket).map(|answer| answer.code());
        assert_eq!(said == Some(Code::NotFound), stale, "{sabotage:?}: {said:?}");
    }
}

#[test]
fn one_start_is_like_another() {
    let run = || {
        let mut world = World::new(Sabotage::None);
        let session = open_session(&mut world);
        written_file(&mut world, session);
        (world.now_ns, world.leader(), world.table(1).digest())
    };
    assert_eq!(run(), run());
}

/// Creates and unlinks while nodes are killed and cut off; what was answered must be so, and the leader's work go on.
fn disturbed(sabotage: Sabotage, seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::new(sabotage);
    let session = open_session(&mut world);
    let names: [&'static [u8]; 4] = [b"a", b"b", b"c", b"d"];
    let mut there = BTreeSet::new();
    for _ in 0..60 {
        world.disturb(&mut random);
        (0..random.below(8)).for_each(|_| world.step());
        // A majority comes back, so that the request is answered at all.
        let away = random.below(3) + 1;
        (1..=3).filter(|node| *node != away).for_each(|node| world.heal(node));
        let name = names[usize::try_from(random.below(4)).unwrap()];
        let (op, wanted) = match there.contains(name) {
            true => (unlink(name), there.remove(name)),
            false => (create(name, false), there.insert(name)),
        };
        let answer = world.mutate(session, op.clone());
        assert!(wanted && answer.code() == Code::Ok, "seed {seed}");
        if random.one_in(3) {
            // As if the answer had been lost, with its leader perhaps.
            world.disturb(&mut random);
            (1..=3).for_each(|node| world.heal(node));
            assert_eq!(world.repeat(session, op), answer, "seed {seed}");
        }
        if let Some(leader) = world.leader() {
            let request = World::read_request(session, keep_alive(&[], Some(&[])));
            world.ask(leader, |ticket| Event::Read { ticket, request });
        }
    }
    (1..=3).for_each(|node| world.heal(node));
    world.until("a leader", |world| world.leader().is_some());
    for name in names {
        assert_eq!(world.read(session, lookup(name)).code() == Code::Ok, there.contains(name), "seed {seed}");
    }
    world.read(session, keep_alive(&[], Some(&[])));
    world.until("orphans are reaped", |world| world.table(world.leader().unwrap()).orphans(InodeId(0), 9).is_empty());
    world.until("all replicas are alike", |world| (2..=3).all(|node| world.table(node) == world.table(1)));
}

#[test]
fn whatever_dies_what_was_answered_is_so_and_the_leaders_work_goes_on() {
    (0..12).for_each(|seed| disturbed(Sabotage::None, seed));
}

#[test]
#[should_panic(expected = "seed 0")]
fn a_table_that_forgets_its_replies_is_found_by_it() {
    disturbed(Sabotage::RepliesForgotten, 0);
}
