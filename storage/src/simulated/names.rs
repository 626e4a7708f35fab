//! The names of a directory, as they are and as they are on the disk.

use std::collections::BTreeMap;

use holdfast_common::Random;

use super::faults::Counts;

#[derive(Clone, Debug)]
enum Change {
    Bind {
        name: String,
        inode: u64,
    },
    Unbind {
        name: String,
    },
    /// One step of the file system's journal: both names or neither.
    Rename {
        from: String,
        to: String,
        inode: u64,
    },
}

type Map = BTreeMap<String, u64>;

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    now: Map,
    durable: Map,
    changes: Vec<Change>,
    /// Files that lost their name by a change that is not durable.
    displaced: Vec<u64>,
}

fn apply(map: &mut Map, change: &Change) -> Option<u64> {
    match change {
        Change::Bind { name, inode } => map.insert(name.clone(), *inode),
        Change::Unbind { name } => map.remove(name),
        Change::Rename { from, to, inode } => {
            map.remove(from);
            map.insert(to.clone(), *inode)
        }
    }
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<u64> {
        self.now.get(name).copied()
    }

    pub(super) fn list(&self) -> Vec<String> {
        self.now.keys().cloned().collect()
    }

    /// Everything that a name leads to, now or on the disk, or may lead to after a loss of power: of a file that was made and
    /// removed since the last sync, the making alone may be kept.
    pub(super) fn inodes(&self) -> Vec<u64> {
        let changed = self.changes.iter().filter_map(|change| match change {
            Change::Bind { inode, .. } | Change::Rename { inode, .. } => Some(*inode),
            Change::Unbind { .. } => None,
        });
        self.now.values().chain(self.durable.values()).copied().chain(changed).collect()
    }

    fn change(&mut self, change: Change) {
        self.displaced.extend(apply(&mut self.now, &change));
        self.changes.push(change);
    }

    pub(super) fn bind(&mut self, name: &str, inode: u64) {
        self.change(Change::Bind { name: name.to_owned(), inode });
    }

    pub(super) fn unbind(&mut self, name: &str) {
        self.change(Change::Unbind { name: name.to_owned() });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, inode: u64) {
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), inode });
    }

    /// Makes all changes durable. Returns the files that no name leads to any more.
    pub(super) fn sync(&mut self) -> Vec<u64> {
        for change in self.changes.drain(..) {
            apply(&mut self.durable, &change);
        }
        std::mem::take(&mut self.displaced)
    }

    /// Takes a name away, durably.
    pub(super) fn lose_name(&mut self, name: &str) {
        self.now.remove(name);
        self.durable.remove(name);
    }

    /// Loses power: leaves what `random` spares; without it, nothing that was not synced.
    pub(super) fn lose(&mut self, random: Option<&mut Random>, counts: &mut Counts) {
        let changes = std::mem::take(&mut self.changes);
        self.displaced.clear();
        if let Some(random) = random {
            // A journal keeps the order; other file systems need not.
            let in_order = random.one_in(2);
            let kept_count = random.index(changes.len() + 1);
            for (change, number) in changes.iter().zip(0..) {
                let kept = if in_order { number < kept_count } else { random.one_in(2) };
                if kept {
                    apply(&mut self.durable, change);
                }
            }
        }
        counts.lost_names +=
            self.now.iter().filter(|(name, inode)| self.durable.get(*name) != Some(inode)).count() as u64;
        self.now.clone_from(&self.durable);
    }
}
