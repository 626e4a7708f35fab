//! Making segments ready ahead of their use: filled with zeros or recycled, headed, synced, and only then named.
//!
//! A file named as a segment therefore always has a valid header; one without is damage, never a crash.

use std::io;
use std::sync::Arc;

use super::batch::SegmentHeader;
use super::spares::fill_with_zeros;
use holdfast_storage::{Directory, DiskFile, is_no_space};

/// Name of a file that is no segment yet.
pub(super) const PREPARING: &str = "preparing.tmp";
/// The file name of a segment.
pub(crate) fn name(segment: u64) -> String {
    format!("{segment:016x}.log")
}

/// The segment a file name stands for.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A segment to make.
#[derive(Debug)]
pub(crate) struct Preparation {
    pub(crate) header: SegmentHeader,
    pub(crate) bytes: u32,
    /// A file of the same size that is used again: an obsolete segment, or a spare.
    pub(crate) reused: Option<String>,
}

impl Preparation {
    /// Makes it; it is there after a crash once this has returned. An error that says that there is no space left only says that.
    pub(crate) fn run(&self, disk: &dyn Directory) -> io::Result<Arc<dyn DiskFile>> {
        let file = match &self.reused {
            Some(reused) => {
                // Its name goes durably before its header changes: recovery calls a segment with a wrong header damaged.
                disk.rename(reused, PREPARING)?;
                disk.sync_names().map_err(lasting)?;
                disk.open(PREPARING)?
            }
            None => self.filled(disk)?,
        };
        file.write_at(0, &self.header.encode())?;
        file.sync_data().map_err(lasting)?;
        disk.rename(PREPARING, &name(self.header.segment))?;
        disk.sync_names().map_err(lasting)?;
        Ok(file)
    }

    fn filled(&self, disk: &dyn Directory) -> io::Result<Arc<dyn DiskFile>> {
        let file = disk.create_empty(PREPARING)?;
        if let Err(error) = fill_with_zeros(&*file, self.bytes) {
            // A part of a segment must not take the last room of a full disk.
            disk.remove(PREPARING)?;
            return Err(error);
        }
        Ok(file)
    }
}

/// The error of a sync. Whatever it says, what is durable is unknown: room that is made does not mend it.
pub(super) fn lasting(error: io::Error) -> io::Error {
    if is_no_space(&error) { io::Error::other(error) } else { error }
}
