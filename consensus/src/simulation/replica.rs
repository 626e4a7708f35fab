//! A replica of the simulation: what the driver's thread does, cut at the points where a machine can die.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_common::NodeId;

use super::ledger::Ledger;
use super::{Event, FAULTS_NS, GROUP, IDLE_GROUP, MS, REPLICAS, TICK_NS, World};
use crate::core::CoreOptions;
use crate::core::effects::{Effects, Freeze};
use crate::log::record::SnapshotMark;
use crate::log::{Log, LogOptions, RecoveryError};
use crate::machine::StateMachine;
use crate::outbox::GroupMessage;
use crate::snapshot::{self, SnapshotHeader};
use crate::status::Role;
use crate::turn::{Input, NodeCore};
use holdfast_common::Random;
use holdfast_storage::Directory;
use holdfast_storage::SimulatedDisk;

/// What dies with the process.
struct Living {
    core: NodeCore<u64, u64>,
    log: Log,
    states: BTreeMap<u64, Ledger>,
    lease_until_ns: u64,
    inbox: Vec<Input<u64, u64>>,
    /// A sync is under way: inputs wait.
    busy: bool,
    woken: bool,
    frozen: BTreeMap<u64, (Freeze, Ledger)>,
    restored: BTreeMap<(u64, u64), Ledger>,
}

pub(super) struct Replica {
    pub(super) node: u64,
    pub(super) life: u64,
    log_disk: SimulatedDisk,
    snapshot_disk: SimulatedDisk,
    /// Its clock: thousandths of the true rate, and an offset.
    rate: u64,
    offset: u64,
    living: Option<Living>,
    /// The last state, for the end.
    last: Ledger,
}

impl Replica {
    pub(super) fn new(node: u64, random: &mut Random) -> Self {
        Self {
            node,
            life: 0,
            log_disk: SimulatedDisk::default(),
            snapshot_disk: SimulatedDisk::default(),
            rate: 980 + random.below(41),
            offset: random.below(1000) * MS,
            living: None,
            last: Ledger::default(),
        }
    }

    pub(super) fn lives(&self) -> bool {
        self.living.is_some()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        self.living.as_ref().map_or(&self.last, |living| &living.states[&GROUP])
    }

    pub(super) fn leads(&self) -> bool {
        let status = self.living.as_ref().and_then(|living| living.core.status(GROUP));
        status.is_some_and(|(status, _)| status.role == Role::Leader)
    }

    pub(super) fn die_after(&self, operations: u64) {
        self.log_disk.die_after(operations);
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
        let options = LogOptions { segment_bytes: 16 << 10, bytes_max: 96 << 10, tail_entries: 10, identity: [7; 16] };
        let (log, replayed) = match Log::open(Arc::new(self.log_disk.clone()), options) {
            Ok(opened) => opened,
            Err(RecoveryError::Io(error)) => return Err(error),
            Err(error) => panic!("replica {}: {error}", self.node),
        };
        let mut states = BTreeMap::new();
        for (group, replayed) in &replayed {
            let mut state = Ledger::default();
            let mark = replayed.state.snapshot;
            if mark.index > 0 {
                snapshot::restore_current(&self.snapshot_disk, *group, mark, &mut state).expect("a current snapshot");
            }
            states.insert(*group, state);
        }
        let files = self.snapshot_disk.list()?;
        let numbers = files.iter().filter_map(|name| snapshot::parse_name(name)).map(|(_, file)| file + 1);
        let next_file = numbers.max().unwrap_or(1);
        let options = CoreOptions {
            node: self.node,
            seed: world.random.bits(),
            tick_ns: TICK_NS,
            snapshot_log_bytes: 6 << 10,
            tail_bytes: 1 << 10,
            tail_entries: 10,
        };
        let mut core = NodeCore::new(options, replayed, next_file);
        for group in [GROUP, IDLE_GROUP] {
            if core.create(group, &(1..=REPLICAS).map(NodeId).collect::<Vec<_>>()).unwrap() {
                states.insert(group, Ledger::default());
            }
        }
        self.living = Some(Living {
            core,
            log,
            states,
            lease_until_ns: 0,
            inbox: vec![Input::Tick],
            busy: false,
            woken: false,
            frozen: BTreeMap::new(),
            restored: BTreeMap::new(),
        });
        self.arrange(world);
        world.after(TICK_NS, Event::Tick { node: self.node, life: self.life });
        Ok(())
    }

    fn arrange(&mut self, world: &mut World) {
        let living = self.living.as_mut().expect("lives");
        if !living.busy && !living.woken {
            living.woken = true;
            let delay = world.random.below(200) * MS / 1000;
            world.after(delay, Event::Wake { node: self.node, life: self.life });
        }
    }

    fn input(&mut self, input: Input<u64, u64>, world: &mut World) -> io::Result<()> {
        self.living.as_mut().expect("lives").inbox.push(input);
        self.arrange(world);
        Ok(())
    }

    pub(super) fn tick(&mut self, world: &mut World) -> io::Result<()> {
        // Never early by the replica's own clock, sometimes late.
        let late = if world.random.below(10) == 0 { world.random.below(300) * MS } else { 0 };
        world.after(TICK_NS * 1000 / self.rate + 1 + late, Event::Tick { node: self.node, life: self.life });
        let living = self.living.as_mut().expect("lives");
        if !living.inbox.iter().any(|input| matches!(input, Input::Tick)) {
            return self.input(Input::Tick, world);
        }
        Ok(())
    }

    pub(super) fn message(&mut self, from: NodeId, message: GroupMessage, world: &mut World) -> io::Result<()> {
        self.input(Input::Message { from, group: message.group, bytes: message.bytes }, world)
    }

    pub(super) fn propose(&mut self, command: u64, world: &mut World) -> io::Result<()> {
        let bytes = Bytes::copy_from_slice(&command.to_le_bytes());
        self.input(Input::Propose { group: GROUP, command: bytes, ticket: command }, world)
    }

    /// As `Group::read_barrier` does it: under the lease without asking the core.
    pub(super) fn read(&mut self, read: u64, world: &mut World) -> io::Result<()> {
        let clock = self.clock(world);
        let living = self.living.as_ref().expect("lives");
        if clock < living.lease_until_ns {
            world.read_answered(self.node, read, living.states[&GROUP].applied, true);
            return Ok(());
        }
        self.input(Input::Read { group: GROUP, ticket: read }, world)
    }

    pub(super) fn wake(&mut self, world: &mut World) -> io::Result<()> {
        let clock = self.clock(world);
        let living = self.living.as_mut().expect("lives");
        living.woken = false;
        if living.busy {
            return Ok(());
        }
        let inputs = std::mem::take(&mut living.inbox);
        if inputs.iter().any(|input| matches!(input, Input::Tick)) {
            let to_recall = living.core.carry_forward(&living.log.holders());
            assert!(to_recall.is_empty(), "no group panics here");
        }
        let effects = living.core.step(clock, inputs);
        self.perform(effects, world)
    }

    pub(super) fn synced(&mut self, world: &mut World) -> io::Result<()> {
        let living = self.living.as_mut().expect("lives");
        living.busy = false;
        living.log.sync().map_err(io::Error::other)?;
        let effects = living.core.persisted();
        self.perform(effects, world)
    }

    fn perform(&mut self, mut effects: Effects<u64, u64>, world: &mut World) -> io::Result<()> {
        let records = std::mem::take(&mut effects.records);
        self.communicate(&mut effects, world);
        self.change_states(&mut effects, world);
        for (command, error) in effects.failed {
            world.answered(command, Err(error));
        }
        let living = self.living.as_mut().expect("lives");
        for group in effects.touched {
            let (status, lease) = living.core.status(group).expect("groups stay");
            if group == GROUP {
                world.status(self.node, &status);
                living.lease_until_ns = lease;
            }
        }
        for (_, read, result) in effects.reads {
            if result.is_ok() {
                world.read_answered(self.node, read, living.states[&GROUP].applied, false);
            }
        }
        for freeze in effects.freezes {
            let delay = world.random.below(300) * MS;
            world.after(delay, Event::Frozen { node: self.node, life: self.life, file: freeze.mark.file });
            let state = living.states[&freeze.group].clone();
            living.frozen.insert(freeze.mark.file, (freeze, state));
        }
        for (group, file) in effects.removals {
            // A file that was never written is removed all the same.
            let _ = self.snapshot_disk.remove(&snapshot::name(group, file));
        }
        if records.is_empty() {
            if !living.inbox.is_empty() {
                self.arrange(world);
            }
            return Ok(());
        }
        living.log.append(records).map_err(io::Error::other)?;
        living.busy = true;
        let slow = world.random.below(30) == 0;
        let delay = world.random.below(if slow { 700 * MS } else { 3 * MS });
        world.after(delay, Event::Synced { node: self.node, life: self.life });
        Ok(())
    }

    fn communicate(&mut self, effects: &mut Effects<u64, u64>, world: &mut World) {
        for (to, messages) in std::mem::take(&mut effects.messages) {
            world.send(self.node, to.0, &messages);
        }
        for out in std::mem::take(&mut effects.snapshots) {
            let bytes = self.snapshot_disk.bytes(&snapshot::name(out.message.group, out.file));
            let transit = world.transit(self.node, out.to.0);
            if let Some(delay) = transit {
                let message = out.message.clone();
                world.after(delay * 10, Event::Snapshot { from: self.node, to: out.to.0, message, bytes });
            }
            // Its outcome is known to the sender; the receiver's append response says the rest.
            let report = Input::SnapshotReported { group: out.message.group, to: out.to, ok: transit.is_some() };
            self.living.as_mut().expect("lives").inbox.push(report);
        }
    }

    fn change_states(&mut self, effects: &mut Effects<u64, u64>, world: &mut World) {
        let living = self.living.as_mut().expect("lives");
        for install in std::mem::take(&mut effects.installs) {
            let state = living.restored.remove(&(install.group, install.mark.file)).expect("was restored");
            living.states.insert(install.group, state);
            world.installed();
        }
        for apply in std::mem::take(&mut effects.applies) {
            let state = living.states.get_mut(&apply.group).expect("groups stay");
            for command in apply.commands {
                if apply.group == GROUP {
                    world.applied(self.node, command.index, &command.data);
                }
                if !command.data.is_empty() {
                    state.apply(command.index, &command.data).unwrap();
                }
                if let Some(ticket) = command.ticket {
                    world.answered(ticket, Ok(command.index));
                }
            }
        }
    }

    pub(super) fn frozen(&mut self, file: u64, world: &mut World) -> io::Result<()> {
        let (freeze, state) = self.living.as_mut().expect("lives").frozen.remove(&file).expect("frozen once");
        let (group, mark) = (freeze.group, freeze.mark);
        let (voters, learners) = (freeze.voters, freeze.learners);
        let header = SnapshotHeader { group, index: mark.index, term: mark.term, voters, learners };
        let written = snapshot::write(&self.snapshot_disk, file, &header, &state);
        let ok = written.is_ok() && (world.now > FAULTS_NS || world.random.below(20) > 0);
        let mark = SnapshotMark { bytes: written.unwrap_or(0), ..mark };
        self.input(Input::SnapshotWritten { group, mark, ok }, world)
    }

    pub(super) fn snapshot_arrives(
        &mut self,
        from: NodeId,
        message: GroupMessage,
        bytes: Vec<u8>,
        world: &mut World,
    ) -> io::Result<()> {
        let living = self.living.as_mut().expect("lives");
        let group = message.group;
        let file = living.core.reserve_file();
        let handle = self.snapshot_disk.create_empty(&snapshot::name(group, file))?;
        handle.write_at(0, &bytes)?;
        handle.sync_data()?;
        self.snapshot_disk.sync_names()?;
        let mut state = Ledger::default();
        let (header, bytes) = snapshot::restore(&*handle, &mut state).expect("networks do not change files here");
        living.restored.insert((group, file), state);
        let mark = SnapshotMark { index: header.index, term: header.term, file, bytes };
        self.input(Input::SnapshotDelivered { from, group, bytes: message.bytes, mark }, world)
    }
}
