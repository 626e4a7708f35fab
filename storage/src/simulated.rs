//! A disk in memory, a tree of directories on one file system, that does everything a disk and a file system may do to a
//! program: see [`Faults`] for what goes wrong while it runs and [`SimulatedDisk::lose_power`] for what a crash takes.
//!
//! It is deterministic: everything follows from its seed and the order of calls. It takes no time; how long operations
//! would have taken is added up for whoever asks ([`SimulatedDisk::take_elapsed_ns`]).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_common::Random;
use parking_lot::Mutex;

use crate::{Directory, DiskFile, FileSystemSpace};
use faults::Trouble;
use file::FileNode;
use handle::SimulatedDirectory;
use names::Names;

pub use faults::{Counts, Fault, Faults};

mod faults;
mod file;
mod handle;
mod names;
#[cfg(test)]
mod tests;

/// Inode of the directory at the top.
const ROOT: u64 = 1;
/// Size of the file system unless a test sets another.
const CAPACITY_BYTES: u64 = 1 << 40;

#[derive(Clone)]
enum Node {
    File(FileNode),
    Directory(Names),
}

/// The machine around the disk; `life` counts its starts, and handles of an earlier life are dead.
struct Machine {
    nodes: BTreeMap<u64, Node>,
    next_inode: u64,
    life: u64,
    operations: u64,
    dies_at: Option<u64>,
    last: &'static str,
    trouble: Trouble,
    capacity_bytes: u64,
    allocated_bytes: u64,
    descriptors_max: usize,
    open_count: usize,
    elapsed_ns: u64,
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Machine>>);

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self::new(0)
    }
}

/// The error of everything that is asked of a dead machine.
fn dead() -> io::Error {
    io::Error::other("the machine has died")
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Directory(Names::default()))]),
            next_inode: ROOT + 1,
            life: 1,
            operations: 0,
            dies_at: None,
            last: "",
            trouble: Trouble::new(seed),
            capacity_bytes: CAPACITY_BYTES,
            allocated_bytes: 0,
            descriptors_max: usize::MAX,
            open_count: 0,
            elapsed_ns: 0,
        }
    }

    /// Whether the machine and the handle's life go on.
    fn alive(&self, life: u64) -> io::Result<()> {
        let died = self.dies_at.is_some_and(|at| self.operations > at);
        if died || life != self.life { Err(dead()) } else { Ok(()) }
    }

    /// Counts an operation that changes or syncs something. Ok(false) if the machine dies in it: what it did to the page cache
    /// is done, and whoever asked never hears.
    fn step(&mut self, life: u64, what: &'static str) -> io::Result<bool> {
        self.alive(life)?;
        self.operations += 1;
        self.last = what;
        self.elapsed_ns += self.trouble.duration_ns();
        Ok(self.alive(life).is_ok())
    }

    fn names(&mut self, directory: u64) -> io::Result<&mut Names> {
        match self.nodes.get_mut(&directory) {
            Some(Node::Directory(names)) => Ok(names),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file(&mut self, inode: u64) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&inode) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn add(&mut self, node: Node) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.nodes.insert(inode, node);
        inode
    }

    /// Finds the inode that a path from the top leads to.
    fn find(&mut self, path: &str) -> io::Result<u64> {
        path.split('/').try_fold(ROOT, |at, name| self.names(at)?.get(name).ok_or(io::ErrorKind::NotFound.into()))
    }

    fn find_file(&mut self, path: &str) -> &mut FileNode {
        let found = self.find(path).and_then(|inode| self.file(inode).map(drop).map(|()| inode));
        let inode = found.unwrap_or_else(|error| panic!("{path}: {error}"));
        self.file(inode).expect("just found")
    }

    /// Frees a file that has no name any more, when nobody has it open.
    fn forget(&mut self, inode: u64) {
        if let Some(Node::File(file)) = self.nodes.get_mut(&inode)
            && file.is_unlinked
            && file.handles == 0
        {
            self.allocated_bytes -= file.allocated_bytes();
            self.nodes.remove(&inode);
        }
    }

    /// The machine starts again: no handle lives, no fault is planned, and what no name leads to is gone.
    fn restart(&mut self) {
        self.life += 1;
        self.dies_at = None;
        self.open_count = 0;
        self.trouble.forget_planned();
        self.trouble.counts.crashes += 1;
        let mut reached = BTreeMap::new();
        let mut waiting = vec![ROOT];
        while let Some(inode) = waiting.pop() {
            let Some(mut node) = self.nodes.remove(&inode) else { continue };
            match &mut node {
                Node::Directory(names) => waiting.extend(names.inodes()),
                Node::File(file) => file.handles = 0,
            }
            reached.insert(inode, node);
        }
        self.nodes = reached;
        let files = self.nodes.values().filter_map(|node| match node {
            Node::File(file) => Some(file.allocated_bytes()),
            Node::Directory(_) => None,
        });
        self.allocated_bytes = files.sum();
    }

    fn lose(&mut self, mut random: Option<&mut Random>) {
        let counts = &mut self.trouble.counts;
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => file.lose(random.as_deref_mut(), counts),
                Node::Directory(names) => names.lose(random.as_deref_mut(), counts),
            }
        }
        self.restart();
    }
}

impl SimulatedDisk {
    /// An empty disk. The seed decides which faults happen, once [`SimulatedDisk::set_faults`] allows some.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Machine::new(seed))))
    }

    /// The directory at the top, for the machine's present life.
    #[must_use]
    pub fn root(&self) -> Arc<dyn Directory> {
        Arc::new(self.at_root())
    }

    fn at_root(&self) -> SimulatedDirectory {
        SimulatedDirectory { disk: self.clone(), inode: ROOT, life: self.0.lock().life, path: PathBuf::new() }
    }

    /// Lets `operations` more operations that change or sync something succeed. The machine dies in the one after.
    pub fn die_after(&self, operations: u64) {
        let mut machine = self.0.lock();
        machine.dies_at = Some(machine.operations + operations);
    }

    /// Whether the machine has died and was not started again.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let machine = self.0.lock();
        machine.alive(machine.life).is_err()
    }

    /// Operations so far that changed or synced something.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Name of the last operation.
    #[must_use]
    pub fn last_operation(&self) -> &'static str {
        self.0.lock().last
    }

    /// Sets the faults that happen by chance from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().trouble.faults = faults;
    }

    /// Lets the next operation of the fault's kind fail.
    pub fn fail_next(&self, fault: Fault) {
        self.0.lock().trouble.plan(fault, 1);
    }

    /// Lets all operations of the fault's kind fail until the machine is started again or [`SimulatedDisk::fail_no_more`].
    pub fn fail_all(&self, fault: Fault) {
        self.0.lock().trouble.plan(fault, u64::MAX);
    }

    /// Takes back all planned faults.
    pub fn fail_no_more(&self) {
        self.0.lock().trouble.forget_planned();
    }

    /// Sets the size of the file system: writes that need more blocks say ENOSPC.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity_bytes = bytes;
    }

    /// Space that its files take at present.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.0.lock().allocated_bytes
    }

    /// Sets how many files may be open at once: more say EMFILE.
    pub fn set_descriptors(&self, max_count: usize) {
        self.0.lock().descriptors_max = max_count;
    }

    /// Time that the operations since the last call would have taken, in nanoseconds.
    #[must_use]
    pub fn take_elapsed_ns(&self) -> u64 {
        std::mem::take(&mut self.0.lock().elapsed_ns)
    }

    /// Counts so far, for the coverage of a simulation.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.lock().trouble.counts
    }

    /// The machine comes back after a loss of power. Every sector and length is in any state that it went through since its
    /// file's last sync, independently of all others; the changes of names since a directory's last sync are there up to one of
    /// them, or each by itself by chance. Phantom and misdirected writes come to light.
    pub fn lose_power(&self, random: &mut Random) {
        self.0.lock().lose(Some(random));
    }

    /// The machine comes back after a loss of power that took everything that was not synced.
    pub fn lose_unsynced(&self) {
        self.0.lock().lose(None);
    }

    /// The process comes back after a kill: the page cache is still there, and no more durable than before.
    pub fn lose_process(&self) {
        self.0.lock().restart();
    }

    /// Empties the page cache of what is clean: reads see what the disk holds.
    pub fn drop_caches(&self) {
        for node in self.0.lock().nodes.values_mut() {
            if let Node::File(file) = node {
                file.drop_cache();
            }
        }
    }

    /// An independent copy of everything, without planned faults, in a life of its own.
    #[must_use]
    pub fn fork(&self) -> Self {
        let machine = self.0.lock();
        let mut copy = Machine::new(0);
        copy.trouble = machine.trouble.clone();
        copy.nodes = machine.nodes.clone();
        (copy.next_inode, copy.life) = (machine.next_inode, machine.life);
        (copy.capacity_bytes, copy.descriptors_max) = (machine.capacity_bytes, machine.descriptors_max);
        copy.restart();
        Self(Arc::new(Mutex::new(copy)))
    }

    /// A file's bytes as a reader sees them now.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        self.0.lock().find_file(path).all_bytes()
    }

    /// Replaces a file's bytes, durably: damage, or a crash image of a test's own.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn damage(&self, path: &str, bytes: &[u8]) {
        self.0.lock().find_file(path).damage(bytes);
    }

    /// Flips a bit of what the disk holds of a file.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip(&self, path: &str, offset: u64) {
        self.0.lock().find_file(path).flip(offset, 0x10);
    }

    /// Makes the blocks of a range unreadable until they are written again: reads of them say EIO.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn make_unreadable(&self, path: &str, offset: u64, length_bytes: u64) {
        self.0.lock().find_file(path).make_unreadable(offset, length_bytes);
    }

    /// Removes a file or directory, durably.
    ///
    /// # Panics
    /// If the directory it is in is not there.
    pub fn lose_file(&self, path: &str) {
        let mut machine = self.0.lock();
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { Ok(ROOT) } else { machine.find(parent) };
        let names = parent.and_then(|inode| machine.names(inode));
        names.unwrap_or_else(|error| panic!("{path}: {error}")).lose_name(name);
    }

    /// Bytes of sectors that hold something other than zeros.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn stored_bytes(&self, path: &str) -> u64 {
        self.0.lock().find_file(path).stored_bytes()
    }
}

/// The directory at the top, in whatever life the machine is.
impl Directory for SimulatedDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.at_root().list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.at_root().create(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.at_root().open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.at_root().rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.at_root().remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.at_root().sync_names()
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        self.at_root().make_directory(name)
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.at_root().directory(name)
    }

    fn space(&self) -> io::Result<FileSystemSpace> {
        self.at_root().space()
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        self.at_root().identity()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at_root().path(name)
    }
}
