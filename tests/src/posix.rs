//! System calls that the standard library lacks, with `io::Result`s, for claims about POSIX.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `RENAME_NOREPLACE`
pub const NOREPLACE: u32 = libc::RENAME_NOREPLACE;
/// `RENAME_EXCHANGE`
pub const EXCHANGE: u32 = libc::RENAME_EXCHANGE;

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("tests use no NUL in paths")
}

fn offset(value: u64) -> i64 {
    i64::try_from(value).expect("an offset fits in an off_t")
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The error number of a call that must fail.
///
/// # Panics
/// If it succeeded.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("the call must fail").raw_os_error().expect("it is an error of the system")
}

/// `renameat2(2)`.
///
/// # Errors
/// The system's.
pub fn rename_with(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (text(from), text(to));
    // SAFETY: both are C strings.
    check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
}

/// `mknod(2)`; `mode` holds the kind and the permissions.
///
/// # Errors
/// The system's.
pub fn make_node(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    let path = text(path);
    // SAFETY: the path is a C string.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) })
}

/// `fallocate(2)`.
///
/// # Errors
/// The system's.
pub fn fallocate(file: &File, mode: i32, at: u64, length: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as the file is borrowed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset(at), offset(length)) })
}

/// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
///
/// # Errors
/// The system's: `ENXIO` behind the last data.
pub fn seek(file: &File, from: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: the descriptor is open as long as the file is borrowed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset(from), whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// The extents of data that `SEEK_DATA` and `SEEK_HOLE` tell of, as (start, end).
///
/// # Errors
/// The system's.
pub fn data_extents(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let (mut extents, mut from) = (Vec::new(), 0);
    loop {
        match seek(file, from, libc::SEEK_DATA) {
            Ok(start) => {
                let end = seek(file, start, libc::SEEK_HOLE)?;
                extents.push((start, end));
                from = end;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(extents),
            Err(error) => return Err(error),
        }
    }
}

/// A mapping of a file's first bytes.
pub struct Mapping {
    address: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes to read and write: shared, or private to this process.
    ///
    /// # Errors
    /// The system's.
    pub fn new(file: &File, length: usize, shared: bool) -> io::Result<Self> {
        let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { address: address.cast(), length })
        }
    }

    /// The mapped bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping lives as long as self, is that long, and is borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.length) }
    }

    /// `msync(2)` with `MS_SYNC`.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping.
        check(unsafe { libc::msync(self.address.cast(), self.length, libc::MS_SYNC) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nobody borrows from it any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// A buffer aligned to a page, as direct I/O demands.
pub struct Aligned(Vec<u8>, usize);

impl Aligned {
    const ALIGNMENT: usize = 4096;

    /// Zeros.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let buffer = vec![0; length + Self::ALIGNMENT];
        let skip = buffer.as_ptr().align_offset(Self::ALIGNMENT);
        Self(buffer, skip)
    }

    /// The aligned bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        let end = self.1 + self.0.len() - Self::ALIGNMENT;
        &mut self.0[self.1..end]
    }
}

/// Free and total space in bytes, as `statfs(2)` says; the free inodes last.
///
/// # Errors
/// The system's.
pub fn space(path: &Path) -> io::Result<(u64, u64, u64)> {
    let path = text(path);
    // SAFETY: statvfs is plain data, for which zeros are valid.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the result has room for it.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut found) })?;
    Ok((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail))
}

/// An open directory stream, with positions.
pub struct DirectoryStream(*mut libc::DIR);

impl DirectoryStream {
    /// `opendir(3)`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = text(path);
        // SAFETY: the path is a C string.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        if stream.is_null() { Err(io::Error::last_os_error()) } else { Ok(Self(stream)) }
    }

    /// `telldir(3)`.
    #[must_use]
    pub fn position(&self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    /// `seekdir(3)`.
    pub fn seek(&mut self, position: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0, position) }
    }

    /// The next entry: name, inode number, `d_type`.
    pub fn entry(&mut self) -> Option<(Vec<u8>, u64, u8)> {
        // SAFETY: the stream is open, and only we use it.
        let entry = unsafe { libc::readdir(self.0) };
        if entry.is_null() {
            return None;
        }
        // SAFETY: the entry is valid until the next call, and its name is a C string.
        let (name, entry) = unsafe { (std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()), &*entry) };
        Some((name.to_bytes().to_vec(), entry.d_ino, entry.d_type))
    }
}

impl Drop for DirectoryStream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and closed once.
        unsafe { libc::closedir(self.0) };
    }
}

/// `flock(2)` without waiting; whether it was granted.
///
/// # Errors
/// The system's, but for being held by another.
pub fn try_flock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open as long as the file is borrowed.
    let result = check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) });
    granted(result)
}

/// An exclusive lock of the open file description on some bytes (`F_OFD_SETLK`), without waiting; whether it was granted.
///
/// # Errors
/// The system's, but for being held by another.
pub fn try_lock_bytes(file: &File, start: u64, length: u64) -> io::Result<bool> {
    // SAFETY: flock is plain data, for which zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).expect("a small constant");
    lock.l_whence = i16::try_from(libc::SEEK_SET).expect("a small constant");
    (lock.l_start, lock.l_len) = (offset(start), offset(length));
    // SAFETY: the descriptor is open as long as the file is borrowed, and the lock is valid during the call.
    granted(check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }))
}

fn granted(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EWOULDBLOCK | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}
