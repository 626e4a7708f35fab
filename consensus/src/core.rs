//! One Raft group as a sans-IO core around raft-rs: inputs in, effects out. Pure; knows eraftpb, which nothing above
//! does.
//!
//! The order that must hold is `inputs -> collect -> (shell makes records durable) -> persisted -> collect ...`: votes,
//! append responses and answers leave only after what they promise is durable; a leader's own messages may go before.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId, Random, Term};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Config, RawNode, Ready, Storage};

use crate::config::{ELECTION_TICKS, HEARTBEAT_TICKS};
use crate::log::record::{HardState, Record, SnapshotMark};
use crate::log::replay::Replayed;
use crate::outbox::GroupMessage;
use crate::sabotage::Sabotage;
use crate::status::{ProposeError, ReadError};
use crate::stop::StopReason;
use admission::Admission;
use effects::{Apply, Command, Effects, Install, SnapshotOut};
use reads::Reads;
use store::EntryStore;

mod admission;
pub(crate) mod effects;
mod reads;
mod snapshots;
mod standing;
mod store;
mod wire;

/// Entries of one append message, in bytes; a follower that is behind costs this much to probe.
const APPEND_BYTES_MAX: u64 = 1 << 20;
/// Most append messages in flight to one follower.
const APPENDS_IN_FLIGHT_MAX: usize = 128;
/// Uncommitted bytes above which a leader refuses proposals.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Settings of a core, the same for all of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreOptions {
    pub(crate) node: u64,
    pub(crate) seed: u64,
    pub(crate) tick_ns: u64,
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) tail_bytes: u64,
    pub(crate) tail_entries: u64,
    pub(crate) sabotage: Sabotage,
}

/// Records that a turn's readies left to make durable.
struct Awaiting {
    ready: u64,
    messages: Vec<Message>,
    install: Option<Installing>,
}

/// A delivered snapshot whose record is on its way to the disk.
struct Installing {
    new: SnapshotMark,
    /// Its file goes only when the record is durable (R25).
    old: SnapshotMark,
}

/// One Raft group. `P` and `R` are the tickets that its shell gets back with the answers to proposals and reads.
pub(crate) struct GroupCore<P, R> {
    group: RaftGroupId,
    options: CoreOptions,
    raw: RawNode<EntryStore>,
    random: Random,
    /// Ticks without a leader after which this replica asks for votes; drawn again each time (raft-rs's own randomness
    /// is pinned out of reach).
    patience_ticks: usize,
    /// Patience of a replica that never heard of any term: a new group need not wait for a leader to be missed. Staggered,
    /// so that its replicas do not duel.
    first_patience_ticks: usize,
    /// Ticks during which votes are not given: in its former life this replica may have heard a leader whose lease runs.
    quiet_ticks: usize,
    ticks_to_beat: usize,
    proposals: BTreeMap<LogIndex, (Term, P)>,
    proposals_term: Term,
    reads: Reads<R>,
    applied: LogIndex,
    awaiting: Option<Awaiting>,
    logged: HardState,
    /// A snapshot of the leader that was delivered and verified, until raft takes it or not.
    delivered: Option<SnapshotMark>,
    /// A local snapshot whose record is on its way to the disk.
    written: Option<SnapshotMark>,
    /// Followers that have a snapshot's file and may be restoring it, with the ticks they have left.
    restoring: BTreeMap<u64, usize>,
    freezing: bool,
    freeze_wanted: bool,
    /// Log bytes at which the next snapshot is tried, raised after a failure.
    freeze_at_bytes: u64,
    /// Ticks after a failure in which the log's length alone is no reason for another try.
    freeze_pause_ticks: usize,
    /// Voters that are brought back.
    admissions: Vec<Admission>,
    stopped: Option<StopReason>,
    distrusted: bool,
}

impl<P, R> GroupCore<P, R> {
    /// A group as the log has it. `resumed` says that it may have voted or heard a leader before.
    pub(crate) fn new(group: RaftGroupId, options: CoreOptions, replayed: Replayed, resumed: bool) -> Self {
        let again = options.sabotage == Sabotage::AppliedAgain;
        let applied = if again { replayed.before.0 } else { replayed.state.snapshot.index };
        let logged = replayed.state.hard;
        let place = replayed.state.voters.iter().position(|id| *id == options.node).unwrap_or(0);
        let alone = replayed.state.voters == [options.node];
        let config = Config {
            id: options.node,
            election_tick: ELECTION_TICKS,
            // Never reached: this core counts the patience itself.
            min_election_tick: 2 * ELECTION_TICKS,
            max_election_tick: 2 * ELECTION_TICKS + 1,
            // Heartbeats are the lease's rounds; raft-rs's own come on top only if this core forgot them.
            heartbeat_tick: ELECTION_TICKS - 1,
            applied: applied.0,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // Followers learn of a commit with the next entries or heartbeat: half the messages.
            skip_bcast_commit: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let (store, unknown) = EntryStore::new(replayed);
        let raw = RawNode::new(&config, store, &logger).expect("the configuration is constant");
        let stopped = unknown.map(StopReason::UnknownEntry);
        let mut core = Self {
            group,
            options,
            raw,
            random: Random::new(options.seed ^ group.0.rotate_left(32)),
            patience_ticks: 0,
            first_patience_ticks: 1 + 2 * place,
            quiet_ticks: if resumed && !alone && options.sabotage != Sabotage::RestartedVotesAtOnce {
                ELECTION_TICKS
            } else {
                0
            },
            ticks_to_beat: HEARTBEAT_TICKS,
            proposals: BTreeMap::new(),
            proposals_term: Term::ZERO,
            reads: Reads::new(lease_ns(&options)),
            applied,
            awaiting: None,
            logged,
            delivered: None,
            written: None,
            restoring: BTreeMap::new(),
            freezing: false,
            freeze_wanted: false,
            freeze_at_bytes: 0,
            freeze_pause_ticks: 0,
            admissions: Vec::new(),
            // What was left out must not be lost by being carried forward.
            distrusted: stopped.is_some(),
            stopped,
        };
        core.draw_patience();
        if alone && !core.is_stopped() {
            core.campaign();
        }
        core
    }

    fn draw_patience(&mut self) {
        let spread = self.random.below(ELECTION_TICKS as u64);
        self.patience_ticks = ELECTION_TICKS + usize::try_from(spread).expect("a few ticks");
    }

    fn campaign(&mut self) {
        self.raw.raft.election_elapsed = 0;
        self.draw_patience();
        // It only fails for a reason that the next attempt meets again.
        let _ = self.raw.campaign();
    }

    /// Lets a tick pass.
    pub(crate) fn tick(&mut self, now: u64) {
        self.quiet_ticks = self.quiet_ticks.saturating_sub(1);
        self.freeze_pause_ticks = self.freeze_pause_ticks.saturating_sub(1);
        self.tick_admissions();
        self.raw.tick();
        if !self.leads() {
            // Whoever heard a leader must be patient for an election timeout, because the leader's lease counts on it.
            let patience = if self.term() == Term::ZERO { self.first_patience_ticks } else { self.patience_ticks };
            if self.raw.raft.promotable() && self.raw.raft.election_elapsed >= patience {
                self.campaign();
            }
            return;
        }
        self.await_restored();
        self.ticks_to_beat -= 1;
        if self.ticks_to_beat == 0 {
            self.ticks_to_beat = HEARTBEAT_TICKS;
            self.beat(now);
        }
    }

    /// A heartbeat is a round that renews the lease; raft-rs drops such a round before this term's first commit.
    fn beat(&mut self, now: u64) {
        if self.alone() {
            return;
        }
        if self.raw.raft.commit_to_current_term() {
            self.raw.read_index(self.reads.begin_round(now));
        } else {
            self.raw.ping();
        }
    }

    /// Proposes commands, in their order.
    pub(crate) fn propose(&mut self, commands: Vec<(Bytes, P)>, out: &mut Effects<P, R>) {
        if !self.leads() {
            let leader = self.leader();
            out.failed.extend(commands.into_iter().map(|(_, p)| (p, ProposeError::NotLeader { leader })));
            return;
        }
        let (data, tickets): (Vec<Bytes>, Vec<P>) = commands.into_iter().unzip();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.options.node;
        message.set_entries(data.into_iter().map(|data| Entry { data, ..Entry::default() }).collect());
        let (term, first) = (self.term(), self.last_index().next());
        if self.raw.raft.step(message).is_err() {
            out.failed.extend(tickets.into_iter().map(|p| (p, ProposeError::Overloaded)));
            return;
        }
        self.proposals_term = term;
        self.proposals.extend(tickets.into_iter().zip(0..).map(|(p, n)| (first + n, (term, p))));
    }

    /// Asks to read the state as of now or later.
    pub(crate) fn read(&mut self, now: u64, ticket: R, out: &mut Effects<P, R>) {
        if !self.leads() {
            out.reads.push((self.group, ticket, Err(ReadError::NotLeader { leader: self.leader() })));
        } else if self.reads.leased(now) || self.options.sabotage == Sabotage::ReadsWithoutQuorum {
            out.reads.push((self.group, ticket, Ok(())));
        } else if let Err(ticket) = self.reads.wait(now, ticket) {
            out.reads.push((self.group, ticket, Err(ReadError::Overloaded)));
        } else if !self.reads.round_runs() {
            self.beat(now);
        }
    }

    /// Takes a message in.
    pub(crate) fn message(&mut self, from: u64, bytes: &Bytes) {
        let Some(message) = wire::decode(from, self.options.node, bytes) else { return };
        let votes = matches!(message.get_msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        // A snapshot without its file is of no use.
        if (votes && self.quiet_ticks > 0) || message.get_msg_type() == MessageType::MsgSnapshot {
            return;
        }
        // Errors are about peers that are no members; such messages are dropped.
        let _ = self.raw.step(message);
    }

    /// The record that creates this group. Nothing leaves before it is durable: not even a heartbeat may be answered by a
    /// replica that could forget its leader's lease together with its own existence.
    pub(crate) fn creation(&mut self) -> Record {
        self.awaiting = Some(Awaiting { ready: 0, messages: Vec::new(), install: None });
        Record::Group(self.group, self.raw.store().group_state(SnapshotMark::default(), false))
    }

    /// Gathers everything there is to do until something has to be made durable first.
    pub(crate) fn collect(&mut self, now: u64, is_tight: bool, next_file: &mut u64, out: &mut Effects<P, R>) {
        self.take_readies(out);
        if self.proposals_term != self.term() || !self.leads() {
            let lost = std::mem::take(&mut self.proposals);
            out.failed.extend(lost.into_values().map(|(_, p)| (p, ProposeError::Unknown)));
        }
        self.settle_reads(now, out);
        if std::mem::take(&mut self.reads.round_wanted) {
            self.beat(now);
            self.take_readies(out);
        }
        self.settle_admissions(out);
        self.freeze_if_due(is_tight, next_file, out);
        out.touched.insert(self.group);
    }

    fn take_readies(&mut self, out: &mut Effects<P, R>) {
        while self.awaiting.is_none() && self.raw.has_ready() {
            self.take_ready(out);
        }
    }

    fn take_ready(&mut self, out: &mut Effects<P, R>) {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages(), out);
        self.reads.confirm(ready.take_read_states());
        let before = out.records.len();
        let install = self.record(&ready, out);
        let messages = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let number = ready.number();
        self.raw.advance_append_async(ready);
        self.apply(committed, out);
        let early = self.options.sabotage == Sabotage::AnswersBeforeSync && install.is_none();
        if out.records.len() == before || early {
            self.raw.on_persist_ready(number);
            self.send(messages, out);
        } else {
            self.awaiting = Some(Awaiting { ready: number, messages, install });
        }
    }

    /// Writes down what a ready wants durable, and lets raft read it back from the store.
    fn record(&mut self, ready: &Ready, out: &mut Effects<P, R>) -> Option<Installing> {
        if let Some(hard) = ready.hs() {
            self.raw.mut_store().set_hard(hard.clone());
        }
        let mut install = None;
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let mark = self.delivered.take().expect("raft only restores what was delivered");
            let announced = (LogIndex(metadata.index), Term(metadata.term));
            assert_eq!((mark.index, mark.term), announced, "another snapshot was delivered");
            let old = self.raw.store().mark();
            self.raw.mut_store().install(mark, metadata.get_conf_state().clone());
            let mut state = self.raw.store().group_state(mark, self.options.sabotage != Sabotage::InstalledEntriesKept);
            // A later commit index may speak of entries that follow in this batch: it goes behind them.
            state.hard.commit = mark.index;
            self.logged = state.hard;
            out.records.push(Record::Group(self.group, state));
            install = Some(Installing { new: mark, old });
        }
        if !ready.entries().is_empty() {
            self.raw.mut_store().append(ready.entries());
            let entries = ready.entries().iter().map(wire::log_from_entry).collect();
            out.records.push(Record::Entries(self.group, entries));
        }
        // A commit index alone is not worth a sync; it goes along with the next batch.
        if ready.must_sync() && self.options.sabotage != Sabotage::VotesUnwritten {
            let hard = wire::hard_state(&self.raw.store().initial_state().expect("in memory").hard_state);
            if hard != self.logged {
                self.logged = hard;
                out.records.push(Record::Hard(self.group, hard));
            }
        }
        install
    }

    /// Everything recorded so far is durable.
    pub(crate) fn persisted(&mut self, out: &mut Effects<P, R>) {
        if let Some(mark) = self.written.take() {
            let old = self.raw.store().mark();
            if mark.index > old.index {
                self.raw.mut_store().set_mark(mark, self.options.tail_entries, self.options.tail_bytes);
                self.freeze_at_bytes = 0;
                out.remove(self.group, Some(old));
            } else {
                out.remove(self.group, Some(mark));
            }
        }
        let Some(awaiting) = self.awaiting.take() else { return };
        self.raw.on_persist_ready(awaiting.ready);
        if let Some(Installing { new: mark, old }) = awaiting.install {
            self.applied = mark.index;
            self.raw.advance_apply_to(mark.index.0);
            out.remove(self.group, Some(old));
            out.installs.push(Install { group: self.group, mark });
        }
        self.send(awaiting.messages, out);
    }

    fn send(&mut self, messages: Vec<Message>, out: &mut Effects<P, R>) {
        for message in messages {
            let (to, bytes) = (NodeId(message.to), wire::encode(&message));
            let group_message = GroupMessage { group: self.group, bytes };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                let Some(file) = store::snapshot_file(&message.get_snapshot().data) else { continue };
                out.snapshots.push(SnapshotOut { to, message: group_message, file });
            } else {
                out.messages.entry(to).or_default().push(group_message);
            }
        }
    }

    fn apply(&mut self, committed: Vec<Entry>, out: &mut Effects<P, R>) {
        let Some(last) = committed.last().map(|entry| LogIndex(entry.index)) else { return };
        let mut commands = Vec::with_capacity(committed.len());
        for entry in committed {
            let (index, entry_term) = (LogIndex(entry.index), Term(entry.term));
            let (ticket, lost) = match self.proposals.remove(&index) {
                Some((term, ticket)) if term == entry_term => (Some(ticket), None),
                Some((_, ticket)) => (None, Some(ticket)),
                None => (None, None),
            };
            // Another entry took its index, so it never happens.
            let leader = self.leader();
            out.failed.extend(lost.map(|ticket| (ticket, ProposeError::NotLeader { leader })));
            if entry.get_entry_type() != EntryType::EntryNormal {
                out.broken.push((self.group, StopReason::UnknownEntry(index)));
                break;
            }
            commands.push(Command { index, data: entry.data, ticket });
        }
        self.applied = last;
        self.raw.advance_apply_to(last.0);
        out.applies.push(Apply { group: self.group, commands });
    }

    fn settle_reads(&mut self, now: u64, out: &mut Effects<P, R>) {
        let group = self.group;
        if !self.leads() {
            let leader = self.leader();
            let lost = self.reads.reset();
            out.reads.extend(lost.into_iter().map(|ticket| (group, ticket, Err(ReadError::NotLeader { leader }))));
            return;
        }
        let ready = self.raw.raft.commit_to_current_term();
        if self.alone() && ready && self.applied >= self.commit() {
            self.reads.lease_forever();
        }
        self.reads.settle(self.applied);
        out.reads.extend(self.reads.served(now).into_iter().map(|ticket| (group, ticket, Ok(()))));
        self.reads.round_wanted = ready && !self.alone() && self.reads.waits() && !self.reads.round_runs();
    }

    /// Takes this replica out: it neither votes nor answers any more.
    pub(crate) fn stop(&mut self, reason: StopReason, out: &mut Effects<P, R>) {
        let group = self.group;
        self.stopped.get_or_insert(reason);
        let lost = std::mem::take(&mut self.proposals);
        out.failed.extend(lost.into_values().map(|(_, p)| (p, ProposeError::Unknown)));
        out.reads.extend(self.reads.reset().into_iter().map(|ticket| (group, ticket, Err(ReadError::Stopped))));
        self.fail_admissions(out);
        self.awaiting = None;
        out.touched.insert(self.group);
    }

    /// A panic left it half changed: not even its entries may be written again.
    pub(crate) fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Until when reads may be served without asking anybody; 0 for never.
    pub(crate) fn lease_until_ns(&self) -> u64 {
        if self.is_stopped() { 0 } else { self.reads.lease_until_ns() }
    }
}

/// Time after a round's beginning for which nobody else can lead. Voters that answered the round give no vote for
/// [`ELECTION_TICKS`] ticks, the first of which may come at once; a tenth is left to clocks that differ.
fn lease_ns(options: &CoreOptions) -> u64 {
    let lease_ns = (ELECTION_TICKS as u64 - 1) * options.tick_ns / 10 * 9;
    if options.sabotage == Sabotage::LeaseOutlivesPatience { 3 * lease_ns } else { lease_ns }
}
