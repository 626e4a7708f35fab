//! Snapshots: a frozen copy is O(1) and written by another thread; a restore rebuilds the trees and what follows from
//! them.
//!
//! The first record is the header, the last one the end with the number of records before it. How records become bytes is
//! next door (`blocks`).

mod blocks;

use super::key::NameProbe;
use super::records::{Body, Chunk, Dentry, Group, Inode, Owed, Run, Session, Slot};
use super::tree::Tree;
use super::{Configuration, Counters, FEATURE_LEVEL, Table};
use blocks::{BlockReader, BlockWriter, VERSION_PLAIN, VERSION_WITH_LEVEL};
use bytes::{Buf, Bytes};
use holdfast_common::{ChunkId, DiskId, Epoch, GroupId, Incarnation, InodeId, NodeId, Nonce, SessionId, VolumeId};
use holdfast_proto::meta::{GroupState, Kind};
use holdfast_proto::snapshot::snapshot_record::Record;
use holdfast_proto::snapshot::{
    AllocationRecord, ChunkRange, ChunkState, DeadRecord, DentryRecord, ExtentRecord, GroupRecord, Header, InodeRecord,
    OwedRecord, Reply, SessionRecord, SnapshotRecord, XattrRecord,
};
use prost::Message;
use std::io::{self, Read, Write};

#[derive(Clone, Debug)]
pub(crate) struct FrozenTable(Table);

/// Reason why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// Reading failed, or the stream ended early.
    #[error("cannot read the snapshot: {0}")]
    Io(#[from] io::Error),
    /// Not a snapshot of a table, or of a newer version.
    #[error("not a snapshot this version can read")]
    Version,
    /// The table behaves in a way that this version does not know (R26).
    #[error("the table has feature level {0}, and this version knows levels up to {FEATURE_LEVEL}")]
    FeatureLevel(u32),
    /// A block's checksum differs.
    #[error("a block of the snapshot is damaged")]
    Damaged,
    /// Records do not fit together.
    #[error("the snapshot's records are malformed: {0}")]
    Malformed(&'static str),
}

impl From<prost::DecodeError> for RestoreError {
    fn from(_: prost::DecodeError) -> Self {
        Self::Malformed("a record does not decode")
    }
}

impl Table {
    #[must_use]
    pub(crate) fn freeze(&self) -> FrozenTable {
        FrozenTable(self.clone())
    }

    /// The table that a snapshot was made of.
    ///
    /// # Errors
    /// Every damage to the stream; never panics on any bytes.
    pub(crate) fn restore(from: &mut dyn Read) -> Result<Self, RestoreError> {
        let (mut blocks, version) = BlockReader::open(from)?;
        let mut table = Self::default();
        let mut records_count = 0;
        loop {
            let mut block = blocks.read_block()?;
            while block.has_remaining() {
                let record = SnapshotRecord::decode_length_delimited(&mut block)?;
                let record = record.record.ok_or(RestoreError::Malformed("unknown record"))?;
                match record {
                    Record::End(end) if end.records_count == records_count && records_count > 0 => return Ok(table),
                    Record::End(_) => return Err(RestoreError::Malformed("records are missing")),
                    Record::Header(_) if records_count != 0 => {
                        return Err(RestoreError::Malformed("a second header"));
                    }
                    Record::Header(header) => {
                        table.restore_header(&header)?;
                        if table.snapshot_version() != version {
                            return Err(RestoreError::Version);
                        }
                    }
                    _ if records_count == 0 => return Err(RestoreError::Malformed("no header")),
                    other => table.restore_record(other)?,
                }
                records_count += 1;
            }
        }
    }

    fn restore_header(&mut self, header: &Header) -> Result<(), RestoreError> {
        if header.feature_level > FEATURE_LEVEL {
            return Err(RestoreError::FeatureLevel(header.feature_level));
        }
        self.counters = Counters {
            next_inode: header.next_inode,
            next_chunk: header.next_chunk,
            next_session: header.next_session,
            next_group: header.next_group,
            groups_version: header.groups_version,
            floor: header.floor,
            last_time_ns: header.last_time_ns,
            mapped_pages: 0,
            allocated_pages: 0,
            reserved_bytes: 0,
            feature_level: header.feature_level,
        };
        if header.configured {
            self.configuration = Some(Configuration {
                volume: VolumeId(header.volume),
                incarnation: Incarnation(header.incarnation),
                data_shards: narrow_u8(header.data_shards)?,
                parity_shards: narrow_u8(header.parity_shards)?,
                quota_bytes: header.quota_bytes,
                name: header.name.clone(),
            });
        }
        Ok(())
    }

    fn restore_record(&mut self, record: Record) -> Result<(), RestoreError> {
        match record {
            Record::Header(_) | Record::End(_) => Err(RestoreError::Malformed("out of place")),
            Record::Inode(record) => self.restore_inode(record),
            Record::Dentry(record) => self.restore_dentry(&record),
            Record::Extent(record) => {
                self.extents.insert((InodeId(record.inode), record.file_offset), run(&record));
                Ok(())
            }
            Record::FreshExtent(record) => {
                self.fresh.insert((InodeId(record.inode), record.file_offset), run(&record));
                Ok(())
            }
            Record::Dead(record) => {
                self.dead.insert((InodeId(record.inode), record.from), record.to);
                Ok(())
            }
            Record::Allocation(record) => self.restore_allocation(&record),
            Record::Chunk(record) => self.restore_chunk(record),
            Record::Xattr(record) => {
                let probe = probe(record.inode, &record.name)?;
                self.xattrs.insert(probe.to_key(), Bytes::copy_from_slice(&record.value));
                Ok(())
            }
            Record::Session(record) => {
                self.restore_session(&record);
                Ok(())
            }
            Record::Group(record) => self.restore_group(record),
            Record::Owed(record) if self.feature_level() < 2 || self.owed.contains(&DiskId(record.disk)) => {
                Err(RestoreError::Malformed("what a disk owes, twice or before there were debts"))
            }
            Record::Owed(OwedRecord { disk, chunk, entries }) => {
                self.owed.insert(DiskId(disk), Owed { chunk: ChunkId(chunk), entries });
                Ok(())
            }
        }
    }

    fn restore_inode(&mut self, record: InodeRecord) -> Result<(), RestoreError> {
        let attr = record.attr.ok_or(RestoreError::Malformed("an inode without attributes"))?;
        let kind = attr.kind();
        let body = match kind {
            Kind::Directory => Body::Directory { parent: InodeId(record.parent), next_cookie: record.next_cookie },
            Kind::Symlink => Body::Symlink(record.target.as_ref().into()),
            Kind::File | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Body::Plain,
            // Also the number of a kind that this version does not know.
            Kind::Unknown => return Err(RestoreError::Malformed("an inode of an unknown kind")),
        };
        let id = InodeId(attr.inode);
        let mapped_pages = attr.mapped_bytes / u64::from(holdfast_common::limits::PAGE_BYTES);
        self.counters.mapped_pages = self
            .counters
            .mapped_pages
            .checked_add(mapped_pages)
            .ok_or(RestoreError::Malformed("mapped pages overflow"))?;
        if attr.nlink == 0 {
            self.orphans.insert(id, ());
        }
        let inode = Inode {
            kind,
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            size_bytes: attr.size_bytes,
            mapped_pages,
            atime_ns: attr.atime_ns,
            mtime_ns: attr.mtime_ns,
            ctime_ns: attr.ctime_ns,
            btime_ns: attr.btime_ns,
            truncate_generation: attr.truncate_generation,
            data_version: attr.data_version,
            body,
        };
        self.inodes.insert(id, inode);
        Ok(())
    }

    /// Inodes come before dentries, so that the kind is known.
    fn restore_dentry(&mut self, record: &DentryRecord) -> Result<(), RestoreError> {
        let inode = InodeId(record.inode);
        let kind = self.inodes.get(&inode).ok_or(RestoreError::Malformed("a name of no inode"))?.kind;
        let key = probe(record.parent, &record.name)?.to_key();
        self.cookies.insert((InodeId(record.parent), record.cookie), key.clone());
        self.dentries.insert(key, Dentry { inode, kind, cookie: record.cookie });
        Ok(())
    }

    fn restore_allocation(&mut self, record: &AllocationRecord) -> Result<(), RestoreError> {
        let overflow = RestoreError::Malformed("allocated pages overflow");
        let total = self.counters.allocated_pages.checked_add(record.pages_count);
        let end = record.first_page.checked_add(record.pages_count);
        let (Some(total), Some(end)) = (total, end) else { return Err(overflow) };
        self.counters.allocated_pages = total;
        self.allocated.insert((InodeId(record.inode), record.first_page), end);
        Ok(())
    }

    fn restore_chunk(&mut self, state: ChunkState) -> Result<(), RestoreError> {
        let record = state.chunk.ok_or(RestoreError::Malformed("a chunk without a record"))?;
        let id = ChunkId(record.chunk);
        if state.live_bytes == 0 {
            self.freed.insert((state.freed_ns, id), ());
        }
        let chunk = Chunk {
            nonce: Nonce(record.nonce),
            group: GroupId(record.group),
            epoch: Epoch(record.epoch),
            length_bytes: record.length_bytes,
            shard_length_bytes: record.shard_length_bytes,
            data_shards: narrow_u8(record.data_shards)?,
            parity_shards: narrow_u8(record.parity_shards)?,
            slots: record.slots.as_ref().into(),
            live_bytes: state.live_bytes,
            freed_ns: state.freed_ns,
        };
        self.chunks.insert(id, chunk);
        Ok(())
    }

    fn restore_session(&mut self, record: &SessionRecord) {
        let id = SessionId(record.session);
        let client_key = Bytes::copy_from_slice(&record.client_key);
        let mut replies = Tree::default();
        for reply in &record.replies {
            replies.insert(reply.sequence, Bytes::copy_from_slice(&reply.response));
        }
        self.counters.reserved_bytes = self.counters.reserved_bytes.saturating_add(record.reserved_bytes);
        self.client_keys.insert(client_key.clone(), id);
        let session = Session {
            client_key,
            description: record.description.as_str().into(),
            opened_ns: record.opened_ns,
            acknowledged_below: record.acknowledged_below,
            replies,
            chunk_ranges: record.ranges.iter().map(|range| range.first..range.end).collect(),
            reserved_bytes: record.reserved_bytes,
        };
        self.sessions.insert(id, session);
    }

    fn restore_group(&mut self, record: GroupRecord) -> Result<(), RestoreError> {
        let group = record.group.ok_or(RestoreError::Malformed("a group record without a group"))?;
        if group.slots.len() != record.slot_epochs.len() {
            return Err(RestoreError::Malformed("slots and their epochs differ in number"));
        }
        let state = GroupState::try_from(group.state).map_err(|_| RestoreError::Malformed("unknown group state"))?;
        let slots = group.slots.iter().zip(record.slot_epochs.iter().copied().map(Epoch));
        let restored = Group {
            epoch: Epoch(group.epoch),
            slots: slots
                .map(|(slot, since_epoch)| Slot { disk: DiskId(slot.disk), node: NodeId(slot.node), since_epoch })
                .collect(),
            state,
            used_bytes: group.used_bytes,
            capacity_bytes: group.capacity_bytes,
            changed: record.changed,
        };
        self.group_changes.insert((record.changed, GroupId(group.group)), ());
        self.groups.insert(GroupId(group.group), restored);
        Ok(())
    }

    fn snapshot_version(&self) -> u32 {
        if self.counters.feature_level == 0 { VERSION_PLAIN } else { VERSION_WITH_LEVEL }
    }

    fn header(&self) -> Header {
        let counters = &self.counters;
        let mut header = Header {
            configured: self.configuration.is_some(),
            next_inode: counters.next_inode,
            next_chunk: counters.next_chunk,
            next_session: counters.next_session,
            next_group: counters.next_group,
            groups_version: counters.groups_version,
            floor: counters.floor,
            last_time_ns: counters.last_time_ns,
            feature_level: counters.feature_level,
            ..Header::default()
        };
        if let Some(configuration) = &self.configuration {
            header.volume = configuration.volume.0;
            header.incarnation = configuration.incarnation.0;
            header.data_shards = configuration.data_shards.into();
            header.parity_shards = configuration.parity_shards.into();
            header.quota_bytes = configuration.quota_bytes;
            header.name.clone_from(&configuration.name);
        }
        header
    }
}

impl FrozenTable {
    /// Writes the whole snapshot.
    ///
    /// # Errors
    /// Any error of the writer.
    pub(crate) fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        let table = &self.0;
        let mut blocks = BlockWriter::start(to, table.snapshot_version())?;
        blocks.put(Record::Header(table.header()))?;
        for (id, inode) in table.inodes.iter() {
            blocks.put(Record::Inode(inode_record(*id, inode)))?;
        }
        for (key, dentry) in table.dentries.iter() {
            blocks.put(Record::Dentry(DentryRecord {
                parent: key.inode().0,
                name: Bytes::copy_from_slice(key.name()),
                inode: dentry.inode.0,
                cookie: dentry.cookie,
            }))?;
        }
        for ((inode, file_offset), run) in table.extents.iter() {
            blocks.put(Record::Extent(extent_record(*inode, *file_offset, run)))?;
        }
        for ((inode, from), to) in table.dead.iter() {
            blocks.put(Record::Dead(DeadRecord { inode: inode.0, from: *from, to: *to }))?;
        }
        for ((inode, file_offset), run) in table.fresh.iter() {
            blocks.put(Record::FreshExtent(extent_record(*inode, *file_offset, run)))?;
        }
        for ((inode, first_page), end) in table.allocated.iter() {
            let (inode, first_page, pages_count) = (inode.0, *first_page, end - first_page);
            blocks.put(Record::Allocation(AllocationRecord { inode, first_page, pages_count }))?;
        }
        for (id, chunk) in table.chunks.iter() {
            let record = Some(chunk.record(*id));
            blocks.put(Record::Chunk(ChunkState {
                chunk: record,
                live_bytes: chunk.live_bytes,
                freed_ns: chunk.freed_ns,
            }))?;
        }
        for (key, value) in table.xattrs.iter() {
            let name = Bytes::copy_from_slice(key.name());
            blocks.put(Record::Xattr(XattrRecord { inode: key.inode().0, name, value: value.clone() }))?;
        }
        for (id, session) in table.sessions.iter() {
            blocks.put(Record::Session(session_record(*id, session)))?;
        }
        for (id, group) in table.groups.iter() {
            let slot_epochs = group.slots.iter().map(|slot| slot.since_epoch.0).collect();
            blocks.put(Record::Group(GroupRecord {
                group: Some(group.block_group(*id)),
                slot_epochs,
                changed: group.changed,
            }))?;
        }
        for (disk, owed) in table.owed.iter() {
            blocks.put(Record::Owed(OwedRecord { disk: disk.0, chunk: owed.chunk.0, entries: owed.entries }))?;
        }
        blocks.finish()
    }
}

fn extent_record(inode: InodeId, file_offset: u64, run: &Run) -> ExtentRecord {
    ExtentRecord {
        inode: inode.0,
        file_offset,
        length_bytes: run.length_bytes,
        chunk: run.chunk.0,
        chunk_offset: run.chunk_offset,
    }
}

fn run(record: &ExtentRecord) -> Run {
    Run { length_bytes: record.length_bytes, chunk_offset: record.chunk_offset, chunk: ChunkId(record.chunk) }
}

fn inode_record(id: InodeId, inode: &Inode) -> InodeRecord {
    let mut record = InodeRecord { attr: Some(inode.attr(id)), ..InodeRecord::default() };
    match &inode.body {
        Body::Plain => {}
        Body::Directory { parent, next_cookie } => {
            record.parent = parent.0;
            record.next_cookie = *next_cookie;
        }
        Body::Symlink(target) => record.target = Bytes::copy_from_slice(target),
    }
    record
}

fn session_record(id: SessionId, session: &Session) -> SessionRecord {
    let replies = session.replies.iter();
    SessionRecord {
        session: id.0,
        client_key: session.client_key.clone(),
        description: session.description.to_string(),
        acknowledged_below: session.acknowledged_below,
        reserved_bytes: session.reserved_bytes,
        replies: replies.map(|(&sequence, response)| Reply { sequence, response: response.clone() }).collect(),
        ranges: session.chunk_ranges.iter().map(|range| ChunkRange { first: range.start, end: range.end }).collect(),
        opened_ns: session.opened_ns,
    }
}

fn probe(inode: u64, name: &[u8]) -> Result<NameProbe, RestoreError> {
    NameProbe::new(InodeId(inode), name).map_err(|_| RestoreError::Malformed("a name that cannot be"))
}

fn narrow_u8(value: u32) -> Result<u8, RestoreError> {
    u8::try_from(value).map_err(|_| RestoreError::Malformed("too many shards"))
}
