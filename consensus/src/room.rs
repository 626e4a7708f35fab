//! What a node does about the space of its disks: room for segments and a snapshot is kept from the start, what grows is refused
//! before it is used up, and what frees goes on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use holdfast_storage::{Directory, RealDirectory, is_no_space};
use parking_lot::Mutex;

use crate::log::{Log, LogFailed};
use crate::node::SNAPSHOT_DIRECTORY;
use crate::turn::NodeCore;

/// Name of the file that keeps room for a snapshot.
pub(crate) const RESERVE: &str = "reserve";

/// Space in segments below which what grows is refused: the log goes on while it makes itself shorter.
const FREE_SEGMENTS_MIN: u64 = 2;
/// And the space at which it is taken again, so that one deleted file does not open and shut the door.
const FREE_SEGMENTS_AGAIN: u64 = 3;

/// The space of a node's disks, as of the last tick.
pub(crate) struct Room {
    reserve: Arc<Reserve>,
    segment_bytes: u64,
    is_tight: bool,
}

impl Room {
    pub(crate) fn new(reserve: Arc<Reserve>, segment_bytes: u32) -> Self {
        Self { reserve, segment_bytes: u64::from(segment_bytes), is_tight: false }
    }

    /// Once a tick: makes spares and the reserve whole again if there is room, and lets the core refuse what grows if there is
    /// none.
    pub(crate) fn tend<P, R>(&mut self, core: &mut NodeCore<P, R>, log: &mut Log) -> Result<(), LogFailed> {
        // A disk that does not say is taken for what it was.
        let (Ok(log_space), Ok(snapshot_space)) = (log.space(), self.reserve.disk.space()) else { return Ok(()) };
        let mut available_bytes = log_space.available_bytes.min(snapshot_space.available_bytes);
        let missing_bytes = log.missing_bytes();
        if missing_bytes > 0 && available_bytes >= missing_bytes {
            log.fill_spares()?;
            available_bytes -= missing_bytes;
        }
        let wanted_bytes = reserve_bytes(core.snapshot_bytes_max(), self.segment_bytes);
        self.reserve.fill(wanted_bytes, available_bytes);
        let missing_bytes = log.missing_bytes() + self.reserve.missing_bytes(wanted_bytes);
        self.look(available_bytes, missing_bytes);
        core.set_tight(self.is_tight);
        Ok(())
    }

    fn look(&mut self, available_bytes: u64, missing_bytes: u64) {
        let segments = if self.is_tight { FREE_SEGMENTS_AGAIN } else { FREE_SEGMENTS_MIN };
        let is_tight = available_bytes < segments * self.segment_bytes + missing_bytes;
        if is_tight != self.is_tight {
            match is_tight {
                true => {
                    tracing::error!(available_bytes, "the disk of the log is nearly full: only what frees is taken")
                }
                false => tracing::info!(available_bytes, "the disk of the log has room again"),
            }
            self.is_tight = is_tight;
        }
    }
}

/// Room for a snapshot of this length, and for what its state machine adds to its commands; in steps, because it grows with the
/// log.
fn reserve_bytes(snapshot_bytes: u64, segment_bytes: u64) -> u64 {
    let with_margin = snapshot_bytes + snapshot_bytes / 4;
    (with_margin / segment_bytes + 1) * segment_bytes
}

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
    /// The one of a directory of snapshots.
    pub(crate) fn open(disk: Arc<dyn Directory>) -> io::Result<Self> {
        let held_bytes = match disk.open(RESERVE) {
            Ok(file) => file.length_bytes()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { disk, state: Mutex::new(State { held_bytes, writers: 0 }) })
    }

    fn missing_bytes(&self, wanted_bytes: u64) -> u64 {
        wanted_bytes.saturating_sub(self.state.lock().held_bytes)
    }

    /// Takes what is missing, if that much is there.
    fn fill(&self, wanted_bytes: u64, available_bytes: u64) {
        let mut state = self.state.lock();
        let missing_bytes = wanted_bytes.saturating_sub(state.held_bytes);
        if state.writers > 0 || missing_bytes == 0 || available_bytes < missing_bytes {
            return;
        }
        match self.grow(state.held_bytes, wanted_bytes) {
            Ok(()) => state.held_bytes = wanted_bytes,
            Err(error) if is_no_space(&error) => {}
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

    const SEGMENT_BYTES: u64 = 4096;

    fn room() -> Room {
        let reserve = Reserve::open(SimulatedDisk::default().root()).unwrap();
        Room::new(Arc::new(reserve), 4096)
    }

    #[test]
    fn what_is_missing_counts_as_used_and_the_door_opens_later_than_it_shuts() {
        let mut room = room();
        let mut tight = |available: u64, missing: u64| {
            room.look(available * SEGMENT_BYTES, missing * SEGMENT_BYTES);
            room.is_tight
        };
        assert!(!tight(2, 0));
        assert!(tight(2, 1));
        assert!(tight(2, 0));
        assert!(!tight(3, 0));
        assert!(tight(1, 0));
    }

    #[test]
    fn the_reserve_grows_in_steps_and_covers_the_snapshot() {
        for bytes in [0, 1, 3000, 4096, 100_000] {
            let reserve = reserve_bytes(bytes, SEGMENT_BYTES);
            assert!(reserve > bytes + bytes / 4 && reserve.is_multiple_of(SEGMENT_BYTES));
        }
    }

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
