//! The two clocks of a datanode: the machine's for the process, one set by hand for the stepped form.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::store::surroundings::Clock;

/// A clock of the machine that starts at zero when it is made.
pub(crate) fn monotonic() -> Clock {
    let started = Instant::now();
    Arc::new(move || started.elapsed())
}

/// A clock that stands still until it is set; in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandClock(Arc<AtomicU64>);

impl HandClock {
    /// Never takes it back: an earlier time changes nothing.
    pub(crate) fn set(&self, now: Duration) {
        self.0.fetch_max(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn reader(&self) -> Clock {
        let at = self.0.clone();
        Arc::new(move || Duration::from_nanos(at.load(Ordering::Relaxed)))
    }
}
