//! A Holdfast volume as a library: the metadata client, the write pipeline and the read path. Knows nothing of FUSE.

pub mod error;
pub mod file_system;
pub mod types;

pub use error::Error;
pub use file_system::{FileHandle, FileSystem, MountConfig};
pub use types::{
    Attributes, DirectoryEntry, FallocateMode, FileSystemStat, NewNode, NodeKind, OpenMode, RenameMode, SetAttributes,
    SetTime, Whence, XattrMode,
};
