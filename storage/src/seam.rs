//! The two traits, and what their errors mean.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Alignment of a direct write: offset, length and memory (O_DIRECT on any disk we know).
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes that a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystemSpace {
    /// Size in bytes, as statvfs(2) tells it.
    pub total_bytes: u64,
    /// Bytes this process may still allocate.
    pub available_bytes: u64,
    /// Device number (st_dev): directories that have the same one share its space.
    pub file_system: u64,
}

/// A directory. Names have no slashes.
pub trait Directory: Send + Sync + 'static {
    /// Names of its files and directories, in no order.
    ///
    /// # Errors
    /// Any I/O error.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a file; one that is there is an error.
    ///
    /// # Errors
    /// `AlreadyExists`, or any I/O error.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that is there, to read and write.
    ///
    /// # Errors
    /// `NotFound`, or any I/O error.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// Any I/O error.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, or any I/O error.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// Any I/O error; what is durable is then unknown for good.
    fn sync_names(&self) -> io::Result<()>;
    /// Makes a directory below; durable after [`Directory::sync_names`] of this one.
    ///
    /// # Errors
    /// `AlreadyExists`, or any I/O error.
    fn make_directory(&self, name: &str) -> io::Result<()>;
    /// A directory below, which is there.
    ///
    /// # Errors
    /// `NotFound`, or any I/O error.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>>;
    /// Space of the file system.
    ///
    /// # Errors
    /// Any I/O error.
    fn space(&self) -> io::Result<FileSystemSpace>;
    /// Device and inode of what the directory's path leads to now.
    ///
    /// # Errors
    /// `NotFound` when the directory is gone, or any I/O error.
    fn identity(&self) -> io::Result<(u64, u64)>;
    /// Path of a name, for code that carries the file elsewhere.
    fn path(&self, name: &str) -> PathBuf;

    /// Makes a file, or empties the one that is there.
    ///
    /// # Errors
    /// Any I/O error.
    fn create_empty(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.create(name)
    }

    /// The whole content of a small file.
    ///
    /// # Errors
    /// `NotFound`, or any I/O error.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open(name)?;
        let length = usize::try_from(file.length_bytes()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Replaces a small file as a whole; durable when it returns. A crash leaves the old content or the new one.
    ///
    /// # Errors
    /// Any I/O error. The old content stands unless the last step failed, the sync of the names: then either may.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.tmp");
        let file = self.create_empty(&temporary)?;
        file.write_at(0, bytes)?;
        file.sync_data()?;
        self.rename(&temporary, name)?;
        self.sync_names()
    }
}

/// A file of a [`Directory`].
pub trait DiskFile: Send + Sync + 'static {
    /// Its length.
    ///
    /// # Errors
    /// Any I/O error.
    fn length_bytes(&self) -> io::Result<u64>;
    /// Sets its length; what is gained reads as zeros.
    ///
    /// # Errors
    /// Any I/O error.
    fn set_length(&self, bytes: u64) -> io::Result<()>;
    /// Gives an empty file a length and the blocks for it, so that later writes within it need no space; it reads as zeros.
    ///
    /// # Errors
    /// A full file system (see [`is_no_space`]), or any other I/O error; a part may be allocated then.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Reads until `into` is full or the file ends; says how much it read.
    ///
    /// # Errors
    /// Any I/O error.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` through the page cache.
    ///
    /// # Errors
    /// Any I/O error; a part may be written then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes past the page cache where the file system allows it. Offset, length and memory are aligned to
    /// [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// Any I/O error; a part may be written then.
    fn write_direct(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written before it was called durable (fdatasync).
    ///
    /// # Errors
    /// Any I/O error. The file must not be trusted then: the kernel may have dropped the dirty pages and would call the
    /// next sync a success.
    fn sync_data(&self) -> io::Result<()>;
    /// Gives the blocks of a range back; it reads as zeros. Durable after [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// Any I/O error.
    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()>;
    /// The first offset from `offset` on that may hold something other than zeros; `None` if there is none.
    ///
    /// # Errors
    /// Any I/O error.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// Reads exactly `into`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, or any I/O error.
    fn read_exact_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.read_at(offset, into)? == into.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Whether the file system is full, rather than broken.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

/// Whether the process or the machine has no file descriptor left. Nothing was done then, and the disk is as good as before.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Reads or writes a file from a position on.
pub struct Cursor<'a> {
    file: &'a dyn DiskFile,
    offset: u64,
}

impl<'a> Cursor<'a> {
    /// From `offset` on.
    #[must_use]
    pub fn new(file: &'a dyn DiskFile, offset: u64) -> Self {
        Self { file, offset }
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(self.offset, buffer)?;
        self.offset += n as u64;
        Ok(n)
    }
}

impl Write for Cursor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
