//! Listing a directory: "." and "..", cookies, how much to fetch, and where an open directory was seen to end.
//!
//! Offsets as the kernel sees them: 1 stands behind ".", 2 behind "..", an entry's cookie behind that entry. The kernel
//! asks with the last offset it took.

use super::serve::Refusal;
use holdfast_client::DirectoryEntry;
use holdfast_common::InodeId;
use holdfast_common::limits::FIRST_COOKIE;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const BEHIND_SELF: u64 = 1;
const BEHIND_PARENT: u64 = 2;
const _: () = assert!(BEHIND_PARENT < FIRST_COOKIE);

/// Entries asked for at once, at least and at most. The upper bound keeps an answer well below a frame.
const BATCH_ENTRIES: (usize, usize) = (16, 1024);
/// Bytes that glibc reads at once: the guess before a reply was seen full.
const CAPACITY_BYTES_GUESS: usize = 32 << 10;
/// An entry's size before its name: struct fuse_dirent.
const PLAIN_BYTES: usize = 24;
/// Head of an entry with attributes: struct fuse_direntplus.
const PLUS_BYTES: usize = 152;
/// Guessed length of a name before any was seen.
const NAME_BYTES_GUESS: usize = 16;

/// Buffer of a reply that takes entries.
pub(super) trait Buffer {
    const WITH_ATTRIBUTES: bool;
    /// Takes "." or "..". True: it is full and did not take it.
    fn dot(&mut self, name: &'static str, inode: InodeId, offset: u64) -> bool;
    /// Takes an entry. True: it is full and did not take it. The next ask is for `entry.cookie`.
    fn entry(&mut self, entry: &DirectoryEntry) -> bool;
}

/// Experience of all listings, by which replies are sized.
#[derive(Debug)]
pub(super) struct Directories {
    next_handle: AtomicU64,
    /// Open directories, and the offset behind which a listing found nothing. Bounded by the kernel's open files.
    open: Mutex<HashMap<u64, Option<u64>>>,
    /// Bytes that the last full reply had taken: the kernel does not tell the size of a reply.
    capacity_bytes: AtomicUsize,
}

impl Directories {
    pub(super) fn new() -> Self {
        Self {
            next_handle: AtomicU64::new(1),
            open: Mutex::default(),
            capacity_bytes: AtomicUsize::new(CAPACITY_BYTES_GUESS),
        }
    }

    pub(super) fn opened(&self) -> u64 {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(handle, None);
        handle
    }

    pub(super) fn released(&self, handle: u64) {
        self.open.lock().remove(&handle);
    }

    /// Whether this open directory was seen to end at `offset`. POSIX leaves open whether an open directory shows later
    /// additions, so that the kernel's last ask, for what is behind the end, needs no question to the cluster.
    pub(super) fn ends_at(&self, handle: u64, offset: u64) -> bool {
        self.open.lock().get(&handle).is_some_and(|end| *end == Some(offset))
    }

    fn saw_end(&self, handle: u64, offset: u64) {
        if let Some(end) = self.open.lock().get_mut(&handle) {
            *end = Some(offset);
        }
    }

    /// Fills `into` with what is behind `offset`. `parent` finds the inode of "..", `fetch` gets entries behind a cookie,
    /// at most so many; none means the end.
    pub(super) async fn list<B, F, G>(
        &self,
        handle: u64,
        (this, offset): (InodeId, u64),
        into: &mut B,
        parent: impl Future<Output = InodeId>,
        mut fetch: F,
    ) -> Result<(), Refusal>
    where
        B: Buffer,
        F: FnMut(u64, u32) -> G,
        G: Future<Output = Result<Vec<DirectoryEntry>, Refusal>>,
    {
        let mut fill = Fill { capacity_bytes: self.capacity_bytes.load(Ordering::Relaxed), bytes: 0, entries: 0 };
        let mut after = if offset <= BEHIND_PARENT { 0 } else { offset };
        let mut batch = if offset < BEHIND_PARENT {
            let (batch, parent) = tokio::join!(fetch(after, fill.next_batch::<B>()), parent);
            if offset < BEHIND_SELF && into.dot(".", this, BEHIND_SELF) || into.dot("..", parent, BEHIND_PARENT) {
                return Ok(());
            }
            batch?
        } else {
            fetch(after, fill.next_batch::<B>()).await?
        };
        while let Some(last) = batch.last() {
            after = last.cookie;
            for entry in &batch {
                if into.entry(entry) {
                    self.capacity_bytes.store(fill.bytes.max(PLUS_BYTES), Ordering::Relaxed);
                    return Ok(());
                }
                fill.took::<B>(entry);
            }
            batch = fetch(after, fill.next_batch::<B>()).await?;
        }
        // With nothing behind the dots the kernel asks again with the offset of the last of them.
        self.saw_end(handle, after.max(BEHIND_PARENT));
        Ok(())
    }
}

/// Fill of a reply, as far as it shows from outside.
struct Fill {
    capacity_bytes: usize,
    bytes: usize,
    entries: usize,
}

impl Fill {
    fn header_bytes<B: Buffer>() -> usize {
        if B::WITH_ATTRIBUTES { PLUS_BYTES } else { PLAIN_BYTES }
    }

    fn took<B: Buffer>(&mut self, entry: &DirectoryEntry) {
        self.bytes += (Self::header_bytes::<B>() + entry.name.len()).next_multiple_of(8);
        self.entries += 1;
    }

    /// About as many as still fit, so that little is fetched in vain.
    fn next_batch<B: Buffer>(&self) -> u32 {
        let entry_bytes = if self.entries == 0 {
            Self::header_bytes::<B>() + NAME_BYTES_GUESS
        } else {
            self.bytes.div_ceil(self.entries)
        };
        let fits = self.capacity_bytes.saturating_sub(self.bytes) / entry_bytes + 1;
        u32::try_from(fits.clamp(BATCH_ENTRIES.0, BATCH_ENTRIES.1)).expect("clamped")
    }
}

#[cfg(test)]
mod tests;
