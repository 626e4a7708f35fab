//! File descriptors, which a process has few of: the limit raised, and a bounded set of open files.
//!
//! A store has thousands of segments and touches few at a time, so a file is opened when it is needed and closed when
//! others need its place. A file with unsynced writes is never closed: the kernel reports a failed write-back once, to
//! the descriptors that are open then, and a sync through a descriptor opened later would call lost bytes durable.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::is_out_of_descriptors;

/// At the limit, one open file in this many is closed at once, so that the search for the oldest is seldom.
const CLOSED_PART: usize = 16;

/// Raises the limit of open files of this process (RLIMIT_NOFILE) as far as it may, and says what it is now.
///
/// # Errors
/// The system refuses.
pub fn raise_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to an rlimit of ours, and this call writes nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to an rlimit of ours, which the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[derive(Debug, Default)]
pub(crate) struct Slot {
    file: RwLock<Option<Arc<File>>>,
    used_at: AtomicU64,
}

/// A file's descriptors and whether they may be closed.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) buffered: Slot,
    pub(crate) direct: Slot,
    /// Counts writes begun; and the count that the last successful sync covered.
    written: AtomicU64,
    synced: AtomicU64,
}

impl Slots {
    /// Notes a write that begins: the file stays open until a sync that begins later has succeeded.
    pub(crate) fn begin_write(&self) {
        self.written.fetch_add(1, Ordering::AcqRel);
    }

    /// The mark to hand to [`Slots::end_sync`] of a sync that begins now.
    pub(crate) fn begin_sync(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Notes a sync that succeeded.
    pub(crate) fn end_sync(&self, mark: u64) {
        self.synced.fetch_max(mark, Ordering::AcqRel);
    }

    fn is_unsynced(&self) -> bool {
        self.written.load(Ordering::Acquire) != self.synced.load(Ordering::Acquire)
    }

    /// Closes what nobody uses; says how many descriptors that gave back.
    fn close(&self) -> usize {
        let mut closed = 0;
        for slot in [&self.direct, &self.buffered] {
            // A slot that is locked is being opened or used.
            let Some(mut file) = slot.file.try_write() else { continue };
            let idle = file.as_ref().is_some_and(|file| Arc::strong_count(file) == 1);
            if idle && !self.is_unsynced() {
                *file = None;
                closed += 1;
            }
        }
        closed
    }

    fn is_open(&self) -> bool {
        [&self.direct, &self.buffered].iter().any(|slot| slot.file.read().is_some())
    }

    fn used_at(&self) -> u64 {
        self.direct.used_at.load(Ordering::Relaxed).max(self.buffered.used_at.load(Ordering::Relaxed))
    }
}

/// Bound on the open descriptors of a disk, or of several.
#[derive(Debug)]
pub struct Descriptors {
    max_count: usize,
    open_count: AtomicUsize,
    clock: AtomicU64,
    files: Mutex<BTreeMap<usize, Weak<Slots>>>,
}

impl Descriptors {
    /// At most `max_count` descriptors, as far as unsynced files and those in use leave the choice.
    #[must_use]
    pub fn new(max_count: usize) -> Arc<Self> {
        Arc::new(Self {
            max_count: max_count.max(1),
            open_count: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
            files: Mutex::default(),
        })
    }

    /// Count of descriptors that are open now.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open_count.load(Ordering::Relaxed)
    }

    /// Returns the descriptor of a slot, opened by `open` if it is not there.
    pub(crate) fn get(
        &self,
        slots: &Arc<Slots>,
        slot: &Slot,
        open: impl Fn() -> io::Result<File>,
    ) -> io::Result<Arc<File>> {
        slot.used_at.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        if let Some(file) = &*slot.file.read() {
            return Ok(file.clone());
        }
        if self.open_count() >= self.max_count {
            self.make_room();
        }
        let mut place = slot.file.write();
        if let Some(file) = &*place {
            return Ok(file.clone());
        }
        let file = match open() {
            Err(error) if is_out_of_descriptors(&error) && self.make_room() => open()?,
            other => other?,
        };
        let file = Arc::new(file);
        *place = Some(file.clone());
        drop(place);
        self.open_count.fetch_add(1, Ordering::Relaxed);
        self.files.lock().insert(Arc::as_ptr(slots).addr(), Arc::downgrade(slots));
        Ok(file)
    }

    /// Closes some files, because the process may have no more. Files of an unbounded set stay open.
    fn make_room(&self) -> bool {
        let surplus = self.open_count().saturating_sub(self.max_count);
        self.max_count < usize::MAX && self.close_oldest(surplus + self.max_count / CLOSED_PART + 1) > 0
    }

    /// Closes the files that were used longest ago; says how many descriptors that gave back.
    fn close_oldest(&self, wanted_count: usize) -> usize {
        let mut files = self.files.lock();
        let mut open: Vec<(u64, usize, Arc<Slots>)> = Vec::with_capacity(files.len());
        files.retain(|address, slots| {
            let Some(slots) = slots.upgrade().filter(|slots| slots.is_open()) else { return false };
            open.push((slots.used_at(), *address, slots));
            true
        });
        open.sort_unstable_by_key(|(used_at, address, _)| (*used_at, *address));
        let mut closed = 0;
        for (_, _, slots) in open {
            if closed >= wanted_count {
                break;
            }
            closed += slots.close();
        }
        self.open_count.fetch_sub(closed, Ordering::Relaxed);
        closed
    }

    /// A file's handle was let go, and with it its descriptors.
    pub(crate) fn forget(&self, slots: &Arc<Slots>) {
        let open = [&slots.direct, &slots.buffered].iter().filter(|slot| slot.file.write().take().is_some()).count();
        self.open_count.fetch_sub(open, Ordering::Relaxed);
        self.files.lock().remove(&Arc::as_ptr(slots).addr());
    }
}
