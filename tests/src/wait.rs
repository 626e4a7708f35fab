//! Waiting for a state, with a deadline: nothing here sleeps and hopes.

use std::time::{Duration, Instant};

/// How often a state is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `state` gives something, at most `limit`.
pub fn until<T>(limit: Duration, mut state: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = state() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until `state` holds.
///
/// # Panics
/// After `limit`, naming what was waited for.
#[track_caller]
pub fn for_state(what: &str, limit: Duration, mut state: impl FnMut() -> bool) {
    let held = until(limit, || state().then_some(()));
    assert!(held.is_some(), "waited {} s in vain: {what}", limit.as_secs());
}

/// That many seconds; shorter to read in a claim.
#[must_use]
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
