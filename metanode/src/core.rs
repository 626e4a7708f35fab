//! A metanode's decisions, as values and functions that are handed times and answers and say what is to be done. Nothing here
//! names a runtime, a file, a clock, randomness or `HashMap` (a test greps for them). The server awaits around them
//! (`service`, `upkeep`, `sweep`, `collect`, `heartbeat`), the stepped form is driven by its caller.

pub(crate) mod admitting;
pub(crate) mod attendance;
pub(crate) mod backoff;
pub(crate) mod collect;
pub(crate) mod command;
pub(crate) mod known;
pub(crate) mod mutating;
pub(crate) mod patience;
pub(crate) mod reading;
pub(crate) mod recovery;
pub(crate) mod reporting;
pub(crate) mod starts;
pub(crate) mod sweep;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod upkeep;
pub(crate) mod view;

use holdfast_common::{NodeId, Term};
use holdfast_consensus::{GroupStatus, Role};

/// Reason why a replica does not answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotLed {
    /// Another one leads; `None` if no leader is known.
    By(Option<NodeId>),
    /// It met a broken invariant and stands still (R26).
    Stopped,
}

/// The term a replica leads in.
pub(crate) fn led_term(status: &GroupStatus) -> Result<Term, NotLed> {
    match status.role {
        Role::Leader => Ok(status.term),
        Role::Follower | Role::Candidate => Err(NotLed::By(status.leader)),
        Role::Stopped => Err(NotLed::Stopped),
    }
}
