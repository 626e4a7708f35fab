//! When chunk ids were given out and chunks freed, by true time: no clock that a process has may let anybody be early.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::limits::FREED_CHUNK_DELAY_MS;
use holdfast_common::proof::ShardName;
use holdfast_common::{ChunkId, DiskId, GroupId, Nonce};
use holdfast_metanode::{Patience, Table};
use holdfast_proto::data::{DeleteShardsRequest, DeleteShardsResponse, Status};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{ChunkRecord, Code, Commit, ForgetChunks, MutateResponse};

use super::shortest_ns;
use crate::machines::CODE;

/// Times of the simulated leaders: short, so that most runs come to floors and debts.
pub(crate) const PATIENCE: Patience =
    Patience { request_deadline_ms: 2_500, raise_interval_ms: 2_500, mark_interval_ms: 500, pause_ms_max: 2_500 };
/// Chunks freed by one entry, at most.
const FREED_MAX: usize = 1 << 20;

/// Fates of all chunks.
#[derive(Default)]
pub(crate) struct Chunks {
    /// Times at which ranges were given out, by first id.
    given: BTreeMap<u64, u64>,
    /// Times at which chunks were freed.
    freed: BTreeMap<u64, u64>,
    /// Disks with a shard of a freed chunk that did not confirm its deletion yet.
    unconfirmed: BTreeMap<u64, BTreeSet<DiskId>>,
    /// The last one of these, in the table's order.
    last_freed: (i64, ChunkId),
    /// Freed and forgotten.
    pub(crate) forgotten: u64,
    pub(crate) floors: u64,
    /// Commits that named a chunk that must be written anew.
    pub(crate) rewritten: u64,
    /// Entries that wrote down what silent members owe, and that settled it.
    pub(crate) debts: u64,
    pub(crate) settled: u64,
    /// Shards deleted of chunks that the table does not know.
    pub(crate) orphans: u64,
}

impl Chunks {
    /// Takes an entry that was applied at a time, and the table behind it.
    pub(super) fn follow(&mut self, now: u64, op: &Op, answer: &MutateResponse, table: &Table) -> Result<(), String> {
        match op {
            Op::ReserveChunks(_) if answer.code() == Code::Ok => {
                // A request that comes again is answered by what it was given.
                self.given.entry(answer.first_chunk).or_insert(now);
            }
            Op::RaiseFloor(raise) => {
                self.floors += 1;
                self.check_floor(now, raise.floor)?;
            }
            Op::ForgetChunks(forget) => {
                self.forgotten += forget.chunks.len() as u64;
                self.debts += u64::from(!forget.disks.is_empty());
                self.check_forgotten(forget)?;
            }
            Op::Swept(_) => self.settled += 1,
            Op::Commit(commit) => {
                check_parity(commit, CODE.1)?;
                let rewritten = answer.commits.iter().filter(|commit| commit.code() == Code::RewriteChunk);
                self.rewritten += rewritten.count() as u64;
            }
            _ => {}
        }
        for freed in table.freed_chunks(i64::MAX, self.last_freed, FREED_MAX) {
            self.last_freed = (freed.freed_ns, ChunkId(freed.record.chunk));
            self.freed.insert(freed.record.chunk, now);
            let group = table.group(GroupId(freed.record.group));
            let member = |slot: &u8| group.as_ref()?.slots.get(usize::from(*slot)).map(|slot| DiskId(slot.disk));
            self.unconfirmed.insert(freed.record.chunk, freed.record.slots.iter().filter_map(member).collect());
        }
        Ok(())
    }

    /// A chunk is forgotten when all of its members have deleted, or it is written down who owes it (R5, R7).
    fn check_forgotten(&mut self, forget: &ForgetChunks) -> Result<(), String> {
        forget.chunks.iter().try_for_each(|chunk| {
            let unconfirmed = self.unconfirmed.remove(chunk).unwrap_or_default();
            match unconfirmed.iter().find(|disk| !forget.disks.contains(&disk.0)) {
                Some(disk) => Err(format!("chunk {chunk} is forgotten, and disk {disk} has not deleted its shard")),
                None => Ok(()),
            }
        })
    }

    /// Writers must have had their time: ids below a floor were given out two deadlines ago (R4).
    fn check_floor(&self, now: u64, floor: u64) -> Result<(), String> {
        let least = shortest_ns(PATIENCE.floor_delay_ms());
        match self.given.range(..floor).find(|(_, given)| now - **given < least) {
            Some((first, given)) => {
                let ms = (now - given) / 1_000_000;
                Err(format!("the floor {floor} was raised {ms} ms after chunk {first} was given out"))
            }
            None => Ok(()),
        }
    }

    /// A disk deletes shards: of chunks that were freed long enough ago (R5), or that nobody can commit any more (R4).
    pub(super) fn delete(&self, now: u64, request: &DeleteShardsRequest, table: &Table) -> Result<(), String> {
        request.shards.iter().try_for_each(|name| {
            let shard = u8::try_from(name.shard).unwrap_or(u8::MAX);
            let name = ShardName { chunk: ChunkId(name.chunk), shard, nonce: Nonce(name.nonce) };
            self.delete_one(now, &name, DiskId(request.disk), table)
        })
    }

    fn delete_one(&self, now: u64, name: &ShardName, disk: DiskId, table: &Table) -> Result<(), String> {
        let chunk = name.chunk;
        match self.freed.get(&chunk.0) {
            Some(freed) if now - freed < shortest_ns(FREED_CHUNK_DELAY_MS.into()) => {
                let ms = (now - freed) / 1_000_000;
                Err(format!("{disk} deletes its shard of chunk {chunk} {ms} ms after it was freed"))
            }
            Some(_) => Ok(()),
            None if table.places(name, disk) => {
                Err(format!("{disk} deletes its shard of chunk {chunk}, which is live"))
            }
            None if chunk >= table.floor() => {
                Err(format!("{disk} deletes a shard of chunk {chunk}, which may still be committed"))
            }
            None => Ok(()),
        }
    }

    /// It has deleted.
    pub(crate) fn deleted(&mut self, request: &DeleteShardsRequest, response: &DeleteShardsResponse) {
        if response.status() == Status::Ok {
            for name in &request.shards {
                if let Some(unconfirmed) = self.unconfirmed.get_mut(&name.chunk) {
                    unconfirmed.remove(&DiskId(request.disk));
                }
            }
        }
        let known = |chunk| self.freed.contains_key(&chunk);
        if request.shards.first().is_some_and(|name| !known(name.chunk)) {
            self.orphans += u64::from(response.deleted_count);
        }
    }
}

/// Stripes narrow, parity stays, whatever the table says to it (R13).
fn check_parity(commit: &Commit, parity_shards: u32) -> Result<(), String> {
    match commit.chunks.iter().find(|chunk| chunk.parity_shards != parity_shards) {
        Some(ChunkRecord { chunk, parity_shards: its, .. }) => {
            Err(format!("chunk {chunk} is committed with {its} parity shards of {parity_shards}"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_committed_with_all_of_its_parity() {
        let commit = |parity: &[u32]| Commit {
            chunks: parity.iter().map(|m| ChunkRecord { parity_shards: *m, ..ChunkRecord::default() }).collect(),
            ..Commit::default()
        };
        assert_eq!(check_parity(&commit(&[]), 1), Ok(()));
        assert_eq!(check_parity(&commit(&[1, 1]), 1), Ok(()));
        assert!(check_parity(&commit(&[1, 0]), 1).is_err());
    }
}
