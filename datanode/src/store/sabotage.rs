//! One rule of a datanode broken at a time, so that a simulation can show that it would find the mistake.

/// Rule that a datanode breaks. Only the simulation sets another than none; the rules stand in `docs/RULES.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// A put is answered without its sync (D6).
    AnswerPutBeforeSync,
    /// A delete is answered without its sync (D6).
    AnswerDeleteBeforeSync,
    /// A failed sync is tried again, and its success believed (D6).
    RetryFailedSync,
    /// A failure is not written down: the disk serves again after a restart (D6).
    ForgetFailure,
    /// A change that finds no room fails the disk (R29).
    NoRoomFails,
    /// A shard under another nonce or with another content takes the place of the one that is there (R1).
    OverwriteOtherShard,
    /// A read is answered whatever attempt it asks for (R1).
    ServeAnyNonce,
    /// Puts below the floor are taken (R4).
    IgnoreFloor,
    /// A shard that is deleted by name goes whatever attempt it is of (R1).
    DeleteAnyNonce,
    /// Space is given back under readers (R5). A single thread cannot tell: its reads are whole.
    PunchUnderReaders,
    /// A drained segment is used again though the last checkpoint still needs a tombstone of it (R5, R7).
    RecycleBeforeCheckpoint,
    /// Pages leave without having been verified (D8).
    ServeUnverified,
    /// Recovery takes a record whose payload did not arrive (R6).
    AcceptTorn,
    /// Puts use space that other sessions have reserved (R29).
    IgnoreReservations,
    /// Puts of a deleted volume are taken (R3).
    PutAfterDrop,
    /// Deletes, floors and drops are obeyed without a proof (R30).
    ProofsIgnored,
}

impl Sabotage {
    /// Every rule that can be broken.
    pub const ALL: [Self; 16] = [
        Self::AnswerPutBeforeSync,
        Self::AnswerDeleteBeforeSync,
        Self::RetryFailedSync,
        Self::ForgetFailure,
        Self::NoRoomFails,
        Self::OverwriteOtherShard,
        Self::ServeAnyNonce,
        Self::IgnoreFloor,
        Self::DeleteAnyNonce,
        Self::PunchUnderReaders,
        Self::RecycleBeforeCheckpoint,
        Self::ServeUnverified,
        Self::AcceptTorn,
        Self::IgnoreReservations,
        Self::PutAfterDrop,
        Self::ProofsIgnored,
    ];
}

const _: () = assert!(Sabotage::ALL.len() == Sabotage::ProofsIgnored as usize, "every value but none stands in ALL");
