//! The adapter: each kernel request is parsed, copied and handed over to [`FileSystem`]; no callback waits.
//!
//! Assumptions: inode numbers are the volume's own and never reused, so that lookup counts, `forget` and generations have
//! nothing to do; the kernel checks permissions (`default_permissions`) and applies the umask; until leases come, entries
//! and attributes are valid for no time at all, so that two mounts agree (D5). A FUSE layer of our own can take this
//! file's place (D13).

mod adapter;
mod capabilities;
mod convert;
mod directory;
mod listing;
mod serve;
mod validity;
mod walk;

pub use adapter::Adapter;
pub(crate) use capabilities::REQUEST_BYTES_MAX;
#[cfg(test)]
pub(crate) use {capabilities::negotiate, convert::from_request_time, convert::opened_flags};

use bytes::Bytes;
use convert::handle;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle as RawHandle, FopenFlags, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use holdfast_client::{NewNode, SetAttributes, Whence};
use holdfast_common::Owner;
use listing::Position;
use serve::Refusal;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use validity::{ENTRY_VALIDITY, GENERATION};
use walk::Answer;

fn bytes_of(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.agreed = capabilities::negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (walks, parent, name) = (Arc::clone(&self.walks), convert::inode(parent), bytes_of(name));
        let answer = walks.entry(request.pid(), parent, &name, Instant::now());
        self.entry(&self.server, "lookup", reply, |file_system| async move {
            let asking = match answer {
                Answer::Known(attributes) => return Ok(attributes),
                Answer::Ask(asking, _) => asking,
            };
            let attributes = file_system.lookup(parent, &name).await?;
            walks.found(asking, parent, &name, &attributes);
            Ok(attributes)
        });
    }

    // forget and batch_forget: nothing is counted, so the empty defaults are right.

    fn getattr(&self, request: &Request, inode: INodeNo, file: Option<RawHandle>, reply: ReplyAttr) {
        let (walks, inode) = (Arc::clone(&self.walks), convert::inode(inode));
        if file.is_some() {
            walks.end(request.pid());
        }
        let created = || self.file_system.created_attributes(inode);
        let answer = walks.attributes(request.pid(), inode, Instant::now(), created);
        self.attributes(&self.server, "getattr", reply, |file_system| async move {
            let (asking, names) = match answer {
                Answer::Known(attributes) => return Ok(attributes),
                Answer::Ask(asking, names) => (asking, names),
            };
            if names.is_empty() {
                let attributes = file_system.get_attributes(inode).await?;
                walks.seen(&attributes);
                return Ok(attributes);
            }
            let (attributes, directories) = file_system.walk(inode, names.clone()).await?;
            walks.seen(&attributes);
            walks.walked(asking, inode, names, &directories);
            Ok(attributes)
        });
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<RawHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let inode = convert::inode(inode);
        // The kernel says by FATTR_KILL_SUIDGID when to drop suid and sgid, and fuser does not pass it on. The kernel sets
        // it for every change of owner, and for a truncate without CAP_FSETID, which is taken to be: not by root.
        let changes_owner = uid.is_some() || gid.is_some();
        let truncates = size.is_some() && request.uid() != 0;
        let set = SetAttributes {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            size_bytes: size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime_ns: ctime.map(convert::from_request_time),
            kill_suid_sgid: self.agreed.kill_privileges && (changes_owner || truncates),
        };
        let change = self.walks.change();
        self.attributes(self.off_the_way(request), "setattr", reply, |file_system| async move {
            let _change = change;
            file_system.set_attributes(inode, set).await
        });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        let (file_system, inode) = (self.file_system.clone(), convert::inode(inode));
        let work = async move { file_system.read_link(inode).await };
        self.off_the_way(request).serve("readlink", reply, work, |reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.walks.end(request.pid());
        match convert::new_node(mode, rdev) {
            Some(node) => self.make_node(reply, request, (parent, name), node, mode),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.make_node(reply, request, (parent, name), NewNode::Directory, mode);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (convert::inode(parent), bytes_of(name));
        self.empty(self.off_the_way(request), "unlink", reply, |file_system| async move {
            file_system.unlink(parent, &name).await
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (convert::inode(parent), bytes_of(name));
        let change = self.walks.change();
        self.empty(self.off_the_way(request), "rmdir", reply, |file_system| async move {
            let _change = change;
            file_system.remove_directory(parent, &name).await
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink(bytes_of(target.as_os_str()));
        self.make_node(reply, request, (parent, name), node, 0o777);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let server = self.off_the_way(request);
        let Some(mode) = convert::rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let (parent, name) = (convert::inode(parent), bytes_of(name));
        let (new_parent, new_name) = (convert::inode(new_parent), bytes_of(new_name));
        let change = self.walks.change();
        self.empty(server, "rename", reply, |file_system| async move {
            let _change = change;
            file_system.rename(parent, &name, new_parent, &new_name, mode).await
        });
    }

    fn link(&self, request: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (inode, parent, name) = (convert::inode(inode), convert::inode(parent), bytes_of(name));
        self.entry(self.off_the_way(request), "link", reply, |file_system| async move {
            file_system.link(inode, parent, &name).await
        });
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (file_system, inode) = (self.file_system.clone(), convert::inode(inode));
        let mode = convert::open_mode(flags.0, self.sync_writes);
        let work = async move { file_system.open(inode, mode).await };
        self.off_the_way(request).serve("open", reply, work, move |reply, opened| {
            reply.opened(RawHandle(opened.0), convert::opened_flags(flags.0));
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (file_system, parent, name) = (self.file_system.clone(), convert::inode(parent), bytes_of(name));
        let (owner, permissions) = (Owner { uid: request.uid(), gid: request.gid() }, convert::permissions(mode));
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let open = convert::open_mode(flags, self.sync_writes);
        let work = async move {
            let (mut made, opened) = file_system.create(parent, &name, permissions, owner, exclusive, open).await?;
            // The kernel takes the file for new and will not truncate it. Another mount may have made and filled it
            // since the kernel looked.
            if truncate && made.size_bytes > 0 {
                let set = SetAttributes { size_bytes: Some(0), ..SetAttributes::default() };
                match file_system.set_attributes(made.inode, set).await {
                    Ok(truncated) => made = truncated,
                    Err(error) => {
                        // The kernel will never release what it was not told of.
                        if let Err(error) = file_system.release(opened).await {
                            tracing::warn!(%error, "a file was not closed after its truncation failed");
                        }
                        return Err(error);
                    }
                }
            }
            Ok((made, opened))
        };
        let (walks, asking) = (Arc::clone(&self.walks), self.walks.asking(request.pid(), Instant::now()));
        self.off_the_way(request).serve("create", reply, work, move |reply, (made, opened)| {
            walks.made(asking, made.inode);
            let flags = convert::opened_flags(flags);
            reply.created(&ENTRY_VALIDITY, &convert::file_attr(&made), GENERATION, RawHandle(opened.0), flags);
        });
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        file: RawHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (file_system, file) = (self.file_system.clone(), handle(file));
        let work = async move { file_system.read(file, offset, size).await };
        self.off_the_way(request).serve("read", reply, work, |reply, pieces| reply.data(&convert::joined(pieces)));
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        file: RawHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let server = self.off_the_way(request);
        let Ok(length) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        let (file_system, file) = (self.file_system.clone(), handle(file));
        // fuser's buffer is the event loop's own and is read into again when this returns.
        let data = Bytes::copy_from_slice(data);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let at = convert::write_at(offset, flags.0, write_flags.contains(WriteFlags::FUSE_WRITE_CACHE));
        let work = async move { file_system.write(file, at, data, kill).await };
        server.serve("write", reply, work, move |reply, ()| reply.written(length));
    }

    fn flush(&self, request: &Request, _: INodeNo, file: RawHandle, _: LockOwner, reply: ReplyEmpty) {
        self.empty(self.off_the_way(request), "flush", reply, |file_system| async move {
            file_system.flush(handle(file)).await
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        file: RawHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.empty(
            &self.server,
            "release",
            reply,
            |file_system| async move { file_system.release(handle(file)).await },
        );
    }

    fn fsync(&self, request: &Request, _: INodeNo, file: RawHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(self.off_the_way(request), "fsync", reply, |file_system| async move {
            file_system.fsync(handle(file)).await
        });
    }

    fn opendir(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.walks.end(request.pid());
        reply.opened(RawHandle(self.directories.opened()), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, inode: INodeNo, directory: RawHandle, offset: u64, reply: ReplyDirectory) {
        let at = Position { inode: convert::inode(inode), handle: directory.0, offset };
        listing::serve(
            self.off_the_way(request),
            "readdir",
            &self.file_system,
            &self.directories,
            at,
            listing::Plain(reply),
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        directory: RawHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let at = Position { inode: convert::inode(inode), handle: directory.0, offset };
        listing::serve(
            self.off_the_way(request),
            "readdirplus",
            &self.file_system,
            &self.directories,
            at,
            listing::Plus(reply),
        );
    }

    fn releasedir(&self, _: &Request, _: INodeNo, directory: RawHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.directories.released(directory.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, _: INodeNo, _: RawHandle, _datasync: bool, reply: ReplyEmpty) {
        self.walks.end(request.pid());
        // Every change of a directory is durable before it is answered (D3, D6).
        reply.ok();
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let file_system = self.file_system.clone();
        let work = async move { file_system.stat_file_system().await };
        self.off_the_way(request).serve("statfs", reply, work, adapter::tell_space);
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let server = self.off_the_way(request);
        if let Some(errno) = convert::xattr_refusal(name.as_bytes()) {
            return reply.error(errno);
        }
        let Some(mode) = convert::xattr_mode(flags) else { return reply.error(Errno::EINVAL) };
        let (inode, name, value) = (convert::inode(inode), bytes_of(name), Bytes::copy_from_slice(value));
        self.empty(server, "setxattr", reply, |file_system| async move {
            file_system.set_xattr(inode, &name, value, mode).await
        });
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let server = self.off_the_way(request);
        if let Some(errno) = convert::xattr_refusal(name.as_bytes()) {
            return reply.error(errno);
        }
        let (inode, name) = (convert::inode(inode), bytes_of(name));
        self.xattr_bytes(server, "getxattr", size, reply, |file_system| async move {
            file_system.get_xattr(inode, &name).await
        });
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let inode = convert::inode(inode);
        self.xattr_bytes(self.off_the_way(request), "listxattr", size, reply, |file_system| async move {
            Ok(convert::xattr_list(&file_system.list_xattr(inode).await?).into())
        });
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let server = self.off_the_way(request);
        if let Some(errno) = convert::xattr_refusal(name.as_bytes()) {
            return reply.error(errno);
        }
        let (inode, name) = (convert::inode(inode), bytes_of(name));
        self.empty(
            server,
            "removexattr",
            reply,
            |file_system| async move { file_system.remove_xattr(inode, &name).await },
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        _: INodeNo,
        file: RawHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let server = self.off_the_way(request);
        let Some(mode) = convert::fallocate_mode(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        self.empty(server, "fallocate", reply, |file_system| async move {
            file_system.fallocate(handle(file), offset, length, mode).await
        });
    }

    fn lseek(&self, request: &Request, _: INodeNo, file: RawHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let server = self.off_the_way(request);
        // The kernel answers the other kinds itself.
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let file_system = self.file_system.clone();
        let work = async move {
            let found = file_system.seek(handle(file), offset, whence).await?;
            i64::try_from(found).map_err(|_| Refusal(Errno::EOVERFLOW))
        };
        server.serve("lseek", reply, work, |reply, found| reply.offset(found));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        _: RawHandle,
        _: u64,
        _: INodeNo,
        _: RawHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.walks.end(request.pid());
        // The kernel then copies by reading and writing, and asks no more.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        _: INodeNo,
        _: RawHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.walks.end(request.pid());
        reply.error(Errno::ENOTTY);
    }
}
