//! A metanode without threads, sockets or clocks: a value that is handed events and times and says what it wants done. It
//! shares every decision with [`crate::Metanode`]; for simulations of whole clusters.
//!
//! A process that dies is a value that is dropped. A caller hands events to [`SteppedMetanode::handle`] and calls
//! [`SteppedMetanode::turn`] while there is work, and [`SteppedMetanode::synced`] when a disk would have synced. What the real
//! one keeps in its file of neighbours is the caller's to keep.

use crate::core::admitting::Grants;
use crate::core::collect;
use crate::core::known::Known;
use crate::core::led_term;
use crate::core::mutating;
use crate::core::reading;
use crate::core::reporting::{self, Reporter, Reporting};
use crate::core::starts::Starts;
use crate::machine::{TableMachine, raft_group, volume_of};
use crate::sabotage::Sabotage;
use crate::table::{Table, refusal};
use answers::Held;
use bytes::Bytes;
use holdfast_common::{NodeId, Term, VolumeId};
use holdfast_consensus::{
    GroupMessage, GroupStatus, LogFailed, OpenError, ReadError, SteppedNode, SteppedOptions, Turn,
};
use holdfast_proto::control::{HeartbeatResponse, TableReport, VolumeDrop};
use holdfast_proto::meta::{Code, MutateRequest, MutateResponse, ReadRequest};
use holdfast_proto::metanode::Neighbours;
use holdfast_proto::raft::AdmitRequest;
use holdfast_storage::Directory;
pub use recovery::{Answer, Question, RecoveryStopped, SteppedRecovery};
use seat::{Seat, Work};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
pub use types::{Event, MetanodeOptions, Now, Output};

mod admit;
mod answers;
mod recovery;
mod seat;
#[cfg(test)]
mod tests;
mod types;

/// Tickets of one start are told from those of others by what is above.
const TICKET_BITS: u32 = 40;

/// Purpose of an answer of consensus.
enum Waiting {
    Mutate {
        volume: VolumeId,
        term: Term,
        ticket: u64,
        note: mutating::Note,
    },
    Read {
        volume: VolumeId,
        term: Term,
        ticket: u64,
        request: ReadRequest,
    },
    /// A metanode that lost its log asks to be let back in.
    Admit {
        ticket: u64,
        request: AdmitRequest,
    },
    /// The leader's own work, of the term it was begun in.
    Own {
        volume: VolumeId,
        term: Term,
        work: Work,
    },
}

/// A metanode that its caller steps.
pub struct SteppedMetanode {
    options: MetanodeOptions,
    node: SteppedNode<TableMachine>,
    known: Known,
    starts: Starts,
    seats: BTreeMap<VolumeId, Seat>,
    waiting: BTreeMap<u64, Waiting>,
    /// Of consensus, of requests for block groups and of deletions alike.
    next_ticket: u64,
    reporting: Reporting,
    /// A heartbeat was not answered yet.
    reported: bool,
    report_due_ms: u64,
    /// Replicas that are not durable yet.
    creating: BTreeSet<VolumeId>,
    /// Orders whose drop is not durable yet.
    dropping: BTreeMap<VolumeId, VolumeDrop>,
    refused: bool,
    /// Snapshots for metanodes that lost their logs, until they were fetched.
    grants: Grants<Bytes>,
    held: Held,
    outputs: Vec<Output>,
}

impl SteppedMetanode {
    /// Opens log and tables, as a start of the process does.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        options: MetanodeOptions,
        log: Arc<dyn Directory>,
        snapshots: Arc<dyn Directory>,
    ) -> Result<Self, OpenError> {
        let (patience, sabotage) = (options.patience, options.sabotage);
        assert!(patience.is_ordered(), "times out of order: {patience:?}");
        let consensus = SteppedOptions { node: options.node, ..options.consensus };
        let node = SteppedNode::open(consensus, log, snapshots, move |_| TableMachine::sabotaged(sabotage))?;
        let seats = node.groups().into_iter().map(|group| (volume_of(group), Seat::new(patience, sabotage))).collect();
        // An answer that was meant for a former start must find nobody.
        let next_ticket = options.generation << TICKET_BITS;
        let grants = Grants::new(options.generation);
        Ok(Self {
            options,
            node,
            known: Known::default(),
            starts: Starts::sabotaged(sabotage),
            seats,
            waiting: BTreeMap::new(),
            next_ticket,
            reporting: Reporting::default(),
            reported: false,
            report_due_ms: 0,
            creating: BTreeSet::new(),
            dropping: BTreeMap::new(),
            refused: false,
            grants,
            held: Held::default(),
            outputs: Vec::new(),
        })
    }

    /// Record that the real one keeps in its file of neighbours.
    #[must_use]
    pub fn neighbours(&self) -> Neighbours {
        self.known.record()
    }

    /// Knows again what a former life kept, before its first heartbeat.
    pub fn recall(&mut self, neighbours: Neighbours) {
        self.known = Known::recalled(neighbours);
    }

    /// Takes an event in. What follows from it comes with the next [`Self::turn`].
    pub fn handle(&mut self, now: Now, event: Event) {
        if self.refused {
            return;
        }
        match event {
            Event::Tick => self.node.tick(),
            Event::Look => self.look(now),
            Event::Mutate { ticket, request } => self.mutate(now, ticket, request),
            Event::Read { ticket, request } => self.read(now, ticket, request),
            Event::GiveUp { ticket } => self.give_up(now, ticket),
            Event::Raft { from, generation, message } => {
                if self.starts.is_current(from, generation) {
                    self.node.deliver(from, message);
                }
            }
            Event::Snapshot { from, generation, message, bytes } => self.snapshot(from, generation, message, &bytes),
            Event::SnapshotReported { to, group, ok } => self.node.report_snapshot(group, to, ok),
            Event::Admit { ticket, request } => self.admit(ticket, request),
            Event::AdmittedPiece { ticket, request } => self.admitted_piece(now, ticket, &request),
            Event::Heartbeat(response) => self.heard(now, response),
            Event::Refused => self.refused = self.options.sabotage != Sabotage::RefusedServesOn,
            Event::Groups { ticket, groups } => self.own(now, ticket, |work| work.groups(groups)),
            Event::Deleted { ticket, answer } => self.own(now, ticket, |work| work.deleted(answer)),
            Event::FloorSet { ticket, answer } => {
                self.own(now, ticket, |work| work.compared(answer.map(collect::Answer::FloorSet)));
            }
            Event::Listed { ticket, answer } => {
                self.own(now, ticket, |work| work.compared(answer.map(collect::Answer::Listed)));
            }
        }
    }

    /// Whether [`Self::turn`] would do or say anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.refused && (self.node.has_work() || self.held.are_due() || !self.outputs.is_empty())
    }

    /// Whether [`Self::synced`] is due.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.node.is_syncing()
    }

    /// Whether the log failed: the process would stop.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.node.is_failed()
    }

    /// A turn of consensus, and everything that follows from it.
    ///
    /// # Errors
    /// The log failed: the process would stop.
    pub fn turn(&mut self, now: Now) -> Result<Vec<Output>, LogFailed> {
        if self.refused {
            return Ok(Vec::new());
        }
        let turn = self.node.turn(now.boottime_ns)?;
        Ok(self.follow(now, turn))
    }

    /// Syncs the log, and everything that follows from it.
    ///
    /// # Errors
    /// The log failed: the process would stop.
    pub fn synced(&mut self, now: Now) -> Result<Vec<Output>, LogFailed> {
        if self.refused {
            return Ok(Vec::new());
        }
        let turn = self.node.synced()?;
        Ok(self.follow(now, turn))
    }

    /// Does one job that the threads of a node would do, as [`SteppedNode::write_snapshot`]. False if there is none.
    pub fn write_snapshot(&mut self) -> bool {
        self.node.write_snapshot()
    }

    /// Jobs that wait for [`Self::write_snapshot`].
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.node.jobs()
    }

    /// The tables of this node, as its replicas have them.
    pub fn tables(&self) -> impl Iterator<Item = (VolumeId, &Table, GroupStatus)> {
        self.seats.keys().filter_map(|volume| {
            let status = self.node.status(raft_group(*volume))?;
            Some((*volume, self.node.state(raft_group(*volume))?.table(), status))
        })
    }

    fn look(&mut self, now: Now) {
        let now_ms = now.now_ms();
        self.grants.expire(now_ms);
        for volume in self.seats.keys().copied().collect::<Vec<_>>() {
            let Some(term) = self.node.status(raft_group(volume)).and_then(|status| led_term(&status).ok()) else {
                continue;
            };
            let Some(seat) = self.seats.get_mut(&volume) else { continue };
            let due = seat.look(term, now_ms);
            if due.upkeep {
                let ticket = self.wait(Waiting::Own { volume, term, work: Work::Barrier });
                self.node.read(now.boottime_ns, raft_group(volume), ticket);
            }
            if due.sweep {
                self.sweep(now, volume, term);
            }
            if due.collect {
                self.collect(now, volume, term);
            }
        }
        let due = self.reporting.is_urgent() || now_ms >= self.report_due_ms;
        if due && !self.reported {
            self.reported = true;
            self.report_due_ms = now_ms + self.options.heartbeat_interval_ms;
            let MetanodeOptions { cluster, node, generation, .. } = self.options;
            let request = self.reporting.request(Reporter { cluster, node, generation }, self.reports());
            self.outputs.push(Output::Report(request));
        }
    }

    fn reports(&self) -> Vec<TableReport> {
        let report = |(volume, table, status): (VolumeId, &Table, GroupStatus)| {
            reporting::table_report(volume, &status, table, &self.known)
        };
        self.tables().map(report).collect()
    }

    fn mutate(&mut self, now: Now, ticket: u64, request: MutateRequest) {
        let volume = VolumeId(request.volume);
        match self.begin(now, ticket, request) {
            Ok((command, waiting)) => {
                let ticket = self.wait(waiting);
                self.node.propose(raft_group(volume), command, ticket);
            }
            Err(response) => self.outputs.push(Output::Mutated { ticket, response: *response }),
        }
    }

    fn begin(
        &mut self,
        now: Now,
        ticket: u64,
        request: MutateRequest,
    ) -> Result<(Bytes, Waiting), Box<MutateResponse>> {
        let volume = VolumeId(request.volume);
        let refuse = |code| Box::new(refusal(code));
        let status = self.served(volume).ok_or_else(|| refuse(Code::NoSuchVolume))?;
        let term = led_term(&status).map_err(|why| Box::new(mutating::not_led(&why, &self.known)))?;
        let (mut view, _) = self.seated(now, volume, term).ok_or_else(|| refuse(Code::NoSuchVolume))?;
        let (command, note) = mutating::begin(&mut view, request).map_err(refuse)?;
        Ok((command, Waiting::Mutate { volume, term, ticket, note }))
    }

    fn read(&mut self, now: Now, ticket: u64, request: ReadRequest) {
        let volume = VolumeId(request.volume);
        let refused = match self.served(volume).map(|status| led_term(&status)) {
            None => reading::refusal(Code::NoSuchVolume),
            Some(Err(why)) => reading::not_led(&why, &self.known),
            Some(Ok(term)) if self.options.sabotage == Sabotage::ReadsWithoutBarrier => {
                return self.answer_read(now, (volume, term, ticket), &request, Ok(()));
            }
            Some(Ok(term)) => {
                let ticket = self.wait(Waiting::Read { volume, term, ticket, request });
                self.node.read(now.boottime_ns, raft_group(volume), ticket);
                return;
            }
        };
        self.outputs.push(Output::Read { ticket, response: refused });
    }

    fn answer_read(
        &mut self,
        now: Now,
        (volume, term, ticket): (VolumeId, Term, u64),
        request: &ReadRequest,
        barrier: Result<(), ReadError>,
    ) {
        let response = match self.seated(now, volume, term) {
            Some((mut view, _)) => reading::answer(&mut view, request, barrier),
            None => reading::refusal(Code::TableStopped),
        };
        self.outputs.push(Output::Read { ticket, response });
    }

    /// The client's deadline has passed: nobody waits for the answer, and what was proposed may happen all the same.
    fn give_up(&mut self, now: Now, ticket: u64) {
        let is_it = |waiting: &Waiting| match waiting {
            Waiting::Mutate { ticket: its, .. } | Waiting::Read { ticket: its, .. } => *its == ticket,
            Waiting::Admit { .. } | Waiting::Own { .. } => false,
        };
        let found = self.waiting.iter().find(|(_, waiting)| is_it(waiting)).map(|(inner, _)| *inner);
        let Some(waiting) = found.and_then(|inner| self.waiting.remove(&inner)) else { return };
        if let Waiting::Mutate { volume, term, note, .. } = waiting
            && let Some((mut view, _)) = self.seated(now, volume, term)
        {
            mutating::let_go(&mut view, &note);
        }
    }

    fn snapshot(&mut self, from: NodeId, generation: u64, message: GroupMessage, bytes: &[u8]) {
        let group = message.group;
        let accepted = self.starts.is_current(from, generation) && self.served(volume_of(group)).is_some();
        if accepted {
            self.node.deliver_snapshot(from, message, bytes);
        }
        self.outputs.push(Output::SnapshotTaken { from, group, accepted });
    }

    /// An answer of the volume manager, or none.
    fn heard(&mut self, now: Now, response: Option<HeartbeatResponse>) {
        if !std::mem::take(&mut self.reported) {
            return;
        }
        let Some(response) = response else { return };
        self.reporting.answered();
        self.known.learn(&response, now.monotonic_ns);
        for assignment in &response.tables {
            let volume = VolumeId(assignment.volume);
            let is_here = self.seats.contains_key(&volume);
            let Some(voters) = reporting::to_create(assignment, self.options.node, is_here) else { continue };
            match self.node.create_group(raft_group(volume), &voters) {
                Ok(()) if self.node.status(raft_group(volume)).is_none() => drop(self.creating.insert(volume)),
                // It is being dropped.
                Ok(()) => {}
                Err(error) => tracing::error!(%volume, %error, "the table's replica was not created"),
            }
        }
        response.drops.iter().for_each(|order| self.drop_table(order));
    }

    fn drop_table(&mut self, order: &VolumeDrop) {
        let volume = VolumeId(order.volume);
        let table = self.node.state(raft_group(volume)).map(TableMachine::table);
        // The order comes again once what is under way is durable.
        if self.creating.contains(&volume) || self.dropping.contains_key(&volume) {
            return;
        }
        if !reporting::may_drop(order, &self.options.secret, table, &self.known) {
            return;
        }
        self.seats.remove(&volume);
        if self.node.status(raft_group(volume)).is_some() {
            self.node.drop_group(raft_group(volume));
            self.dropping.insert(volume, order.clone());
        } else {
            self.known.forget_table(volume);
            self.reporting.dropped(order);
        }
    }

    /// Everything that follows from a turn of consensus.
    fn follow(&mut self, now: Now, turn: Turn) -> Vec<Output> {
        let raft = |(to, messages)| Output::Raft { to, messages };
        self.outputs.extend(turn.messages.into_iter().map(raft));
        self.outputs.extend(turn.snapshots.into_iter().map(Output::Snapshot));
        for (group, index) in turn.installed {
            self.outputs.push(Output::Installed { volume: volume_of(group), index });
        }
        for (group, index, command) in turn.applied {
            self.outputs.push(Output::Applied { volume: volume_of(group), index, command });
        }
        for volume in turn.created.into_iter().map(volume_of) {
            self.creating.remove(&volume);
            self.seats.entry(volume).or_insert_with(|| Seat::new(self.options.patience, self.options.sabotage));
        }
        self.answer_held(now);
        for (ticket, answer) in turn.proposals {
            self.proposed(now, ticket, answer);
        }
        for (group, reason) in turn.broken {
            self.outputs.push(Output::Broken { volume: volume_of(group), reason });
        }
        for (ticket, barrier) in turn.reads {
            self.read_allowed(now, ticket, barrier);
        }
        for (ticket, admitted) in turn.admitted {
            self.admitted(now, ticket, admitted);
        }
        for volume in turn.dropped.into_iter().map(volume_of) {
            self.known.forget_table(volume);
            if let Some(order) = self.dropping.remove(&volume) {
                self.reporting.dropped(&order);
            }
        }
        std::mem::take(&mut self.outputs)
    }

    fn read_allowed(&mut self, now: Now, ticket: u64, barrier: Result<(), ReadError>) {
        match self.waiting.remove(&ticket) {
            Some(Waiting::Read { volume, term, ticket, request }) => {
                self.answer_read(now, (volume, term, ticket), &request, barrier);
            }
            Some(Waiting::Own { volume, term, work }) => self.barred(now, (volume, term), &work, barrier.is_ok()),
            Some(Waiting::Mutate { .. } | Waiting::Admit { .. }) | None => {}
        }
    }

    fn wait(&mut self, waiting: Waiting) -> u64 {
        self.next_ticket += 1;
        self.waiting.insert(self.next_ticket, waiting);
        self.next_ticket
    }

    fn served(&self, volume: VolumeId) -> Option<GroupStatus> {
        self.seats.get(&volume).and_then(|_| self.node.status(raft_group(volume)))
    }
}
