//! The seam between the shard store and the machine: every file operation the store makes goes through these two traits,
//! so that a test can lose unsynced writes, tear them at sectors and fail any of them.

use std::io;
use std::sync::Arc;

/// What a bulk write is aligned to: offset, length and memory (O_DIRECT on any disk we know).
pub const BLOCK_BYTES: u64 = 4096;
/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// Space of the file system under a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystemSpace {
    /// Size in bytes.
    pub total_bytes: u64,
    /// Bytes this process may still allocate.
    pub available_bytes: u64,
    /// Which file system (st_dev): disks that share one share its space.
    pub file_system: u64,
}

/// The directory of one disk.
pub trait Directory: Send + Sync + 'static {
    /// Names of its files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new file; it exists after a crash only once [`Directory::sync`] returned.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations and removals durable.
    fn sync(&self) -> io::Result<()>;
    /// The whole content of a small file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Replaces a file as a whole; durable when it returns, old or new content after a crash.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Space of the file system.
    fn space(&self) -> io::Result<FileSystemSpace>;
}

/// A file of a disk.
pub trait DiskFile: Send + Sync + 'static {
    /// Its length.
    fn length_bytes(&self) -> io::Result<u64>;
    /// Sets its length; what is gained reads as zeros.
    fn set_length(&self, bytes: u64) -> io::Result<()>;
    /// Reads exactly `into`; past the end is `UnexpectedEof`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes through the page cache.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes past the page cache where the file system allows it. Offset, length and memory are aligned to
    /// [`BLOCK_BYTES`].
    fn write_direct(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written before it was called durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Gives the blocks of a range back; it reads as zeros. Durable after [`DiskFile::sync_data`].
    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()>;
    /// The first offset from `offset` on that may hold something other than zeros; `None` if there is none.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
}

/// Whether the file system is full, rather than broken.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}
