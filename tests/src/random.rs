//! Random numbers that a seed decides: a failing test prints its seed and can be run again.

use crate::variables;
pub use holdfast_common::Random;

/// A seed that nobody chose, or the one in `HOLDFAST_TEST_SEED`; printed, so that a failure can be repeated.
#[must_use]
pub fn fresh(what: &str) -> Random {
    let seed = std::env::var(variables::SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    eprintln!("{what}: {}={seed}", variables::SEED);
    Random::new(seed)
}
