//! One rule of the volume manager broken at a time, so that a simulation can show that it would find the mistake.

/// Rule that a volume manager breaks. Only the simulation sets another than none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// Heartbeats of a node that a later start has fenced are heard (R28).
    HearOlderGeneration,
    /// A volume becomes active by any report of its table's leader, ready or not.
    ActivateUnready,
    /// The creation of a volume is answered before its table is ready.
    AnswerBeforeTable,
    /// A deleted volume is forgotten by the first heartbeats, though no node said that it dropped its shards (R7).
    ConfirmUnreported,
}

impl Sabotage {
    /// Every rule that can be broken.
    pub const ALL: [Self; 4] =
        [Self::HearOlderGeneration, Self::ActivateUnready, Self::AnswerBeforeTable, Self::ConfirmUnreported];
}

const _: () =
    assert!(Sabotage::ALL.len() == Sabotage::ConfirmUnreported as usize, "every value but none stands in ALL");
