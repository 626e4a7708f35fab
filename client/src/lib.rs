//! A Holdfast volume as a library: the metadata client, the write pipeline and the read path. Knows nothing of FUSE.

mod block_cache;
mod chunk_reader;
mod chunk_writer;
mod cluster_map;
mod dirty;
pub mod error;
mod extent_map;
pub mod file_system;
mod files;
mod flusher;
mod inode;
mod latency;
mod metadata;
mod mount;
mod packer;
mod questions;
mod quota;
mod readahead;
mod session;
mod space;
pub mod task;
pub mod types;

pub use error::Error;
pub use file_system::{FileHandle, FileSystem, MountConfig};
pub use types::{
    Attributes, DirectoryEntry, FallocateMode, FileSystemStat, NewNode, NodeKind, OpenMode, RenameMode, SetAttributes,
    SetTime, Whence, WriteAt, XattrMode,
};
