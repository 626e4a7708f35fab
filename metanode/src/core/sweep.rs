//! Deletes the shards of freed chunks, and has the table forget the chunks once every member confirmed, or has been silent for
//! [`Patience::silence_ms_max`] and owes it. Pulled, as the upkeep is; the disks of one step are asked all at once and answer one by one.
//!
//! A chunk is deleted [`FREED_CHUNK_DELAY_MS`] after it was freed, by this leader's monotonic clock (R5): a reader that
//! got its location before has had its deadline. Deleting twice is harmless, so a new leader simply starts over.

use super::backoff::Backoff;
use super::patience::Patience;
use super::view::View;
use crate::sabotage::Sabotage;
use crate::table::{FreedChunk, Table};
use holdfast_common::limits::FREED_CHUNK_DELAY_MS;
use holdfast_common::proof::{Claim, ClusterSecret, ShardName};
use holdfast_common::{ChunkId, DiskId, GroupId, Incarnation, NodeId, Nonce, Term, VolumeId};
use holdfast_proto::data::{self, DeleteShardsRequest, DeleteShardsResponse, Proof, Status};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{ForgetChunks, MutateResponse};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pause between a leader's rounds.
pub(crate) const ROUND_INTERVAL_MS: u64 = 1_000;
/// Chunks of one batch: of one request to a disk, and of one entry.
const BATCH_CHUNKS_MAX: usize = 1024;
/// Batches of one round: a million chunks would otherwise keep it from noticing that it leads no more.
const BATCHES_PER_ROUND_MAX: usize = 64;
/// Chunks whose partial progress is remembered; others start over when their turn comes again.
const PROGRESS_CHUNKS_MAX: usize = 64 << 10;

/// A disk and the node it is in.
pub(crate) type Member = (NodeId, DiskId);

/// Next step of the caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Send these requests, all at once, and tell [`Sweep::answered`] of each.
    Delete(Vec<(Member, DeleteShardsRequest)>),
    /// Propose an entry and tell [`Sweep::proposed`].
    Forget(Op),
    /// Nothing until an answer comes.
    Wait,
    /// Nothing until the next round.
    Rest,
}

/// Place of a round.
#[derive(Debug, Default)]
struct Round {
    /// Up to which time of the table chunks may be deleted.
    until_ns: i64,
    batches: usize,
}

/// Shards to delete, by disk.
#[derive(Debug, Default, PartialEq, Eq)]
struct Batch {
    incarnation: Incarnation,
    by_disk: BTreeMap<Member, Vec<ShardName>>,
}

/// Progress of deletions in one term.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    term: Term,
    round: Option<Round>,
    /// Requests that were not answered yet.
    asked: BTreeMap<Member, Vec<ShardName>>,
    /// The table's time at moments of this leader's clock, oldest first.
    marks: VecDeque<(u64, i64)>,
    cursor: (i64, ChunkId),
    /// Members that did not confirm yet, of chunks under way.
    missing: BTreeMap<ChunkId, Vec<DiskId>>,
    done: Vec<u64>,
    /// Chunks that only silent members have not confirmed, and these.
    owing: (Vec<u64>, BTreeSet<DiskId>),
    /// The table knows debts.
    may_owe: bool,
    backoff: Backoff,
    patience: Patience,
    sabotage: Sabotage,
}

impl Batch {
    fn requests(&self, volume: VolumeId, secret: &ClusterSecret) -> Vec<(Member, DeleteShardsRequest)> {
        let request = |(member, names): (&Member, &Vec<ShardName>)| {
            (*member, deletion((volume, self.incarnation), member.1, names, secret))
        };
        self.by_disk.iter().map(request).collect()
    }
}

/// The request that deletes these shards on a disk, with its proof (R30).
pub(crate) fn deletion(
    (volume, incarnation): (VolumeId, Incarnation),
    disk: DiskId,
    names: &[ShardName],
    secret: &ClusterSecret,
) -> DeleteShardsRequest {
    let mac = secret.prove(volume, incarnation, Claim::DeleteShards(&[], names));
    let named =
        |name: &ShardName| data::ShardName { chunk: name.chunk.0, shard: name.shard.into(), nonce: name.nonce.0 };
    DeleteShardsRequest {
        disk: disk.0,
        volume: volume.0,
        incarnation: incarnation.0,
        chunks: Vec::new(),
        proof: Some(issued(volume, mac)),
        shards: names.iter().map(named).collect(),
    }
}

/// A proof of a table's.
pub(crate) fn issued(volume: VolumeId, mac: [u8; 32]) -> Proof {
    Proof { issuer: format!("table of volume {volume}"), mac: mac.to_vec().into() }
}

impl Sweep {
    pub(crate) fn new(patience: Patience, sabotage: Sabotage) -> Self {
        Self { backoff: Backoff::new(patience), patience, sabotage, ..Self::default() }
    }

    /// In a new term all starts over. To be called before each round.
    pub(crate) fn follow(&mut self, term: Term) {
        if term != self.term {
            *self = Self { term, ..Self::new(self.patience, self.sabotage) };
        }
    }

    /// The next step of this round, or of a new one.
    pub(crate) fn next(&mut self, view: &impl View, secret: &ClusterSecret) -> Step {
        if !self.asked.is_empty() {
            return Step::Wait;
        }
        self.may_owe = view.table(Table::feature_level) >= 2;
        loop {
            if let Some(forgotten) = self.take_done() {
                return Step::Forget(Op::ForgetChunks(forgotten));
            }
            let until_ns = self.go_on(view);
            let batch =
                until_ns.and_then(|until_ns| view.table(|table| self.next_batch(table, until_ns, view.now_ms())));
            let Some(batch) = batch else {
                self.round = None;
                return Step::Rest;
            };
            if !batch.by_disk.is_empty() {
                let requests = batch.requests(view.volume(), secret);
                self.asked = batch.by_disk;
                return Step::Delete(requests);
            }
        }
    }

    /// Up to which time chunks may be deleted now; `None` at the end of the round.
    fn go_on(&mut self, view: &impl View) -> Option<i64> {
        if self.round.is_none() {
            let last_time_ns = view.table(Table::last_time_ns);
            let until_ns = self.mark(view.now_ms(), last_time_ns)?;
            self.round = Some(Round { until_ns, batches: 0 });
        }
        let round = self.round.as_mut().filter(|round| round.batches < BATCHES_PER_ROUND_MAX)?;
        round.batches += 1;
        Some(round.until_ns)
    }

    /// A disk answered, or cannot be reached.
    pub(crate) fn answered(&mut self, member: Member, answer: Option<&DeleteShardsResponse>, view: &impl View) {
        let Some(names) = self.asked.remove(&member) else { return };
        let confirmed =
            answer.is_some_and(|answer| confirms(answer.status)) || self.sabotage == Sabotage::SilenceConfirms;
        if let Some(answer) = answer.filter(|_| !confirmed) {
            let (volume, disk, detail) = (view.volume(), member.1, &answer.detail);
            tracing::warn!(%volume, %disk, status = ?answer.status(), detail, "not deleted");
        }
        if let Some(answer) = answer.filter(|answer| answer.kept_count > 0) {
            // R1: not of this chunk. Collection finds it, should it be nobody's.
            let (volume, disk, kept_count) = (view.volume(), member.1, answer.kept_count);
            tracing::warn!(%volume, %disk, kept_count, "shards of other attempts stand under the names of freed chunks");
        }
        self.note(member.1, &names, confirmed, view.now_ms());
    }

    /// The answer to the entry of the last step; without one the round is over.
    pub(crate) fn proposed(&mut self, answer: Option<&MutateResponse>) {
        if answer.is_none() {
            self.round = Some(Round { until_ns: 0, batches: BATCHES_PER_ROUND_MAX });
        }
    }

    /// Notes the table's time and answers up to which time of the table chunks may be deleted now.
    fn mark(&mut self, now_ms: u64, table_time_ns: i64) -> Option<i64> {
        self.marks.push_back((now_ms, table_time_ns));
        let at_once = self.sabotage == Sabotage::FreedChunksDeletedAtOnce;
        let delay_ms = if at_once { 0 } else { u64::from(FREED_CHUNK_DELAY_MS) };
        let ripe = |mark: &(u64, i64)| now_ms.saturating_sub(mark.0) >= delay_ms;
        // The youngest ripe mark stays: it says what may be deleted until a younger one is ripe.
        while self.marks.get(1).is_some_and(ripe) {
            self.marks.pop_front();
        }
        self.marks.front().copied().filter(ripe).map(|(_, time_ns)| time_ns)
    }

    /// The next chunks to delete; `None` at the end of the list, from where the next round starts over.
    fn next_batch(&mut self, table: &Table, until_ns: i64, now_ms: u64) -> Option<Batch> {
        let freed = table.freed_chunks(until_ns, self.cursor, BATCH_CHUNKS_MAX);
        let Some(last) = freed.last() else {
            self.cursor = (0, ChunkId(0));
            return None;
        };
        self.cursor = (last.freed_ns, ChunkId(last.record.chunk));
        let mut batch = Batch { incarnation: table.configuration()?.incarnation, ..Batch::default() };
        for chunk in &freed {
            self.plan(table, chunk, &mut batch, now_ms);
        }
        Some(batch)
    }

    fn plan(&mut self, table: &Table, freed: &FreedChunk, batch: &mut Batch, now_ms: u64) {
        let chunk = ChunkId(freed.record.chunk);
        let Some(group) = table.group(GroupId(freed.record.group)) else { return };
        let slots = freed.record.slots.iter().map(|slot| group.slots.get(usize::from(*slot)));
        // The shard of a vacated slot went with its disk; should that come back, collection finds it (D10).
        let members = (0..).zip(slots).filter_map(|(shard, slot)| Some((shard, slot.filter(|slot| slot.disk != 0)?)));
        let members: Vec<(u8, _)> = members.collect();
        if !self.missing.contains_key(&chunk) {
            if self.missing.len() >= PROGRESS_CHUNKS_MAX {
                self.missing.pop_first();
            }
            self.missing.insert(chunk, members.iter().map(|(_, member)| DiskId(member.disk)).collect());
        }
        let Some(missing) = self.missing.get_mut(&chunk) else { return };
        missing.retain(|disk| members.iter().any(|(_, member)| member.disk == disk.0));
        self.settle(chunk, now_ms);
        let Some(missing) = self.missing.get(&chunk) else { return };
        for (shard, member) in members.iter().filter(|(_, member)| missing.contains(&DiskId(member.disk))) {
            if !self.backoff.is_paused(DiskId(member.disk), now_ms) {
                let name = ShardName { chunk, shard: *shard, nonce: Nonce(freed.record.nonce) };
                batch.by_disk.entry((NodeId(member.node), DiskId(member.disk))).or_default().push(name);
            }
        }
    }

    fn note(&mut self, disk: DiskId, names: &[ShardName], confirmed: bool, now_ms: u64) {
        if !confirmed {
            self.backoff.failed(disk, now_ms);
            return;
        }
        self.backoff.answered(disk);
        for chunk in names.iter().map(|name| name.chunk) {
            let Some(missing) = self.missing.get_mut(&chunk) else { continue };
            missing.retain(|other| other != &disk);
            if self.sabotage == Sabotage::UnconfirmedChunksForgotten {
                missing.clear();
            }
            self.settle(chunk, now_ms);
        }
    }

    /// Lets a chunk be forgotten once it waits for nobody, or for silent members alone. Of these one whose pause is over is asked
    /// once more first: it may be back.
    fn settle(&mut self, chunk: ChunkId, now_ms: u64) {
        let Some(missing) = self.missing.get(&chunk) else { return };
        let is_silent = |disk: &DiskId| {
            self.backoff.is_paused(*disk, now_ms)
                && self.backoff.silent_ms(*disk, now_ms) >= self.patience.silence_ms_max()
        };
        if missing.is_empty() {
            self.done.push(chunk.0);
        } else if self.may_owe && missing.iter().all(is_silent) {
            self.owing.0.push(chunk.0);
            self.owing.1.extend(missing);
        } else {
            return;
        }
        self.missing.remove(&chunk);
    }

    /// Takes out the chunks that the table may forget now.
    fn take_done(&mut self) -> Option<ForgetChunks> {
        let done = std::mem::take(&mut self.done);
        if !done.is_empty() {
            return Some(ForgetChunks { chunks: done, disks: Vec::new() });
        }
        let (chunks, disks) = std::mem::take(&mut self.owing);
        (!chunks.is_empty()).then(|| ForgetChunks { chunks, disks: disks.iter().map(|disk| disk.0).collect() })
    }
}

/// Whether this answer says that the shards are gone. The number of a status that this version does not know, which the
/// generated accessor takes for OK, confirms nothing.
fn confirms(status: i32) -> bool {
    let Ok(status) = Status::try_from(status) else { return false };
    match status {
        // A deleted volume has no shards left to delete.
        Status::Ok | Status::Dropped => true,
        Status::NotFound
        | Status::Corrupt
        | Status::Conflict
        | Status::NoSpace
        | Status::BelowFloor
        | Status::WrongDisk
        | Status::DiskFailed
        | Status::Invalid
        | Status::Forbidden
        | Status::Busy => false,
    }
}

#[cfg(test)]
mod tests;
