//! Care for the space of a node's disks (R29): room for segments and a snapshot is kept from the start, what grows is refused
//! before it is used up, and what frees goes on.

use std::sync::Arc;

use crate::log::{Log, LogFailed};
use crate::reserve::Reserve;
use crate::turn::NodeCore;

/// Space in segments below which what grows is refused: the log goes on while it makes itself shorter.
const FREE_SEGMENTS_MIN: u64 = 2;
/// And the space at which it is taken again, so that one deleted file does not open and shut the door.
const FREE_SEGMENTS_AGAIN: u64 = 3;

/// Space of a node's disks, as of the last tick.
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
        let (Ok(log_space), Ok(snapshot_space)) = (log.space(), self.reserve.space()) else { return Ok(()) };
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
}
