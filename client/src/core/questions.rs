//! Questions under way, and what this mount knew of inodes that it let go meanwhile. Pure.
//!
//! The hazard: the table answers a question; a commit of ours changes the inode; its last handle is closed, and its state
//! is forgotten; then the answer arrives, with a size from before a write that has returned. The kernel believes it, and
//! places the next append over that write. So what was known of an inode is kept until every question that was asked
//! before it was let go has ended: no answer goes back behind it.

use holdfast_common::{Ascending, InodeId};
use holdfast_proto::meta::Attr;
use std::collections::{BTreeMap, VecDeque};

/// A question's number, ascending in the order of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question(u64);

#[derive(Debug)]
struct LetGo {
    attributes: Attr,
    /// Questions from this number on were asked afterwards and cannot be older.
    before: u64,
}

/// Questions of one mount. Holds as many inodes as were let go during the longest question.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    next: u64,
    under_way: Ascending<u64>,
    let_go: BTreeMap<InodeId, LetGo>,
    /// As above, in the order of letting go.
    order: VecDeque<(u64, InodeId)>,
}

impl Questions {
    pub(crate) fn begin(&mut self) -> Question {
        let number = self.next;
        self.next += 1;
        self.under_way.insert(number, ());
        Question(number)
    }

    /// The answer was taken in, or will never be.
    pub(crate) fn end(&mut self, question: Question) {
        self.under_way.remove(&question.0);
        let oldest = self.under_way.first().map_or(self.next, |(number, ())| *number);
        while let Some((before, inode)) = self.order.front().copied().filter(|(before, _)| *before <= oldest) {
            self.order.pop_front();
            if self.let_go.get(&inode).is_some_and(|kept| kept.before == before) {
                self.let_go.remove(&inode);
            }
        }
    }

    /// The inode's state is about to be forgotten.
    pub(crate) fn let_go(&mut self, attributes: Attr) {
        if self.under_way.is_empty() {
            return;
        }
        let (inode, before) = (InodeId(attributes.inode), self.next);
        self.let_go.insert(inode, LetGo { attributes, before });
        self.order.push_back((before, inode));
    }

    /// The newer one: this answer, or what was kept.
    pub(crate) fn not_older(&self, fresh: Attr) -> Attr {
        let known = self.let_go.get(&InodeId(fresh.inode)).map(|kept| &kept.attributes);
        known.map_or(fresh, |known| newest(fresh, known))
    }
}

/// An answer in which everything that a change of content moves is as new as what is known.
pub(crate) fn newest(fresh: Attr, known: &Attr) -> Attr {
    if fresh.data_version >= known.data_version {
        return fresh;
    }
    Attr {
        size_bytes: known.size_bytes,
        mapped_bytes: known.mapped_bytes,
        truncate_generation: known.truncate_generation,
        data_version: known.data_version,
        mtime_ns: fresh.mtime_ns.max(known.mtime_ns),
        ctime_ns: fresh.ctime_ns.max(known.ctime_ns),
        ..fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(size_bytes: u64) -> Attr {
        Attr { inode: 5, size_bytes, data_version: size_bytes, ..Attr::default() }
    }

    #[test]
    fn an_answer_from_before_an_inode_was_let_go_is_not_believed() {
        let mut questions = Questions::default();
        let asked_before = questions.begin();
        questions.let_go(attributes(10));
        let asked_after = questions.begin();
        assert_eq!(questions.not_older(attributes(4)).size_bytes, 10);
        assert_eq!(questions.not_older(attributes(12)).size_bytes, 12);
        questions.end(asked_after);
        assert_eq!(questions.not_older(attributes(4)).size_bytes, 10, "the older question is still under way");
        questions.end(asked_before);
        assert_eq!(questions.not_older(attributes(4)).size_bytes, 4, "nothing is kept");
        assert!(questions.let_go.is_empty() && questions.order.is_empty());
    }

    #[test]
    fn an_inode_let_go_twice_is_kept_for_the_later_question() {
        let mut questions = Questions::default();
        let first = questions.begin();
        questions.let_go(attributes(10));
        let second = questions.begin();
        questions.let_go(attributes(20));
        questions.end(first);
        assert_eq!(questions.not_older(attributes(4)).size_bytes, 20);
        questions.end(second);
        assert!(questions.let_go.is_empty() && questions.order.is_empty());
    }

    #[test]
    fn without_questions_nothing_is_kept() {
        let mut questions = Questions::default();
        questions.let_go(attributes(10));
        assert!(questions.let_go.is_empty());
    }

    /// An older answer keeps what only it can tell: a name's count, an owner, a mode.
    #[test]
    fn of_an_older_answer_only_the_content_is_not_believed() {
        let known = Attr { mtime_ns: 50, ctime_ns: 10, truncate_generation: 3, ..attributes(10) };
        let fresh = Attr { mtime_ns: 40, ctime_ns: 70, nlink: 2, mode: 0o600, uid: 7, ..attributes(4) };
        let seen = newest(fresh, &known);
        assert_eq!((seen.size_bytes, seen.data_version, seen.truncate_generation), (10, 10, 3));
        assert_eq!((seen.mtime_ns, seen.ctime_ns), (50, 70));
        assert_eq!((seen.nlink, seen.mode, seen.uid), (2, 0o600, 7));
        assert_eq!(newest(known, &fresh), known);
        assert_eq!(newest(Attr { nlink: 9, ..known }, &known).nlink, 9, "of one version the answer is the newer");
    }
}
