//! Records in the trees of the table.

use super::tree::Tree;
use bytes::Bytes;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_common::{ChunkId, DiskId, Epoch, GroupId, InodeId, NodeId, Nonce};
use holdfast_proto::meta::{Attr, BlockGroup, ChunkRecord, GroupSlot, GroupState, Kind};
use std::ops::Range;
use std::sync::Arc;

/// `st_size` of every directory: what most file systems say of a small one.
pub(crate) const DIRECTORY_BYTES: u64 = 4096;

pub(crate) const SET_UID: u32 = 0o4000;
pub(crate) const SET_GID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) size_bytes: u64,
    /// Distinct pages of the file that extents touch or that are allocated.
    pub(crate) mapped_pages: u64,
    pub(crate) atime_ns: i64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    pub(crate) btime_ns: i64,
    pub(crate) truncate_generation: u64,
    pub(crate) data_version: u64,
    pub(crate) body: Body,
}

/// State that only one kind of inode has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Plain,
    Directory {
        parent: InodeId,
        /// Of the next dentry; never lowered, so that no cookie is given twice.
        next_cookie: u64,
    },
    Symlink(Arc<[u8]>),
}

impl Inode {
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    pub(crate) fn attr(&self, inode: InodeId) -> Attr {
        Attr {
            inode: inode.0,
            kind: self.kind.into(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size_bytes: self.size_bytes,
            mapped_bytes: self.mapped_pages * u64::from(PAGE_BYTES),
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
            btime_ns: self.btime_ns,
            truncate_generation: self.truncate_generation,
            data_version: self.data_version,
        }
    }

    /// As write, truncate and chown do it: suid goes, and sgid where it means execution and not mandatory locking.
    pub(crate) fn kill_suid_sgid(&mut self) {
        if self.is_directory() {
            return;
        }
        self.mode &= !SET_UID;
        if self.mode & GROUP_EXECUTE != 0 {
            self.mode &= !SET_GID;
        }
    }

    pub(crate) fn touch(&mut self, now_ns: i64) {
        self.mtime_ns = now_ns;
        self.ctime_ns = now_ns;
        self.data_version += 1;
    }
}

/// Inode that a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dentry {
    pub(crate) inode: InodeId,
    pub(crate) kind: Kind,
    pub(crate) cookie: u64,
}

/// A run of file bytes in a chunk; keyed by (inode, file offset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) length_bytes: u32,
    pub(crate) chunk_offset: u32,
    pub(crate) chunk: ChunkId,
}

/// Place of a chunk, and how much of it is still part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) nonce: Nonce,
    pub(crate) group: GroupId,
    pub(crate) epoch: Epoch,
    pub(crate) length_bytes: u32,
    pub(crate) shard_length_bytes: u32,
    pub(crate) data_shards: u8,
    pub(crate) parity_shards: u8,
    pub(crate) slots: Arc<[u8]>,
    /// Bytes that extents name, every reference counted (R11). 0: freed, and on the freed list.
    pub(crate) live_bytes: u64,
    /// The table's time at which it was freed.
    pub(crate) freed_ns: i64,
}

impl Chunk {
    pub(crate) fn record(&self, chunk: ChunkId) -> ChunkRecord {
        ChunkRecord {
            chunk: chunk.0,
            nonce: self.nonce.0,
            group: self.group.0,
            epoch: self.epoch.0,
            length_bytes: self.length_bytes,
            data_shards: self.data_shards.into(),
            parity_shards: self.parity_shards.into(),
            slots: Bytes::copy_from_slice(&self.slots),
            shard_length_bytes: self.shard_length_bytes,
        }
    }
}

/// One mounted client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) client_key: Bytes,
    pub(crate) description: Arc<str>,
    pub(crate) opened_ns: i64,
    /// Replies of lower sequences were received and are gone.
    pub(crate) acknowledged_below: u64,
    /// Encoded replies by sequence, at most `SESSION_IN_FLIGHT_MAX` and the oldest (R8).
    pub(crate) replies: Tree<u64, Bytes>,
    /// Chunk ids it may still introduce, ascending and apart. An id leaves when its chunk is first committed, so that
    /// a late commit can never bring back a chunk that was freed and forgotten (R1).
    pub(crate) chunk_ranges: Arc<[Range<u64>]>,
    /// Quota set aside for what it has not committed yet.
    pub(crate) reserved_bytes: u64,
}

/// Debt of a disk: shards of chunks that were forgotten before it confirmed their deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Highest of these chunks.
    pub chunk: ChunkId,
    /// Entries that added to it since it was last settled.
    pub entries: u64,
}

/// A block group and since which epoch each slot's member stands (R12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) epoch: Epoch,
    pub(crate) slots: Arc<[Slot]>,
    pub(crate) state: GroupState,
    pub(crate) used_bytes: u64,
    pub(crate) capacity_bytes: u64,
    /// The table's `groups_version` by the last change of members or state; 0 if that was at feature level 0.
    pub(crate) changed: u64,
}

/// A member of a block group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// 0: vacant.
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    /// A chunk placed under a lower epoch has its shard on a former member.
    pub(crate) since_epoch: Epoch,
}

impl Group {
    pub(crate) fn block_group(&self, group: GroupId) -> BlockGroup {
        BlockGroup {
            group: group.0,
            epoch: self.epoch.0,
            slots: self.slots.iter().map(|slot| GroupSlot { disk: slot.disk.0, node: slot.node.0 }).collect(),
            state: self.state.into(),
            used_bytes: self.used_bytes,
            capacity_bytes: self.capacity_bytes,
        }
    }
}
