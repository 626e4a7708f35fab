//! Attributes, truncation and fallocate.

use super::namespace::with_attr;
use super::{Outcome, Table};
use holdfast_common::InodeId;
use holdfast_common::limits::FILE_BYTES_MAX;
use holdfast_proto::meta::{Code, Fallocate, FallocateMode, Kind, MutateResponse, SetAttr};

impl Table {
    pub(super) fn set_attr(&mut self, op: &SetAttr, now_ns: i64) -> Outcome<MutateResponse> {
        let id = InodeId(op.inode);
        let inode = self.inode(id)?;
        if changes_nothing(op) {
            return Ok(with_attr(inode.attr(id)));
        }
        if let Some(size_bytes) = op.size_bytes {
            may_have_size(inode.kind, size_bytes)?;
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
        if size_bytes < self.known(id)?.size_bytes {
            self.unmap(id, size_bytes, u64::MAX, now_ns)?;
        }
        let mut inode = self.known_mut(id)?;
        inode.size_bytes = size_bytes;
        inode.truncate_generation += 1;
        inode.touch(now_ns);
        Ok(())
    }

    pub(super) fn fallocate(&mut self, op: &Fallocate, now_ns: i64) -> Outcome<MutateResponse> {
        let id = InodeId(op.inode);
        let inode = self.inode(id)?;
        let Ok(mode) = FallocateMode::try_from(op.mode) else {
            return Err(Code::NotSupported.into());
        };
        if op.length_bytes == 0 {
            return Err(Code::Invalid.into());
        }
        let end = op.offset.checked_add(op.length_bytes).ok_or(Code::FileTooLarge)?;
        may_have_size(inode.kind, end)?;
        let removes = match mode {
            FallocateMode::Allocate => false,
            FallocateMode::PunchHole | FallocateMode::ZeroRange => true,
        };
        if removes {
            self.unmap(id, op.offset, end, now_ns)?;
        }
        let grows = !op.keep_size && mode != FallocateMode::PunchHole;
        self.kill_capability(id);
        let mut inode = self.known_mut(id)?;
        if removes {
            inode.truncate_generation += 1;
        }
        if grows {
            inode.size_bytes = inode.size_bytes.max(end);
        }
        inode.touch(now_ns);
        Ok(with_attr(inode.attr(id)))
    }
}

/// Whether an inode of this kind may be given this size.
fn may_have_size(kind: Kind, size_bytes: u64) -> Result<(), Code> {
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
