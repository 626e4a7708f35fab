//! The feature level (R26). What apply does, and what it answers and remembers, must be the same on replicas of different
//! builds: it follows a number in the replicated state, not the build. The leader raises it, by an entry, once the builds of
//! all replicas know the level; a build that does not know it stops its replica.
//!
//! | level | what it adds |
//! |---|---|
//! | 0 | a table made before there were levels |
//! | 1 | a refused file of a commit is answered with its present attributes; extended attributes whose name is a namespace alone
//! (`user.`) or has a NUL are refused; what fallocate allocates is recorded and charged;
//! chunks have exactly the geometry that readers accept; the last change of each block group is recorded;
//! what goes beyond an entry's bound on pieces becomes dead intervals |
//! | 2 | freed chunks are forgotten without members that do not confirm, and what these owe is recorded and settled; the leader
//! raises the floor |
//! | 3 | an operation over more allocated intervals than an entry may take away waits while they go in steps |

use super::{Outcome, Table, broken};
use holdfast_proto::meta::{MutateResponse, RaiseFeatureLevel};

/// The highest feature level that this build knows.
pub const FEATURE_LEVEL: u32 = 3;

impl Table {
    #[must_use]
    pub(crate) fn feature_level(&self) -> u32 {
        self.counters.feature_level
    }

    /// Never lowers: a proposal of a former leader may come late.
    pub(super) fn raise_feature_level(&mut self, op: &RaiseFeatureLevel) -> Outcome<MutateResponse> {
        if op.level > FEATURE_LEVEL {
            return Ok(broken(format!("feature level {} was raised, this version knows {FEATURE_LEVEL}", op.level))?);
        }
        self.counters.feature_level = self.counters.feature_level.max(op.level);
        Ok(MutateResponse::default())
    }
}
