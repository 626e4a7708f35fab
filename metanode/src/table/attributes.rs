//! Attributes and truncation.

use super::extents::PAGE;
use super::namespace::with_attr;
use super::{Outcome, Table};
use holdfast_common::InodeId;
use holdfast_common::limits::FILE_BYTES_MAX;
use holdfast_proto::meta::{Code, Kind, MutateResponse, SetAttr};

impl Table {
    pub(super) fn set_attr(&mut self, op: &SetAttr, now_ns: i64) -> Outcome<MutateResponse> {
        let id = InodeId(op.inode);
        let inode = self.inode(id)?;
        if changes_nothing(op) {
            return Ok(with_attr(inode.attr(id)));
        }
        if let Some(size_bytes) = op.size_bytes {
            may_have_size(inode.kind, size_bytes)?;
            self.may_cut(id)?;
        }
        if let Some(size_bytes) = op.size_bytes {
            self.truncate(id, size_bytes, now_ns)?;
        }
        if op.size_bytes.is_some() || op.uid.is_some() || op.gid.is_some() {
            self.kill_capability(id);
        }
        let mut inode = self.known_mut(id)?;
        if let Some(mode) = op.mode {
            inode.mode = mode & 0o7777;
        }
        inode.uid = op.uid.unwrap_or(inode.uid);
        inode.gid = op.gid.unwrap_or(inode.gid);
        if op.kill_suid_sgid {
            inode.kill_suid_sgid();
        }
        inode.atime_ns = chosen_time(op.atime_now, op.atime_ns, now_ns).unwrap_or(inode.atime_ns);
        inode.mtime_ns = chosen_time(op.mtime_now, op.mtime_ns, now_ns).unwrap_or(inode.mtime_ns);
        inode.ctime_ns = op.ctime_ns.map_or(now_ns, |given_ns| given_ns.min(now_ns));
        Ok(with_attr(inode.attr(id)))
    }

    /// Sets the size of a file. Bytes cut off are gone: growing again shows zeros.
    fn truncate(&mut self, id: InodeId, size_bytes: u64, now_ns: i64) -> Outcome<()> {
        let former_bytes = self.known(id)?.size_bytes;
        if size_bytes <= former_bytes {
            self.thin_allocated(id, size_bytes.div_ceil(PAGE)..u64::MAX)?;
        }
        if size_bytes < former_bytes {
            self.unmap(id, size_bytes, u64::MAX, now_ns)?;
        }
        // As on other file systems, setting the size it has gives back what is allocated behind the end.
        if size_bytes <= former_bytes {
            self.deallocate(id, size_bytes.div_ceil(PAGE)..u64::MAX)?;
        }
        let mut inode = self.known_mut(id)?;
        inode.size_bytes = size_bytes;
        inode.truncate_generation += 1;
        inode.touch(now_ns);
        Ok(())
    }
}

/// Whether an inode of this kind may be given this size.
pub(super) fn may_have_size(kind: Kind, size_bytes: u64) -> Result<(), Code> {
    match kind {
        Kind::File if size_bytes > FILE_BYTES_MAX => Err(Code::FileTooLarge),
        Kind::File => Ok(()),
        Kind::Directory => Err(Code::IsDirectory),
        Kind::Unknown | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
            Err(Code::Invalid)
        }
    }
}

fn changes_nothing(op: &SetAttr) -> bool {
    *op == SetAttr { inode: op.inode, ..SetAttr::default() }
}

fn chosen_time(is_now: bool, given_ns: Option<i64>, now_ns: i64) -> Option<i64> {
    if is_now { Some(now_ns) } else { given_ns }
}
