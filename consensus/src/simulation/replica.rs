//! A replica of the simulation: a stepped node with its disks and its clock, which a machine's death cuts off anywhere.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId, Random};
use holdfast_storage::{Directory, SimulatedDisk, simulated::Fault};

use super::ledger::Ledger;
use super::{Event, FAULTS_NS, GROUP, IDLE_GROUP, MS, REPLICAS, TICK_NS, World};
use crate::outbox::GroupMessage;
use crate::recovering::{RecoverError, Recovering};
use crate::status::{OpenError, Role};
use crate::stepped::{AdmissionOut, SteppedNode, SteppedOptions, Turn};
use crate::{Sabotage, StateMachine};

/// State that dies with the process.
enum Process {
    Serving(Box<Living>),
    Recovering(Box<Recovering>),
}

/// One that takes part.
struct Living {
    node: SteppedNode<Ledger>,
    /// A look at its inputs, a sync's end, or a job's end is to come.
    woken: bool,
    syncs: bool,
    works: bool,
}

pub(super) struct Replica {
    pub(super) node: u64,
    pub(super) life: u64,
    log_disk: SimulatedDisk,
    snapshot_disk: SimulatedDisk,
    /// Its clock: thousandths of the true rate, and an offset.
    rate: u64,
    offset: u64,
    sabotage: Sabotage,
    process: Option<Process>,
    /// Its disks were lost, and not all of what was on them is back.
    is_wiped: bool,
    /// Of nodes that lost their disks, the start from which on they are heard.
    heard: BTreeMap<NodeId, u64>,
    /// State before the process died, for the end.
    last: Ledger,
}

fn io_of(error: OpenError) -> io::Error {
    match error {
        OpenError::Io { source, .. } => source,
        error => panic!("{error}"),
    }
}

impl Replica {
    pub(super) fn new(node: u64, sabotage: Sabotage, random: &mut Random) -> Self {
        Self {
            node,
            life: 0,
            log_disk: SimulatedDisk::default(),
            snapshot_disk: SimulatedDisk::default(),
            rate: 980 + random.below(41),
            offset: random.below(1000) * MS,
            sabotage,
            process: None,
            is_wiped: false,
            heard: BTreeMap::new(),
            last: Ledger::default(),
        }
    }

    pub(super) fn lives(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn is_whole(&self) -> bool {
        !self.is_wiped
    }

    fn living(&self) -> Option<&Living> {
        match &self.process {
            Some(Process::Serving(living)) => Some(living),
            Some(Process::Recovering(_)) | None => None,
        }
    }

    fn living_mut(&mut self) -> Option<&mut Living> {
        match &mut self.process {
            Some(Process::Serving(living)) => Some(living),
            Some(Process::Recovering(_)) | None => None,
        }
    }

    /// New disks, of a node that is dead.
    pub(super) fn wipe(&mut self) {
        (self.log_disk, self.snapshot_disk) = (SimulatedDisk::default(), SimulatedDisk::default());
        self.is_wiped = true;
    }

    pub(super) fn ledger(&self) -> &Ledger {
        self.living().and_then(|living| living.node.state(GROUP)).unwrap_or(&self.last)
    }

    pub(super) fn leads(&self) -> bool {
        let status = self.living().and_then(|living| living.node.status(GROUP));
        status.is_some_and(|status| status.role == Role::Leader)
    }

    pub(super) fn die_after(&self, operations: u64) {
        self.log_disk.die_after(operations);
    }

    /// Lets the next sync of the log fail. The kernel takes what it should have covered for clean then.
    pub(super) fn fail_sync(&self) {
        self.log_disk.fail_next(Fault::Sync);
    }

    /// Leaves no room on its disks, until there is some again.
    pub(super) fn fill_disks(&self) {
        [&self.log_disk, &self.snapshot_disk].iter().for_each(|disk| disk.set_capacity(0));
    }

    pub(super) fn make_room(&self) {
        [&self.log_disk, &self.snapshot_disk].iter().for_each(|disk| disk.set_capacity(1 << 40));
    }

    fn clock(&self, world: &World) -> u64 {
        world.now / 1000 * self.rate + self.offset
    }

    pub(super) fn kill(&mut self, random: &mut Random) {
        self.process = None;
        self.heard.clear();
        for disk in [&self.log_disk, &self.snapshot_disk] {
            if random.below(3) == 0 {
                disk.lose_process();
            } else {
                disk.lose_power(random);
            }
        }
    }

    /// Starts to serve, or to recover.
    pub(super) fn start_somehow(&mut self, world: &mut World) -> io::Result<()> {
        assert!(!self.lives());
        self.life += 1;
        if !self.is_wiped {
            return self.start(world);
        }
        let (log, snapshots) = (self.log_disk.root(), self.snapshot_disk.root());
        let opened = Recovering::open_stepped(self.options(0), self.life, log, snapshots);
        self.process = Some(Process::Recovering(Box::new(opened.map_err(io_of)?)));
        world.after(0, Event::Recover { node: self.node, life: self.life });
        Ok(())
    }

    fn start(&mut self, world: &mut World) -> io::Result<()> {
        let options = self.options(world.random.bits());
        let opened = SteppedNode::open(options, self.log_disk.root(), self.snapshot_disk.root(), |_| Ledger::default());
        let mut node = opened.map_err(io_of)?;
        let voters: Vec<NodeId> = (1..=REPLICAS).map(NodeId).collect();
        for group in [GROUP, IDLE_GROUP] {
            node.create_group(group, &voters).unwrap();
        }
        node.tick();
        self.process = Some(Process::Serving(Box::new(Living { node, woken: false, syncs: false, works: false })));
        world.after(TICK_NS, Event::Tick { node: self.node, life: self.life });
        self.go_on(world)
    }

    fn options(&self, seed: u64) -> SteppedOptions {
        SteppedOptions {
            tick: Duration::from_nanos(TICK_NS),
            segment_bytes: 16 << 10,
            log_bytes_max: 96 << 10,
            tail_entries: 10,
            tail_bytes: 1 << 10,
            snapshot_log_bytes: 6 << 10,
            sabotage: self.sabotage,
            ..SteppedOptions::small(NodeId(self.node), seed)
        }
    }

    /// Asks for the next Raft group, again and again; serves when it has all.
    pub(super) fn recover(&mut self, world: &mut World) -> io::Result<()> {
        let Some(Process::Recovering(recovering)) = &self.process else { return Ok(()) };
        let Some(group) = [GROUP, IDLE_GROUP].into_iter().find(|group| !recovering.has(*group)) else {
            (self.process, self.is_wiped) = (None, false);
            world.recovered();
            return self.start(world);
        };
        let (from, generation) = (self.node, self.life);
        let to = world.another_node(from);
        if let Some(delay) = world.transit(from, to) {
            world.after(delay, Event::Admit { from, generation, to, group });
        }
        world.after(300 * MS, Event::Recover { node: from, life: generation });
        Ok(())
    }

    /// A voter that lost its disks asks. Its former messages are heard no more.
    pub(super) fn admit(
        &mut self,
        from: NodeId,
        generation: u64,
        group: RaftGroupId,
        world: &mut World,
    ) -> io::Result<()> {
        let heard = self.heard.entry(from).or_default();
        *heard = generation.max(*heard);
        if *heard == generation && self.living().is_some() {
            let ticket = world.random.bits();
            self.stepped().admit(group, from, generation, ticket);
            self.go_on(world)?;
        }
        Ok(())
    }

    pub(super) fn admitted(&mut self, out: &AdmissionOut, world: &mut World) -> io::Result<()> {
        let Some(Process::Recovering(recovering)) = &mut self.process else { return Ok(()) };
        let put = |disk: &dyn Directory, name: &str| disk.create_empty(name)?.write_at(0, &out.bytes);
        match recovering.receive(&out.admission, put) {
            Ok(()) if world.random.below(3) == 0 => return Err(io::Error::other("killed")),
            Ok(()) | Err(RecoverError::Stale) => {}
            Err(RecoverError::Snapshot(why)) => panic!("replica {}: {why}", self.node),
            Err(RecoverError::Io(error)) => return Err(error),
            Err(RecoverError::Log(error)) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    fn stepped(&mut self) -> &mut SteppedNode<Ledger> {
        &mut self.living_mut().expect("lives").node
    }

    /// Sees to it that the node is called again. An error if its machine has died or its log failed.
    fn go_on(&mut self, world: &mut World) -> io::Result<()> {
        if self.log_disk.is_dead() || self.snapshot_disk.is_dead() || self.stepped().is_failed() {
            return Err(io::Error::other("it has died"));
        }
        let (node, life) = (self.node, self.life);
        let living = self.living_mut().expect("lives");
        if living.node.has_work() && !living.woken {
            living.woken = true;
            let delay = world.random.below(200) * MS / 1000;
            world.after(delay, Event::Wake { node, life });
        }
        if living.node.is_syncing() && !living.syncs {
            living.syncs = true;
            let slow = world.random.below(30) == 0;
            let slow = slow || living.node.waits_to_write();
            let delay = world.random.below(if slow { 700 * MS } else { 3 * MS });
            world.after(delay, Event::Synced { node, life });
        }
        if living.node.jobs() > 0 && !living.works {
            living.works = true;
            let delay = world.random.below(300) * MS;
            world.after(delay, Event::Worked { node, life });
        }
        Ok(())
    }

    pub(super) fn tick(&mut self, world: &mut World) -> io::Result<()> {
        // Never early by the replica's own clock, sometimes late.
        let late = if world.random.below(10) == 0 { world.random.below(300) * MS } else { 0 };
        world.after(TICK_NS * 1000 / self.rate + 1 + late, Event::Tick { node: self.node, life: self.life });
        self.stepped().tick();
        self.go_on(world)
    }

    pub(super) fn message(
        &mut self,
        from: NodeId,
        life: u64,
        message: GroupMessage,
        world: &mut World,
    ) -> io::Result<()> {
        if self.living().is_none() || self.heard.get(&from).is_some_and(|heard| life < *heard) {
            return Ok(());
        }
        self.stepped().deliver(from, message);
        self.go_on(world)
    }

    pub(super) fn propose(&mut self, command: u64, world: &mut World) -> io::Result<()> {
        if self.living().is_none() {
            return Ok(());
        }
        self.stepped().propose(GROUP, Bytes::copy_from_slice(&command.to_le_bytes()), command);
        self.go_on(world)
    }

    pub(super) fn read(&mut self, read: u64, world: &mut World) -> io::Result<()> {
        if self.living().is_none() {
            return Ok(());
        }
        let clock = self.clock(world);
        if self.stepped().read(clock, GROUP, read) {
            // Whoever asked looks at the state at once; the turn that says so comes later.
            world.read_answered(self.node, read, self.ledger().applied, true);
        }
        self.go_on(world)
    }

    pub(super) fn wake(&mut self, world: &mut World) -> io::Result<()> {
        let clock = self.clock(world);
        let living = self.living_mut().expect("lives");
        living.woken = false;
        let turn = living.node.turn(clock).map_err(io::Error::other)?;
        self.tell(turn, world);
        self.go_on(world)
    }

    pub(super) fn synced(&mut self, world: &mut World) -> io::Result<()> {
        let living = self.living_mut().expect("lives");
        living.syncs = false;
        let turn = living.node.synced().map_err(io::Error::other)?;
        self.tell(turn, world);
        self.go_on(world)
    }

    /// Tells the world a turn's outcome.
    fn tell(&mut self, turn: Turn, world: &mut World) {
        for (to, messages) in turn.messages {
            world.send(self.node, self.life, to.0, &messages);
        }
        for out in turn.snapshots {
            let (from, to, group) = (self.node, out.to, out.message.group);
            // One that recovers refuses it.
            let transit = world.transit(from, to.0).filter(|_| world.is_whole(to.0));
            if let Some(delay) = transit {
                world.after(delay * 10, Event::Snapshot { from, to: to.0, message: out.message, bytes: out.bytes });
            }
            // Its outcome is known to the sender; the receiver's append response says the rest.
            self.stepped().report_snapshot(group, to, transit.is_some());
        }
        for out in turn.admitted.into_iter().filter_map(|(_, result)| result.ok()) {
            let to = out.admission.to.0;
            for _ in 0..1 + world.random.below(2) {
                if let Some(delay) = world.transit(self.node, to) {
                    world.after(delay * 10, Event::Admitted { to, out: out.clone() });
                }
            }
        }
        assert_eq!(turn.broken, [], "a group of replica {} stopped", self.node);
        turn.installed.iter().for_each(|_| world.installed());
        for (_, index, command) in turn.applied.iter().filter(|(group, ..)| *group == GROUP) {
            world.applied(self.node, *index, command);
        }
        for (command, answer) in turn.proposals {
            world.answered(
                command,
                answer.map(|index| LogIndex(Ledger::id(&index).expect("the ledger answers with an index"))),
            );
        }
        let node = &self.living().expect("lives").node;
        // A node whose log failed has stopped its groups rightly.
        if let (Some(status), Some(state), false) = (node.status(GROUP), node.state(GROUP), node.is_failed()) {
            world.status(self.node, &status);
            world.digest(self.node, status.applied, state.digest());
        }
        for (read, _) in turn.reads.into_iter().filter(|(_, result)| result.is_ok()) {
            world.read_answered(self.node, read, self.ledger().applied, false);
        }
    }

    pub(super) fn worked(&mut self, world: &mut World) -> io::Result<()> {
        if world.now <= FAULTS_NS && world.random.below(20) == 0 {
            self.snapshot_disk.fail_next(Fault::Write(libc::EIO));
        }
        let living = self.living_mut().expect("lives");
        living.works = false;
        assert!(living.node.write_snapshot(), "a job waits until it is done");
        self.snapshot_disk.fail_no_more();
        self.go_on(world)
    }

    pub(super) fn snapshot_arrives(
        &mut self,
        from: NodeId,
        message: GroupMessage,
        bytes: &[u8],
        world: &mut World,
    ) -> io::Result<()> {
        if self.living().is_none() {
            return Ok(());
        }
        let node = self.stepped();
        node.deliver_snapshot(from, message, bytes);
        let taken = node.has_work() || node.is_syncing();
        self.go_on(world)?;
        assert!(taken || self.snapshot_disk.space()?.total_bytes == 0, "networks do not change files here");
        Ok(())
    }
}
