//! Random operations by two mounts against a plain model: every result, errno, attribute and byte compared, while leaders
//! change, requests and answers are lost, puts and reads fail, and callers drop their futures.
//!
//! Operations follow one another, as close-to-open promises no more for one file: a mount opens a file, works on it, and
//! closes it before the other one does. What is dropped may have happened or not; which of the two is then looked up, and
//! nothing else is accepted.

use crate::cluster::{Cluster, Faults, in_virtual_time};
use crate::scenarios::{config, mount_by};
use bytes::Bytes;
use holdfast_client::{
    Error, FallocateMode, FileHandle, FileSystem, MountConfig, NewNode, NodeKind, OpenMode, RenameMode, SetAttributes,
    Whence, WriteAt, XattrMode,
};
use holdfast_common::{InodeId, Owner, Random};
use holdfast_proto::meta::Code;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const OPERATIONS: u64 = 120;
const FILE_BYTES_MAX: u64 = 40_000;

/// A file or directory of the model.
#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    directory: bool,
    nlink: u32,
    mode: u32,
    data: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
    names: BTreeMap<String, InodeId>,
}

struct Opened {
    handle: FileHandle,
    inode: InodeId,
    append: bool,
}

struct Run {
    cluster: Cluster,
    mounts: Vec<FileSystem>,
    memory_bytes: usize,
    nodes: BTreeMap<InodeId, Node>,
    open: Vec<Option<Opened>>,
    random: Random,
    seed: u64,
    step: u64,
}

/// What an operation came to, as far as the model says it.
type Told = Result<(), i32>;

fn told<T>(outcome: &Result<T, Error>) -> Told {
    outcome.as_ref().map(|_| ()).map_err(Error::errno)
}

impl Run {
    async fn new(seed: u64) -> Self {
        let cluster = Cluster::new(seed, 0);
        // Half of the runs have so little memory that maps and blocks are forgotten all the time, and writers wait.
        let memory_bytes = if seed.is_multiple_of(2) { 64 << 20 } else { 200 << 10 };
        let mut mounts = Vec::new();
        for key in ["one", "other"] {
            mounts.push(mount_by(&cluster, MountConfig { memory_bytes, ..config(key) }).await);
        }
        let root = Node { directory: true, nlink: 2, mode: 0o755, ..Node::default() };
        let nodes = BTreeMap::from([(InodeId::ROOT, root)]);
        let random = Random::new(seed ^ 0x5eed);
        Self { cluster, mounts, memory_bytes, nodes, open: vec![None, None], random, seed, step: 0 }
    }

    fn check<T: PartialEq + std::fmt::Debug>(&self, what: &str, seen: T, wanted: T) {
        assert_eq!(seen, wanted, "seed {}, step {}: {what}", self.seed, self.step);
    }

    fn name(&mut self) -> &'static str {
        NAMES[usize::try_from(self.random.below(NAMES.len() as u64)).unwrap()]
    }

    fn directory(&mut self) -> InodeId {
        let all: Vec<InodeId> = self.nodes.iter().filter(|(_, node)| node.directory).map(|(id, _)| *id).collect();
        all[usize::try_from(self.random.below(all.len() as u64)).unwrap()]
    }

    fn bytes(&mut self, most: u64) -> Bytes {
        let (length, stamp) = (self.random.below(most) + 1, self.random.bits());
        let byte = |at: u64| u8::try_from((stamp.wrapping_add(at.wrapping_mul(31))) % 251 + 1).unwrap();
        Bytes::from((0..length).map(byte).collect::<Vec<u8>>())
    }

    fn child(&self, parent: InodeId, name: &str) -> Option<InodeId> {
        self.nodes[&parent].names.get(name).copied()
    }

    async fn step(&mut self) {
        let who = usize::try_from(self.random.below(2)).unwrap();
        let fs = self.mounts[who].clone();
        match self.random.below(20) {
            0..=1 => self.make_directory(&fs).await,
            2 => self.remove(&fs, true).await,
            3 => self.remove(&fs, false).await,
            4 => self.rename(&fs).await,
            5 => self.look(&fs).await,
            6 => self.list(&fs).await,
            7 => self.xattr(&fs).await,
            _ if self.open[who].is_none() => self.open(&fs, who).await,
            8..=11 => self.write(&fs, who).await,
            12..=13 => self.read(&fs, who).await,
            14 => self.truncate(&fs, who).await,
            15 => self.punch(&fs, who).await,
            16 => self.seek(&fs, who).await,
            17 => self.change_mode(&fs, who).await,
            18 => {
                let handle = self.open[who].as_ref().unwrap().handle;
                self.check("fsync", told(&fs.fsync(handle).await), Ok(()));
            }
            _ => self.close(&fs, who).await,
        }
    }

    async fn make_directory(&mut self, fs: &FileSystem) {
        let (parent, name) = (self.directory(), self.name());
        let made = fs.create_node(parent, name.as_bytes(), NewNode::Directory, 0o755, Owner::ROOT).await;
        match self.child(parent, name) {
            Some(_) => self.check("mkdir of what is there", told(&made), Err(libc::EEXIST)),
            None => {
                let made = made.unwrap_or_else(|error| panic!("seed {}: mkdir: {error}", self.seed));
                let node = Node { directory: true, nlink: 2, mode: 0o755, ..Node::default() };
                self.nodes.insert(made.inode, node);
                self.enter(parent, name, made.inode);
            }
        }
    }

    fn enter(&mut self, parent: InodeId, name: &str, inode: InodeId) {
        let directory = self.nodes[&inode].directory;
        let node = self.nodes.get_mut(&parent).unwrap();
        node.names.insert(name.to_owned(), inode);
        node.nlink += u32::from(directory);
    }

    fn leave(&mut self, parent: InodeId, name: &str) {
        let node = self.nodes.get_mut(&parent).unwrap();
        let Some(inode) = node.names.remove(name) else { return };
        if self.nodes[&inode].directory {
            self.nodes.remove(&inode);
            self.nodes.get_mut(&parent).unwrap().nlink -= 1;
        } else {
            self.nodes.get_mut(&inode).unwrap().nlink -= 1;
        }
    }

    async fn remove(&mut self, fs: &FileSystem, directory: bool) {
        let (parent, name) = (self.directory(), self.name());
        let wanted = match self.child(parent, name).map(|inode| &self.nodes[&inode]) {
            None => Err(libc::ENOENT),
            Some(node) if node.directory && !directory => Err(libc::EISDIR),
            Some(node) if !node.directory && directory => Err(libc::ENOTDIR),
            Some(node) if directory && !node.names.is_empty() => Err(libc::ENOTEMPTY),
            Some(_) => Ok(()),
        };
        let name_bytes = name.as_bytes().to_vec();
        let operation = async {
            if directory {
                fs.remove_directory(parent, &name_bytes).await
            } else {
                fs.unlink(parent, &name_bytes).await
            }
        };
        let dropped = self.random.chance(10);
        let patience = Duration::from_micros(if dropped { self.random.below(3000) } else { u64::MAX >> 20 });
        let happened = match timeout(patience, operation).await {
            Ok(outcome) => {
                self.check("remove", told(&outcome), wanted);
                wanted.is_ok()
            }
            // What was sent is executed under its number whoever waits; so by the time it is looked up it is settled.
            Err(_) => {
                self.settle().await;
                wanted.is_ok() && self.mounts[0].lookup(parent, &name_bytes).await.is_err()
            }
        };
        if happened {
            self.leave(parent, name);
        }
    }

    /// Long enough for whatever was sent to have been executed.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(120)).await;
    }

    async fn rename(&mut self, fs: &FileSystem) {
        let (parent, name, to, new_name) = (self.directory(), self.name(), InodeId::ROOT, self.name());
        let outcome = fs.rename(parent, name.as_bytes(), to, new_name.as_bytes(), RenameMode::NoReplace).await;
        let wanted = match (self.child(parent, name), self.child(to, new_name)) {
            (None, _) => Err(libc::ENOENT),
            (_, Some(_)) => Err(libc::EEXIST),
            (Some(_), None) => Ok(()),
        };
        self.check("rename", told(&outcome), wanted);
        if wanted.is_ok() {
            let inode = self.child(parent, name).unwrap();
            let directory = self.nodes[&inode].directory;
            let from = self.nodes.get_mut(&parent).unwrap();
            from.names.remove(name);
            from.nlink -= u32::from(directory);
            self.enter(to, new_name, inode);
        }
    }

    /// Attributes of a name, as far as they do not hang on what another mount has not closed.
    async fn look(&mut self, fs: &FileSystem) {
        let (parent, name) = (self.directory(), self.name());
        let seen = fs.lookup(parent, name.as_bytes()).await;
        let Some(inode) = self.child(parent, name) else {
            return self.check("lookup", told(&seen), Err(libc::ENOENT));
        };
        let seen = seen.unwrap_or_else(|error| panic!("seed {}: lookup: {error}", self.seed));
        let node = &self.nodes[&inode];
        let kind = if node.directory { NodeKind::Directory } else { NodeKind::File };
        self.check("attributes", (seen.inode, seen.kind, seen.nlink, seen.mode), (inode, kind, node.nlink, node.mode));
        if !node.directory && !self.open.iter().flatten().any(|open| open.inode == inode) {
            self.check("size", seen.size_bytes, node.data.len() as u64);
        }
    }

    async fn list(&mut self, fs: &FileSystem) {
        let directory = self.directory();
        let entries = fs.read_directory(directory, 0, 100, true).await.unwrap();
        let mut seen: Vec<_> = entries.iter().map(|e| (String::from_utf8(e.name.to_vec()).unwrap(), e.inode)).collect();
        seen.sort();
        let wanted: Vec<_> = self.nodes[&directory].names.clone().into_iter().collect();
        self.check("listing", seen, wanted);
    }

    async fn xattr(&mut self, fs: &FileSystem) {
        let (directory, name) = (self.directory(), format!("user.{}", self.name()));
        if self.random.chance(50) {
            let value = self.bytes(20);
            let set = fs.set_xattr(directory, name.as_bytes(), value.clone(), XattrMode::Any).await;
            self.check("setxattr", told(&set), Ok(()));
            self.nodes.get_mut(&directory).unwrap().xattrs.insert(name, value.to_vec());
        } else {
            let seen = fs.get_xattr(directory, name.as_bytes()).await.map(|value| value.to_vec());
            let wanted = self.nodes[&directory].xattrs.get(&name).cloned().ok_or(libc::ENODATA);
            self.check("getxattr", seen.map_err(|error| error.errno()), wanted);
        }
    }

    async fn open(&mut self, fs: &FileSystem, who: usize) {
        let (parent, name, append) = (self.directory(), self.name(), self.random.chance(30));
        let mode = OpenMode { read: true, write: true, append, sync: self.random.chance(10) };
        let known = self.child(parent, name);
        let elsewhere = self.open.iter().flatten().any(|open| Some(open.inode) == known);
        if elsewhere || known.is_some_and(|inode| self.nodes[&inode].directory) {
            return;
        }
        let creating = fs.create(parent, name.as_bytes(), 0o644, Owner::ROOT, false, mode);
        let dropped = self.random.chance(10);
        let patience = Duration::from_micros(if dropped { self.random.below(3000) } else { u64::MAX >> 20 });
        match timeout(patience, creating).await {
            Ok(outcome) => {
                let (made, handle) = outcome.unwrap_or_else(|error| panic!("seed {}: create: {error}", self.seed));
                self.created(parent, name, made.inode);
                self.check("size at open", made.size_bytes, self.nodes[&made.inode].data.len() as u64);
                self.open[who] = Some(Opened { handle, inode: made.inode, append });
            }
            Err(_) => {
                self.settle().await;
                if let Ok(made) = self.mounts[0].lookup(parent, name.as_bytes()).await {
                    self.created(parent, name, made.inode);
                }
            }
        }
    }

    fn created(&mut self, parent: InodeId, name: &str, inode: InodeId) {
        if self.child(parent, name).is_none() {
            self.nodes.insert(inode, Node { nlink: 1, mode: 0o644, ..Node::default() });
            self.enter(parent, name, inode);
        }
        self.check("inode", self.child(parent, name), Some(inode));
    }

    async fn write(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { handle, inode, append }) = &self.open[who] else { return };
        let (handle, inode, append) = (*handle, *inode, *append);
        let data = self.bytes(9000);
        let before = self.nodes[&inode].data.clone();
        let at = self.random.below(FILE_BYTES_MAX);
        let (place, offset) = if append {
            (WriteAt::End { believed: 0 }, before.len())
        } else {
            (WriteAt::Offset(at), at.try_into().unwrap())
        };
        let mut after = before.clone();
        after.resize(before.len().max(offset + data.len()), 0);
        after[offset..offset + data.len()].copy_from_slice(&data);
        let writing = fs.write(handle, place, data, false);
        let dropped = self.random.chance(10);
        let patience = Duration::from_micros(if dropped { self.random.below(500) } else { u64::MAX >> 20 });
        let happened = match timeout(patience, writing).await {
            Ok(outcome) => {
                self.check("write", told(&outcome), Ok(()));
                true
            }
            Err(_) => fs.read(handle, 0, 1 << 20).await.unwrap().concat() != before,
        };
        if happened {
            self.nodes.get_mut(&inode).unwrap().data = after;
        }
        self.read(fs, who).await;
    }

    async fn read(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { handle, inode, .. }) = &self.open[who] else { return };
        let seen =
            fs.read(*handle, 0, 1 << 20).await.unwrap_or_else(|error| panic!("seed {}: read: {error}", self.seed));
        let (seen, wanted) = (seen.concat(), &self.nodes[inode].data);
        self.check("length", seen.len(), wanted.len());
        let differs = seen.iter().zip(wanted).position(|(a, b)| a != b);
        self.check("first byte that differs", differs, None);
        let size_bytes = fs.get_attributes(*inode).await.map(|attributes| attributes.size_bytes);
        self.check("size of an open file", size_bytes, Ok(wanted.len() as u64));
    }

    async fn truncate(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { inode, .. }) = &self.open[who] else { return };
        let (inode, size_bytes) = (*inode, self.random.below(FILE_BYTES_MAX));
        let set = SetAttributes { size_bytes: Some(size_bytes), ..SetAttributes::default() };
        let outcome = fs.set_attributes(inode, set).await.map(|attributes| attributes.size_bytes);
        self.check("truncate", outcome, Ok(size_bytes));
        self.nodes.get_mut(&inode).unwrap().data.resize(size_bytes.try_into().unwrap(), 0);
    }

    async fn punch(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { handle, inode, .. }) = &self.open[who] else { return };
        let (handle, inode) = (*handle, *inode);
        let (offset, length) = (self.random.below(FILE_BYTES_MAX), self.random.below(9000) + 1);
        let outcome = fs.fallocate(handle, offset, length, FallocateMode::PunchHole).await;
        self.check("punch", told(&outcome), Ok(()));
        let data = &mut self.nodes.get_mut(&inode).unwrap().data;
        let index = |at: u64| usize::try_from(at).unwrap().min(data.len());
        let hole = index(offset)..index(offset + length);
        data[hole].fill(0);
    }

    /// No data is skipped: everything before what is found is zeros.
    async fn seek(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { handle, inode, .. }) = &self.open[who] else { return };
        let (handle, from) = (*handle, self.random.below(FILE_BYTES_MAX));
        let found = fs.seek(handle, from, Whence::Data).await;
        let data = &self.nodes[inode].data;
        let begin = usize::try_from(from).unwrap().min(data.len());
        let first = data[begin..].iter().position(|byte| *byte != 0).map(|at| at + begin);
        match (found, first) {
            (Ok(found), Some(first)) => assert!(found <= first as u64, "seed {}: data is skipped", self.seed),
            (Err(error), first) => {
                self.check("seek", error.errno(), libc::ENXIO);
                self.check("data behind", first, None);
            }
            (Ok(_), None) => {}
        }
    }

    async fn change_mode(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { inode, .. }) = &self.open[who] else { return };
        let (inode, mode) = (*inode, [0o600, 0o644, 0o755][usize::try_from(self.random.below(3)).unwrap()]);
        let set = SetAttributes { mode: Some(mode), ..SetAttributes::default() };
        let outcome = fs.set_attributes(inode, set).await.map(|attributes| attributes.mode);
        self.check("chmod", outcome, Ok(mode));
        self.nodes.get_mut(&inode).unwrap().mode = mode;
    }

    async fn close(&mut self, fs: &FileSystem, who: usize) {
        let Some(Opened { handle, inode, .. }) = self.open[who].take() else { return };
        self.check("close", told(&fs.flush(handle).await), Ok(()));
        self.check("release", told(&fs.release(handle).await), Ok(()));
        // What one mount has closed, the other one sees.
        if self.nodes[&inode].nlink > 0 {
            let other = self.mounts[1 - who].clone();
            let handle = other.open(inode, OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
            let seen = other.read(handle, 0, 1 << 20).await.unwrap().concat();
            assert!(seen == self.nodes[&inode].data, "seed {}, step {}: the other mount", self.seed, self.step);
            other.release(handle).await.unwrap();
        }
    }

    async fn end(mut self) {
        self.cluster.state().faults = Faults::default();
        for who in 0..2 {
            let fs = self.mounts[who].clone();
            self.close(&fs, who).await;
        }
        for fs in &self.mounts {
            fs.shutdown().await.unwrap();
            assert_eq!(fs.held_bytes(), 0, "seed {}: everything held has come back", self.seed);
        }
        self.cluster.state().table.check().unwrap();
    }
}

/// Faults that a request meets, by seed: some runs have none, some many.
fn faults(random: &mut Random) -> Faults {
    let mut chance = |most: u64| if random.chance(40) { 0 } else { random.below(most) };
    Faults {
        lost: chance(8),
        unanswered: chance(8),
        leader_changes: chance(6),
        puts_fail: chance(15),
        puts_late: chance(8),
        // One of three members may be read around: more at once is beyond what the code mode tolerates.
        reads_fail: chance(4),
        damaged: chance(4),
    }
}

fn run(seed: u64) {
    in_virtual_time(async {
        let mut run = Run::new(seed).await;
        run.cluster.state().faults = faults(&mut Random::new(seed ^ 0xfa17));
        for step in 0..OPERATIONS {
            run.step = step;
            run.step().await;
            for fs in &run.mounts {
                let most = fs.most_held_bytes();
                assert!(most <= run.memory_bytes as u64, "seed {seed}, step {step}: {most} bytes were held");
            }
        }
        run.end().await;
    });
}

/// HOLDFAST_MODEL_SEEDS is a number of runs, or FIRST..END; a failure names its seed.
#[test]
fn two_mounts_agree_with_a_plain_model_whatever_fails() {
    let wanted = std::env::var("HOLDFAST_MODEL_SEEDS").unwrap_or_else(|_| "200".to_owned());
    let (first, end) = match wanted.split_once("..") {
        Some((first, end)) => (first.parse().unwrap(), end.parse().unwrap()),
        None => (0, wanted.parse().unwrap()),
    };
    (first..end).for_each(run);
}

/// A refusal that the adapter must not take for success.
#[test]
fn errors_keep_their_errno() {
    assert_eq!(Error::Refused { code: Code::Quota, detail: String::new() }.errno(), libc::EDQUOT);
}
