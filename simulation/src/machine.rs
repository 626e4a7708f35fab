//! One machine: its clock, its disk, what its superblock says, and its process while it lives.

use std::collections::BTreeMap;

use holdfast_common::NodeId;
use holdfast_storage::SimulatedDisk;
use holdfast_storage::simulated::Counts;

use crate::clock::{Clock, Times};
use crate::disk::FIRST_LOG;
use crate::packet::Packet;
use crate::role::{Role, Timer};

/// What the superblock of a process says, durably before the process says anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Superblock {
    /// Raised at each start (R28).
    pub(crate) generation: u64,
    /// Number of a metanode's log (R23).
    pub(crate) log: u64,
    /// Number of the log that a recovery has begun to fill.
    pub(crate) recovering: Option<u64>,
}

/// The directory of a process at some time: its disk and its superblock.
pub(crate) struct Image {
    pub(crate) disk: SimulatedDisk,
    pub(crate) superblock: Superblock,
}

pub(crate) struct Machine {
    pub(crate) node: NodeId,
    pub(crate) life: u64,
    pub(crate) clock: Clock,
    /// The true time, when its process starts.
    pub(crate) now: u64,
    pub(crate) disk: SimulatedDisk,
    pub(crate) superblock: Superblock,
    /// What was on its disk is gone, and its process does not know it yet.
    pub(crate) is_log_lost: bool,
    /// An earlier state of its directory, which somebody has kept.
    pub(crate) image: Option<Image>,
    /// Its directory, while a process runs on an older copy of it.
    pub(crate) original: Option<Image>,
    pub(crate) role: Option<Box<dyn Role>>,
    /// The starts of metanodes that its process has heard messages of.
    pub(crate) heard: BTreeMap<NodeId, u64>,
    /// Counts of its disk before its process started.
    pub(crate) before: Counts,
    pub(crate) woken: bool,
    /// Its process is to be paused for so long when it has sent its next keep-alive.
    pub(crate) pause_when_asking: Option<u64>,
    /// What came while the process was paused; `None` when it is not.
    pub(crate) deferred: Option<Vec<Deferred>>,
}

pub(crate) enum Deferred {
    Packet(NodeId, Packet),
    Timer(Timer),
}

impl Machine {
    /// A machine whose process was formatted, and registered once.
    pub(crate) fn new(node: NodeId, disk: SimulatedDisk, clock: Clock) -> Self {
        Self {
            node,
            life: 0,
            clock,
            now: 0,
            disk,
            superblock: Superblock { generation: 1, log: FIRST_LOG, recovering: None },
            is_log_lost: false,
            image: None,
            original: None,
            role: None,
            heard: BTreeMap::new(),
            before: Counts::default(),
            woken: false,
            pause_when_asking: None,
            deferred: None,
        }
    }

    pub(crate) fn times(&self) -> Times {
        self.clock.times(self.now)
    }

    /// Whether its process lives and is not paused.
    pub(crate) fn is_awake(&self) -> bool {
        self.role.is_some() && self.deferred.is_none()
    }

    /// Whether its process has a reason to end by itself: its disk failed it, or, if that counts, had no space or no descriptor.
    pub(crate) fn may_end(&self, may_lack: bool) -> bool {
        let counts = self.disk.counts();
        let lacked = counts.shortages() > self.before.shortages();
        (may_lack && lacked) || counts.failed_changes() > self.before.failed_changes()
    }

    /// Puts another directory in the place of its own, which it gives back.
    pub(crate) fn exchange(&mut self, other: Image) -> Image {
        let disk = std::mem::replace(&mut self.disk, other.disk);
        Image { disk, superblock: std::mem::replace(&mut self.superblock, other.superblock) }
    }
}
