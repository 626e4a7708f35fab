//! A disk that forgets: on a crash every sector written since its file's last sync may hold old or new bytes, and the
//! names changed since the last sync of names are cut off at a random point.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile};
use crate::random::Random;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Default, Clone)]
struct Inode {
    durable: Vec<u8>,
    now: Vec<u8>,
    writes: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum NameChange {
    Bind(String, u64),
    Unbind(String),
}

#[derive(Default)]
struct Inner {
    inodes: BTreeMap<u64, Inode>,
    durable_names: BTreeMap<String, u64>,
    names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    next_inode: u64,
    operations: u64,
    dies_at: Option<u64>,
    sync_fails: bool,
}

/// The disk; clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Inner>>);

impl Inner {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.dies_at {
            Some(at) if self.operations > at => Err(io::Error::other("the machine has died")),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.name_changes.push(change);
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Bind(name, inode) => {
            names.retain(|_, i| i != inode);
            names.insert(name.clone(), *inode);
        }
        NameChange::Unbind(name) => {
            names.remove(name);
        }
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

impl SimulatedDisk {
    /// Lets every operation after the next `operations` fail, as if the machine had died there.
    pub(crate) fn die_after(&self, operations: u64) {
        let mut inner = self.0.lock();
        inner.dies_at = Some(inner.operations + operations);
    }

    /// Lets syncs of files fail from now on.
    pub(crate) fn fail_syncs(&self) {
        self.0.lock().sync_fails = true;
    }

    /// Operations done so far.
    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// The machine comes back after a loss of power: unsynced sectors hold old or new bytes.
    pub(crate) fn lose_power(&self, random: &mut Random) {
        let mut inner = self.0.lock();
        inner.dies_at = None;
        inner.sync_fails = false;
        let kept = random.index(inner.name_changes.len() + 1);
        let mut names = inner.durable_names.clone();
        inner.name_changes[..kept].iter().for_each(|change| apply(&mut names, change));
        inner.names.clone_from(&names);
        inner.durable_names = names;
        inner.name_changes.clear();
        for inode in inner.inodes.values_mut() {
            let lost_share = random.below(4);
            for (offset, data) in std::mem::take(&mut inode.writes) {
                let mut at = 0;
                while at < data.len() {
                    let end = (SECTOR_BYTES - (offset + at) % SECTOR_BYTES + at).min(data.len());
                    if random.below(3) >= lost_share {
                        write(&mut inode.durable, offset + at, &data[at..end]);
                    }
                    at = end;
                }
            }
            inode.now.clone_from(&inode.durable);
        }
    }

    /// The process comes back after a kill: the page cache is still there, but no more durable than before.
    pub(crate) fn lose_process(&self) {
        let mut inner = self.0.lock();
        inner.dies_at = None;
        inner.sync_fails = false;
    }

    /// A file's bytes as a reader sees them now.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let inner = self.0.lock();
        inner.inodes[&inner.names[name]].now.clone()
    }

    /// Replaces a file's bytes, durably: damage, or a crash image of a test's own.
    pub(crate) fn damage(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.0.lock();
        let inode = inner.names[name];
        inner.inodes.insert(inode, Inode { durable: bytes.clone(), now: bytes, writes: Vec::new() });
    }

    /// An independent copy of everything.
    pub(crate) fn fork(&self) -> Self {
        let inner = self.0.lock();
        Self(Arc::new(Mutex::new(Inner {
            inodes: inner.inodes.clone(),
            durable_names: inner.durable_names.clone(),
            names: inner.names.clone(),
            name_changes: inner.name_changes.clone(),
            next_inode: inner.next_inode,
            ..Inner::default()
        })))
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.0.lock();
        inner.operate()?;
        inner.next_inode += 1;
        let inode = inner.next_inode;
        inner.inodes.insert(inode, Inode::default());
        inner.change(NameChange::Bind(name.to_owned(), inode));
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.0.lock();
        inner.operate()?;
        let inode = *inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.operate()?;
        let inode = *inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        inner.change(NameChange::Bind(to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.operate()?;
        inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        inner.change(NameChange::Unbind(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut inner = self.0.lock();
        inner.operate()?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.operate()?;
        inner.durable_names = inner.names.clone();
        inner.name_changes.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    inode: u64,
}

impl DiskFile for SimulatedFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let alive = inner.operate();
        let inode = inner.inodes.get_mut(&self.inode).expect("inodes are never forgotten");
        // The write during which the machine dies may reach the disk like any other unsynced one.
        let offset = position(offset);
        write(&mut inode.now, offset, bytes);
        inode.writes.push((offset, bytes.to_vec()));
        alive
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.disk.0.lock();
        inner.operate()?;
        let now = &inner.inodes[&self.inode].now;
        let from = position(offset).min(now.len());
        let n = buffer.len().min(now.len() - from);
        buffer[..n].copy_from_slice(&now[from..from + n]);
        Ok(n)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        inner.operate()?;
        if inner.sync_fails {
            return Err(io::Error::other("sync failed"));
        }
        let inode = inner.inodes.get_mut(&self.inode).expect("inodes are never forgotten");
        for (offset, data) in std::mem::take(&mut inode.writes) {
            write(&mut inode.durable, offset, &data);
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut inner = self.disk.0.lock();
        inner.operate()?;
        Ok(inner.inodes[&self.inode].now.len() as u64)
    }
}
