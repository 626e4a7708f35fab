//! The one place that names the ordered copy-on-write tree under the table, so that packed pages can replace it.
//!
//! A clone is O(1) and shares structure: changing one of the two copies the path to what changes, nothing else.

use imbl::OrdMap;
use imbl::ordmap::RangedIter;
use std::borrow::Borrow;
use std::ops::Bound;

/// An ordered map whose clone is a frozen copy made in O(1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree<K: Ord + Clone, V: Clone>(OrdMap<K, V>);

impl<K: Ord + Clone, V: Clone> Default for Tree<K, V> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Ord + Clone, V: Clone> Tree<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get(key)
    }

    pub(crate) fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get(key).is_some()
    }

    pub(crate) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.remove(key)
    }

    pub(crate) fn first(&self) -> Option<(&K, &V)> {
        self.0.get_min().map(|(key, value)| (key, value))
    }

    /// The entry with the largest key that is not above `key`.
    pub(crate) fn at_or_before<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get_prev(key)
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
        self.0.range::<_, Q>((from, to))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter()
    }
}
