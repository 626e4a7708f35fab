//! Common parts of the processes with a log: directories, small logs, and syncs and jobs that take their time.

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::{NodeId, Random};
use holdfast_consensus::SteppedOptions;
use holdfast_storage::{Directory, SimulatedDisk};

use crate::role::{Timer, Wish};
use crate::sabotage::Sabotage;

/// A sync takes up to this, but once in a while much longer.
const SYNC_US_MAX: u64 = 3_000;
const SLOW_SYNC_US_MAX: u64 = 700_000;
const SLOW_SYNC_ONE_IN: u64 = 60;
/// A job of a background thread takes up to this.
const JOB_US_MAX: u64 = 300_000;
/// Number of the log that a process is formatted with; one that lost it gets others.
pub(crate) const FIRST_LOG: u64 = 1;

/// The directories of a process's log, by its number.
fn names_of(log: u64) -> [String; 2] {
    [format!("log-{log}"), format!("snapshots-{log}")]
}

/// Makes the directories of a log and its snapshots.
pub(crate) fn format_log(disk: &SimulatedDisk, log: u64) -> std::io::Result<()> {
    let root = disk.root();
    names_of(log).iter().try_for_each(|name| root.make_directory(name))?;
    root.sync_names()
}

/// Opens a directory of a process.
pub(crate) fn directory(disk: &SimulatedDisk, name: &str) -> Result<Arc<dyn Directory>, String> {
    disk.root().directory(name).map_err(|error| format!("{name}: {error}"))
}

/// The directory of the log, and that of snapshots.
pub(crate) fn log_directories(disk: &SimulatedDisk, log: u64) -> Result<[Arc<dyn Directory>; 2], String> {
    let [log, snapshots] = names_of(log);
    Ok([directory(disk, &log)?, directory(disk, &snapshots)?])
}

/// What a metanode's superblock says of a log: no other one is taken for it.
pub(crate) fn log_identity(node: NodeId, log: u64) -> [u8; 16] {
    let mut identity = [0; 16];
    identity[..8].copy_from_slice(&node.0.to_le_bytes());
    identity[8..].copy_from_slice(&log.to_le_bytes());
    identity
}

/// A small log, so that segments are recycled and snapshots shipped in a short run; in every other life snapshots are so
/// frequent that whoever was away for a moment gets one.
pub(crate) fn log_options(node: NodeId, seed: u64, tick: Duration, sabotage: Sabotage) -> SteppedOptions {
    let mut options = SteppedOptions { tick, sabotage: sabotage.consensus(), ..SteppedOptions::small(node, seed) };
    if seed.is_multiple_of(2) {
        (options.snapshot_log_bytes, options.tail_entries) = (6 << 10, 1);
    }
    options
}

/// Waits for a disk: the syncs of the log, and the jobs of background threads.
#[derive(Default)]
pub(crate) struct Waits {
    sync_armed: bool,
    sync_due: bool,
    job_armed: bool,
    job_due: bool,
}

impl Waits {
    /// Takes a timer in.
    pub(crate) fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Synced => (self.sync_armed, self.sync_due) = (false, true),
            Timer::Job => (self.job_armed, self.job_due) = (false, true),
            Timer::Tick | Timer::Look | Timer::Beat | Timer::Creates | Timer::Sleep(_) => {}
        }
    }

    /// Whether the sync under way returns now.
    pub(crate) fn take_sync(&mut self) -> bool {
        std::mem::take(&mut self.sync_due)
    }

    /// Whether a job is to be done now.
    pub(crate) fn take_job(&mut self) -> bool {
        std::mem::take(&mut self.job_due)
    }

    /// Timers for what is under way and has none.
    pub(crate) fn arm(&mut self, syncing: bool, jobs: usize, random: &mut Random, wishes: &mut Vec<Wish>) {
        if syncing && !self.sync_armed && !self.sync_due {
            self.sync_armed = true;
            let slow = random.one_in(SLOW_SYNC_ONE_IN);
            let us = random.below(if slow { SLOW_SYNC_US_MAX } else { SYNC_US_MAX });
            wishes.push(Wish::Arm { timer: Timer::Synced, after: Duration::from_micros(us) });
        }
        if jobs > 0 && !self.job_armed && !self.job_due {
            self.job_armed = true;
            let us = random.below(JOB_US_MAX);
            wishes.push(Wish::Arm { timer: Timer::Job, after: Duration::from_micros(us) });
        }
    }
}
