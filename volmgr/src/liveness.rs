//! Liveness of nodes, by heartbeats and a deadline. Pure: the time, monotonic milliseconds, is passed in.

use std::collections::BTreeMap;

use holdfast_common::NodeId;

/// A node that was silent for this long is dead: six heartbeats of 500 ms.
pub(crate) const LIVENESS_DEADLINE_MS: u64 = 3_000;
/// Longest time between two ticks that does not mean that this process itself stood still.
const TICK_GAP_MS_MAX: u64 = 1_000;

const _: () = assert!(TICK_GAP_MS_MAX < LIVENESS_DEADLINE_MS);

/// Heartbeats heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Liveness {
    /// When silence began to count for nodes that were not heard yet: the start, so that a volume manager that comes
    /// back calls nobody dead before it listened.
    started_ms: u64,
    last_tick_ms: u64,
    heard_ms: BTreeMap<NodeId, u64>,
}

impl Liveness {
    /// Starts to listen.
    #[must_use]
    pub(crate) fn new(now_ms: u64) -> Self {
        Self { started_ms: now_ms, last_tick_ms: now_ms, heard_ms: BTreeMap::new() }
    }

    /// Takes note of a node's sign of life.
    pub(crate) fn heard(&mut self, now_ms: u64, node: NodeId) {
        self.tick(now_ms);
        self.heard_ms.insert(node, now_ms);
    }

    /// Time passes; to be called several times a second. A gap means that this process stood still and could not hear:
    /// it is nobody's silence.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        let gap = now_ms.saturating_sub(self.last_tick_ms);
        if gap > TICK_GAP_MS_MAX {
            self.started_ms += gap;
            for heard in self.heard_ms.values_mut() {
                *heard += gap;
            }
        }
        self.last_tick_ms = self.last_tick_ms.max(now_ms);
    }

    #[must_use]
    pub(crate) fn is_alive(&self, now_ms: u64, node: NodeId) -> bool {
        let since = self.heard_ms.get(&node).copied().unwrap_or(self.started_ms);
        now_ms.saturating_sub(since) <= LIVENESS_DEADLINE_MS
    }

    /// Whether the node was heard within the deadline: stronger than alive, which a start takes for granted.
    #[must_use]
    pub(crate) fn is_heard(&self, now_ms: u64, node: NodeId) -> bool {
        self.heard_ms.get(&node).is_some_and(|heard| now_ms.saturating_sub(*heard) <= LIVENESS_DEADLINE_MS)
    }

    /// Milliseconds since the node was heard, if ever.
    #[must_use]
    pub(crate) fn silent_ms(&self, now_ms: u64, node: NodeId) -> Option<u64> {
        self.heard_ms.get(&node).map(|heard| now_ms.saturating_sub(*heard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(5);

    /// Ticks every 250 ms, as the shell does.
    fn pass(liveness: &mut Liveness, from_ms: u64, to_ms: u64) {
        for now in (from_ms..=to_ms).step_by(250) {
            liveness.tick(now);
        }
    }

    #[test]
    fn a_silent_node_is_dead_after_the_deadline_and_alive_again_when_heard() {
        let mut liveness = Liveness::new(0);
        liveness.heard(500, NODE);
        pass(&mut liveness, 500, 4_000);
        assert!(liveness.is_alive(3_500, NODE));
        assert!(!liveness.is_alive(3_501, NODE));
        liveness.heard(4_000, NODE);
        assert!(liveness.is_alive(4_001, NODE));
        assert_eq!(liveness.silent_ms(4_001, NODE), Some(1));
    }

    #[test]
    fn after_a_start_nobody_is_dead_before_the_deadline_and_nobody_counts_as_heard() {
        let mut liveness = Liveness::new(10_000);
        assert!(liveness.is_alive(13_000, NODE));
        assert!(!liveness.is_heard(10_001, NODE));
        pass(&mut liveness, 10_000, 13_001);
        assert!(!liveness.is_alive(13_001, NODE));
    }

    #[test]
    fn a_pause_of_the_volume_manager_itself_kills_nobody() {
        let mut liveness = Liveness::new(0);
        liveness.heard(1_000, NODE);
        liveness.tick(61_000);
        assert!(liveness.is_alive(61_000, NODE));
        pass(&mut liveness, 61_000, 65_000);
        assert!(!liveness.is_alive(65_000, NODE));
    }
}
