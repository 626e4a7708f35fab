//! Making segments ready ahead of their use: filled with zeros or recycled, headed, synced, and only then named.
//!
//! A file named as a segment therefore always has a valid header; one without is damage, never a crash.

use std::io;
use std::sync::Arc;

use super::batch::SegmentHeader;
use holdfast_storage::{Directory, DiskFile};

/// Name of a file that is no segment yet.
const PREPARING: &str = "preparing.tmp";
/// Zeros written at once.
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
    /// An obsolete segment of the same size, whose file is used again.
    pub(crate) recycled: Option<u64>,
}

impl Preparation {
    /// Makes it; it is there after a crash once this has returned.
    pub(crate) fn run(&self, disk: &dyn Directory) -> io::Result<Arc<dyn DiskFile>> {
        let file = match self.recycled {
            Some(recycled) => {
                // Its name goes durably before its header changes: recovery calls a segment with a wrong header damaged.
                disk.rename(&name(recycled), PREPARING)?;
                disk.sync_names()?;
                disk.open(PREPARING)?
            }
            None => self.filled(disk)?,
        };
        file.write_at(0, &self.header.encode())?;
        file.sync_data()?;
        disk.rename(PREPARING, &name(self.header.segment))?;
        disk.sync_names()?;
        Ok(file)
    }

    fn filled(&self, disk: &dyn Directory) -> io::Result<Arc<dyn DiskFile>> {
        let file = disk.create_empty(PREPARING)?;
        let zeros = vec![0; ZEROS_BYTES.min(self.bytes as usize)];
        let mut offset = 0;
        while offset < self.bytes as usize {
            let n = zeros.len().min(self.bytes as usize - offset);
            file.write_at(offset as u64, &zeros[..n])?;
            offset += n;
        }
        Ok(file)
    }
}
