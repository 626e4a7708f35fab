//! A replica of the simulation: a stepped node with its disks and its clock, which a machine's death cuts off anywhere.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::{NodeId, Random};
use holdfast_storage::simulated::faults::Fault;
use holdfast_storage::{Directory, SimulatedDisk};

use super::ledger::Ledger;
use super::{Event, FAULTS_NS, GROUP, IDLE_GROUP, MS, REPLICAS, TICK_NS, World};
use crate::outbox::GroupMessage;
use crate::status::{OpenError, Role};
use crate::stepped::{SteppedNode, SteppedOptions, Turn};
use crate::{Sabotage, StateMachine};

/// What dies with the process.
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
    living: Option<Living>,
    /// The last state, for the end.
    last: Ledger,
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
            living: None,
            last: Ledger::default(),
        }
    }

    pub(super) fn lives(&self) -> bool {
        self.living.is_some()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        self.living.as_ref().and_then(|living| living.node.state(GROUP)).unwrap_or(&self.last)
    }

    pub(super) fn leads(&self) -> bool {
        let status = self.living.as_ref().and_then(|living| living.node.status(GROUP));
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
        self.living = None;
        for disk in [&self.log_disk, &self.snapshot_disk] {
            if random.below(3) == 0 {
                disk.lose_process();
            } else {
                disk.lose_power(random);
            }
        }
    }

    pub(super) fn start(&mut self, world: &mut World) -> io::Result<()> {
        assert!(self.living.is_none());
        self.life += 1;
        let options = SteppedOptions {
            tick: Duration::from_nanos(TICK_NS),
            segment_bytes: 16 << 10,
            log_bytes_max: 96 << 10,
            tail_entries: 10,
            tail_bytes: 1 << 10,
            snapshot_log_bytes: 6 << 10,
            sabotage: self.sabotage,
            ..SteppedOptions::small(NodeId(self.node), world.random.bits())
        };
        let opened = SteppedNode::open(options, self.log_disk.root(), self.snapshot_disk.root(), |_| Ledger::default());
        let mut node = match opened {
            Ok(node) => node,
            Err(OpenError::Io { source, .. }) => return Err(source),
            Err(error) => panic!("replica {}: {error}", self.node),
        };
        let voters: Vec<NodeId> = (1..=REPLICAS).map(NodeId).collect();
        for group in [GROUP, IDLE_GROUP] {
            node.create_group(group, &voters).unwrap();
        }
        node.tick();
        self.living = Some(Living { node, woken: false, syncs: false, works: false });
        world.after(TICK_NS, Event::Tick { node: self.node, life: self.life });
        self.go_on(world)
    }

    fn stepped(&mut self) -> &mut SteppedNode<Ledger> {
        &mut self.living.as_mut().expect("lives").node
    }

    /// Sees to it that the node is called again. An error if its machine has died or its log failed.
    fn go_on(&mut self, world: &mut World) -> io::Result<()> {
        if self.log_disk.is_dead() || self.snapshot_disk.is_dead() || self.stepped().is_failed() {
            return Err(io::Error::other("it has died"));
        }
        let (node, life) = (self.node, self.life);
        let living = self.living.as_mut().expect("lives");
        if living.node.has_work() && !living.woken {
            living.woken = true;
            let delay = world.random.below(200) * MS / 1000;
            world.after(delay, Event::Wake { node, life });
        }
        if living.node.is_syncing() && !living.syncs {
            living.syncs = true;
            let slow = world.random.below(30) == 0;
            let slow = slow || living.node.waits_for_room();
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

    pub(super) fn message(&mut self, from: NodeId, message: GroupMessage, world: &mut World) -> io::Result<()> {
        self.stepped().deliver(from, message);
        self.go_on(world)
    }

    pub(super) fn propose(&mut self, command: u64, world: &mut World) -> io::Result<()> {
        self.stepped().propose(GROUP, Bytes::copy_from_slice(&command.to_le_bytes()), command);
        self.go_on(world)
    }

    pub(super) fn read(&mut self, read: u64, world: &mut World) -> io::Result<()> {
        let clock = self.clock(world);
        if self.stepped().read(clock, GROUP, read) {
            // Whoever asked looks at the state at once; the turn that says so comes later.
            world.read_answered(self.node, read, self.ledger().applied, true);
        }
        self.go_on(world)
    }

    pub(super) fn wake(&mut self, world: &mut World) -> io::Result<()> {
        let clock = self.clock(world);
        let living = self.living.as_mut().expect("lives");
        living.woken = false;
        let turn = living.node.turn(clock).map_err(io::Error::other)?;
        self.tell(turn, world);
        self.go_on(world)
    }

    pub(super) fn synced(&mut self, world: &mut World) -> io::Result<()> {
        let living = self.living.as_mut().expect("lives");
        living.syncs = false;
        let turn = living.node.synced().map_err(io::Error::other)?;
        self.tell(turn, world);
        self.go_on(world)
    }

    /// Lets the world know what a turn did.
    fn tell(&mut self, turn: Turn, world: &mut World) {
        for (to, messages) in turn.messages {
            world.send(self.node, to.0, &messages);
        }
        for out in turn.snapshots {
            let (from, to, group) = (self.node, out.to, out.message.group);
            let transit = world.transit(from, to.0);
            if let Some(delay) = transit {
                world.after(delay * 10, Event::Snapshot { from, to: to.0, message: out.message, bytes: out.bytes });
            }
            // Its outcome is known to the sender; the receiver's append response says the rest.
            self.stepped().report_snapshot(group, to, transit.is_some());
        }
        assert_eq!(turn.broken, [], "a group of replica {} stopped", self.node);
        turn.installed.iter().for_each(|_| world.installed());
        for (_, index, command) in turn.applied.iter().filter(|(group, ..)| *group == GROUP) {
            world.applied(self.node, *index, command);
        }
        for (command, answer) in turn.proposals {
            world.answered(command, answer.map(|index| Ledger::id(&index).expect("the ledger answers with an index")));
        }
        let node = &self.living.as_ref().expect("lives").node;
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
        let living = self.living.as_mut().expect("lives");
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
        let node = self.stepped();
        node.deliver_snapshot(from, message, bytes);
        let taken = node.has_work() || node.is_syncing();
        self.go_on(world)?;
        assert!(taken || self.snapshot_disk.space()?.total_bytes == 0, "networks do not change files here");
        Ok(())
    }
}
