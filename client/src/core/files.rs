//! Open files: handles to inodes, and the inodes that somebody has open or that hold unflushed data; and which questions
//! are under way, so that no answer goes back behind what was known here. Pure.

use super::effects::OpId;
use super::inode::Inode;
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
    /// A lost write that fsync has not told of yet (R22).
    pub(crate) error: Option<Error>,
}

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

    /// Opens an inode whose present attributes are these. A write that was lost when nobody had it open is this handle's to
    /// tell of.
    pub(crate) fn open(&mut self, attributes: Attr, mode: OpenMode) -> (FileHandle, &mut Inode) {
        let attributes = self.questions.not_older(attributes);
        self.next_handle += 1;
        let handle = self.next_handle;
        let id = InodeId(attributes.inode);
        let inode = self.inodes.entry(id).or_insert_with(|| Inode::new(attributes, self.sabotage));
        inode.refresh(attributes);
        inode.handles.insert(handle);
        let file = OpenFile { inode: id, mode, readahead: Readahead::default(), error: inode.error.take() };
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

    /// Drops the inode's state if nobody has it open and nothing of it is under way.
    pub(crate) fn forget_unused(&mut self, id: InodeId) {
        if let Some(inode) = self.inodes.get(&id).filter(|inode| inode.is_unused()) {
            self.questions.let_go(inode.attributes());
            self.map_bytes -= inode.map_bytes();
            self.mapped.remove(&id);
            self.inodes.remove(&id);
        }
    }

    /// A write was lost: every handle that is open now tells of it, or else the next one (R22).
    pub(crate) fn lost(&mut self, id: InodeId, error: &Error) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        if inode.handles.is_empty() {
            inode.error.get_or_insert_with(|| error.clone());
        }
        for handle in &inode.handles {
            if let Some(file) = self.handles.get_mut(handle) {
                file.error.get_or_insert_with(|| error.clone());
            }
        }
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

    /// A lost write was to be told by a handle, and was not: the handle tells it again, or else the next one.
    pub(crate) fn tell_again(&mut self, handle: FileHandle, error: Error) {
        if let Some(file) = self.handles.get_mut(&handle.0) {
            file.error.get_or_insert(error);
        }
    }

    /// Inodes with a lost write that nobody was told of.
    pub(crate) fn untold(&self) -> Vec<InodeId> {
        let kept = self.inodes.values().filter(|inode| inode.error.is_some()).map(|inode| inode.id);
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
