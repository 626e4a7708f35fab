//! Possible contents of each file, by its inode: exactly what its holder wrote, and after a crash or a loss that was
//! told, for each byte what was durable or what was written since.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use bytes::Bytes;
use holdfast_common::InodeId;

/// A change of a file.
#[derive(Clone)]
pub(crate) enum Change {
    Write { offset: usize, data: Bytes },
    Resize(usize),
    Zero { offset: usize, length: usize },
}

/// Without the bytes.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, data } => write!(f, "write {offset} + {}", data.len()),
            Self::Resize(size) => write!(f, "resize {size}"),
            Self::Zero { offset, length } => write!(f, "punch {offset} + {length}"),
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => {
                content.resize(content.len().max(offset + data.len()), 0);
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
            Self::Resize(size) => content.resize(*size, 0),
            Self::Zero { offset, length } => {
                let end = (offset + length).min(content.len());
                if *offset < end {
                    content[*offset..end].fill(0);
                }
            }
        }
    }
}

/// One file and what is known of it.
#[derive(Default)]
pub(crate) struct File {
    /// The client that has it: no other may write to it.
    holder: Option<usize>,
    /// Another client that truncates it under its holder.
    meddler: Option<usize>,
    /// That happened since it was taken: its holder need not see what another did until it is opened again.
    meddled: bool,
    /// As it was when it was last known to be durable.
    durable: Vec<u8>,
    /// As its holder must see it.
    current: Vec<u8>,
    /// Changes since it was durable, those included of which nobody has heard yet whether they happened.
    pending: Vec<Change>,
    /// Pending changes may be lost, whole or in parts.
    doubtful: bool,
    /// Last events, for people.
    last: VecDeque<String>,
}

/// Notes that a file keeps.
const NOTES_MAX: usize = 14;

/// All files that were ever held; inodes are never used twice.
#[derive(Default)]
pub(crate) struct Files(BTreeMap<u64, File>);

impl Files {
    pub(crate) fn file(&mut self, inode: InodeId) -> &mut File {
        self.0.entry(inode.0).or_default()
    }

    /// Gives a file to a client, unless somebody has it.
    pub(crate) fn take(&mut self, inode: InodeId, client: usize) -> bool {
        let file = self.file(inode);
        let free = file.holder.is_none();
        if free {
            (file.holder, file.meddled) = (Some(client), file.meddler.is_some());
        }
        free
    }

    pub(crate) fn let_go(&mut self, inode: InodeId) {
        self.file(inode).holder = None;
    }

    /// A file that another client holds, to be truncated to a size under its hands; whatever is not synced is in doubt from here on.
    pub(crate) fn meddle(&mut self, client: usize, size: usize) -> Option<InodeId> {
        let held = |file: &File| file.holder.is_some_and(|holder| holder != client) && file.meddler.is_none();
        let (inode, file) = self.0.iter_mut().find(|(_, file)| held(file))?;
        file.intends(Change::Resize(size));
        file.doubt();
        (file.meddler, file.meddled) = (Some(client), true);
        Some(InodeId(*inode))
    }

    /// The truncation by another client has happened.
    pub(crate) fn meddled(&mut self, inode: InodeId) {
        self.file(inode).meddler = None;
    }

    /// Nothing of what a client's former life did can come any more.
    pub(crate) fn fenced(&mut self, client: usize) {
        for file in self.0.values_mut() {
            if file.holder == Some(client) {
                file.doubt();
                file.holder = None;
            }
            file.meddler = file.meddler.filter(|meddler| *meddler != client);
        }
    }
}

impl File {
    pub(crate) fn size(&self) -> usize {
        self.current.len()
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    pub(crate) fn note(&mut self, note: String) {
        self.last.push_back(note);
        if self.last.len() > NOTES_MAX {
            self.last.pop_front();
        }
    }

    /// Last events, for people.
    pub(crate) fn notes(&self) -> String {
        self.last.iter().map(|note| format!("\n        {note}")).collect()
    }

    /// The holder is about to change it.
    pub(crate) fn intends(&mut self, change: Change) {
        self.pending.push(change);
    }

    /// The last change that was intended has happened.
    pub(crate) fn did(&mut self) {
        if let Some(change) = self.pending.last() {
            change.apply(&mut self.current);
        }
    }

    /// Pending changes may have happened or not.
    pub(crate) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Everything is durable, of what is left.
    pub(crate) fn synced(&mut self) {
        if !self.doubtful {
            self.durable.clone_from(&self.current);
            self.pending.clear();
        }
    }

    /// The whole content was read. While nothing is in doubt it must be what was written; else it must be possible, and is
    /// what is known from now on, if it is `settled`: nothing of what is pending can come any more.
    pub(crate) fn seen(&mut self, content: &[u8], settled: bool) -> Result<(), String> {
        if !self.doubtful {
            return match first_difference(content, &self.current) {
                None => Ok(()),
                Some(at) => {
                    let (seen, written) = (content.len(), self.current.len());
                    Err(format!("byte {at} of {seen} differs from what was written, {written} bytes"))
                }
            };
        }
        self.is_possible(content)?;
        if settled && !self.meddled {
            self.durable = content.to_vec();
            self.current = content.to_vec();
            self.pending.clear();
            self.doubtful = false;
        }
        Ok(())
    }

    /// Whether what was read could be what is left of the pending changes.
    pub(crate) fn is_possible(&self, content: &[u8]) -> Result<(), String> {
        let mut sizes = BTreeSet::from([self.durable.len()]);
        for change in &self.pending {
            match change {
                Change::Write { offset, data } => drop(sizes.insert(offset + data.len())),
                Change::Resize(size) => drop(sizes.insert(*size)),
                Change::Zero { .. } => {}
            }
        }
        if !sizes.contains(&content.len()) {
            return Err(format!("a size of {} that it never had", content.len()));
        }
        for (at, byte) in content.iter().enumerate() {
            let was = self.durable.get(at).copied().unwrap_or(0);
            if *byte != was && !self.pending.iter().any(|change| change.may_leave(at, *byte)) {
                return Err(format!("byte {at} of {} was never written there", content.len()));
            }
        }
        Ok(())
    }
}

impl Change {
    /// Whether this change, or a part of it, can leave `byte` at a place.
    fn may_leave(&self, at: usize, byte: u8) -> bool {
        match self {
            Self::Write { offset, data } => {
                let inside = at.checked_sub(*offset).and_then(|inside| data.get(inside));
                // A write beyond the end leaves a hole before it.
                inside == Some(&byte) || (byte == 0 && at < *offset)
            }
            Self::Resize(size) => byte == 0 && at >= (*size).min(at),
            Self::Zero { offset, length } => byte == 0 && (*offset..offset + length).contains(&at),
        }
    }
}

fn first_difference(seen: &[u8], wanted: &[u8]) -> Option<usize> {
    let differs = seen.iter().zip(wanted).position(|(a, b)| a != b);
    differs.or_else(|| (seen.len() != wanted.len()).then(|| seen.len().min(wanted.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let mut file = File::default();
        file.intends(Change::Write { offset: 0, data: Bytes::from_static(b"aaaa") });
        file.did();
        file.synced();
        file.intends(Change::Write { offset: 2, data: Bytes::from_static(b"bbbb") });
        file.did();
        file
    }

    #[test]
    fn what_is_not_in_doubt_must_be_exact() {
        let mut file = file();
        assert_eq!(file.seen(b"aabbbb", true), Ok(()));
        assert!(file.seen(b"aabbb", true).is_err());
        assert!(file.seen(b"aaaabb", true).is_err());
    }

    #[test]
    fn what_another_truncates_is_known_to_the_next_holder_only() {
        let (mut files, inode) = (Files::default(), InodeId(7));
        assert!(files.take(inode, 0) && !files.take(inode, 1));
        assert_eq!((files.meddle(0, 3), files.meddle(1, 3)), (None, Some(inode)));
        assert_eq!(files.meddle(1, 4), None, "one at a time");
        files.meddled(inode);
        let file = files.file(inode);
        assert_eq!(file.seen(b"", true), Ok(()));
        assert!(file.is_doubtful());
        files.let_go(inode);
        assert!(files.take(inode, 1));
        let file = files.file(inode);
        assert!(file.seen(b"\0\0", true).is_err());
        assert_eq!(file.seen(b"\0\0\0", true), Ok(()));
        assert!(!file.is_doubtful());
    }

    #[test]
    fn after_a_doubt_each_byte_is_old_or_new_and_then_known() {
        for possible in [&b"aaaa"[..], b"aabbbb", b"aaabbb"] {
            let mut file = file();
            file.doubt();
            assert_eq!(file.seen(possible, true), Ok(()));
            assert_eq!(file.seen(possible, true), Ok(()));
            assert!(!file.is_doubtful());
        }
        for impossible in [&b"aaxb"[..], b"bbbbbb", b"aaaab", b""] {
            let mut file = file();
            file.doubt();
            assert!(file.seen(impossible, true).is_err(), "{impossible:?}");
        }
    }
}
