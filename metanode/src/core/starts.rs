//! The last start of each node: an older one is not heard (R28).

use crate::sabotage::Sabotage;
use holdfast_common::NodeId;
use std::collections::BTreeMap;

/// The highest generation heard of each node.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    highest: BTreeMap<NodeId, u64>,
    sabotage: Sabotage,
}

impl Starts {
    pub(crate) fn sabotaged(sabotage: Sabotage) -> Self {
        Self { highest: BTreeMap::new(), sabotage }
    }

    /// Whether no later start of the node was heard of.
    pub(crate) fn is_current(&mut self, from: NodeId, generation: u64) -> bool {
        let highest = self.highest.entry(from).or_default();
        *highest = generation.max(*highest);
        *highest == generation || self.sabotage == Sabotage::OldStartsHeard
    }
}
