//! Directories and files of the simulated disk as programs hold them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::faults::Fault;
use super::file::FileNode;
use super::names::Names;
use super::{Machine, Node, SimulatedDisk, dead};
use crate::{BLOCK_BYTES, Directory, DiskFile, FileSystemSpace, is_out_of_descriptors};

/// Device number of every simulated disk.
const FILE_SYSTEM: u64 = 0xdead_0000;

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Ok, unless the machine died in the operation.
fn unless_dead(survived: bool) -> io::Result<()> {
    if survived { Ok(()) } else { Err(dead()) }
}

#[derive(Clone)]
pub(super) struct SimulatedDirectory {
    pub(super) disk: SimulatedDisk,
    pub(super) inode: u64,
    pub(super) life: u64,
    pub(super) path: PathBuf,
}

impl SimulatedDirectory {
    fn opened(&self, machine: &mut Machine, inode: u64) -> io::Result<Arc<dyn DiskFile>> {
        machine.file(inode)?.handles += 1;
        machine.open_count += 1;
        Ok(Arc::new(SimulatedFile { disk: self.disk.clone(), inode, life: self.life }))
    }
}

/// Refuses to open one more file.
fn take_descriptor(machine: &mut Machine) -> io::Result<()> {
    let planned = machine.trouble.planned(|fault| matches!(fault, Fault::Open(_)));
    if let Some(Fault::Open(number)) = planned {
        return Err(errno(number));
    }
    let ppm = machine.trouble.faults.no_descriptor_ppm;
    if machine.open_count >= machine.descriptors_max || machine.trouble.rolls(ppm) {
        machine.trouble.counts.no_descriptor += 1;
        return Err(errno(libc::EMFILE));
    }
    Ok(())
}

impl Directory for SimulatedDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        Ok(machine.names(self.inode)?.list())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        if machine.names(self.inode)?.get(name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        take_descriptor(&mut machine)?;
        let survived = machine.step(self.life, "create")?;
        let inode = machine.add(Node::File(FileNode::default()));
        machine.names(self.inode)?.bind(name, inode);
        unless_dead(survived)?;
        self.opened(&mut machine, inode)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        let inode = machine.names(self.inode)?.get(name).ok_or(io::ErrorKind::NotFound)?;
        take_descriptor(&mut machine)?;
        self.opened(&mut machine, inode)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        let inode = machine.names(self.inode)?.get(from).ok_or(io::ErrorKind::NotFound)?;
        let survived = machine.step(self.life, "rename")?;
        if from != to {
            machine.names(self.inode)?.rename(from, to, inode);
        }
        unless_dead(survived)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        machine.names(self.inode)?.get(name).ok_or(io::ErrorKind::NotFound)?;
        let survived = machine.step(self.life, "remove")?;
        if let Some(Fault::Remove(number)) = machine.trouble.planned(|fault| matches!(fault, Fault::Remove(_))) {
            return Err(errno(number));
        }
        machine.names(self.inode)?.unbind(name);
        unless_dead(survived)
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        unless_dead(machine.step(self.life, "sync of names")?)?;
        if let Some(Fault::SyncNames(number)) = machine.trouble.planned(|fault| matches!(fault, Fault::SyncNames(_))) {
            return Err(errno(number));
        }
        let ppm = machine.trouble.faults.sync_names_error_ppm;
        if machine.trouble.rolls(ppm) {
            machine.trouble.counts.sync_errors += 1;
            return Err(errno(libc::EIO));
        }
        for inode in machine.names(self.inode)?.sync() {
            if let Ok(file) = machine.file(inode) {
                file.is_unlinked = true;
            }
            machine.forget(inode);
        }
        Ok(())
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        if machine.names(self.inode)?.get(name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let survived = machine.step(self.life, "make a directory")?;
        let inode = machine.add(Node::Directory(Names::default()));
        machine.names(self.inode)?.bind(name, inode);
        unless_dead(survived)
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        let inode = machine.names(self.inode)?.get(name).ok_or(io::ErrorKind::NotFound)?;
        if machine.names(inode).is_err() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Arc::new(Self { disk: self.disk.clone(), inode, life: self.life, path: self.path.join(name) }))
    }

    fn space(&self) -> io::Result<FileSystemSpace> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        if machine.trouble.planned(|fault| *fault == Fault::Space).is_some() {
            return Err(errno(libc::EIO));
        }
        // Half of what is free is nobody's, as on a disk with reserved blocks.
        let available_bytes = machine.capacity_bytes.saturating_sub(machine.allocated_bytes) / 2;
        Ok(FileSystemSpace { total_bytes: machine.capacity_bytes, available_bytes, file_system: FILE_SYSTEM })
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        let names = self.path.iter().map(|name| name.to_string_lossy());
        let found = names.into_iter().try_fold(super::ROOT, |at, name| machine.names(at)?.get(&name).ok_or(gone()));
        Ok((FILE_SYSTEM, found?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotFound.into()
}

pub(super) struct SimulatedFile {
    disk: SimulatedDisk,
    inode: u64,
    life: u64,
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut machine = self.disk.0.lock();
        if machine.life == self.life {
            machine.open_count -= 1;
            if let Ok(file) = machine.file(self.inode) {
                file.handles -= 1;
            }
            machine.forget(self.inode);
        }
    }
}

/// The error that a write of `bytes` meets, after the part of it that is written.
fn refuse_write(machine: &mut Machine, inode: u64, offset: u64, bytes: &[u8]) -> io::Result<Option<io::Error>> {
    let planned = machine.trouble.planned(|fault| matches!(fault, Fault::Write(_)));
    if let Some(Fault::Write(number)) = planned {
        return Ok(Some(errno(number)));
    }
    let faults = machine.trouble.faults;
    if machine.trouble.rolls(faults.write_error_ppm) {
        machine.trouble.counts.write_errors += 1;
        return Ok(Some(errno(libc::EIO)));
    }
    let missing_bytes = machine.file(inode)?.missing_blocks(offset..offset + bytes.len() as u64) * BLOCK_BYTES;
    let full = machine.allocated_bytes + missing_bytes > machine.capacity_bytes;
    if (missing_bytes > 0 && full) || machine.trouble.rolls(faults.no_space_ppm) {
        machine.trouble.counts.no_space += 1;
        return Ok(Some(errno(libc::ENOSPC)));
    }
    Ok(None)
}

impl SimulatedFile {
    fn write(&self, what: &'static str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let survived = machine.step(self.life, what)?;
        let refused = refuse_write(&mut machine, self.inode, offset, bytes)?;
        // A full disk takes nothing that needs a block; other failures come in the middle.
        let needs_block = machine.file(self.inode)?.missing_blocks(offset..offset + bytes.len() as u64) > 0;
        let full = needs_block && machine.allocated_bytes >= machine.capacity_bytes;
        let done = match &refused {
            None => bytes.len(),
            Some(error) if full || is_out_of_descriptors(error) => 0,
            Some(_) => bytes.len() / 2 / 512 * 512,
        };
        machine.allocate(self.inode, |file| file.write(offset, &bytes[..done]))?;
        unless_dead(survived)?;
        refused.map_or(Ok(()), Err)
    }
}

impl Machine {
    /// Changes a file and keeps the count of allocated blocks.
    fn allocate(&mut self, inode: u64, change: impl FnOnce(&mut FileNode)) -> io::Result<()> {
        let file = self.file(inode)?;
        let before = file.allocated_bytes();
        change(file);
        let after = file.allocated_bytes();
        self.allocated_bytes = self.allocated_bytes + after - before;
        Ok(())
    }
}

impl DiskFile for SimulatedFile {
    fn length_bytes(&self) -> io::Result<u64> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        Ok(machine.file(self.inode)?.length())
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let survived = machine.step(self.life, "set length")?;
        machine.allocate(self.inode, |file| file.set_length(bytes))?;
        unless_dead(survived)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let survived = machine.step(self.life, "allocate")?;
        let missing_bytes = machine.file(self.inode)?.missing_blocks(0..bytes) * BLOCK_BYTES;
        let ppm = machine.trouble.faults.no_space_ppm;
        if machine.allocated_bytes + missing_bytes > machine.capacity_bytes || machine.trouble.rolls(ppm) {
            machine.trouble.counts.no_space += 1;
            return Err(errno(libc::ENOSPC));
        }
        machine.allocate(self.inode, |file| file.allocate(bytes))?;
        unless_dead(survived)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        machine.elapsed_ns += machine.trouble.duration_ns();
        if let Some(Fault::Read(number)) = machine.trouble.planned(|fault| matches!(fault, Fault::Read(_))) {
            return Err(errno(number));
        }
        let faults = machine.trouble.faults;
        if !into.is_empty() && machine.trouble.rolls(faults.read_error_ppm) {
            machine.file(self.inode)?.make_unreadable(offset, 1);
        }
        if !into.is_empty() && machine.trouble.rolls(faults.bit_rot_ppm) {
            machine.trouble.counts.rotten_bits += 1;
            let (at, bit) = (machine.trouble.random.index(into.len()), machine.trouble.random.below(8));
            let at = offset + at as u64;
            if at < machine.file(self.inode)?.length() {
                machine.file(self.inode)?.flip(at, 1 << bit);
            }
        }
        let read = machine.file(self.inode)?.read(offset, into);
        read.ok_or_else(|| {
            machine.trouble.counts.read_errors += 1;
            errno(libc::EIO)
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write("write", offset, bytes)
    }

    fn write_direct(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let aligned = offset.is_multiple_of(BLOCK_BYTES)
            && (bytes.len() as u64).is_multiple_of(BLOCK_BYTES)
            && (bytes.as_ptr().addr() as u64).is_multiple_of(BLOCK_BYTES);
        assert!(aligned, "a direct write is aligned");
        self.write("direct write", offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        unless_dead(machine.step(self.life, "sync")?)?;
        let ppm = machine.trouble.faults.sync_error_ppm;
        if machine.trouble.planned(|fault| *fault == Fault::Sync).is_some() || machine.trouble.rolls(ppm) {
            machine.trouble.counts.sync_errors += 1;
            machine.file(self.inode)?.fail_sync();
            return Err(errno(libc::EIO));
        }
        let Machine { nodes, trouble, .. } = &mut *machine;
        if let Some(Node::File(file)) = nodes.get_mut(&self.inode) {
            file.sync(trouble);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        let mut machine = self.disk.0.lock();
        let survived = machine.step(self.life, "punch")?;
        if let Some(Fault::Punch(number)) = machine.trouble.planned(|fault| matches!(fault, Fault::Punch(_))) {
            return Err(errno(number));
        }
        machine.allocate(self.inode, |file| file.punch(offset, length_bytes))?;
        unless_dead(survived)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let mut machine = self.disk.0.lock();
        machine.alive(self.life)?;
        Ok(machine.file(self.inode)?.next_data(offset))
    }
}
