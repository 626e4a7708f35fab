//! Failures of operations, and the one place where they become an errno.

use bytes::Bytes;
use holdfast_common::InodeId;
use holdfast_proto::meta::Code;
use holdfast_transport::RpcError;

/// Reason why a call to another process got no answer. It may have been executed all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallFailed {
    /// No answer of a metanode or datanode within the time, or none that can be understood.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// No answer of the volume manager within the time.
    #[error("the volume manager did not answer in time")]
    VolmgrSilent,
    /// The volume manager cannot be reached, or refuses; in its words.
    #[error("{0}")]
    Volmgr(String),
}

/// Failure of a file system operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum Error {
    /// The metadata table refused.
    #[error("refused: {code:?} {detail}")]
    Refused { code: Code, detail: String },
    /// An answer of a number that this version does not know: nothing is taken for done, and it is not asked again.
    #[error(
        "a metanode answered with a {what} that this client does not know ({number}): is it older than the cluster?"
    )]
    Unknown { what: &'static str, number: i32 },
    /// No answer within the request's deadline.
    #[error("no answer within the deadline: {0}")]
    TimedOut(String),
    /// Data could not be written anywhere, or a write-back failed before (R22).
    #[error("data was not written: {0}")]
    WriteLost(String),
    /// Data could not be read from enough members.
    #[error("data cannot be read: {0}")]
    Unreadable(String),
    /// These files have written data that could not be flushed before the mount ended.
    #[error("written data of {} could not be flushed in time: {}", files(.0.len()), listed(.0))]
    Unflushed(Vec<UnflushedFile>),
    /// The session was expired or fenced; what was not flushed is lost and reported.
    #[error("the session was closed by the cluster")]
    SessionLost,
    /// The disks are full.
    #[error("no space left on the volume's disks")]
    NoSpace,
    /// The volume's quota is used up.
    #[error("the volume's quota is used up")]
    Quota,
    /// The handle does not exist, or does not allow this.
    #[error("bad file handle")]
    BadHandle,
    /// The mount is read-only.
    #[error("mounted read-only")]
    ReadOnly,
    /// An argument does not make sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// lseek beyond the end, or no data behind the offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// The offset or length is over what a file can have.
    #[error("file too large")]
    FileTooLarge,
    /// The volume or its manager cannot be reached or refuses this client.
    #[error("{0}")]
    Mount(String),
}

/// A file with written data that will not reach the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnflushedFile {
    /// Number of the file's inode.
    pub inode: InodeId,
    /// A path of it from the volume's root, if one is known.
    pub path: Option<Bytes>,
}

impl std::fmt::Display for UnflushedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{} (inode {})", String::from_utf8_lossy(path), self.inode),
            None => write!(f, "inode {}", self.inode),
        }
    }
}

/// Most files named in a sentence.
pub(crate) const NAMED_MAX: usize = 16;

fn files(count: usize) -> String {
    if count == 1 { "one file".to_owned() } else { format!("{count} files") }
}

fn listed(unflushed: &[UnflushedFile]) -> String {
    let named: Vec<String> = unflushed.iter().take(NAMED_MAX).map(UnflushedFile::to_string).collect();
    let more = if unflushed.len() > NAMED_MAX { ", ..." } else { "" };
    format!("{}{more}", named.join(", "))
}

impl Error {
    /// Errno for a system call. Exhaustive: a new error does not compile until somebody has decided.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused { code, .. } => errno_of(*code),
            Self::Unknown { .. }
            | Self::TimedOut(_)
            | Self::WriteLost(_)
            | Self::Unreadable(_)
            | Self::Unflushed(_)
            | Self::SessionLost
            | Self::Mount(_) => libc::EIO,
            Self::NoSpace => libc::ENOSPC,
            Self::Quota => libc::EDQUOT,
            Self::BadHandle => libc::EBADF,
            Self::ReadOnly => libc::EROFS,
            Self::Invalid(_) => libc::EINVAL,
            Self::NoSuchOffset => libc::ENXIO,
            Self::FileTooLarge => libc::EFBIG,
        }
    }
}

fn errno_of(code: Code) -> i32 {
    match code {
        Code::NotFound => libc::ENOENT,
        Code::Exists => libc::EEXIST,
        Code::NotDirectory => libc::ENOTDIR,
        Code::IsDirectory => libc::EISDIR,
        Code::NotEmpty => libc::ENOTEMPTY,
        Code::Invalid => libc::EINVAL,
        Code::NameTooLong => libc::ENAMETOOLONG,
        Code::TooManyLinks => libc::EMLINK,
        Code::NoData => libc::ENODATA,
        Code::TooBig => libc::E2BIG,
        Code::FileTooLarge => libc::EFBIG,
        Code::NoSpace => libc::ENOSPC,
        Code::Quota => libc::EDQUOT,
        Code::Stale => libc::ESTALE,
        Code::NotSupported => libc::EOPNOTSUPP,
        Code::NotPermitted => libc::EPERM,
        Code::Ok
        | Code::SessionExpired
        | Code::SequenceStale
        | Code::NotLeader
        | Code::NoSuchVolume
        | Code::Unavailable
        | Code::TableStopped
        | Code::RewriteChunk
        | Code::Truncated
        | Code::Changed => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unflushed(count: u64) -> Error {
        let path = |inode: u64| inode.is_multiple_of(2).then(|| Bytes::from(format!("/file{inode}")));
        Error::Unflushed((1..=count).map(|inode| UnflushedFile { inode: InodeId(inode), path: path(inode) }).collect())
    }

    #[test]
    fn files_that_were_not_flushed_are_named_as_far_as_people_read() {
        assert_eq!(unflushed(1).to_string(), "written data of one file could not be flushed in time: inode 1");
        assert_eq!(
            unflushed(2).to_string(),
            "written data of 2 files could not be flushed in time: inode 1, /file2 (inode 2)"
        );
        let many = unflushed(17).to_string();
        assert!(many.contains("of 17 files") && many.ends_with("/file16 (inode 16), ..."), "{many}");
        assert!(unflushed(16).to_string().ends_with("/file16 (inode 16)"));
    }

    #[test]
    fn what_a_program_can_act_on_keeps_its_errno_and_the_rest_is_an_input_output_error() {
        let refused = |code| Error::Refused { code, detail: String::new() }.errno();
        assert_eq!([Error::NoSpace.errno(), Error::Quota.errno(), refused(Code::Quota)], [28, 122, 122]);
        assert_eq!([refused(Code::NoSpace), refused(Code::Stale), refused(Code::NotEmpty)], [28, 116, 39]);
        let inner = [Code::RewriteChunk, Code::Truncated, Code::SessionExpired, Code::NotLeader, Code::Ok];
        assert!(inner.into_iter().all(|code| refused(code) == libc::EIO));
        assert_eq!([Error::SessionLost.errno(), unflushed(1).errno(), Error::BadHandle.errno()], [5, 5, 9]);
    }
}
