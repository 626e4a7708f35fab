//! The one place that names the ordered copy-on-write tree under the table, so that packed pages can replace it.
//!
//! A clone is O(1) and shares structure: changing one of the two copies the path to what changes, nothing else. The sum of the
//! records' hashes moves with every change.

use super::hasher::{Digest, Hasher};
use imbl::OrdMap;
use imbl::ordmap::RangedIter;
use std::borrow::Borrow;
use std::ops::{Bound, Deref, DerefMut};

/// An ordered map whose clone is a frozen copy made in O(1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree<K: Ord + Clone, V: Clone> {
    map: OrdMap<K, V>,
    /// Of the hashes of all records, wrapping.
    sum: u64,
}

/// A record's value, to be changed; the tree's sum follows when it is let go.
pub(crate) struct Changing<'a, V: Digest> {
    value: &'a mut V,
    key: Hasher,
    sum: &'a mut u64,
}

impl<V: Digest> Deref for Changing<'_, V> {
    type Target = V;

    fn deref(&self) -> &V {
        self.value
    }
}

impl<V: Digest> DerefMut for Changing<'_, V> {
    fn deref_mut(&mut self) -> &mut V {
        self.value
    }
}

impl<V: Digest> Drop for Changing<'_, V> {
    fn drop(&mut self) {
        *self.sum = self.sum.wrapping_add(hash_record(self.key, self.value));
    }
}

fn hash_key<Q: Digest + ?Sized>(key: &Q) -> Hasher {
    let mut hasher = Hasher::new();
    key.feed(&mut hasher);
    hasher
}

fn hash_record<V: Digest>(mut key: Hasher, value: &V) -> u64 {
    value.feed(&mut key);
    key.finish()
}

impl<K: Ord + Clone, V: Clone> Default for Tree<K, V> {
    fn default() -> Self {
        Self { map: OrdMap::new(), sum: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> Tree<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.map.get(key)
    }

    pub(crate) fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.map.get(key).is_some()
    }

    pub(crate) fn first(&self) -> Option<(&K, &V)> {
        self.map.get_min().map(|(key, value)| (key, value))
    }

    /// The entry with the largest key that is not above `key`.
    pub(crate) fn at_or_before<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.map.get_prev(key)
    }

    pub(crate) fn range<Q>(
        &self,
        from: Bound<&Q>,
        to: Bound<&Q>,
    ) -> RangedIter<'_, K, V, imbl::shared_ptr::DefaultSharedPtr>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.map.range::<_, Q>((from, to))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.map.iter()
    }
}

impl<K: Ord + Clone + Digest, V: Clone + Digest> Tree<K, V> {
    pub(crate) fn get_mut<Q>(&mut self, key: &Q) -> Option<Changing<'_, V>>
    where
        K: Borrow<Q>,
        Q: Ord + Digest + ?Sized,
    {
        let value = self.map.get_mut(key)?;
        let key = hash_key(key);
        self.sum = self.sum.wrapping_sub(hash_record(key, value));
        Some(Changing { value, key, sum: &mut self.sum })
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let hasher = hash_key(&key);
        self.sum = self.sum.wrapping_add(hash_record(hasher, &value));
        if let Some(former) = self.map.insert(key, value) {
            self.sum = self.sum.wrapping_sub(hash_record(hasher, &former));
        }
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Ord + Digest + ?Sized,
    {
        let removed = self.map.remove(key)?;
        self.sum = self.sum.wrapping_sub(hash_record(hash_key(key), &removed));
        Some(removed)
    }

    /// Whether the sum is that of the records there are. Reads everything.
    pub(crate) fn sum_is_right(&self) -> bool {
        let sum = self.map.iter().map(|(key, value)| hash_record(hash_key(key), value));
        sum.fold(0, u64::wrapping_add) == self.sum
    }
}

impl<K: Ord + Clone, V: Clone> Digest for Tree<K, V> {
    fn feed(&self, to: &mut Hasher) {
        (self.map.len() as u64, self.sum).feed(to);
    }
}
