//! Extended attributes, with the limits Linux has.

use super::key::{NameKey, NameProbe};
use super::{Outcome, Table};
use bytes::Bytes;
use holdfast_common::InodeId;
use holdfast_common::limits::{CAPABILITY_XATTR, XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use holdfast_proto::meta::{Code, MutateResponse, RemoveXattr, SetXattr};
use std::ops::Bound;

/// Most bytes of values on one inode: sixteen of the largest. Keeps one inode's share of memory bounded (D12).
const XATTR_TOTAL_BYTES_MAX: usize = 16 * XATTR_VALUE_BYTES_MAX;

/// Of Linux. Which of them a mount keeps is its adapter's to say.
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];

/// A namespace alone is no name; NUL would cut a list of names in two. An attribute that a table of feature level 0 let in
/// under such a name can still be read and removed.
fn may_be_set(name: &[u8]) -> bool {
    !NAMESPACES.contains(&name) && !name.contains(&0)
}

impl Table {
    pub(super) fn set_xattr(&mut self, op: &SetXattr, now_ns: i64) -> Outcome<MutateResponse> {
        let id = InodeId(op.inode);
        let probe = NameProbe::new(id, &op.name)?;
        self.inode(id)?;
        if self.feature_level() >= 1 && !may_be_set(&op.name) {
            return Err(Code::Invalid.into());
        }
        if op.value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Code::TooBig.into());
        }
        let former = self.xattrs.get(probe.as_bytes()).map(Bytes::len);
        match former {
            Some(_) if op.create => return Err(Code::Exists.into()),
            None if op.replace => return Err(Code::NoData.into()),
            Some(_) | None => {}
        }
        let (mut list_bytes, mut value_bytes) = (0, op.value.len());
        for (key, value) in self.xattrs_of(id) {
            list_bytes += key.name().len() + 1;
            value_bytes += value.len();
        }
        if former.is_none() {
            list_bytes += op.name.len() + 1;
        }
        if list_bytes > XATTR_LIST_BYTES_MAX || value_bytes - former.unwrap_or(0) > XATTR_TOTAL_BYTES_MAX {
            return Err(Code::NoSpace.into());
        }
        self.xattrs.insert(probe.to_key(), Bytes::copy_from_slice(&op.value));
        self.known_mut(id)?.ctime_ns = now_ns;
        Ok(MutateResponse::default())
    }

    pub(super) fn remove_xattr(&mut self, op: &RemoveXattr, now_ns: i64) -> Outcome<MutateResponse> {
        let id = InodeId(op.inode);
        let probe = NameProbe::new(id, &op.name)?;
        self.inode(id)?;
        if self.xattrs.remove(probe.as_bytes()).is_none() {
            return Err(Code::NoData.into());
        }
        self.known_mut(id)?.ctime_ns = now_ns;
        Ok(MutateResponse::default())
    }

    /// A file whose content changes loses its capabilities, whoever changes it, as FUSE_HANDLE_KILLPRIV_V2 demands. This
    /// also covers a capability that another mount set after the writer's kernel had looked for one.
    pub(super) fn kill_capability(&mut self, id: InodeId) {
        if let Ok(probe) = NameProbe::new(id, CAPABILITY_XATTR) {
            self.xattrs.remove(probe.as_bytes());
        }
    }

    /// The inode is going.
    pub(super) fn drop_xattrs(&mut self, id: InodeId) {
        let keys: Vec<NameKey> = self.xattrs_of(id).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.xattrs.remove(&key);
        }
    }

    pub(super) fn xattrs_of(&self, id: InodeId) -> impl Iterator<Item = (&NameKey, &Bytes)> {
        let probe = NameProbe::before_names(id);
        self.xattrs
            .range(Bound::Excluded(probe.as_bytes()), Bound::Unbounded)
            .take_while(move |(key, _)| key.inode() == id)
    }
}
