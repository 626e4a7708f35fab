//! Open files: handles to inodes, and the inodes that somebody has open or that hold unflushed data; and which questions
//! are under way, so that no answer goes back behind what was known here.

use crate::inode::Inode;
use crate::questions::{Question, Questions};
use crate::readahead::Readahead;
use crate::{Error, FileHandle, OpenMode};
use holdfast_common::InodeId;
use holdfast_proto::meta::Attr;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// One open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) inode: Arc<Inode>,
    pub(crate) mode: OpenMode,
    pub(crate) readahead: Mutex<Readahead>,
}

#[derive(Debug, Default)]
struct Tables {
    handles: HashMap<u64, Arc<OpenFile>>,
    next_handle: u64,
    inodes: HashMap<InodeId, (Arc<Inode>, u32)>,
    questions: Questions,
}

/// All open files of one mount.
#[derive(Debug, Default)]
pub(crate) struct Files {
    tables: Mutex<Tables>,
}

/// A question under way, from before it is sent until its answer was taken in.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    files: &'a Files,
    question: Question,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.files.tables.lock().questions.end(self.question);
    }
}

impl Files {
    /// Every request whose answer brings attributes is asked under one of these.
    pub(crate) fn asking(&self) -> Asking<'_> {
        Asking { files: self, question: self.tables.lock().questions.begin() }
    }

    /// Opens an inode whose present attributes are these.
    pub(crate) fn open(&self, attributes: Attr, mode: OpenMode) -> (FileHandle, Arc<Inode>) {
        let id = InodeId(attributes.inode);
        let mut tables = self.tables.lock();
        let attributes = tables.questions.not_older(attributes);
        let (inode, count) = tables.inodes.entry(id).or_insert_with(|| (Arc::new(Inode::new(attributes)), 0));
        *count += 1;
        let inode = Arc::clone(inode);
        inode.refresh(attributes);
        tables.next_handle += 1;
        let handle = tables.next_handle;
        tables
            .handles
            .insert(handle, Arc::new(OpenFile { inode: Arc::clone(&inode), mode, readahead: Mutex::default() }));
        (FileHandle(handle), inode)
    }

    pub(crate) fn get(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Error> {
        self.tables.lock().handles.get(&handle.0).cloned().ok_or(Error::BadHandle)
    }

    /// The inode's state, if it is in use here.
    pub(crate) fn inode(&self, id: InodeId) -> Option<Arc<Inode>> {
        self.tables.lock().inodes.get(&id).map(|(inode, _)| Arc::clone(inode))
    }

    /// Forgets a handle. Its inode stays until [`Files::forget_unused`].
    pub(crate) fn close(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Error> {
        let mut tables = self.tables.lock();
        let file = tables.handles.remove(&handle.0).ok_or(Error::BadHandle)?;
        if let Some((_, count)) = tables.inodes.get_mut(&file.inode.id) {
            *count -= 1;
        }
        Ok(file)
    }

    /// Drops the inode's state if nobody has it open and nothing of it is unflushed.
    pub(crate) fn forget_unused(&self, id: InodeId) {
        let mut tables = self.tables.lock();
        if tables.inodes.get(&id).is_some_and(|(inode, count)| *count == 0 && inode.is_clean()) {
            if let Some((inode, _)) = tables.inodes.remove(&id) {
                tables.questions.let_go(inode.attributes());
            }
        }
    }

    /// Takes attributes from the table as this mount must show them.
    pub(crate) fn see(&self, attributes: Attr) -> Attr {
        let tables = self.tables.lock();
        match tables.inodes.get(&InodeId(attributes.inode)) {
            Some((inode, _)) => inode.refresh(attributes),
            None => tables.questions.not_older(attributes),
        }
    }
}
