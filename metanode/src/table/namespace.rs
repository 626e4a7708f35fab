//! Names: create, link, unlink, and the dentry plumbing under them and rename.

use super::key::{NameKey, NameProbe, dentry_probe};
use super::records::{Body, DIRECTORY_BYTES, Dentry, Inode, SET_GID};
use super::tree::Changing;
use super::{Broken, Outcome, Table, broken};
use holdfast_common::InodeId;
use holdfast_common::limits::{FIRST_COOKIE, LINKS_MAX, SYMLINK_BYTES_MAX};
use holdfast_proto::meta::{Attr, Code, CreateNode, Kind, Link, MutateResponse, Unlink};
use std::ops::Bound;

impl Table {
    pub(super) fn create(&mut self, op: &CreateNode, now_ns: i64) -> Outcome<MutateResponse> {
        let parent_id = InodeId(op.parent);
        let probe = dentry_probe(parent_id, &op.name)?;
        let parent = self.directory(parent_id)?;
        if let Some(existing) = self.dentries.get(probe.as_bytes()) {
            return self.open_existing(op, *existing);
        }
        if parent.nlink == 0 {
            return Err(Code::NotFound.into());
        }
        let mut inode = new_inode(op, parent_id, now_ns)?;
        if parent.mode & SET_GID != 0 {
            inode.gid = parent.gid;
            if inode.is_directory() {
                inode.mode |= SET_GID;
            }
        }
        let id = InodeId(self.counters.next_inode);
        self.counters.next_inode += 1;
        let attr = inode.attr(id);
        let kind = inode.kind;
        self.inodes.insert(id, inode);
        self.add_name(parent_id, probe.to_key(), id, kind, now_ns)?;
        Ok(with_attr(attr))
    }

    /// open(2) with `O_CREAT` and without `O_EXCL` takes a file that is there as it is.
    fn open_existing(&self, op: &CreateNode, existing: Dentry) -> Outcome<MutateResponse> {
        if op.exclusive || op.kind() != Kind::File {
            return Err(Code::Exists.into());
        }
        match existing.kind {
            Kind::File => Ok(with_attr(self.known(existing.inode)?.attr(existing.inode))),
            Kind::Directory => Err(Code::IsDirectory.into()),
            Kind::Unknown | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                Err(Code::Exists.into())
            }
        }
    }

    pub(super) fn link(&mut self, op: &Link, now_ns: i64) -> Outcome<MutateResponse> {
        let (id, parent_id) = (InodeId(op.inode), InodeId(op.parent));
        let probe = dentry_probe(parent_id, &op.name)?;
        let parent = self.directory(parent_id)?;
        if self.dentries.contains(probe.as_bytes()) {
            return Err(Code::Exists.into());
        }
        let inode = self.inode(id)?;
        if inode.is_directory() {
            return Err(Code::NotPermitted.into());
        }
        if inode.nlink == 0 || parent.nlink == 0 {
            return Err(Code::NotFound.into());
        }
        if inode.nlink >= LINKS_MAX {
            return Err(Code::TooManyLinks.into());
        }
        let kind = inode.kind;
        let mut inode = self.known_mut(id)?;
        inode.nlink += 1;
        inode.ctime_ns = now_ns;
        let attr = inode.attr(id);
        drop(inode);
        self.add_name(parent_id, probe.to_key(), id, kind, now_ns)?;
        Ok(with_attr(attr))
    }

    pub(super) fn unlink(&mut self, op: &Unlink, now_ns: i64) -> Outcome<MutateResponse> {
        let parent_id = InodeId(op.parent);
        let probe = dentry_probe(parent_id, &op.name)?;
        self.directory(parent_id)?;
        let dentry = *self.dentries.get(probe.as_bytes()).ok_or(Code::NotFound)?;
        match (op.directory, dentry.kind == Kind::Directory) {
            (true, false) => return Err(Code::NotDirectory.into()),
            (false, true) => return Err(Code::IsDirectory.into()),
            (true, true) if !self.is_empty_directory(dentry.inode) => return Err(Code::NotEmpty.into()),
            (true, true) | (false, false) => {}
        }
        self.remove_name(parent_id, &probe, now_ns)?;
        let attr = self.drop_link(dentry.inode, now_ns)?;
        Ok(MutateResponse { other_attr: Some(attr), ..MutateResponse::default() })
    }

    /// Takes one name's link away; the last one makes an orphan, always: only the leader knows who has it open.
    pub(super) fn drop_link(&mut self, id: InodeId, now_ns: i64) -> Result<Attr, Broken> {
        let mut inode = self.known_mut(id)?;
        inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
        inode.ctime_ns = now_ns;
        let attr = inode.attr(id);
        drop(inode);
        if attr.nlink == 0 {
            self.orphans.insert(id, ());
        }
        Ok(attr)
    }

    /// Adds a dentry under a new cookie; a directory's `..` counts as a link of the parent.
    pub(super) fn add_name(
        &mut self,
        parent: InodeId,
        key: NameKey,
        inode: InodeId,
        kind: Kind,
        now_ns: i64,
    ) -> Result<(), Broken> {
        let mut directory = self.known_mut(parent)?;
        let Body::Directory { next_cookie, .. } = &mut directory.body else {
            return broken(format!("inode {parent} has an entry and is no directory"));
        };
        let cookie = *next_cookie;
        *next_cookie += 1;
        if kind == Kind::Directory {
            directory.nlink += 1;
        }
        directory.touch(now_ns);
        drop(directory);
        self.cookies.insert((parent, cookie), key.clone());
        self.dentries.insert(key, Dentry { inode, kind, cookie });
        Ok(())
    }

    /// Removes a dentry that is there, not its inode.
    pub(super) fn remove_name(&mut self, parent: InodeId, probe: &NameProbe, now_ns: i64) -> Result<Dentry, Broken> {
        let Some(dentry) = self.dentries.remove(probe.as_bytes()) else {
            return broken(format!("a checked entry of directory {parent} is not there"));
        };
        self.cookies.remove(&(parent, dentry.cookie));
        let mut directory = self.known_mut(parent)?;
        if dentry.kind == Kind::Directory {
            directory.nlink -= 1;
        }
        directory.touch(now_ns);
        Ok(dentry)
    }

    pub(super) fn is_empty_directory(&self, directory: InodeId) -> bool {
        let from = (directory, 0);
        self.cookies
            .range(Bound::Included(&from), Bound::Unbounded)
            .next()
            .is_none_or(|((parent, _), _)| *parent != directory)
    }

    /// An inode that a request names.
    pub(super) fn inode(&self, id: InodeId) -> Result<&Inode, Code> {
        self.inodes.get(&id).ok_or(Code::Stale)
    }

    /// A directory that a request names.
    pub(super) fn directory(&self, id: InodeId) -> Result<&Inode, Code> {
        let inode = self.inode(id)?;
        if inode.is_directory() { Ok(inode) } else { Err(Code::NotDirectory) }
    }

    /// An inode that the table itself names.
    pub(super) fn known(&self, id: InodeId) -> Result<&Inode, Broken> {
        self.inodes.get(&id).ok_or_else(|| Broken(format!("inode {id} is not there")))
    }

    pub(super) fn known_mut(&mut self, id: InodeId) -> Result<Changing<'_, Inode>, Broken> {
        self.inodes.get_mut(&id).ok_or_else(|| Broken(format!("inode {id} is not there")))
    }
}

pub(super) fn with_attr(attr: Attr) -> MutateResponse {
    MutateResponse { attr: Some(attr), ..MutateResponse::default() }
}

fn new_inode(op: &CreateNode, parent: InodeId, now_ns: i64) -> Result<Inode, Code> {
    let kind = op.kind();
    let mut inode = Inode {
        kind,
        mode: op.mode & 0o7777,
        nlink: 1,
        uid: op.uid,
        gid: op.gid,
        rdev: 0,
        size_bytes: 0,
        mapped_pages: 0,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        btime_ns: now_ns,
        truncate_generation: 0,
        data_version: 0,
        body: Body::Plain,
    };
    match kind {
        Kind::Unknown => return Err(Code::Invalid),
        Kind::File | Kind::Fifo | Kind::Socket => {}
        Kind::CharDevice | Kind::BlockDevice => inode.rdev = op.rdev,
        Kind::Directory => {
            inode.nlink = 2;
            inode.size_bytes = DIRECTORY_BYTES;
            inode.body = Body::Directory { parent, next_cookie: FIRST_COOKIE };
        }
        Kind::Symlink => {
            if op.target.is_empty() {
                return Err(Code::NotFound);
            }
            if op.target.len() > SYMLINK_BYTES_MAX {
                return Err(Code::NameTooLong);
            }
            inode.mode = 0o777;
            inode.size_bytes = op.target.len() as u64;
            inode.body = Body::Symlink(op.target.as_ref().into());
        }
    }
    Ok(inode)
}

/// The root directory as `Configure` makes it.
pub(super) fn root_directory(now_ns: i64) -> Inode {
    Inode {
        kind: Kind::Directory,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size_bytes: DIRECTORY_BYTES,
        mapped_pages: 0,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        btime_ns: now_ns,
        truncate_generation: 0,
        data_version: 0,
        body: Body::Directory { parent: InodeId::ROOT, next_cookie: FIRST_COOKIE },
    }
}
