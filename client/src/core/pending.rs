//! A write that waits to be admitted, and how far it has come. Pure.

use crate::{FileHandle, WriteAt};
use bytes::Bytes;
use holdfast_common::FileOffset;

/// How far the search for space has come.
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

/// How far the search for quota has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Fresh,
    /// With slack beyond the need.
    AskedMore,
    Asked,
    /// The quota seems used up: what is dirty is flushed, which turns cautious charges into true ones.
    Flushing,
    /// What the write will really map is counted, from this offset on, so far so many bytes.
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
    /// What it is charged of the quota.
    pub(super) charge_bytes: u64,
    pub(super) space: Space,
    pub(super) share: Share,
}

impl PendingWrite {
    /// What it waits for, for people.
    pub(super) fn wanting(&self) -> &'static str {
        match (self.space, self.share) {
            (Space::Asked | Space::AskedAgain | Space::Flushing, _) => "the disks did not promise space in time",
            (_, Share::Fresh) => "memory for written data is used up, and it does not reach the disks",
            _ => "the metadata leader did not grant quota in time",
        }
    }
}
