//! The lint stage: formatting, clippy, what the dependencies are allowed to be, and the house's own rules. Each is one check of
//! the tally.

use crate::command::{TESTS_PROFILE, cargo, succeeds};
use crate::house;
use crate::tally::Tally;
use anyhow::Result;
use std::path::Path;

/// Runs all of them, so that one run shows everything there is to mend.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    let checks: [&[&str]; 3] = [
        &["fmt", "--all", "--check"],
        // In the profile of the build, so that build scripts and procedural macros are made once.
        &["clippy", "--profile", TESTS_PROFILE, "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        // Advisory databases are not to be had offline; deny.toml lists the known ones by hand.
        &["deny", "--offline", "check", "bans", "licenses", "sources"],
    ];
    for arguments in checks {
        tally += Tally::check(succeeds(cargo().args(arguments))?);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    tally += Tally::check(house::check(workspace)?);
    Ok(tally)
}
