//! Writes of chunks: which members take the shards of an attempt, and what their answers mean (R1, R13, R16). Pure.
//!
//! An attempt has one chunk id, one nonce and one set of members. Any failure burns the id, and the whole chunk goes
//! elsewhere under a new one.

use super::effects::WriteId;
use super::members::{Member, Members};
use super::time::Moment;
use super::writeback::JobId;
use crate::CallFailed;
use bytes::Bytes;
use holdfast_common::{ChunkId, DiskId};
use holdfast_erasure::{CodeMode, Geometry, choose_slots};
use holdfast_proto::data::{PutShardResponse, Status};
use holdfast_proto::meta::{BlockGroup, ChunkRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Attempts that all ended in "no space" before the data is given up (R16).
const NO_SPACE_ATTEMPTS_MAX: u32 = 3;

/// Group, shape and members that an attempt has chosen.
#[derive(Debug)]
pub(crate) struct Stripe {
    pub(crate) group: Arc<BlockGroup>,
    pub(crate) geometry: Geometry,
    pub(crate) members: Vec<Member>,
}

impl Stripe {
    /// For [`super::sabotage::Sabotage::ParityNarrowed`]: as many data shards as its members can take. Gives the parity shards that
    /// are left: those without a member are put nowhere.
    pub(crate) fn widen(&mut self, code: CodeMode, length_bytes: u32) -> u32 {
        let usable = self.members.len() + usize::from(code.m());
        self.geometry = Geometry::new(code, length_bytes, usable).unwrap_or(self.geometry);
        let parity_shards = self.members.len().saturating_sub(usize::from(self.geometry.data_shards()));
        u32::try_from(parity_shards).unwrap_or(0)
    }
}

/// Chooses the group: by the chunk's id, among those that can take the widest stripe.
pub(crate) fn choose_stripe(
    members: &Members,
    code: CodeMode,
    chunk: ChunkId,
    length_bytes: u32,
    now: Moment,
) -> Option<Stripe> {
    let open = members.open_groups();
    let start = usize::try_from(chunk.0 % (open.len().max(1) as u64)).unwrap_or(0);
    let least = 1 + usize::from(code.m());
    let mut best: Option<Stripe> = None;
    for id in open.iter().cycle().skip(start).take(open.len()) {
        let Some(group) = members.group(*id) else { continue };
        let usable = members.usable(group, least, now);
        let Some(geometry) = Geometry::new(code, length_bytes, usable.len()) else { continue };
        let slots: Vec<u8> = usable.iter().map(|m| m.slot).collect();
        let Some(chosen) = choose_slots(chunk, &slots, geometry.shards_count()) else { continue };
        if best.as_ref().is_none_or(|b| geometry.data_shards() > b.geometry.data_shards()) {
            let chosen = chosen.iter().filter_map(|slot| usable.iter().find(|m| m.slot == *slot).copied()).collect();
            best = Some(Stripe { group: Arc::clone(group), geometry, members: chosen });
            if usable.len() == group.slots.len() {
                break;
            }
        }
    }
    best
}

/// Meaning of an answer to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Stored,
    /// The disk is full.
    Full,
    /// The member failed.
    Failed,
    /// The member does its work; the chunk's id is below the floor (R4).
    BelowFloor,
    /// The member does its work; what this client knows of groups is out of date.
    Misplaced,
    /// The member has too much to do.
    Busy,
}

pub(crate) fn judge(answer: &Result<PutShardResponse, CallFailed>) -> Put {
    let Ok(answer) = answer else { return Put::Failed };
    // Not by the accessor, which takes a number that this version does not know for OK.
    match Status::try_from(answer.status) {
        Ok(Status::Ok) => Put::Stored,
        Ok(Status::NoSpace) => Put::Full,
        Ok(Status::BelowFloor) => Put::BelowFloor,
        Ok(Status::WrongDisk) => Put::Misplaced,
        Ok(Status::Busy) => Put::Busy,
        Ok(
            Status::NotFound
            | Status::Corrupt
            | Status::Conflict
            | Status::DiskFailed
            | Status::Invalid
            | Status::Forbidden
            | Status::Dropped,
        )
        | Err(_) => Put::Failed,
    }
}

#[derive(Debug)]
struct Putting {
    record: ChunkRecord,
    members: Vec<Member>,
    left: BTreeSet<u8>,
    /// The worst answer of a member so far.
    failure: Option<Put>,
}

/// A chunk being written, over all its attempts.
#[derive(Debug)]
pub(crate) struct ChunkWrite {
    pub(crate) job: JobId,
    /// Its place in the job's plan.
    pub(crate) index: usize,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) length_bytes: u32,
    /// Disks that had no room for it, and whether the last attempt met another one.
    full: BTreeSet<DiskId>,
    met_another: bool,
    /// Times that too few other disks were left.
    no_space_count: u32,
    putting: Option<Putting>,
}

/// Course of a write behind an attempt that met a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterFull {
    /// It is tried at once, without the disk that was not known to be full.
    Again,
    /// It waits: for room, or for members that may have some.
    Later,
    /// It is given up.
    Lost,
}

/// End of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    /// Every shard is durable.
    Written(ChunkRecord),
    /// Another attempt is needed.
    Burnt(Put),
}

#[derive(Debug, Default)]
pub(crate) struct ChunkWrites {
    writes: BTreeMap<WriteId, ChunkWrite>,
    next: u64,
    /// Writes that wait: for chunk ids, or for members until a moment.
    pub(crate) without_id: BTreeSet<WriteId>,
    pub(crate) paused: BTreeSet<(Moment, WriteId)>,
}

impl ChunkWrites {
    pub(crate) fn begin(&mut self, job: JobId, index: usize, pieces: Vec<Bytes>, length_bytes: u32) -> WriteId {
        let id = WriteId(self.next);
        self.next += 1;
        let (full, met_another, no_space_count, putting) = (BTreeSet::new(), false, 0, None);
        let write = ChunkWrite { job, index, pieces, length_bytes, full, met_another, no_space_count, putting };
        self.writes.insert(id, write);
        id
    }

    pub(crate) fn get(&self, id: WriteId) -> Option<&ChunkWrite> {
        self.writes.get(&id)
    }

    /// An attempt begins.
    pub(crate) fn put(&mut self, id: WriteId, record: ChunkRecord, members: Vec<Member>) {
        if let Some(write) = self.writes.get_mut(&id) {
            let left = (0u8..).take(members.len()).collect();
            write.putting = Some(Putting { record, members, left, failure: None });
        }
    }

    /// The member that a shard of the attempt under way was sent to, if its answer is still awaited.
    pub(crate) fn awaited(&self, id: WriteId, chunk: ChunkId, shard: u8) -> Option<Member> {
        let putting = self.writes.get(&id)?.putting.as_ref()?;
        let is_awaited = putting.record.chunk == chunk.0 && putting.left.contains(&shard);
        is_awaited.then(|| putting.members.get(usize::from(shard)).copied()).flatten()
    }

    /// Takes an awaited answer in; tells when the attempt has ended.
    pub(crate) fn answered(&mut self, id: WriteId, shard: u8, said: Put) -> Option<Ended> {
        let write = self.writes.get_mut(&id)?;
        let putting = write.putting.as_mut()?;
        putting.left.remove(&shard);
        if let (Put::Full, Some(member)) = (said, putting.members.get(usize::from(shard))) {
            write.met_another |= write.full.insert(member.disk);
        }
        if said != Put::Stored {
            // A failure that is not want of space says that space is not what is wanting.
            let graver = putting.failure.is_none_or(|before| before == Put::Full);
            putting.failure = if graver { Some(said) } else { putting.failure };
        }
        if !putting.left.is_empty() {
            return None;
        }
        let putting = write.putting.take()?;
        Some(match putting.failure {
            None => {
                self.writes.remove(&id);
                Ended::Written(putting.record)
            }
            Some(failure) => Ended::Burnt(failure),
        })
    }

    /// Decides on a write whose attempt met a full disk. `have_room` says whether enough disks but these may have room.
    pub(crate) fn after_full(&mut self, id: WriteId, have_room: impl Fn(&BTreeSet<DiskId>) -> bool) -> AfterFull {
        let Some(write) = self.writes.get_mut(&id) else { return AfterFull::Lost };
        let met_another = std::mem::take(&mut write.met_another);
        if have_room(&write.full) {
            return if met_another { AfterFull::Again } else { AfterFull::Later };
        }
        // Others may have given room back meanwhile.
        write.full.clear();
        write.no_space_count += 1;
        if write.no_space_count < NO_SPACE_ATTEMPTS_MAX { AfterFull::Later } else { AfterFull::Lost }
    }

    /// Forgets the writes of a job.
    pub(crate) fn forget_job(&mut self, job: JobId) {
        self.writes.retain(|_, write| write.job != job);
    }

    /// Forgets everything, after the session was lost. Late answers find nothing.
    pub(crate) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }
}

#[cfg(test)]
mod tests;
