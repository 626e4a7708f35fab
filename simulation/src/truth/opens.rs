//! Inodes that programs have open: none may be reaped, whether it has a name or not, unless its session was lost.

use std::collections::BTreeMap;

use holdfast_common::InodeId;

struct Open {
    count: u64,
    /// Sessions that its client had lost when it asked to open it.
    losses: u64,
}

/// A create that made or found an inode and opens it, as its leader has it.
struct Created {
    /// Leaders before and with that one: another one knows of no opens but those that clients tell it.
    elections: u64,
    /// Sessions that its client had lost by then.
    losses: u64,
}

/// By inode and the client's key.
type ByClient<T> = BTreeMap<(InodeId, Vec<u8>), T>;

/// The entries of all clients for an inode.
fn of_inode<T>(entries: &ByClient<T>, inode: InodeId) -> impl Iterator<Item = (&[u8], &T)> {
    let from = entries.range((inode, Vec::new())..).take_while(move |((of, _), _)| *of == inode);
    from.map(|((_, key), entry)| (&key[..], entry))
}

/// Opens of all clients.
#[derive(Default)]
pub(crate) struct Opens {
    open: ByClient<Open>,
    /// Creates whose client was not told yet.
    created: ByClient<Created>,
}

impl Opens {
    /// A create was applied. Its leader has the inode as open from before it was proposed until its client is told and lets go.
    pub(super) fn created(&mut self, inode: InodeId, key: Vec<u8>, elections: u64, losses: u64) {
        self.created.insert((inode, key), Created { elections, losses });
    }

    /// A client was told that a create failed, which may have been any of its creates.
    pub(super) fn not_opened(&mut self, key: &[u8]) {
        self.created.retain(|(_, of), _| of != key);
    }

    /// A client was told, or lets go of what another create of it had opened: its leader counts both as one.
    pub(super) fn told(&mut self, inode: InodeId, key: &[u8]) {
        self.created.retain(|(of, by), _| (*of, &by[..]) != (inode, key));
    }

    /// Whether a client that has lost no session since is still to be told by the present leader that it has an inode open.
    pub(super) fn is_being_told(&self, inode: InodeId, elections: u64, losses_of: impl Fn(&[u8]) -> u64) -> bool {
        let mut creates = of_inode(&self.created, inode);
        creates.any(|(key, created)| created.elections == elections && created.losses == losses_of(key))
    }

    pub(super) fn opened(&mut self, inode: InodeId, key: &[u8], losses: u64) {
        let open = self.open.entry((inode, key.to_vec())).or_insert(Open { count: 0, losses });
        open.count += 1;
    }

    pub(super) fn closes(&mut self, inode: InodeId, key: &[u8]) {
        self.told(inode, key);
        let place = (inode, key.to_vec());
        if let Some(open) = self.open.get_mut(&place) {
            open.count -= 1;
            if open.count == 0 {
                self.open.remove(&place);
            }
        }
    }

    /// The client's process ended.
    pub(super) fn ended(&mut self, key: &[u8]) {
        self.not_opened(key);
        self.open.retain(|(_, of), _| of != key);
    }

    /// A client that has an inode open, and has lost no session since.
    pub(super) fn user(&self, inode: InodeId, losses_of: impl Fn(&[u8]) -> u64) -> Option<&[u8]> {
        of_inode(&self.open, inode).find(|(key, open)| losses_of(key) == open.losses).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_is_being_told_until_its_client_knows_or_another_one_leads() {
        let (inode, other) = (InodeId(9), InodeId(10));
        let made = || {
            let mut opens = Opens::default();
            opens.created(inode, b"b".to_vec(), 3, 0);
            opens
        };
        let mut opens = made();
        assert!(opens.is_being_told(inode, 3, |_| 0) && !opens.is_being_told(other, 3, |_| 0));
        assert!(!opens.is_being_told(inode, 4, |_| 0), "another one leads");
        assert!(!opens.is_being_told(inode, 3, |_| 1), "its session is lost");
        opens.opened(inode, b"b", 0);
        opens.told(inode, b"b");
        assert!(!opens.is_being_told(inode, 3, |_| 0));
        let mut opens = made();
        opens.not_opened(b"a");
        assert!(opens.is_being_told(inode, 3, |_| 0));
        opens.ended(b"b");
        assert!(!opens.is_being_told(inode, 3, |_| 0));
    }

    #[test]
    fn an_inode_is_used_until_its_last_close_or_the_loss_of_the_session() {
        let (mut opens, inode) = (Opens::default(), InodeId(9));
        opens.opened(inode, b"b", 0);
        opens.opened(inode, b"b", 0);
        opens.closes(inode, b"b");
        assert_eq!((opens.user(inode, |_| 0), opens.user(inode, |_| 1)), (Some(&b"b"[..]), None));
        assert_eq!(opens.user(InodeId(8), |_| 0), None);
        opens.closes(inode, b"b");
        assert_eq!(opens.user(inode, |_| 0), None);
        opens.opened(inode, b"b", 0);
        opens.ended(b"b");
        assert_eq!(opens.user(inode, |_| 0), None);
    }
}
