//! A disk that forgets: what a power failure takes and `kill -9` spares.
//!
//! The processes under test run with `libholdfast_forgetful.so` preloaded (the crate `tests/forgetful`). It stands between
//! them and the kernel at the C library's calls, so it sees every role's every file, superblocks included, and the product
//! knows nothing of it. Before a call changes a byte, a length or a name below the cluster's directory, it writes down
//! in a [`journal`] what was there; a sync that has returned is written down too. After everything was killed,
//! [`power::fail`] takes back what no sync covered: all of it, or for every sector any state it went through since.
//!
//! Removing a directory counts as durable at once; everything else needs its sync, a name that of its directory, a new
//! directory that of the one it is in.

pub mod journal;
pub mod power;

use crate::command::tests_directory;
use std::path::PathBuf;

/// Directories whose files are watched, absolute; everything below.
pub const ROOT_VARIABLE: &str = "HOLDFAST_FORGETFUL_ROOT";
/// Where the journals go: on the same file system, outside the root.
pub const JOURNAL_VARIABLE: &str = "HOLDFAST_FORGETFUL_JOURNAL";

/// The library to preload: it is built with the tests.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn library() -> PathBuf {
    let path = tests_directory().join("libholdfast_forgetful.so");
    assert!(path.exists(), "{} is missing; build the whole workspace", path.display());
    path
}
