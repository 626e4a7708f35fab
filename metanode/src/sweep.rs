//! Deletes the shards of freed chunks, and has the table forget the chunks once every member confirmed.
//!
//! A chunk is deleted [`FREED_CHUNK_DELAY_MS`] after it was freed, by this leader's monotonic clock (R5): a reader that
//! got its location before has had its deadline. Deleting twice is harmless, so a new leader simply starts over.

use crate::hosted::{Context, Hosted, Leadership};
use crate::table::{FreedChunk, Table};
use holdfast_common::limits::FREED_CHUNK_DELAY_MS;
use holdfast_common::proof::Claim;
use holdfast_common::{ChunkId, DiskId, GroupId, Incarnation, NodeId};
use holdfast_proto::data::{DeleteShardsRequest, DeleteShardsResponse, Proof, Status};
use holdfast_proto::meta::ForgetChunks;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::method::DATA_DELETE;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Chunks of one batch: of one request to a disk, and of one entry.
const BATCH_CHUNKS_MAX: usize = 1024;
/// Batches of one round: a million chunks would otherwise keep it from noticing that it leads no more.
const BATCHES_PER_ROUND_MAX: usize = 64;
/// A disk syncs its tombstones first; a busy one takes its time.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause after a disk did not confirm.
const BACKOFF_MS_MIN: u64 = 1_000;
const BACKOFF_MS_MAX: u64 = 60_000;
/// Chunks whose partial progress is remembered; others start over when their turn comes again.
const PROGRESS_CHUNKS_MAX: usize = 64 << 10;

/// Runs until the table is dropped or stopped; idle while another replica leads.
pub(crate) async fn run(context: Arc<Context>, hosted: Arc<Hosted>) {
    let mut ticks = interval(ROUND_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep = Sweep::default();
    let mut leadership = Leadership::of(&hosted);
    while let Some(term) = leadership.wait().await {
        sweep.follow(term);
        round(&mut sweep, &context, &hosted).await;
        ticks.tick().await;
    }
}

async fn round(sweep: &mut Sweep, context: &Context, hosted: &Hosted) {
    let last_time_ns = hosted.group.state().read().table().last_time_ns();
    let Some(until_ns) = sweep.mark(context.now_ms(), last_time_ns) else { return };
    for _ in 0..BATCHES_PER_ROUND_MAX {
        let batch = {
            let state = hosted.group.state().read();
            sweep.next_batch(state.table(), until_ns, context.now_ms())
        };
        let Some(batch) = batch else { return };
        for (disk, chunks, confirmed) in send(context, hosted, batch).await {
            sweep.answered(disk, &chunks, confirmed, context.now_ms());
        }
        let done = sweep.take_done();
        if !done.is_empty() && hosted.propose(Op::ForgetChunks(ForgetChunks { chunks: done })).await.is_none() {
            return;
        }
    }
}

/// Sends every disk its part at once; answers which confirmed.
async fn send(context: &Context, hosted: &Hosted, batch: Batch) -> Vec<(DiskId, Vec<ChunkId>, bool)> {
    let mut requests = JoinSet::new();
    let mut answers = Vec::new();
    for ((node, disk), chunks) in batch.by_disk {
        let Some(address) = context.neighbours.address(node) else {
            answers.push((disk, chunks, false));
            continue;
        };
        let volume = hosted.volume;
        let mac = context.identity.secret.prove(volume, batch.incarnation, Claim::DeleteChunks(&chunks));
        let request = DeleteShardsRequest {
            disk: disk.0,
            volume: volume.0,
            incarnation: batch.incarnation.0,
            chunks: chunks.iter().map(|chunk| chunk.0).collect(),
            proof: Some(Proof { issuer: format!("table of volume {volume}"), mac: mac.to_vec().into() }),
        };
        let client = context.client.clone();
        requests.spawn(async move {
            let answer: Result<DeleteShardsResponse, _> =
                client.unary(address, DATA_DELETE, &request, DELETE_TIMEOUT).await;
            let confirmed = match answer {
                Ok(response) if confirms(response.status) => true,
                Ok(response) => {
                    tracing::warn!(%volume, %disk, status = ?response.status(), detail = response.detail, "not deleted");
                    false
                }
                Err(error) => {
                    tracing::debug!(%volume, %disk, %error, "a disk's node cannot be reached to delete shards");
                    false
                }
            };
            (disk, chunks, confirmed)
        });
    }
    while let Some(answer) = requests.join_next().await {
        answers.extend(answer);
    }
    answers
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

/// What to delete where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Batch {
    incarnation: Incarnation,
    by_disk: BTreeMap<(NodeId, DiskId), Vec<ChunkId>>,
}

/// How far the deletions have come, in one term. Pure.
#[derive(Debug, Default)]
struct Sweep {
    term: u64,
    /// The table's time at moments of this leader's clock, oldest first.
    marks: VecDeque<(u64, i64)>,
    cursor: (i64, ChunkId),
    /// Members that did not confirm yet, of chunks under way.
    missing: BTreeMap<ChunkId, Vec<DiskId>>,
    done: Vec<u64>,
    backoff: BTreeMap<DiskId, Backoff>,
}

#[derive(Debug)]
struct Backoff {
    until_ms: u64,
    pause_ms: u64,
}

impl Sweep {
    fn follow(&mut self, term: u64) {
        if term != self.term {
            *self = Self { term, ..Self::default() };
        }
    }

    /// Notes the table's time and answers up to which time of the table chunks may be deleted now.
    fn mark(&mut self, now_ms: u64, table_time_ns: i64) -> Option<i64> {
        self.marks.push_back((now_ms, table_time_ns));
        let ripe = |mark: &(u64, i64)| now_ms.saturating_sub(mark.0) >= u64::from(FREED_CHUNK_DELAY_MS);
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
        let slots = freed.record.slots.iter().filter_map(|slot| group.slots.get(usize::from(*slot)));
        // The shard of a vacated slot went with its disk; should that come back, collection finds it (D10).
        let members: Vec<_> = slots.filter(|slot| slot.disk != 0).collect();
        if !self.missing.contains_key(&chunk) {
            if self.missing.len() >= PROGRESS_CHUNKS_MAX {
                self.missing.pop_first();
            }
            self.missing.insert(chunk, members.iter().map(|member| DiskId(member.disk)).collect());
        }
        let Some(missing) = self.missing.get_mut(&chunk) else { return };
        missing.retain(|disk| members.iter().any(|member| member.disk == disk.0));
        if missing.is_empty() {
            self.missing.remove(&chunk);
            self.done.push(chunk.0);
            return;
        }
        for member in members.iter().filter(|member| missing.contains(&DiskId(member.disk))) {
            let paused = self.backoff.get(&DiskId(member.disk)).is_some_and(|backoff| backoff.until_ms > now_ms);
            if !paused {
                batch.by_disk.entry((NodeId(member.node), DiskId(member.disk))).or_default().push(chunk);
            }
        }
    }

    fn answered(&mut self, disk: DiskId, chunks: &[ChunkId], confirmed: bool, now_ms: u64) {
        if !confirmed {
            let pause_ms = self.backoff.get(&disk).map_or(BACKOFF_MS_MIN, |b| (b.pause_ms * 2).min(BACKOFF_MS_MAX));
            self.backoff.insert(disk, Backoff { until_ms: now_ms + pause_ms, pause_ms });
            return;
        }
        self.backoff.remove(&disk);
        for chunk in chunks {
            let Some(missing) = self.missing.get_mut(chunk) else { continue };
            missing.retain(|other| other != &disk);
            if missing.is_empty() {
                self.missing.remove(chunk);
                self.done.push(chunk.0);
            }
        }
    }

    fn take_done(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.done)
    }
}

#[cfg(test)]
mod tests;
