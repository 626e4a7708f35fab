//! The order in which a turn's effects are performed: send, install, apply and answer, refuse, publish, read, freeze,
//! admit, remove. What is left are records, and nothing of the next effects happens before they are durable (D6).
//!
//! Every shell of a [`NodeCore`] goes through here and offers a [`Site`] for the doing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId};

use crate::core::effects::{Admitted, Apply, Command, Effects, Freeze, Install, SnapshotOut};
use crate::log::Log;
use crate::log::record::Record;
use crate::machine::StateMachine;
use crate::outbox::GroupMessage;
use crate::status::{AdmissionError, GroupStatus, ProposeError, ReadError, Role};
use crate::stop::{Panicked, StopReason};
use crate::turn::NodeCore;

/// Place where effects are performed. `P` and `R` wait for the answers to proposals and reads.
pub(crate) trait Site<P, R> {
    fn send(&mut self, to: NodeId, messages: Vec<GroupMessage>);
    fn send_snapshot(&mut self, out: SnapshotOut);
    /// Puts the restored state of a delivered snapshot in the place of the Raft group's. False if the restored state is
    /// lost.
    fn install(&mut self, install: Install) -> bool;
    /// Applies commands, best by [`apply_all`], and answers. An error says why the state broke; nobody reads it then.
    fn apply(&mut self, apply: Apply<P>) -> Result<(), StopReason>;
    /// Tells a proposal that it has no answer.
    fn fail(&mut self, ticket: P, error: ProposeError);
    /// Tells of a Raft group that stopped.
    fn broken(&mut self, group: RaftGroupId, reason: StopReason);
    /// Lets handles see a group's status, and until when its lease lets them read.
    fn publish(&mut self, group: RaftGroupId, status: GroupStatus, lease_until_ns: u64);
    /// Lets a read go ahead, or refuses it.
    fn answer_read(&mut self, ticket: R, result: Result<(), ReadError>);
    /// Freezes a Raft group's state and has it written.
    fn freeze(&mut self, freeze: Freeze);
    /// Gives a voter that lost its log a snapshot, or says why not. The file is there until [`Site::remove`].
    fn admitted(&mut self, ticket: u64, result: Result<Admitted, AdmissionError>);
    /// Has a snapshot file removed.
    fn remove(&mut self, group: RaftGroupId, file: u64);
}

/// Performs what may happen now. Gives back the records that must be durable before the core may go on.
pub(crate) fn perform<P, R>(
    core: &mut NodeCore<P, R>,
    site: &mut impl Site<P, R>,
    effects: Effects<P, R>,
) -> Vec<Record> {
    for (to, messages) in effects.messages {
        site.send(to, messages);
    }
    for out in effects.snapshots {
        site.send_snapshot(out);
    }
    for install in effects.installs {
        let group = install.group;
        if !site.install(install) {
            core.stop(group, StopReason::SnapshotLost);
        }
    }
    for apply in effects.applies {
        perform_apply(core, site, apply);
    }
    for (ticket, error) in effects.failed {
        site.fail(ticket, error);
    }
    for (group, reason) in effects.broken {
        site.broken(group, reason);
    }
    for group in effects.touched {
        if let Some((status, lease_until_ns)) = core.status(group) {
            site.publish(group, status, lease_until_ns);
        }
    }
    for (group, ticket, result) in effects.reads {
        // Its state may have broken just now.
        site.answer_read(ticket, if is_stopped(core, group) { Err(ReadError::Stopped) } else { result });
    }
    for freeze in effects.freezes {
        if !is_stopped(core, freeze.group) {
            site.freeze(freeze);
        }
    }
    for (ticket, result) in effects.admitted {
        site.admitted(ticket, result);
    }
    for (group, file) in effects.removals {
        site.remove(group, file);
    }
    effects.records
}

fn perform_apply<P, R>(core: &mut NodeCore<P, R>, site: &mut impl Site<P, R>, apply: Apply<P>) {
    let group = apply.group;
    if is_stopped(core, group) {
        // Committed all the same: the other replicas apply it.
        let tickets = apply.commands.into_iter().filter_map(|command| command.ticket);
        tickets.for_each(|ticket| site.fail(ticket, ProposeError::Unknown));
    } else if let Err(reason) = site.apply(apply) {
        core.stop(group, reason);
    }
}

fn is_stopped<P, R>(core: &NodeCore<P, R>, group: RaftGroupId) -> bool {
    core.status(group).is_none_or(|(status, _)| status.role == Role::Stopped)
}

/// Outcome of applying a list of commands.
pub(crate) struct Applied<P> {
    /// To be given when the state may be read again.
    pub(crate) answers: Vec<(P, Bytes)>,
    /// Proposals at or behind the command that broke the state: their outcome is unknown.
    pub(crate) unanswered: Vec<P>,
    /// Reason why the state broke, if it did.
    pub(crate) broken: Option<StopReason>,
}

/// Applies commands in their order, up to one that breaks the state; and says of each that it is done.
pub(crate) fn apply_all<S: StateMachine, P>(
    state: &mut S,
    commands: Vec<Command<P>>,
    mut note: impl FnMut(LogIndex, Bytes),
) -> Applied<P> {
    let mut applied = Applied { answers: Vec::with_capacity(commands.len()), unanswered: Vec::new(), broken: None };
    for command in commands {
        if applied.broken.is_some() {
            applied.unanswered.extend(command.ticket);
            continue;
        }
        match apply_one(state, command.index, &command.data) {
            Ok(answer) => {
                applied.answers.extend(command.ticket.map(|ticket| (ticket, answer)));
                note(command.index, command.data);
            }
            Err(reason) => {
                applied.broken = Some(reason);
                applied.unanswered.extend(command.ticket);
            }
        }
    }
    applied
}

fn apply_one<S: StateMachine>(state: &mut S, index: LogIndex, data: &[u8]) -> Result<Bytes, StopReason> {
    if data.is_empty() {
        return Ok(Bytes::new());
    }
    match catch_unwind(AssertUnwindSafe(|| state.apply(index, data))) {
        Ok(applied) => applied.map_err(|broken| StopReason::Broken { index, broken }),
        Err(panic) => Err(StopReason::ApplyPanicked { index, panicked: Panicked::of(&*panic) }),
    }
}

/// Lets groups that hold an old segment of the log write their state again. Returns the records of those whose memory
/// cannot be trusted, as the log has them; they go behind the records of the same turn.
pub(crate) fn carry_forward<P, R>(core: &mut NodeCore<P, R>, log: &Log) -> Vec<Record> {
    let mut records = Vec::new();
    for group in core.carry_forward(&log.holders()) {
        match log.recall(group) {
            Ok(recalled) => records.extend(recalled),
            Err(error) => tracing::error!(%group, %error, "a stopped group holds the log, which cannot read it"),
        }
    }
    records
}
