//! State that the writer of a disk and its readers share: the index, the space, and whether the disk is in service.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_common::DiskId;
use holdfast_storage::{Directory, FileSystemSpace, is_no_space, is_out_of_descriptors};
use parking_lot::{Mutex, RwLock};

use super::space::{Budget, SpaceBook};
use super::surroundings::Clock;
use super::types::ShardError;
use super::{Sabotage, State, failure};

/// Maximum age of a look at the file system's free space.
const SPACE_BELIEVED: Duration = Duration::from_millis(100);

/// A look at the file system's free space.
pub(super) struct Look {
    /// When, on the node's clock; `None` if the next budget has to look again.
    at: Option<Duration>,
    pub(super) space: FileSystemSpace,
}

impl Look {
    pub(super) fn new(now: Duration, space: FileSystemSpace) -> Self {
        Self { at: Some(now), space }
    }

    fn is_believed(&self, now: Duration) -> bool {
        self.at.is_some_and(|at| now.saturating_sub(at) <= SPACE_BELIEVED)
    }
}

/// A failure for good, which later starts must know of.
#[derive(Debug, Default)]
pub(super) enum Failure {
    #[default]
    None,
    /// No place has the note of it yet; the reason.
    Unnoted(String),
    Noted,
}

pub(crate) struct Shared {
    pub(super) clock: Clock,
    pub(crate) directory: Arc<dyn Directory>,
    /// A directory elsewhere that is told of a failure too.
    pub(super) witness: Option<Arc<dyn Directory>>,
    pub(crate) disk: DiskId,
    pub(crate) state: RwLock<State>,
    pub(crate) book: SpaceBook,
    pub(crate) limit_bytes: Option<u64>,
    pub(super) sabotage: Sabotage,
    pub(super) failed: AtomicBool,
    pub(super) failure: Mutex<Failure>,
    /// Bytes of puts that were admitted and are not in the index yet.
    pub(crate) unapplied_bytes: AtomicU64,
    pub(super) space: Mutex<Look>,
    /// A missing descriptor was said once since the last success.
    pub(super) short_of_descriptors: AtomicBool,
    pub(crate) corrupt_reads: AtomicU64,
}

impl Shared {
    pub(crate) fn now(&self) -> Duration {
        (self.clock)()
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Takes the disk out of service for good (D6): what the kernel holds of it is unknown from now on, so nothing is retried,
    /// and it is written down so that no later start retries either.
    pub(crate) fn poison(&self, what: &str, error: &std::io::Error) -> ShardError {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(disk = self.disk.0, %error, "disk out of service: {what} failed");
            *self.failure.lock() = match self.sabotage {
                Sabotage::ForgetFailure => Failure::Noted,
                _ => Failure::Unnoted(format!("{what}: {error}")),
            };
            for (path, error) in self.note_failure() {
                let path = path.display();
                tracing::error!(disk = self.disk.0, %error, %path, "the failure cannot be written down here");
            }
        }
        ShardError::DiskFailed
    }

    /// Writes down why the disk failed, unless a place has the note; the places that refused it. If all did, upkeep tries again:
    /// without a note the next start takes the disk for a good one.
    fn note_failure(&self) -> Vec<(PathBuf, std::io::Error)> {
        let mut failure = self.failure.lock();
        let Failure::Unnoted(reason) = &*failure else { return Vec::new() };
        let noted = failure::note(&*self.directory, self.witness.as_deref(), self.disk, reason);
        if noted.is_taken {
            *failure = Failure::Noted;
        }
        noted.refusals
    }

    /// Tries again to write down why the disk failed, if no place has taken the note so far.
    pub(crate) fn note_failure_at_last(&self) {
        let was_noted = self.is_failure_noted();
        self.note_failure();
        if !was_noted && self.is_failure_noted() {
            tracing::warn!(disk = self.disk.0, "the failure is written down now");
        }
    }

    /// Whether the disk failed for good, and a place has the note of it.
    pub(crate) fn is_failure_noted(&self) -> bool {
        matches!(&*self.failure.lock(), Failure::Noted)
    }

    /// Takes the disk out of service until it is opened again: what is on it is as good as it was.
    pub(crate) fn retire(&self, why: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(disk = self.disk.0, "disk out of service: {why}");
        }
    }

    /// Translates a failed change into the answer to its request. Without a descriptor nothing was done, and the
    /// request is tried again; a file that is gone was taken away while the node ran. Anything else leaves open what is
    /// on the disk.
    pub(crate) fn trouble(&self, what: &str, error: &std::io::Error) -> ShardError {
        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE)) {
            self.retire(&format!("{what} failed, {error}: its directory was removed or another is in its place"));
            return ShardError::DiskFailed;
        }
        if !is_out_of_descriptors(error) {
            return self.poison(what, error);
        }
        if !self.short_of_descriptors.swap(true, Ordering::Relaxed) {
            tracing::warn!(disk = self.disk.0, %error, "requests wait: {what} needs a file descriptor");
        }
        ShardError::Busy
    }

    /// Translates a failed change that nothing was promised of: without space it is tried again later.
    pub(crate) fn unchanged(&self, what: &str, error: &std::io::Error) -> ShardError {
        if !is_no_space(error) || self.sabotage == Sabotage::NoRoomFails {
            return self.trouble(what, error);
        }
        self.doubt_space();
        ShardError::NoSpace
    }

    /// Translates a failed read: damage of that shard, unless there was no descriptor for it.
    pub(crate) fn unread(&self, key: &dyn std::fmt::Debug, error: &std::io::Error) -> ShardError {
        if is_out_of_descriptors(error) {
            return self.trouble("reading", error);
        }
        self.corrupt_reads.fetch_add(1, Ordering::Relaxed);
        tracing::error!(disk = self.disk.0, ?key, %error, "a shard cannot be read");
        ShardError::Corrupt
    }

    /// Free space at `now`, with nothing reserved.
    pub(crate) fn budget(&self, now: Duration) -> Result<Budget, ShardError> {
        let used_bytes = self.state.read().index.used_bytes() + self.unapplied_bytes.load(Ordering::Relaxed);
        let mut look = self.space.lock();
        if !look.is_believed(now) {
            match self.directory.space() {
                Ok(fresh) => *look = Look::new(now, fresh),
                Err(error) if is_out_of_descriptors(&error) => return Err(self.trouble("statvfs", &error)),
                // What was free a moment ago is the best guess; a write that does not fit says so itself.
                Err(error) => tracing::warn!(disk = self.disk.0, %error, "the free space cannot be asked for"),
            }
        }
        Ok(Budget::new(&look.space, used_bytes, self.limit_bytes))
    }

    /// The file system whose free bytes this disk may share with others; 0 if it has a limit of its own.
    pub(super) fn shared_file_system(&self) -> u64 {
        if self.limit_bytes.is_some() { 0 } else { self.space.lock().space.file_system }
    }

    /// Takes written bytes off the believed free space until the next look.
    pub(crate) fn spend(&self, bytes: u64) {
        let space = &mut self.space.lock().space;
        space.available_bytes = space.available_bytes.saturating_sub(bytes);
    }

    /// Makes the next [`Shared::budget`] look again.
    pub(crate) fn doubt_space(&self) {
        self.space.lock().at = None;
    }
}
