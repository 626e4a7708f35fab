//! The collector's decisions, on a table of one group whose disks 11 to 16 list what the test says.

use super::*;
use crate::core::testing::{Rig, VOLUME, assignment, commit_of, create, group};
use holdfast_common::{Incarnation, NodeId, Term};
use holdfast_proto::control::{Endpoint, HeartbeatResponse};
use holdfast_proto::meta::{AddGroups, Configure, ForgetChunks, RaiseFeatureLevel, ReserveChunks, SetAttr};

const SECRET: ClusterSecret = ClusterSecret([3; 32]);
const FLOOR_DELAY_MS: u64 = 120_000;
const MARK_INTERVAL_MS: u64 = 10_000;
const RIPE_MS: u64 = FLOOR_DELAY_MS + MARK_INTERVAL_MS;

/// A leader, its table and the disks.
struct World {
    rig: Rig,
    collector: Collector,
    session: u64,
    inode: u64,
    /// Shards by disk, each chunk, number and nonce.
    shards: BTreeMap<u64, BTreeSet<(u64, u32, u64)>>,
    floors: BTreeMap<u64, u64>,
    silent: BTreeSet<u64>,
    /// Disks asked, and for what.
    asked: Vec<(u64, &'static str)>,
    /// Entries of the leader's own.
    entries: Vec<Op>,
    page_shards: usize,
}

impl World {
    fn new(sabotage: Sabotage) -> Self {
        Self::at_level(2, sabotage)
    }

    fn at_level(level: u32, sabotage: Sabotage) -> Self {
        let mut rig = Rig::assigned();
        let name = assignment().name;
        let configure = Configure { volume: 7, incarnation: 1, data_shards: 4, parity_shards: 2, quota_bytes: 0, name };
        rig.apply_own(Op::Configure(configure));
        rig.apply_own(Op::RaiseFeatureLevel(RaiseFeatureLevel { level }));
        rig.apply_own(Op::AddGroups(AddGroups { groups: vec![group(1)] }));
        rig.table.break_rule(sabotage);
        let session = rig.open_session(b"a");
        let inode = rig.mutate(session, create(b"f", false)).attr.unwrap().inode;
        let mut collector = Collector::new(Patience::default(), sabotage);
        collector.follow(Term(1));
        let (shards, floors, silent) = Default::default();
        let (asked, entries, page_shards) = (vec![], vec![], 3);
        let mut world = Self { rig, collector, session, inode, shards, floors, silent, asked, entries, page_shards };
        (101..=106).for_each(|node| world.heard(node, true));
        world
    }

    /// A heartbeat's answer tells of a datanode.
    fn heard(&mut self, node: u64, alive: bool) {
        let nodes = vec![Endpoint { node, address: format!("there:{node}"), alive, ..Default::default() }];
        self.rig.known.learn(&HeartbeatResponse { nodes, ..Default::default() }, 0);
    }

    fn reserve(&mut self, count: u32) -> u64 {
        self.rig.mutate(self.session, Op::ReserveChunks(ReserveChunks { count })).first_chunk
    }

    /// The shards of a chunk are on their disks, with this nonce.
    fn put(&mut self, chunk: u64, nonce: u64) {
        for (shard, disk) in [(0, 11), (1, 14), (2, 16)] {
            self.shards.entry(disk).or_default().insert((chunk, shard, nonce));
        }
    }

    fn commit(&mut self, chunk: u64) -> i32 {
        let commit = commit_of(self.inode, chunk, chunk * 9);
        self.rig.mutate(self.session, Op::Commit(commit)).commits[0].code
    }

    fn truncate(&mut self) {
        let op = SetAttr { inode: self.inode, size_bytes: Some(0), ..SetAttr::default() };
        self.rig.mutate(self.session, Op::SetAttr(op));
    }

    fn chunks_on(&self, disk: u64) -> Vec<u64> {
        self.shards.get(&disk).into_iter().flatten().map(|(chunk, ..)| *chunk).collect()
    }

    /// Rounds, one a second.
    fn run(&mut self, for_ms: u64) {
        let end_ms = self.rig.now_ms + for_ms;
        while self.rig.now_ms < end_ms {
            self.round();
            self.rig.now_ms += ROUND_INTERVAL_MS;
        }
    }

    fn round(&mut self) {
        loop {
            match self.collector.next(&self.rig.view(), &SECRET) {
                Step::Propose(op) => {
                    self.entries.push(op.clone());
                    let answer = self.rig.apply_own(op);
                    self.collector.proposed(Some(&answer), &self.rig.view());
                }
                Step::Ask(questions) => {
                    assert!(questions.len() <= DISKS_AT_ONCE);
                    for (member, question) in questions {
                        assert_eq!(member.0.0, member.1.0 + 90);
                        let answer = self.answer(member.1.0, question);
                        self.collector.answered(member, answer, &self.rig.view());
                    }
                }
                Step::Barrier => assert!(self.collector.barred(true, &self.rig.view())),
                Step::Wait => panic!("nothing is under way"),
                Step::Rest => return,
            }
        }
    }

    fn answer(&mut self, disk: u64, question: Question) -> Option<Answer> {
        let (what, answer) = match question {
            Question::SetFloor(request) => ("floor", self.set_floor(disk, &request)),
            Question::List(request) => ("list", self.list(disk, &request)),
            Question::Delete(request) => ("delete", self.delete(disk, &request)),
        };
        self.asked.push((disk, what));
        (!self.silent.contains(&disk)).then_some(answer)
    }

    fn set_floor(&mut self, disk: u64, request: &SetFloorRequest) -> Answer {
        let mac = &request.proof.as_ref().unwrap().mac;
        assert!(SECRET.verify(VOLUME, Incarnation(1), Claim::SetFloor(ChunkId(request.floor)), mac));
        self.floors.insert(disk, request.floor);
        Answer::FloorSet(SetFloorResponse::default())
    }

    fn list(&self, disk: u64, request: &ListShardsRequest) -> Answer {
        let shards = self.shards.get(&disk).into_iter().flatten();
        let mut shards: Vec<_> = shards.filter(|(chunk, ..)| *chunk > request.after_chunk).collect();
        let end = shards.len() <= self.page_shards;
        shards.truncate(self.page_shards);
        let summary = |(chunk, shard, nonce): &(u64, u32, u64)| ShardSummary {
            chunk: *chunk,
            shard: *shard,
            nonce: *nonce,
            ..ShardSummary::default()
        };
        Answer::Listed(ListShardsResponse { status: 0, shards: shards.into_iter().map(summary).collect(), end })
    }

    fn delete(&mut self, disk: u64, request: &DeleteShardsRequest) -> Answer {
        assert!(request.disk == disk && request.chunks.is_empty() && !request.shards.is_empty());
        let names = request.shards.iter().map(|name| ShardName {
            chunk: ChunkId(name.chunk),
            shard: u8::try_from(name.shard).unwrap(),
            nonce: Nonce(name.nonce),
        });
        let names: Vec<_> = names.collect();
        let mac = &request.proof.as_ref().unwrap().mac;
        assert!(SECRET.verify(VOLUME, Incarnation(1), Claim::DeleteShards(&[], &names), mac));
        for name in &request.shards {
            assert!(self.shards.get_mut(&disk).unwrap().remove(&(name.chunk, name.shard, name.nonce)));
        }
        Answer::Deleted(DeleteShardsResponse::default())
    }

    fn asked(&mut self) -> Vec<(u64, &'static str)> {
        std::mem::take(&mut self.asked)
    }
}

#[test]
fn the_floor_follows_where_ids_were_two_deadlines_ago_by_the_leaders_own_clock() {
    let mut world = World::new(Sabotage::None);
    world.reserve(10);
    world.run(FLOOR_DELAY_MS);
    assert!(world.entries.is_empty());
    world.reserve(10);
    world.run(MARK_INTERVAL_MS);
    assert_eq!(world.entries, [Op::RaiseFloor(RaiseFloor { floor: 11 })]);
    world.run(FLOOR_DELAY_MS);
    assert_eq!(world.entries.last(), Some(&Op::RaiseFloor(RaiseFloor { floor: 21 })));
}

#[test]
fn the_floor_is_raised_once_a_minute_at_most_and_never_when_nothing_was_given_out() {
    let mut world = World::new(Sabotage::None);
    for _ in 0..60 {
        world.reserve(1);
        world.run(MARK_INTERVAL_MS);
    }
    assert!((7..=8).contains(&world.entries.len()), "{:?}", world.entries);
    world.run(2 * FLOOR_DELAY_MS);
    world.entries.clear();
    world.asked();
    world.run(10 * FLOOR_DELAY_MS);
    assert_eq!((world.entries.len(), world.asked()), (0, vec![]), "an idle volume does nothing");
}

#[test]
fn a_new_leader_begins_without_marks_and_compares_below_the_floor_there_is() {
    let mut world = World::new(Sabotage::None);
    world.reserve(10);
    world.put(3, 7);
    world.run(RIPE_MS);
    assert!(world.chunks_on(11).is_empty());
    world.reserve(10);
    world.run(FLOOR_DELAY_MS / 2);
    world.entries.clear();
    world.asked();
    world.collector.follow(Term(2));
    world.put(4, 7);
    world.run(1_000);
    assert!(world.chunks_on(14).is_empty() && world.floors[&14] == 11);
    world.run(FLOOR_DELAY_MS - 2_000);
    assert!(world.entries.is_empty());
    world.run(MARK_INTERVAL_MS);
    assert_eq!(world.entries, [Op::RaiseFloor(RaiseFloor { floor: 21 })]);
}

#[test]
fn orphans_go_and_what_the_table_places_stays_over_several_pages() {
    let mut world = World::new(Sabotage::None);
    let first = world.reserve(20);
    for chunk in first..first + 20 {
        world.put(chunk, 1);
        if chunk % 3 == 0 {
            assert_eq!(world.commit(chunk), 0);
        }
    }
    // Another attempt under the name of a committed chunk, as a burnt id leaves it on one disk.
    world.shards.entry(12).or_default().insert((3, 0, 9));
    world.run(RIPE_MS);
    let committed: Vec<u64> = (first..first + 20).filter(|chunk| chunk % 3 == 0).collect();
    assert_eq!([11, 14, 16].map(|disk| world.chunks_on(disk)), [(); 3].map(|()| committed.clone()));
    assert!(world.chunks_on(12).is_empty());
    assert_eq!(world.floors.keys().copied().collect::<Vec<_>>(), (11..=16).collect::<Vec<_>>());
}

#[test]
fn what_is_at_or_above_the_floor_is_left_alone() {
    let mut world = World::new(Sabotage::None);
    world.reserve(5);
    world.run(MARK_INTERVAL_MS / 2);
    let late = world.reserve(5);
    (5..=10).for_each(|chunk| world.put(chunk, 1));
    world.page_shards = 100;
    world.run(FLOOR_DELAY_MS);
    assert_eq!((late, world.floors[&11]), (6, 6));
    assert_eq!(world.chunks_on(11), [6, 7, 8, 9, 10]);
}

/// A chunk is committed right at the floor: after it was proposed, before it is applied.
#[test]
fn a_chunk_committed_right_before_the_floors_entry_is_seen_and_one_after_it_is_refused() {
    let mut world = World::new(Sabotage::None);
    world.reserve(2);
    (1..=2).for_each(|chunk| world.put(chunk, 1));
    world.rig.now_ms = 0;
    world.round();
    world.rig.now_ms = FLOOR_DELAY_MS;
    let Step::Propose(op) = world.collector.next(&world.rig.view(), &SECRET) else { panic!() };
    assert_eq!(op, Op::RaiseFloor(RaiseFloor { floor: 3 }));
    assert_eq!(world.commit(1), 0);
    let answer = world.rig.apply_own(op);
    world.collector.proposed(Some(&answer), &world.rig.view());
    assert_eq!(world.commit(2), i32::from(Code::RewriteChunk));
    world.run(5_000);
    assert_eq!([11, 14, 16].map(|disk| world.chunks_on(disk)), [[1], [1], [1]]);
}

/// A page is looked up in the table as it is after the page was read.
#[test]
fn a_page_waits_for_a_barrier_and_goes_on_in_the_next_round_without_one() {
    let mut world = World::new(Sabotage::None);
    world.reserve(2);
    world.put(1, 1);
    world.round();
    world.rig.now_ms = FLOOR_DELAY_MS;
    let Step::Propose(op) = world.collector.next(&world.rig.view(), &SECRET) else { panic!() };
    let answer = world.rig.apply_own(op);
    world.collector.proposed(Some(&answer), &world.rig.view());
    for what in ["floor", "list"] {
        let Step::Ask(questions) = world.collector.next(&world.rig.view(), &SECRET) else { panic!("{what}") };
        for (member, question) in questions {
            assert_eq!(world.collector.next(&world.rig.view(), &SECRET), Step::Wait);
            let answer = world.answer(member.1.0, question);
            world.collector.answered(member, answer, &world.rig.view());
        }
    }
    assert_eq!(world.collector.next(&world.rig.view(), &SECRET), Step::Barrier);
    assert!(!world.collector.barred(false, &world.rig.view()));
    assert_eq!(world.chunks_on(11), [1]);
    world.run(3_000);
    assert!(world.chunks_on(11).is_empty());
}

#[test]
fn a_freed_chunk_counts_as_placed_until_it_is_forgotten() {
    let scenario = |sabotage| {
        let mut world = World::new(sabotage);
        let chunk = world.reserve(1);
        world.put(chunk, 1);
        assert_eq!(world.commit(chunk), 0);
        world.truncate();
        world.run(RIPE_MS);
        world.chunks_on(11)
    };
    assert_eq!(scenario(Sabotage::None), [1]);
    assert!(scenario(Sabotage::FreedChunksOrphaned).is_empty());
}

#[test]
fn a_disk_that_does_not_answer_is_tried_with_growing_pauses_and_holds_nobody_up() {
    let mut world = World::new(Sabotage::None);
    world.reserve(2);
    world.put(1, 1);
    world.silent.insert(11);
    world.run(RIPE_MS + 400_000);
    assert_eq!((world.chunks_on(11), world.chunks_on(14)), (vec![1], vec![]));
    let tries = world.asked().iter().filter(|(disk, _)| *disk == 11).count();
    assert!((10..=14).contains(&tries), "{tries}");
    world.silent.clear();
    world.run(61_000);
    assert!(world.chunks_on(11).is_empty());
}

#[test]
fn a_disk_whose_node_was_away_is_compared_again_when_it_returns_and_not_before() {
    let mut world = World::new(Sabotage::None);
    world.reserve(2);
    world.run(RIPE_MS);
    world.asked();
    world.heard(101, false);
    world.put(1, 1);
    world.run(300_000);
    assert!(world.asked().is_empty());
    world.heard(101, true);
    world.run(2_000);
    assert!(world.asked().iter().all(|(disk, _)| *disk == 11));
    assert_eq!((world.chunks_on(11), world.chunks_on(14)), (vec![], vec![1]), "only this one was away");
}

#[test]
fn what_a_disk_owes_is_settled_by_an_entry_once_it_was_compared() {
    let mut world = World::new(Sabotage::None);
    let chunk = world.reserve(1);
    world.put(chunk, 1);
    assert_eq!(world.commit(chunk), 0);
    world.truncate();
    world.run(RIPE_MS);
    world.entries.clear();
    world.rig.apply_own(Op::ForgetChunks(ForgetChunks { chunks: vec![chunk], disks: vec![11] }));
    world.run(2_000);
    assert_eq!(world.entries, [Op::Swept(Swept { disk: 11, floor: 2, owed_entries: 1 })]);
    assert_eq!((world.chunks_on(11), world.rig.table.owed(DiskId(11))), (vec![], None));
}

/// Interleaving: a shard is left because its chunk is not forgotten; it is forgotten; the comparison ends.
#[test]
fn what_was_forgotten_meanwhile_is_compared_once_more() {
    let mut world = World::new(Sabotage::None);
    world.reserve(2);
    for chunk in [1, 2] {
        world.put(chunk, 1);
        assert_eq!(world.commit(chunk), 0);
    }
    world.truncate();
    world.run(RIPE_MS);
    world.rig.apply_own(Op::ForgetChunks(ForgetChunks { chunks: vec![2], disks: vec![11] }));
    let ask = |world: &mut World| loop {
        match world.collector.next(&world.rig.view(), &SECRET) {
            Step::Ask(questions) => {
                for (member, question) in questions {
                    let answer = world.answer(member.1.0, question);
                    world.collector.answered(member, answer, &world.rig.view());
                }
            }
            Step::Barrier => return assert!(world.collector.barred(true, &world.rig.view())),
            other => panic!("{other:?}"),
        }
    };
    ask(&mut world);
    world.rig.apply_own(Op::ForgetChunks(ForgetChunks { chunks: vec![1], disks: vec![11] }));
    world.run(5_000);
    assert_eq!((world.chunks_on(11), world.rig.table.owed(DiskId(11))), (vec![], None));
}

#[test]
fn before_all_replicas_know_level_2_nothing_is_proposed_and_nobody_asked() {
    let mut world = World::at_level(1, Sabotage::None);
    world.reserve(2);
    world.put(1, 1);
    world.run(3 * FLOOR_DELAY_MS);
    assert!(world.entries.is_empty() && world.asked().is_empty());
}

#[test]
fn pages_that_make_no_sense_and_unknown_statuses_end_the_visit() {
    let visit = Visit { floor: ChunkId(9), owed_entries: 0, stage: Stage::List(None) };
    let page = |chunks: &[u64], end| {
        let shards = chunks.iter().map(|chunk| ShardSummary { chunk: *chunk, ..Default::default() }).collect();
        ListShardsResponse { status: 0, shards, end }
    };
    assert_eq!(visit.page(ChunkId(5), page(&[5], false)), None);
    assert_eq!(visit.page(ChunkId(5), page(&[], false)), None);
    assert_eq!(visit.page(ChunkId(5), page(&[], true)), Some(Stage::LookUp(vec![], None)));
    assert!(matches!(visit.page(ChunkId(5), page(&[6, 7], false)), Some(Stage::LookUp(_, Some(ChunkId(7))))));
    assert!(matches!(visit.page(ChunkId(5), page(&[6, 9], false)), Some(Stage::LookUp(_, None))));
    assert!((1..100).all(|status| !is_ok(status)));
}

/// Each rule that a simulation may break is broken by it.
#[test]
fn a_sabotaged_collector_meets_writers_and_deletes_what_they_commit() {
    let floor_at_once = |sabotage| {
        let mut world = World::new(sabotage);
        world.reserve(5);
        world.run(1_000);
        world.rig.table.floor()
    };
    assert_eq!([Sabotage::None, Sabotage::FloorAtPresentId].map(floor_at_once), [ChunkId(0), ChunkId(6)]);
    let kept = |sabotage| {
        let mut world = World::new(sabotage);
        world.reserve(2);
        world.put(1, 1);
        world.run(MARK_INTERVAL_MS / 2);
        assert_eq!(world.commit(1), 0);
        world.run(RIPE_MS);
        world.chunks_on(11)
    };
    assert_eq!([Sabotage::None, Sabotage::LookedUpBeforePage].map(kept), [vec![1], vec![]]);
    let node = NodeId(101);
    assert!(World::new(Sabotage::None).rig.known.is_well(node, DiskId(11)));
}
