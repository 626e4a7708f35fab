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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) parent: InodeId,
    pub(crate) name: Bytes,
}

/// The last names looked up, oldest first, with the inodes they led to.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &'static str) -> Name {
        Name { parent: InodeId::ROOT, name: Bytes::from_static(name.as_bytes()) }
    }

    #[test]
    fn a_file_has_the_name_by_which_it_was_looked_up_last() {
        let mut names = LookedUp::default();
        names.add(InodeId(5), name("first"));
        names.add(InodeId(6), name("other"));
        names.add(InodeId(5), name("second"));
        assert_eq!(names.name_of(InodeId(5)), Some(&name("second")));
        assert_eq!(names.name_of(InodeId(7)), None);
    }

    #[test]
    fn only_the_last_names_are_remembered() {
        let mut names = LookedUp::default();
        (0..REMEMBERED_MAX as u64 + 1).for_each(|inode| names.add(InodeId(inode), name("file")));
        assert_eq!((names.name_of(InodeId(0)), names.0.len()), (None, REMEMBERED_MAX));
        assert!(names.name_of(InodeId(1)).is_some());
    }
}
