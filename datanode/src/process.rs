//! Knowledge of each other that datanodes of one process have: those whose disks lie on one file system must not
//! promise the same free bytes twice. Processes do not know each other's promises; their clients count free bytes by
//! file system.

use std::sync::Arc;

use holdfast_storage::Directory;

use crate::clock;
use crate::store::space::Shelves;
use crate::store::surroundings::{Clock, Surroundings};

/// Made once for a process, and handed to each datanode that starts in it. Cheap to clone.
#[derive(Clone)]
pub struct Process {
    /// One for all, because reservations on a shelf end by it.
    clock: Clock,
    shelves: Shelves,
}

impl Default for Process {
    fn default() -> Self {
        Self { clock: clock::monotonic(), shelves: Shelves::default() }
    }
}

impl Process {
    /// Surroundings of the stores of one node; `witness` is the node's own directory.
    pub(crate) fn surroundings(&self, witness: Arc<dyn Directory>) -> Surroundings {
        Surroundings { clock: self.clock.clone(), shelves: self.shelves.clone(), witness: Some(witness) }
    }
}
