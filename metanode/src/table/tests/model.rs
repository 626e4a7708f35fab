//! A file system as plainly as it can be said: maps of names, files as one cell per byte, everything recounted from
//! scratch. Shares no code with the table.

use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Attr, Code, CreateNode, Kind, Link, RemoveXattr, Rename, SetXattr, Unlink};
use std::collections::{BTreeMap, BTreeSet};

mod data;

type Name = Vec<u8>;
/// Chunk of a byte of a file, and its place there; `None`: a hole.
pub(super) type Cell = Option<(u64, u32)>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) attr: Attr,
    pub(super) entries: BTreeMap<Name, u64>,
    pub(super) parent: u64,
    pub(super) cells: Vec<Cell>,
    /// Pages that fallocate set aside.
    allocated: BTreeSet<u64>,
    pub(super) target: Vec<u8>,
    pub(super) xattrs: BTreeMap<Name, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<u64, Node>,
    level: u32,
    pub(super) next_inode: u64,
    pub(super) quota_bytes: u64,
    pub(super) reserved_bytes: u64,
    /// Every chunk ever committed, until forgotten, by length.
    pub(super) chunks: BTreeMap<u64, u32>,
    pub(super) freed: BTreeSet<u64>,
    pub(super) unused_chunks: BTreeSet<u64>,
}

/// Answer of an operation beside its code.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reply {
    pub(super) attr: Option<Attr>,
    pub(super) other_attr: Option<Attr>,
    pub(super) commits: Vec<Code>,
}

type Outcome = Result<Reply, Code>;

impl Node {
    /// Pages with data.
    fn touched(&self) -> BTreeSet<u64> {
        let pages = (0..).zip(self.cells.chunks(4096));
        pages.filter(|(_, cells)| cells.iter().any(Option::is_some)).map(|(page, _)| page).collect()
    }

    fn charged(&self) -> BTreeSet<u64> {
        self.touched().union(&self.allocated).copied().collect()
    }
}

impl Model {
    pub(super) fn new(level: u32, root: Attr, quota_bytes: u64) -> Self {
        let root = Node {
            attr: root,
            entries: BTreeMap::new(),
            parent: 1,
            cells: vec![],
            allocated: BTreeSet::new(),
            target: vec![],
            xattrs: BTreeMap::new(),
        };
        Self {
            nodes: BTreeMap::from([(1, root)]),
            level,
            next_inode: 2,
            quota_bytes,
            reserved_bytes: 0,
            chunks: BTreeMap::new(),
            freed: BTreeSet::new(),
            unused_chunks: BTreeSet::new(),
        }
    }

    pub(super) fn apply(&mut self, op: &Op, now: i64) -> Outcome {
        let reply = match op {
            Op::Create(op) => self.create(op, now),
            Op::Link(op) => self.link(op, now),
            Op::Unlink(op) => self.unlink(op, now),
            Op::Rename(op) => self.rename(op, now),
            Op::SetAttr(op) => self.set_attr(op, now),
            Op::Fallocate(op) => self.fallocate(op, now),
            Op::SetXattr(op) => self.set_xattr(op, now),
            Op::RemoveXattr(op) => self.remove_xattr(op, now),
            Op::Commit(op) => Ok(self.commit(op, now)),
            Op::ReserveQuota(op) => self.reserve_quota(op),
            Op::ReapOrphans(op) => {
                op.inodes.iter().for_each(|inode| self.reap(*inode));
                Ok(Reply::default())
            }
            Op::ForgetChunks(op) => {
                for chunk in &op.chunks {
                    if self.freed.remove(chunk) {
                        self.chunks.remove(chunk);
                    }
                }
                Ok(Reply::default())
            }
            other => panic!("the model has no {other:?}"),
        }?;
        self.recount();
        Ok(reply)
    }

    /// Reply attributes after recounting links and pages.
    pub(super) fn attr(&self, inode: u64) -> Option<Attr> {
        Some(self.nodes.get(&inode)?.attr)
    }

    /// Links, mapped bytes and freed chunks, from nothing but names and cells.
    fn recount(&mut self) {
        let mut names: BTreeMap<u64, u32> = BTreeMap::from([(1, 1)]);
        let mut subdirectories: BTreeMap<u64, u32> = BTreeMap::new();
        let mut live: BTreeSet<u64> = BTreeSet::new();
        for (inode, node) in &self.nodes {
            for child in node.entries.values() {
                *names.entry(*child).or_default() += 1;
                if self.nodes[child].attr.kind() == Kind::Directory {
                    *subdirectories.entry(*inode).or_default() += 1;
                }
            }
            live.extend(node.cells.iter().flatten().map(|(chunk, _)| *chunk));
        }
        for (inode, node) in &mut self.nodes {
            let names = names.get(inode).copied().unwrap_or(0);
            node.attr.nlink = match (node.attr.kind(), names) {
                (Kind::Directory, 0) => 0,
                (Kind::Directory, _) => 2 + subdirectories.get(inode).copied().unwrap_or(0),
                (_, names) => names,
            };
            node.attr.mapped_bytes = node.charged().len() as u64 * 4096;
            if node.attr.kind() == Kind::File {
                node.attr.size_bytes = node.cells.len() as u64;
            }
        }
        self.freed = self.chunks.keys().filter(|chunk| !live.contains(chunk)).copied().collect();
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.attr.mapped_bytes).sum()
    }

    fn directory(&self, inode: u64) -> Result<&Node, Code> {
        let node = self.nodes.get(&inode).ok_or(Code::Stale)?;
        if node.attr.kind() == Kind::Directory { Ok(node) } else { Err(Code::NotDirectory) }
    }

    fn entry(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.nodes.get(&parent)?.entries.get(name).copied()
    }

    fn kind(&self, inode: u64) -> Kind {
        self.nodes[&inode].attr.kind()
    }

    fn touch(&mut self, directory: u64, now: i64) {
        let attr = &mut self.nodes.get_mut(&directory).unwrap().attr;
        (attr.mtime_ns, attr.ctime_ns) = (now, now);
    }

    fn node(&mut self, inode: u64) -> &mut Node {
        self.nodes.get_mut(&inode).unwrap()
    }

    fn create(&mut self, op: &CreateNode, now: i64) -> Outcome {
        check_name(&op.name)?;
        let parent = self.directory(op.parent)?.clone();
        if let Some(existing) = parent.entries.get(op.name.as_ref()) {
            return match (op.exclusive, op.kind(), self.kind(*existing)) {
                (false, Kind::File, Kind::File) => Ok(Reply { attr: self.attr(*existing), ..Reply::default() }),
                (false, Kind::File, Kind::Directory) => Err(Code::IsDirectory),
                _ => Err(Code::Exists),
            };
        }
        if parent.attr.nlink == 0 {
            return Err(Code::NotFound);
        }
        let inherits = parent.attr.mode & 0o2000 != 0;
        let directory = op.kind() == Kind::Directory;
        let symlink = op.kind() == Kind::Symlink;
        if symlink && op.target.is_empty() {
            return Err(Code::NotFound);
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        let attr = Attr {
            inode,
            kind: op.kind,
            mode: if symlink { 0o777 } else { op.mode & 0o7777 } | if inherits && directory { 0o2000 } else { 0 },
            nlink: if directory { 2 } else { 1 },
            uid: op.uid,
            gid: if inherits { parent.attr.gid } else { op.gid },
            rdev: if op.kind() == Kind::CharDevice { op.rdev } else { 0 },
            size_bytes: if directory { 4096 } else { op.target.len() as u64 },
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: now,
            ..Attr::default()
        };
        let node = Node {
            attr,
            entries: BTreeMap::new(),
            parent: op.parent,
            cells: vec![],
            allocated: BTreeSet::new(),
            target: op.target.to_vec(),
            xattrs: BTreeMap::new(),
        };
        self.nodes.insert(inode, node);
        self.node(op.parent).entries.insert(op.name.to_vec(), inode);
        self.touch(op.parent, now);
        Ok(Reply { attr: Some(attr), ..Reply::default() })
    }

    fn link(&mut self, op: &Link, now: i64) -> Outcome {
        check_name(&op.name)?;
        let parent = self.directory(op.parent)?;
        if parent.entries.contains_key(op.name.as_ref()) {
            return Err(Code::Exists);
        }
        let dead_parent = parent.attr.nlink == 0;
        let node = self.nodes.get(&op.inode).ok_or(Code::Stale)?;
        if node.attr.kind() == Kind::Directory {
            return Err(Code::NotPermitted);
        }
        if node.attr.nlink == 0 || dead_parent {
            return Err(Code::NotFound);
        }
        self.node(op.inode).attr.ctime_ns = now;
        self.node(op.parent).entries.insert(op.name.to_vec(), op.inode);
        self.touch(op.parent, now);
        self.recount();
        Ok(Reply { attr: self.attr(op.inode), ..Reply::default() })
    }

    fn unlink(&mut self, op: &Unlink, now: i64) -> Outcome {
        check_name(&op.name)?;
        self.directory(op.parent)?;
        let inode = self.entry(op.parent, &op.name).ok_or(Code::NotFound)?;
        match (op.directory, self.kind(inode) == Kind::Directory) {
            (true, false) => return Err(Code::NotDirectory),
            (false, true) => return Err(Code::IsDirectory),
            (true, true) if !self.nodes[&inode].entries.is_empty() => return Err(Code::NotEmpty),
            _ => {}
        }
        self.node(op.parent).entries.remove(op.name.as_ref());
        self.node(inode).attr.ctime_ns = now;
        self.touch(op.parent, now);
        self.recount();
        Ok(Reply { other_attr: self.attr(inode), ..Reply::default() })
    }

    /// Whether `inode` is `ancestor` or below it.
    fn inside(&self, mut inode: u64, ancestor: u64) -> bool {
        loop {
            if inode == ancestor {
                return true;
            }
            match self.nodes.get(&inode) {
                Some(node) if node.parent != inode => inode = node.parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, op: &Rename, now: i64) -> Outcome {
        if op.no_replace && op.exchange {
            return Err(Code::Invalid);
        }
        check_name(&op.name)?;
        check_name(&op.new_name)?;
        self.directory(op.parent)?;
        let dead = self.directory(op.new_parent)?.attr.nlink == 0;
        let source = self.entry(op.parent, &op.name).filter(|_| !dead).ok_or(Code::NotFound)?;
        let target = self.entry(op.new_parent, &op.new_name);
        let is_directory = |model: &Self, inode| model.kind(inode) == Kind::Directory;
        match target {
            Some(_) if op.no_replace => return Err(Code::Exists),
            None if op.exchange => return Err(Code::NotFound),
            _ => {}
        }
        if is_directory(self, source) && self.inside(op.new_parent, source) {
            return Err(Code::Invalid);
        }
        if let Some(target) = target {
            if is_directory(self, target) && self.inside(op.parent, target) {
                return Err(if op.exchange { Code::Invalid } else { Code::NotEmpty });
            }
            if target == source {
                let attr = self.attr(source);
                return Ok(Reply { attr, other_attr: attr.filter(|_| op.exchange), ..Reply::default() });
            }
            if !op.exchange {
                match (is_directory(self, source), is_directory(self, target)) {
                    (true, false) => return Err(Code::NotDirectory),
                    (false, true) => return Err(Code::IsDirectory),
                    (true, true) if !self.nodes[&target].entries.is_empty() => return Err(Code::NotEmpty),
                    _ => {}
                }
            }
        }
        self.node(op.parent).entries.remove(op.name.as_ref());
        self.node(op.new_parent).entries.insert(op.new_name.to_vec(), source);
        if let (Some(target), true) = (target, op.exchange) {
            self.node(op.parent).entries.insert(op.name.to_vec(), target);
            self.node(target).parent = op.parent;
        }
        self.node(source).parent = op.new_parent;
        self.node(source).attr.ctime_ns = now;
        if let Some(target) = target {
            self.node(target).attr.ctime_ns = now;
        }
        self.touch(op.parent, now);
        self.touch(op.new_parent, now);
        self.recount();
        Ok(Reply { attr: self.attr(source), other_attr: target.and_then(|target| self.attr(target)), commits: vec![] })
    }

    fn set_xattr(&mut self, op: &SetXattr, now: i64) -> Outcome {
        let node = self.nodes.get_mut(&op.inode).ok_or(Code::Stale)?;
        match node.xattrs.contains_key(op.name.as_ref()) {
            true if op.create => return Err(Code::Exists),
            false if op.replace => return Err(Code::NoData),
            _ => {}
        }
        node.xattrs.insert(op.name.to_vec(), op.value.to_vec());
        node.attr.ctime_ns = now;
        Ok(Reply::default())
    }

    fn remove_xattr(&mut self, op: &RemoveXattr, now: i64) -> Outcome {
        let node = self.nodes.get_mut(&op.inode).ok_or(Code::Stale)?;
        node.xattrs.remove(op.name.as_ref()).ok_or(Code::NoData)?;
        node.attr.ctime_ns = now;
        Ok(Reply::default())
    }

    fn reap(&mut self, inode: u64) {
        if self.nodes.get(&inode).is_some_and(|node| node.attr.nlink == 0) {
            self.nodes.remove(&inode);
        }
    }
}

fn kill(attr: &mut Attr) {
    if attr.kind() != Kind::Directory {
        attr.mode &= if attr.mode & 0o010 != 0 { 0o1777 } else { 0o3777 };
    }
}

fn check_name(name: &[u8]) -> Result<(), Code> {
    match name {
        b"" | b"." | b".." => Err(Code::Invalid),
        name if name.len() > 255 => Err(Code::NameTooLong),
        name if name.contains(&b'/') || name.contains(&0) => Err(Code::Invalid),
        _ => Ok(()),
    }
}
