//! Extended attributes by the system calls themselves, which the standard library lacks.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `XATTR_CREATE`: it must be new.
pub const CREATE: i32 = libc::XATTR_CREATE;
/// `XATTR_REPLACE`: it must be there.
pub const REPLACE: i32 = libc::XATTR_REPLACE;

fn text(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("tests use no NUL in names")
}

fn path_text(path: &Path) -> CString {
    text(path.as_os_str().as_bytes())
}

/// The names, each followed by a NUL.
///
/// # Errors
/// As `llistxattr(2)`.
pub fn list(path: &Path) -> io::Result<Vec<u8>> {
    let path = path_text(path);
    grow(|buffer| {
        // SAFETY: the path is a C string and the buffer is as long as it is said to be.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

/// The value of one.
///
/// # Errors
/// As `lgetxattr(2)`.
pub fn get(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let (path, name) = (path_text(path), text(name));
    grow(|buffer| {
        // SAFETY: path and name are C strings and the buffer is as long as it is said to be.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

/// Sets one; `flags` is 0, [`CREATE`] or [`REPLACE`].
///
/// # Errors
/// As `lsetxattr(2)`.
pub fn set(path: &Path, name: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (path_text(path), text(name));
    // SAFETY: path and name are C strings and the value is as long as it is said to be.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

/// Removes one.
///
/// # Errors
/// As `lremovexattr(2)`.
pub fn remove(path: &Path, name: &[u8]) -> io::Result<()> {
    let (path, name) = (path_text(path), text(name));
    // SAFETY: path and name are C strings.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Calls with the largest buffer that Linux can need (64 KiB both for a list and for a value).
fn grow(call: impl FnOnce(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let length = usize::try_from(call(&mut buffer)).map_err(|_| io::Error::last_os_error())?;
    buffer.truncate(length);
    Ok(buffer)
}
