//! Which files are watched, and the journal of what happens to them.

use holdfast_tests::forgetful::journal::{Before, Inode, Record, SECTOR_BYTES};
use holdfast_tests::forgetful::{JOURNAL_VARIABLE, ROOT_VARIABLE};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use libc::{c_int, c_long};

/// Descriptors above this end the process if they are of a watched file.
const DESCRIPTORS_MAX: usize = 1 << 16;

/// What is watched by each descriptor. No lock guards it: `write` is also called by signal handlers.
static WATCHED: [AtomicPtr<File>; DESCRIPTORS_MAX] = [const { AtomicPtr::new(ptr::null_mut()) }; DESCRIPTORS_MAX];

/// A watched file or directory. There is one for each inode, and it is never dropped.
pub(crate) struct File {
    pub(crate) inode: Inode,
    /// Reads the file through the page cache, whatever the descriptors of the process can.
    reader: c_int,
    /// Held while its content changes, and when a sync begins: what the journal says before is then in the file.
    pub(crate) changing: Mutex<()>,
}

/// What the process watches.
pub(crate) struct Watch {
    root: Vec<u8>,
    held: Vec<u8>,
    journal: c_int,
    /// Records so far.
    records: Mutex<u64>,
    files: Mutex<HashMap<Inode, &'static File>>,
    next_held: AtomicU64,
    /// Held while a name changes, and when a sync of a directory begins.
    pub(crate) naming: Mutex<()>,
}

/// What this process watches; `None` if it was not asked to.
pub(crate) fn watch() -> Option<&'static Watch> {
    static WATCH: OnceLock<Option<Watch>> = OnceLock::new();
    WATCH.get_or_init(Watch::from_environment).as_ref()
}

/// The watched file behind a descriptor.
pub(crate) fn watched(descriptor: c_int) -> Option<&'static File> {
    let slot = WATCHED.get(usize::try_from(descriptor).ok()?)?.load(Ordering::Acquire);
    // SAFETY: the pointers come from `Box::leak`, so they are null or valid for ever, and nobody has a `&mut`.
    unsafe { slot.as_ref() }
}

/// The descriptor is of this file from now on.
pub(crate) fn set_watched(descriptor: c_int, file: Option<&'static File>) {
    let slot = usize::try_from(descriptor).ok().and_then(|at| WATCHED.get(at));
    match (slot, file) {
        (Some(slot), file) => {
            slot.store(file.map_or(ptr::null_mut(), |f| ptr::from_ref(f).cast_mut()), Ordering::Release)
        }
        (None, Some(_)) => give_up(c"a descriptor is too high"),
        (None, None) => {}
    }
}

/// Says why and ends the process.
pub(crate) fn give_up(why: &CStr) -> ! {
    for part in [c"forgetful disk: ", why, c"\n"] {
        raw(libc::SYS_write, &[2, part.as_ptr() as c_long, part.count_bytes() as c_long]);
    }
    std::process::abort();
}

/// The system call itself, past the definitions of this library; errno is set.
pub(crate) fn raw(number: c_long, arguments: &[c_long]) -> c_long {
    let at = |i: usize| arguments.get(i).copied().unwrap_or(0);
    // SAFETY: the arguments are those of a call that the process made, whose caller answers for them, or name memory of
    // this library that outlives the call.
    unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) }
}

impl Watch {
    fn from_environment() -> Option<Self> {
        let root = std::env::var_os(ROOT_VARIABLE)?.into_vec();
        let held = std::env::var_os(JOURNAL_VARIABLE)?.into_vec();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("/{:020}-{}.journal", now.as_nanos(), std::process::id());
        let path = CString::new([held.as_slice(), name.as_bytes()].concat()).ok()?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC;
        let journal =
            raw(libc::SYS_openat, &[c_long::from(libc::AT_FDCWD), path.as_ptr() as c_long, c_long::from(flags), 0o600]);
        if journal < 0 {
            give_up(c"the journal cannot be made");
        }
        Some(Self {
            root,
            held,
            journal: descriptor(journal),
            records: Mutex::new(0),
            files: Mutex::default(),
            next_held: AtomicU64::new(0),
            naming: Mutex::new(()),
        })
    }

    /// Whether a path names something below the root. Relative paths do not: the product is given absolute ones.
    pub(crate) fn covers(&self, path: &CStr) -> bool {
        path.to_bytes().strip_prefix(self.root.as_slice()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// Writes a record down; its number.
    pub(crate) fn record(&self, record: &Record) -> u64 {
        let bytes = record.encode();
        let mut records = self.records.lock();
        let written =
            raw(libc::SYS_write, &[c_long::from(self.journal), bytes.as_ptr() as c_long, bytes.len() as c_long]);
        if written != bytes.len() as c_long {
            give_up(c"the journal cannot be written");
        }
        *records += 1;
        *records - 1
    }

    /// How many records there are.
    pub(crate) fn count(&self) -> u64 {
        *self.records.lock()
    }

    /// The file behind a descriptor that was just opened, if it is a file or a directory.
    pub(crate) fn file(&self, opened: c_int) -> Option<&'static File> {
        let status = status_of(opened)?;
        let kind = status.st_mode & libc::S_IFMT;
        if kind != libc::S_IFREG && kind != libc::S_IFDIR {
            return None;
        }
        let mut files = self.files.lock();
        Some(files.entry(status.st_ino).or_insert_with(|| {
            let path = CString::new(format!("/proc/self/fd/{opened}")).unwrap_or_default();
            let flags = c_long::from(libc::O_RDONLY | libc::O_CLOEXEC);
            let reader = raw(libc::SYS_openat, &[c_long::from(libc::AT_FDCWD), path.as_ptr() as c_long, flags]);
            if reader < 0 {
                give_up(c"a watched file cannot be read");
            }
            Box::leak(Box::new(File { inode: status.st_ino, reader: descriptor(reader), changing: Mutex::new(()) }))
        }))
    }

    /// Writes down that `length` bytes from `offset` on are about to change, or only the file's length; the guard is held
    /// until they have.
    pub(crate) fn changes(&self, file: &'static File, offset: u64, length: u64) -> MutexGuard<'static, ()> {
        let guard = file.changing.lock();
        let now = status_of(file.reader).map_or(0, |status| status.st_size.cast_unsigned());
        let sector = SECTOR_BYTES as u64;
        let (start, end) = if length == 0 {
            (offset, offset)
        } else {
            (offset / sector * sector, (offset + length).next_multiple_of(sector))
        };
        let before = if start >= now { Before::Zeros(end - start) } else { Before::of(file.read(start, end)) };
        self.record(&Record::Changes { file: file.inode, length: now, offset: start, before });
        guard
    }

    /// Writes down that a name appears. Where its directory is missing, none will.
    pub(crate) fn creates(&self, path: &CStr) {
        let Some((directory, name)) = self.find_place(path) else { return };
        self.record(&Record::Creates { directory, name });
    }

    /// Writes down that a name goes, and keeps its file.
    pub(crate) fn removes(&self, path: &CStr) {
        let (directory, name) = self.place(path);
        if let Some(held) = self.hold(path) {
            self.record(&Record::Removes { directory, name, held });
        }
    }

    /// Writes down that a name becomes another, and keeps the file it replaces.
    pub(crate) fn renames(&self, from: &CStr, to: &CStr) {
        let ((directory, from), (target, name)) = (self.place(from), self.place(to));
        if directory != target {
            give_up(c"a rename to another directory is not modelled");
        }
        let held = self.hold(to).unwrap_or_default();
        self.record(&Record::Renames { directory, from, to: name, held });
    }

    /// Gives a file one more name, beside the journal; `None` if there is none, or a directory.
    fn hold(&self, path: &CStr) -> Option<OsString> {
        let name = format!("held-{}-{}", std::process::id(), self.next_held.fetch_add(1, Ordering::Relaxed));
        let target = CString::new([self.held.as_slice(), b"/", name.as_bytes()].concat()).ok()?;
        let here = c_long::from(libc::AT_FDCWD);
        let linked = raw(libc::SYS_linkat, &[here, path.as_ptr() as c_long, here, target.as_ptr() as c_long, 0]);
        (linked == 0).then(|| OsString::from(name))
    }

    /// The directory of a path, and its last name.
    fn place(&self, path: &CStr) -> (Inode, OsString) {
        self.find_place(path).unwrap_or_else(|| give_up(c"a name has no directory"))
    }

    /// The same, if there is such a directory.
    fn find_place(&self, path: &CStr) -> Option<(Inode, OsString)> {
        let path = OsStr::from_bytes(path.to_bytes());
        let path = std::path::Path::new(path);
        let directory = CString::new(path.parent()?.as_os_str().as_bytes()).ok()?;
        Some((status_at(&directory)?.st_ino, path.file_name()?.to_owned()))
    }
}

impl File {
    fn read(&self, start: u64, end: u64) -> Vec<u8> {
        let mut bytes = vec![0_u8; usize::try_from(end - start).unwrap_or_else(|_| give_up(c"a change is too large"))];
        let mut done = 0;
        while done < bytes.len() {
            let (rest, from) = (&mut bytes[done..], start + done as u64);
            let arguments =
                [c_long::from(self.reader), rest.as_mut_ptr() as c_long, rest.len() as c_long, from.cast_signed()];
            match raw(libc::SYS_pread64, &arguments) {
                0 => break, // the end of the file: zeros from here on
                read if read > 0 => done += usize::try_from(read).unwrap_or(0),
                _ => give_up(c"a watched file cannot be read"),
            }
        }
        bytes
    }
}

pub(crate) fn descriptor(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

pub(crate) fn status_of(descriptor: c_int) -> Option<libc::stat> {
    status(c_long::from(descriptor), c"", libc::AT_EMPTY_PATH)
}

pub(crate) fn status_at(path: &CStr) -> Option<libc::stat> {
    status(c_long::from(libc::AT_FDCWD), path, libc::AT_SYMLINK_NOFOLLOW)
}

fn status(directory: c_long, path: &CStr, flags: c_int) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    let arguments = [directory, path.as_ptr() as c_long, status.as_mut_ptr() as c_long, c_long::from(flags)];
    // SAFETY: newfstatat has filled the structure when it returns 0.
    (raw(libc::SYS_newfstatat, &arguments) == 0).then(|| unsafe { status.assume_init() })
}
