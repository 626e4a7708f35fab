//! Readers. Each answers from the state as it is; the caller has passed a read barrier.

use super::dead::LiveRun;
use super::key::NameProbe;
use super::records::{Body, Dentry};
use super::{Configuration, Table};
use bytes::Bytes;
use holdfast_common::limits::{PAGE_BYTES, WALK_NAMES_MAX};
use holdfast_common::{ChunkId, FileOffset, GroupId, InodeId, SessionId};
use holdfast_proto::meta::{Attr, BlockGroup, ChunkRecord, Code, DirectoryEntry, Extent, FileMap, FsStat, Kind};
use prost::Message;
use std::collections::BTreeSet;
use std::ops::Bound;

/// Most extents of one map.
const READ_MAP_EXTENTS_MAX: usize = 4096;
/// Most entries of one page of a directory, and about how many bytes of them.
const READ_DIRECTORY_ENTRIES_MAX: usize = 4096;
const READ_DIRECTORY_BYTES_MAX: usize = 256 << 10;
/// About what an entry and its attributes take besides the name.
const ENTRY_BYTES: usize = 160;

/// Entries of a directory in cookie order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirectoryPage {
    /// In the order in which the names were made.
    pub entries: Vec<DirectoryEntry>,
    /// True if nothing follows.
    pub end: bool,
}

/// Most block groups of one page, and about how many bytes of them: a frame's header holds 1 MiB.
const GROUPS_PAGE_MAX: usize = 1024;
const GROUPS_PAGE_BYTES_MAX: usize = 256 << 10;

/// Block groups in the order of their last changes, and where the next page begins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupsPage {
    /// As they are now, those that changed longest ago first.
    pub groups: Vec<BlockGroup>,
    /// (last change, group) of the last one seen: the place of the next page.
    pub cursor: (u64, GroupId),
    /// True if another page follows.
    pub more: bool,
}

/// A chunk that no extent names any more.
#[derive(Clone, Debug, PartialEq)]
pub struct FreedChunk {
    /// Group and slots of its shards.
    pub record: ChunkRecord,
    /// The table's time at which it was freed.
    pub freed_ns: i64,
}

impl Table {
    /// The volume manager's decisions; `None` before the first entry.
    #[must_use]
    pub fn configuration(&self) -> Option<&Configuration> {
        self.configuration.as_ref()
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `STALE` if there is no such inode.
    pub fn get_attr(&self, inode: InodeId) -> Result<Attr, Code> {
        Ok(self.inode(inode)?.attr(inode))
    }

    /// Attributes of what a name leads to; `.` and `..` included.
    ///
    /// # Errors
    /// `STALE`, `NOT_DIRECTORY`, `NOT_FOUND`, `NAME_TOO_LONG`, `INVALID` for an empty name.
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr, Code> {
        let probe = NameProbe::new(parent, name)?;
        let directory = self.directory(parent)?;
        match (name, &directory.body) {
            (b".", _) => Ok(directory.attr(parent)),
            (b"..", Body::Directory { parent, .. }) => self.get_attr(*parent),
            _ => self.get_attr(self.dentries.get(probe.as_bytes()).ok_or(Code::NotFound)?.inode),
        }
    }

    /// Attributes of the directories that names lead to, each looked up in the one before; ends before the first name that
    /// leads to none, and at [`WALK_NAMES_MAX`].
    pub fn walk(&self, start: InodeId, names: &[Bytes]) -> Vec<Attr> {
        let mut at = start;
        let next = |name: &Bytes| {
            let attr = self.lookup(at, name).ok().filter(|attr| attr.kind() == Kind::Directory)?;
            at = attr.inode.into();
            Some(attr)
        };
        names.iter().take(WALK_NAMES_MAX).map_while(next).collect()
    }

    /// Entries behind a cookie, at most `max_entries` and a bounded number of bytes, at least one if there is any.
    ///
    /// # Errors
    /// `STALE`, `NOT_DIRECTORY`.
    pub fn read_directory(
        &self,
        directory: InodeId,
        after_cookie: u64,
        max_entries: usize,
        with_attributes: bool,
    ) -> Result<DirectoryPage, Code> {
        self.directory(directory)?;
        let max_entries = max_entries.clamp(1, READ_DIRECTORY_ENTRIES_MAX);
        let from = (directory, after_cookie);
        let mut page = DirectoryPage::default();
        let mut bytes = 0;
        for ((parent, cookie), key) in self.cookies.range(Bound::Excluded(&from), Bound::Unbounded) {
            if *parent != directory {
                break;
            }
            if page.entries.len() >= max_entries || bytes >= READ_DIRECTORY_BYTES_MAX {
                return Ok(page);
            }
            let dentry: Dentry = *self.dentries.get(key).ok_or(Code::TableStopped)?;
            let attr = if with_attributes { Some(self.get_attr(dentry.inode)?) } else { None };
            bytes += key.name().len() + ENTRY_BYTES;
            page.entries.push(DirectoryEntry {
                name: Bytes::copy_from_slice(key.name()),
                inode: dentry.inode.0,
                kind: dentry.kind.into(),
                cookie: *cookie,
                attr,
            });
        }
        page.end = true;
        Ok(page)
    }

    /// The extents that have bytes in the range, whole, with the records of their chunks; at most `max_extents`
    /// (0: as many as there may be), `covered_bytes` says how far they go.
    ///
    /// # Errors
    /// `STALE`; `IS_DIRECTORY` or `INVALID` if it is no file.
    pub fn read_map(
        &self,
        inode: InodeId,
        from: FileOffset,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<(Attr, FileMap), Code> {
        let file = self.inode(inode)?;
        match file.kind {
            Kind::File => {}
            Kind::Directory => return Err(Code::IsDirectory),
            Kind::Unknown | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                return Err(Code::Invalid);
            }
        }
        let max_extents = if max_extents == 0 { READ_MAP_EXTENTS_MAX } else { max_extents.min(READ_MAP_EXTENTS_MAX) };
        let offset = from.0;
        let end = offset.saturating_add(length_bytes);
        let mut map = FileMap { offset, covered_bytes: end - offset, ..FileMap::default() };
        let mut chunks = BTreeSet::new();
        for LiveRun { offset: file_offset, run, .. } in self.live(inode, offset, end) {
            if map.extents.len() == max_extents {
                map.covered_bytes = file_offset.max(offset) - offset;
                break;
            }
            if chunks.insert(run.chunk) {
                map.chunks.push(self.chunk_record(run.chunk).ok_or(Code::TableStopped)?);
            }
            map.extents.push(Extent {
                file_offset,
                length_bytes: run.length_bytes.into(),
                chunk: run.chunk.0,
                chunk_offset: run.chunk_offset,
            });
        }
        Ok((file.attr(inode), map))
    }

    /// Group and slots of a chunk, freed or not.
    #[must_use]
    pub(crate) fn chunk_record(&self, chunk: ChunkId) -> Option<ChunkRecord> {
        Some(self.chunks.get(&chunk)?.record(chunk))
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// `STALE`; `INVALID` if it is no symlink.
    pub fn read_link(&self, inode: InodeId) -> Result<Bytes, Code> {
        match &self.inode(inode)?.body {
            Body::Symlink(target) => Ok(Bytes::copy_from_slice(target)),
            Body::Plain | Body::Directory { .. } => Err(Code::Invalid),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `STALE`, `NO_DATA`, `INVALID` and `NAME_TOO_LONG` for names that cannot be.
    pub fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Bytes, Code> {
        let probe = NameProbe::new(inode, name)?;
        self.inode(inode)?;
        self.xattrs.get(probe.as_bytes()).cloned().ok_or(Code::NoData)
    }

    /// Names of an inode's extended attributes, ascending.
    ///
    /// # Errors
    /// `STALE`.
    pub fn list_xattr(&self, inode: InodeId) -> Result<Vec<Bytes>, Code> {
        self.inode(inode)?;
        Ok(self.xattrs_of(inode).map(|(key, _)| Bytes::copy_from_slice(key.name())).collect())
    }

    /// Counts of the volume. `available_bytes` is what the quota leaves (`u64::MAX` without one); the disks' part is
    /// not the table's to know.
    #[must_use]
    pub fn stat_fs(&self) -> FsStat {
        let used_bytes = self.counters.mapped_pages * u64::from(PAGE_BYTES);
        let quota_bytes = self.configuration.as_ref().map_or(0, |configuration| configuration.quota_bytes);
        let available_bytes = match quota_bytes {
            0 => u64::MAX,
            quota => quota.saturating_sub(used_bytes).saturating_sub(self.counters.reserved_bytes),
        };
        FsStat { used_bytes, quota_bytes, available_bytes, inodes: self.inodes.len() as u64 }
    }

    /// Changes when a block group's membership or state does.
    #[must_use]
    pub fn groups_version(&self) -> u64 {
        self.counters.groups_version
    }

    /// Record of a block group, as clients get it.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<BlockGroup> {
        Some(self.groups.get(&group)?.block_group(group))
    }

    /// Block groups that changed behind a cursor. At its end the cursor stands at the newest change, or at the start of
    /// all if changes are not recorded yet (feature level 0).
    #[must_use]
    pub fn groups_since(&self, cursor: (u64, GroupId)) -> GroupsPage {
        let mut page = GroupsPage { cursor, ..GroupsPage::default() };
        let mut bytes = 0;
        for (key, ()) in self.group_changes.range(Bound::Excluded(&cursor), Bound::Unbounded) {
            if page.groups.len() >= GROUPS_PAGE_MAX || bytes >= GROUPS_PAGE_BYTES_MAX {
                page.more = true;
                return page;
            }
            let Some(group) = self.group(key.1) else { continue };
            bytes += group.encoded_len();
            page.groups.push(group);
            page.cursor = *key;
        }
        if self.feature_level() < 1 {
            page.cursor = (0, GroupId(0));
        }
        page
    }

    /// Records of all block groups, ascending.
    #[must_use]
    pub fn groups(&self) -> Vec<BlockGroup> {
        self.groups.iter().map(|(id, group)| group.block_group(*id)).collect()
    }

    /// Whether the session is open.
    #[must_use]
    pub fn has_session(&self, session: SessionId) -> bool {
        self.sessions.contains(&session)
    }

    /// The open sessions.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionId> {
        self.sessions.iter().map(|(id, _)| *id).collect()
    }

    /// Orphans above `after`, at most `max_count`.
    #[must_use]
    pub fn orphans(&self, after: InodeId, max_count: usize) -> Vec<InodeId> {
        self.orphans.range(Bound::Excluded(&after), Bound::Unbounded).map(|(id, ())| *id).take(max_count).collect()
    }

    /// Chunks freed at or before a time of the table, behind `after` in (time freed, id) order, oldest first.
    #[must_use]
    pub fn freed_chunks(&self, until_ns: i64, after: (i64, ChunkId), max_count: usize) -> Vec<FreedChunk> {
        self.freed
            .range(Bound::Excluded(&after), Bound::Unbounded)
            .take_while(|((freed_ns, _), ())| *freed_ns <= until_ns)
            .take(max_count)
            .filter_map(|((freed_ns, id), ())| {
                Some(FreedChunk { record: self.chunk_record(*id)?, freed_ns: *freed_ns })
            })
            .collect()
    }

    /// The time of the last entry that changed something.
    #[must_use]
    pub(crate) fn last_time_ns(&self) -> i64 {
        self.counters.last_time_ns
    }
}
