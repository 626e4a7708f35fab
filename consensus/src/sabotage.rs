//! Rules that a simulation may break on purpose, one at a time, to show that its checks would find the mistake.

/// A rule that is broken. Real processes break none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// All rules are kept.
    #[default]
    None,
}
