//! Operations on names and attributes: one request each.

use super::{FileSystem, attributes_of, kind_of, missing, shown};
use crate::{Attributes, DirectoryEntry, Error, NewNode, RenameMode, SetAttributes, SetTime, XattrMode};
use bytes::Bytes;
use holdfast_common::limits::CAPABILITY_XATTR;
use holdfast_common::{InodeId, Owner};
use holdfast_proto::meta::{
    Code, CreateNode, GetAttr, GetXattr, Kind, Link, ListXattr, Lookup, ReadDirectory, ReadLink, RemoveXattr, Rename,
    SetAttr, SetXattr, Unlink, Walk, mutation, read_request,
};

/// Namespaces of extended attributes; Linux knows no others that a file system keeps.
const XATTR_NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];

pub(super) fn name_of(name: &[u8]) -> Bytes {
    Bytes::copy_from_slice(name)
}

/// The creation request of a node; `open` is for files that are opened at once.
pub(super) fn create_request(parent: InodeId, name: &[u8], node: NewNode, mode: u32, owner: Owner) -> CreateNode {
    let (kind, rdev, target) = match node {
        NewNode::File => (Kind::File, 0, Bytes::new()),
        NewNode::Directory => (Kind::Directory, 0, Bytes::new()),
        NewNode::Symlink(target) => (Kind::Symlink, 0, target),
        NewNode::Fifo => (Kind::Fifo, 0, Bytes::new()),
        NewNode::Socket => (Kind::Socket, 0, Bytes::new()),
        NewNode::CharDevice(rdev) => (Kind::CharDevice, rdev, Bytes::new()),
        NewNode::BlockDevice(rdev) => (Kind::BlockDevice, rdev, Bytes::new()),
    };
    CreateNode {
        parent: parent.0,
        name: name_of(name),
        kind: kind.into(),
        mode,
        uid: owner.uid,
        gid: owner.gid,
        rdev,
        target,
        exclusive: true,
        open: false,
    }
}

/// All methods fail with what the table answers, or when no answer comes before the deadline.
#[allow(clippy::missing_errors_doc)]
impl FileSystem {
    /// Attributes of the inode that a name in a directory refers to; "." and ".." included.
    pub async fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attributes, Error> {
        let op = Lookup { parent: parent.0, name: name_of(name) };
        shown(self.ask(read_request::Op::Lookup(op)).await?.attr)
    }

    /// An inode's attributes.
    pub async fn get_attributes(&self, inode: InodeId) -> Result<Attributes, Error> {
        shown(self.ask(read_request::Op::GetAttr(GetAttr { inode: inode.0 })).await?.attr)
    }

    /// Attributes of a file that this mount created a moment ago and has open, with what it wrote since. None if
    /// anybody is known to have changed it.
    #[must_use]
    pub fn created_attributes(&self, inode: InodeId) -> Option<Attributes> {
        let attributes = self.mounted.shell.with(|core, now| core.created_attributes(inode, now))?;
        attributes_of(&attributes).ok()
    }

    /// An inode's attributes, and those of the directories that names lead to, each looked up in the one before: up to the
    /// first name that leads to none, at most `WALK_NAMES_MAX`. All as they were at one moment of this call.
    pub async fn walk(&self, start: InodeId, names: Vec<Bytes>) -> Result<(Attributes, Vec<Attributes>), Error> {
        let response = self.ask(read_request::Op::Walk(Walk { inode: start.0, names })).await?;
        let walked = response.walked.into_iter().map(|attr| shown(Some(attr))).collect::<Result<_, _>>()?;
        Ok((shown(response.attr)?, walked))
    }

    /// Changes attributes; truncates if the size is among them.
    pub async fn set_attributes(&self, inode: InodeId, set: SetAttributes) -> Result<Attributes, Error> {
        let (atime_ns, atime_now) = split(set.atime);
        let (mtime_ns, mtime_now) = split(set.mtime);
        let op = SetAttr {
            inode: inode.0,
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size_bytes: set.size_bytes,
            atime_ns,
            mtime_ns,
            ctime_ns: set.ctime_ns,
            atime_now,
            mtime_now,
            kill_suid_sgid: set.kill_suid_sgid,
        };
        // A truncate is a barrier for data written before (R9); so is a time, which later flushes must not move, and a mode,
        // which a later commit must not strip of suid.
        shown(self.change_after_writes(inode, mutation::Op::SetAttr(op)).await?.attr)
    }

    /// A symbolic link's target.
    pub async fn read_link(&self, inode: InodeId) -> Result<Bytes, Error> {
        Ok(self.ask(read_request::Op::ReadLink(ReadLink { inode: inode.0 })).await?.value)
    }

    /// Makes a node under a new name. `mode` has the umask applied.
    pub async fn create_node(
        &self,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: u32,
        owner: Owner,
    ) -> Result<Attributes, Error> {
        let op = create_request(parent, name, node, mode, owner);
        shown(self.mutate(mutation::Op::Create(op)).await?.attr)
    }

    /// Gives an inode one more name.
    pub async fn link(&self, inode: InodeId, parent: InodeId, name: &[u8]) -> Result<Attributes, Error> {
        let op = Link { inode: inode.0, parent: parent.0, name: name_of(name) };
        shown(self.mutate(mutation::Op::Link(op)).await?.attr)
    }

    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        let op = Unlink { parent: parent.0, name: name_of(name), directory: false };
        self.mutate(mutation::Op::Unlink(op)).await.map(|_| ())
    }

    /// Removes an empty directory.
    pub async fn remove_directory(&self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        let op = Unlink { parent: parent.0, name: name_of(name), directory: true };
        self.mutate(mutation::Op::Unlink(op)).await.map(|_| ())
    }

    /// Moves a name.
    pub async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Error> {
        let op = Rename {
            parent: parent.0,
            name: name_of(name),
            new_parent: new_parent.0,
            new_name: name_of(new_name),
            no_replace: mode == RenameMode::NoReplace,
            exchange: mode == RenameMode::Exchange,
        };
        self.mutate(mutation::Op::Rename(op)).await.map(|_| ())
    }

    /// Up to `max_entries` entries behind the cookie (0: from the start), in cookie order; empty at the end.
    pub async fn read_directory(
        &self,
        inode: InodeId,
        after_cookie: u64,
        max_entries: u32,
        with_attributes: bool,
    ) -> Result<Vec<DirectoryEntry>, Error> {
        let op = ReadDirectory { inode: inode.0, after_cookie, max_entries, with_attributes };
        let response = self.ask(read_request::Op::ReadDirectory(op)).await?;
        let entry = |e: holdfast_proto::meta::DirectoryEntry| {
            let kind = kind_of(e.kind)?;
            let attributes = match e.attr {
                Some(attr) if with_attributes => Some(attributes_of(&attr)?),
                None if with_attributes => return Err(missing()),
                _ => None,
            };
            Ok(DirectoryEntry { name: e.name, inode: e.inode.into(), kind, cookie: e.cookie, attributes })
        };
        response.entries.into_iter().map(entry).collect()
    }

    /// An extended attribute's value. That a file just created has no capability is answered from memory, because the
    /// kernel asks before the first write to every file; a commit removes one that another mount sets meanwhile.
    pub async fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Bytes, Error> {
        if name == CAPABILITY_XATTR && self.created_attributes(inode).is_some() {
            return Err(Error::Refused { code: Code::NoData, detail: "just created".to_owned() });
        }
        let op = GetXattr { inode: inode.0, name: name_of(name) };
        Ok(self.ask(read_request::Op::GetXattr(op)).await?.value)
    }

    /// The names of an inode's extended attributes.
    pub async fn list_xattr(&self, inode: InodeId) -> Result<Vec<Bytes>, Error> {
        Ok(self.ask(read_request::Op::ListXattr(ListXattr { inode: inode.0 })).await?.names)
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(&self, inode: InodeId, name: &[u8], value: Bytes, mode: XattrMode) -> Result<(), Error> {
        if !XATTR_NAMESPACES.iter().any(|namespace| name.starts_with(namespace)) {
            return Err(Error::Refused { code: Code::NotSupported, detail: "no such namespace".to_owned() });
        }
        let op = SetXattr {
            inode: inode.0,
            name: name_of(name),
            value,
            create: mode == XattrMode::Create,
            replace: mode == XattrMode::Replace,
        };
        let op = mutation::Op::SetXattr(op);
        // A capability stays only if it is set after the last write (the commit of one written before would take it).
        let set =
            if name == CAPABILITY_XATTR { self.change_after_writes(inode, op).await } else { self.mutate(op).await };
        set.map(|_| ())
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, inode: InodeId, name: &[u8]) -> Result<(), Error> {
        let op = RemoveXattr { inode: inode.0, name: name_of(name) };
        self.mutate(mutation::Op::RemoveXattr(op)).await.map(|_| ())
    }
}

fn split(time: Option<SetTime>) -> (Option<i64>, bool) {
    match time {
        None => (None, false),
        Some(SetTime::Now) => (None, true),
        Some(SetTime::At(ns)) => (Some(ns), false),
    }
}
