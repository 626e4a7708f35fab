//! A map whose keys mostly come in ascending order and go again soon: numbers of what is under way, and deadlines. Pure.
//!
//! Every request enters and leaves half a dozen of them. A `BTreeMap` that is empty in between allocates and frees a node each
//! time; this keeps its room. Finding is a binary search; inserting at the end and removing near either end moves little.

use std::collections::VecDeque;

/// A map in ascending order of its keys.
#[derive(Debug)]
pub struct Ascending<K, V = ()> {
    entries: VecDeque<(K, V)>,
}

impl<K, V> Default for Ascending<K, V> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<K: Ord, V> Ascending<K, V> {
    #[inline]
    fn find(&self, key: &K) -> Result<usize, usize> {
        // The usual cases first: one entry, or the newest.
        match self.entries.back() {
            None => Err(0),
            Some((last, _)) if last < key => Err(self.entries.len()),
            Some((last, _)) if last == key => Ok(self.entries.len() - 1),
            Some(_) => self.entries.binary_search_by(|(other, _)| other.cmp(key)),
        }
    }

    /// Puts a value under a key, in place of one that is there.
    pub fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.entries[at].1 = value,
            Err(at) => self.entries.insert(at, (key, value)),
        }
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.entries[at].1)
    }

    /// The value under a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find(key).ok().map(|at| &mut self.entries[at].1)
    }

    /// Whether there is a value under a key.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Takes the value under a key away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        self.entries.remove(at).map(|(_, value)| value)
    }

    /// The entry with the lowest key.
    #[must_use]
    pub fn first(&self) -> Option<(&K, &V)> {
        self.entries.front().map(|(key, value)| (key, value))
    }

    /// Count of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// Removes everything, and keeps the room.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

impl<K, V> IntoIterator for Ascending<K, V> {
    type Item = (K, V);
    type IntoIter = std::collections::vec_deque::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;
    use std::collections::BTreeMap;

    /// Against a `BTreeMap`, with keys that ascend, and some that do not.
    #[test]
    fn it_is_a_map() {
        let mut random = Random::new(1);
        let (mut ascending, mut model) = (Ascending::default(), BTreeMap::new());
        let mut next = 100u64;
        for step in 0..20_000u64 {
            match random.below(4) {
                0 => {
                    next += random.below(3);
                    ascending.insert(next, step);
                    model.insert(next, step);
                }
                1 => {
                    let key = random.below(next + 2);
                    ascending.insert(key, step);
                    model.insert(key, step);
                }
                _ => {
                    let key = model.keys().nth(random.index(model.len().max(1))).copied().unwrap_or(next);
                    let key = if random.one_in(5) { random.below(next) } else { key };
                    assert_eq!(ascending.get(&key), model.get(&key));
                    assert_eq!(ascending.contains(&key), model.contains_key(&key));
                    assert_eq!(ascending.get_mut(&key), model.get_mut(&key));
                    assert_eq!(ascending.remove(&key), model.remove(&key));
                }
            }
            assert_eq!(ascending.first(), model.first_key_value());
            assert_eq!((ascending.len(), ascending.is_empty()), (model.len(), model.is_empty()));
        }
        assert!(ascending.iter().eq(model.iter()));
        ascending.clear();
        assert_eq!(ascending.first(), None);
    }
}
