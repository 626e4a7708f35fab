//! A volume manager that is stepped: the decisions and the log of the real one, without its server, threads and clocks. For
//! simulations of whole clusters.
//!
//! Every request has a ticket of its caller's and is answered once, unless the value is dropped before: that is a process
//! that died. What only heartbeats know dies with it; the rest is opened again from the same directories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::{ClusterId, Random};
use holdfast_consensus::{
    GroupError, LogFailed, OpenError, ProposeError, ReadError, SteppedNode, SteppedOptions, Turn,
};
use holdfast_proto::cluster::ClusterReply;
use holdfast_storage::Directory;

use crate::machine::ClusterMachine;
use crate::manager::conversation::{Conversation, Event, Step, World};
use crate::manager::{
    Denial, Manager, Now, PROPOSE_DEADLINE, PROPOSE_PAUSE, Sabotage, Verdict, VolmgrRequest, VolmgrResponse,
    command_of, initialising, read_verdict, verdict,
};
use crate::state::{ClusterState, VOLMGR_GROUP, VOLMGR_NODE};

/// Identity of a volume manager, and its log.
#[derive(Clone, Copy, Debug)]
pub struct VolmgrOptions {
    /// Cluster, as it was formatted.
    pub cluster: ClusterId,
    /// Settings of its log. The node in it is always node 1.
    pub consensus: SteppedOptions,
    /// Seed of the random numbers in its entries: the cluster's secret, and names of requests. Lives should differ.
    pub seed: u64,
    /// Rule that it breaks.
    pub sabotage: Sabotage,
}

/// Reason why a stepped volume manager was not opened.
#[derive(Debug, thiserror::Error)]
pub enum SteppedOpenError {
    /// The log did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The Raft group could not be made.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// Answers by ticket.
pub type Answers = Vec<(u64, Result<VolmgrResponse, Denial>)>;

/// The volume manager's own ticket: the entry that initialises the log.
const OWN: Option<u64> = None;

/// Ticket that waits: of a request, or the volume manager's own start.
type Waiter = Option<u64>;

/// Something asked of the log, again and again until the deadline.
enum Asked {
    Entry(Bytes),
    Read,
}

struct Attempt {
    waiter: Waiter,
    asked: Asked,
    deadline_ns: u64,
    /// Not under way; to be tried again then.
    pause_until_ns: Option<u64>,
}

struct Talk {
    conversation: Conversation,
    /// It waits for a change, until then.
    waits_until_ms: Option<u64>,
}

/// Progress of the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The Raft group is being made.
    Creating,
    /// The log learns its cluster.
    Initialising,
    Serving,
    /// It cannot start; the process would end.
    Stuck,
}

/// A volume manager without threads; see the head of its file.
pub struct SteppedVolmgr {
    node: SteppedNode<ClusterMachine>,
    manager: Manager,
    random: Random,
    phase: Phase,
    talks: BTreeMap<u64, Talk>,
    /// By tickets of the log.
    attempts: BTreeMap<u64, Attempt>,
    next_attempt: u64,
    answers: Answers,
    /// State that is shown while the Raft group is not made yet.
    nothing: ClusterState,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl SteppedVolmgr {
    /// Opens it as a start does. It answers requests once [`SteppedVolmgr::is_serving`], some turns later.
    ///
    /// # Errors
    /// See [`SteppedOpenError`].
    pub fn open(
        options: VolmgrOptions,
        log: Arc<dyn Directory>,
        snapshots: Arc<dyn Directory>,
        now: Now,
    ) -> Result<Self, SteppedOpenError> {
        let consensus = SteppedOptions { node: VOLMGR_NODE, ..options.consensus };
        let mut node = SteppedNode::open(consensus, log, snapshots, |_| ClusterMachine::default())?;
        let is_new = !node.groups().contains(&VOLMGR_GROUP);
        node.create_group(VOLMGR_GROUP, &[VOLMGR_NODE])?;
        let mut volmgr = Self {
            node,
            manager: Manager::new(options.cluster, now, options.sabotage),
            random: Random::new(options.seed),
            phase: Phase::Creating,
            talks: BTreeMap::new(),
            attempts: BTreeMap::new(),
            next_attempt: 1,
            answers: Vec::new(),
            nothing: ClusterState::default(),
        };
        if !is_new {
            volmgr.initialise(now);
        }
        Ok(volmgr)
    }

    fn initialise(&mut self, now: Now) {
        self.phase = Phase::Initialising;
        let mut secret = [0; 32];
        secret.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&self.random.bits().to_le_bytes()));
        let command = command_of(initialising(self.manager.cluster(), secret), now);
        self.ask(now, OWN, Asked::Entry(command));
    }

    /// Takes a request in. Its answer comes with a later turn; before the start is over it is that there is nobody.
    pub fn handle(&mut self, now: Now, ticket: u64, request: VolmgrRequest) {
        if self.phase != Phase::Serving {
            return self.answers.push((ticket, Err(Denial::busy("the volume manager is starting"))));
        }
        let conversation = Conversation::new(request, self.random.bits());
        self.talks.insert(ticket, Talk { conversation, waits_until_ms: None });
        self.proceed(now, ticket, Event::Begun);
    }

    /// Lets a tick pass: of the log, of liveness, and of what waits for its time.
    pub fn tick(&mut self, now: Now) {
        self.node.tick();
        self.manager.tick(now);
        let late = |talk: &Talk| talk.waits_until_ms.is_some_and(|until| now.ms() >= until);
        self.wake(now, late);
        let due = |attempt: &Attempt| attempt.pause_until_ns.is_some_and(|until| now.monotonic_ns >= until);
        let due: Vec<u64> = self.attempts.iter().filter(|(_, a)| due(a)).map(|(ticket, _)| *ticket).collect();
        for ticket in due {
            self.try_again(now, ticket);
        }
    }

    /// See [`SteppedNode::turn`]; what it allows to be answered.
    ///
    /// # Errors
    /// [`LogFailed`]: the process would stop.
    pub fn turn(&mut self, now: Now) -> Result<Answers, LogFailed> {
        let turn = self.node.turn(now.monotonic_ns)?;
        Ok(self.take(now, turn))
    }

    /// See [`SteppedNode::synced`]; what it allows to be answered.
    ///
    /// # Errors
    /// [`LogFailed`]: the process would stop.
    pub fn synced(&mut self, now: Now) -> Result<Answers, LogFailed> {
        let turn = self.node.synced()?;
        Ok(self.take(now, turn))
    }

    /// Whether [`SteppedVolmgr::turn`] would do or say anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.node.has_work() || !self.answers.is_empty()
    }

    /// Whether [`SteppedVolmgr::synced`] is due.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.node.is_syncing()
    }

    /// Whether its start is over.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether it will never serve: the log is another cluster's, or does not accept entries. The process would end.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.phase == Phase::Stuck || self.node.is_failed()
    }

    /// See [`SteppedNode::write_snapshot`].
    pub fn write_snapshot(&mut self) -> bool {
        self.node.write_snapshot()
    }

    /// See [`SteppedNode::jobs`].
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.node.jobs()
    }

    /// The state as of the last applied entry.
    #[must_use]
    pub fn cluster_state(&self) -> &ClusterState {
        self.node.state(VOLMGR_GROUP).map_or(&self.nothing, ClusterMachine::state)
    }

    fn take(&mut self, now: Now, turn: Turn) -> Answers {
        if self.phase == Phase::Creating && turn.created.contains(&VOLMGR_GROUP) {
            self.initialise(now);
        }
        let changed = !turn.proposals.is_empty();
        for (ticket, outcome) in turn.proposals {
            self.proposed(now, ticket, verdict(outcome));
        }
        for (ticket, outcome) in turn.reads {
            self.read(now, ticket, outcome);
        }
        if changed {
            self.wake(now, |talk| talk.waits_until_ms.is_some());
        }
        std::mem::take(&mut self.answers)
    }

    fn proposed(&mut self, now: Now, ticket: u64, verdict: Verdict<ClusterReply, ProposeError>) {
        match verdict {
            Verdict::Decided(result) => {
                let Some(attempt) = self.attempts.remove(&ticket) else { return };
                match (attempt.waiter, result) {
                    (Some(request), Ok(reply)) => self.proceed(now, request, Event::Proposed(reply)),
                    (waiter, Err(denial)) => self.fail(waiter, denial),
                    (None, Ok(_)) => self.phase = Phase::Serving,
                }
            }
            Verdict::Again(error) => self.pause(now, ticket, &error.to_string()),
        }
    }

    fn read(&mut self, now: Now, ticket: u64, outcome: Result<(), ReadError>) {
        match read_verdict(outcome) {
            Verdict::Decided(Ok(())) => {
                let waiter = self.attempts.remove(&ticket).and_then(|attempt| attempt.waiter);
                if let Some(request) = waiter {
                    self.proceed(now, request, Event::Read);
                }
            }
            Verdict::Decided(Err(denial)) => {
                let waiter = self.attempts.remove(&ticket).and_then(|attempt| attempt.waiter);
                self.fail(waiter, denial);
            }
            Verdict::Again(error) => self.pause(now, ticket, &error.to_string()),
        }
    }

    /// Steps a conversation until it waits for something or is over.
    fn proceed(&mut self, now: Now, ticket: u64, event: Event) {
        let Some(talk) = self.talks.get_mut(&ticket) else { return };
        let state = self.node.state(VOLMGR_GROUP).map_or(&self.nothing, ClusterMachine::state);
        talk.waits_until_ms = None;
        match talk.conversation.step(World { manager: &mut self.manager, state, now }, event) {
            Step::Read => self.ask(now, Some(ticket), Asked::Read),
            Step::Propose(op) => self.ask(now, Some(ticket), Asked::Entry(command_of(op, now))),
            Step::Wait { until_ms } => talk.waits_until_ms = Some(until_ms),
            Step::Done(result) => {
                self.talks.remove(&ticket);
                self.answers.push((ticket, result));
            }
        }
    }

    fn wake(&mut self, now: Now, which: impl Fn(&Talk) -> bool) {
        let woken: Vec<u64> = self.talks.iter().filter(|(_, talk)| which(talk)).map(|(ticket, _)| *ticket).collect();
        woken.into_iter().for_each(|ticket| self.proceed(now, ticket, Event::Changed));
    }

    fn fail(&mut self, waiter: Waiter, denial: Denial) {
        match waiter {
            Some(ticket) => {
                self.talks.remove(&ticket);
                self.answers.push((ticket, Err(denial)));
            }
            None => self.phase = Phase::Stuck,
        }
    }

    fn ask(&mut self, now: Now, waiter: Waiter, asked: Asked) {
        let ticket = self.next_attempt;
        self.next_attempt += 1;
        let deadline_ns = now.monotonic_ns + nanoseconds(PROPOSE_DEADLINE);
        self.attempts.insert(ticket, Attempt { waiter, asked, deadline_ns, pause_until_ns: None });
        self.try_again(now, ticket);
    }

    fn try_again(&mut self, now: Now, ticket: u64) {
        let Some(attempt) = self.attempts.get_mut(&ticket) else { return };
        attempt.pause_until_ns = None;
        match &attempt.asked {
            Asked::Entry(command) => self.node.propose(VOLMGR_GROUP, command.clone(), ticket),
            Asked::Read => drop(self.node.read(now.monotonic_ns, VOLMGR_GROUP, ticket)),
        }
    }

    /// It was not done, or nobody knows: it is tried again after a pause, until the deadline.
    fn pause(&mut self, now: Now, ticket: u64, why: &str) {
        let Some(attempt) = self.attempts.get_mut(&ticket) else { return };
        if now.monotonic_ns < attempt.deadline_ns {
            attempt.pause_until_ns = Some(now.monotonic_ns + nanoseconds(PROPOSE_PAUSE));
            return;
        }
        let denial = match attempt.asked {
            Asked::Entry(_) => Denial::no_entry(why),
            Asked::Read => Denial::no_read(why),
        };
        let waiter = self.attempts.remove(&ticket).and_then(|attempt| attempt.waiter);
        self.fail(waiter, denial);
    }
}

#[cfg(test)]
mod tests;
