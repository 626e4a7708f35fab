//! Three replicas with their real cores and logs, over disks that forget, a network that loses, doubles, delays and
//! reorders, and clocks that drift; they are killed and cut off, and their disks fill up, while clients write and read. One
//! thread, one seed, one outcome. `HOLDFAST_SEED=n` runs one seed alone, `HOLDFAST_SEEDS=n` that many.
//!
//! Checked all along: one leader a term; one command and one state an index, on every replica, in every life; a read sees
//! everything acknowledged or read before it began. Checked at the end, when all is healed: the replicas agree, every
//! acknowledged command is at the index it was acknowledged for, and no command that was refused for certain ever happened.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::{LogIndex, NodeId, RaftGroupId, Random, Term};

use crate::Sabotage;
use crate::outbox::GroupMessage;
use crate::status::{GroupStatus, ProposeError, Role};
use crate::stepped::AdmissionOut;
use ledger::Ledger;
use replica::Replica;

mod ledger;
mod replica;
mod sabotage;

/// Raft group that clients use.
const GROUP: RaftGroupId = RaftGroupId(7);
/// Raft group that nobody uses, whose records pin the log.
const IDLE_GROUP: RaftGroupId = RaftGroupId(9);
const REPLICAS: u64 = 3;
const MS: u64 = 1_000_000;
const TICK_NS: u64 = 100 * MS;
/// Durations of time with faults, and of time to heal.
const FAULTS_NS: u64 = 25_000 * MS;
const HEALING_NS: u64 = 20_000 * MS;
/// Time without new writes and reads at the end.
const CALM_NS: u64 = 8_000 * MS;

/// Something that happens at a time.
pub(super) enum Event {
    Tick {
        node: u64,
        life: u64,
    },
    /// The driver looks at its inputs.
    Wake {
        node: u64,
        life: u64,
    },
    /// A sync that began returns.
    Synced {
        node: u64,
        life: u64,
    },
    /// A job of the worker ends.
    Worked {
        node: u64,
        life: u64,
    },
    Message {
        from: u64,
        life: u64,
        to: u64,
        message: GroupMessage,
    },
    Snapshot {
        from: u64,
        to: u64,
        message: GroupMessage,
        bytes: Vec<u8>,
    },
    Write,
    Read,
    Fault,
    /// A leader that was cut off from one follower loses the other, which just heard from it, to a short restart.
    Depose {
        leader: u64,
        follower: u64,
    },
    Restart {
        node: u64,
    },
    /// A replica that lost its disks asks for what it has not got back yet.
    Recover {
        node: u64,
        life: u64,
    },
    Admit {
        from: u64,
        generation: u64,
        to: u64,
        group: RaftGroupId,
    },
    Admitted {
        to: u64,
        out: AdmissionOut,
    },
}

/// Everything seen so far, which nothing later may contradict.
#[derive(Default)]
struct Truth {
    leaders: BTreeMap<Term, u64>,
    commands: BTreeMap<LogIndex, Vec<u8>>,
    acknowledged: BTreeMap<u64, LogIndex>,
    refused: BTreeSet<u64>,
    /// Highest index that was told to a client.
    visible: LogIndex,
    /// Index that a read must see, by read that was not answered.
    reads: BTreeMap<u64, LogIndex>,
    /// Digest of the state, by index of the last command in it.
    digests: BTreeMap<LogIndex, u64>,
    reads_done: u64,
    leases_used: u64,
    snapshots_installed: u64,
    recoveries: u64,
}

pub(super) struct World {
    pub(super) random: Random,
    sabotage: Sabotage,
    pub(super) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    replicas: BTreeMap<u64, Replica>,
    /// Pairs that cannot talk, by sender and receiver.
    cut: BTreeSet<(u64, u64)>,
    loss_percent: u64,
    truth: Truth,
    next_command: u64,
    no_writes_until: u64,
    next_read: u64,
    pub(super) healing: bool,
}

impl World {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut random = Random::new(seed);
        let loss_percent = random.below(4) * 5;
        let mut world = Self {
            random,
            sabotage,
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            replicas: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss_percent,
            truth: Truth::default(),
            next_command: 1,
            no_writes_until: 0,
            next_read: 1,
            healing: false,
        };
        for node in 1..=REPLICAS {
            let replica = Replica::new(node, sabotage, &mut world.random);
            world.replicas.insert(node, replica);
            world.start(node);
        }
        for event in [Event::Write, Event::Read, Event::Fault] {
            world.after(500 * MS, event);
        }
        world
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.events.insert((self.now + delay, self.next_event), event);
        self.next_event += 1;
    }

    fn run(&mut self) {
        while self.now < FAULTS_NS + HEALING_NS {
            let ((at, _), event) = self.events.pop_first().expect("ticks never end");
            self.now = at;
            if at >= FAULTS_NS && !self.healing {
                self.healing = true;
                self.loss_percent = 0;
                self.cut.clear();
                self.replicas.values().for_each(Replica::make_room);
            }
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Write => self.write(),
            Event::Read => self.read(),
            Event::Fault => self.fault(),
            Event::Depose { leader, follower } => self.depose(leader, follower),
            Event::Restart { node } => self.start(node),
            Event::Message { from, life, to, message } => {
                self.with(to, |replica, world| replica.message(NodeId(from), life, message, world));
            }
            Event::Recover { node, life } => self.with_life(node, life, Replica::recover),
            Event::Admit { from, generation, to, group } => {
                self.with(to, |replica, world| replica.admit(NodeId(from), generation, group, world));
            }
            Event::Admitted { to, out } => self.with(to, |replica, world| replica.admitted(&out, world)),
            Event::Snapshot { from, to, message, bytes } => {
                self.with(to, |replica, world| replica.snapshot_arrives(NodeId(from), message, &bytes, world));
            }
            Event::Tick { node, life } => self.with_life(node, life, Replica::tick),
            Event::Wake { node, life } => self.with_life(node, life, Replica::wake),
            Event::Synced { node, life } => self.with_life(node, life, Replica::synced),
            Event::Worked { node, life } => self.with_life(node, life, Replica::worked),
        }
    }

    /// Lets a living replica do something; a disk that dies under it kills it.
    fn with(&mut self, node: u64, action: impl FnOnce(&mut Replica, &mut Self) -> std::io::Result<()>) {
        let mut replica = self.replicas.remove(&node).expect("replicas are always there");
        if replica.lives() && action(&mut replica, self).is_err() {
            self.kill(&mut replica);
        }
        self.replicas.insert(node, replica);
    }

    fn with_life(&mut self, node: u64, life: u64, action: impl FnOnce(&mut Replica, &mut Self) -> std::io::Result<()>) {
        if self.replicas[&node].life == life {
            self.with(node, action);
        }
    }

    fn start(&mut self, node: u64) {
        self.with_dead(node, |replica, world| {
            // Half of the time the machine dies once more while it starts.
            if !world.healing && world.random.below(2) == 0 {
                let operations = world.random.below(40);
                replica.die_after(operations);
            }
            if replica.start_somehow(world).is_err() {
                world.kill(replica);
            }
        });
    }

    fn with_dead(&mut self, node: u64, action: impl FnOnce(&mut Replica, &mut Self)) {
        let mut replica = self.replicas.remove(&node).expect("replicas are always there");
        action(&mut replica, self);
        self.replicas.insert(node, replica);
    }

    fn kill(&mut self, replica: &mut Replica) {
        replica.kill(&mut self.random);
        let longest = if self.random.below(3) == 0 { 100 } else { 3_000 };
        let delay = if self.healing { 0 } else { self.random.below(longest) * MS };
        self.after(delay, Event::Restart { node: replica.node });
    }

    fn fault(&mut self) {
        if self.healing {
            return;
        }
        self.replicas.values().for_each(Replica::make_room);
        let node = 1 + self.random.below(REPLICAS);
        match self.draw_fault() {
            0 | 1 => self.with(node, |_, _| Err(std::io::Error::other("killed"))),
            2 => {
                let operations = self.random.below(30);
                self.replicas[&node].die_after(operations);
            }
            3 => self.cut = (1..=REPLICAS).flat_map(|other| [(node, other), (other, node)]).collect(),
            5 => {
                let (leader, other) = (self.some_node(), 1 + node % REPLICAS);
                self.cut = [(leader, other), (other, leader)].into();
                let follower = (1..=REPLICAS).find(|id| ![leader, other].contains(id)).expect("three replicas");
                let delay = 800 * MS + self.random.below(1_500) * MS;
                // The one cut off must not fall behind, or nobody would vote for it.
                self.no_writes_until = self.now + delay;
                self.after(delay, Event::Depose { leader, follower });
            }
            6 => self.replicas[&node].fail_sync(),
            8 => self.replicas[&node].fill_disks(),
            9.. => self.wipe(node),
            4 => {
                let other = 1 + self.random.below(REPLICAS);
                self.cut.insert((node, other));
            }
            _ => self.cut.clear(),
        }
        let delay = 200 * MS + self.random.below(2_500) * MS;
        self.after(delay, Event::Fault);
    }

    /// A replica's disks are gone, and new ones come. Not of two at once: what a majority forgets is lost.
    fn wipe(&mut self, node: u64) {
        if self.replicas.values().all(Replica::is_whole) {
            self.with(node, |_, _| Err(std::io::Error::other("killed")));
            self.with_dead(node, |replica, _| replica.wipe());
        }
    }

    fn depose(&mut self, leader: u64, follower: u64) {
        if !self.healing {
            self.cut.extend([(leader, follower), (follower, leader)]);
            self.with(follower, |_, _| Err(std::io::Error::other("killed")));
        }
    }

    fn write(&mut self) {
        if self.now < self.no_writes_until {
            return self.again(Event::Write);
        }
        let node = self.some_node();
        let command = self.next_command;
        self.next_command += 1;
        self.with(node, |replica, world| replica.propose(command, world));
        self.again(Event::Write);
    }

    fn read(&mut self) {
        let node = self.some_node();
        let read = self.next_read;
        self.next_read += 1;
        self.truth.reads.insert(read, self.truth.visible);
        self.with(node, |replica, world| replica.read(read, world));
        self.again(Event::Read);
    }

    fn again(&mut self, event: Event) {
        let delay = self.random.below(60) * MS;
        if self.now + delay < FAULTS_NS + HEALING_NS - CALM_NS {
            self.after(delay, event);
        }
    }

    /// Mostly who believes to lead; somebody who wrongly does is welcome.
    fn some_node(&mut self) -> u64 {
        let leaders: Vec<u64> = self.replicas.values().filter(|r| r.leads()).map(|r| r.node).collect();
        if leaders.is_empty() || self.random.below(5) == 0 {
            return 1 + self.random.below(REPLICAS);
        }
        leaders[self.random.index(leaders.len())]
    }

    /// Sends over the network.
    pub(super) fn send(&mut self, from: u64, life: u64, to: u64, messages: &[GroupMessage]) {
        for message in messages {
            let copies = if self.random.below(100) < 3 { 2 } else { 1 };
            for _ in 0..copies {
                if let Some(delay) = self.transit(from, to) {
                    self.after(delay, Event::Message { from, life, to, message: message.clone() });
                }
            }
        }
    }

    /// Time that a message takes, if it gets there.
    pub(super) fn transit(&mut self, from: u64, to: u64) -> Option<u64> {
        let lost = self.cut.contains(&(from, to)) || self.random.below(100) < self.loss_percent;
        let slow = self.random.below(20) == 0;
        let delay = MS / 10 + self.random.below(if slow { 400 * MS } else { 5 * MS });
        (!lost).then_some(delay)
    }

    /// A replica applied a command.
    pub(super) fn applied(&mut self, node: u64, index: LogIndex, command: &[u8]) {
        let known = self.truth.commands.entry(index).or_insert_with(|| command.to_vec());
        assert_eq!(known, command, "replica {node} applied another command at {index}");
    }

    /// A client was answered.
    pub(super) fn answered(&mut self, command: u64, answer: Result<LogIndex, ProposeError>) {
        match answer {
            Ok(index) => {
                assert_eq!(self.truth.commands[&index], command.to_le_bytes(), "acknowledged at {index}");
                assert_eq!(self.truth.acknowledged.insert(command, index), None, "{command} acknowledged twice");
                self.truth.visible = self.truth.visible.max(index);
            }
            Err(ProposeError::Unknown) => {}
            Err(_) => drop(self.truth.refused.insert(command)),
        }
    }

    /// A client read a state.
    pub(super) fn read_answered(&mut self, node: u64, read: u64, applied: LogIndex, leased: bool) {
        // One under the lease was answered at once, and the turn says it again.
        let Some(must_see) = self.truth.reads.remove(&read) else { return };
        assert!(
            applied >= must_see,
            "read {read} at {node} saw {applied}, {must_see} was visible before (lease: {leased})"
        );
        self.truth.visible = self.truth.visible.max(applied);
        self.truth.reads_done += 1;
        self.truth.leases_used += u64::from(leased);
    }

    /// Whether a node has what was on its disks; of one that is not looked at right now.
    pub(super) fn is_whole(&self, node: u64) -> bool {
        self.replicas.get(&node).is_none_or(Replica::is_whole)
    }

    /// One of the others, for who does not know whether it leads.
    pub(super) fn another_node(&mut self, than: u64) -> u64 {
        1 + (than + self.random.below(REPLICAS - 1)) % REPLICAS
    }

    pub(super) fn status(&mut self, node: u64, status: &GroupStatus) {
        assert_eq!(status.stopped, None, "replica {node} stopped");
        if status.role == Role::Leader {
            let leader = *self.truth.leaders.entry(status.term).or_insert(node);
            assert_eq!(leader, node, "two leaders in term {}", status.term);
        }
    }

    /// A replica's state holds all commands up to one.
    pub(super) fn digest(&mut self, node: u64, applied: LogIndex, digest: u64) {
        let known = *self.truth.digests.entry(applied).or_insert(digest);
        assert_eq!(known, digest, "replica {node} has another state at {applied}");
    }

    pub(super) fn recovered(&mut self) {
        self.truth.recoveries += 1;
    }

    pub(super) fn installed(&mut self) {
        self.truth.snapshots_installed += 1;
    }

    fn conclude(&mut self) -> Summary {
        let ledgers: Vec<&Ledger> = self.replicas.values().map(Replica::ledger).collect();
        let commands = &self.truth.commands;
        for ledger in &ledgers {
            assert_eq!(ledger.ids, ledgers[0].ids, "the replicas differ");
        }
        let ids: Vec<u64> = commands.values().filter_map(|command| Ledger::id(command)).collect();
        assert_eq!(ids, ledgers[0].ids, "the replicas do not hold what was committed");
        let happened: BTreeSet<u64> = ids.iter().copied().collect();
        assert_eq!(happened.len(), ids.len(), "a command happened twice");
        for (command, index) in &self.truth.acknowledged {
            assert_eq!(commands[index], command.to_le_bytes(), "{command} was acknowledged at {index}");
        }
        let wrong: Vec<_> = self.truth.refused.intersection(&happened).collect();
        assert!(wrong.is_empty(), "refused for certain, yet happened: {wrong:?}");
        Summary {
            acknowledged: self.truth.acknowledged.len() as u64,
            reads: self.truth.reads_done,
            leased: self.truth.leases_used,
            installed: self.truth.snapshots_installed,
            recovered: self.truth.recoveries,
            elections: self.truth.leaders.len() as u64,
            lives: self.replicas.values().map(|r| r.life).sum(),
        }
    }
}

#[derive(Default, Debug)]
struct Summary {
    acknowledged: u64,
    reads: u64,
    leased: u64,
    installed: u64,
    recovered: u64,
    elections: u64,
    lives: u64,
}

fn simulate(seed: u64, sabotage: Sabotage) -> Summary {
    let mut world = World::new(seed, sabotage);
    world.run();
    world.conclude()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn replicas_agree_whatever_happens_to_disks_network_and_clocks() {
    let (first, count) = match number("HOLDFAST_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("HOLDFAST_SEEDS").unwrap_or(150)),
    };
    let mut total = Summary::default();
    for seed in first..first + count {
        println!("seed {seed}");
        let summary = simulate(seed, Sabotage::None);
        assert!(summary.acknowledged > 20 && summary.reads > 20, "seed {seed} did next to nothing: {summary:?}");
        total.acknowledged += summary.acknowledged;
        total.reads += summary.reads;
        total.leased += summary.leased;
        total.installed += summary.installed;
        total.recovered += summary.recovered;
        total.elections += summary.elections;
        total.lives += summary.lives;
    }
    println!("{count} seeds: {total:?}");
    if count >= 100 {
        assert!(total.recovered > 20, "{total:?}");
        assert!(total.installed > 0 && total.leased > 0 && total.reads > total.leased, "{total:?}");
    }
}
