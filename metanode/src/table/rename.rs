//! Rename as Linux has it: replacing, NOREPLACE, EXCHANGE, never a directory into itself.

use super::key::{NameProbe, dentry_probe};
use super::namespace::with_attr;
use super::records::{Body, Dentry};
use super::{Broken, Outcome, Table, broken};
use holdfast_common::InodeId;
use holdfast_proto::meta::{Code, Kind, MutateResponse, Rename};

/// One side of a rename.
struct Place {
    parent: InodeId,
    probe: NameProbe,
}

impl Table {
    pub(super) fn rename(&mut self, op: &Rename, now_ns: i64) -> Outcome<MutateResponse> {
        if op.no_replace && op.exchange {
            return Err(Code::Invalid.into());
        }
        let from = Place { parent: InodeId(op.parent), probe: dentry_probe(InodeId(op.parent), &op.name)? };
        let to = Place { parent: InodeId(op.new_parent), probe: dentry_probe(InodeId(op.new_parent), &op.new_name)? };
        self.directory(from.parent)?;
        let new_parent_dead = self.directory(to.parent)?.nlink == 0;
        let source = *self.dentries.get(from.probe.as_bytes()).ok_or(Code::NotFound)?;
        let target = self.dentries.get(to.probe.as_bytes()).copied();
        if new_parent_dead {
            return Err(Code::NotFound.into());
        }
        match target {
            Some(_) if op.no_replace => return Err(Code::Exists.into()),
            None if op.exchange => return Err(Code::NotFound.into()),
            Some(_) | None => {}
        }
        if source.kind == Kind::Directory && self.is_inside(to.parent, source.inode)? {
            return Err(Code::Invalid.into());
        }
        match target {
            None => self.rename_to_new_name(&from, &to, source, now_ns),
            Some(target) if op.exchange => self.exchange(&from, &to, (source, target), now_ns),
            Some(target) => self.rename_over(&from, &to, (source, target), now_ns),
        }
    }

    fn rename_to_new_name(&mut self, from: &Place, to: &Place, source: Dentry, now_ns: i64) -> Outcome<MutateResponse> {
        self.remove_name(from.parent, &from.probe, now_ns)?;
        self.add_name(to.parent, to.probe.to_key(), source.inode, source.kind, now_ns)?;
        self.moved(source.inode, to.parent, now_ns)
    }

    fn rename_over(
        &mut self,
        from: &Place,
        to: &Place,
        (source, target): (Dentry, Dentry),
        now_ns: i64,
    ) -> Outcome<MutateResponse> {
        // As Linux does it: a target that is an ancestor of the source is not empty, whatever the source is.
        if target.kind == Kind::Directory && self.is_inside(from.parent, target.inode)? {
            return Err(Code::NotEmpty.into());
        }
        if source.inode == target.inode {
            return Ok(with_attr(self.known(source.inode)?.attr(source.inode)));
        }
        match (source.kind == Kind::Directory, target.kind == Kind::Directory) {
            (true, false) => return Err(Code::NotDirectory.into()),
            (false, true) => return Err(Code::IsDirectory.into()),
            (true, true) if !self.is_empty_directory(target.inode) => return Err(Code::NotEmpty.into()),
            (true, true) | (false, false) => {}
        }
        self.remove_name(from.parent, &from.probe, now_ns)?;
        // The kinds agree, so the new parent keeps its count: the replaced directory goes, the moved one comes.
        self.redirect(to, source, now_ns)?;
        let replaced = self.drop_link(target.inode, now_ns)?;
        let response = self.moved(source.inode, to.parent, now_ns)?;
        Ok(MutateResponse { other_attr: Some(replaced), ..response })
    }

    fn exchange(
        &mut self,
        from: &Place,
        to: &Place,
        (source, target): (Dentry, Dentry),
        now_ns: i64,
    ) -> Outcome<MutateResponse> {
        if target.kind == Kind::Directory && self.is_inside(from.parent, target.inode)? {
            return Err(Code::Invalid.into());
        }
        if source.inode == target.inode {
            let attr = self.known(source.inode)?.attr(source.inode);
            return Ok(MutateResponse { other_attr: Some(attr), ..with_attr(attr) });
        }
        self.redirect(from, target, now_ns)?;
        self.redirect(to, source, now_ns)?;
        match (source.kind == Kind::Directory, target.kind == Kind::Directory) {
            (true, false) => self.move_parent_link(from.parent, to.parent)?,
            (false, true) => self.move_parent_link(to.parent, from.parent)?,
            (true, true) | (false, false) => {}
        }
        let other = self.moved(target.inode, from.parent, now_ns)?;
        let response = self.moved(source.inode, to.parent, now_ns)?;
        Ok(MutateResponse { other_attr: other.attr, ..response })
    }

    /// Lets a name that is there lead elsewhere; it keeps its cookie.
    fn redirect(&mut self, place: &Place, to: Dentry, now_ns: i64) -> Result<(), Broken> {
        let Some(mut dentry) = self.dentries.get_mut(place.probe.as_bytes()) else {
            return broken(format!("a checked entry of directory {} is not there", place.parent));
        };
        *dentry = Dentry { cookie: dentry.cookie, ..to };
        drop(dentry);
        self.known_mut(place.parent)?.touch(now_ns);
        Ok(())
    }

    fn move_parent_link(&mut self, from: InodeId, to: InodeId) -> Result<(), Broken> {
        self.known_mut(from)?.nlink -= 1;
        self.known_mut(to)?.nlink += 1;
        Ok(())
    }

    /// The inode has its new place; a directory's `..` follows.
    fn moved(&mut self, id: InodeId, new_parent: InodeId, now_ns: i64) -> Outcome<MutateResponse> {
        let mut inode = self.known_mut(id)?;
        inode.ctime_ns = now_ns;
        if let Body::Directory { parent, .. } = &mut inode.body {
            *parent = new_parent;
        }
        Ok(with_attr(inode.attr(id)))
    }

    /// Whether `directory` is `ancestor` or below it.
    fn is_inside(&self, mut directory: InodeId, ancestor: InodeId) -> Result<bool, Broken> {
        for _ in 0..=self.inodes.len() {
            if directory == ancestor {
                return Ok(true);
            }
            match self.known(directory)?.body {
                // The root is its own parent. A removed directory is inside nothing.
                Body::Directory { parent, .. } if parent != directory && self.inodes.contains(&parent) => {
                    directory = parent;
                }
                Body::Directory { .. } => return Ok(false),
                Body::Plain | Body::Symlink(_) => return broken(format!("parent {directory} is no directory")),
            }
        }
        broken(format!("the parents of directory {directory} form a ring"))
    }
}
