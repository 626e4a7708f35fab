//! The Raft groups of a node without threads, sockets or clocks: a value that is handed messages and times and says
//! what it wants to send. It shares every decision with [`crate::Node`]; for simulations of whole clusters.
//!
//! A process that dies is a value that is dropped. What a [`Turn`] wants sent may get lost; the rest of it has happened.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId};
use holdfast_storage::Directory;

use crate::admission::Admission;
use crate::config::{ExpectedLog, command_bytes_max};
use crate::core::CoreOptions;
use crate::log::record::Record;
use crate::log::{Log, LogFailed, LogOptions};
use crate::machine::StateMachine;
use crate::outbox::GroupMessage;
use crate::queue::TURN_BYTES_MAX;
use crate::room::Room;
use crate::sabotage::Sabotage;
use crate::status::{AdmissionError, GroupError, GroupStatus, OpenError, ProposeError, ReadError};
use crate::stop::StopReason;
use crate::turn::{Input, NodeCore};
use crate::{opening, order};
use site::{Held, Job, SteppedSite};

mod site;
#[cfg(test)]
mod tests;

/// Settings of a [`SteppedNode`]; see [`crate::NodeConfig`] for what they mean.
#[derive(Clone, Copy, Debug)]
pub struct SteppedOptions {
    /// This node's id, its identity in every Raft group. Never 0.
    pub node: NodeId,
    /// Seed of the election timeouts; nodes should differ, and lives of a node too.
    pub seed: u64,
    /// Time between two calls of [`SteppedNode::tick`], at least, by the clock that [`SteppedNode::turn`] is told.
    pub tick: Duration,
    /// Size of one segment of the log. A command may take a quarter of it at most.
    pub segment_bytes: u32,
    /// Bytes of log above which groups that pin its oldest segment are carried forward or snapshot.
    pub log_bytes_max: u64,
    /// Count of entries kept below a snapshot.
    pub tail_entries: u64,
    /// Bytes of entries kept below a snapshot.
    pub tail_bytes: u64,
    /// A group is snapshot when its log since the last one reaches this.
    pub snapshot_log_bytes: u64,
    /// Identity of the log if there is none yet; nodes should differ.
    pub identity: [u8; 16],
    /// Log that must be there.
    pub log: ExpectedLog,
    /// Rule that this node breaks.
    pub sabotage: Sabotage,
}

impl SteppedOptions {
    /// A small log, so that a short simulation recycles segments and ships snapshots.
    #[must_use]
    pub fn small(node: NodeId, seed: u64) -> Self {
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&node.0.to_le_bytes());
        Self {
            node,
            seed,
            tick: Duration::from_millis(100),
            segment_bytes: 64 << 10,
            log_bytes_max: 384 << 10,
            tail_entries: 20,
            tail_bytes: 8 << 10,
            snapshot_log_bytes: 48 << 10,
            identity,
            log: ExpectedLog::AnyOrNone,
            sabotage: Sabotage::None,
        }
    }

    fn core_options(&self) -> CoreOptions {
        CoreOptions {
            node: self.node.0,
            seed: self.seed,
            tick_ns: u64::try_from(self.tick.as_nanos()).unwrap_or(u64::MAX / 100),
            snapshot_log_bytes: self.snapshot_log_bytes,
            tail_bytes: self.tail_bytes,
            tail_entries: self.tail_entries,
            sabotage: self.sabotage,
        }
    }

    pub(crate) fn log_options(&self) -> LogOptions {
        LogOptions {
            segment_bytes: self.segment_bytes,
            bytes_max: self.log_bytes_max,
            tail_entries: self.tail_entries,
            identity: self.identity,
            expected: self.log,
            sabotage: self.sabotage,
        }
    }
}

impl Default for SteppedOptions {
    fn default() -> Self {
        Self::small(NodeId(1), 1)
    }
}

/// A snapshot to ship, for [`SteppedNode::deliver_snapshot`] at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOut {
    /// Node that it is for.
    pub to: NodeId,
    /// Message that goes with the file.
    pub message: GroupMessage,
    /// Content of the file.
    pub bytes: Vec<u8>,
}

/// A snapshot for a voter that lost its log, for [`crate::Recovering::receive`] there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionOut {
    /// Description that goes with the file.
    pub admission: Admission,
    /// Content of the file.
    pub bytes: Vec<u8>,
}

/// Outcome of a turn, to be performed in the order of its fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The log is being written: [`SteppedNode::synced`] is due, and what comes waits for it.
    pub syncing: bool,
    /// To be sent, by node.
    pub messages: Vec<(NodeId, Vec<GroupMessage>)>,
    /// To be shipped; the outcome goes to [`SteppedNode::report_snapshot`].
    pub snapshots: Vec<SnapshotOut>,
    /// Groups whose state is now a snapshot of the leader: (group, index).
    pub installed: Vec<(RaftGroupId, LogIndex)>,
    /// Commands that were applied: (group, index, command). An empty one is a leader's mark or a proposal without bytes.
    pub applied: Vec<(RaftGroupId, LogIndex, Bytes)>,
    /// Answers by ticket.
    pub proposals: Vec<(u64, Result<Bytes, ProposeError>)>,
    /// Raft groups that stopped on this node, and why.
    pub broken: Vec<(RaftGroupId, StopReason)>,
    /// Reads by ticket: those allowed may look at [`SteppedNode::state`] now.
    pub reads: Vec<(u64, Result<(), ReadError>)>,
    /// Answers to [`SteppedNode::admit`] by ticket.
    pub admitted: Vec<(u64, Result<AdmissionOut, AdmissionError>)>,
    /// Raft groups whose creation is durable.
    pub created: Vec<RaftGroupId>,
    /// Raft groups whose drop is durable.
    pub dropped: Vec<RaftGroupId>,
}

impl Turn {
    fn says_nothing(&self) -> bool {
        *self == Self { syncing: self.syncing, ..Self::default() }
    }
}

/// A Raft group to be made or dropped in the next turn.
enum Control {
    Create { group: RaftGroupId, voters: Vec<NodeId> },
    Drop { group: RaftGroupId },
}

/// The Raft groups of a node, driven by its caller. All times are of one clock of the node, which counts from anywhere,
/// never goes back and need not run at the rate of others, within a tenth.
pub struct SteppedNode<S> {
    core: NodeCore<u64, u64>,
    log: Log,
    room: Room,
    site: SteppedSite<S>,
    make: Box<dyn Fn(RaftGroupId) -> S>,
    controls: VecDeque<Control>,
    ticked: bool,
    syncing: bool,
    /// Outcome of the write whose sync is due.
    appended: Result<(), LogFailed>,
    /// Groups whose creation or drop becomes durable with the sync under way.
    created: Vec<RaftGroupId>,
    dropped: Vec<RaftGroupId>,
    command_bytes_max: usize,
}

impl<S: StateMachine> SteppedNode<S> {
    /// Replays log and snapshots and resumes all groups found. `make` makes the empty state machine of a group.
    ///
    /// # Errors
    /// See [`OpenError`]: nothing has voted or answered then.
    pub fn open(
        options: SteppedOptions,
        log: Arc<dyn Directory>,
        snapshots: Arc<dyn Directory>,
        make: impl Fn(RaftGroupId) -> S + 'static,
    ) -> Result<Self, OpenError> {
        let opened = opening::open(log, &snapshots, options.log_options(), &make)?;
        let held = opened.states.into_iter().map(|(group, state)| (group, Held::new(state, true)));
        let site =
            SteppedSite::new(options.node, snapshots, Arc::clone(&opened.reserve), held.collect(), options.sabotage);
        Ok(Self {
            core: NodeCore::new(options.core_options(), opened.groups, opened.next_file),
            log: opened.log,
            room: Room::new(opened.reserve, options.segment_bytes),
            site,
            make: Box::new(make),
            controls: VecDeque::new(),
            ticked: false,
            syncing: false,
            appended: Ok(()),
            created: Vec::new(),
            dropped: Vec::new(),
            command_bytes_max: command_bytes_max(options.segment_bytes),
        })
    }

    /// Creates this node's replica of a group in the next turn; durable when a [`Turn`] names it. Creating it again does
    /// nothing.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn create_group(&mut self, group: RaftGroupId, voters: &[NodeId]) -> Result<(), GroupError> {
        if self.core.may_create(group, voters)? {
            self.controls.push_back(Control::Create { group, voters: voters.to_vec() });
        }
        Ok(())
    }

    /// Drops this node's replica of a group in the next turn, with its snapshots; durable when a [`Turn`] names it.
    pub fn drop_group(&mut self, group: RaftGroupId) {
        self.controls.push_back(Control::Drop { group });
    }

    /// Proposes a command. Every ticket is answered once, by a later [`Turn`], unless this value is dropped before.
    pub fn propose(&mut self, group: RaftGroupId, command: Bytes, ticket: u64) {
        if command.len() > self.command_bytes_max {
            self.site.out.proposals.push((ticket, Err(ProposeError::TooLarge)));
        } else {
            let frees = !self.core.is_tight() || S::frees(&command);
            self.site.inbox.push_back(Input::Propose { group, command, ticket, frees });
        }
    }

    /// Asks to read everything acknowledged before this call. Under the leader's lease that is allowed at once, and the next
    /// [`Turn`] says so, even one under a sync; true says it right away.
    pub fn read(&mut self, now_ns: u64, group: RaftGroupId, ticket: u64) -> bool {
        let leased = now_ns < self.site.lease_until_ns(group);
        if leased {
            self.site.out.reads.push((ticket, Ok(())));
        } else {
            self.site.inbox.push_back(Input::Read { group, ticket });
        }
        leased
    }

    /// Takes a message of another node in.
    pub fn deliver(&mut self, from: NodeId, message: GroupMessage) {
        self.site.inbox.push_back(Input::Message { from, group: message.group, bytes: message.bytes });
    }

    /// Takes a snapshot of another node in: writes, verifies and restores it. One that is damaged or cannot be written is
    /// dropped.
    pub fn deliver_snapshot(&mut self, from: NodeId, message: GroupMessage, bytes: &[u8]) {
        let (group, file) = (message.group, self.core.reserve_file());
        match self.site.receive(group, file, bytes, (self.make)(group)) {
            Ok(mark) => {
                self.site.inbox.push_back(Input::SnapshotDelivered { from, group, bytes: message.bytes, mark });
            }
            Err(error) => {
                tracing::warn!(%group, %from, %error, "a snapshot from another node was dropped");
                self.site.remove_file(group, file);
            }
        }
    }

    /// Says whether a snapshot of a [`Turn`] arrived.
    pub fn report_snapshot(&mut self, group: RaftGroupId, to: NodeId, ok: bool) {
        self.site.inbox.push_back(Input::SnapshotReported { group, to, ok });
    }

    /// Brings a voter back that lost its log, if this node leads: see [`crate::Recovering`]. The caller hears no message of an earlier
    /// start of that node from now on. Answered by a later [`Turn`].
    pub fn admit(&mut self, group: RaftGroupId, to: NodeId, generation: u64, ticket: u64) {
        self.site.admissions.insert(ticket, generation);
        self.site.inbox.push_back(Input::Admit { group, to, ticket });
    }

    /// Lets a tick pass in the next turn. Ticks that were missed are not made up for: an election timeout must never pass
    /// faster than real time.
    pub fn tick(&mut self) {
        self.ticked = true;
    }

    /// Whether [`Self::turn`] would do or say anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let waits = self.ticked || !self.site.inbox.is_empty() || !self.controls.is_empty();
        (waits && !self.syncing) || !self.site.out.says_nothing()
    }

    /// Whether [`Self::synced`] is due.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.syncing
    }

    /// Whether the write waits, because the log's disk is full or no file descriptor is left: [`Self::synced`] tries again, best a
    /// tick later.
    #[must_use]
    pub fn waits_to_write(&self) -> bool {
        self.log.is_waiting()
    }

    /// Whether the log failed, also in a call that did not say so: the process would stop.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.log.check().is_err()
    }

    /// Takes what waits, steps, performs what may happen now, and writes what must be durable first. While a sync is under
    /// way everything waits but reads under the lease. `now_ns` is read at the call.
    ///
    /// # Errors
    /// [`LogFailed`] if the log failed in an earlier call. A write that fails in this call is told by [`Self::synced`], so
    /// that nothing which happened before it gets lost.
    pub fn turn(&mut self, now_ns: u64) -> Result<Turn, LogFailed> {
        self.log.check()?;
        if !self.syncing {
            self.take_controls();
            let mut inputs = self.take_inputs();
            let mut recalled = Vec::new();
            if std::mem::take(&mut self.ticked) {
                inputs.push(Input::Tick);
                self.room.tend(&mut self.core, &mut self.log)?;
                recalled = order::carry_forward(&mut self.core, &self.log);
            }
            let effects = self.core.step(now_ns, inputs);
            let mut records = order::perform(&mut self.core, &mut self.site, effects);
            records.append(&mut recalled);
            self.write(records);
        }
        Ok(self.told())
    }

    /// Syncs the log and performs what that allows, unless it waits to write. There may be more to write then, and another sync due.
    ///
    /// # Errors
    /// [`LogFailed`] if the log could not be written or synced: this value is of no use any more, and the process would stop.
    pub fn synced(&mut self) -> Result<Turn, LogFailed> {
        if self.syncing {
            let appended = std::mem::replace(&mut self.appended, Ok(())).and_then(|()| self.log.try_again());
            if appended.is_ok() && self.log.is_waiting() {
                return Ok(self.told());
            }
            let synced = appended.and_then(|()| self.log.sync());
            if let Err(error) = &synced {
                self.site.stop_all(&error.into());
            }
            synced?;
            let effects = self.core.persisted();
            let records = order::perform(&mut self.core, &mut self.site, effects);
            self.write(records);
        }
        Ok(self.told())
    }

    /// Does one job that the threads of a node would do: writes a frozen state, or removes snapshot files. False if there is
    /// none. Jobs wait until this is called.
    pub fn write_snapshot(&mut self) -> bool {
        self.site.do_job()
    }

    /// Jobs that wait for [`Self::write_snapshot`].
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.site.jobs.len()
    }

    /// State machine of a Raft group.
    #[must_use]
    pub fn state(&self, group: RaftGroupId) -> Option<&S> {
        self.site.known(group).map(|held| &held.state)
    }

    /// This replica's view of its Raft group.
    #[must_use]
    pub fn status(&self, group: RaftGroupId) -> Option<GroupStatus> {
        self.site.known(group).map(|held| held.status.clone())
    }

    /// Ids of the Raft groups of this node, ascending.
    #[must_use]
    pub fn groups(&self) -> Vec<RaftGroupId> {
        self.site.groups.iter().filter(|(_, held)| held.is_durable).map(|(group, _)| *group).collect()
    }

    /// Only at the start of a turn: a sync under way does not cover the records of groups that are made under it.
    fn take_controls(&mut self) {
        for control in std::mem::take(&mut self.controls) {
            match control {
                Control::Create { group, voters } => {
                    // An error is of a group that was made with other voters since it was asked for; that one stands.
                    if let Ok(true) = self.core.create(group, &voters) {
                        self.site.groups.insert(group, Held::new((self.make)(group), false));
                        self.created.push(group);
                    }
                }
                Control::Drop { group } => {
                    if self.core.drop_group(group) {
                        self.created.retain(|created| *created != group);
                        self.dropped.push(group);
                    }
                }
            }
        }
    }

    /// Takes the inputs of one turn, as many as a node's queue gives at once.
    fn take_inputs(&mut self) -> Vec<Input<u64, u64>> {
        let (mut inputs, mut bytes) = (Vec::new(), 0);
        while bytes < TURN_BYTES_MAX
            && let Some(input) = self.site.inbox.pop_front()
        {
            bytes += input.payload_bytes();
            inputs.push(input);
        }
        inputs
    }

    fn write(&mut self, records: Vec<Record>) {
        self.syncing = !records.is_empty();
        if !self.syncing {
            return self.conclude();
        }
        self.appended = self.log.append(records);
        if let Err(error) = &self.appended {
            self.site.stop_all(&error.into());
        }
    }

    /// Makes durable creations and drops known.
    fn conclude(&mut self) {
        for group in std::mem::take(&mut self.created) {
            if let Some(held) = self.site.groups.get_mut(&group) {
                held.is_durable = true;
                self.site.out.created.push(group);
            }
        }
        for group in std::mem::take(&mut self.dropped) {
            self.site.groups.remove(&group);
            self.site.jobs.push_back(Job::RemoveGroup { group });
            self.site.out.dropped.push(group);
        }
    }

    fn told(&mut self) -> Turn {
        Turn { syncing: self.syncing, ..std::mem::take(&mut self.site.out) }
    }
}
