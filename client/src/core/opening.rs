//! Opening, creating and closing files.

use super::effects::{Answer, OpId};
use super::inode::{Freeze, Waiter};
use super::naming::Name;
use super::operations::{State, Then};
use super::session::OpeningId;
use super::{Asker, Core, missing};
use crate::{Error, FileHandle, OpenMode};
use holdfast_common::InodeId;
use holdfast_proto::meta::{Attr, CreateNode, Kind, MutateResponse, Open, ReadResponse, mutation, read_request};

impl Core {
    pub(super) fn begin_create(&mut self, op: OpId, request: CreateNode, mode: OpenMode) {
        let opening = self.session.begin_opening();
        let name = Name { parent: InodeId(request.parent), name: request.name.clone() };
        self.set(op, State::Opening(mode, Some(name)));
        self.mutate(mutation::Op::Create(request), Asker::Create(op, opening));
    }

    pub(super) fn create_answered(&mut self, op: OpId, opening: OpeningId, answer: Result<MutateResponse, Error>) {
        let answer = answer.and_then(|response| response.attr.ok_or_else(missing));
        let Some((attributes, mode, name)) = self.opened(op, opening, answer) else { return };
        let now = self.now;
        let (handle, state) = self.files.open(attributes, mode);
        state.opened_as(name);
        state.created(&attributes, now);
        let shown = state.attributes();
        self.finish(op, Ok(Answer::Opened(Box::new(shown), handle)));
    }

    pub(super) fn begin_open(&mut self, op: OpId, inode: InodeId, mode: OpenMode) {
        let opening = self.session.begin_opening();
        let name = self.looked_up.name_of(inode).cloned();
        self.set(op, State::Opening(mode, name));
        self.ask(read_request::Op::Open(Open { inode: inode.0 }), Asker::Open(op, opening));
    }

    pub(super) fn open_answered(&mut self, op: OpId, opening: OpeningId, answer: Result<ReadResponse, Error>) {
        let (answer, map) = match answer {
            Ok(response) => (response.attr.ok_or_else(missing), response.map),
            Err(error) => (Err(error), None),
        };
        let Some((attributes, mode, name)) = self.opened(op, opening, answer) else { return };
        let (handle, state) = self.files.open(attributes, mode);
        state.opened_as(name);
        let id = state.id;
        let shown = self.files.change_map(id, |inode| {
            if let Some(map) = &map {
                inode.learn_map(attributes, map);
            }
            inode.attributes()
        });
        let shown = shown.unwrap_or(attributes);
        self.finish(op, Ok(Answer::Opened(Box::new(shown), handle)));
    }

    /// The table's side of an opening has ended. Nothing if there is no handle to be made: it was refused, nobody waits for it
    /// any more, or the leader must be told again by an open of its own.
    fn opened(
        &mut self,
        op: OpId,
        opening: OpeningId,
        answer: Result<Attr, Error>,
    ) -> Option<(Attr, OpenMode, Option<Name>)> {
        let attributes = match answer {
            Ok(attributes) if attributes.kind() == Kind::File => attributes,
            Ok(attributes) => {
                // The leader has it open.
                let inode = InodeId(attributes.inode);
                self.session.end_opening(opening, Some(inode));
                self.session.close(inode);
                self.finish(op, Err(Error::Unknown { what: "kind of opened file", number: attributes.kind }));
                return None;
            }
            Err(error) => {
                self.session.end_opening(opening, None);
                self.finish(op, Err(error));
                return None;
            }
        };
        let inode = InodeId(attributes.inode);
        let tell_again = self.session.end_opening(opening, Some(inode));
        let (mode, name) = match self.operations.get_mut(&op).map(|operation| &mut operation.state) {
            Some(State::Opening(mode, name)) => (Some(*mode), name.take()),
            _ => (None, None),
        };
        if tell_again || mode.is_none() {
            self.session.close(inode);
        }
        if let Some(mode) = mode.filter(|_| tell_again) {
            self.begin_open(op, inode, mode);
        }
        mode.filter(|_| !tell_again).map(|mode| (attributes, mode, name))
    }

    pub(super) fn begin_release(&mut self, op: OpId, handle: FileHandle) -> Result<(), Error> {
        let inode = self.release_handle(handle)?;
        self.flush(op, inode, Then::Nothing);
        self.progressed(inode);
        Ok(())
    }

    /// Closes a handle. The table is told when nothing needs the inode any more.
    pub(super) fn release_handle(&mut self, handle: FileHandle) -> Result<InodeId, Error> {
        let inode = self.files.close(handle)?;
        self.freeze(inode, Freeze::All);
        if let Some(state) = self.files.inode(inode) {
            let through = state.frozen_through();
            state.wait(through, Waiter::Release);
        }
        Ok(inode)
    }
}
