//! Making the log of a new node (R23), the only place that makes one where there is none; and looking at one without a change.

use std::path::Path;
use std::sync::Arc;

use holdfast_common::{LogIndex, random_bytes};
use holdfast_storage::{RealDirectory, create_directories};

use crate::config::{ExpectedLog, LOG_DIRECTORY, SNAPSHOT_DIRECTORY};
use crate::log::{Log, LogOptions};
use crate::opening::{log_error, snapshot_error};
use crate::sabotage::Sabotage;
use crate::snapshot;
use crate::status::OpenError;

/// Size of the first segment, which holds nothing and goes at the first start.
const SEGMENT_BYTES: u32 = 4096;

/// Makes the log of a new node below `directory`, and says its identity; durable when it returns. One that is there already and
/// holds nothing, as a formatting leaves it that was interrupted, is taken for it. Blocks.
///
/// # Errors
/// [`OpenError`]: among others [`OpenError::InUse`], of a log that holds something.
pub fn format_log(directory: &Path) -> Result<[u8; 16], OpenError> {
    // Recycled bytes of another log never pass for this one's.
    let random = random_bytes().map_err(|source| OpenError::Io { path: directory.to_owned(), source })?;
    format_log_as(directory, random)
}

/// The same under an identity that was written down before, random as well, for a node whose superblock has to name the log before
/// it is there.
///
/// # Errors
/// As [`format_log`].
pub fn format_log_as(directory: &Path, identity: [u8; 16]) -> Result<[u8; 16], OpenError> {
    let path = directory.join(LOG_DIRECTORY);
    let io_error = |source| OpenError::Io { path: path.clone(), source };
    create_directories(&path).map_err(io_error)?;
    let opened = Log::open(Arc::new(RealDirectory::new(&path)), options(identity, ExpectedLog::AnyOrNone));
    let (log, groups) = opened.map_err(|error| log_error(&path, error))?;
    if groups.is_empty() { Ok(log.identity()) } else { Err(OpenError::InUse { path }) }
}

/// Looks whether a node's log is the one expected, and whole with its snapshots: [`crate::Node::open`] would find it lost otherwise
/// ([`OpenError::is_lost`]). Changes nothing. Blocks for as long as reading takes.
///
/// # Errors
/// [`OpenError`], as opening it would give.
pub fn examine_log(directory: &Path, expected: ExpectedLog) -> Result<(), OpenError> {
    let (log, snapshots) = (directory.join(LOG_DIRECTORY), directory.join(SNAPSHOT_DIRECTORY));
    if !log.exists() {
        return Err(OpenError::Missing { path: log });
    }
    let found = Log::examine(&RealDirectory::new(&log), options([0; 16], expected));
    let groups = found.map_err(|error| log_error(&log, error))?;
    let disk = RealDirectory::new(&snapshots);
    for (group, mark) in groups.iter().map(|(group, replayed)| (*group, replayed.state.snapshot)) {
        if mark.index > LogIndex::ZERO {
            snapshot::verify_current(&disk, group, mark).map_err(|error| snapshot_error(&snapshots, group, error))?;
        }
    }
    Ok(())
}

fn options(identity: [u8; 16], expected: ExpectedLog) -> LogOptions {
    let sabotage = Sabotage::None;
    LogOptions { segment_bytes: SEGMENT_BYTES, bytes_max: u64::MAX, tail_entries: 0, identity, expected, sabotage }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(directory: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let entries = std::fs::read_dir(directory.join(LOG_DIRECTORY)).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries.map(|e| (e.file_name(), std::fs::read(e.path()).unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn a_log_is_looked_at_without_a_change() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let is_lost = |expected| examine_log(directory, expected).unwrap_err().is_lost();
        assert!(is_lost(ExpectedLog::Any), "there is none");
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
        let identity = format_log_as(directory, [7; 16]).unwrap();
        assert_eq!(identity, [7; 16]);
        let before = bytes_of(directory);
        examine_log(directory, ExpectedLog::Identity(identity)).unwrap();
        examine_log(directory, ExpectedLog::Any).unwrap();
        assert!(is_lost(ExpectedLog::Identity([8; 16])), "it is another one");
        assert_eq!(bytes_of(directory), before);
        let segment = directory.join(LOG_DIRECTORY).join(&before[0].0);
        std::fs::write(segment, b"damage").unwrap();
        assert!(is_lost(ExpectedLog::Any));
    }

    #[test]
    fn a_log_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let identity = format_log(directory.path()).unwrap();
        assert_eq!(format_log(directory.path()).unwrap(), identity, "it holds nothing");
        let other = tempfile::tempdir().unwrap();
        assert_ne!(format_log(other.path()).unwrap(), identity);
    }
}
