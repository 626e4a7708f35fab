//! Inodes that programs have open: nobody may reap it, whether it has a name or not, unless its session was lost.

use std::collections::BTreeMap;

use holdfast_common::InodeId;

struct Open {
    count: u64,
    key: Vec<u8>,
    /// Sessions that its client had lost when it asked to open it.
    losses: u64,
}

/// Opens by inode and client.
#[derive(Default)]
pub(crate) struct Opens(BTreeMap<(InodeId, usize), Open>);

impl Opens {
    pub(super) fn opened(&mut self, inode: InodeId, client: usize, key: &[u8], losses: u64) {
        let open = self.0.entry((inode, client)).or_insert_with(|| Open { count: 0, key: key.to_vec(), losses });
        open.count += 1;
    }

    pub(super) fn closes(&mut self, inode: InodeId, client: usize) {
        if let Some(open) = self.0.get_mut(&(inode, client)) {
            open.count -= 1;
            if open.count == 0 {
                self.0.remove(&(inode, client));
            }
        }
    }

    /// The client's process ended.
    pub(super) fn ended(&mut self, client: usize) {
        self.0.retain(|(_, user), _| *user != client);
    }

    /// A client that has an inode open, and has lost no session since.
    pub(super) fn user(&self, inode: InodeId, losses_of: impl Fn(&[u8]) -> u64) -> Option<usize> {
        let opens = self.0.range((inode, 0)..=(inode, usize::MAX));
        opens.filter(|(_, open)| losses_of(&open.key) == open.losses).map(|((_, client), _)| *client).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_used_until_its_last_close_or_the_loss_of_the_session() {
        let (mut opens, inode) = (Opens::default(), InodeId(9));
        opens.opened(inode, 1, b"b", 0);
        opens.opened(inode, 1, b"b", 0);
        opens.closes(inode, 1);
        assert_eq!((opens.user(inode, |_| 0), opens.user(inode, |_| 1)), (Some(1), None));
        assert_eq!(opens.user(InodeId(8), |_| 0), None);
        opens.closes(inode, 1);
        assert_eq!(opens.user(inode, |_| 0), None);
        opens.opened(inode, 1, b"b", 0);
        opens.ended(1);
        assert_eq!(opens.user(inode, |_| 0), None);
    }
}
