//! A Holdfast volume as a library: the metadata client, the write pipeline and the read path. Knows nothing of FUSE.
//!
//! [`core`] decides and does no I/O; [`shell`] steps it and performs what it wants; [`network`] is the seam to the
//! cluster, [`runtime`] the one to what carries it.

mod block_cache;
mod chunk_reader;
mod core;
mod error;
mod file_system;
mod mount;
pub mod network;
mod paths;
pub mod runtime;
mod shell;
mod task;
mod types;

pub use crate::core::sabotage::Sabotage;
pub use error::{CallFailed, Error, UnflushedFile};
pub use file_system::FileSystem;
pub use holdfast_transport::begin;
pub use mount::MountConfig;
pub use types::{
    Attributes, DirectoryEntry, FallocateMode, FileHandle, FileSystemStat, NewNode, NodeKind, OpenMode, RenameMode,
    SetAttributes, SetTime, Whence, WriteAt, XattrMode,
};
