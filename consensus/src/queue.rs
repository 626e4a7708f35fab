//! Inputs that wait for the driver, bounded in count and bytes and taken in turns, and the right to drive.
//!
//! The driver's thread does, and sleeps when there is nothing to do. Whoever then brings a proposal, a read or a message
//! drives it himself, as a visitor, as far as nothing waits for the disk; what is left is the thread's. So an entry that
//! comes alone costs two changes of threads less on each replica.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::{NodeId, RaftGroupId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::admission::Admitted;
use crate::config::COMMAND_BYTES_MAX;
use crate::log::record::SnapshotMark;
use crate::outbox::{GroupMessage, MESSAGE_BYTES_MAX};
use crate::status::{AdmissionError, GroupError, ProposeError, ReadError};

/// Waits for the answer to a proposal.
pub(crate) type ProposeTicket = oneshot::Sender<Result<Bytes, ProposeError>>;
/// Waits to read.
pub(crate) type ReadTicket = oneshot::Sender<Result<(), ReadError>>;
/// Waits for a Raft group to be made or dropped.
pub(crate) type ControlTicket = mpsc::Sender<Result<(), GroupError>>;

/// Waits for a voter to be admitted.
pub(crate) type AdmitTicket = oneshot::Sender<Result<Admitted, AdmissionError>>;

/// Input of one turn, in bytes; what is more waits for the next. Bounds what raft puts into one message, too.
pub(crate) const TURN_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(TURN_BYTES_MAX + 2 * COMMAND_BYTES_MAX <= MESSAGE_BYTES_MAX);
/// Bytes that an item is counted with beside its own.
const ITEM_COST_BYTES: usize = 64;

/// One input for the driver.
pub(crate) enum Item {
    Propose { group: RaftGroupId, command: Bytes, ticket: ProposeTicket },
    Read { group: RaftGroupId, ticket: ReadTicket },
    Message { from: NodeId, message: GroupMessage },
    SnapshotFile { from: NodeId, message: GroupMessage, file: PathBuf },
    SnapshotDelivered { from: NodeId, message: GroupMessage, mark: SnapshotMark },
    SnapshotWritten { group: RaftGroupId, mark: SnapshotMark, ok: bool },
    SnapshotReported { group: RaftGroupId, to: NodeId, ok: bool },
    Admit { group: RaftGroupId, to: NodeId, ticket: AdmitTicket },
    Create { group: RaftGroupId, voters: Vec<NodeId>, ticket: ControlTicket },
    Drop { group: RaftGroupId, ticket: ControlTicket },
}

impl Item {
    /// Whether a visitor may drive it: it is frequent, and needs no file.
    fn is_light(&self) -> bool {
        matches!(self, Self::Propose { .. } | Self::Read { .. } | Self::Message { .. })
    }

    fn cost(&self) -> usize {
        ITEM_COST_BYTES
            + match self {
                Self::Propose { command, .. } => command.len(),
                Self::Message { message, .. } => message.bytes.len(),
                _ => 0,
            }
    }
}

/// Reason why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl From<Refused> for ProposeError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Overloaded,
            Refused::Closed => Self::Stopped,
        }
    }
}

impl From<Refused> for ReadError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Overloaded,
            Refused::Closed => Self::Stopped,
        }
    }
}

impl From<Refused> for AdmissionError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Overloaded,
            Refused::Closed => Self::Stopped,
        }
    }
}

/// Those that make or drop a Raft group come seldom and are always taken: only a node that is closed refuses one.
impl From<Refused> for GroupError {
    fn from(_: Refused) -> Self {
        Self::Stopped
    }
}

/// Present holder of the driver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drives {
    Thread,
    /// The thread sleeps: a caller that comes may visit.
    Nobody,
    Visitor,
}

struct State {
    items: VecDeque<Item>,
    bytes: usize,
    drives: Drives,
    /// The thread must drive next, whether or not there are items: time has come, or a visitor left work.
    wanted: bool,
    closed: bool,
}

/// Drives a turn without waiting for the disk. Says whether anything is left for the thread.
pub(crate) type Visit = Box<dyn Fn(Vec<Item>) -> bool + Send + Sync>;

pub(crate) struct Queue {
    state: Mutex<State>,
    woken: Condvar,
    bytes_max: usize,
    items_max: usize,
    visit: OnceLock<Visit>,
}

impl State {
    /// Fills up a turn from the front.
    fn take(&mut self, turn: &mut Vec<Item>) {
        let mut bytes: usize = turn.iter().map(Item::cost).sum();
        while bytes < TURN_BYTES_MAX
            && let Some(item) = self.items.pop_front()
        {
            bytes += item.cost();
            self.bytes -= item.cost();
            turn.push(item);
        }
    }
}

impl Queue {
    pub(crate) fn new(bytes_max: usize, items_max: usize) -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, drives: Drives::Thread, wanted: false, closed: false };
        Self { state: Mutex::new(state), woken: Condvar::new(), bytes_max, items_max, visit: OnceLock::new() }
    }

    /// Lets visitors in from now on.
    pub(crate) fn let_visitors(&self, visit: Visit) {
        // Set once, by who makes the queue.
        let _ = self.visit.set(visit);
    }

    /// Adds what may be refused.
    pub(crate) fn push(&self, item: Item) -> Result<(), Refused> {
        self.push_one(item, true)
    }

    /// Adds as many as there is room for.
    pub(crate) fn push_all(&self, items: impl Iterator<Item = Item>) {
        let mut state = self.state.lock();
        for item in items {
            // Only raft's messages come so, and it repeats what gets lost.
            let _ = self.add(&mut state, item, true);
        }
        self.drive(state);
    }

    /// Adds what comes seldom and must not get lost.
    pub(crate) fn push_always(&self, item: Item) -> Result<(), Refused> {
        self.push_one(item, false)
    }

    fn push_one(&self, item: Item, bounded: bool) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let added = self.add(&mut state, item, bounded);
        self.drive(state);
        added
    }

    fn add(&self, state: &mut State, item: Item, bounded: bool) -> Result<(), Refused> {
        let cost = item.cost();
        if state.closed {
            return Err(Refused::Closed);
        }
        if bounded && (state.items.len() >= self.items_max || state.bytes + cost > self.bytes_max) {
            return Err(Refused::Full);
        }
        state.bytes += cost;
        state.items.push_back(item);
        Ok(())
    }

    /// Sees to it that somebody drives what is waiting.
    fn drive(&self, mut state: MutexGuard<'_, State>) {
        if state.drives != Drives::Nobody || state.items.is_empty() {
            return;
        }
        let visit = self.visit.get().filter(|_| state.items.iter().all(Item::is_light));
        let Some(visit) = visit else { return self.wake(state) };
        state.drives = Drives::Visitor;
        let mut items = Vec::with_capacity(state.items.len());
        state.take(&mut items);
        drop(state);
        let left = visit(items);
        let mut state = self.state.lock();
        state.drives = Drives::Nobody;
        state.wanted |= left;
        if state.wanted || state.closed || !state.items.is_empty() {
            self.wake(state);
        }
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        state.drives = Drives::Thread;
        drop(state);
        self.woken.notify_one();
    }

    /// Takes a turn's worth, for the thread to drive; sleeps until there is something, a visitor left work, or `until` has
    /// come. `None` when closed.
    pub(crate) fn take(&self, until: Instant) -> Option<Vec<Item>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let visited = state.drives == Drives::Visitor;
            if !visited && (state.wanted || !state.items.is_empty()) {
                break;
            }
            if !visited {
                state.drives = Drives::Nobody;
            }
            if state.wanted {
                // The visitor wakes this thread.
                self.woken.wait(&mut state);
            } else if self.woken.wait_until(&mut state, until).timed_out() {
                state.wanted = true;
            }
        }
        (state.drives, state.wanted) = (Drives::Thread, false);
        let mut items = Vec::with_capacity(state.items.len());
        state.take(&mut items);
        Some(items)
    }

    /// Fills up the turn with what has come since [`Self::take`].
    pub(crate) fn take_more(&self, turn: &mut Vec<Item>) {
        self.state.lock().take(turn);
    }

    /// Sleeps for a while, or until it is closed; says whether it is. For the thread, while it drives.
    pub(crate) fn closes_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.closed && !self.woken.wait_until(&mut state, until).timed_out() {}
        state.closed
    }

    /// Refuses everything from now on; what waits is let go, which tells those who wait.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.items.clear();
        drop(state);
        self.woken.notify_one();
    }
}

#[cfg(test)]
mod tests;
