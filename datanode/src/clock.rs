//! The clock that a datanode's process hands to its stores.

use std::sync::Arc;
use std::time::Instant;

use crate::store::surroundings::Clock;

/// The machine's monotonic clock, from now on.
pub(crate) fn monotonic() -> Clock {
    let started = Instant::now();
    Arc::new(move || started.elapsed())
}
