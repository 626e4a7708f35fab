//! What waits for the driver: bounded in count and bytes, taken in turns, waking the driver only when it sleeps.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;
use holdfast_common::NodeId;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::config::COMMAND_BYTES_MAX;
use crate::log::record::SnapshotMark;
use crate::outbox::{GroupMessage, MESSAGE_BYTES_MAX};
use crate::status::{GroupError, ProposeError, ReadError};

/// Waits for the answer to a proposal.
pub(crate) type ProposeTicket = oneshot::Sender<Result<Bytes, ProposeError>>;
/// Waits to read.
pub(crate) type ReadTicket = oneshot::Sender<Result<(), ReadError>>;
/// Waits for a group to be made or dropped.
pub(crate) type ControlTicket = mpsc::Sender<Result<(), GroupError>>;

/// Input of one turn, in bytes; what is more waits for the next. Bounds what raft puts into one message, too.
const TURN_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(TURN_BYTES_MAX + 2 * COMMAND_BYTES_MAX <= MESSAGE_BYTES_MAX);
/// What an item costs beside its bytes.
const ITEM_COST_BYTES: usize = 64;

/// One thing for the driver to do.
pub(crate) enum Item {
    Propose { group: u64, command: Bytes, ticket: ProposeTicket },
    Read { group: u64, ticket: ReadTicket },
    Message { from: NodeId, message: GroupMessage },
    SnapshotFile { from: NodeId, message: GroupMessage, file: PathBuf },
    SnapshotDelivered { from: NodeId, message: GroupMessage, mark: SnapshotMark },
    SnapshotWritten { group: u64, mark: SnapshotMark, ok: bool },
    SnapshotReported { group: u64, to: NodeId, ok: bool },
    Create { group: u64, voters: Vec<NodeId>, ticket: ControlTicket },
    Drop { group: u64, ticket: ControlTicket },
}

impl Item {
    fn cost(&self) -> usize {
        ITEM_COST_BYTES
            + match self {
                Self::Propose { command, .. } => command.len(),
                Self::Message { message, .. } => message.bytes.len(),
                _ => 0,
            }
    }
}

/// Why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    sleeps: bool,
    closed: bool,
}

/// The queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    woken: Condvar,
    bytes_max: usize,
    items_max: usize,
}

impl Queue {
    pub(crate) fn new(bytes_max: usize, items_max: usize) -> Self {
        Self { state: Mutex::new(State::default()), woken: Condvar::new(), bytes_max, items_max }
    }

    /// Adds what may be refused.
    pub(crate) fn push(&self, item: Item) -> Result<(), Refused> {
        self.add(item, true)
    }

    /// Adds what comes seldom and must not get lost.
    pub(crate) fn push_always(&self, item: Item) -> Result<(), Refused> {
        self.add(item, false)
    }

    fn add(&self, item: Item, bounded: bool) -> Result<(), Refused> {
        let cost = item.cost();
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if bounded && (state.items.len() >= self.items_max || state.bytes + cost > self.bytes_max) {
            return Err(Refused::Full);
        }
        state.bytes += cost;
        state.items.push_back(item);
        if std::mem::take(&mut state.sleeps) {
            drop(state);
            self.woken.notify_one();
        }
        Ok(())
    }

    /// Takes a turn's worth; sleeps until there is something or `until` has come. `None` when closed.
    pub(crate) fn take(&self, until: Instant) -> Option<Vec<Item>> {
        let mut state = self.state.lock();
        while state.items.is_empty() && !state.closed {
            state.sleeps = true;
            if self.woken.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.sleeps = false;
        if state.closed {
            return None;
        }
        let mut taken = Vec::with_capacity(state.items.len());
        let mut bytes = 0;
        while bytes < TURN_BYTES_MAX
            && let Some(item) = state.items.pop_front()
        {
            bytes += item.cost();
            taken.push(item);
        }
        state.bytes -= bytes;
        Some(taken)
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
