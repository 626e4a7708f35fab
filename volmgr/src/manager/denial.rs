//! Reasons why a request was not done, in words and in a kind that a program decides by.

use crate::state::{Refusal, RefusalKind};

/// A request that was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Denial {
    /// Programs decide by it.
    pub kind: DenialKind,
    /// Sentence for people.
    pub detail: String,
}

/// Kind of a [`Denial`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialKind {
    /// The state of the cluster does not allow it.
    Refused(RefusalKind),
    /// The volume was deleted while it was being made.
    Deleted,
    /// It exists, and is not ready yet.
    Late,
    /// The volume manager itself does not work.
    Internal,
}

impl Denial {
    pub(crate) fn of(kind: RefusalKind, detail: impl Into<String>) -> Self {
        Self { kind: DenialKind::Refused(kind), detail: detail.into() }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::of(RefusalKind::Invalid, detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::of(RefusalKind::Forbidden, detail)
    }

    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self::of(RefusalKind::Busy, detail)
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self { kind: DenialKind::Internal, detail: detail.into() }
    }

    /// The log took no entry before the deadline.
    pub(crate) fn no_entry(last: &str) -> Self {
        Self::busy(format!("the volume manager's log does not accept entries: {last}"))
    }

    /// The log allowed no read before the deadline.
    pub(crate) fn no_read(last: &str) -> Self {
        Self::busy(format!("the volume manager's log does not answer: {last}"))
    }

    pub(super) fn deleted(name: &str) -> Self {
        Self { kind: DenialKind::Deleted, detail: format!("volume '{name}' was deleted while it was being created") }
    }

    pub(super) fn late(name: &str) -> Self {
        let detail =
            format!("volume '{name}' exists, but its metadata table has no leader yet: look at it with 'volume show'");
        Self { kind: DenialKind::Late, detail }
    }

    /// Whether the same request will never be done: a node that hears it stops, as [`holdfast_node::is_final`] says.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.kind, DenialKind::Refused(RefusalKind::Invalid | RefusalKind::NotFound | RefusalKind::Forbidden))
    }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self::of(refusal.kind(), refusal.to_string())
    }
}
