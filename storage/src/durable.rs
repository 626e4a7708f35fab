//! Small files that survive a crash whole, and locked directories.
//!
//! A file is replaced by writing a temporary beside it, syncing it, renaming it over, and syncing the directory: a
//! crash after any line leaves the old content or the new one, never a mixture.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time for which a lock that is held is tried again. A process that forks while it holds one passes it to the child,
/// which keeps it until it has become another program: for a moment after the holder has let go.
const LOCK_GRACE: Duration = Duration::from_millis(1500);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Replaces `path` by a file of these bytes, readable by its owner only from its first byte on; durable when it returns.
///
/// # Errors
/// Any I/O error; the old content then stands.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// Any I/O error.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

/// A directory that only one process uses. Released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing would leave it with the copies that children inherited until they exec; unlocking takes it from all.
        // If it fails, closing and their exec end it.
        let _ = self.file.unlock();
    }
}

/// Reason why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum LockError {
    /// Somebody holds it.
    #[error("{} is in use by another holdfast process", path.display())]
    InUse { path: PathBuf },
    /// The lock file could not be opened.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

impl DirectoryLock {
    /// Locks a directory that exists, by its file `lock`.
    ///
    /// # Errors
    /// [`LockError::InUse`] if another process, or another lock of this one, holds it.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: directory.to_owned(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(io_error)?;
        let deadline = Instant::now() + LOCK_GRACE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => return Err(LockError::InUse { path: directory.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("superblock");
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_that_is_let_go_soon_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirectoryLock::acquire(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| DirectoryLock::acquire(dir.path()).is_ok());
            drop(held);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn a_directory_is_locked_once_until_released() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirectoryLock::acquire(dir.path()).unwrap();
        assert!(matches!(DirectoryLock::acquire(dir.path()), Err(LockError::InUse { .. })));
        drop(held);
        DirectoryLock::acquire(dir.path()).unwrap();
    }
}
