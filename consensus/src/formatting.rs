//! Making the log of a new node: the only place that makes one where there is none.

use std::path::Path;
use std::sync::Arc;

use holdfast_common::random_bytes;
use holdfast_storage::{RealDirectory, create_directories};

use crate::config::ExpectedLog;
use crate::log::{Log, LogOptions};
use crate::node::LOG_DIRECTORY;
use crate::opening::log_error;
use crate::sabotage::Sabotage;
use crate::status::OpenError;

/// The first segment holds nothing and goes at the first start.
const SEGMENT_BYTES: u32 = 4096;

/// Makes the log of a new node below `directory`, and says its identity; durable when it returns. One that is there already and
/// holds nothing, as a formatting leaves it that was interrupted, is taken for it. Blocks.
///
/// # Errors
/// [`OpenError`]: among others [`OpenError::InUse`], of a log that holds something.
pub fn format_log(directory: &Path) -> Result<[u8; 16], OpenError> {
    let path = directory.join(LOG_DIRECTORY);
    let io_error = |source| OpenError::Io { path: path.clone(), source };
    create_directories(&path).map_err(io_error)?;
    let options = LogOptions {
        segment_bytes: SEGMENT_BYTES,
        bytes_max: u64::MAX,
        tail_entries: 0,
        // Recycled bytes of another log never pass for this one's.
        identity: random_bytes().map_err(io_error)?,
        expected: ExpectedLog::AnyOrNone,
        sabotage: Sabotage::None,
    };
    let opened = Log::open(Arc::new(RealDirectory::new(&path)), options);
    let (log, groups) = opened.map_err(|error| log_error(&path, error))?;
    if groups.is_empty() { Ok(log.identity()) } else { Err(OpenError::InUse { path }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let identity = format_log(directory.path()).unwrap();
        assert_eq!(format_log(directory.path()).unwrap(), identity, "it holds nothing");
        let other = tempfile::tempdir().unwrap();
        assert_ne!(format_log(other.path()).unwrap(), identity);
    }
}
