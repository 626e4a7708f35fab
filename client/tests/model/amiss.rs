//! Answers of datanodes that are not as they must be: of a newer one, or of a wrong one.

use bytes::{Bytes, BytesMut};
use holdfast_proto::data::ShardData;

/// Fault of the first part of an answer to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amiss {
    /// Its status is a number that the client does not know.
    UnknownStatus,
    /// The answer ends before it.
    Missing,
    /// It is a page shorter than what was asked for.
    Short,
    /// The body has fewer bytes than the answer says.
    ShortBody,
    /// It has no checksums.
    WithoutChecksums,
}

impl Amiss {
    pub(crate) fn spoil(self, parts: &mut Vec<ShardData>, body: &mut BytesMut) {
        let Some(first) = parts.first_mut() else { return };
        match self {
            Self::UnknownStatus => first.status = 999,
            Self::Missing => parts.clear(),
            Self::Short => first.length_bytes -= 4096,
            Self::ShortBody => body.truncate(body.len() - 1),
            Self::WithoutChecksums => first.page_checksums = Bytes::new(),
        }
    }
}
