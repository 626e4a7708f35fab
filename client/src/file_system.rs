//! The file system as callers see it: one method an operation, none of them names FUSE.

mod data;
mod names;

use crate::files::Asking;
use crate::mount::Mounted;
use crate::{Attributes, Error, FileSystemStat, NodeKind};
use holdfast_proto::meta::{Attr, Code, Kind, ReadResponse, StatFs, read_request};
use std::sync::Arc;

/// How to mount a volume.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The volume manager, host:port.
    pub volmgr: String,
    /// The volume's name.
    pub volume: String,
    /// Names this client on this host: a later mount with the same key fences this one. Host and mount point.
    pub client_key: Vec<u8>,
    /// For people, in lists of sessions.
    pub description: String,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Budget of dirty data, readahead and caches together (D12).
    pub memory_bytes: usize,
}

/// An open file. Valid from open or create to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(pub u64);

/// A mounted volume. Cheap to clone. Every call ends within its deadline.
#[derive(Clone)]
pub struct FileSystem {
    mounted: Arc<Mounted>,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem").field("volume", &self.mounted.metadata.volume()).finish_non_exhaustive()
    }
}

impl FileSystem {
    /// Finds the volume and opens a session. Must run inside a tokio runtime, which carries the background work.
    ///
    /// # Errors
    /// [`Error::Mount`] with a sentence for people, or what the metadata table answered.
    pub async fn mount(config: MountConfig) -> Result<Self, Error> {
        Ok(Self { mounted: Mounted::new(config).await? })
    }

    /// Flushes everything and closes the session. Later calls fail.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if not everything could be flushed.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.mounted.shutdown().await
    }

    /// Makes everything written so far durable. A lost write stays with its file, to be reported there.
    ///
    /// # Errors
    /// None at present.
    pub async fn sync_all(&self) -> Result<(), Error> {
        self.mounted.flusher.flush_everything().await;
        Ok(())
    }

    /// Sizes for statfs(2).
    ///
    /// # Errors
    /// What the table answers, or no answer.
    pub async fn stat_file_system(&self) -> Result<FileSystemStat, Error> {
        let stat = self.ask(read_request::Op::StatFs(StatFs {})).await?.response.stat.unwrap_or_default();
        let left = if stat.quota_bytes == 0 { u64::MAX } else { stat.quota_bytes.saturating_sub(stat.used_bytes) };
        let available_bytes = stat.available_bytes.min(left);
        Ok(FileSystemStat { total_bytes: stat.used_bytes + available_bytes, available_bytes, inodes: stat.inodes })
    }

    async fn ask(&self, op: read_request::Op) -> Result<Answer<'_, ReadResponse>, Error> {
        let asking = self.mounted.files.asking();
        Ok(Answer { response: self.mounted.metadata.read(op).await?, _asking: asking })
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.mounted.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// Attributes from the table as this mount must show them.
    fn show(&self, attributes: Option<Attr>) -> Result<Attributes, Error> {
        attributes_of(&self.mounted.files.see(attributes.ok_or_else(missing)?))
    }
}

/// An answer of the table. It must be held until its attributes were taken in by [`FileSystem::show`] or an inode: what
/// this mount lets go of meanwhile is remembered for its sake.
struct Answer<'a, R> {
    response: R,
    _asking: Asking<'a>,
}

/// An answer that lacks what its request is for: a table of another version, or a bug.
fn missing() -> Error {
    Error::Refused { code: Code::Unavailable, detail: "the answer lacks its attributes".to_owned() }
}

fn kind_of(kind: Kind) -> Result<NodeKind, Error> {
    match kind {
        Kind::File => Ok(NodeKind::File),
        Kind::Directory => Ok(NodeKind::Directory),
        Kind::Symlink => Ok(NodeKind::Symlink),
        Kind::Fifo => Ok(NodeKind::Fifo),
        Kind::Socket => Ok(NodeKind::Socket),
        Kind::CharDevice => Ok(NodeKind::CharDevice),
        Kind::BlockDevice => Ok(NodeKind::BlockDevice),
        Kind::Unknown => Err(missing()),
    }
}

fn attributes_of(attr: &Attr) -> Result<Attributes, Error> {
    Ok(Attributes {
        inode: attr.inode.into(),
        kind: kind_of(attr.kind())?,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        size_bytes: attr.size_bytes,
        mapped_bytes: attr.mapped_bytes,
        atime_ns: attr.atime_ns,
        mtime_ns: attr.mtime_ns,
        ctime_ns: attr.ctime_ns,
        btime_ns: attr.btime_ns,
    })
}
