//! The file system as callers see it: one method an operation, none of them names FUSE.

use crate::{
    Attributes, DirectoryEntry, Error, FallocateMode, FileSystemStat, NewNode, OpenMode, RenameMode, SetAttributes,
    Whence, XattrMode,
};
use bytes::Bytes;
use holdfast_common::InodeId;

/// How to mount a volume.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The volume manager, host:port.
    pub volmgr: String,
    /// The volume's name.
    pub volume: String,
    /// Names this client on this host: a later mount with the same key fences this one. Host and mount point.
    pub client_key: Vec<u8>,
    /// For people, in lists of sessions.
    pub description: String,
    /// Nothing is changed, no session is needed to write.
    pub read_only: bool,
    /// Budget of dirty data, readahead and caches together (D12).
    pub memory_bytes: usize,
}

/// An open file. Valid from open or create to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(pub u64);

/// A mounted volume. Cheap to clone. Every call ends within its deadline.
#[derive(Clone, Debug)]
pub struct FileSystem {}

#[allow(clippy::unused_async, missing_docs, clippy::missing_errors_doc)]
impl FileSystem {
    /// Finds the volume and opens a session. Must run inside a tokio runtime, which carries the background work.
    pub async fn mount(_config: MountConfig) -> Result<Self, Error> {
        Err(Error::SessionLost)
    }
    /// Flushes everything, closes the session. Later calls fail.
    pub async fn shutdown(&self) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    /// Makes everything written so far durable (syncfs).
    pub async fn sync_all(&self) -> Result<(), Error> {
        Err(Error::SessionLost)
    }

    pub async fn lookup(&self, _parent: InodeId, _name: &[u8]) -> Result<Attributes, Error> {
        Err(Error::SessionLost)
    }
    pub async fn get_attributes(&self, _inode: InodeId) -> Result<Attributes, Error> {
        Err(Error::SessionLost)
    }
    pub async fn set_attributes(&self, _inode: InodeId, _set: SetAttributes) -> Result<Attributes, Error> {
        Err(Error::SessionLost)
    }
    pub async fn read_link(&self, _inode: InodeId) -> Result<Bytes, Error> {
        Err(Error::SessionLost)
    }
    /// `mode` has the umask applied.
    pub async fn create_node(
        &self,
        _parent: InodeId,
        _name: &[u8],
        _node: NewNode,
        _mode: u32,
        _uid: u32,
        _gid: u32,
    ) -> Result<Attributes, Error> {
        Err(Error::SessionLost)
    }
    pub async fn link(&self, _inode: InodeId, _parent: InodeId, _name: &[u8]) -> Result<Attributes, Error> {
        Err(Error::SessionLost)
    }
    pub async fn unlink(&self, _parent: InodeId, _name: &[u8]) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    pub async fn remove_directory(&self, _parent: InodeId, _name: &[u8]) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    pub async fn rename(
        &self,
        _parent: InodeId,
        _name: &[u8],
        _new_parent: InodeId,
        _new_name: &[u8],
        _mode: RenameMode,
    ) -> Result<(), Error> {
        Err(Error::SessionLost)
    }

    /// Creates and opens. An existing file is opened as it is, unless `exclusive`.
    #[allow(clippy::too_many_arguments)]
    pub async fn create(
        &self,
        _parent: InodeId,
        _name: &[u8],
        _mode: u32,
        _uid: u32,
        _gid: u32,
        _exclusive: bool,
        _open: OpenMode,
    ) -> Result<(Attributes, FileHandle), Error> {
        Err(Error::SessionLost)
    }
    pub async fn open(&self, _inode: InodeId, _open: OpenMode) -> Result<FileHandle, Error> {
        Err(Error::SessionLost)
    }
    /// At most `length_bytes`, less only at the end of the file. Pieces in order.
    pub async fn read(&self, _handle: FileHandle, _offset: u64, _length_bytes: u32) -> Result<Vec<Bytes>, Error> {
        Err(Error::SessionLost)
    }
    /// All of `data` or an error. With `OpenMode::append` the offset is the end of the file.
    pub async fn write(
        &self,
        _handle: FileHandle,
        _offset: u64,
        _data: Bytes,
        _kill_suid_sgid: bool,
    ) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    /// At each close(2): everything written becomes visible to other mounts; reports a lost write once (R22).
    pub async fn flush(&self, _handle: FileHandle) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    /// fsync(2), fdatasync(2).
    pub async fn fsync(&self, _handle: FileHandle) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    /// The last close. The handle is gone after it.
    pub async fn release(&self, _handle: FileHandle) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    pub async fn fallocate(
        &self,
        _handle: FileHandle,
        _offset: u64,
        _length_bytes: u64,
        _mode: FallocateMode,
    ) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    pub async fn seek(&self, _handle: FileHandle, _offset: u64, _whence: Whence) -> Result<u64, Error> {
        Err(Error::SessionLost)
    }

    /// Up to `max_entries` entries behind the cookie (0: from the start), in cookie order; empty at the end.
    pub async fn read_directory(
        &self,
        _inode: InodeId,
        _after_cookie: u64,
        _max_entries: u32,
        _with_attributes: bool,
    ) -> Result<Vec<DirectoryEntry>, Error> {
        Err(Error::SessionLost)
    }
    pub async fn stat_file_system(&self) -> Result<FileSystemStat, Error> {
        Err(Error::SessionLost)
    }

    pub async fn get_xattr(&self, _inode: InodeId, _name: &[u8]) -> Result<Bytes, Error> {
        Err(Error::SessionLost)
    }
    pub async fn list_xattr(&self, _inode: InodeId) -> Result<Vec<Bytes>, Error> {
        Err(Error::SessionLost)
    }
    pub async fn set_xattr(&self, _inode: InodeId, _name: &[u8], _value: Bytes, _mode: XattrMode) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
    pub async fn remove_xattr(&self, _inode: InodeId, _name: &[u8]) -> Result<(), Error> {
        Err(Error::SessionLost)
    }
}
