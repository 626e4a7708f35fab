//! Rules that a simulation may break on purpose, one at a time, to show that its checks would find the mistake.

/// A rule that is broken. Real mounts break none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// All rules are kept.
    #[default]
    None,
    /// An answer takes the place of what is known of an inode, although this mount has committed since it was given.
    OlderAnswersBelieved,
    /// A map takes the place of the known one, although it is of an older version.
    OlderMapsBelieved,
    /// A mutation that is tried again gets another number: it may be applied twice (R8).
    NewNumberOnRetry,
    /// A commit is sent as soon as one shard of a chunk is durable (R2).
    CommitsBeforeDurable,
    /// A chunk that could not be written is tried again under the same id (R1).
    BurntChunkUsedAgain,
    /// Three attempts that met a full disk lose the data, although other disks have room (R16).
    RoomElsewhereIgnored,
    /// A lost write is told to nobody (R22).
    LossUntold,
    /// Frozen data of a lost session is written under the next one (R22).
    FrozenWrittenUnderNext,
    /// A truncation or a hole does not wait for what was written before it (R9).
    BarriersOvertake,
    /// The session's lease counts from when a keep-alive's answer came, instead of from when it was sent (R20).
    LeaseFromAnswer,
    /// A stripe over fewer members keeps its data shards and goes without parity (R13).
    ParityNarrowed,
}

impl Sabotage {
    /// Every rule that can be broken.
    pub const ALL: [Self; 11] = [
        Self::OlderAnswersBelieved,
        Self::OlderMapsBelieved,
        Self::NewNumberOnRetry,
        Self::CommitsBeforeDurable,
        Self::BurntChunkUsedAgain,
        Self::RoomElsewhereIgnored,
        Self::LossUntold,
        Self::FrozenWrittenUnderNext,
        Self::BarriersOvertake,
        Self::LeaseFromAnswer,
        Self::ParityNarrowed,
    ];
}

const _: () = assert!(Sabotage::ALL.len() == Sabotage::ParityNarrowed as usize, "every value but none stands in ALL");
