//! Open files: handles to inodes, and the inodes that somebody has open or that hold unflushed data; and which questions
//! are under way, so that no answer goes back behind what was known here. Pure.

use super::effects::OpId;
use super::inode::{Inode, Loss};
use super::questions::{Question, Questions};
use super::readahead::Readahead;
use super::sabotage::Sabotage;
use crate::{Error, FileHandle, OpenMode};
use holdfast_common::InodeId;
use holdfast_proto::meta::{Attr, MutateResponse, ReadResponse};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) inode: InodeId,
    pub(crate) mode: OpenMode,
    pub(crate) readahead: Readahead,
    /// A lost write that its fsync has not told of yet (R22).
    error: Option<Error>,
    /// The write was lost before the handle was opened: only fsync tells of it. If close did, every reader of the file would fail.
    is_inherited: bool,
}

/// Files that nobody has open and that are remembered for a lost write which no fsync has told of. Some 500 bytes each.
const LOSSES_REMEMBERED_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Files {
    handles: BTreeMap<u64, OpenFile>,
    next_handle: u64,
    inodes: BTreeMap<InodeId, Inode>,
    /// Memory of all inodes' maps, and the inodes that have one.
    map_bytes: usize,
    mapped: BTreeSet<InodeId>,
    /// The inode whose map was changed last.
    mapped_last: InodeId,
    questions: Questions,
    /// Inodes that stay only for a lost write, in the order of their last use: at most [`LOSSES_REMEMBERED_MAX`].
    remembered: VecDeque<InodeId>,
    /// Of inodes that are open or not: a change that is sent again must not pass what was written since.
    changes: BTreeMap<InodeId, Changes>,
    sabotage: Sabotage,
}

/// Changes of an inode that no commit may overtake, nor be overtaken by (R8, R9).
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) under_way: Option<OpId>,
    pub(crate) waiting: VecDeque<OpId>,
}

impl Files {
    pub(crate) fn new(sabotage: Sabotage) -> Self {
        Self { sabotage, ..Self::default() }
    }

    pub(crate) fn begin_question(&mut self) -> Question {
        self.questions.begin()
    }

    /// The answer was taken in, or will never be.
    pub(crate) fn end_question(&mut self, question: Question) {
        self.questions.end(question);
    }

    /// Opens an inode whose present attributes are these. A lost write that no fsync has told of is this handle's to tell of, too.
    pub(crate) fn open(&mut self, attributes: Attr, mode: OpenMode) -> (FileHandle, &mut Inode) {
        let attributes = self.questions.not_older(attributes);
        self.next_handle += 1;
        let handle = self.next_handle;
        let id = InodeId(attributes.inode);
        let inode = self.inodes.entry(id).or_insert_with(|| Inode::new(attributes, self.sabotage));
        inode.refresh(attributes);
        inode.handles.insert(handle);
        let error = inode.loss.as_ref().map(|loss| loss.error.clone());
        let is_inherited = error.is_some();
        if is_inherited {
            self.remembered.retain(|remembered| *remembered != id);
        }
        let file = OpenFile { inode: id, mode, readahead: Readahead::default(), error, is_inherited };
        self.handles.insert(handle, file);
        (FileHandle(handle), inode)
    }

    /// An open file.
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub(crate) fn file(&mut self, handle: FileHandle) -> Result<&mut OpenFile, Error> {
        self.handles.get_mut(&handle.0).ok_or(Error::BadHandle)
    }

    /// An open file with its inode.
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub(crate) fn opened(&mut self, handle: FileHandle) -> Result<(&mut OpenFile, &mut Inode), Error> {
        let file = self.handles.get_mut(&handle.0).ok_or(Error::BadHandle)?;
        let inode = self.inodes.get_mut(&file.inode).expect("a handle keeps its inode");
        Ok((file, inode))
    }

    pub(crate) fn inode(&mut self, id: InodeId) -> Option<&mut Inode> {
        self.inodes.get_mut(&id)
    }

    pub(crate) fn inodes(&mut self) -> impl Iterator<Item = &mut Inode> {
        self.inodes.values_mut()
    }

    /// Does something that may change the inode's map. Nothing else may, so that the running total is right.
    pub(crate) fn change_map<T>(&mut self, id: InodeId, change: impl FnOnce(&mut Inode) -> T) -> Option<T> {
        let inode = self.inodes.get_mut(&id)?;
        let before = inode.map_bytes();
        let changed = change(inode);
        let after = inode.map_bytes();
        self.map_bytes = self.map_bytes - before + after;
        match (before, after) {
            (0, 1..) => drop(self.mapped.insert(id)),
            (1.., 0) => drop(self.mapped.remove(&id)),
            _ => {}
        }
        self.mapped_last = id;
        Some(changed)
    }

    /// Bytes that the maps of all inodes take.
    pub(crate) fn map_bytes(&self) -> usize {
        self.map_bytes
    }

    /// Keeps the maps within their budget: others go before the one that was changed last, in turn behind it.
    pub(crate) fn bound_maps(&mut self, budget_bytes: usize) {
        while self.map_bytes > budget_bytes {
            let last = self.mapped_last;
            let next = self.mapped.range((Excluded(last), Unbounded)).next().or(self.mapped.first()).copied();
            let Some(next) = next else { return };
            self.change_map(next, Inode::forget_map);
            self.mapped_last = last;
        }
    }

    /// Forgets a handle. Its inode stays until [`Files::forget_unused`].
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub(crate) fn close(&mut self, handle: FileHandle) -> Result<InodeId, Error> {
        let file = self.handles.remove(&handle.0).ok_or(Error::BadHandle)?;
        if let Some(inode) = self.inodes.get_mut(&file.inode) {
            inode.handles.remove(&handle.0);
        }
        Ok(file.inode)
    }

    /// Drops the inode's state if nobody has it open and nothing of it is under way. One with a lost write to tell of is
    /// remembered, in place of the one that is remembered longest.
    pub(crate) fn forget_unused(&mut self, id: InodeId) {
        let Some(inode) = self.inodes.get(&id).filter(|inode| inode.is_unused()) else { return };
        if inode.loss.is_none() {
            return self.forget(id);
        }
        if !self.remembered.contains(&id) {
            self.change_map(id, Inode::forget_map);
            self.remembered.push_back(id);
        }
        if self.remembered.len() > LOSSES_REMEMBERED_MAX
            && let Some(oldest) = self.remembered.pop_front()
        {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, id: InodeId) {
        if let Some(inode) = self.inodes.get(&id) {
            self.questions.let_go(inode.attributes());
            self.map_bytes -= inode.map_bytes();
            self.mapped.remove(&id);
            self.inodes.remove(&id);
        }
    }

    /// A write was lost: every handle that is open now tells of it, and each that is opened until one has (R22). The first reason
    /// stays.
    pub(crate) fn lost(&mut self, id: InodeId, error: &Error) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        inode.loss.get_or_insert_with(|| Loss::new(error)).was_heard = false;
        for handle in &inode.handles {
            if let Some(file) = self.handles.get_mut(handle) {
                file.error.get_or_insert_with(|| error.clone());
                file.is_inherited = false;
            }
        }
    }

    /// The lost write that the closing of a handle tells of. It stays to be told by fsync.
    pub(crate) fn told_by_close(&mut self, handle: FileHandle) -> Option<Error> {
        let file = self.handles.get(&handle.0).filter(|file| !file.is_inherited)?;
        let error = file.error.clone()?;
        if let Some(loss) = self.inodes.get_mut(&file.inode).and_then(|inode| inode.loss.as_mut()) {
            loss.was_heard = true;
        }
        Some(error)
    }

    /// The lost write that fsync tells of: this handle has told it then, and handles that are opened from now on need not.
    pub(crate) fn tell(&mut self, handle: FileHandle) -> Option<Error> {
        let file = self.handles.get_mut(&handle.0)?;
        let error = file.error.take()?;
        if let Some(inode) = self.inodes.get_mut(&file.inode) {
            inode.loss = None;
        }
        Some(error)
    }

    /// The changes of an inode. To be followed by [`Files::forget_unchanged`] once one has ended.
    pub(crate) fn changes(&mut self, id: InodeId) -> &mut Changes {
        self.changes.entry(id).or_default()
    }

    pub(crate) fn is_changing(&self, id: InodeId) -> bool {
        self.changes.get(&id).is_some_and(|changes| changes.under_way.is_some())
    }

    /// Drops the record of changes if there are none.
    pub(crate) fn forget_unchanged(&mut self, id: InodeId) {
        if self.changes.get(&id).is_some_and(|changes| changes.under_way.is_none() && changes.waiting.is_empty()) {
            self.changes.remove(&id);
        }
    }

    /// A lost write was to be told by a handle, and was not: it is to be told as before.
    pub(crate) fn tell_again(&mut self, handle: FileHandle, error: Error) {
        let Some(file) = self.handles.get_mut(&handle.0) else { return };
        if let Some(inode) = self.inodes.get_mut(&file.inode) {
            inode.loss.get_or_insert_with(|| Loss::new(&error));
        }
        file.error.get_or_insert(error);
    }

    /// Inodes with a lost write that nobody was told of.
    pub(crate) fn untold(&self) -> Vec<InodeId> {
        let is_unheard = |inode: &&Inode| inode.loss.as_ref().is_some_and(|loss| !loss.was_heard);
        let kept = self.inodes.values().filter(is_unheard).map(|inode| inode.id);
        let mut untold: Vec<InodeId> =
            kept.chain(self.handles.values().filter(|file| file.error.is_some()).map(|file| file.inode)).collect();
        untold.sort_unstable();
        untold.dedup();
        untold
    }

    /// Takes attributes from the table as this mount must show them.
    pub(crate) fn see(&mut self, attributes: Attr) -> Attr {
        match self.inodes.get_mut(&InodeId(attributes.inode)) {
            Some(inode) => inode.refresh(attributes),
            None => self.questions.not_older(attributes),
        }
    }

    /// Takes in every attribute of an answer, and makes them what this mount must show.
    pub(crate) fn see_read(&mut self, response: &mut ReadResponse) {
        let entries = response.entries.iter_mut().filter_map(|entry| entry.attr.as_mut());
        for attributes in response.attr.iter_mut().chain(&mut response.walked).chain(entries) {
            *attributes = self.see(*attributes);
        }
    }

    /// As [`Files::see_read`].
    pub(crate) fn see_mutated(&mut self, response: &mut MutateResponse) {
        for attributes in response.attr.iter_mut().chain(&mut response.other_attr) {
            *attributes = self.see(*attributes);
        }
    }
}

#[cfg(test)]
mod tests;
