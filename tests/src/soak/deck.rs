//! The order of deaths. A deck is dealt before it is shuffled again, so that a short soak has some of everything. Pure.

use crate::random::Random;

/// One death, never beyond what the cluster promises to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// One datanode, by its index.
    Datanode(u64),
    /// Two datanodes at once: as many as the code 4+2 bears.
    TwoDatanodes(u64, u64),
    Metanode(u64),
    VolumeManager,
    Client,
}

const DATANODES: u64 = 6;
const METANODES: u64 = 3;

/// See the module.
pub(super) struct Deck {
    random: Random,
    cards: Vec<fn(&mut Random) -> Death>,
}

impl Deck {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), cards: Vec::new() }
    }

    pub(super) fn deal(&mut self) -> Death {
        if self.cards.is_empty() {
            self.shuffle();
        }
        let card = self.cards.pop().expect("it was just shuffled");
        card(&mut self.random)
    }

    /// A pause before the next death, in milliseconds.
    pub(super) fn pause_ms(&mut self) -> u64 {
        2000 + self.random.below(4000)
    }

    fn shuffle(&mut self) {
        let metanode = |random: &mut Random| Death::Metanode(random.below(METANODES));
        let one = |random: &mut Random| Death::Datanode(random.below(DATANODES));
        let two = |random: &mut Random| {
            let first = random.below(DATANODES);
            Death::TwoDatanodes(first, (first + 1 + random.below(DATANODES - 1)) % DATANODES)
        };
        self.cards = vec![metanode, one, two, |_| Death::VolumeManager, |_| Death::Client, |_| Death::Client];
        for index in (1..self.cards.len()).rev() {
            let other = self.random.index(index + 1);
            self.cards.swap(index, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_round_of_the_deck_has_every_kind_of_death_and_two_datanodes_are_two() {
        for seed in 0..50 {
            let mut deck = Deck::new(seed);
            let dealt: Vec<Death> = (0..6).map(|_| deck.deal()).collect();
            assert_eq!(dealt.iter().filter(|death| **death == Death::Client).count(), 2);
            assert!(dealt.contains(&Death::VolumeManager));
            assert!(dealt.iter().any(|death| matches!(death, Death::Metanode(index) if *index < METANODES)));
            let two = dealt.iter().find_map(|death| match death {
                Death::TwoDatanodes(one, two) => Some((*one, *two)),
                _ => None,
            });
            assert!(two.is_some_and(|(one, two)| one != two && one < DATANODES && two < DATANODES));
        }
    }
}
