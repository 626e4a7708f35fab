//! Rules that a simulation may break on purpose, one at a time, to show that its checks would find the mistake.

/// A rule that is broken. Only simulations set one: real processes keep all rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// All rules are kept.
    #[default]
    None,
    /// Votes, append responses and answers leave before what they promise is durable (D6).
    AnswersBeforeSync,
    /// A failed sync is tried again, and the kernel's word taken for it (D6).
    FailedSyncRetried,
    /// Term and vote are not written: a later life may vote again in the same term (D6).
    VotesUnwritten,
    /// A replica gives votes at once after a restart, though it may have answered a leader whose lease runs.
    RestartedVotesAtOnce,
    /// A lease runs longer than the followers' patience.
    LeaseOutlivesPatience,
    /// A leader lets reads go ahead without lease or round.
    ReadsWithoutQuorum,
    /// Recovery does not write the tail of the log again that it found in the page cache (R23).
    TailNotRewritten,
    /// Recovery takes torn batches, and those of a segment's former life, for whole (R24).
    ChecksumsIgnored,
    /// The log recycles segments that Raft groups still need (R25).
    NeededSegmentsRecycled,
    /// A snapshot is named by the log before it is durable (R25).
    SnapshotUnsynced,
    /// The log does not say that a leader's snapshot took the place of the entries before it.
    InstalledEntriesKept,
    /// The entries kept below a snapshot are applied again after a restart.
    AppliedAgain,
    /// On a nearly full disk what frees is refused like what grows (R29).
    FreeingRefused,
    /// A voter that lost its log is let back in with whatever snapshot the leader has: no entry that every other voter
    /// acknowledged is waited for (R23).
    AdmittedAtOnce,
    /// A part of a carry counts although the rest of it did not reach the disk (R25).
    CarryCountedInParts,
    /// A log that must be there and is not is made (R23).
    MissingLogMade,
}

impl Sabotage {
    /// Every rule that can be broken.
    pub const ALL: [Self; 16] = [
        Self::AnswersBeforeSync,
        Self::FailedSyncRetried,
        Self::VotesUnwritten,
        Self::RestartedVotesAtOnce,
        Self::LeaseOutlivesPatience,
        Self::ReadsWithoutQuorum,
        Self::TailNotRewritten,
        Self::ChecksumsIgnored,
        Self::NeededSegmentsRecycled,
        Self::SnapshotUnsynced,
        Self::InstalledEntriesKept,
        Self::AppliedAgain,
        Self::FreeingRefused,
        Self::AdmittedAtOnce,
        Self::CarryCountedInParts,
        Self::MissingLogMade,
    ];
}
