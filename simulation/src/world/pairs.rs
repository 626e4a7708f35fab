//! Pairs of machines, from the first to the second, that something holds apart.

use std::collections::BTreeMap;

use holdfast_common::NodeId;

/// Each pair as often as it is held apart: the end of one cut ends no other.
#[derive(Default)]
pub(crate) struct Pairs(BTreeMap<(NodeId, NodeId), u64>);

impl Pairs {
    pub(crate) fn add(&mut self, pairs: &[(NodeId, NodeId)]) {
        pairs.iter().for_each(|pair| *self.0.entry(*pair).or_default() += 1);
    }

    pub(super) fn remove(&mut self, pairs: &[(NodeId, NodeId)]) {
        for pair in pairs {
            let left = self.0.remove(pair).unwrap_or(0).saturating_sub(1);
            if left > 0 {
                self.0.insert(*pair, left);
            }
        }
    }

    pub(super) fn contains(&self, pair: (NodeId, NodeId)) -> bool {
        self.0.contains_key(&pair)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_cut_until_the_last_of_its_cuts_ends() {
        let (there, back) = ((NodeId(1), NodeId(2)), (NodeId(2), NodeId(1)));
        let mut pairs = Pairs::default();
        pairs.add(&[there, back]);
        pairs.add(&[there]);
        pairs.remove(&[there, back]);
        assert!(pairs.contains(there) && !pairs.contains(back));
        pairs.remove(&[there]);
        pairs.remove(&[there]);
        assert!(!pairs.contains(there));
    }
}
