//! What callers ask for: from its beginning to its outcome.

use super::effects::{Answer, Call, OpId, Reading, Response};
use super::inode::{Found, Freeze, Waiter};
use super::readahead::Advice;
use super::requests::RequestId;
use super::session::{OpeningId, Phase};
use super::time::Moment;
use super::writing::PendingWrite;
use super::{Asker, Core, missing};
use crate::{Error, FileHandle, OpenMode, Whence};
use holdfast_common::InodeId;
use holdfast_common::limits::REQUEST_DEADLINE_MS;
use holdfast_proto::meta::{
    CloseSession, CreateNode, MutateResponse, Open, ReadMap, ReadResponse, mutation, read_request,
};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_millis(REQUEST_DEADLINE_MS as u64);
/// Extents asked for at once.
const MAP_EXTENTS: u32 = 1024;
/// Bytes of map asked for at once.
const MAP_BYTES: u64 = 1 << 30;

/// An operation of a caller.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) deadline: Moment,
    pub(super) state: State,
}

/// What an operation waits for.
#[derive(Debug)]
pub(super) enum State {
    /// The first session and the first groups.
    Starting,
    /// The answer to a request.
    Asked(RequestId),
    /// The answer to a request that opens something, which is closed again if nobody waits for it.
    Opening(OpenMode),
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
        offset: u64,
        length_bytes: u64,
        advice: Advice,
    },
    Seeking {
        handle: FileHandle,
        offset: u64,
        whence: Whence,
        at: u64,
    },
}

/// What comes after a flush.
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
        offset: u64,
        whence: Whence,
    },
}

impl Core {
    pub(super) fn begin(&mut self, op: OpId, call: Call) {
        let deadline = self.now + DEADLINE;
        self.deadlines.insert((deadline, op));
        self.operations.insert(op, Box::new(Operation { deadline, state: State::Starting }));
        if self.session.phase == Phase::Closed {
            return self.finish(op, Err(Error::SessionLost));
        }
        let begun = match call {
            Call::Start => Ok(()),
            Call::Ask(question) => {
                let id = self.ask(question, Asker::Op(op));
                self.set(op, State::Asked(id));
                Ok(())
            }
            Call::Mutate(change) => {
                self.begin_mutation(op, change);
                Ok(())
            }
            Call::Barrier { inode, op: change } => {
                self.flush(op, inode, Then::Change(inode, Box::new(change)));
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
        if let Some(operation) = self.operations.remove(&op) {
            self.deadlines.remove(&(operation.deadline, op));
            self.out.outcomes.push((op, outcome));
        }
    }

    /// Nobody waits for it: what it holds comes back now. What was sent goes on (R8).
    pub(super) fn abandon(&mut self, op: OpId) {
        let Some(operation) = self.operations.remove(&op) else { return };
        self.deadlines.remove(&(operation.deadline, op));
        match operation.state {
            State::Asked(request) => {
                if let Some(asked) = self.requests.forget_unsent(request) {
                    self.files.end_question(asked.question);
                }
            }
            State::Changing(inode, Some(_)) => {
                self.files.changes(inode).waiting.retain(|waiting| *waiting != op);
            }
            State::Writing(_) => self.writers.retain(|waiting| *waiting != op),
            State::Starting
            | State::Opening(_)
            | State::Flushing { .. }
            | State::Changing(_, None)
            | State::Planning { .. }
            | State::Seeking { .. } => {}
        }
    }

    /// What the outcome gave away comes back: a handle that nobody knows is closed, a lost write is told to somebody else.
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
        while let Some((_, op)) = self.deadlines.first().copied().filter(|(at, _)| *at <= self.now) {
            let why = match self.operations.get(&op).map(|operation| &operation.state) {
                Some(State::Writing(write)) => write.wanting(),
                Some(State::Flushing { .. }) => "written data is not on the disks yet; it is kept",
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
                Answer::Read(response)
            }
            Response::Mutate(mut response) => {
                self.files.see_mutated(&mut response);
                Answer::Mutated(response)
            }
        });
        self.finish(op, outcome);
    }

    fn begin_mutation(&mut self, op: OpId, change: mutation::Op) {
        if let mutation::Op::SetXattr(set) = &change
            && let Some(inode) = self.files.inode(InodeId(set.inode))
        {
            inode.spoil();
        }
        let id = self.mutate(change, Asker::Op(op));
        self.set(op, State::Asked(id));
    }

    fn begin_create(&mut self, op: OpId, request: CreateNode, mode: OpenMode) {
        let opening = self.session.begin_opening();
        self.set(op, State::Opening(mode));
        self.mutate(mutation::Op::Create(request), Asker::Create(op, opening));
    }

    pub(super) fn create_answered(&mut self, op: OpId, opening: OpeningId, answer: Result<MutateResponse, Error>) {
        let attributes = match answer.and_then(|response| Self::attributes_in(&response)) {
            Ok(attributes) => attributes,
            Err(error) => {
                self.session.end_opening(opening, None);
                return self.finish(op, Err(error));
            }
        };
        let inode = InodeId(attributes.inode);
        let tell_again = self.session.end_opening(opening, Some(inode));
        let Some(State::Opening(mode)) = self.operations.get(&op).map(|operation| &operation.state) else {
            return self.session.close(inode);
        };
        let mode = *mode;
        if tell_again {
            // A release of the same inode crossed the create: the leader is told by an open of its own.
            self.session.close(inode);
            return self.begin_open(op, inode, mode);
        }
        let now = self.now;
        let (handle, state) = self.files.open(attributes, mode);
        state.created(&attributes, now);
        let shown = state.attributes();
        self.finish(op, Ok(Answer::Opened(shown, handle)));
    }

    fn begin_open(&mut self, op: OpId, inode: InodeId, mode: OpenMode) {
        let opening = self.session.begin_opening();
        self.set(op, State::Opening(mode));
        self.ask(read_request::Op::Open(Open { inode: inode.0 }), Asker::Open(op, opening));
    }

    pub(super) fn open_answered(&mut self, op: OpId, opening: OpeningId, answer: Result<ReadResponse, Error>) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                self.session.end_opening(opening, None);
                return self.finish(op, Err(error));
            }
        };
        let Some(attributes) = response.attr else {
            self.session.end_opening(opening, None);
            return self.finish(op, Err(missing()));
        };
        let inode = InodeId(attributes.inode);
        let tell_again = self.session.end_opening(opening, Some(inode));
        let Some(State::Opening(mode)) = self.operations.get(&op).map(|operation| &operation.state) else {
            return self.session.close(inode);
        };
        let mode = *mode;
        if tell_again {
            self.session.close(inode);
            return self.begin_open(op, inode, mode);
        }
        let (handle, state) = self.files.open(attributes, mode);
        if let Some(map) = &response.map {
            state.learn_map(attributes, map);
        }
        let shown = state.attributes();
        self.finish(op, Ok(Answer::Opened(shown, handle)));
    }

    fn begin_release(&mut self, op: OpId, handle: FileHandle) -> Result<(), Error> {
        let inode = self.release_handle(handle)?;
        self.flush(op, inode, Then::Nothing);
        self.progressed(inode);
        Ok(())
    }

    /// Closes a handle. The table is told when nothing needs the inode any more.
    fn release_handle(&mut self, handle: FileHandle) -> Result<InodeId, Error> {
        let inode = self.files.close(handle)?;
        self.freeze(inode, Freeze::All);
        if let Some(state) = self.files.inode(inode) {
            let through = state.frozen_through();
            state.wait(through, Waiter::Release);
        }
        Ok(inode)
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
        let Ok(file) = self.files.file(handle) else { return Ok(Answer::Done) };
        match file.error.clone() {
            None => Ok(Answer::Done),
            Some(error) if closing => Err(error),
            Some(error) => {
                file.error = None;
                Ok(Answer::Told(handle, error))
            }
        }
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
        self.op_answered(op, answer);
        self.end_barrier(op, inode);
    }

    fn begin_plan(
        &mut self,
        op: OpId,
        handle: FileHandle,
        offset: u64,
        length_bytes: u64,
        reading: Reading,
    ) -> Result<(), Error> {
        let (file, inode) = self.files.opened(handle)?;
        if !file.mode.read {
            return Err(Error::BadHandle);
        }
        let advice = match reading {
            Reading::Wanted => file.readahead.read(offset, length_bytes, inode.size_bytes()),
            Reading::Again | Reading::Ahead => Advice { sequential: false, ahead: None },
        };
        if reading == Reading::Again {
            inode.forget_map();
        }
        self.set(op, State::Planning { handle, offset, length_bytes, advice });
        self.plan(op);
        Ok(())
    }

    /// Looks the range up; asks for what is not known of its map.
    pub(super) fn plan(&mut self, op: OpId) {
        let Some(State::Planning { handle, offset, length_bytes, advice }) =
            self.operations.get(&op).map(|operation| &operation.state)
        else {
            return;
        };
        let (handle, offset, length_bytes, advice) = (*handle, *offset, *length_bytes, *advice);
        let inode = match self.files.opened(handle) {
            Ok((_, inode)) => inode,
            Err(error) => return self.finish(op, Err(error)),
        };
        match inode.find(offset, length_bytes) {
            Found::Pieces(pieces) => self.finish(op, Ok(Answer::Plan(pieces, advice))),
            Found::MapUnknown { offset } => {
                let asked = !inode.map_waiters.is_empty();
                inode.map_waiters.push(op);
                // A commit of ours is about to tell the newest map.
                if !asked && !inode.committing {
                    let op = ReadMap { inode: inode.id.0, offset, length_bytes: MAP_BYTES, max_extents: MAP_EXTENTS };
                    let id = inode.id;
                    self.ask(read_request::Op::ReadMap(op), Asker::Map(id));
                }
            }
        }
    }

    pub(super) fn map_answered(&mut self, id: InodeId, answer: Result<ReadResponse, Error>) {
        let Some(inode) = self.files.inode(id) else { return };
        let waiting = std::mem::take(&mut inode.map_waiters);
        match answer {
            Ok(ReadResponse { attr: Some(attributes), map: Some(map), .. }) => {
                inode.learn_map(attributes, &map);
                waiting.into_iter().for_each(|op| self.plan(op));
                self.bound_maps(id);
            }
            other => {
                let error = other.err().unwrap_or_else(missing);
                waiting.into_iter().for_each(|op| self.finish(op, Err(error.clone())));
            }
        }
        self.files.forget_unused(id);
    }

    /// Keeps the maps within their budget: others go before the one that was just used.
    fn bound_maps(&mut self, used: InodeId) {
        let mut held: usize = self.files.inodes().map(|inode| inode.map_bytes()).sum();
        let budget = self.settings.map_bytes;
        for inode in self.files.inodes().filter(|inode| inode.id != used) {
            if held <= budget {
                return;
            }
            held -= inode.map_bytes();
            inode.forget_map();
        }
        if held > budget
            && let Some(inode) = self.files.inode(used)
        {
            inode.forget_map();
        }
    }

    fn seek_from(&mut self, op: OpId, handle: FileHandle, offset: u64, whence: Whence, at: u64) {
        match self.files.file(handle).map(|file| file.inode) {
            Ok(inode) => {
                self.set(op, State::Seeking { handle, offset, whence, at });
                self.ask_map_for(op, inode, at, MAP_BYTES);
            }
            Err(error) => self.finish(op, Err(error)),
        }
    }

    pub(super) fn ask_map_for(&mut self, op: OpId, inode: InodeId, offset: u64, length_bytes: u64) {
        let map = ReadMap { inode: inode.0, offset, length_bytes, max_extents: MAP_EXTENTS };
        self.ask(read_request::Op::ReadMap(map), Asker::MapFor(op));
    }

    pub(super) fn map_for_answered(&mut self, op: OpId, answer: Result<ReadResponse, Error>) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return self.fail_write_or(op, error),
        };
        match self.operations.get(&op).map(|operation| &operation.state) {
            Some(State::Seeking { handle, offset, whence, at }) => {
                let (handle, offset, whence, at) = (*handle, *offset, *whence, *at);
                match sought(&response, offset, whence, at) {
                    Sought::Found(found) => self.finish(op, Ok(Answer::Offset(found))),
                    Sought::Nothing => self.finish(op, Err(Error::NoSuchOffset)),
                    Sought::On(at) => self.seek_from(op, handle, offset, whence, at),
                }
            }
            Some(State::Writing(_)) => self.exact_charge(op, &response),
            _ => {}
        }
    }
}

enum Sought {
    Found(u64),
    Nothing,
    /// The map goes on from there.
    On(u64),
}

/// Looks for data or a hole in a part of a map that begins at `at`.
fn sought(response: &ReadResponse, offset: u64, whence: Whence, mut at: u64) -> Sought {
    let (Some(attributes), Some(map)) = (&response.attr, &response.map) else { return Sought::Nothing };
    let size_bytes = attributes.size_bytes;
    if offset >= size_bytes {
        return Sought::Nothing;
    }
    let covered_to = map.offset.saturating_add(map.covered_bytes);
    for extent in &map.extents {
        match whence {
            Whence::Data if extent.file_offset + extent.length_bytes > at => {
                return Sought::Found(at.max(extent.file_offset));
            }
            Whence::Hole if extent.file_offset > at => return Sought::Found(at),
            Whence::Data | Whence::Hole => at = at.max(extent.file_offset + extent.length_bytes),
        }
    }
    if whence == Whence::Hole && at < covered_to.min(size_bytes) {
        return Sought::Found(at);
    }
    let before = at;
    at = at.max(covered_to);
    match whence {
        Whence::Hole if at >= size_bytes => Sought::Found(size_bytes),
        Whence::Data if at >= size_bytes => Sought::Nothing,
        // A table that covers nothing would be asked for ever.
        Whence::Hole | Whence::Data if at == before && map.covered_bytes == 0 => Sought::Nothing,
        Whence::Hole | Whence::Data => Sought::On(at),
    }
}
