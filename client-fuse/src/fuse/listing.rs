//! The two forms of a directory listing, and how a request for one is served.

use super::convert;
use super::directory::{Buffer, Directories};
use super::serve::{Answerable, Refusal, Server};
use super::validity::{ENTRY_VALIDITY, GENERATION};
use fuser::{Errno, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use holdfast_client::{Attributes, DirectoryEntry, FileSystem, NodeKind};
use holdfast_common::InodeId;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Reply to a listing: a buffer that can be sent.
pub(super) trait Reply: Buffer + Answerable {
    fn send(self);
}

/// Reply with names and kinds only.
pub(super) struct Plain(pub(super) ReplyDirectory);

impl Buffer for Plain {
    const WITH_ATTRIBUTES: bool = false;

    fn dot(&mut self, name: &'static str, inode: InodeId, offset: u64) -> bool {
        self.0.add(INodeNo(inode.0), offset, convert::file_type(NodeKind::Directory), name)
    }

    fn entry(&mut self, entry: &DirectoryEntry) -> bool {
        let kind = convert::file_type(entry.kind);
        self.0.add(INodeNo(entry.inode.0), entry.cookie, kind, OsStr::from_bytes(&entry.name))
    }
}

impl Answerable for Plain {
    fn refuse(self, errno: Errno) {
        self.0.error(errno);
    }
}

impl Reply for Plain {
    fn send(self) {
        self.0.ok();
    }
}

/// Names and attributes: a lookup of each comes with it.
pub(super) struct Plus(pub(super) ReplyDirectoryPlus);

impl Plus {
    fn add(&mut self, name: &[u8], offset: u64, attributes: &Attributes) -> bool {
        let attr = convert::file_attr(attributes);
        self.0.add(attr.ino, offset, OsStr::from_bytes(name), &ENTRY_VALIDITY, &attr, GENERATION)
    }
}

impl Buffer for Plus {
    const WITH_ATTRIBUTES: bool = true;

    fn dot(&mut self, name: &'static str, inode: InodeId, offset: u64) -> bool {
        // The kernel uses number and kind alone of these two.
        self.add(name.as_bytes(), offset, &directory_of_no_attributes(inode))
    }

    fn entry(&mut self, entry: &DirectoryEntry) -> bool {
        // Without attributes its inode is gone: the entry was removed while this was listed.
        entry.attributes.is_some_and(|attributes| self.add(&entry.name, entry.cookie, &attributes))
    }
}

impl Answerable for Plus {
    fn refuse(self, errno: Errno) {
        self.0.error(errno);
    }
}

impl Reply for Plus {
    fn send(self) {
        self.0.ok();
    }
}

pub(super) fn directory_of_no_attributes(inode: InodeId) -> Attributes {
    Attributes {
        inode,
        kind: NodeKind::Directory,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size_bytes: 0,
        mapped_bytes: 0,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        btime_ns: 0,
    }
}

/// Place at which a request wants the listing to go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) inode: InodeId,
    /// Handle under which the directory is open.
    pub(super) handle: u64,
    /// Offset of the entry that came last; 0 at the start.
    pub(super) offset: u64,
}

pub(super) fn serve<R: Reply>(
    server: &Server,
    operation: &'static str,
    file_system: &FileSystem,
    directories: &Arc<Directories>,
    at: Position,
    mut reply: R,
) {
    if directories.ends_at(at.handle, at.offset) {
        return reply.send();
    }
    let (file_system, directories) = (file_system.clone(), directories.clone());
    server.run(operation, async move {
        // Boxed: the client's futures are large, and a listing has several of them.
        let parent = Box::pin(parent_of(&file_system, at.inode));
        let fetch = |after, most| Box::pin(fetch::<R>(&file_system, at.inode, after, most));
        match directories.list(at.handle, (at.inode, at.offset), &mut reply, parent, fetch).await {
            Ok(()) => reply.send(),
            Err(Refusal(errno)) => reply.refuse(errno),
        }
    });
}

async fn fetch<R: Reply>(
    file_system: &FileSystem,
    inode: InodeId,
    after: u64,
    most: u32,
) -> Result<Vec<DirectoryEntry>, Refusal> {
    let mut entries = file_system.read_directory(inode, after, most, R::WITH_ATTRIBUTES).await?;
    if R::WITH_ATTRIBUTES {
        for entry in entries.iter_mut().filter(|entry| entry.attributes.is_none()) {
            match file_system.get_attributes(entry.inode).await {
                Ok(attributes) => entry.attributes = Some(attributes),
                Err(error) if matches!(error.errno(), libc::ENOENT | libc::ESTALE) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(entries)
}

/// The inode that ".." shows. A listing does not fail for it.
async fn parent_of(file_system: &FileSystem, inode: InodeId) -> InodeId {
    if inode == InodeId::ROOT {
        return inode;
    }
    file_system.lookup(inode, b"..").await.map_or(inode, |parent| parent.inode)
}
