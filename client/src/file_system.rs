//! The file system as callers see it: one method an operation, none of them names FUSE.

mod data;
mod names;

use crate::core::effects::{Answer, Call};
use crate::core::missing;
use crate::mount::{MountConfig, Mounted, SHUTDOWN_FLUSH_MAX};
use crate::network::Network;
use crate::runtime::{Runtime, TokioRuntime};
use crate::shell::Running;
use crate::{Attributes, Error, FileHandle, FileSystemStat, NodeKind};
use holdfast_common::{InodeId, SessionId};
use holdfast_proto::control::Volume;
use holdfast_proto::meta::{Attr, Kind, MutateResponse, ReadResponse, StatFs, mutation, read_request};
use std::sync::Arc;
use std::time::Duration;

/// A mounted volume. Cheap to clone. Every call ends within its deadline.
#[derive(Clone)]
pub struct FileSystem {
    mounted: Arc<Mounted>,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem").field("volume", &self.mounted.volume).finish_non_exhaustive()
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

    /// Mounts a volume that is known over a network of the caller's, for tests. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// As [`FileSystem::mount`].
    pub async fn mount_over(
        config: MountConfig,
        volume: &Volume,
        network: Arc<dyn Network>,
        seed: u64,
    ) -> Result<Self, Error> {
        Self::mount_in(Arc::new(TokioRuntime::current()), config, volume, network, seed).await
    }

    /// As [`FileSystem::mount_over`], carried and timed by a runtime of the caller's: for simulations.
    ///
    /// # Errors
    /// As [`FileSystem::mount`].
    pub async fn mount_in(
        runtime: Arc<dyn Runtime>,
        config: MountConfig,
        volume: &Volume,
        network: Arc<dyn Network>,
        seed: u64,
    ) -> Result<Self, Error> {
        Ok(Self { mounted: Mounted::over(config, volume, network, runtime, seed).await? })
    }

    /// Flushes everything and closes the session. Later calls fail.
    ///
    /// # Errors
    /// [`Error::Unflushed`] with the files whose data could not be flushed in time.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.mounted.shutdown(SHUTDOWN_FLUSH_MAX).await
    }

    /// As [`FileSystem::shutdown`], which takes up to 18 s, with another time for the flush, in place of its 15 s.
    ///
    /// # Errors
    /// As [`FileSystem::shutdown`].
    pub async fn shutdown_within(&self, flush_max: Duration) -> Result<(), Error> {
        self.mounted.shutdown(flush_max).await
    }

    /// Makes everything written so far durable. A lost write stays with its file, to be reported there.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if not everything could be flushed; it is kept.
    pub async fn sync_all(&self) -> Result<(), Error> {
        self.run(Call::Sync).await.map(|_| ())
    }

    /// Sizes for statfs(2).
    ///
    /// # Errors
    /// What the table answers, or no answer.
    pub async fn stat_file_system(&self) -> Result<FileSystemStat, Error> {
        let stat = self.ask(read_request::Op::StatFs(StatFs {})).await?.stat.unwrap_or_default();
        let left = if stat.quota_bytes == 0 { u64::MAX } else { stat.quota_bytes.saturating_sub(stat.used_bytes) };
        let available_bytes = stat.available_bytes.min(left);
        let total_bytes = stat.used_bytes.saturating_add(available_bytes);
        Ok(FileSystemStat { total_bytes, available_bytes, inodes: stat.inodes })
    }

    /// Bytes of memory held for written data, for maps of files, and for blocks that were read or are being read to be kept.
    /// Never above [`MountConfig::memory_bytes`], unless one write is larger than half of that.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.mounted.shell.with(|core, _| core.held_bytes()) + self.mounted.reader.cache.held_bytes() as u64
    }

    /// Sum of the most that each cache held after any step of this mount, in bytes: tests compare it with the budget.
    #[must_use]
    pub fn most_held_bytes(&self) -> u64 {
        self.mounted.shell.with(|core, _| core.most_held_bytes()) + self.mounted.reader.cache.most_held_bytes() as u64
    }

    /// The session, and the time for which this mount counts on the table to keep it: what is left of its lease. Nothing
    /// while the lease has run out without an answer, or no session is open. Simulations compare it with the table.
    #[must_use]
    pub fn session_lease(&self) -> Option<(SessionId, Duration)> {
        self.mounted.shell.with(|core, now| core.lease(now))
    }

    fn run(&self, call: Call) -> Running<'_> {
        self.mounted.shell.run(call)
    }

    /// No `async`: the question is asked now, and no future holds it.
    fn ask(&self, op: read_request::Op) -> impl Future<Output = Result<Box<ReadResponse>, Error>> + '_ {
        let running = self.run(Call::Ask(op));
        async move {
            match running.await? {
                Answer::Read(response) => Ok(response),
                _ => Err(missing()),
            }
        }
    }

    /// A change that nothing need precede.
    fn mutate(&self, op: mutation::Op) -> impl Future<Output = Result<Box<MutateResponse>, Error>> + '_ {
        self.change(Call::Mutate(op))
    }

    /// A change of an inode that everything written to it before must precede.
    fn change_after_writes(
        &self,
        inode: InodeId,
        op: mutation::Op,
    ) -> impl Future<Output = Result<Box<MutateResponse>, Error>> + '_ {
        self.change(Call::Barrier { inode, op })
    }

    fn change(&self, call: Call) -> impl Future<Output = Result<Box<MutateResponse>, Error>> + '_ {
        let running = self.check_writable().map(|()| self.run(call));
        async move {
            match running?.await? {
                Answer::Mutated(response) => Ok(response),
                _ => Err(missing()),
            }
        }
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.mounted.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

/// Attributes that an answer must have.
fn shown(attributes: Option<Attr>) -> Result<Attributes, Error> {
    attributes_of(&attributes.ok_or_else(missing)?)
}

/// The kind of that number, if this version knows it.
fn kind_of(number: i32) -> Result<NodeKind, Error> {
    match Kind::try_from(number) {
        Ok(Kind::File) => Ok(NodeKind::File),
        Ok(Kind::Directory) => Ok(NodeKind::Directory),
        Ok(Kind::Symlink) => Ok(NodeKind::Symlink),
        Ok(Kind::Fifo) => Ok(NodeKind::Fifo),
        Ok(Kind::Socket) => Ok(NodeKind::Socket),
        Ok(Kind::CharDevice) => Ok(NodeKind::CharDevice),
        Ok(Kind::BlockDevice) => Ok(NodeKind::BlockDevice),
        Ok(Kind::Unknown) | Err(_) => Err(Error::Unknown { what: "kind of inode", number }),
    }
}

fn attributes_of(attr: &Attr) -> Result<Attributes, Error> {
    Ok(Attributes {
        inode: attr.inode.into(),
        kind: kind_of(attr.kind)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_of_an_unknown_kind_is_an_input_output_error() {
        for kind in [0, 999, -1] {
            let error = attributes_of(&Attr { kind, ..Attr::default() }).unwrap_err();
            assert_eq!(error.errno(), libc::EIO, "kind {kind}");
            assert!(error.to_string().contains("does not know"), "{error}");
        }
    }
}
