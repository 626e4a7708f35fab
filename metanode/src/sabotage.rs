//! Rules that a simulation may break on purpose, one at a time, to show that its checks would find the mistake.

/// A rule that is broken. Real processes break none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// All rules are kept.
    #[default]
    None,
    /// A leader answers reads without a barrier: it may lead no more, or not have applied what was acknowledged.
    ReadsWithoutBarrier,
    /// A repeated request is applied again (R8).
    RepliesForgotten,
    /// The table's time follows the leader's clock backwards (R20).
    TimeGoesBack,
    /// Sessions are expired before their lease ended (R20).
    SessionsExpiredEarly,
    /// A keep-alive is answered while the expiry of its session waits in the log (R20).
    EndingSessionsRenewed,
    /// Orphans are reaped that somebody has open.
    OpenFilesReaped,
    /// A new leader reaps orphans before every session has attached.
    ReapedBeforeAttached,
    /// An orphan is reaped while a create may be about to register it as open.
    ReapedUnderCreates,
    /// Shards of freed chunks are deleted at once, under their readers (R5).
    FreedChunksDeletedAtOnce,
    /// A chunk is forgotten once one member has deleted its shard.
    UnconfirmedChunksForgotten,
    /// A member that refused or did not answer counts as one that deleted.
    SilenceConfirms,
    /// A commit from before a truncation lands behind it (R9).
    TruncatedCommitsTaken,
    /// Commits below the floor are taken (R4).
    CommitsBelowFloorTaken,
    /// The floor is raised to where chunk ids are now: chunks under way are refused (R4).
    FloorAtPresentId,
    /// Shards are looked up in the table as it was before its floor was raised (R4).
    LookedUpBeforePage,
    /// Shards of chunks that are freed and not yet forgotten count as orphans (R5).
    FreedChunksOrphaned,
    /// Chunks are forgotten without members, and nobody remembers what these owe.
    OwedNotWritten,
    /// A disk that was compared owes nothing any more, whatever it was compared below.
    SweptClearsAll,
    /// Several sessions get the same chunk ids (R3).
    ChunkIdsGivenTwice,
    /// A chunk that was freed may be named again (R1).
    FreedChunksTakenAgain,
    /// Slots that were vacated since may be named (R12).
    VacatedSlotsTaken,
    /// A chunk is freed with the first of its references (R11).
    SharedChunksFreed,
    /// Commits are taken beyond the quota (R29).
    QuotaIgnored,
    /// Messages of an older start of a node are taken in (R28).
    OldStartsHeard,
    /// A node that the volume manager refused for good goes on (R28).
    RefusedServesOn,
}

impl Sabotage {
    /// Every rule that can be broken.
    pub const ALL: [Self; 25] = [
        Self::ReadsWithoutBarrier,
        Self::RepliesForgotten,
        Self::TimeGoesBack,
        Self::SessionsExpiredEarly,
        Self::EndingSessionsRenewed,
        Self::OpenFilesReaped,
        Self::ReapedBeforeAttached,
        Self::ReapedUnderCreates,
        Self::FreedChunksDeletedAtOnce,
        Self::UnconfirmedChunksForgotten,
        Self::SilenceConfirms,
        Self::TruncatedCommitsTaken,
        Self::CommitsBelowFloorTaken,
        Self::FloorAtPresentId,
        Self::LookedUpBeforePage,
        Self::FreedChunksOrphaned,
        Self::OwedNotWritten,
        Self::SweptClearsAll,
        Self::ChunkIdsGivenTwice,
        Self::FreedChunksTakenAgain,
        Self::VacatedSlotsTaken,
        Self::SharedChunksFreed,
        Self::QuotaIgnored,
        Self::OldStartsHeard,
        Self::RefusedServesOn,
    ];
}

const _: () = assert!(Sabotage::ALL.len() == Sabotage::RefusedServesOn as usize, "every value but none stands in ALL");
