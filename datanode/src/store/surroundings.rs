//! Parts of the process around a store, handed to it so that it names no clock and nothing is shared unseen.

use std::sync::Arc;
use std::time::Duration;

use holdfast_storage::Directory;

use super::space::Shelves;

/// Tells monotonic time since any moment, the same for all stores that share shelves. It is asked once or twice for each put.
pub(crate) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Things that the stores of one node share with each other and with other nodes of the process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) clock: Clock,
    pub(crate) shelves: Shelves,
    /// A directory elsewhere that is told of a failure too, in case the disk does not take the note.
    pub(crate) witness: Option<Arc<dyn Directory>>,
}
