//! The C library's calls, as the process under test finds them. Whoever makes one answers for its arguments as the manual
//! demands of it.

use crate::watch::{File, Watch, descriptor, give_up, raw, set_watched, status_at, status_of, watch, watched};
use holdfast_tests::forgetful::journal::Record;
use libc::{c_char, c_int, c_long, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t};
use std::ffi::CStr;

const HERE: c_int = libc::AT_FDCWD;

/// The watch and a path, if it is watched.
///
/// # Safety
/// `path` is a C string.
unsafe fn covered<'a>(directory: c_int, path: *const c_char) -> Option<(&'static Watch, &'a CStr)> {
    let watch = watch()?;
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    if directory != HERE && !path.to_bytes().starts_with(b"/") {
        return None;
    }
    watch.covers(path).then_some((watch, path))
}

fn word(pointer: *const c_void) -> c_long {
    pointer as c_long
}

/// # Safety
/// `path` is a C string.
unsafe fn open_any(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let call = || {
        let arguments = [c_long::from(directory), word(path.cast()), c_long::from(flags), c_long::from(mode)];
        descriptor(raw(libc::SYS_openat, &arguments))
    };
    // SAFETY: the caller's promise.
    let Some((watch, path)) = (unsafe { covered(directory, path) }) else {
        let opened = call();
        set_watched(opened, None);
        return opened;
    };
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        give_up(c"a file without a name is not modelled");
    }
    let naming = watch.naming.lock();
    let mut changing = None;
    match status_at(path) {
        None if flags & libc::O_CREAT != 0 => watch.creates(path),
        Some(status) if flags & libc::O_TRUNC != 0 && flags & libc::O_EXCL == 0 && status.st_size > 0 => {
            let flags = c_long::from(libc::O_RDONLY | libc::O_CLOEXEC);
            let reader = descriptor(raw(libc::SYS_openat, &[c_long::from(HERE), word(path.as_ptr().cast()), flags]));
            if let Some(file) = watch.file(reader) {
                changing = Some(watch.changes(file, 0, status.st_size.cast_unsigned()));
            }
            raw(libc::SYS_close, &[c_long::from(reader)]);
        }
        _ => {}
    }
    let opened = call();
    drop((changing, naming));
    if opened >= 0 {
        set_watched(opened, watch.file(opened));
    }
    opened
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(HERE, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(HERE, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(directory, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(directory, path, flags, mode) }
}

#[unsafe(no_mangle)]
extern "C" fn close(closed: c_int) -> c_int {
    set_watched(closed, None);
    descriptor(raw(libc::SYS_close, &[c_long::from(closed)]))
}

#[unsafe(no_mangle)]
extern "C" fn dup(old: c_int) -> c_int {
    let new = descriptor(raw(libc::SYS_dup, &[c_long::from(old)]));
    set_watched(new, watched(old));
    new
}

#[unsafe(no_mangle)]
extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    set_watched(new, watched(old));
    descriptor(raw(libc::SYS_dup3, &[c_long::from(old), c_long::from(new), 0]))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(file: c_int, command: c_int, argument: c_long) -> c_int {
    let result = descriptor(raw(libc::SYS_fcntl, &[c_long::from(file), c_long::from(command), argument]));
    if command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC {
        set_watched(result, watched(file));
    }
    result
}

/// Changes a range of a watched file, or passes the call through.
fn change(file: c_int, offset: impl FnOnce() -> off_t, length: u64, call: impl FnOnce() -> c_long) -> c_long {
    let guard =
        watched(file).zip(watch()).map(|(watched, watch)| watch.changes(watched, offset().cast_unsigned(), length));
    let result = call();
    drop(guard);
    result
}

/// Where write(2) writes.
fn position(file: c_int) -> off_t {
    if raw(libc::SYS_fcntl, &[c_long::from(file), c_long::from(libc::F_GETFL), 0]) & c_long::from(libc::O_APPEND) != 0 {
        status_of(file).map_or(0, |status| status.st_size)
    } else {
        raw(libc::SYS_lseek, &[c_long::from(file), 0, c_long::from(libc::SEEK_CUR)])
    }
}

#[unsafe(no_mangle)]
extern "C" fn write(file: c_int, bytes: *const c_void, length: size_t) -> ssize_t {
    let call = || raw(libc::SYS_write, &[c_long::from(file), word(bytes), length as c_long]);
    narrow(change(file, || position(file), length as u64, call))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(file: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    let call = || raw(libc::SYS_writev, &[c_long::from(file), word(parts.cast()), c_long::from(count)]);
    if watched(file).is_none() {
        return narrow(call());
    }
    // SAFETY: the caller's promise: `count` of them.
    let parts = unsafe { std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or(0)) };
    let length = parts.iter().map(|part| part.iov_len as u64).sum();
    narrow(change(file, || position(file), length, call))
}

fn pwrite_any(file: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    let call = || raw(libc::SYS_pwrite64, &[c_long::from(file), word(bytes), length as c_long, offset]);
    narrow(change(file, || offset, length as u64, call))
}

#[unsafe(no_mangle)]
extern "C" fn pwrite(file: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    pwrite_any(file, bytes, length, offset)
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(file: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    pwrite_any(file, bytes, length, offset)
}

fn truncate_any(file: c_int, length: off_t) -> c_int {
    let now = status_of(file).map_or(0, |status| status.st_size);
    let lost = (now - length).max(0).cast_unsigned();
    descriptor(change(file, || length, lost, || raw(libc::SYS_ftruncate, &[c_long::from(file), length])))
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate(file: c_int, length: off_t) -> c_int {
    truncate_any(file, length)
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(file: c_int, length: off_t) -> c_int {
    truncate_any(file, length)
}

fn allocate_any(file: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    let erases = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
    if watched(file).is_some() && mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0 {
        give_up(c"moving ranges is not modelled");
    }
    let call = || raw(libc::SYS_fallocate, &[c_long::from(file), c_long::from(mode), offset, length]);
    descriptor(change(file, || offset, if erases { length.cast_unsigned() } else { 0 }, call))
}

#[unsafe(no_mangle)]
extern "C" fn fallocate(file: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    allocate_any(file, mode, offset, length)
}

#[unsafe(no_mangle)]
extern "C" fn fallocate64(file: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    allocate_any(file, mode, offset, length)
}

/// A sync covers what was written down, and done, before it began.
fn sync(number: c_long, file: c_int) -> c_int {
    let Some((watched, watch)) = watched(file).zip(watch()) else {
        return descriptor(raw(number, &[c_long::from(file)]));
    };
    let up_to = {
        let _guards = (watch.naming.lock(), watched.changing.lock());
        watch.count()
    };
    let result = descriptor(raw(number, &[c_long::from(file)]));
    if result == 0 {
        watch.record(&Record::Synced { file: watched.inode, up_to });
    }
    result
}

#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    sync(libc::SYS_fsync, file)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(libc::SYS_fdatasync, file)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let (source, target) = unsafe { (covered(HERE, from), covered(HERE, to)) };
    let naming = watch().map(|watch| watch.naming.lock());
    match (source, target) {
        (Some((watch, from)), Some((_, to))) => watch.renames(from, to),
        (None, None) => {}
        _ => give_up(c"a rename into or out of the watched directory is not modelled"),
    }
    let here = c_long::from(HERE);
    let result = descriptor(raw(libc::SYS_renameat, &[here, word(from.cast()), here, word(to.cast())]));
    drop(naming);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let target = unsafe { covered(directory, path) };
    let naming = watch().map(|watch| watch.naming.lock());
    if let Some((watch, path)) = target
        && flags & libc::AT_REMOVEDIR == 0
    {
        watch.removes(path);
    }
    let result =
        descriptor(raw(libc::SYS_unlinkat, &[c_long::from(directory), word(path.cast()), c_long::from(flags)]));
    drop(naming);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(HERE, path, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    let target = unsafe { covered(directory, path) };
    let naming = watch().map(|watch| watch.naming.lock());
    if let Some((watch, path)) = target
        && status_at(path).is_none()
    {
        watch.creates(path);
    }
    let arguments = [c_long::from(directory), word(path.cast()), c_long::from(mode)];
    let result = descriptor(raw(libc::SYS_mkdirat, &arguments));
    drop(naming);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { mkdirat(HERE, path, mode) }
}

/// A call that changes a watched file in a way that is not modelled.
fn refuse(file: Option<&File>) {
    if file.is_some() {
        give_up(c"a call on a watched file is not modelled");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile64(out: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    refuse(watched(out));
    let arguments = [c_long::from(out), c_long::from(from), word(offset.cast()), count as c_long];
    narrow(raw(libc::SYS_sendfile, &arguments))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn splice(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    refuse(watched(to));
    let (from, to) = (c_long::from(from), c_long::from(to));
    let (from_offset, to_offset) = (word(from_offset.cast()), word(to_offset.cast()));
    let arguments = [from, from_offset, to, to_offset, length as c_long, c_long::from(flags)];
    narrow(raw(libc::SYS_splice, &arguments))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> *mut c_void {
    if flags & libc::MAP_SHARED != 0 && protection & libc::PROT_WRITE != 0 {
        refuse(watched(file));
    }
    let (protection, flags) = (c_long::from(protection), c_long::from(flags));
    let arguments = [word(address), length as c_long, protection, flags, c_long::from(file), offset];
    raw(libc::SYS_mmap, &arguments) as *mut c_void
}

fn narrow(result: c_long) -> ssize_t {
    ssize_t::try_from(result).unwrap_or(-1)
}
