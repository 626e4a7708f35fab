//! A disk in memory for tests: it loses what was not synced, sector by sector as a seed decides, fails any operation on
//! request, and can be cut off at any operation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::io::{BLOCK_BYTES, Directory, DiskFile, FileSystemSpace, SECTOR_BYTES};
use crate::units::to_usize;

type Sector = [u8; 512];
const _: () = assert!(SECTOR_BYTES == 512);

/// A small generator for tests (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Default)]
struct Inode {
    now: BTreeMap<u64, Box<Sector>>,
    durable: BTreeMap<u64, Box<Sector>>,
    dirty: BTreeSet<u64>,
    /// Blocks given back and not synced: a file system frees them whole.
    holes: BTreeSet<u64>,
    length: u64,
    durable_length: u64,
}

/// What fails next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Sync,
    Write(i32),
    Read,
}

#[derive(Default)]
struct Machine {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    operations: u64,
    cut_at: Option<u64>,
    cut: bool,
    fault: Option<Fault>,
    log: Vec<&'static str>,
}

/// The simulated disk; clones share it.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Machine>>);

/// How much of what was not synced survives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survival {
    /// A killed process: the page cache lives.
    All,
    /// Power lost: nothing that was not synced.
    Nothing,
    /// Power lost: each sector by chance.
    Some,
}

fn cut_off() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Machine {
    /// Counts an operation. True if the machine is cut off in it.
    fn step(&mut self, what: &'static str) -> io::Result<bool> {
        if self.cut {
            return Err(cut_off());
        }
        self.operations += 1;
        self.log.push(what);
        self.cut = self.cut_at.is_some_and(|at| self.operations >= at);
        Ok(self.cut)
    }

    fn inode(&mut self, id: u64) -> &mut Inode {
        self.inodes.get_mut(&id).expect("open files have an inode")
    }
}

impl SimDisk {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    pub(crate) fn log(&self) -> Vec<&'static str> {
        self.0.lock().log.clone()
    }

    /// Cuts the machine off in the `count`-th operation from now.
    pub(crate) fn cut_after(&self, count: u64) {
        let mut machine = self.0.lock();
        machine.cut_at = Some(machine.operations + count);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.0.lock().cut
    }

    pub(crate) fn fail_next(&self, fault: Fault) {
        self.0.lock().fault = Some(fault);
    }

    pub(crate) fn directory(&self) -> Arc<dyn Directory> {
        Arc::new(self.clone())
    }

    /// The disk as a machine finds it that starts after this one stopped.
    pub(crate) fn after_crash(&self, survival: Survival, random: &mut Random) -> Self {
        let machine = self.0.lock();
        if matches!(survival, Survival::All) {
            // The kernel lives on, and what was not synced still is not.
            let next = Machine {
                names: machine.names.clone(),
                durable_names: machine.durable_names.clone(),
                inodes: machine.inodes.clone(),
                next_inode: machine.next_inode,
                ..Machine::default()
            };
            return Self(Arc::new(Mutex::new(next)));
        }
        let mut keep = || match survival {
            Survival::All => unreachable!("returned above"),
            Survival::Nothing => false,
            Survival::Some => random.chance(50),
        };
        let mut next = Machine { next_inode: machine.next_inode, ..Machine::default() };
        let all: BTreeSet<&String> = machine.names.keys().chain(machine.durable_names.keys()).collect();
        for name in all {
            let (now, durable) = (machine.names.get(name), machine.durable_names.get(name));
            let survives = if now == durable || keep() { now } else { durable };
            if let Some(inode) = survives {
                next.names.insert(name.clone(), *inode);
            }
        }
        next.durable_names = next.names.clone();
        for id in next.names.values() {
            let old = &machine.inodes[id];
            let mut sectors = old.durable.clone();
            for sector in &old.dirty {
                if keep() || old.holes.contains(&(sector / 8)) {
                    match old.now.get(sector) {
                        Some(bytes) => sectors.insert(*sector, bytes.clone()),
                        None => sectors.remove(sector),
                    };
                }
            }
            for block in &old.holes {
                if keep() {
                    (block * 8..block * 8 + 8).for_each(|sector| drop(sectors.remove(&sector)));
                }
            }
            let length = if keep() { old.length } else { old.durable_length };
            sectors.retain(|sector, _| sector * SECTOR_BYTES < length);
            let inode = Inode {
                now: sectors.clone(),
                durable: sectors,
                dirty: BTreeSet::new(),
                holes: BTreeSet::new(),
                length,
                durable_length: length,
            };
            next.inodes.insert(*id, inode);
        }
        Self(Arc::new(Mutex::new(next)))
    }

    /// Flips a bit of what the disk holds of a file.
    pub(crate) fn flip(&self, name: &str, offset: u64) {
        let mut machine = self.0.lock();
        let id = machine.names[name];
        let at = to_usize(offset % SECTOR_BYTES);
        let inode = machine.inode(id);
        let sector = inode.now.entry(offset / SECTOR_BYTES).or_insert_with(|| Box::new([0; 512]));
        sector[at] ^= 0x10;
        let copy = sector.clone();
        inode.durable.insert(offset / SECTOR_BYTES, copy);
    }

    /// Removes a file, durably.
    pub(crate) fn lose(&self, name: &str) {
        let mut machine = self.0.lock();
        machine.names.remove(name);
        machine.durable_names.remove(name);
    }

    /// Bytes that are not zero, by sector: what the disk really stores.
    pub(crate) fn stored_bytes(&self, name: &str) -> u64 {
        let mut machine = self.0.lock();
        let id = machine.names[name];
        machine.inode(id).now.values().filter(|s| s.iter().any(|b| *b != 0)).count() as u64 * SECTOR_BYTES
    }
}

impl Directory for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut machine = self.0.lock();
        let cut = machine.step("create")?;
        if machine.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = machine.next_inode;
        machine.next_inode += 1;
        machine.inodes.insert(id, Inode::default());
        machine.names.insert(name.to_owned(), id);
        if cut { Err(cut_off()) } else { Ok(Arc::new(SimFile { disk: self.clone(), id })) }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let machine = self.0.lock();
        let id = machine.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = self.0.lock();
        let cut = machine.step("remove")?;
        machine.names.remove(name);
        if cut { Err(cut_off()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut machine = self.0.lock();
        if machine.step("sync directory")? {
            return Err(cut_off());
        }
        machine.durable_names = machine.names.clone();
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open(name)?;
        let mut bytes = vec![0; to_usize(file.length_bytes()?)];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut machine = self.0.lock();
        // Cut off in the middle, the old or the new content stands; which, follows the operation's number.
        let cut = machine.step("replace")?;
        if cut && machine.operations.is_multiple_of(2) {
            return Err(cut_off());
        }
        let id = machine.next_inode;
        machine.next_inode += 1;
        let mut inode = Inode { length: bytes.len() as u64, durable_length: bytes.len() as u64, ..Inode::default() };
        for (piece, number) in bytes.chunks(512).zip(0..) {
            let mut sector = Box::new([0; 512]);
            sector[..piece.len()].copy_from_slice(piece);
            inode.now.insert(number, sector);
        }
        inode.durable = inode.now.clone();
        machine.inodes.insert(id, inode);
        machine.names.insert(name.to_owned(), id);
        machine.durable_names.insert(name.to_owned(), id);
        if cut { Err(cut_off()) } else { Ok(()) }
    }

    fn space(&self) -> io::Result<FileSystemSpace> {
        Ok(FileSystemSpace { total_bytes: 1 << 40, available_bytes: 1 << 39, file_system: 0xdead_0000 })
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
}

impl DiskFile for SimFile {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().inode(self.id).length)
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let cut = machine.step("set length")?;
        machine.inode(self.id).length = bytes;
        if cut { Err(cut_off()) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        if machine.cut {
            return Err(cut_off());
        }
        if machine.fault == Some(Fault::Read) {
            machine.fault = None;
            return Err(cut_off());
        }
        let inode = machine.inode(self.id);
        if offset + into.len() as u64 > inode.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let within = to_usize(at % SECTOR_BYTES);
            let count = rest.len().min(512 - within);
            let (piece, tail) = rest.split_at_mut(count);
            match inode.now.get(&(at / SECTOR_BYTES)) {
                Some(sector) => piece.copy_from_slice(&sector[within..within + count]),
                None => piece.fill(0),
            }
            at += count as u64;
            rest = tail;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let cut = machine.step("write")?;
        let mut bytes = bytes;
        let mut failure = None;
        if let Some(Fault::Write(errno)) = machine.fault {
            machine.fault = None;
            bytes = &bytes[..bytes.len() / 2 / 512 * 512];
            failure = Some(io::Error::from_raw_os_error(errno));
        }
        assert!(offset.is_multiple_of(512) && bytes.len().is_multiple_of(512), "the store writes whole sectors");
        let inode = machine.inode(self.id);
        for (piece, number) in bytes.chunks(512).zip(offset / 512..) {
            inode.now.insert(number, Box::new(piece.try_into().unwrap()));
            inode.dirty.insert(number);
        }
        inode.length = inode.length.max(offset + bytes.len() as u64);
        if cut { Err(cut_off()) } else { failure.map_or(Ok(()), Err) }
    }

    fn write_direct(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(BLOCK_BYTES) && (bytes.len() as u64).is_multiple_of(BLOCK_BYTES));
        assert!(bytes.as_ptr().addr().is_multiple_of(4096));
        self.write_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        if machine.step("sync")? {
            return Err(cut_off());
        }
        if machine.fault == Some(Fault::Sync) {
            machine.fault = None;
            return Err(cut_off());
        }
        let inode = machine.inode(self.id);
        for sector in std::mem::take(&mut inode.dirty) {
            match inode.now.get(&sector) {
                Some(bytes) => inode.durable.insert(sector, bytes.clone()),
                None => inode.durable.remove(&sector),
            };
        }
        for block in std::mem::take(&mut inode.holes) {
            for sector in block * 8..block * 8 + 8 {
                if !inode.now.contains_key(&sector) {
                    inode.durable.remove(&sector);
                }
            }
        }
        inode.durable_length = inode.length;
        Ok(())
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let cut = machine.step("punch")?;
        let inode = machine.inode(self.id);
        let (first, end) = (offset / 512, (offset + length_bytes) / 512);
        let sectors: Vec<u64> = inode.now.range(first..end).map(|(number, _)| *number).collect();
        for sector in sectors {
            inode.now.remove(&sector);
            let whole = sector / 8 * 8 >= first && sector / 8 * 8 + 8 <= end;
            if whole {
                inode.dirty.remove(&sector);
                inode.holes.insert(sector / 8);
            } else {
                inode.dirty.insert(sector);
            }
        }
        if cut { Err(cut_off()) } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let mut machine = self.disk.0.lock();
        let next = machine.inode(self.id).now.range(offset / 512..).next().map(|(number, _)| number * 512);
        Ok(next.map(|next| next.max(offset)))
    }
}
