//! The smallest file system that tests of mounting need: `file`, `directory`, and `hangs`, whose reads are never answered.

use crate::fuse::{negotiate, opened_flags};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request,
    TimeOrNow,
};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const CONTENT: &[u8] = b"what the file holds";
const FILE: INodeNo = INodeNo(2);
const DIRECTORY: INodeNo = INodeNo(3);
const HANGS: INodeNo = INodeNo(4);

#[derive(Default)]
struct Seen {
    requests: Mutex<HashMap<&'static str, u32>>,
    changed: Condvar,
    unanswered: Mutex<Vec<ReplyData>>,
    atime: Mutex<Option<SystemTime>>,
    write_offset: Mutex<Option<u64>>,
}

#[derive(Clone, Default)]
pub(super) struct Tiny {
    /// Refuse the kernel's first request.
    refuse: bool,
    seen: Arc<Seen>,
}

impl Tiny {
    pub(super) fn refusing() -> Self {
        Self { refuse: true, ..Self::default() }
    }

    fn saw(&self, request: &'static str) {
        *self.seen.requests.lock().entry(request).or_default() += 1;
        self.seen.changed.notify_all();
    }

    pub(super) fn count(&self, request: &'static str) -> u32 {
        self.seen.requests.lock().get(request).copied().unwrap_or(0)
    }

    pub(super) fn wait_for(&self, request: &'static str, limit: Duration) -> bool {
        let mut requests = self.seen.requests.lock();
        let end = std::time::Instant::now() + limit;
        while !requests.contains_key(request) {
            if self.seen.changed.wait_until(&mut requests, end).timed_out() {
                return false;
            }
        }
        true
    }

    pub(super) fn atime(&self) -> Option<SystemTime> {
        *self.seen.atime.lock()
    }

    pub(super) fn last_write_offset(&self) -> Option<u64> {
        *self.seen.write_offset.lock()
    }

    fn attr(inode: INodeNo) -> FileAttr {
        let directory = inode == INodeNo::ROOT || inode == DIRECTORY;
        FileAttr {
            ino: inode,
            size: if directory { 0 } else { CONTENT.len() as u64 },
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Tiny {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config);
        if self.refuse { Err(io::Error::from_raw_os_error(libc::EPROTO)) } else { Ok(()) }
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.saw("lookup");
        let inode = match name.to_str() {
            Some("file") => FILE,
            Some("directory") => DIRECTORY,
            Some("hangs") => HANGS,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&Duration::ZERO, &Self::attr(inode), Generation(0));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.saw("getattr");
        reply.attr(&Duration::ZERO, &Self::attr(inode));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        atime: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.saw("setattr");
        if let Some(TimeOrNow::SpecificTime(time)) = atime {
            *self.seen.atime.lock() = Some(time);
        }
        reply.attr(&Duration::ZERO, &Self::attr(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.saw("open");
        reply.opened(FileHandle(1), opened_flags(flags.0));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.saw("release");
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if inode == HANGS {
            self.seen.unanswered.lock().push(reply);
        } else {
            reply.data(CONTENT.get(usize::try_from(offset).unwrap()..).unwrap_or_default());
        }
        self.saw("read");
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: fuser::WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        *self.seen.write_offset.lock() = Some(offset);
        self.saw(if flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID) { "write and kill" } else { "write" });
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.saw("flush");
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.saw("getxattr");
        reply.error(Errno::ENODATA);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: ReplyDirectory) {
        reply.ok();
    }
}
