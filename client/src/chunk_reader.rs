//! Reads parts of chunks: from the cache, from the data shards' members in one request each, or, where a member is
//! dead, slow or damaged, from any d others by reconstruction ([`rebuild`]). Every byte is verified here against the checksums
//! that travelled with it.
//!
//! **Memory.** What is loaded to be kept has its room in the budget before it is asked for ([`crate::core::blocks`]). Besides, a
//! read holds what it was asked for until it is answered: widened to pages, or to blocks where a sequential reader finds the
//! budget taken; and while members fail, up to as much again for each of them, from which their parts are rebuilt. That is
//! bounded by the reads that a caller has under way, which the kernel bounds.

mod rebuild;

use crate::Error;
use crate::block_cache::BlockCache;
use crate::core::blocks::{BLOCK_BYTES, BlockKey, Looked};
use crate::core::effects::Input;
use crate::core::latency::Percentile99;
use crate::core::members::Member;
use crate::shell::Shell;
use crate::task;
use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_common::{ChunkId, Incarnation, VolumeId};
use holdfast_erasure::{Geometry, geometry};
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

    /// This part of its whole block; nothing if the block is too short for it.
    fn of(&self, block: &Bytes) -> Option<Bytes> {
        let skip = (self.offset % BLOCK_BYTES) as usize;
        let end = skip + self.length_bytes as usize;
        (end <= block.len()).then(|| block.slice(skip..end))
    }
}

/// The bytes of a part, and the allocation that they keep in memory.
#[derive(Clone, Debug)]
struct Fetched {
    bytes: Bytes,
    body: Bytes,
}

/// A piece of a wanted range: these bytes of that shard part.
struct Piece {
    part: ShardPart,
    skip: usize,
    length: usize,
}

impl Piece {
    /// Its bytes, out of its part.
    fn cut(&self, part: Option<Bytes>) -> Result<Bytes, Error> {
        let end = self.skip + self.length;
        let part = part.filter(|bytes| end <= bytes.len()).ok_or_else(|| {
            let (chunk, shard) = (self.part.chunk.chunk, self.part.shard);
            Error::Unreadable(format!("chunk {chunk}: a part of shard {shard} is missing"))
        })?;
        Ok(part.slice(self.skip..end))
    }
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
        let pieces: Vec<Vec<Piece>> = ranges.iter().map(|r| pieces_of(r, whole_blocks)).collect::<Result<_, _>>()?;
        let parts: Vec<&ShardPart> = pieces.iter().flatten().map(|p| &p.part).collect();
        let mut found = self.cached(&parts);
        if whole_blocks && found.iter().any(Option::is_none) {
            let loaded = self.load_blocks(&parts).await?;
            // Blocks that this call loaded are used even if they were evicted meanwhile.
            let again = self.cached(&parts).into_iter().zip(&parts);
            found =
                again.map(|(block, part)| block.or_else(|| loaded.get(&part.key()).and_then(|b| part.of(b)))).collect();
        }
        let missing: Vec<usize> = (0..parts.len()).filter(|index| found[*index].is_none()).collect();
        if !missing.is_empty() {
            let wanted: Vec<ShardPart> = missing.iter().map(|index| parts[*index].clone()).collect();
            for (index, fetched) in missing.into_iter().zip(self.fetch(&wanted).await?) {
                found[index] = Some(fetched.bytes);
            }
        }
        let mut found = found.into_iter();
        pieces.iter().map(|range| range.iter().map(|piece| piece.cut(found.next().flatten())).collect()).collect()
    }

    /// Loads what is not there into the cache, ahead of readers. Failures are left for the readers to meet.
    pub(crate) async fn prefetch(&self, ranges: &[ChunkRange]) {
        let pieces: Vec<Piece> = ranges.iter().filter_map(|r| pieces_of(r, true).ok()).flatten().collect();
        let parts: Vec<&ShardPart> = pieces.iter().map(|piece| &piece.part).collect();
        if let Err(error) = self.load_claimed(&parts).await {
            tracing::debug!(%error, "readahead failed");
        }
    }

    fn cached(&self, parts: &[&ShardPart]) -> Vec<Option<Bytes>> {
        let looked = self.cache.look(parts.iter().map(|part| part.key()));
        let here = |(looked, part): (Looked<Bytes>, &&ShardPart)| match looked {
            Looked::Here(block) => part.of(&block),
            Looked::Loading | Looked::Absent => None,
        };
        looked.into_iter().zip(parts).map(here).collect()
    }

    /// Makes the parts' whole blocks be in the cache as far as it has room, loading what nobody else loads; answers that.
    async fn load_blocks(&self, parts: &[&ShardPart]) -> Result<BTreeMap<BlockKey, Bytes>, Error> {
        let loaded = self.load_claimed(parts).await?;
        for (part, looked) in parts.iter().zip(self.cache.look(parts.iter().map(|part| part.key()))) {
            if matches!(looked, Looked::Loading) {
                self.cache.wait(&part.key()).await;
            }
        }
        Ok(loaded)
    }

    async fn load_claimed(&self, parts: &[&ShardPart]) -> Result<BTreeMap<BlockKey, Bytes>, Error> {
        let blocks: BTreeMap<BlockKey, ShardPart> = parts.iter().map(|part| (part.key(), whole_block(part))).collect();
        let mut claim = self.cache.claim(blocks.iter().map(|(key, block)| (*key, block.length_bytes as usize)));
        if claim.keys().is_empty() {
            return Ok(BTreeMap::new());
        }
        let keys = claim.keys().to_vec();
        let wanted: Vec<ShardPart> = keys.iter().filter_map(|key| blocks.get(key)).cloned().collect();
        let mut loaded = BTreeMap::new();
        // Those of one answer together: each keeps its whole body. In the order of their first blocks, not of their addresses.
        let mut bodies: Vec<(Bytes, Vec<(BlockKey, Bytes)>)> = Vec::new();
        for (key, fetched) in keys.into_iter().zip(self.fetch(&wanted).await?) {
            let at = bodies.iter().position(|(body, _)| body.as_ptr() == fetched.body.as_ptr());
            let at = at.unwrap_or_else(|| {
                bodies.push((fetched.body.clone(), Vec::new()));
                bodies.len() - 1
            });
            bodies[at].1.push((key, fetched.bytes.clone()));
            loaded.insert(key, fetched.bytes);
        }
        for (body, blocks) in bodies {
            claim.fill(body.len(), blocks);
        }
        Ok(loaded)
    }

    /// Fetches parts: one request a node, all at once; what fails is rebuilt.
    async fn fetch(&self, parts: &[ShardPart]) -> Result<Vec<Fetched>, Error> {
        let places: Vec<(usize, Member)> = self.shell.with(|core, now| {
            let members = &core.members;
            let place = |part: &ShardPart| members.locate(&part.chunk, part.shard.into());
            let healthy = |part| place(part).filter(|member| !members.is_doubtful(member, now));
            parts.iter().enumerate().filter_map(|(index, part)| Some((index, healthy(part)?))).collect()
        });
        let mut results = self.ask(parts, places).await;
        let failed: Vec<usize> = (0..parts.len()).filter(|index| results[*index].is_none()).collect();
        if !failed.is_empty() {
            let wanted: Vec<&ShardPart> = failed.iter().map(|index| &parts[*index]).collect();
            for (index, rebuilt) in failed.iter().zip(self.rebuild(&wanted).await?) {
                results[*index] = Some(rebuilt);
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Asks members for parts, by index: one request a node, all at once. Answers `None` for what did not come or did not
    /// verify, and for what was not asked for.
    async fn ask(&self, parts: &[ShardPart], wanted: Vec<(usize, Member)>) -> Vec<Option<Fetched>> {
        let mut by_node: BTreeMap<SocketAddr, Vec<(usize, Member)>> = BTreeMap::new();
        for (index, member) in wanted {
            by_node.entry(member.address).or_default().push((index, member));
        }
        let requests = by_node.into_iter().flat_map(|(address, wanted)| split_request(parts, address, wanted));
        let answers = task::all(requests.map(|(address, wanted)| async move {
            let answer = self.fetch_from(address, parts, &wanted).await;
            (wanted, answer)
        }))
        .await;
        let mut results: Vec<Option<Fetched>> = vec![None; parts.len()];
        for (wanted, answer) in answers {
            for ((index, _), fetched) in wanted.iter().zip(answer) {
                results[*index] = fetched;
            }
        }
        results
    }

    /// One vectored request. Answers `None` for what did not come or did not verify.
    async fn fetch_from(
        &self,
        address: SocketAddr,
        parts: &[ShardPart],
        wanted: &[(usize, Member)],
    ) -> Vec<Option<Fetched>> {
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
                    // Not by the accessor, which takes a number that this version does not know for OK.
                    let bytes = match Status::try_from(data.status) {
                        Ok(Status::Ok) => {
                            let stop = at + data.length_bytes as usize;
                            let bytes = (stop <= body.len()).then(|| body.slice(at..stop));
                            at = stop;
                            let right = bytes.filter(|b| self.verified(part, b, &data.page_checksums, member));
                            right.map(|bytes| Fetched { bytes, body: body.clone() })
                        }
                        status => {
                            tracing::warn!(
                                chunk = part.chunk.chunk, shard = part.shard, %address, ?status, detail = data.detail,
                                "a shard could not be read; it is rebuilt"
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

/// The block that a part lies in, cut at the shard's end.
fn whole_block(part: &ShardPart) -> ShardPart {
    let offset = part.offset / BLOCK_BYTES * BLOCK_BYTES;
    let length_bytes = BLOCK_BYTES.min(part.chunk.shard_length_bytes - offset);
    ShardPart { offset, length_bytes, ..part.clone() }
}

/// Cuts a range at shards and blocks, and widens it to pages (or to blocks).
fn pieces_of(range: &ChunkRange, whole_blocks: bool) -> Result<Vec<Piece>, Error> {
    let end = range.offset.checked_add(range.length_bytes).filter(|end| *end <= range.chunk.length_bytes);
    let end = end.ok_or_else(|| Error::Unreadable(format!("chunk {} is shorter than its file", range.chunk.chunk)))?;
    let wanted = range.offset..end;
    let piece = |piece: geometry::Piece| {
        let geometry::Piece { shard, offset, length_bytes, skip_bytes, take_bytes } = piece;
        let part = ShardPart { chunk: Arc::clone(&range.chunk), shard, offset, length_bytes };
        let part = if whole_blocks { whole_block(&part) } else { part };
        let skip = (offset + skip_bytes - part.offset) as usize;
        Piece { part, skip, length: take_bytes as usize }
    };
    Ok(geometry_of(&range.chunk)?.pieces_by_block(wanted, BLOCK_BYTES).map(piece).collect())
}

/// The stripe of a chunk, which the table has checked before it took the chunk in.
fn geometry_of(chunk: &ChunkRecord) -> Result<Geometry, Error> {
    Geometry::recorded(chunk.data_shards, chunk.parity_shards, chunk.length_bytes, chunk.shard_length_bytes)
        .ok_or_else(|| Error::Unreadable(format!("chunk {}: its geometry is impossible", chunk.chunk)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u32, length_bytes: u32) -> ChunkRange {
        let (data_shards, parity_shards) = (4, 2);
        let (length_bytes_of_chunk, shard_length_bytes) = (4 << 20, 1 << 20);
        let chunk = ChunkRecord {
            chunk: 1,
            data_shards,
            parity_shards,
            length_bytes: length_bytes_of_chunk,
            shard_length_bytes,
            ..ChunkRecord::default()
        };
        ChunkRange { chunk: Arc::new(chunk), offset, length_bytes }
    }

    fn shape(range: &ChunkRange, whole: bool) -> Vec<(u8, u32, u32, usize, usize)> {
        pieces_of(range, whole)
            .unwrap()
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

    #[test]
    fn a_chunk_whose_geometry_is_impossible_is_not_read() {
        let mut range = range(0, 10);
        Arc::make_mut(&mut range.chunk).shard_length_bytes = 0;
        assert!(matches!(pieces_of(&range, false), Err(Error::Unreadable(_))));
    }

    #[test]
    fn a_part_that_is_missing_or_short_is_an_error_and_no_bytes() {
        let range = range(4000, 200);
        let pieces = pieces_of(&range, false).unwrap();
        let whole = Bytes::from(vec![7; 8192]);
        assert_eq!(pieces[0].cut(Some(whole.clone())), Ok(whole.slice(4000..4200)));
        assert_eq!(pieces[0].cut(Some(whole.slice(..4200))), Ok(whole.slice(4000..4200)));
        for part in [None, Some(Bytes::new()), Some(whole.slice(..4199))] {
            assert!(matches!(pieces[0].cut(part), Err(Error::Unreadable(_))));
        }
        let part = ShardPart { offset: BLOCK_BYTES + 4096, length_bytes: 4096, ..pieces[0].part.clone() };
        assert_eq!((part.of(&whole), part.of(&whole.slice(..8191))), (Some(whole.slice(4096..)), None));
    }

    /// A map that names more of a chunk than there is: what follows would be shown in the wrong place.
    #[test]
    fn a_range_beyond_its_chunk_is_not_read() {
        for (offset, length_bytes) in [(0, (4 << 20) + 1), (4 << 20, 1), (u32::MAX, 2)] {
            assert!(matches!(pieces_of(&range(offset, length_bytes), false), Err(Error::Unreadable(_))));
        }
        assert!(pieces_of(&range(0, 4 << 20), false).is_ok());
    }
}
