//! A write that waits to be admitted, and how far it has come. Pure.

use crate::{FileHandle, WriteAt};
use bytes::Bytes;
use holdfast_common::FileOffset;

/// Progress of the search for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Fresh,
    Asked,
    /// The disks seem full: what is dirty is flushed, and they are asked again.
    Flushing,
    AskedAgain,
    /// Too few disks answered to say anything.
    Unknown,
}

/// Progress of the search for quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Fresh,
    /// With slack beyond the need.
    AskedMore,
    Asked,
    /// The quota seems used up: what is dirty is flushed, which turns cautious charges into true ones.
    Flushing,
    /// The unmapped bytes under the write are counted: from this offset on, so far so many.
    Counting {
        at: FileOffset,
        unmapped: u64,
    },
    AskedExactly,
}

/// A write that waits to be admitted. It holds nothing but its bytes.
#[derive(Debug)]
pub(super) struct PendingWrite {
    pub(super) handle: FileHandle,
    pub(super) at: WriteAt,
    pub(super) data: Bytes,
    pub(super) mtime_ns: i64,
    pub(super) kill_suid_sgid: bool,
    /// Quota that it is charged.
    pub(super) charge_bytes: u64,
    pub(super) space: Space,
    pub(super) share: Share,
}

impl PendingWrite {
    /// Reason of its wait, as its timeout tells it.
    pub(super) fn wanting(&self) -> &'static str {
        match (self.space, self.share) {
            (Space::Asked | Space::AskedAgain | Space::Flushing, _) => "the disks did not promise space in time",
            (_, Share::Fresh) => "memory for written data is used up, and it does not reach the disks",
            _ => "the metadata leader did not grant quota in time",
        }
    }
}
