//! The stream of a snapshot: 8 bytes magic, u32 version, 1 at feature level 0, else 2; then blocks of u32 length, u32 CRC32C of
//! (length, payload), payload; all integers little-endian. A block's payload is a run of varint-delimited `SnapshotRecord`s
//! of `snapshot.proto`, none cut by a block's end.

use super::RestoreError;
use bytes::{Bytes, BytesMut};
use holdfast_common::checksum::{crc32c, crc32c_append};
use holdfast_proto::snapshot::snapshot_record::Record;
use holdfast_proto::snapshot::{End, SnapshotRecord};
use prost::Message;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"HFTABLE\n";
/// Of a table of feature level 0, as builds wrote it that knew no levels, and of every other: such a build would otherwise
/// read it and behave as at level 0 (R26).
pub(super) const VERSION_PLAIN: u32 = 1;
pub(super) const VERSION_WITH_LEVEL: u32 = 2;
/// Bytes after which a block is written.
const BLOCK_BYTES: usize = 64 << 10;
/// No block is larger: one record on top of a full block, the largest being a session with all its replies.
const BLOCK_BYTES_MAX: u32 = 512 << 20;

/// Writes records, many to a block.
pub(super) struct BlockWriter<'a> {
    to: &'a mut dyn Write,
    block: BytesMut,
    records_count: u64,
}

impl<'a> BlockWriter<'a> {
    /// Writes the head, which comes before the blocks.
    pub(super) fn start(to: &'a mut dyn Write, version: u32) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        to.write_all(&version.to_le_bytes())?;
        Ok(Self { to, block: BytesMut::with_capacity(2 * BLOCK_BYTES), records_count: 0 })
    }

    pub(super) fn put(&mut self, record: Record) -> io::Result<()> {
        self.records_count += 1;
        self.append(record)?;
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn append(&mut self, record: Record) -> io::Result<()> {
        SnapshotRecord { record: Some(record) }.encode_length_delimited(&mut self.block).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        let length = u32::try_from(self.block.len()).map_err(io::Error::other)?.to_le_bytes();
        self.to.write_all(&length)?;
        self.to.write_all(&crc32c_append(crc32c(&length), &self.block).to_le_bytes())?;
        self.to.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.append(Record::End(End { records_count: self.records_count }))?;
        self.flush()?;
        self.to.flush()
    }
}

/// Reads blocks and verifies them.
pub(super) struct BlockReader<'a> {
    from: &'a mut dyn Read,
}

impl<'a> BlockReader<'a> {
    /// Reads what comes before the blocks: the version, if it is a known one.
    pub(super) fn open(from: &'a mut dyn Read) -> Result<(Self, u32), RestoreError> {
        let mut blocks = Self { from };
        let version = blocks.read_preamble()?;
        Ok((blocks, version))
    }

    fn read_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.from.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read_preamble(&mut self) -> Result<u32, RestoreError> {
        let mut magic = [0; MAGIC.len()];
        self.from.read_exact(&mut magic)?;
        let version = self.read_u32()?;
        let known = [VERSION_PLAIN, VERSION_WITH_LEVEL].contains(&version);
        if &magic == MAGIC && known { Ok(version) } else { Err(RestoreError::Version) }
    }

    pub(super) fn read_block(&mut self) -> Result<Bytes, RestoreError> {
        let length = self.read_u32()?;
        let crc = self.read_u32()?;
        if length == 0 || length > BLOCK_BYTES_MAX {
            return Err(RestoreError::Damaged);
        }
        // Grows with what is really there: a damaged length must not reserve half a gigabyte.
        let mut block = Vec::new();
        self.from.take(length.into()).read_to_end(&mut block)?;
        if u32::try_from(block.len()) != Ok(length) || crc32c_append(crc32c(&length.to_le_bytes()), &block) != crc {
            return Err(RestoreError::Damaged);
        }
        Ok(block.into())
    }
}
