//! A volume as fuser wants it: what its operations have in common.

use super::bytes_of;
use super::capabilities::Agreed;
use super::convert;
use super::directory::Directories;
use super::serve::{Refusal, Server};
use super::validity::{ATTRIBUTE_VALIDITY, ENTRY_VALIDITY, GENERATION};
use super::walk::Walks;
use bytes::Bytes;
use fuser::{Errno, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyXattr, Request};
use holdfast_client::{Attributes, Error, FileSystem, FileSystemStat, NewNode};
use holdfast_common::Owner;
use holdfast_common::limits::{NAME_BYTES_MAX, PAGE_BYTES};
use std::ffi::OsStr;
use std::future::Future;
use std::sync::Arc;
use tokio::runtime::Handle;

/// A volume as the file system that fuser drives.
#[derive(Debug)]
pub struct Adapter {
    pub(super) file_system: FileSystem,
    pub(super) server: Server,
    pub(super) directories: Arc<Directories>,
    pub(super) walks: Arc<Walks>,
    pub(super) sync_writes: bool,
    pub(super) agreed: Agreed,
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
    pub(super) fn off_the_way(&self, request: &Request) -> &Server {
        self.walks.end(request.pid());
        &self.server
    }

    /// Sends the end of an operation without a result.
    pub(super) fn empty<F>(
        &self,
        server: &Server,
        operation: &'static str,
        reply: ReplyEmpty,
        call: impl FnOnce(FileSystem) -> F,
    ) where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let work = call(self.file_system.clone());
        server.serve(operation, reply, work, |reply, ()| reply.ok());
    }

    /// Sends an entry.
    pub(super) fn entry<F>(
        &self,
        server: &Server,
        operation: &'static str,
        reply: ReplyEntry,
        call: impl FnOnce(FileSystem) -> F,
    ) where
        F: Future<Output = Result<Attributes, Error>> + Send + 'static,
    {
        let work = call(self.file_system.clone());
        server.serve(operation, reply, work, |reply, attributes| {
            let attr = convert::file_attr(&attributes);
            reply.entry_with_ttls(&ATTRIBUTE_VALIDITY, &ENTRY_VALIDITY, &attr, GENERATION);
        });
    }

    /// Sends attributes.
    pub(super) fn attributes<F>(
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

    pub(super) fn make_node(
        &self,
        reply: ReplyEntry,
        request: &Request,
        at: (INodeNo, &OsStr),
        node: NewNode,
        mode: u32,
    ) {
        let (parent, name) = (convert::inode(at.0), bytes_of(at.1));
        let owner = Owner { uid: request.uid(), gid: request.gid() };
        self.entry(self.off_the_way(request), "create a node", reply, |file_system| async move {
            file_system.create_node(parent, &name, node, convert::permissions(mode), owner).await
        });
    }

    /// Answers a getxattr or listxattr of `size` bytes: zero asks for the length.
    pub(super) fn xattr_bytes<F>(
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

pub(super) fn tell_space(reply: ReplyStatfs, stat: FileSystemStat) {
    let block = u64::from(PAGE_BYTES);
    let (blocks, free) = (stat.total_bytes / block, stat.available_bytes / block);
    // A file with data needs a block of it at least.
    let files = stat.inodes.saturating_add(free);
    let name_bytes = u32::try_from(NAME_BYTES_MAX).unwrap_or(u32::MAX);
    reply.statfs(blocks, free, free, files, free, PAGE_BYTES, name_bytes, PAGE_BYTES);
}
