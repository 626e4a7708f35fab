//! Faults of a simulated machine while it runs, by chance or on request.

use std::collections::BTreeMap;

use holdfast_common::Random;

const MILLION: u64 = 1_000_000;

/// Faults by chance, in parts per million of the operations that each can hit. None by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A read says EIO. Its first block stays unreadable until it is written again.
    pub read_error_ppm: u64,
    /// A write says EIO; the first half of it is written.
    pub write_error_ppm: u64,
    /// A sync of a file says EIO. What it should have covered is clean for the kernel from then on: a later sync says Ok and
    /// makes nothing of it durable.
    pub sync_error_ppm: u64,
    /// A sync of names says EIO.
    pub sync_names_error_ppm: u64,
    /// A write says ENOSPC; the first half of it is written.
    pub no_space_ppm: u64,
    /// Making or opening a file says EMFILE.
    pub no_descriptor_ppm: u64,
    /// A bit of what a read reads has flipped, on the disk and for good.
    pub bit_rot_ppm: u64,
    /// A sync leaves a sector out and says Ok.
    pub phantom_write_ppm: u64,
    /// A sync writes a sector to the place of another sector of its file.
    pub misdirected_write_ppm: u64,
    /// An operation takes up to `slow_ns_max` longer.
    pub slow_ppm: u64,
    /// See `slow_ppm`.
    pub slow_ns_max: u64,
    /// Nanoseconds that every operation takes.
    pub operation_ns: u64,
}

/// A fault on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A read says this errno, once: nothing stays unreadable.
    Read(i32),
    /// A write says this errno; the first half of it is written, of one without a descriptor nothing.
    Write(i32),
    /// See [`Faults::sync_error_ppm`].
    Sync,
    /// A sync of names says this errno.
    SyncNames(i32),
    /// A removal of a file says this errno, and the file stays.
    Remove(i32),
    /// Making or opening a file says this errno.
    Open(i32),
    /// Giving blocks back says this errno.
    Punch(i32),
    /// Asking for the space of the file system says EIO.
    Space,
}

/// Counts of what happened on a disk, for the coverage of a simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub crashes: u64,
    pub lost_sectors: u64,
    pub torn_files: u64,
    pub lost_lengths: u64,
    pub lost_names: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub sync_errors: u64,
    pub no_space: u64,
    pub no_descriptor: u64,
    pub rotten_bits: u64,
    pub phantom_writes: u64,
    pub misdirected_writes: u64,
    pub slow_operations: u64,
}

impl Counts {
    /// Writes and syncs that failed, but for want of space or of descriptors.
    #[must_use]
    pub fn failed_changes(&self) -> u64 {
        self.write_errors + self.sync_errors
    }

    /// Operations that found no space or no descriptor.
    #[must_use]
    pub fn shortages(&self) -> u64 {
        self.no_space + self.no_descriptor
    }
}

/// Faults of a machine, planned and by chance, with their counts.
#[derive(Clone)]
pub(super) struct Trouble {
    pub(super) faults: Faults,
    pub(super) counts: Counts,
    pub(super) random: Random,
    planned: BTreeMap<Fault, u64>,
}

impl Trouble {
    pub(super) fn new(seed: u64) -> Self {
        let (faults, counts) = (Faults::default(), Counts::default());
        Self { faults, counts, random: Random::new(seed), planned: BTreeMap::new() }
    }

    pub(super) fn plan(&mut self, fault: Fault, count: u64) {
        self.planned.insert(fault, count);
    }

    pub(super) fn forget_planned(&mut self) {
        self.planned.clear();
    }

    /// Takes a planned fault that `fits`.
    pub(super) fn planned(&mut self, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let fault = *self.planned.keys().find(|fault| fits(fault))?;
        let left = self.planned.get_mut(&fault).expect("just found");
        *left = left.saturating_sub(u64::from(*left != u64::MAX));
        if *left == 0 {
            self.planned.remove(&fault);
        }
        Some(fault)
    }

    /// Rolls for a fault. Draws nothing where it cannot happen, so that a test without faults has no randomness in it.
    pub(super) fn rolls(&mut self, ppm: u64) -> bool {
        ppm > 0 && self.random.below(MILLION) < ppm
    }

    /// Duration of the next operation.
    pub(super) fn duration_ns(&mut self) -> u64 {
        let faults = self.faults;
        if !self.rolls(faults.slow_ppm) {
            return faults.operation_ns;
        }
        self.counts.slow_operations += 1;
        faults.operation_ns + self.random.below(faults.slow_ns_max.max(1))
    }
}
