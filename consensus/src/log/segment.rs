//! Making segments ready ahead of their use: filled with zeros or recycled (R31), headed, synced, and only then named.
//!
//! A file named as a segment therefore always has a valid header; one without is damage, never a crash.

use std::io;
use std::sync::Arc;

use super::batch::SegmentHeader;
use holdfast_storage::{Directory, DiskFile, is_no_space, is_out_of_descriptors};

/// Name of a file that is no segment yet.
pub(super) const PREPARING: &str = "preparing.tmp";
/// Zeros that one write takes.
const ZEROS_BYTES: usize = 1 << 20;
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

/// A segment that was not made.
#[derive(Debug)]
pub(crate) struct Unprepared {
    pub(crate) error: io::Error,
    /// The file that was to be used again, if there was no descriptor for it and nothing has happened to it.
    pub(crate) untouched: Option<String>,
}

impl From<io::Error> for Unprepared {
    fn from(error: io::Error) -> Self {
        Self { error, untouched: None }
    }
}

impl Preparation {
    /// Makes it; it is there after a crash once this has returned. An error that [passes](is_passing) only says what is missing.
    pub(crate) fn run(&self, disk: &dyn Directory) -> Result<Arc<dyn DiskFile>, Unprepared> {
        let file = match &self.reused {
            Some(reused) => {
                // Opened first: without a descriptor it stays what it is.
                let file = disk.open(reused).map_err(|error| {
                    let untouched = is_out_of_descriptors(&error).then(|| reused.clone());
                    Unprepared { error, untouched }
                })?;
                // Its name goes durably before its header changes: recovery calls a segment with a wrong header damaged.
                disk.rename(reused, PREPARING)?;
                disk.sync_names().map_err(lasting)?;
                file
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

/// Overwrites a file with zeros, or fills it.
pub(super) fn fill_with_zeros(file: &dyn DiskFile, bytes: u32) -> io::Result<()> {
    let bytes = bytes as usize;
    let zeros = vec![0; ZEROS_BYTES.min(bytes)];
    let mut offset = 0;
    while offset < bytes {
        let n = zeros.len().min(bytes - offset);
        file.write_at(offset as u64, &zeros[..n])?;
        offset += n;
    }
    Ok(())
}

/// Whether an error says only that room or a file descriptor is missing, which passes: what met it is tried again.
pub(super) fn is_passing(error: &io::Error) -> bool {
    is_no_space(error) || is_out_of_descriptors(error)
}

/// The error of a sync. Whatever it says, what is durable is unknown: room that is made does not mend it.
pub(super) fn lasting(error: io::Error) -> io::Error {
    if is_passing(&error) { io::Error::other(error) } else { error }
}
