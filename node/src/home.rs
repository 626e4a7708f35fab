//! A role's directory while the role serves: it may be removed or replaced, and log and snapshots would be written on through
//! open files.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use holdfast_storage::is_out_of_descriptors;

use crate::superblock::SuperblockError;

/// Reason why a role's directory is not the one that it was started from.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum HomeLost {
    /// Another role, or another start of this one, is there.
    #[error("{} holds {found} now, this is {mine}", path.display())]
    Taken {
        path: PathBuf,
        /// Start that the superblock tells of that is there now.
        found: String,
        mine: String,
    },
    /// It is gone, or cannot be read.
    #[error("its directory is not what it was: {0}")]
    Superblock(#[from] SuperblockError),
}

/// Compares the start that a directory's superblock tells of, as it was just read, with the one that serves from it.
///
/// # Errors
/// [`HomeLost`]. A process that has no file descriptor left to look with is told nothing.
pub fn check_home<S: PartialEq + Display>(
    directory: &Path,
    mine: &S,
    found: Result<S, SuperblockError>,
) -> Result<(), HomeLost> {
    match found {
        Ok(found) if found == *mine => Ok(()),
        Ok(found) => {
            Err(HomeLost::Taken { path: directory.to_owned(), found: found.to_string(), mine: mine.to_string() })
        }
        Err(SuperblockError::Io { source, .. }) if is_out_of_descriptors(&source) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Has a directory looked at on a thread that may wait for the disk. A look that ends without a result says nothing.
///
/// # Errors
/// Those of `look`.
pub async fn look_at_home(look: impl FnOnce() -> Result<(), HomeLost> + Send + 'static) -> Result<(), HomeLost> {
    tokio::task::spawn_blocking(look).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn another_start_or_none_is_told_and_a_missing_descriptor_is_no_sign() {
        let path = Path::new("/home");
        let io_error =
            |errno| SuperblockError::Io { path: path.to_owned(), source: io::Error::from_raw_os_error(errno) };
        check_home(path, &"start 3", Ok("start 3")).unwrap();
        let taken = check_home(path, &"start 3", Ok("start 4")).unwrap_err();
        assert_eq!(taken.to_string(), "/home holds start 4 now, this is start 3");
        let missing_descriptors = [io_error(libc::EMFILE), io_error(libc::ENFILE)];
        missing_descriptors.into_iter().for_each(|error| check_home(path, &"start 3", Err(error)).unwrap());
        let lost = check_home(path, &"start 3", Err(io_error(libc::EIO))).unwrap_err();
        assert!(lost.to_string().starts_with("its directory is not what it was: /home: "), "{lost}");
    }
}
