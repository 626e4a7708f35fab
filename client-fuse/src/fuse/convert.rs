//! The kernel's words in the client's, and back. Pure.

use bytes::Bytes;
use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo, RenameFlags, TimeOrNow};
use holdfast_client::{
    Attributes, FallocateMode, NewNode, NodeKind, OpenMode, RenameMode, SetTime, WriteAt, XattrMode,
};
use holdfast_common::InodeId;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NS_PER_S: i128 = 1_000_000_000;
/// Permission bits with suid, sgid and sticky.
const PERMISSIONS: u32 = 0o7777;
/// Unit in which stat(2) counts blocks.
const STAT_BLOCK_BYTES: u64 = 512;
/// st_blksize: what stdio and coreutils write and read at once. Each of their calls is one request here, so larger than a
/// page; glibc also reads directories by it.
const PREFERRED_IO_BYTES: u32 = 128 << 10;

pub(super) fn handle(raw: FileHandle) -> holdfast_client::FileHandle {
    holdfast_client::FileHandle(raw.0)
}

pub(super) fn inode(raw: INodeNo) -> InodeId {
    InodeId(raw.0)
}

pub(super) fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(from: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(from.inode.0),
        size: from.size_bytes,
        blocks: from.mapped_bytes.div_ceil(STAT_BLOCK_BYTES),
        atime: to_system_time(from.atime_ns),
        mtime: to_system_time(from.mtime_ns),
        ctime: to_system_time(from.ctime_ns),
        crtime: to_system_time(from.btime_ns),
        kind: file_type(from.kind),
        perm: u16::try_from(from.mode & PERMISSIONS).expect("twelve bits fit"),
        nlink: from.nlink,
        uid: from.uid,
        gid: from.gid,
        rdev: from.rdev,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

fn to_system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// Nanoseconds of a time that fuser decoded from a request, at the ends of i64 clamped.
///
/// fuser 0.18 decodes the kernel's (seconds, nanoseconds) of a time before 1970 as `epoch - (|seconds| + nanoseconds)`,
/// while the kernel means `epoch - |seconds| + nanoseconds`. Nothing is lost by it, so it is undone here.
pub(crate) fn from_request_time(time: SystemTime) -> i64 {
    let ns = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::from(after.as_secs()) * NS_PER_S + i128::from(after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * NS_PER_S
        }
    };
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_request_time(time)),
    }
}

pub(super) fn permissions(mode: u32) -> u32 {
    mode & PERMISSIONS
}

/// Kind of node that mknod(2) asks for; none if a directory cannot hold it.
pub(super) fn new_node(mode: u32, rdev: u32) -> Option<NewNode> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(NewNode::File),
        libc::S_IFIFO => Some(NewNode::Fifo),
        libc::S_IFSOCK => Some(NewNode::Socket),
        libc::S_IFCHR => Some(NewNode::CharDevice(rdev)),
        libc::S_IFBLK => Some(NewNode::BlockDevice(rdev)),
        _ => None,
    }
}

/// Mode for the flags of open(2). `sync` makes every file as if opened with O_SYNC.
pub(super) fn open_mode(flags: i32, sync: bool) -> OpenMode {
    let access = flags & libc::O_ACCMODE;
    OpenMode {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        sync: sync || flags & (libc::O_DSYNC | libc::O_SYNC) != 0,
    }
}

/// Place of a write. `flags` are the handle's at the time of the write: fcntl(2) may have changed O_APPEND since
/// open(2). `cached`: the kernel writes back pages, of a mapping perhaps, and means their offset.
///
/// The kernel gives an append the offset at which it believes the end of the file. Of a handle opened with O_APPEND that is
/// ignored, for the client knows better; the kernel keeps no page of such a write ([`opened_flags`]). A handle that got
/// O_APPEND later caches its pages where the kernel believes them, and so they must go there.
pub(super) fn write_at(offset: u64, flags: i32, cached: bool) -> WriteAt {
    if flags & libc::O_APPEND != 0 && !cached { WriteAt::End { believed: offset } } else { WriteAt::Offset(offset) }
}

/// Flags that tell the kernel how to treat the open file. Never FOPEN_KEEP_CACHE: an open sees the writes that others
/// closed.
pub(crate) fn opened_flags(flags: i32) -> FopenFlags {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    let mut opened = FopenFlags::empty();
    // The page cache is for the rest: mappings of these files work all the same (FUSE_DIRECT_IO_ALLOW_MMAP).
    if flags & libc::O_DIRECT != 0 {
        opened |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if writes && flags & libc::O_APPEND != 0 {
        opened |= FopenFlags::FOPEN_DIRECT_IO;
    }
    if !writes {
        // Closing it has nothing to flush, and must not be told of a write that another handle lost (R22).
        opened |= FopenFlags::FOPEN_NOFLUSH;
    }
    opened
}

pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    match flags.bits() {
        0 => Some(RenameMode::Replace),
        bits if bits == libc::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        bits if bits == libc::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        _ => None,
    }
}

pub(super) fn fallocate_mode(mode: i32) -> Option<FallocateMode> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Some(FallocateMode::Allocate { keep_size: false }),
        libc::FALLOC_FL_KEEP_SIZE => Some(FallocateMode::Allocate { keep_size: true }),
        PUNCH => Some(FallocateMode::PunchHole),
        ZERO => Some(FallocateMode::ZeroRange { keep_size: false }),
        ZERO_KEEP => Some(FallocateMode::ZeroRange { keep_size: true }),
        _ => None,
    }
}

pub(super) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    match flags {
        0 => Some(XattrMode::Any),
        libc::XATTR_CREATE => Some(XattrMode::Create),
        libc::XATTR_REPLACE => Some(XattrMode::Replace),
        _ => None,
    }
}

/// The errno for attributes whose name a volume does not keep, whatever is done with them. The `system.` ones are access lists
/// of several kinds; they need the kernel to enforce them, and EOPNOTSUPP is what tells `cp -a` and `ls -l` that there are none.
/// A namespace alone is no name.
pub(super) fn xattr_refusal(name: &[u8]) -> Option<Errno> {
    match name {
        b"user." | b"trusted." | b"security." => Some(Errno::EINVAL),
        _ if name.starts_with(b"system.") => Some(Errno::EOPNOTSUPP),
        _ => None,
    }
}

/// List for listxattr(2): each name ends with a zero byte.
pub(super) fn xattr_list(names: &[Bytes]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

/// The pieces as one slice, without copying if there is but one.
pub(super) fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.swap_remove(0),
        _ => pieces.concat().into(),
    }
}

#[cfg(test)]
mod tests;
