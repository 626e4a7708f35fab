//! The adapter: each kernel request is parsed, copied and handed over to [`FileSystem`]; no callback waits.
//!
//! Assumptions: inode numbers are the volume's own and never reused, so that lookup counts, `forget` and generations have
//! nothing to do; the kernel checks permissions (`default_permissions`) and applies the umask; until leases come, entries
//! and attributes are valid for no time at all, so that two mounts agree (D5). A FUSE layer of our own can take this
//! file's place (D13).

mod capabilities;
mod convert;
mod directory;
mod listing;
mod serve;
mod walk;

pub(crate) use capabilities::REQUEST_BYTES_MAX;
#[cfg(test)]
pub(crate) use {capabilities::negotiate, convert::from_request_time, convert::opened_flags};

use bytes::Bytes;
use capabilities::Agreed;
use directory::Directories;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle as RawHandle, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use holdfast_client::{Attributes, Error, FileHandle, FileSystem, FileSystemStat, NewNode, SetAttributes, Whence};
use holdfast_common::limits::{NAME_BYTES_MAX, PAGE_BYTES};
use listing::Position;
use serve::{Refusal, Server};
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;
use walk::{Answer, Walks};

/// How long the kernel may believe an entry without asking. The kernel counts in its clock's ticks: the least time that is
/// not zero is up to 8 ms.
const ENTRY_VALIDITY: Duration = Duration::ZERO;
/// The same of attributes. At zero a stat(2) is a lookup and a getattr for each directory on its path and for the file:
/// the kernel asks again for what the lookup has just brought, to check permissions. See [`walk`].
const ATTRIBUTE_VALIDITY: Duration = Duration::ZERO;
/// Inode numbers are never reused, so that one generation does.
const GENERATION: Generation = Generation(0);

/// A volume as fuser wants it.
#[derive(Debug)]
pub struct Adapter {
    file_system: FileSystem,
    server: Server,
    directories: Arc<Directories>,
    walks: Arc<Walks>,
    sync_writes: bool,
    agreed: Agreed,
}

impl Adapter {
    /// Serves `file_system` by tasks on `runtime`. With `sync_writes` every file is as if opened with O_SYNC.
    #[must_use]
    pub fn new(file_system: FileSystem, runtime: Handle, sync_writes: bool) -> Self {
        Self {
            file_system,
            server: Server::new(runtime),
            directories: Arc::new(Directories::new()),
            walks: Arc::default(),
            sync_writes,
            agreed: Agreed::default(),
        }
    }

    /// Ends the walk of the thread that asks for something else than a path's directories. Everything but lookup, getattr
    /// and release, which nobody waits for, is served so.
    fn off_the_way(&self, request: &Request) -> &Server {
        self.walks.end(request.pid());
        &self.server
    }

    /// Hands over what ends without a result.
    fn empty<F>(&self, server: &Server, operation: &'static str, reply: ReplyEmpty, call: impl FnOnce(FileSystem) -> F)
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let work = call(self.file_system.clone());
        server.serve(operation, reply, work, |reply, ()| reply.ok());
    }

    /// Hands over what ends with an entry.
    fn entry<F>(&self, server: &Server, operation: &'static str, reply: ReplyEntry, call: impl FnOnce(FileSystem) -> F)
    where
        F: Future<Output = Result<Attributes, Error>> + Send + 'static,
    {
        let work = call(self.file_system.clone());
        server.serve(operation, reply, work, |reply, attributes| {
            let attr = convert::file_attr(&attributes);
            reply.entry_with_ttls(&ATTRIBUTE_VALIDITY, &ENTRY_VALIDITY, &attr, GENERATION);
        });
    }

    /// Hands over what ends with attributes.
    fn attributes<F>(
        &self,
        server: &Server,
        operation: &'static str,
        reply: ReplyAttr,
        call: impl FnOnce(FileSystem) -> F,
    ) where
        F: Future<Output = Result<Attributes, Error>> + Send + 'static,
    {
        let work = call(self.file_system.clone());
        server.serve(operation, reply, work, |reply, attributes| {
            reply.attr(&ATTRIBUTE_VALIDITY, &convert::file_attr(&attributes));
        });
    }

    fn make_node(&self, reply: ReplyEntry, request: &Request, at: (INodeNo, &OsStr), node: NewNode, mode: u32) {
        let (parent, name) = (convert::inode(at.0), bytes_of(at.1));
        let (uid, gid) = (request.uid(), request.gid());
        self.entry(self.off_the_way(request), "create a node", reply, |file_system| async move {
            file_system.create_node(parent, &name, node, convert::permissions(mode), uid, gid).await
        });
    }

    /// Answers a getxattr or listxattr of `size` bytes: zero asks for the length.
    fn xattr_bytes<F>(
        &self,
        server: &Server,
        operation: &'static str,
        size: u32,
        reply: ReplyXattr,
        call: impl FnOnce(FileSystem) -> F,
    ) where
        F: Future<Output = Result<Bytes, Error>> + Send + 'static,
    {
        let work = call(self.file_system.clone());
        let work = async move {
            let value = work.await?;
            let length = u32::try_from(value.len()).map_err(|_| Refusal(Errno::E2BIG))?;
            if size != 0 && length > size { Err(Refusal(Errno::ERANGE)) } else { Ok((value, length)) }
        };
        server.serve(
            operation,
            reply,
            work,
            move |reply, (value, length)| {
                if size == 0 { reply.size(length) } else { reply.data(&value) }
            },
        );
    }
}

fn bytes_of(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn handle(raw: RawHandle) -> FileHandle {
    FileHandle(raw.0)
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
        let (uid, gid, permissions) = (request.uid(), request.gid(), convert::permissions(mode));
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let open = convert::open_mode(flags, self.sync_writes);
        let work = async move {
            let (mut made, opened) = file_system.create(parent, &name, permissions, uid, gid, exclusive, open).await?;
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
        self.off_the_way(request).serve("statfs", reply, work, |reply, stat: FileSystemStat| {
            let block = u64::from(PAGE_BYTES);
            let (blocks, free) = (stat.total_bytes / block, stat.available_bytes / block);
            // A file with data needs a block of it at least.
            let files = stat.inodes.saturating_add(free);
            let name_bytes = u32::try_from(NAME_BYTES_MAX).unwrap_or(u32::MAX);
            reply.statfs(blocks, free, free, files, free, PAGE_BYTES, name_bytes, PAGE_BYTES);
        });
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
