//! Raft's numbers as types: a term is not a place in the log, neither is a count, and a Raft group is not a block group.

use crate::number::{place, shown};

/// A Raft group: replicas on several nodes that agree on one log. In a metanode it has the number of the volume whose table
/// it is; the volume manager's own has one below all volumes. Not to be mixed up with a block group, a [`crate::GroupId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaftGroupId(pub u64);

shown!(RaftGroupId, "{}", "r{}");

/// A period with at most one leader of a Raft group. It only grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl Term {
    /// Before any election.
    pub const ZERO: Self = Self(0);

    /// The term that the next election is about.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

shown!(Term, "{}", "t{}");

/// The place of an entry in the log of a Raft group. The first entry is at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// Before the first entry: of an empty log, or of a state to which nothing was applied.
    pub const ZERO: Self = Self(0);

    /// The place behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// So many entries back, but not beyond [`Self::ZERO`].
    #[must_use]
    pub fn back(self, entries: u64) -> Self {
        Self(self.0.saturating_sub(entries))
    }
}

shown!(LogIndex, "{}", "#{}");

place!(LogIndex);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_and_a_count_make_a_place_and_two_places_a_count() {
        let (from, to) = (LogIndex(10), LogIndex(10) + 5);
        assert_eq!((to, to - from, from.next()), (LogIndex(15), 5, LogIndex(11)));
        assert_eq!(format!("{to} {to:?}"), "15 #15");
    }

    #[test]
    fn nothing_is_before_the_beginning() {
        assert_eq!((LogIndex(3).back(2), LogIndex(3).back(4)), (LogIndex(1), LogIndex::ZERO));
    }

    #[test]
    fn a_raft_group_is_written_as_the_bare_number() {
        let group = RaftGroupId(7);
        assert_eq!(format!("{group} {group:?}"), "7 r7");
    }

    #[test]
    fn terms_follow_each_other() {
        assert!(Term::ZERO < Term::ZERO.next());
        assert_eq!(format!("{} {:?}", Term(2), Term(2)), "2 t2");
    }
}
