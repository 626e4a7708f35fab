//! Finds the bytes of a range: maps asked for as far as they are not known. A map too large for the budget is forgotten
//! at the end of the step that has made use of it.

use super::effects::{Answer, OpId, Reading};
use super::inode::{Found, Inode};
use super::operations::State;
use super::readahead::Advice;
use super::{Asker, Core, missing};
use crate::{Error, FileHandle, Whence, WriteAt};
use holdfast_common::{FileOffset, InodeId};
use holdfast_proto::meta::{ReadMap, ReadResponse, read_request};

/// Extents asked for at once.
const MAP_EXTENTS: u32 = 1024;
/// Bytes of map asked for at once.
const MAP_BYTES: u64 = 1 << 30;

impl Core {
    pub(super) fn begin_plan(
        &mut self,
        op: OpId,
        handle: FileHandle,
        offset: FileOffset,
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
        let id = inode.id;
        if reading == Reading::Again {
            self.files.change_map(id, Inode::forget_map);
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
                inode.map_waiters.push(op);
                let id = inode.id;
                self.ask_map(id, offset);
            }
        }
    }

    /// Asks for an inode's map from an offset on, unless an answer that will tell it is under way.
    pub(super) fn ask_map(&mut self, id: InodeId, offset: FileOffset) {
        let Some(inode) = self.files.inode(id) else { return };
        // A commit of ours is about to tell the newest map.
        if inode.map_asked || inode.committing {
            return;
        }
        inode.map_asked = true;
        let op = ReadMap { inode: id.0, offset: offset.0, length_bytes: MAP_BYTES, max_extents: MAP_EXTENTS };
        let losses = self.losses;
        self.ask(read_request::Op::ReadMap(op), Asker::Map(id, losses));
    }

    /// The inode of an append whose end the table has to tell again first.
    pub(super) fn end_unknown(&mut self, handle: FileHandle, at: WriteAt) -> Option<InodeId> {
        let WriteAt::End { .. } = at else { return None };
        let (_, inode) = self.files.opened(handle).ok()?;
        inode.is_doubtful().then_some(inode.id)
    }

    pub(super) fn map_answered(&mut self, id: InodeId, losses: u64, answer: Result<ReadResponse, Error>) {
        let outdated = losses < self.losses;
        let Some(inode) = self.files.inode(id) else { return };
        inode.map_asked = false;
        let waiting = std::mem::take(&mut inode.map_waiters);
        match answer {
            // It may be from before what the lost session changed.
            Ok(_) if outdated => waiting.into_iter().for_each(|op| self.plan(op)),
            Ok(ReadResponse { attr: Some(attributes), map: Some(map), .. }) => {
                self.files.change_map(id, |inode| inode.learn_map(attributes, &map));
                waiting.into_iter().for_each(|op| self.plan(op));
            }
            other => {
                let error = other.err().unwrap_or_else(missing);
                waiting.into_iter().for_each(|op| self.finish(op, Err(error.clone())));
            }
        }
        self.files.forget_unused(id);
    }

    pub(super) fn seek_from(
        &mut self,
        op: OpId,
        handle: FileHandle,
        offset: FileOffset,
        whence: Whence,
        at: FileOffset,
    ) {
        match self.files.file(handle).map(|file| file.inode) {
            Ok(inode) => {
                self.set(op, State::Seeking { handle, offset, whence, at });
                self.ask_map_for(op, inode, at, MAP_BYTES);
            }
            Err(error) => self.finish(op, Err(error)),
        }
    }

    pub(super) fn ask_map_for(&mut self, op: OpId, inode: InodeId, offset: FileOffset, length_bytes: u64) {
        let map = ReadMap { inode: inode.0, offset: offset.0, length_bytes, max_extents: MAP_EXTENTS };
        self.ask(read_request::Op::ReadMap(map), Asker::MapFor(op));
    }

    pub(super) fn map_for_answered(&mut self, op: OpId, answer: Result<ReadResponse, Error>) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return self.fail(op, error),
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
    Found(FileOffset),
    Nothing,
    /// The map goes on from there.
    On(FileOffset),
}

/// Looks for data or a hole in a part of a map that begins at `at`.
fn sought(response: &ReadResponse, offset: FileOffset, whence: Whence, mut at: FileOffset) -> Sought {
    let (Some(attributes), Some(map)) = (&response.attr, &response.map) else { return Sought::Nothing };
    let file_end = FileOffset(attributes.size_bytes);
    if offset >= file_end {
        return Sought::Nothing;
    }
    let covered_to = FileOffset(map.offset.saturating_add(map.covered_bytes));
    for extent in &map.extents {
        let (start, end) = (FileOffset(extent.file_offset), FileOffset(extent.file_offset) + extent.length_bytes);
        match whence {
            Whence::Data if end > at => return Sought::Found(at.max(start)),
            Whence::Hole if start > at => return Sought::Found(at),
            Whence::Data | Whence::Hole => at = at.max(end),
        }
    }
    if whence == Whence::Hole && at < covered_to.min(file_end) {
        return Sought::Found(at);
    }
    let before = at;
    at = at.max(covered_to);
    match whence {
        Whence::Hole if at >= file_end => Sought::Found(file_end),
        Whence::Data if at >= file_end => Sought::Nothing,
        // A table that covers nothing would be asked for ever.
        Whence::Hole | Whence::Data if at == before && map.covered_bytes == 0 => Sought::Nothing,
        Whence::Hole | Whence::Data => Sought::On(at),
    }
}
