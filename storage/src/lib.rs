//! The seam between Holdfast and the file system. Everything that must survive a crash goes through [`Directory`] and
//! [`DiskFile`]: [`RealDirectory`] in production, [`SimulatedDisk`] in tests and in the simulation of whole clusters.
//!
//! Two facts hold on both: nothing written is durable before [`DiskFile::sync_data`] of its file returned, and no name
//! before [`Directory::sync_names`] of its directory did.

pub mod descriptors;
mod directories;
mod durable;
mod real;
mod seam;
pub mod simulated;

pub use directories::{create_directories, make_directories};
pub use durable::{DirectoryLock, LockError, replace_file, sync_parent};
pub use real::RealDirectory;
pub use seam::{
    BLOCK_BYTES, Cursor, Directory, DiskFile, FileSystemSpace, SECTOR_BYTES, is_no_space, is_out_of_descriptors,
};
pub use simulated::SimulatedDisk;
