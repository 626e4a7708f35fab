//! Nodes whose disk is full.

use std::collections::VecDeque;

use super::*;
use holdfast_storage::simulated::Faults;

/// A shelf of boxes: `+` puts one up, with all the bytes behind it, `-` alone takes the oldest one off. Answers with their count.
#[derive(Clone, Default)]
pub(super) struct Shelf(VecDeque<Bytes>);

impl StateMachine for Shelf {
    fn apply(&mut self, _: LogIndex, command: &[u8]) -> Result<Bytes, Broken> {
        match command.split_first() {
            Some((b'+', content)) => self.0.push_back(Bytes::copy_from_slice(content)),
            Some((b'-', [])) => drop(self.0.pop_front()),
            _ => {}
        }
        Ok(Bytes::copy_from_slice(&self.0.len().to_le_bytes()))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(self.clone())
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|error| Broken(error.to_string()))?;
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
            let _ = rest.split_to(2);
            self.0.push_back(rest.split_to(length));
        }
        Ok(())
    }

    fn frees(command: &[u8]) -> bool {
        command.starts_with(b"-")
    }
}

impl Snapshot for Shelf {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|content| {
            to.write_all(&u16::try_from(content.len()).unwrap().to_le_bytes())?;
            to.write_all(content)
        })
    }
}

/// A node whose log and snapshots share a disk.
pub(super) struct Site {
    pub(super) id: u64,
    disk: SimulatedDisk,
    pub(super) node: SteppedNode<Shelf>,
    next_ticket: u64,
    answers: BTreeMap<u64, Result<Bytes, ProposeError>>,
    shipped: Vec<SnapshotOut>,
    pub(super) admitted: Vec<(u64, Result<AdmissionOut, AdmissionError>)>,
}

fn options(id: u64) -> SteppedOptions {
    SteppedOptions { segment_bytes: 16 << 10, log_bytes_max: 128 << 10, ..SteppedOptions::small(NodeId(id), id) }
}

fn try_open(id: u64, disk: &SimulatedDisk) -> Result<SteppedNode<Shelf>, OpenError> {
    let (log, snapshots) = (disk.root().directory("log").unwrap(), disk.root().directory("snapshots").unwrap());
    SteppedNode::open(options(id), log, snapshots, |_| Shelf::default())
}

impl Site {
    fn new(id: u64, capacity_bytes: u64, voters: &[NodeId]) -> Self {
        let disk = SimulatedDisk::new(id);
        disk.set_capacity(capacity_bytes);
        ["log", "snapshots"].iter().for_each(|name| disk.root().make_directory(name).unwrap());
        disk.root().sync_names().unwrap();
        let mut node = try_open(id, &disk).unwrap();
        node.create_group(GROUP, voters).unwrap();
        Self { id, disk, node, next_ticket: 1, answers: BTreeMap::new(), shipped: Vec::new(), admitted: Vec::new() }
    }

    /// Takes the room that is left.
    fn take_all_room(&self) {
        let space = self.disk.root().space().unwrap();
        self.disk.set_capacity(space.total_bytes - 2 * space.available_bytes);
    }

    /// Turns until it has to wait; says what is to be sent.
    fn settle(&mut self, now_ns: u64) -> Vec<(NodeId, GroupMessage)> {
        let mut messages = Vec::new();
        while self.node.has_work() || (self.node.is_syncing() && !self.node.waits_to_write()) {
            let turn = if self.node.has_work() { self.node.turn(now_ns) } else { self.node.synced() }.unwrap();
            assert_eq!(turn.broken, []);
            self.answers.extend(turn.proposals);
            self.shipped.extend(turn.snapshots);
            self.admitted.extend(turn.admitted);
            let sent = turn.messages.into_iter();
            messages.extend(sent.flat_map(|(to, list)| list.into_iter().map(move |message| (to, message))));
            self.node.write_snapshot();
        }
        messages
    }

    fn tick(&mut self, now_ns: u64) -> Vec<(NodeId, GroupMessage)> {
        if self.node.waits_to_write() {
            let turn = self.node.synced().unwrap();
            self.answers.extend(turn.proposals);
            assert!(turn.messages.is_empty() || !self.node.waits_to_write());
        }
        self.node.tick();
        let mut messages = self.settle(now_ns);
        while self.node.write_snapshot() {
            messages.extend(self.settle(now_ns));
        }
        messages
    }

    pub(super) fn ask(&mut self, command: &[u8]) -> u64 {
        self.next_ticket += 1;
        self.node.propose(GROUP, Bytes::copy_from_slice(command), self.next_ticket);
        self.next_ticket
    }

    /// Proposes on a node that is alone.
    fn propose(&mut self, command: &[u8]) -> Result<Bytes, ProposeError> {
        let ticket = self.ask(command);
        self.settle(1);
        self.tick(1);
        self.answers.remove(&ticket).expect("answered at once")
    }

    fn restart(&mut self) {
        // Nothing lives over it.
        self.disk.lose_unsynced();
        self.node = try_open(self.id, &self.disk).unwrap();
        self.tick(1);
    }

    fn snapshot_files(&self) -> usize {
        let names = self.disk.root().directory("snapshots").unwrap().list().unwrap();
        names.iter().filter(|name| name.ends_with(".snap")).count()
    }

    fn boxes(&self) -> usize {
        self.node.state(GROUP).unwrap().0.len()
    }
}

pub(super) fn put() -> Vec<u8> {
    let mut command = vec![7; 2 << 10];
    command[0] = b'+';
    command
}

/// Puts boxes up until they are refused; says how many there are.
fn fill_up(site: &mut Site) -> usize {
    for _ in 0..10_000 {
        match site.propose(&put()) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error, ProposeError::NoSpace);
                return site.boxes();
            }
        }
    }
    panic!("the disk never gets full");
}

#[test]
fn a_full_disk_refuses_what_grows_serves_deletes_starts_again_and_heals_by_room() {
    let mut site = Site::new(1, 2 << 20, &[NodeId(1)]);
    let full = fill_up(&mut site);
    assert!(full > 100, "{full}");
    site.take_all_room();
    assert_eq!(site.propose(&put()), Err(ProposeError::NoSpace));
    // More entries than the log has room for without recycling.
    for taken in 1..=40 {
        site.propose(b"-").unwrap();
        assert_eq!(site.boxes(), full - taken);
    }
    (0..600).for_each(|_| drop(site.propose(b"-but the shelf keeps its boxes: this is an old name").unwrap()));
    let left = site.boxes();
    for life in 0..4 {
        site.restart();
        assert_eq!(site.boxes(), left - 5 * life);
        assert_eq!(site.propose(&put()), Err(ProposeError::NoSpace));
        (0..5).for_each(|_| drop(site.propose(b"-").unwrap()));
    }
    site.disk.set_capacity(64 << 20);
    site.tick(1);
    site.propose(&put()).unwrap();
    site.restart();
    assert_eq!(site.boxes(), left - 20 + 1);
}

/// A snapshot that finds no room takes the one that is kept for it.
#[test]
fn deleting_alone_makes_a_full_disk_usable_again() {
    let mut site = Site::new(1, 2 << 20, &[NodeId(1)]);
    let full = fill_up(&mut site);
    site.take_all_room();
    for _ in 0..full {
        site.propose(b"-").unwrap();
    }
    // Snapshots of the smaller state give their room back.
    (0..400).for_each(|_| drop(site.propose(b"-").unwrap()));
    assert_eq!(site.boxes(), 0);
    site.propose(&put()).unwrap();
}

pub(super) struct Trio {
    pub(super) sites: Vec<Site>,
    now_ns: u64,
    /// One whose process is down: it neither ticks nor hears.
    pub(super) down: Option<usize>,
}

impl Trio {
    fn new() -> Self {
        let voters = [1, 2, 3].map(NodeId);
        Self { sites: (1..=3).map(|id| Site::new(id, 64 << 20, &voters)).collect(), now_ns: 1, down: None }
    }

    pub(super) fn round(&mut self) {
        self.now_ns += TICK_NS;
        let down = self.down;
        for from in (0..3).filter(|place| Some(*place) != down) {
            let sent = self.sites[from].tick(self.now_ns);
            self.carry(from, sent);
        }
        for from in (0..3).filter(|place| Some(*place) != down).cycle().take(12) {
            let sent = self.sites[from].settle(self.now_ns);
            self.carry(from, sent);
        }
    }

    fn carry(&mut self, from: usize, sent: Vec<(NodeId, GroupMessage)>) {
        let place = |to: NodeId| usize::try_from(to.0).unwrap() - 1;
        let sender = NodeId(from as u64 + 1);
        for (to, message) in sent.into_iter().filter(|(to, _)| Some(place(*to)) != self.down) {
            self.sites[place(to)].node.deliver(sender, message);
        }
        for out in std::mem::take(&mut self.sites[from].shipped) {
            let is_up = Some(place(out.to)) != self.down;
            if is_up {
                self.sites[place(out.to)].node.deliver_snapshot(sender, out.message, &out.bytes);
            }
            self.sites[from].node.report_snapshot(GROUP, out.to, is_up);
        }
    }

    /// Rounds until there is a leader.
    pub(super) fn elected() -> (Self, usize) {
        let mut trio = Self::new();
        while trio.leader().is_none() {
            trio.round();
        }
        let leader = trio.leader().unwrap();
        (trio, leader)
    }

    pub(super) fn leader(&self) -> Option<usize> {
        self.sites.iter().position(|site| site.node.status(GROUP).is_some_and(|status| status.role == Role::Leader))
    }
}

#[test]
fn a_follower_with_a_full_disk_lags_and_the_group_goes_on() {
    let (mut trio, leader) = Trio::elected();
    let follower = (leader + 1) % 3;
    trio.sites[follower].disk.set_capacity(0);
    let mut tickets = Vec::new();
    for _ in 0..120 {
        tickets.push(trio.sites[leader].ask(&put()));
        trio.round();
    }
    assert!(trio.sites[follower].node.waits_to_write());
    assert!(trio.sites[follower].boxes() < trio.sites[leader].boxes());
    assert!(tickets.iter().all(|ticket| trio.sites[leader].answers[ticket].is_ok()), "a majority has room");
    trio.sites[follower].disk.set_capacity(64 << 20);
    (0..100).for_each(|_| trio.round());
    assert!(!trio.sites[follower].node.waits_to_write());
    assert_eq!(trio.sites[follower].boxes(), 120);
}

/// It says ENOSPC to nobody: its disk has room.
#[test]
fn a_node_without_a_file_descriptor_waits_and_goes_on_with_all_that_it_acknowledged() {
    let mut site = Site::new(1, 64 << 20, &[NodeId(1)]);
    site.propose(&put()).unwrap();
    site.disk.set_descriptors(0);
    let mut tickets = Vec::new();
    for _ in 0..40 {
        tickets.push(site.ask(&put()));
        site.settle(1);
        site.tick(1);
    }
    assert!(site.node.waits_to_write() && !site.node.is_failed());
    assert!(site.answers.values().all(Result::is_ok));
    let answered = tickets.iter().filter(|ticket| site.answers.contains_key(ticket)).count();
    assert!(answered < 20 && site.boxes() == 1 + answered, "{answered}");
    site.disk.set_descriptors(usize::MAX);
    for _ in 0..40 {
        site.tick(1);
    }
    assert!(!site.node.waits_to_write());
    assert!(tickets.iter().all(|ticket| site.answers[ticket].is_ok()));
    site.restart();
    assert_eq!(site.boxes(), 41);
}

/// Segments, spares, snapshots and the room that is kept for them.
#[test]
fn whatever_meets_a_missing_file_descriptor_is_tried_again_and_stops_nothing() {
    for seed in 0..3 {
        let mut site = Site::new(seed + 1, 64 << 20, &[NodeId(seed + 1)]);
        site.disk.set_faults(Faults { no_descriptor_ppm: 500_000, ..Faults::default() });
        let mut tickets = Vec::new();
        for round in 0..150 {
            let command = if round % 4 == 0 { b"-".to_vec() } else { put() };
            tickets.push(site.ask(&command));
            site.settle(1);
            site.tick(1);
        }
        assert!(site.disk.counts().no_descriptor > 20);
        while site.node.waits_to_write() {
            site.tick(1);
        }
        site.disk.set_faults(Faults::default());
        (0..40).for_each(|_| drop(site.tick(1)));
        assert!(tickets.iter().all(|ticket| site.answers[ticket].is_ok()), "seed {seed}");
        assert_eq!(site.snapshot_files(), 1, "seed {seed}: it is written at last, and nothing of those before is left");
        let boxes = site.boxes();
        site.restart();
        assert_eq!(site.boxes(), boxes);
        site.propose(&put()).unwrap();
    }
}
