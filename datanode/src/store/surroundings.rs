//! What a store needs of the node around it, so that it names no clock and shares nothing with stores of other nodes.

use std::sync::Arc;
use std::time::Duration;

use holdfast_storage::Directory;

use super::space::Shelves;

/// Tells monotonic time since any moment, the same for all stores of a node. It is asked once or twice for each put.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the stores of one node share. Cheap to clone.
#[derive(Clone)]
pub struct Surroundings {
    /// The node's time.
    pub clock: Clock,
    /// Reservations on the file systems of the node's disks.
    pub shelves: Shelves,
    /// A directory elsewhere that is told of a failure too, in case the disk does not take the note.
    pub witness: Option<Arc<dyn Directory>>,
}
