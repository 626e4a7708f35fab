//! The names by which files were opened, for the case that people must be told of one. Pure.
//!
//! An open names an inode only. But who opens has looked the name up a moment before, so the last few names that were looked up
//! are remembered, and an open file keeps its own. A file that is renamed meanwhile keeps the former one: whoever tells it looks
//! first whether it still holds.

use bytes::Bytes;
use holdfast_common::InodeId;
use std::collections::VecDeque;

/// Names remembered. Between a lookup and the open that it was for, others may look something up.
const REMEMBERED_MAX: usize = 64;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) parent: InodeId,
    pub(crate) name: Bytes,
}

/// The names that were looked up last.
#[derive(Debug)]
pub(crate) struct LookedUp(VecDeque<(InodeId, Name)>);

impl Default for LookedUp {
    fn default() -> Self {
        Self(VecDeque::with_capacity(REMEMBERED_MAX))
    }
}

impl LookedUp {
    pub(crate) fn add(&mut self, inode: InodeId, name: Name) {
        if self.0.len() == REMEMBERED_MAX {
            self.0.pop_front();
        }
        self.0.push_back((inode, name));
    }

    /// The name by which an inode was looked up last.
    pub(crate) fn name_of(&self, inode: InodeId) -> Option<&Name> {
        self.0.iter().rev().find(|(known, _)| *known == inode).map(|(_, name)| name)
    }
}
