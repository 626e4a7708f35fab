//! Arguments and results of the library: attributes, entries, modes.

use bytes::Bytes;
use holdfast_common::InodeId;

/// An open file. Valid from open or create to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(pub u64);

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// An inode's attributes as stat(2) shows them. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Number of the inode, as `ls -i` shows it.
    pub inode: InodeId,
    /// Regular file, directory and so on.
    pub kind: NodeKind,
    /// Permission bits with suid, sgid and sticky.
    pub mode: u32,
    /// Count of names; a directory has two and one for each directory in it.
    pub nlink: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Device number; 0 but for device nodes.
    pub rdev: u32,
    /// Size, with what this client has written and not yet flushed.
    pub size_bytes: u64,
    /// Bytes that have data, by 4 KiB.
    pub mapped_bytes: u64,
    /// Last access.
    pub atime_ns: i64,
    /// Last change of data.
    pub mtime_ns: i64,
    /// Last change of data or attributes.
    pub ctime_ns: i64,
    /// Creation of the inode.
    pub btime_ns: i64,
}

/// Kind of node for [`crate::FileSystem::create_node`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewNode {
    /// An empty regular file.
    File,
    /// An empty directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Bytes),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device of this number.
    CharDevice(u32),
    /// A block device of this number.
    BlockDevice(u32),
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The table's present time.
    Now,
    /// Nanoseconds since the Unix epoch.
    At(i64),
}

/// Attributes to change. None of them is allowed, and answers the attributes as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits with suid, sgid and sticky.
    pub mode: Option<u32>,
    /// User id of the owner.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
    /// Truncates or extends.
    pub size_bytes: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time, else the table's present time.
    pub ctime_ns: Option<i64>,
    /// Drop suid and sgid as chown and truncate by an unprivileged caller do.
    pub kill_suid_sgid: bool,
}

/// Mode of an open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// read(2) is allowed.
    pub read: bool,
    /// write(2) is allowed.
    pub write: bool,
    /// Opened with O_APPEND.
    pub append: bool,
    /// Each write is durable when it returns (O_SYNC, O_DSYNC).
    pub sync: bool,
}

/// Place of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAt {
    /// At this offset in bytes.
    Offset(u64),
    /// An append. Of a handle opened with O_APPEND it goes behind the last byte that this mount knows of when the data is
    /// taken in; of another one, which became appending later, to where the caller believes the end.
    End {
        /// Offset of the end in the caller's belief.
        believed: u64,
    },
}

/// rename(2)'s flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// A target that exists is replaced.
    Replace,
    /// A target that exists is an error.
    NoReplace,
    /// Both must exist and change places.
    Exchange,
}

/// fallocate(2)'s modes that a log-structured file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Promise the range; grows the file unless `keep_size`.
    Allocate {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
    /// Make the range a hole; the size stays.
    PunchHole,
    /// Make the range read as zeros.
    ZeroRange {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
}

/// setxattr(2)'s flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// Fails if the name is there.
    Create,
    /// Fails unless the name is there.
    Replace,
}

/// lseek(2)'s whence that a file system answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}

/// One entry of a directory. "." and ".." are not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Raw bytes, without a slash or a zero.
    pub name: Bytes,
    /// Number of the inode it refers to.
    pub inode: InodeId,
    /// Kind of that inode.
    pub kind: NodeKind,
    /// Pass this as `after_cookie` to go on behind this entry; stable for the entry's life. At least 16, so that an
    /// adapter has room for "." and "..".
    pub cookie: u64,
    /// Attributes of that inode, if they were asked for.
    pub attributes: Option<Attributes>,
}

/// statfs(2), in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystemStat {
    /// Used and available together (the quota, if there is one and it is less).
    pub total_bytes: u64,
    /// Bytes that can still be written.
    pub available_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
}
