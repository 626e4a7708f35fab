//! Keys made of an inode and a name: the inode's eight big-endian bytes, then the name, so that byte order is
//! (inode, name) order and a lookup borrows a key from the stack.

use super::hasher::{Digest, Hasher};
use holdfast_common::InodeId;
use holdfast_common::limits::NAME_BYTES_MAX;
use holdfast_proto::meta::Code;
use std::borrow::Borrow;
use std::sync::Arc;

const PREFIX_BYTES: usize = 8;

/// A stored (inode, name). Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameKey(Arc<[u8]>);

impl NameKey {
    pub(crate) fn inode(&self) -> InodeId {
        InodeId(self.0.first_chunk::<PREFIX_BYTES>().map_or(0, |prefix| u64::from_be_bytes(*prefix)))
    }

    pub(crate) fn name(&self) -> &[u8] {
        self.0.get(PREFIX_BYTES..).unwrap_or_default()
    }
}

impl Digest for NameKey {
    fn feed(&self, to: &mut Hasher) {
        self.0.feed(to);
    }
}

impl Borrow<[u8]> for NameKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// An (inode, name) on the stack, to look up with.
pub(crate) struct NameProbe {
    bytes: [u8; PREFIX_BYTES + NAME_BYTES_MAX],
    length: usize,
}

impl NameProbe {
    /// # Errors
    /// `INVALID` for an empty name, `NAME_TOO_LONG` over [`NAME_BYTES_MAX`].
    pub(crate) fn new(inode: InodeId, name: &[u8]) -> Result<Self, Code> {
        if name.is_empty() {
            return Err(Code::Invalid);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(Code::NameTooLong);
        }
        Ok(Self::build(inode, name))
    }

    /// Sorts before every name of the inode.
    pub(crate) fn before_names(inode: InodeId) -> Self {
        Self::build(inode, b"")
    }

    fn build(inode: InodeId, name: &[u8]) -> Self {
        let mut bytes = [0; PREFIX_BYTES + NAME_BYTES_MAX];
        bytes[..PREFIX_BYTES].copy_from_slice(&inode.0.to_be_bytes());
        bytes[PREFIX_BYTES..PREFIX_BYTES + name.len()].copy_from_slice(name);
        Self { bytes, length: PREFIX_BYTES + name.len() }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn to_key(&self) -> NameKey {
        NameKey(self.as_bytes().into())
    }
}

/// A name that a dentry may have, with its parent.
///
/// # Errors
/// `INVALID` for an empty name, `.`, `..`, and names with `/` or NUL; `NAME_TOO_LONG` over [`NAME_BYTES_MAX`].
pub(crate) fn dentry_probe(parent: InodeId, name: &[u8]) -> Result<NameProbe, Code> {
    let probe = NameProbe::new(parent, name)?;
    if name == b"." || name == b".." || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(Code::Invalid);
    }
    Ok(probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_by_inode_then_name() {
        let key = |inode, name: &[u8]| NameProbe::new(InodeId(inode), name).unwrap().to_key();
        let sorted = [key(1, b"a"), key(1, b"ab"), key(1, b"b"), key(2, b"a"), key(256, b"a"), key(1 << 40, b"a")];
        assert!(sorted.is_sorted());
        assert_eq!(sorted[4].inode(), InodeId(256));
        assert_eq!(sorted[1].name(), b"ab");
        assert!(NameProbe::before_names(InodeId(2)).as_bytes() > <NameKey as Borrow<[u8]>>::borrow(&sorted[2]));
    }

    #[test]
    fn names_that_no_dentry_may_have_are_refused() {
        let refusal = |name: &[u8]| dentry_probe(InodeId(1), name).err();
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert_eq!(refusal(name), Some(Code::Invalid), "{name:?}");
        }
        assert_eq!(refusal(&[b'x'; 256]), Some(Code::NameTooLong));
        assert_eq!(refusal(&[b'x'; 255]), None);
        assert_eq!(refusal(b"..."), None);
    }
}
