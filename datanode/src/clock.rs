//! The two clocks of a datanode: the machine's for the process, one set by hand for the stepped form.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::store::surroundings::Clock;

/// The machine's monotonic clock, from now on.
pub(crate) fn monotonic() -> Clock {
    let started = Instant::now();
    Arc::new(move || started.elapsed())
}

/// A clock that stands still until it is set; in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandClock(Arc<AtomicU64>);

impl HandClock {
    /// Sets it. It never goes back.
    pub(crate) fn set(&self, now: Duration) {
        self.0.fetch_max(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The same clock, as a store reads it.
    pub(crate) fn reader(&self) -> Clock {
        let at = self.0.clone();
        Arc::new(move || Duration::from_nanos(at.load(Ordering::Relaxed)))
    }
}
