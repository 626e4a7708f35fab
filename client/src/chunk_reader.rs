//! Reads parts of chunks: from the cache, from the data shards' members in one request each, or, where a member is
//! dead, slow or damaged, from any d others by reconstruction. Every byte is verified here against the checksums that
//! travelled with it.

use crate::Error;
use crate::block_cache::{BLOCK_BYTES, BlockCache, BlockKey, Looked};
use crate::core::effects::Input;
use crate::core::latency::Percentile99;
use crate::core::members::Member;
use crate::shell::Shell;
use crate::task;
use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_common::{ChunkId, Incarnation, VolumeId};
use holdfast_erasure::{Geometry, reconstruct};
use holdfast_proto::data::{ReadShardsRequest, ShardRange, Status};
use holdfast_proto::meta::ChunkRecord;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A member that has not answered after 8 times the 99th percentile, within these, is read around.
const READ_DEADLINE_MIN: Duration = Duration::from_millis(300);
const READ_DEADLINE_MAX: Duration = Duration::from_secs(4);
/// Payload of one answer at most, well below the transport's limit for a body.
const REQUEST_BYTES_MAX: u32 = 8 << 20;

/// A part of a chunk that a reader wants.
#[derive(Clone, Debug)]
pub(crate) struct ChunkRange {
    pub(crate) chunk: Arc<ChunkRecord>,
    pub(crate) offset: u32,
    pub(crate) length_bytes: u32,
}

/// A page-aligned part of one shard.
#[derive(Clone, Debug)]
struct ShardPart {
    chunk: Arc<ChunkRecord>,
    shard: u8,
    offset: u32,
    length_bytes: u32,
}

impl ShardPart {
    fn key(&self) -> BlockKey {
        BlockKey { chunk: ChunkId(self.chunk.chunk), shard: self.shard, block: self.offset / BLOCK_BYTES }
    }
}

/// A piece of a wanted range: these bytes of that shard part.
struct Piece {
    part: ShardPart,
    skip: usize,
    length: usize,
}

/// Reads chunks of one volume.
pub(crate) struct ChunkReader {
    pub(crate) shell: Arc<Shell>,
    pub(crate) volume: VolumeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) cache: BlockCache,
    pub(crate) latency: Mutex<Percentile99>,
}

impl ChunkReader {
    pub(crate) fn initial_latency() -> Percentile99 {
        Percentile99::starting_at(READ_DEADLINE_MAX / 8)
    }

    /// The bytes of each range, in pieces. With `whole_blocks` whole blocks are fetched and kept for the next readers.
    pub(crate) async fn read(&self, ranges: &[ChunkRange], whole_blocks: bool) -> Result<Vec<Vec<Bytes>>, Error> {
        let pieces: Vec<Vec<Piece>> = ranges.iter().map(|r| pieces_of(r, whole_blocks)).collect();
        let parts: Vec<&ShardPart> = pieces.iter().flatten().map(|p| &p.part).collect();
        let mut found = Vec::with_capacity(parts.len());
        if whole_blocks {
            self.load_blocks(parts.iter().copied()).await?;
        }
        let mut missing = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let block = self.cached(part);
            if block.is_none() {
                missing.push((index, (*part).clone()));
            }
            found.push(block);
        }
        if !missing.is_empty() {
            let wanted: Vec<ShardPart> = missing.iter().map(|(_, p)| p.clone()).collect();
            for ((index, _), bytes) in missing.iter().zip(self.fetch(&wanted).await?) {
                found[*index] = Some(bytes);
            }
        }
        let mut found = found.into_iter();
        Ok(pieces
            .iter()
            .map(|range| {
                range
                    .iter()
                    .zip(found.by_ref())
                    .map(|(piece, bytes)| {
                        bytes.map_or_else(Bytes::new, |b| b.slice(piece.skip..piece.skip + piece.length))
                    })
                    .collect()
            })
            .collect())
    }

    /// Loads what is not there into the cache, ahead of readers. Failures are left for the readers to meet.
    pub(crate) async fn prefetch(&self, ranges: &[ChunkRange]) {
        let parts: Vec<ShardPart> = ranges.iter().flat_map(|r| pieces_of(r, true)).map(|p| p.part).collect();
        if let Err(error) = self.load_claimed(&parts).await {
            tracing::debug!(%error, "readahead failed");
        }
    }

    fn cached(&self, part: &ShardPart) -> Option<Bytes> {
        match self.cache.look(&part.key()) {
            Looked::Here(block) => {
                let skip = (part.offset % BLOCK_BYTES) as usize;
                Some(block.slice(skip..skip + part.length_bytes as usize))
            }
            Looked::Loading | Looked::Absent => None,
        }
    }

    /// Makes the parts' whole blocks be in the cache, loading what nobody else loads.
    async fn load_blocks<'a>(&self, parts: impl Iterator<Item = &'a ShardPart>) -> Result<(), Error> {
        let parts: Vec<ShardPart> = parts.cloned().collect();
        self.load_claimed(&parts).await?;
        for part in &parts {
            if matches!(self.cache.look(&part.key()), Looked::Loading) {
                self.cache.wait(&part.key()).await;
            }
        }
        Ok(())
    }

    async fn load_claimed(&self, parts: &[ShardPart]) -> Result<(), Error> {
        let claim = self.cache.claim(parts.iter().map(ShardPart::key));
        if claim.keys().is_empty() {
            return Ok(());
        }
        let mut by_key: BTreeMap<BlockKey, &ShardPart> = BTreeMap::new();
        for part in parts {
            by_key.insert(part.key(), part);
        }
        let blocks: Vec<ShardPart> =
            claim.keys().iter().filter_map(|key| by_key.get(key)).map(|part| whole_block(part)).collect();
        let fetched = self.fetch(&blocks).await?;
        for (block, bytes) in blocks.iter().zip(fetched) {
            claim.fill(block.key(), bytes);
        }
        Ok(())
    }

    /// Fetches parts: one request a node, all at once; what fails is reconstructed.
    async fn fetch(&self, parts: &[ShardPart]) -> Result<Vec<Bytes>, Error> {
        let places: Vec<_> = self.shell.with(|core, now| {
            let members = &core.members;
            let place = |part: &ShardPart| members.locate(&part.chunk, part.shard.into());
            parts.iter().map(|part| place(part).filter(|member| !members.is_doubtful(member, now))).collect()
        });
        let mut by_node: BTreeMap<SocketAddr, Vec<(usize, Member)>> = BTreeMap::new();
        let mut results: Vec<Option<Bytes>> = vec![None; parts.len()];
        let mut failed = Vec::new();
        for (index, place) in places.into_iter().enumerate() {
            match place {
                Some(member) => by_node.entry(member.address).or_default().push((index, member)),
                None => failed.push(index),
            }
        }
        let requests = by_node.into_iter().flat_map(|(address, wanted)| split_request(parts, address, wanted));
        let answers = task::all(requests.map(|(address, wanted)| async move {
            let answer = self.fetch_from(address, parts, &wanted).await;
            (wanted, answer)
        }))
        .await;
        for (wanted, answer) in answers {
            for ((index, _), bytes) in wanted.iter().zip(answer) {
                match bytes {
                    Some(bytes) => results[*index] = Some(bytes),
                    None => failed.push(*index),
                }
            }
        }
        for index in failed {
            results[index] = Some(self.rebuild(&parts[index]).await?);
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// One vectored request. Answers `None` for what did not come or did not verify.
    async fn fetch_from(
        &self,
        address: SocketAddr,
        parts: &[ShardPart],
        wanted: &[(usize, Member)],
    ) -> Vec<Option<Bytes>> {
        let ranges = wanted.iter().map(|(index, member)| self.shard_range(&parts[*index], member)).collect();
        let timeout = (self.latency.lock().estimate() * 8).clamp(READ_DEADLINE_MIN, READ_DEADLINE_MAX);
        let started = self.shell.now();
        let request = ReadShardsRequest { ranges };
        let parsed = self.shell.network.fetch(address, request, timeout).await;
        self.latency.lock().add(self.shell.now().since(started));
        match parsed {
            Ok((response, body)) => {
                let mut at = 0;
                let mut results = Vec::with_capacity(wanted.len());
                for ((index, member), data) in wanted.iter().zip(&response.results) {
                    let part = &parts[*index];
                    let bytes = match data.status() {
                        Status::Ok => {
                            let stop = at + data.length_bytes as usize;
                            let bytes = (stop <= body.len()).then(|| body.slice(at..stop));
                            at = stop;
                            bytes.filter(|b| self.verified(part, b, &data.page_checksums, member))
                        }
                        status => {
                            tracing::warn!(
                                chunk = part.chunk.chunk, shard = part.shard, %address, ?status, detail = data.detail,
                                "a shard could not be read; it is reconstructed"
                            );
                            None
                        }
                    };
                    results.push(bytes);
                }
                results.resize(wanted.len(), None);
                results
            }
            Err(error) => {
                tracing::debug!(%address, %error, "a datanode did not answer a read");
                for (_, member) in wanted {
                    self.shell.put_in(Input::Unanswered { disk: member.disk });
                }
                vec![None; wanted.len()]
            }
        }
    }

    fn verified(&self, part: &ShardPart, bytes: &Bytes, checksums: &[u8], member: &Member) -> bool {
        let place = ShardPlace { volume: self.volume, chunk: ChunkId(part.chunk.chunk), shard: part.shard };
        let right = bytes.len() == part.length_bytes as usize
            && place.verify(part.offset / PAGE_BYTES, bytes, checksums).is_ok();
        if !right {
            tracing::warn!(chunk = part.chunk.chunk, shard = part.shard, disk = %member.disk, "a shard arrived damaged");
        }
        right
    }

    fn shard_range(&self, part: &ShardPart, member: &Member) -> ShardRange {
        ShardRange {
            disk: member.disk.0,
            volume: self.volume.0,
            incarnation: self.incarnation.0,
            chunk: part.chunk.chunk,
            nonce: part.chunk.nonce,
            shard: u32::from(part.shard),
            offset: part.offset,
            length_bytes: part.length_bytes,
        }
    }

    /// Rebuilds a part from the same range of any d other shards.
    async fn rebuild(&self, part: &ShardPart) -> Result<Bytes, Error> {
        let geometry = geometry_of(&part.chunk)?;
        let data_count = usize::from(geometry.data_shards());
        let mut shards: Vec<Option<Bytes>> = vec![None; geometry.shards_count()];
        let mut others: Vec<(bool, u8, Member)> = self.shell.with(|core, now| {
            let shards = (0u8..).take(geometry.shards_count());
            shards
                .filter_map(|shard| {
                    let member = core.members.locate(&part.chunk, shard.into())?;
                    Some((core.members.is_doubtful(&member, now), shard, member))
                })
                .collect()
        });
        // The healthy first; the part's own member again as the last, as it may only have been slow.
        others.sort_by_key(|(avoided, shard, _)| (*shard == part.shard, *avoided));
        let mut others = others.into_iter();
        while shards.iter().flatten().count() < data_count {
            let missing = data_count - shards.iter().flatten().count();
            let batch: Vec<_> = others.by_ref().take(missing).collect();
            if batch.is_empty() {
                let count = shards.iter().flatten().count();
                return Err(Error::Unreadable(format!(
                    "chunk {}: {count} of the {data_count} shards needed can be read",
                    part.chunk.chunk
                )));
            }
            let fetched = task::all(batch.into_iter().map(|(_, shard, member)| async move {
                let one = [ShardPart { shard, ..part.clone() }];
                (shard, self.fetch_from(member.address, &one, &[(0, member)]).await.pop().flatten())
            }))
            .await;
            for (shard, bytes) in fetched {
                shards[usize::from(shard)] = bytes;
            }
        }
        let wanted = usize::from(part.shard);
        if let Some(bytes) = shards[wanted].take() {
            return Ok(bytes);
        }
        reconstruct(&geometry, &mut shards, &[wanted]).map_err(|e| Error::Unreadable(e.to_string()))?;
        shards[wanted].take().ok_or_else(|| Error::Unreadable("nothing was reconstructed".to_owned()))
    }
}

/// Splits a node's parts into requests of bounded answers.
fn split_request(
    parts: &[ShardPart],
    address: SocketAddr,
    wanted: Vec<(usize, Member)>,
) -> Vec<(SocketAddr, Vec<(usize, Member)>)> {
    let mut requests: Vec<(SocketAddr, Vec<(usize, Member)>)> = Vec::new();
    let mut bytes = u32::MAX;
    for (index, member) in wanted {
        let length = parts[index].length_bytes;
        if bytes.saturating_add(length) > REQUEST_BYTES_MAX {
            requests.push((address, Vec::new()));
            bytes = 0;
        }
        bytes += length;
        if let Some((_, last)) = requests.last_mut() {
            last.push((index, member));
        }
    }
    requests
}

fn geometry_of(chunk: &ChunkRecord) -> Result<Geometry, Error> {
    Geometry::recorded(chunk.data_shards, chunk.parity_shards, chunk.length_bytes, chunk.shard_length_bytes)
        .ok_or_else(|| Error::Unreadable(format!("chunk {}: its geometry is impossible", chunk.chunk)))
}

/// The block that a part lies in, cut at the shard's end.
fn whole_block(part: &ShardPart) -> ShardPart {
    let offset = part.offset / BLOCK_BYTES * BLOCK_BYTES;
    let length_bytes = BLOCK_BYTES.min(part.chunk.shard_length_bytes - offset);
    ShardPart { offset, length_bytes, ..part.clone() }
}

/// Cuts a range at shards and blocks, and widens it to pages (or to blocks).
fn pieces_of(range: &ChunkRange, whole_blocks: bool) -> Vec<Piece> {
    let shard_length = range.chunk.shard_length_bytes;
    let (mut at, stop) = (range.offset, range.offset + range.length_bytes);
    let mut pieces = Vec::new();
    while at < stop && shard_length > 0 {
        let shard = at / shard_length;
        let inside = at % shard_length;
        let block_end = (inside / BLOCK_BYTES + 1) * BLOCK_BYTES;
        let length = (stop - at).min(shard_length - inside).min(block_end - inside);
        let first = inside / PAGE_BYTES * PAGE_BYTES;
        let last = (inside + length).next_multiple_of(PAGE_BYTES).min(shard_length);
        let part = ShardPart {
            chunk: Arc::clone(&range.chunk),
            shard: u8::try_from(shard).unwrap_or(u8::MAX),
            offset: first,
            length_bytes: last - first,
        };
        let part = if whole_blocks { whole_block(&part) } else { part };
        pieces.push(Piece { skip: (inside - part.offset) as usize, length: length as usize, part });
        at += length;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u32, length_bytes: u32) -> ChunkRange {
        let chunk = ChunkRecord { chunk: 1, shard_length_bytes: 1 << 20, ..ChunkRecord::default() };
        ChunkRange { chunk: Arc::new(chunk), offset, length_bytes }
    }

    fn shape(range: &ChunkRange, whole: bool) -> Vec<(u8, u32, u32, usize, usize)> {
        pieces_of(range, whole)
            .iter()
            .map(|p| (p.part.shard, p.part.offset, p.part.length_bytes, p.skip, p.length))
            .collect()
    }

    #[test]
    fn a_small_read_fetches_the_pages_it_touches() {
        assert_eq!(shape(&range(4096, 4096), false), [(0, 4096, 4096, 0, 4096)]);
        assert_eq!(shape(&range(4000, 200), false), [(0, 0, 8192, 4000, 200)]);
    }

    #[test]
    fn a_read_is_cut_at_blocks_and_shards() {
        let last = (1 << 20) - 256 * 1024;
        assert_eq!(
            shape(&range((1 << 20) - 100, 200), true),
            [(0, last, BLOCK_BYTES, 256 * 1024 - 100, 100), (1, 0, BLOCK_BYTES, 0, 100)]
        );
    }
}
