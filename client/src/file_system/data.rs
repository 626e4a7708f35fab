//! Operations on open files' data.

use super::names::create_request;
use super::{FileHandle, FileSystem, attributes_of, missing};
use crate::chunk_reader::ChunkRange;
use crate::extent_map::MappedRange;
use crate::files::OpenFile;
use crate::inode::{Found, Freeze, Inode};
use crate::mount::Mounted;
use crate::readahead::Advice;
use crate::{Attributes, Error, FallocateMode, NewNode, OpenMode, Whence};
use bytes::Bytes;
use holdfast_common::InodeId;
use holdfast_common::limits::{CHUNK_BYTES_MAX, COMMIT_EXTENTS_MAX, FILE_BYTES_MAX, PAGE_BYTES};
use holdfast_proto::meta::{Fallocate, FallocateMode as ProtoMode, FileMap, Open, ReadMap, mutation, read_request};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Extents asked for at once.
const MAP_EXTENTS: u32 = 1024;
/// Bytes of map asked for at once.
const MAP_BYTES: u64 = 1 << 30;
/// Dirty pieces of one file from which on it is flushed although they do not fill a chunk.
const DIRTY_PIECES_MAX: usize = COMMIT_EXTENTS_MAX / 2;
/// Times a read starts over because the map changed under it.
const READ_ATTEMPTS_MAX: u32 = 4;

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// All methods fail with what the table or the datanodes answer, or when no answer comes before the deadline.
#[allow(clippy::missing_errors_doc)]
impl FileSystem {
    /// Creates and opens a regular file. An existing file is opened as it is, unless `exclusive`.
    #[allow(clippy::too_many_arguments)]
    pub async fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
        exclusive: bool,
        open: OpenMode,
    ) -> Result<(Attributes, FileHandle), Error> {
        let mut request = create_request(parent, name, NewNode::File, mode, uid, gid);
        request.exclusive = exclusive;
        request.open = true;
        let creating = async {
            let response = self.mutate(mutation::Op::Create(request)).await?;
            let attr = response.attr.ok_or_else(missing)?;
            Ok((InodeId(attr.inode), attr))
        };
        let (_, attr) = self.mounted.session.opening(creating).await?;
        let (handle, inode) = self.mounted.files.open(attr, open);
        inode.created(&attr);
        Ok((attributes_of(&inode.attributes())?, handle))
    }

    /// Opens a regular file.
    pub async fn open(&self, inode: InodeId, open: OpenMode) -> Result<FileHandle, Error> {
        if open.write {
            self.check_writable()?;
        }
        let opening = async {
            let response = self.ask(read_request::Op::Open(Open { inode: inode.0 })).await?;
            Ok((inode, response))
        };
        let (_, response) = self.mounted.session.opening(opening).await?;
        let attr = response.attr.ok_or_else(missing)?;
        let (handle, state) = self.mounted.files.open(attr, open);
        if let Some(map) = response.map {
            state.learn_map(attr, &map);
        }
        Ok(handle)
    }

    /// At most `length_bytes`, less only at the end of the file. Pieces in order.
    pub async fn read(&self, handle: FileHandle, offset: u64, length_bytes: u32) -> Result<Vec<Bytes>, Error> {
        let file = self.mounted.files.get(handle)?;
        if !file.mode.read {
            return Err(Error::BadHandle);
        }
        let size_bytes = file.inode.size_bytes();
        let advice = file.readahead.lock().read(offset, u64::from(length_bytes), size_bytes);
        self.read_ahead(&file, advice);
        let mut attempt = 1;
        loop {
            match self.mounted.read_once(&file.inode, offset, length_bytes, advice.sequential).await {
                // The chunk may have been freed since its place was learnt (R5).
                Err(Error::Unreadable(reason)) if attempt < READ_ATTEMPTS_MAX => {
                    tracing::debug!(inode = %file.inode.id, reason, "a read starts over with a fresh map");
                    file.inode.forget_map();
                    let _ = self.mounted.session.refresh_groups().await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn read_ahead(&self, file: &Arc<OpenFile>, advice: Advice) {
        let Some((from, to)) = advice.ahead else { return };
        let mounted = Arc::clone(&self.mounted);
        let inode = Arc::clone(&file.inode);
        tokio::spawn(async move {
            if let Ok(ranges) = mounted.mapped(&inode, from, to).await {
                mounted.reader.prefetch(&chunk_ranges(&ranges)).await;
            }
        });
    }

    /// Takes all of `data` or fails.
    pub async fn write(&self, handle: FileHandle, offset: u64, data: Bytes, kill_suid_sgid: bool) -> Result<(), Error> {
        let file = self.mounted.files.get(handle)?;
        if !file.mode.write {
            return Err(Error::BadHandle);
        }
        let length = data.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Error::FileTooLarge);
        }
        if length == 0 {
            return Ok(());
        }
        let flusher = &self.mounted.flusher;
        let bytes = data.len();
        flusher.budget.take(bytes).await;
        if let Err(error) = self.admit(&file.inode, offset, length).await {
            flusher.budget.give_back(bytes);
            return Err(error);
        }
        let written = file.inode.write(offset, data, now_ns(), kill_suid_sgid);
        flusher.budget.give_back(written.replaced_bytes);
        if written.first {
            flusher.note_dirty(&file.inode);
        }
        if written.dirty_bytes >= CHUNK_BYTES_MAX as usize || written.pieces_count >= DIRTY_PIECES_MAX {
            flusher.freeze(&file.inode, Freeze::FullChunks);
        }
        if flusher.budget.is_pressed() {
            flusher.freeze_everything();
        }
        if file.mode.sync {
            flusher.flush(&file.inode).await?;
        }
        Ok(())
    }

    /// Reserves what a write needs of the disks and of the quota: ENOSPC and EDQUOT are said here.
    async fn admit(&self, inode: &Inode, start: u64, length: u64) -> Result<(), Error> {
        let flusher = &self.mounted.flusher;
        let flush = async || {
            flusher.flush_everything().await;
            flusher.budget.used_bytes()
        };
        flusher.space.cover(flusher.budget.used_bytes(), flush).await?;
        let settle = async || {
            flusher.flush_everything().await;
            self.mounted.unmapped_charge(inode, start, length).await
        };
        let charged = flusher.quota.take(start, length, settle).await?;
        inode.charged(charged);
        Ok(())
    }

    /// At each close(2): everything written becomes visible to other mounts; reports a lost write once (R22).
    pub async fn flush(&self, handle: FileHandle) -> Result<(), Error> {
        let file = self.mounted.files.get(handle)?;
        self.mounted.flusher.flush(&file.inode).await
    }

    /// fsync(2) and fdatasync(2): what was written is durable, and so are its size and name.
    pub async fn fsync(&self, handle: FileHandle) -> Result<(), Error> {
        self.flush(handle).await
    }

    /// The last close. The handle is gone after it.
    pub async fn release(&self, handle: FileHandle) -> Result<(), Error> {
        let file = self.mounted.files.close(handle)?;
        let flushed = self.mounted.flusher.flush(&file.inode).await;
        self.mounted.files.forget_unused(file.inode.id);
        self.mounted.session.released(file.inode.id);
        flushed
    }

    /// fallocate(2).
    pub async fn fallocate(
        &self,
        handle: FileHandle,
        offset: u64,
        length_bytes: u64,
        mode: FallocateMode,
    ) -> Result<(), Error> {
        let file = self.mounted.files.get(handle)?;
        if !file.mode.write {
            return Err(Error::BadHandle);
        }
        if offset.checked_add(length_bytes).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Error::FileTooLarge);
        }
        self.mounted.flusher.flush(&file.inode).await?;
        let (mode, keep_size) = match mode {
            FallocateMode::Allocate { keep_size } => (ProtoMode::Allocate, keep_size),
            FallocateMode::PunchHole => (ProtoMode::PunchHole, true),
            FallocateMode::ZeroRange { keep_size } => (ProtoMode::ZeroRange, keep_size),
        };
        let inode = file.inode.id.0;
        let op = Fallocate { inode, offset, length_bytes, mode: mode.into(), keep_size, available_bytes: None };
        let response = self.mutate(mutation::Op::Fallocate(op)).await?;
        self.show(response.attr).map(|_| ())
    }

    /// lseek(2) for data and holes.
    pub async fn seek(&self, handle: FileHandle, offset: u64, whence: Whence) -> Result<u64, Error> {
        let file = self.mounted.files.get(handle)?;
        self.mounted.flusher.flush(&file.inode).await?;
        let mut at = offset;
        loop {
            let (size_bytes, map) = self.mounted.fetch_map(&file.inode, at).await?;
            if offset >= size_bytes {
                return Err(Error::NoSuchOffset);
            }
            let covered_to = map.offset.saturating_add(map.covered_bytes);
            for extent in &map.extents {
                match whence {
                    Whence::Data if extent.file_offset + extent.length_bytes > at => {
                        return Ok(at.max(extent.file_offset));
                    }
                    Whence::Hole if extent.file_offset > at => return Ok(at),
                    _ => at = at.max(extent.file_offset + extent.length_bytes),
                }
            }
            if whence == Whence::Hole && at < covered_to.min(size_bytes) {
                return Ok(at);
            }
            at = at.max(covered_to);
            if at >= size_bytes {
                return if whence == Whence::Hole { Ok(size_bytes) } else { Err(Error::NoSuchOffset) };
            }
        }
    }
}

fn chunk_ranges(ranges: &[MappedRange]) -> Vec<ChunkRange> {
    ranges
        .iter()
        .map(|range| ChunkRange {
            chunk: Arc::clone(&range.chunk),
            offset: u32::try_from(range.chunk_offset).expect("an offset in a chunk"),
            length_bytes: u32::try_from(range.length_bytes).expect("a part of a chunk"),
        })
        .collect()
}

impl Mounted {
    /// Asks the table for the map from `offset` on, and remembers it. Answers the size, too.
    async fn fetch_map(&self, inode: &Inode, offset: u64) -> Result<(u64, FileMap), Error> {
        let op = ReadMap { inode: inode.id.0, offset, length_bytes: MAP_BYTES, max_extents: MAP_EXTENTS };
        let response = self.metadata.read(read_request::Op::ReadMap(op)).await?;
        let attr = response.attr.ok_or_else(missing)?;
        let map = response.map.ok_or_else(missing)?;
        let size_bytes = attr.size_bytes;
        inode.learn_map(attr, &map);
        Ok((size_bytes, map))
    }

    /// The committed parts of a range, for reading ahead.
    async fn mapped(&self, inode: &Inode, from: u64, to: u64) -> Result<Vec<MappedRange>, Error> {
        for _ in 0..READ_ATTEMPTS_MAX {
            match inode.find(from, to - from) {
                Found::MapUnknown { offset } => {
                    self.fetch_map(inode, offset).await?;
                }
                Found::End => return Ok(Vec::new()),
                Found::Mapped { ranges, .. } | Found::Mixed { ranges, .. } => return Ok(ranges),
            }
        }
        Ok(Vec::new())
    }

    /// The 4 KiB pages of a range that nothing maps yet, in bytes.
    async fn unmapped_charge(&self, inode: &Inode, offset: u64, length: u64) -> Result<u64, Error> {
        let page = u64::from(PAGE_BYTES);
        let (mut at, end) = (offset / page * page, (offset + length).next_multiple_of(page));
        let mut unmapped = 0;
        while at < end {
            let (_, map) = self.fetch_map(inode, at).await?;
            let covered_to = map.offset.saturating_add(map.covered_bytes).max(at + page);
            for extent in &map.extents {
                let from = (extent.file_offset / page * page).clamp(at, end);
                unmapped += from - at;
                at = (extent.file_offset + extent.length_bytes).next_multiple_of(page).clamp(from, end);
            }
            let stop = (covered_to / page * page).clamp(at, end);
            unmapped += stop - at;
            at = stop;
        }
        Ok(unmapped)
    }

    async fn read_once(
        &self,
        inode: &Inode,
        offset: u64,
        length_bytes: u32,
        sequential: bool,
    ) -> Result<Vec<Bytes>, Error> {
        loop {
            match inode.find(offset, u64::from(length_bytes)) {
                Found::MapUnknown { offset } => {
                    self.fetch_map(inode, offset).await?;
                }
                Found::End => return Ok(Vec::new()),
                Found::Mapped { length_bytes, ranges } => {
                    let parts = self.reader.read(&chunk_ranges(&ranges), sequential).await?;
                    return Ok(with_holes(offset, length_bytes, &ranges, parts));
                }
                Found::Mixed { mut overlay, ranges } => {
                    let parts = self.reader.read(&chunk_ranges(&ranges), sequential).await?;
                    for (range, pieces) in ranges.iter().zip(parts) {
                        let mut at = range.file_offset;
                        for piece in pieces {
                            overlay.put(offset, at, &piece);
                            at += piece.len() as u64;
                        }
                    }
                    return Ok(vec![overlay.finish()]);
                }
            }
        }
    }
}

/// Zeros for holes: handed out by reference.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

fn with_holes(offset: u64, length_bytes: u64, ranges: &[MappedRange], parts: Vec<Vec<Bytes>>) -> Vec<Bytes> {
    let mut out = Vec::new();
    let mut at = offset;
    for (range, pieces) in ranges.iter().zip(parts) {
        push_zeros(&mut out, range.file_offset - at);
        out.extend(pieces);
        at = range.file_offset + range.length_bytes;
    }
    push_zeros(&mut out, offset + length_bytes - at);
    out
}

fn push_zeros(out: &mut Vec<Bytes>, mut count: u64) {
    while count > 0 {
        let part = count.min(ZEROS.len() as u64);
        out.push(Bytes::from_static(&ZEROS[..usize::try_from(part).expect("at most 64 KiB")]));
        count -= part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::ChunkRecord;

    #[test]
    fn holes_between_and_behind_extents_read_as_zeros() {
        let range =
            MappedRange { file_offset: 12, length_bytes: 3, chunk: Arc::new(ChunkRecord::default()), chunk_offset: 0 };
        let out = with_holes(10, 8, &[range], vec![vec![Bytes::from_static(b"a"), Bytes::from_static(b"bc")]]);
        assert_eq!(out.concat(), b"\0\0abc\0\0\0");
    }
}
