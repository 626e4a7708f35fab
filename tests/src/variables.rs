//! Environment variables of the harness, as people and rooms set them.

/// Set: the clusters' directories stay, to be looked at.
pub(crate) const KEEP: &str = "HOLDFAST_TEST_KEEP";

/// Directory in which rooms make theirs, instead of the temporary directory.
pub(crate) const DIRECTORY: &str = "HOLDFAST_TEST_DIR";

/// Directory in which claims that need no more than a file system run, instead of on a cluster. It proves the claims themselves
/// (on ext4, say), and nothing about Holdfast.
pub(crate) const PLAIN_DIRECTORY: &str = "HOLDFAST_TEST_ON";

/// Binary under test, instead of `target/release/holdfast`.
pub(crate) const BINARY: &str = "HOLDFAST_BIN";

/// Seed of what is random.
pub(crate) const SEED: &str = "HOLDFAST_TEST_SEED";

/// Room that a process belongs to, by the number of its process.
pub(crate) const ROOM: &str = "HOLDFAST_TEST_ROOM";

/// Cluster or second mount within the room that a process belongs to.
pub(crate) const PART: &str = "HOLDFAST_TEST_PART";
