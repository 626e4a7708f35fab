//! Drives all Raft groups of a node (D4), and owns the order: send what may go early, apply what is durable, write one
//! batch, sync once, then send, apply and answer what that allows. One drives at a time: the thread, or a visitor (see
//! [`crate::queue`]), who never gets to the disk and leaves his records to the thread.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use holdfast_common::{NodeId, RaftGroupId};
use parking_lot::{Mutex, RwLock};

use crate::clock;
use crate::core::effects::Effects;
use crate::group::Group;
use crate::log::Log;
use crate::log::record::Record;
use crate::machine::StateMachine;
use crate::order;
use crate::outbox::Outbox;
use crate::queue::{AdmitTicket, ControlTicket, Item, ProposeTicket, Queue, ReadTicket};
use crate::room::Room;
use crate::stop::{Panicked, StopReason};
use crate::turn::{Input, NodeCore};
use holdfast_storage::{Directory, is_out_of_descriptors};
use site::DriverSite;
use worker::{Job, Make, Restored};

mod site;
pub(crate) mod worker;

/// The Raft groups of a node as its handles see them.
pub(crate) type Groups<S> = Arc<RwLock<BTreeMap<RaftGroupId, Group<S>>>>;
type TurnEffects = Effects<ProposeTicket, ReadTicket>;

/// Parts that driving needs.
pub(crate) struct Driver<S> {
    pub(crate) core: NodeCore<ProposeTicket, ReadTicket>,
    pub(crate) log: Log,
    pub(crate) room: Room,
    pub(crate) queue: Arc<Queue>,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) groups: Groups<S>,
    pub(crate) snapshots: Arc<dyn Directory>,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) make: Make<S>,
    pub(crate) restored: Restored<S>,
    pub(crate) tick: Duration,
    pub(crate) command_bytes_max: usize,
    /// Callers that wait for an admission, by ticket.
    pub(crate) admissions: BTreeMap<u64, AdmitTicket>,
    pub(crate) next_admission: u64,
    /// Records of a visitor's turn, which ends when they are durable; or what his panic said: nothing can be relied on then.
    pub(crate) left: Result<Vec<Record>, Panicked>,
}

/// The one place of the driver; empty once its thread has ended.
pub(crate) type Seat<S> = Arc<Mutex<Option<Driver<S>>>>;

/// Creations and drops of a turn, answered when they are durable.
struct Controls<S> {
    created: BTreeMap<RaftGroupId, Group<S>>,
    dropped: Vec<RaftGroupId>,
    tickets: Vec<ControlTicket>,
}

impl<S> Default for Controls<S> {
    fn default() -> Self {
        Self { created: BTreeMap::new(), dropped: Vec::new(), tickets: Vec::new() }
    }
}

/// The thread: drives until the queue is closed or the log fails.
pub(crate) fn run<S: StateMachine>(seat: &Mutex<Option<Driver<S>>>, queue: &Queue) {
    let failure = match catch_unwind(AssertUnwindSafe(|| run_turns(seat, queue))) {
        Ok(Ok(())) => None,
        Ok(Err(reason)) => Some(reason),
        Err(panic) => Some(Panicked::of(&*panic).into()),
    };
    if let Some(reason) = &failure {
        tracing::error!(%reason, "this node takes part in no group any more; check its disk and restart it");
    }
    let reason = failure.unwrap_or(StopReason::ShutDown);
    queue.close();
    // Handles lead to the queue, and the queue to this place: whoever is in it would hold himself.
    let driver = seat.lock().take();
    if let Some(driver) = &driver {
        driver.groups.read().values().for_each(|group| group.shared().stop(&reason));
    }
}

fn run_turns<S: StateMachine>(seat: &Mutex<Option<Driver<S>>>, queue: &Queue) -> Result<(), StopReason> {
    let mut next_tick = Instant::now();
    while let Some(items) = queue.take(next_tick) {
        let mut driver = seat.lock();
        let Some(driver) = &mut *driver else { break };
        driver.take_turn(items, &mut next_tick)?;
    }
    Ok(())
}

/// Lets a visitor drive. Says whether he leaves anything.
pub(crate) fn visit<S: StateMachine>(seat: &Mutex<Option<Driver<S>>>, items: Vec<Item>) -> bool {
    let mut driver = seat.lock();
    let Some(driver) = &mut *driver else { return false };
    driver.left = catch_unwind(AssertUnwindSafe(|| driver.visit(items))).map_err(|panic| Panicked::of(&*panic));
    !driver.left.as_ref().is_ok_and(Vec::is_empty)
}

impl<S: StateMachine> Driver<S> {
    fn visit(&mut self, items: Vec<Item>) -> Vec<Record> {
        // Inputs were taken before this: reads among them came before it.
        let now = clock::now_ns();
        let mut controls = Controls::default();
        let inputs = items.into_iter().filter_map(|item| self.input(item, &mut controls)).collect();
        let effects = self.core.step(now, inputs);
        self.perform(effects, &controls.created)
    }

    fn take_turn(&mut self, mut items: Vec<Item>, next_tick: &mut Instant) -> Result<(), StopReason> {
        let left = std::mem::replace(&mut self.left, Ok(Vec::new()))?;
        let mut controls = Controls::default();
        if !left.is_empty() {
            self.make_durable(left, &controls.created)?;
            // Much comes during a sync, and one batch is enough for it.
            self.queue.take_more(&mut items);
        }
        // Inputs were taken before this: reads among them came before it.
        let now = clock::now_ns();
        let mut inputs = Vec::with_capacity(items.len() + 1);
        for item in items {
            inputs.extend(self.input(item, &mut controls));
        }
        let mut recalled = Vec::new();
        let instant = Instant::now();
        if instant >= *next_tick {
            // Missed ticks are not made up for: an election timeout must never pass faster than real time.
            *next_tick = instant + self.tick;
            inputs.push(Input::Tick);
            self.room.tend(&mut self.core, &mut self.log)?;
            recalled = order::carry_forward(&mut self.core, &self.log);
        }
        let effects = self.core.step(now, inputs);
        let mut records = self.perform(effects, &controls.created);
        records.append(&mut recalled);
        self.make_durable(records, &controls.created)?;
        self.conclude(controls);
        Ok(())
    }

    fn input(&mut self, item: Item, controls: &mut Controls<S>) -> Option<Input<ProposeTicket, ReadTicket>> {
        Some(match item {
            Item::Propose { group, command, ticket } => {
                let frees = !self.core.is_tight() || S::frees(&command);
                Input::Propose { group, command, ticket, frees }
            }
            Item::Read { group, ticket } => Input::Read { group, ticket },
            Item::Message { from, message } => Input::Message { from, group: message.group, bytes: message.bytes },
            Item::SnapshotDelivered { from, message, mark } => {
                Input::SnapshotDelivered { from, group: message.group, bytes: message.bytes, mark }
            }
            Item::SnapshotWritten { group, mark, ok } => Input::SnapshotWritten { group, mark, ok },
            Item::SnapshotReported { group, to, ok } => Input::SnapshotReported { group, to, ok },
            Item::SnapshotFile { from, message, file } => {
                let number = self.core.reserve_file();
                self.job(Job::Receive { from, message, path: file, file: number });
                return None;
            }
            Item::Admit { group, to, ticket } => {
                self.next_admission += 1;
                self.admissions.insert(self.next_admission, ticket);
                Input::Admit { group, to, ticket: self.next_admission }
            }
            Item::Create { group, voters, ticket } => {
                self.create(group, &voters, ticket, controls);
                return None;
            }
            Item::Drop { group, ticket } => {
                if self.core.drop_group(group) {
                    controls.created.remove(&group);
                    controls.dropped.push(group);
                }
                controls.tickets.push(ticket);
                return None;
            }
        })
    }

    fn create(&mut self, group: RaftGroupId, voters: &[NodeId], ticket: ControlTicket, controls: &mut Controls<S>) {
        match self.core.create(group, voters) {
            Ok(new) => {
                if new {
                    let state = (self.make.lock())(group);
                    let handle = Group::new(group, state, Arc::clone(&self.queue), self.command_bytes_max);
                    controls.created.insert(group, handle);
                }
                controls.tickets.push(ticket);
            }
            Err(error) => drop(ticket.send(Err(error))),
        }
    }

    /// The rest of a turn: writes and syncs records, with as many batches as it takes until none follow.
    fn make_durable(
        &mut self,
        mut records: Vec<Record>,
        created: &BTreeMap<RaftGroupId, Group<S>>,
    ) -> Result<(), StopReason> {
        while !records.is_empty() {
            self.write(records)?;
            let effects = self.core.persisted();
            records = self.perform(effects, created);
        }
        Ok(())
    }

    /// Writes and syncs records; without room or a file descriptor it waits, because they were promised to nobody yet, and leaves
    /// the other replicas to themselves meanwhile.
    fn write(&mut self, records: Vec<Record>) -> Result<(), StopReason> {
        self.log.append(records)?;
        match self.log.lack() {
            Some(lack) if is_out_of_descriptors(lack) => {
                tracing::error!("no file descriptor is left for the log, and this node waits for one");
            }
            Some(_) => tracing::error!("the disk of the log is full, and this node waits for room on it"),
            None => {}
        }
        while self.log.is_waiting() {
            if self.queue.closes_within(self.tick) {
                return Err(StopReason::ShutDownWaiting);
            }
            self.log.try_again()?;
        }
        Ok(self.log.sync()?)
    }

    /// Makes durable creations and drops known.
    fn conclude(&mut self, controls: Controls<S>) {
        if controls.tickets.is_empty() {
            return;
        }
        let mut groups = self.groups.write();
        for group in &controls.dropped {
            if let Some(dropped) = groups.remove(group) {
                dropped.shared().stop(&StopReason::Dropped);
            }
        }
        groups.extend(controls.created);
        drop(groups);
        controls.dropped.into_iter().for_each(|group| self.job(Job::RemoveGroup { group }));
        // Whoever does not wait any more need not be told.
        controls.tickets.into_iter().for_each(|ticket| drop(ticket.send(Ok(()))));
    }

    fn perform(&mut self, effects: TurnEffects, created: &BTreeMap<RaftGroupId, Group<S>>) -> Vec<Record> {
        let mut site = DriverSite {
            outbox: &*self.outbox,
            groups: &self.groups,
            created,
            snapshots: &*self.snapshots,
            jobs: &self.jobs,
            restored: &self.restored,
            admissions: &mut self.admissions,
        };
        order::perform(&mut self.core, &mut site, effects)
    }

    fn job(&self, job: Job) {
        // The worker outlives the driver; were it gone, the file would be cleared away at the next start.
        drop(self.jobs.send(job));
    }
}
