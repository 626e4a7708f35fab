//! Commits: ranges of many files are mapped to chunks whose shards are durable (D1, R2). Atomic per file.
//!
//! First every chunk record is judged; then each file, against the state the files before it left; last, chunks of the
//! request that no file took go to the freed list, so that their shards are deleted.

use super::extents::PAGE;
use super::records::{Chunk, Group, Run};
use super::{Broken, Fault, Outcome, Table};
use crate::sabotage::Sabotage;
use holdfast_common::limits::{COMMIT_EXTENTS_MAX, FILE_BYTES_MAX, PAGE_BYTES, SHARDS_MAX};
use holdfast_common::{ChunkId, Epoch, GroupId, InodeId, Nonce, SessionId};
use holdfast_erasure::{Geometry, geometry};
use holdfast_proto::meta::{ChunkRecord, Code, Commit, CommitResult, Extent, FileCommit, Kind, MutateResponse};
use std::collections::BTreeMap;

/// Verdict on a chunk of a commit: its length if files may use it, or the refusal.
type Verdicts = BTreeMap<u64, Result<u32, Code>>;

impl Table {
    pub(super) fn commit(&mut self, op: &Commit, session: SessionId, now_ns: i64) -> Outcome<MutateResponse> {
        let extents_count: usize = op.files.iter().map(|file| file.extents.len()).sum();
        if op.files.len().max(op.chunks.len()).max(extents_count) > COMMIT_EXTENTS_MAX {
            return Err(Code::Invalid.into());
        }
        for file in &op.files {
            self.may_cut(InodeId(file.inode))?;
        }
        let mut budget = self.pieces_budget();
        let mut verdicts = Verdicts::new();
        let mut touched: Vec<ChunkId> = Vec::with_capacity(op.chunks.len());
        for record in &op.chunks {
            let mut verdict = self.accept_chunk(record, session, &mut touched)?;
            if verdicts.contains_key(&record.chunk) {
                verdict = Err(Code::Invalid);
            }
            verdicts.insert(record.chunk, verdict);
        }
        let mut commits = Vec::with_capacity(op.files.len());
        for file in &op.files {
            commits.push(match self.commit_file(file, session, &verdicts, (&mut budget, &mut touched), now_ns) {
                Ok(attr) => attr,
                Err(Fault::Refused(code)) => self.refused_file(InodeId(file.inode), code),
                Err(Fault::Broken(broken)) => return Err(broken.into()),
            });
        }
        self.free_emptied(&touched, now_ns)?;
        Ok(MutateResponse { commits, ..MutateResponse::default() })
    }

    /// Carries the attributes that the file has now: the client goes on under the present truncate generation (R9).
    fn refused_file(&self, id: InodeId, code: Code) -> CommitResult {
        let attr = self.inodes.get(&id).filter(|_| self.feature_level() >= 1).map(|inode| inode.attr(id));
        CommitResult { code: code.into(), attr }
    }

    /// Judges a chunk record and enters a new one into the table, without live bytes yet.
    fn accept_chunk(
        &mut self,
        record: &ChunkRecord,
        session: SessionId,
        touched: &mut Vec<ChunkId>,
    ) -> Result<Result<u32, Code>, Broken> {
        let group = self.groups.get(&GroupId(record.group));
        let Some(group) = group.filter(|group| Epoch(record.epoch) <= group.epoch) else {
            return Ok(Err(Code::RewriteChunk));
        };
        let Some(chunk) = self.well_formed(record, group) else {
            return Ok(Err(Code::Invalid));
        };
        if record.chunk < self.counters.floor && !self.breaks(Sabotage::CommitsBelowFloorTaken) {
            return Ok(Err(Code::RewriteChunk));
        }
        let id = ChunkId(record.chunk);
        if let Some(known) = self.chunks.get(&id) {
            // R1: the same attempt may be named by several commits while it lives; anything else is another chunk
            // under a burnt id. What was freed may be half deleted.
            let is_live = known.live_bytes > 0 || self.breaks(Sabotage::FreedChunksTakenAgain);
            let same = is_live && known.record(id) == *record;
            return Ok(if same { Ok(record.length_bytes) } else { Err(Code::RewriteChunk) });
        }
        if !self.session(session)?.owns_chunk(record.chunk) {
            return Ok(Err(Code::RewriteChunk));
        }
        let current = self.names_current_members(&chunk);
        self.session_mut(session)?.burn_chunk(record.chunk);
        if let Some(mut group) = self.groups.get_mut(&chunk.group) {
            group.used_bytes += u64::from(chunk.length_bytes);
        }
        self.chunks.insert(id, chunk);
        // Also if it is refused: it is then freed at the end of the commit, and its shards are deleted.
        touched.push(id);
        Ok(if current { Ok(record.length_bytes) } else { Err(Code::RewriteChunk) })
    }

    /// The chunk of a record whose geometry is possible in this volume.
    fn well_formed(&self, record: &ChunkRecord, group: &Group) -> Option<Chunk> {
        let configuration = self.configuration.as_ref()?;
        let data_shards = u8::try_from(record.data_shards).ok()?;
        let parity_shards = u8::try_from(record.parity_shards).ok()?;
        let shards_count = usize::from(data_shards) + usize::from(parity_shards);
        let mut seen = [false; SHARDS_MAX];
        for &slot in &record.slots {
            let slot = usize::from(slot);
            if slot >= group.slots.len() || std::mem::replace(seen.get_mut(slot)?, true) {
                return None;
            }
        }
        let fits = (1..=configuration.data_shards).contains(&data_shards)
            && parity_shards == configuration.parity_shards
            && record.slots.len() == shards_count
            && self.is_stripe(record, data_shards);
        fits.then(|| Chunk {
            nonce: Nonce(record.nonce),
            group: GroupId(record.group),
            epoch: Epoch(record.epoch),
            length_bytes: record.length_bytes,
            shard_length_bytes: record.shard_length_bytes,
            data_shards,
            parity_shards,
            slots: record.slots.as_ref().into(),
            live_bytes: 0,
            freed_ns: 0,
        })
    }

    /// From feature level 1 on exactly what readers accept; before, shards could be longer than they need be, or too many.
    fn is_stripe(&self, record: &ChunkRecord, data_shards: u8) -> bool {
        let (length_bytes, shard_length_bytes) = (record.length_bytes, record.shard_length_bytes);
        if self.feature_level() >= 1 {
            let (data_shards, parity_shards) = (record.data_shards, record.parity_shards);
            return Geometry::recorded(data_shards, parity_shards, length_bytes, shard_length_bytes).is_some();
        }
        length_bytes > 0 && geometry::holds(data_shards, length_bytes, shard_length_bytes).is_ok()
    }

    /// R12: none of its slots was vacated or filled again since the client chose them.
    fn names_current_members(&self, chunk: &Chunk) -> bool {
        self.groups.get(&chunk.group).is_some_and(|group| {
            chunk.slots.iter().all(|&slot| {
                group
                    .slots
                    .get(usize::from(slot))
                    .is_some_and(|slot| slot.disk.0 != 0 && slot.since_epoch <= chunk.epoch)
                    || self.breaks(Sabotage::VacatedSlotsTaken)
            })
        })
    }

    fn commit_file(
        &mut self,
        file: &FileCommit,
        session: SessionId,
        verdicts: &Verdicts,
        (budget, touched): (&mut usize, &mut Vec<ChunkId>),
        now_ns: i64,
    ) -> Outcome<CommitResult> {
        let id = InodeId(file.inode);
        let inode = self.inode(id)?;
        if inode.kind != Kind::File {
            return Err(Code::Invalid.into());
        }
        let is_former = inode.truncate_generation != file.truncate_generation;
        if is_former && !self.breaks(Sabotage::TruncatedCommitsTaken) {
            return Err(Code::Truncated.into());
        }
        let size_bytes = inode.size_bytes.max(file.size_at_least);
        check_extents(&file.extents, size_bytes, verdicts)?;
        let ranges = file.extents.iter().map(|extent| (extent.file_offset, extent.file_offset + extent.length_bytes));
        let more_pages = self.newly_mapped_pages(id, ranges.clone());
        self.consume_quota(session, file.quota_bytes, more_pages)?;
        for extent in &file.extents {
            let length_bytes = u32::try_from(extent.length_bytes).map_err(|_| Code::Invalid)?;
            let run = Run { length_bytes, chunk_offset: extent.chunk_offset, chunk: ChunkId(extent.chunk) };
            self.map(id, extent.file_offset, run, budget, touched)?;
        }
        for (from, to) in ranges {
            self.deallocate(id, from / PAGE..to.div_ceil(PAGE))?;
        }
        self.kill_capability(id);
        let mut inode = self.known_mut(id)?;
        inode.size_bytes = size_bytes;
        inode.mtime_ns = inode.mtime_ns.max(file.mtime_ns.min(now_ns));
        inode.ctime_ns = now_ns;
        inode.data_version += 1;
        if file.kill_suid_sgid {
            inode.kill_suid_sgid();
        }
        Ok(CommitResult { code: Code::Ok.into(), attr: Some(inode.attr(id)) })
    }

    /// Turns reservation into use. What the reservation covers is never refused; what goes beyond it must fit.
    fn consume_quota(&mut self, session: SessionId, offered_bytes: u64, more_pages: u64) -> Outcome<()> {
        let reserved = self.session(session)?.reserved_bytes;
        let consumed = offered_bytes.min(reserved);
        let rest = self.counters.reserved_bytes - consumed;
        let covered = more_pages.saturating_mul(PAGE_BYTES.into()) <= consumed;
        if !covered && !self.fits_quota(rest, more_pages) {
            return Err(Code::Quota.into());
        }
        self.counters.reserved_bytes = rest;
        self.session_mut(session)?.reserved_bytes = reserved - consumed;
        Ok(())
    }
}

/// Ascending, apart, inside the file and inside chunks that may be used.
fn check_extents(extents: &[Extent], size_bytes: u64, verdicts: &Verdicts) -> Result<(), Code> {
    if size_bytes > FILE_BYTES_MAX {
        return Err(Code::FileTooLarge);
    }
    let mut next = 0;
    for extent in extents {
        let chunk_bytes = (*verdicts.get(&extent.chunk).ok_or(Code::Invalid)?)?;
        let end = extent.file_offset.checked_add(extent.length_bytes).ok_or(Code::FileTooLarge)?;
        let chunk_end = u64::from(extent.chunk_offset).checked_add(extent.length_bytes).ok_or(Code::Invalid)?;
        if extent.length_bytes == 0 || extent.file_offset < next || chunk_end > u64::from(chunk_bytes) {
            return Err(Code::Invalid);
        }
        if end > FILE_BYTES_MAX {
            return Err(Code::FileTooLarge);
        }
        // Bytes behind the end would appear when the file grows.
        if end > size_bytes {
            return Err(Code::Invalid);
        }
        next = end;
    }
    Ok(())
}
