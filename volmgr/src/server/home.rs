//! The volume manager's directory while it serves.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use holdfast_common::ClusterId;
use holdfast_node::superblock::{self, SuperblockError};
use holdfast_node::{HomeLost, check_home, look_at_home};
use holdfast_proto::cluster::VolmgrSuperblock;
use tokio::time::MissedTickBehavior;

use super::{KIND, cluster_id};

/// Interval at which it looks, about that of the heartbeats with which nodes look at theirs.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// One start of one cluster's volume manager.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) cluster: ClusterId,
    generation: u64,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start {} of the volume manager of cluster {}", self.generation, self.cluster)
    }
}

impl Start {
    /// # Errors
    /// The superblock names no cluster.
    pub(super) fn of(directory: &Path, record: &VolmgrSuperblock) -> Result<Self, SuperblockError> {
        Ok(Self { cluster: cluster_id(directory, record)?, generation: record.generation })
    }

    fn read(directory: &Path) -> Result<Self, SuperblockError> {
        Self::of(directory, &superblock::read(directory, KIND)?)
    }
}

/// Looks again and again; returns only when the directory was removed or replaced, or cannot be read.
pub(super) async fn lost(start: &Start, directory: &Path) -> HomeLost {
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    // A disk that hangs is not looked at many times at once afterwards.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (mine, directory) = (start.clone(), directory.to_owned());
        let look = look_at_home(move || check_home(&directory, &mine, Start::read(&directory)));
        if let Err(why) = look.await {
            return why;
        }
    }
}
