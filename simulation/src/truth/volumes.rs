//! Volumes that come and go beside the one that is worked on, and what a run asks of space, volumes, clients and logs.

use std::collections::BTreeSet;

use holdfast_common::{Random, VolumeId};
use holdfast_metanode::Table;

/// Demands on a run, by its seed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Demands {
    /// Most bytes of the volume; 0: as many as there are.
    pub(crate) quota_bytes: u64,
    /// Volumes are made and deleted.
    pub(crate) volumes: bool,
    /// A client that is paused for longer than its lease has just sent a keep-alive.
    pub(crate) asks_before_silence: bool,
    /// The segments of the metanodes' logs are so short that what a Raft group needs is carried forward in several batches.
    pub(crate) short_segments: bool,
}

impl Demands {
    pub(crate) fn new(random: &mut Random) -> Self {
        let quota_bytes = if random.one_in(4) { 100_000 + random.below(300_000) } else { 0 };
        Self {
            quota_bytes,
            volumes: random.one_in(4),
            asks_before_silence: random.chance(60),
            short_segments: random.one_in(12),
        }
    }
}

/// The other volumes.
#[derive(Default)]
pub(crate) struct Volumes {
    /// Those whose table was once ready, on a replica that led.
    ready: BTreeSet<VolumeId>,
    /// Count of names used.
    pub(crate) names: u64,
    pub(crate) made: u64,
    pub(crate) deleted: u64,
}

impl Volumes {
    /// A replica has another volume's table.
    pub(crate) fn hosted(&mut self, volume: VolumeId, table: &Table, leads: bool) {
        if leads && table.configuration().is_some() && table.capacity().open_bytes > 0 {
            self.ready.insert(volume);
        }
    }

    /// Somebody was told that a volume can be mounted.
    pub(crate) fn told_active(&mut self, volume: VolumeId) {
        assert!(self.ready.contains(&volume), "volume {volume} can be mounted, and its table was never ready");
        self.made += 1;
    }
}
