//! Room on the disk that is kept for a snapshot (R29), as a file: a full disk is emptied by a snapshot of less.

use std::io;
use std::path::Path;
use std::sync::Arc;

use holdfast_storage::{Directory, FileSystemSpace, RealDirectory, is_no_space, is_out_of_descriptors};
use parking_lot::Mutex;

use crate::config::SNAPSHOT_DIRECTORY;

/// Name of the file that keeps room for a snapshot.
pub(crate) const RESERVE: &str = "reserve";

/// A file that takes the room of a snapshot until one needs it.
pub(crate) struct Reserve {
    disk: Arc<dyn Directory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held_bytes: u64,
    /// Snapshots being written: what they were given is not taken back before they are done.
    writers: usize,
}

impl Reserve {
    /// Opens the one of a directory of snapshots.
    pub(crate) fn open(disk: Arc<dyn Directory>) -> io::Result<Self> {
        let held_bytes = match disk.open(RESERVE) {
            Ok(file) => file.length_bytes()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { disk, state: Mutex::new(State { held_bytes, writers: 0 }) })
    }

    pub(crate) fn space(&self) -> io::Result<FileSystemSpace> {
        self.disk.space()
    }

    pub(crate) fn missing_bytes(&self, wanted_bytes: u64) -> u64 {
        wanted_bytes.saturating_sub(self.state.lock().held_bytes)
    }

    /// Takes what is missing, if that much is there.
    pub(crate) fn fill(&self, wanted_bytes: u64, available_bytes: u64) {
        let mut state = self.state.lock();
        let missing_bytes = wanted_bytes.saturating_sub(state.held_bytes);
        if state.writers > 0 || missing_bytes == 0 || available_bytes < missing_bytes {
            return;
        }
        match self.grow(state.held_bytes, wanted_bytes) {
            Ok(()) => state.held_bytes = wanted_bytes,
            // Tried again with the next tick.
            Err(error) if is_no_space(&error) || is_out_of_descriptors(&error) => {}
            Err(error) => tracing::warn!(%error, "room for the next snapshot cannot be kept"),
        }
    }

    fn grow(&self, held_bytes: u64, wanted_bytes: u64) -> io::Result<()> {
        let file = if held_bytes == 0 { self.disk.create_empty(RESERVE)? } else { self.disk.open(RESERVE)? };
        // What it got of too little is given back.
        file.allocate(wanted_bytes).inspect_err(|_| drop(file.set_length(held_bytes)))
    }

    /// Writes something; once more with the reserve given back if there was no space. `remove` removes what there is of it.
    pub(crate) fn write<T>(&self, write: impl Fn() -> io::Result<T>, remove: impl Fn()) -> io::Result<T> {
        self.state.lock().writers += 1;
        let written = match write() {
            Err(error) if is_no_space(&error) => {
                remove();
                if self.give_back() { write() } else { Err(error) }
            }
            other => other,
        };
        self.state.lock().writers -= 1;
        written
    }

    /// Gives the room to whoever needs it. False if there is none.
    pub(crate) fn give_back(&self) -> bool {
        let mut state = self.state.lock();
        let held_bytes = std::mem::take(&mut state.held_bytes);
        // Names are synced because the space is free only then.
        held_bytes > 0 && self.disk.remove(RESERVE).and_then(|()| self.disk.sync_names()).is_ok()
    }
}

/// Removes the room that a stopped node keeps below `directory` for a snapshot, for what a start has to write on a full disk.
/// False if there is none. It is kept again once there is room.
#[must_use]
pub fn release_reserve(directory: &Path) -> bool {
    let snapshots = RealDirectory::new(&directory.join(SNAPSHOT_DIRECTORY));
    snapshots.remove(RESERVE).and_then(|()| snapshots.sync_names()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_storage::SimulatedDisk;

    #[test]
    fn the_reserve_is_given_to_who_needs_it_and_not_taken_back_before_he_is_done() {
        let disk = SimulatedDisk::default();
        disk.set_capacity(8 * 4096);
        let reserve = Reserve::open(disk.root()).unwrap();
        reserve.fill(6 * 4096, 8 * 4096);
        assert_eq!(Reserve::open(disk.root()).unwrap().missing_bytes(6 * 4096), 0, "a start finds it");
        let write = || disk.create_empty("big")?.write_at(0, &[1; 4 * 4096]);
        let remove = || {
            reserve.fill(6 * 4096, 8 * 4096);
            disk.remove("big").unwrap();
        };
        reserve.write(write, remove).unwrap();
        assert_eq!(reserve.missing_bytes(6 * 4096), 6 * 4096);
        reserve.fill(6 * 4096, 8 * 4096);
        assert_eq!(reserve.missing_bytes(6 * 4096), 6 * 4096, "there is not that much");
        disk.remove("big").unwrap();
        disk.sync_names().unwrap();
        reserve.fill(6 * 4096, 8 * 4096);
        assert_eq!(reserve.missing_bytes(6 * 4096), 0);
    }
}
