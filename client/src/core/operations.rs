//! Operations of callers, from beginning to outcome.

use super::effects::{Answer, Call, OpId, RequestId, Response};
use super::inode::{Freeze, Waiter};
use super::naming::Name;
use super::pending::PendingWrite;
use super::readahead::Advice;
use super::sabotage::Sabotage;
use super::session::Phase;
use super::time::Moment;
use super::{Asker, Core};
use crate::{Error, FileHandle, OpenMode, Whence};
use holdfast_common::limits::REQUEST_DEADLINE_MS;
use holdfast_common::{FileOffset, InodeId};
use holdfast_proto::meta::{CloseSession, Kind, ReadResponse, mutation, read_request};
use std::time::Duration;

/// The same for all, so that the oldest operation has the first deadline.
const DEADLINE: Duration = Duration::from_millis(REQUEST_DEADLINE_MS as u64);

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) deadline: Moment,
    pub(super) state: State,
}

/// Event that an operation waits for.
#[derive(Debug)]
pub(super) enum State {
    /// The first session and the first groups.
    Starting,
    /// The answer to a request.
    Asked(RequestId),
    /// The answer to a lookup of this name.
    LookingUp(RequestId, Name),
    /// The answer to a request that opens something, which is closed again if nobody waits for it.
    Opening(OpenMode, Option<Name>),
    /// To be admitted.
    Writing(Box<PendingWrite>),
    /// Generations of so many inodes.
    Flushing {
        left: usize,
        then: Then,
    },
    /// Its turn to change an inode, or the answer.
    Changing(InodeId, Option<Box<mutation::Op>>),
    /// A part of a map.
    Planning {
        handle: FileHandle,
        offset: FileOffset,
        length_bytes: u64,
        advice: Advice,
    },
    Seeking {
        handle: FileHandle,
        offset: FileOffset,
        whence: Whence,
        at: FileOffset,
    },
}

/// Next step after a flush.
#[derive(Debug)]
pub(super) enum Then {
    Nothing,
    /// Tells of a lost write; `closing` leaves it to be told again.
    Report {
        handle: FileHandle,
        closing: bool,
    },
    Change(InodeId, Box<mutation::Op>),
    Seek {
        handle: FileHandle,
        offset: FileOffset,
        whence: Whence,
    },
}

impl Core {
    pub(super) fn begin(&mut self, op: OpId, call: Call) {
        let deadline = self.now + DEADLINE;
        self.operations.insert(op, Box::new(Operation { deadline, state: State::Starting }));
        if self.session.phase == Phase::Closed {
            return self.finish(op, Err(Error::SessionLost));
        }
        let begun = match call {
            Call::Start => Ok(()),
            Call::Ask(question) => {
                self.begin_question(op, question);
                Ok(())
            }
            Call::Mutate(change) => {
                self.begin_mutation(op, change);
                Ok(())
            }
            Call::Barrier { inode, op: change } => {
                self.spoil(&change);
                self.begin_barrier(op, inode, Box::new(change));
                Ok(())
            }
            Call::Create { request, mode } => {
                self.begin_create(op, request, mode);
                Ok(())
            }
            Call::Open { inode, mode } => {
                self.begin_open(op, inode, mode);
                Ok(())
            }
            Call::Write { handle, at, data, mtime_ns, kill_suid_sgid } => {
                self.begin_write(op, handle, at, data, mtime_ns, kill_suid_sgid)
            }
            Call::Flush { handle, closing } => self.files.file(handle).map(|file| file.inode).map(|inode| {
                self.flush(op, inode, Then::Report { handle, closing });
            }),
            Call::Release { handle } => self.begin_release(op, handle),
            Call::Plan { handle, offset, length_bytes, reading } => {
                self.begin_plan(op, handle, offset, length_bytes, reading)
            }
            Call::Seek { handle, offset, whence } => self.files.file(handle).map(|file| file.inode).map(|inode| {
                self.flush(op, inode, Then::Seek { handle, offset, whence });
            }),
            Call::Sync => {
                self.sync(op);
                Ok(())
            }
            Call::Close => {
                self.session.close_for_good();
                self.begin_mutation(op, mutation::Op::CloseSession(CloseSession {}));
                Ok(())
            }
        };
        if let Err(error) = begun {
            self.finish(op, Err(error));
        }
    }

    pub(super) fn set(&mut self, op: OpId, state: State) {
        if let Some(operation) = self.operations.get_mut(&op) {
            operation.state = state;
        }
    }

    /// Ends an operation, if it has not ended.
    pub(super) fn finish(&mut self, op: OpId, outcome: Result<Answer, Error>) {
        if self.operations.remove(&op).is_some() {
            self.out.outcomes.push((op, outcome));
        }
    }

    /// Nobody waits for it: what it holds comes back now. What was sent goes on (R8).
    pub(super) fn abandon(&mut self, op: OpId) {
        let Some(operation) = self.operations.remove(&op) else { return };
        match operation.state {
            State::Asked(request) | State::LookingUp(request, _) => {
                if let Some(asked) = self.requests.forget_unsent(request) {
                    self.files.end_question(asked.question);
                }
            }
            State::Changing(inode, Some(_)) => {
                self.files.changes(inode).waiting.retain(|waiting| *waiting != op);
            }
            State::Writing(_) => self.writers.retain(|waiting| *waiting != op),
            State::Starting
            | State::Opening(..)
            | State::Flushing { .. }
            | State::Changing(_, None)
            | State::Planning { .. }
            | State::Seeking { .. } => {}
        }
    }

    /// Takes back what an outcome gave away, because nobody waits for it: the handle is closed, the lost write is told
    /// to somebody else.
    pub(super) fn undelivered(&mut self, outcome: Result<Answer, Error>) {
        match outcome {
            Ok(Answer::Opened(_, handle)) => {
                if let Ok(inode) = self.release_handle(handle) {
                    self.progressed(inode);
                }
            }
            Ok(Answer::Told(handle, error)) => self.files.tell_again(handle, error),
            Ok(Answer::Done | Answer::Read(_) | Answer::Mutated(_) | Answer::Plan(..) | Answer::Offset(_)) | Err(_) => {
            }
        }
    }

    pub(super) fn end_overdue(&mut self) {
        while let Some((op, operation)) = self.operations.first().filter(|(_, first)| first.deadline <= self.now) {
            let op = *op;
            let why = match &operation.state {
                State::Writing(write) => write.wanting(),
                State::Flushing { .. } => "written data is not on the disks yet; it is kept",
                _ => "the metadata leader did not answer",
            };
            self.abandon(op);
            self.out.outcomes.push((op, Err(Error::TimedOut(why.to_owned()))));
        }
    }

    /// The answer to a request is the outcome, with attributes as this mount must show them.
    pub(super) fn op_answered(&mut self, op: OpId, answer: Result<Response, Error>) {
        let outcome = answer.map(|response| match response {
            Response::Read(mut response) => {
                self.files.see_read(&mut response);
                self.see_name(op, &response);
                Answer::Read(response)
            }
            Response::Mutate(mut response) => {
                self.files.see_mutated(&mut response);
                Answer::Mutated(response)
            }
        });
        self.finish(op, outcome);
    }

    fn begin_question(&mut self, op: OpId, question: read_request::Op) {
        let name = match &question {
            read_request::Op::Lookup(lookup) => Some((lookup.parent, lookup.name.clone())),
            _ => None,
        };
        let id = self.ask(question, Asker::Op(op));
        let state = match name {
            Some((parent, name)) => State::LookingUp(id, Name { parent: InodeId(parent), name }),
            None => State::Asked(id),
        };
        self.set(op, state);
    }

    /// Remembers the name that a lookup found a file by.
    fn see_name(&mut self, op: OpId, response: &ReadResponse) {
        let Some(attributes) = response.attr.as_ref().filter(|attributes| attributes.kind() == Kind::File) else {
            return;
        };
        let state = self.operations.get_mut(&op).map(|operation| &mut operation.state);
        if let Some(State::LookingUp(_, name)) = state {
            let name = Name { parent: name.parent, name: std::mem::take(&mut name.name) };
            self.looked_up.add(InodeId(attributes.inode), name);
        }
    }

    /// From a change on that sets one, an inode may have extended attributes.
    fn spoil(&mut self, change: &mutation::Op) {
        if let mutation::Op::SetXattr(set) = change
            && let Some(inode) = self.files.inode(InodeId(set.inode))
        {
            inode.spoil();
        }
    }

    fn begin_mutation(&mut self, op: OpId, change: mutation::Op) {
        self.spoil(&change);
        let id = self.mutate(change, Asker::Op(op));
        self.set(op, State::Asked(id));
    }

    /// Waits until everything written to the inode before has ended.
    pub(super) fn flush(&mut self, op: OpId, inode: InodeId, then: Then) {
        self.freeze(inode, Freeze::All);
        let left = self.wait_for(op, inode);
        self.set(op, State::Flushing { left, then });
        if left == 0 {
            self.after_flush(op);
        }
    }

    /// Has the operation told when the inode's generations have ended; 0 if they have, else 1.
    fn wait_for(&mut self, op: OpId, inode: InodeId) -> usize {
        let Some(state) = self.files.inode(inode) else { return 0 };
        let through = state.frozen_through();
        if state.has_ended(through) {
            return 0;
        }
        state.wait(through, Waiter::Op(op));
        1
    }

    fn sync(&mut self, op: OpId) {
        self.freeze_everything();
        let left = self.unflushed().into_iter().map(|inode| self.wait_for(op, inode)).sum();
        self.set(op, State::Flushing { left, then: Then::Nothing });
        if left == 0 {
            self.after_flush(op);
        }
    }

    /// The generations of one inode have ended.
    pub(super) fn flushed(&mut self, op: OpId) {
        if let Some(State::Flushing { left, .. }) = self.operations.get_mut(&op).map(|operation| &mut operation.state) {
            *left -= 1;
            if *left == 0 {
                self.after_flush(op);
            }
        }
    }

    fn after_flush(&mut self, op: OpId) {
        let Some(operation) = self.operations.get_mut(&op) else { return };
        let State::Flushing { then, .. } = std::mem::replace(&mut operation.state, State::Starting) else { return };
        match then {
            Then::Nothing => self.finish(op, Ok(Answer::Done)),
            Then::Report { handle, closing } => {
                let outcome = self.report(handle, closing);
                self.finish(op, outcome);
            }
            Then::Change(inode, change) => self.begin_change(op, inode, change),
            Then::Seek { handle, offset, whence } => self.seek_from(op, handle, offset, whence, offset),
        }
    }

    /// The lost write that a handle has to tell of. A handle that was closed meanwhile tells nothing.
    fn report(&mut self, handle: FileHandle, closing: bool) -> Result<Answer, Error> {
        if self.settings.sabotage == Sabotage::LossUntold {
            return Ok(Answer::Done);
        }
        if closing {
            return self.files.told_by_close(handle).map_or(Ok(Answer::Done), Err);
        }
        Ok(self.files.tell(handle).map_or(Answer::Done, |error| Answer::Told(handle, error)))
    }

    /// Changes the inode behind everything that was written to it before (R9).
    fn begin_barrier(&mut self, op: OpId, inode: InodeId, change: Box<mutation::Op>) {
        if self.settings.sabotage == Sabotage::BarriersOvertake {
            return self.begin_change(op, inode, change);
        }
        self.flush(op, inode, Then::Change(inode, change));
    }

    /// Changes the inode when no other change or commit of it is under way (R8, R9).
    fn begin_change(&mut self, op: OpId, inode: InodeId, change: Box<mutation::Op>) {
        self.set(op, State::Changing(inode, Some(change)));
        self.files.changes(inode).waiting.push_back(op);
        self.next_barrier(inode);
    }

    fn send_change(&mut self, op: OpId, inode: InodeId) {
        let change = match self.operations.get_mut(&op).map(|operation| &mut operation.state) {
            Some(State::Changing(_, change)) => change.take(),
            _ => None,
        };
        match change {
            Some(change) => drop(self.mutate(*change, Asker::Barrier(op, inode))),
            None => self.end_barrier(op, inode),
        }
    }

    /// Lets the next change of an inode go, if nothing is in its way.
    pub(super) fn next_barrier(&mut self, id: InodeId) {
        if self.files.inode(id).is_some_and(|inode| inode.committing) {
            return;
        }
        let changes = self.files.changes(id);
        if changes.under_way.is_none()
            && let Some(op) = changes.waiting.pop_front()
        {
            changes.under_way = Some(op);
            self.send_change(op, id);
        }
    }

    fn end_barrier(&mut self, op: OpId, inode: InodeId) {
        let changes = self.files.changes(inode);
        if changes.under_way == Some(op) {
            changes.under_way = None;
            self.next_barrier(inode);
            self.progressed(inode);
        }
        self.files.forget_unchanged(inode);
    }

    pub(super) fn barrier_answered(&mut self, op: OpId, inode: InodeId, answer: Result<Response, Error>) {
        if let Err(error) = &answer {
            self.doubt_after(inode, error);
        }
        self.op_answered(op, answer);
        self.end_barrier(op, inode);
    }
}
