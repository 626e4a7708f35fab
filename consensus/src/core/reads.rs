//! The leader's lease, and the reads that wait for it. Pure.
//!
//! A round is a heartbeat with a context of its own. Its answers by a majority say that none of them gives a vote for
//! an election timeout from when the round began, so that until then nobody else can have acknowledged anything: what
//! this leader has applied is everything there is, once that includes what was committed when the round began.

use std::collections::VecDeque;

use holdfast_common::LogIndex;
use raft::ReadState;

/// Most reads that wait for a lease.
const READS_MAX: usize = 64 << 10;
/// Unanswered rounds remembered. A leader without a majority steps down within two election timeouts.
const ROUNDS_MAX: usize = 32;

struct Round {
    context: u64,
    began_ns: u64,
}

struct Granted {
    began_ns: u64,
    index: LogIndex,
}

pub(super) struct Reads<R> {
    lease_ns: u64,
    until_ns: u64,
    /// Confirmed, and to wait until this is applied.
    granted: Option<Granted>,
    /// When the last round began that was confirmed and applied: reads that came before it may go ahead.
    confirmed_ns: Option<u64>,
    rounds: VecDeque<Round>,
    next_context: u64,
    /// With the times at which they came.
    waiting: Vec<(u64, R)>,
    pub(super) round_wanted: bool,
}

impl<R> Reads<R> {
    pub(super) fn new(lease_ns: u64) -> Self {
        Self {
            lease_ns,
            until_ns: 0,
            granted: None,
            confirmed_ns: None,
            rounds: VecDeque::new(),
            next_context: 1,
            waiting: Vec::new(),
            round_wanted: false,
        }
    }

    pub(super) fn leased(&self, now: u64) -> bool {
        now < self.until_ns
    }

    pub(super) fn lease_until_ns(&self) -> u64 {
        self.until_ns
    }

    pub(super) fn lease_forever(&mut self) {
        self.until_ns = u64::MAX;
    }

    pub(super) fn wait(&mut self, now: u64, read: R) -> Result<(), R> {
        if self.waiting.len() >= READS_MAX {
            return Err(read);
        }
        self.waiting.push((now, read));
        Ok(())
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn round_runs(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// The context of a new round that begins now.
    pub(super) fn begin_round(&mut self, now: u64) -> Vec<u8> {
        if self.rounds.len() >= ROUNDS_MAX {
            self.rounds.pop_front();
        }
        let context = self.next_context;
        self.next_context += 1;
        self.rounds.push_back(Round { context, began_ns: now });
        context.to_le_bytes().to_vec()
    }

    /// A majority answered these rounds.
    pub(super) fn confirm(&mut self, states: Vec<ReadState>) {
        for state in states {
            let Some(position) = self.rounds.iter().position(|r| state.request_ctx == r.context.to_le_bytes()) else {
                continue;
            };
            let began_ns = self.rounds[position].began_ns;
            self.rounds.drain(..=position);
            let index =
                self.granted.as_ref().map_or(LogIndex::ZERO, |granted| granted.index).max(LogIndex(state.index));
            self.granted = Some(Granted { began_ns, index });
        }
    }

    /// Turns what was granted into a lease if enough is applied.
    pub(super) fn settle(&mut self, applied: LogIndex) {
        if let Some(granted) = self.granted.take_if(|granted| applied >= granted.index) {
            self.until_ns = self.until_ns.max(granted.began_ns.saturating_add(self.lease_ns));
            self.confirmed_ns = self.confirmed_ns.max(Some(granted.began_ns));
        }
    }

    /// Takes the reads that may go ahead: under the lease, or because a round began after they came. `now` may be as
    /// old as the inputs of this turn: whoever waits came before it, and then nobody else led.
    pub(super) fn served(&mut self, now: u64) -> Vec<R> {
        let leased = self.leased(now);
        let confirmed = self.confirmed_ns;
        let (served, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(came, _)| leased || confirmed.is_some_and(|began| *came <= began));
        self.waiting = waiting;
        served.into_iter().map(|(_, read): (u64, R)| read).collect()
    }

    /// Leadership is gone: takes back the lease and hands out whoever waits.
    pub(super) fn reset(&mut self) -> Vec<R> {
        self.until_ns = 0;
        self.granted = None;
        self.confirmed_ns = None;
        self.rounds.clear();
        self.round_wanted = false;
        std::mem::take(&mut self.waiting).into_iter().map(|(_, read)| read).collect()
    }
}
