//! Operations on open files' data.

use super::names::create_request;
use super::{FileHandle, FileSystem, attributes_of, missing};
use crate::chunk_reader::ChunkRange;
use crate::core::effects::{Answer, Call, Input, PlanPiece, Reading};
use crate::core::readahead::Advice;
use crate::{Attributes, Error, FallocateMode, NewNode, OpenMode, Whence, WriteAt};
use bytes::Bytes;
use holdfast_common::limits::FILE_BYTES_MAX;
use holdfast_common::{FileOffset, InodeId, Owner};
use holdfast_proto::meta::{Fallocate, FallocateMode as ProtoMode, mutation};
use std::sync::Arc;
use std::time::Duration;

/// Times a read starts over because the map changed under it, or too few members answered.
const READ_ATTEMPTS_MAX: u32 = 5;
/// Pause before the third time, when a fresh map alone did not help; each next one is four times as long.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// All methods fail with what the table or the datanodes answer, or when no answer comes before the deadline.
#[allow(clippy::missing_errors_doc)]
impl FileSystem {
    /// Creates and opens a regular file. An existing file is opened as it is, unless `exclusive`.
    pub async fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        owner: Owner,
        exclusive: bool,
        open: OpenMode,
    ) -> Result<(Attributes, FileHandle), Error> {
        self.check_writable()?;
        let mut request = create_request(parent, name, NewNode::File, mode, owner);
        request.exclusive = exclusive;
        request.open = true;
        self.opened(Call::Create { request, mode: open }).await
    }

    /// Opens a regular file.
    pub async fn open(&self, inode: InodeId, open: OpenMode) -> Result<FileHandle, Error> {
        if open.write {
            self.check_writable()?;
        }
        Ok(self.opened(Call::Open { inode, mode: open }).await?.1)
    }

    async fn opened(&self, call: Call) -> Result<(Attributes, FileHandle), Error> {
        match self.run(call).await? {
            Answer::Opened(attr, handle) => Ok((attributes_of(&attr)?, handle)),
            _ => Err(missing()),
        }
    }

    /// At most `length_bytes`, less only at the end of the file. Pieces in order.
    pub async fn read(&self, handle: FileHandle, offset: u64, length_bytes: u32) -> Result<Vec<Bytes>, Error> {
        let mut reading = Reading::Wanted;
        let mut sequential = false;
        for attempt in 1.. {
            let (pieces, advice) = self.plan(handle, FileOffset(offset), u64::from(length_bytes), reading).await?;
            if reading == Reading::Wanted {
                sequential = advice.sequential;
                self.read_ahead(handle, advice);
            }
            match self.mounted.reader.read(&chunk_ranges(&pieces), sequential).await {
                // The chunk may have been freed since its place was learnt (R5).
                Err(Error::Unreadable(reason)) if attempt < READ_ATTEMPTS_MAX => {
                    tracing::debug!(?handle, reason, "a read starts over with a fresh map");
                    self.mounted.shell.put_in(Input::DoubtGroups);
                    reading = Reading::Again;
                    if attempt > 1 {
                        // Groups are being asked for, or a member comes back.
                        let pause = READ_PAUSE * 4u32.pow(attempt - 2);
                        self.mounted.shell.runtime.sleep(pause).await;
                    }
                }
                other => return Ok(put_together(pieces, other?)),
            }
        }
        Err(missing())
    }

    async fn plan(
        &self,
        handle: FileHandle,
        offset: FileOffset,
        length_bytes: u64,
        reading: Reading,
    ) -> Result<(Vec<PlanPiece>, Advice), Error> {
        match self.run(Call::Plan { handle, offset, length_bytes, reading }).await? {
            Answer::Plan(pieces, advice) => Ok((pieces, advice)),
            _ => Err(missing()),
        }
    }

    fn read_ahead(&self, handle: FileHandle, advice: Advice) {
        let Some((from, to)) = advice.ahead else { return };
        let file_system = self.clone();
        self.mounted.shell.runtime.spawn(Box::pin(async move {
            if let Ok((pieces, _)) = file_system.plan(handle, from, to - from, Reading::Ahead).await {
                file_system.mounted.reader.prefetch(&chunk_ranges(&pieces)).await;
            }
        }));
    }

    /// Takes all of `data` or fails.
    pub async fn write(&self, handle: FileHandle, at: WriteAt, data: Bytes, kill_suid_sgid: bool) -> Result<(), Error> {
        let mtime_ns = self.mounted.shell.runtime.wall_ns();
        let call = Call::Write { handle, at, data, mtime_ns, kill_suid_sgid };
        match self.run(call).await? {
            Answer::Told(_, error) => Err(error),
            _ => Ok(()),
        }
    }

    /// At each close(2): everything written becomes visible to other mounts; tells of a lost write, and leaves it to be told
    /// by fsync(2), because a close is often ignored (R22).
    pub async fn flush(&self, handle: FileHandle) -> Result<(), Error> {
        self.run(Call::Flush { handle, closing: true }).await.map(|_| ())
    }

    /// fsync(2) and fdatasync(2): what was written is durable, and so are its size and name. Tells of a lost write once, also of
    /// one that was lost before the handle was opened if no fsync has told it.
    pub async fn fsync(&self, handle: FileHandle) -> Result<(), Error> {
        match self.run(Call::Flush { handle, closing: false }).await? {
            Answer::Told(_, error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The last close. The handle is gone after it.
    pub async fn release(&self, handle: FileHandle) -> Result<(), Error> {
        self.run(Call::Release { handle }).await.map(|_| ())
    }

    /// fallocate(2).
    pub async fn fallocate(
        &self,
        handle: FileHandle,
        offset: u64,
        length_bytes: u64,
        mode: FallocateMode,
    ) -> Result<(), Error> {
        let inode = self.mounted.shell.with(|core, _| core.open_for_writing(handle))?;
        if offset.checked_add(length_bytes).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Error::FileTooLarge);
        }
        let (mode, keep_size) = match mode {
            FallocateMode::Allocate { keep_size } => (ProtoMode::Allocate, keep_size),
            FallocateMode::PunchHole => (ProtoMode::PunchHole, true),
            FallocateMode::ZeroRange { keep_size } => (ProtoMode::ZeroRange, keep_size),
        };
        // The table bounds the work of one entry, and says how far it came; nothing said means all.
        let (mut at, end) = (offset, offset + length_bytes);
        loop {
            let (length_bytes, mode) = (end - at, mode.into());
            let op = Fallocate { inode: inode.0, offset: at, length_bytes, mode, keep_size, available_bytes: None };
            let covered_bytes = self.change_after_writes(inode, mutation::Op::Fallocate(op)).await?.covered_bytes;
            if covered_bytes == 0 || covered_bytes >= length_bytes {
                return Ok(());
            }
            at += covered_bytes;
        }
    }

    /// lseek(2) for data and holes.
    pub async fn seek(&self, handle: FileHandle, offset: u64, whence: Whence) -> Result<u64, Error> {
        match self.run(Call::Seek { handle, offset: FileOffset(offset), whence }).await? {
            Answer::Offset(offset) => Ok(offset.0),
            _ => Err(missing()),
        }
    }
}

fn chunk_ranges(pieces: &[PlanPiece]) -> Vec<ChunkRange> {
    pieces
        .iter()
        .filter_map(|piece| match piece {
            PlanPiece::Chunk { chunk, offset, length_bytes } => Some(ChunkRange {
                chunk: Arc::clone(chunk),
                offset: u32::try_from(*offset).expect("an offset in a chunk"),
                length_bytes: u32::try_from(*length_bytes).expect("a part of a chunk"),
            }),
            PlanPiece::Bytes(_) | PlanPiece::Zeros(_) => None,
        })
        .collect()
}

/// The bytes of all pieces in their order; `parts` are those of the chunks.
fn put_together(pieces: Vec<PlanPiece>, parts: Vec<Vec<Bytes>>) -> Vec<Bytes> {
    let mut out = Vec::new();
    let mut parts = parts.into_iter();
    for piece in pieces {
        match piece {
            PlanPiece::Bytes(bytes) => out.push(bytes),
            PlanPiece::Zeros(count) => push_zeros(&mut out, count),
            PlanPiece::Chunk { .. } => out.extend(parts.next().unwrap_or_default()),
        }
    }
    out
}

/// Zeros for holes: handed out by reference.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

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
    fn pieces_keep_their_order() {
        let chunk = || PlanPiece::Chunk { chunk: Arc::new(ChunkRecord::default()), offset: 0, length_bytes: 2 };
        let pieces = vec![PlanPiece::Zeros(2), chunk(), PlanPiece::Bytes(Bytes::from_static(b"x")), chunk()];
        let parts = vec![vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")], vec![Bytes::from_static(b"cd")]];
        assert_eq!(put_together(pieces, parts).concat(), b"\0\0abxcd");
    }
}
