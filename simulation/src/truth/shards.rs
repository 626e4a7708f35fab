//! Answers that datanodes may give: a shard that was said to be durable is there until it was deleted with a proof,
//! what was deleted never returns, and no byte leaves that was not put under that very name.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_common::{ChunkId, DiskId, Incarnation, NodeId, Nonce, Random, VolumeId, proof};
use holdfast_datanode::{ChunkKey, DataRequest, DataResponse, HeldShard, ShardKey, VolumeKey};
use holdfast_proto::data::{
    DeleteShardsRequest, ListShardsRequest, ListShardsResponse, PutShardRequest, ReadShardsRequest, ReadShardsResponse,
    ShardData, ShardHeader, ShardName, ShardRange, ShardSummary, Status,
};
use holdfast_proto::meta::ChunkRecord;

/// A put of this much more than is free for everybody cannot be explained by space that was given back meanwhile.
const SPACE_BYTES_MARGIN: u64 = 2 << 20;

/// One put.
#[derive(Clone, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) header: ShardHeader,
    pub(crate) payload: Bytes,
}

/// Knowledge of the shard under one name.
#[derive(Clone, Default)]
pub(crate) struct Shard {
    /// One of these may be there.
    pub(crate) attempts: Vec<Attempt>,
    /// The last of them was answered as durable, and nobody has asked to delete it since.
    pub(crate) held: bool,
}

/// A datanode's disk.
#[derive(Default)]
struct Disk {
    shards: BTreeMap<ShardKey, Shard>,
    /// Below, puts are refused.
    floors: BTreeMap<VolumeKey, u64>,
    dropped: BTreeSet<VolumeKey>,
    /// Volumes that may be dropped: nobody heard how it ended.
    dropping: BTreeSet<VolumeKey>,
    /// Sessions that asked for space: volume and number.
    reserving: BTreeSet<(u64, u64)>,
    failed: bool,
}

/// Knowledge of all disks.
#[derive(Default)]
pub(crate) struct Shards {
    disks: BTreeMap<NodeId, Disk>,
    /// The machine whose disk loses and alters what it holds: there, nothing but wrong bytes is a mistake.
    pub(crate) rotting: Option<NodeId>,
    /// Chunk, shard and attempt of all that was ever answered as durable.
    acknowledged: BTreeSet<(u64, u32, u64)>,
    /// Shards that were read and compared.
    pub(crate) compared: u64,
    /// Puts that had to be refused.
    pub(crate) refused: u64,
    /// The volume that the stranger uses, and the chunk it gave last.
    pub(crate) stranger: (u64, u64),
}

pub(crate) fn volume_key(volume: u64, incarnation: u64) -> VolumeKey {
    VolumeKey { volume: VolumeId(volume), incarnation: Incarnation(incarnation) }
}

/// A name of a delete.
pub(crate) fn name_of(name: &ShardName) -> proof::ShardName {
    proof::ShardName {
        chunk: ChunkId(name.chunk),
        shard: u8::try_from(name.shard).unwrap_or(u8::MAX),
        nonce: Nonce(name.nonce),
    }
}

fn shard_key(volume: VolumeKey, chunk: u64, shard: u32) -> ShardKey {
    ShardKey { chunk: ChunkKey { volume, chunk: ChunkId(chunk) }, shard: u8::try_from(shard).unwrap_or(u8::MAX) }
}

fn key_of(header: &ShardHeader) -> ShardKey {
    shard_key(volume_key(header.volume, header.incarnation), header.chunk, header.shard)
}

fn first_of(volume: VolumeKey, chunk: u64) -> ShardKey {
    shard_key(volume, chunk, 0)
}

impl Attempt {
    pub(crate) fn nonce(&self) -> Nonce {
        Nonce(self.header.nonce)
    }

    fn is(&self, header: &ShardHeader, payload: &Bytes) -> bool {
        self.header == *header && self.payload == *payload
    }
}

impl Disk {
    /// The shards that a delete names and that may be there.
    fn named(&self, request: &DeleteShardsRequest) -> Vec<(ShardKey, Option<Nonce>)> {
        let volume = volume_key(request.volume, request.incarnation);
        let of_chunk = |chunk: &u64| {
            let range = first_of(volume, *chunk)..=shard_key(volume, *chunk, u8::MAX.into());
            self.shards.range(range).map(|(key, _)| (*key, None)).collect::<Vec<_>>()
        };
        let mut named: Vec<(ShardKey, Option<Nonce>)> = request.chunks.iter().flat_map(of_chunk).collect();
        let of_shard = |name: &ShardName| (shard_key(volume, name.chunk, name.shard), Some(Nonce(name.nonce)));
        named.extend(request.shards.iter().map(of_shard));
        named
    }

    fn begin_put(&mut self, request: &PutShardRequest, payload: &Bytes) {
        let Some(header) = &request.header else { return };
        let shard = self.shards.entry(key_of(header)).or_default();
        if !shard.attempts.iter().any(|attempt| attempt.is(header, payload)) {
            let attempt = Attempt { header: header.clone(), payload: payload.clone() };
            // The one that was answered stays the last.
            let at = shard.attempts.len() - usize::from(shard.held);
            shard.attempts.insert(at, attempt);
        }
    }

    /// Another one is there under the name of a put.
    fn conflicted(&mut self, request: &PutShardRequest, payload: &Bytes) -> Result<(), String> {
        let Some(header) = &request.header else { return Ok(()) };
        let Some(shard) = self.shards.get_mut(&key_of(header)).filter(|shard| shard.held) else { return Ok(()) };
        shard.attempts.retain(|attempt| !attempt.is(header, payload));
        if shard.attempts.is_empty() {
            Err(format!("{} was durable, and another is there", named(header)))
        } else {
            Ok(())
        }
    }

    fn begin_delete(&mut self, request: &DeleteShardsRequest) {
        for (key, nonce) in self.named(request) {
            if let Some(shard) = self.shards.get_mut(&key) {
                shard.held &= nonce.is_some_and(|nonce| shard.attempts.last().is_none_or(|a| a.nonce() != nonce));
            }
        }
    }

    fn deleted(&mut self, request: &DeleteShardsRequest) {
        for (key, nonce) in self.named(request) {
            let Some(shard) = self.shards.get_mut(&key) else { continue };
            shard.attempts.retain(|attempt| nonce.is_some_and(|nonce| attempt.nonce() != nonce));
            shard.held &= !shard.attempts.is_empty();
            if shard.attempts.is_empty() {
                self.shards.remove(&key);
            }
        }
    }

    fn is_dropped(&self, volume: &VolumeKey) -> bool {
        self.dropped.contains(volume)
    }

    fn may_be_dropped(&self, volume: &VolumeKey) -> bool {
        self.dropped.contains(volume) || self.dropping.contains(volume)
    }

    /// Whether a put had to be refused, and why.
    fn must_refuse(&self, header: &ShardHeader, payload: &Bytes) -> Option<String> {
        let key = key_of(header);
        if self.is_dropped(&key.chunk.volume) {
            return Some("its volume was dropped".to_owned());
        }
        let floor = self.floors.get(&key.chunk.volume).copied().unwrap_or(0);
        if header.chunk < floor {
            return Some(format!("it is below the floor {floor}"));
        }
        let shard = self.shards.get(&key).filter(|shard| shard.held)?;
        let other = shard.attempts.last().filter(|there| !there.is(header, payload))?;
        Some(format!("attempt {} is there", other.nonce()))
    }

    fn put(&mut self, request: &PutShardRequest, payload: &Bytes, available_bytes: u64) -> Result<(), String> {
        let Some(header) = &request.header else { return Ok(()) };
        if let Some(why) = self.must_refuse(header, payload) {
            return Err(format!("a put of {} is taken, and {why}", named(header)));
        }
        let reserves = self.reserving.contains(&(header.volume, request.session));
        if !reserves && payload.len() as u64 > available_bytes + SPACE_BYTES_MARGIN {
            return Err(format!("a put of {} is taken with what others have reserved", named(header)));
        }
        let attempt = Attempt { header: header.clone(), payload: payload.clone() };
        self.shards.insert(key_of(header), Shard { attempts: vec![attempt], held: true });
        Ok(())
    }

    fn read(&self, range: &ShardRange, data: &ShardData, body: &Bytes, trusted: bool) -> Result<(), String> {
        let volume = volume_key(range.volume, range.incarnation);
        let key = shard_key(volume, range.chunk, range.shard);
        let nonce = Nonce(range.nonce);
        let of_nonce = |attempt: &&Attempt| attempt.nonce() == nonce;
        let shard = self.shards.get(&key);
        let name = format!("shard {} of chunk {}, attempt {nonce}", range.shard, range.chunk);
        match data.status() {
            Status::Ok if trusted && self.is_dropped(&volume) => {
                Err(format!("{name} is served, and its volume was dropped"))
            }
            Status::Ok => {
                let (from, to) = (range.offset as usize, range.offset as usize + range.length_bytes as usize);
                let mut attempts = shard.into_iter().flat_map(|shard| &shard.attempts).filter(of_nonce).peekable();
                if attempts.peek().is_none() {
                    return Err(format!("{name} is served, and was never put here or deleted"));
                }
                let right = attempts.any(|attempt| attempt.payload.get(from..to) == Some(&body[..]));
                if right { Ok(()) } else { Err(format!("{name} is served with other bytes than were put")) }
            }
            Status::NotFound if trusted => {
                let held = shard.filter(|shard| shard.held).and_then(|shard| shard.attempts.last());
                match held.filter(of_nonce) {
                    Some(_) if !self.may_be_dropped(&volume) => Err(format!("{name} was durable and is not found")),
                    _ => Ok(()),
                }
            }
            Status::Corrupt if trusted => Err(format!("{name} is damaged on a disk that damages nothing")),
            _ => Ok(()),
        }
    }

    /// Listed shards may be there, and those that must be there are listed.
    fn listed(&self, volume: VolumeKey, listed: &BTreeMap<ShardKey, Nonce>, from: u64, to: u64) -> Result<(), String> {
        for (key, nonce) in listed {
            let attempts = self.shards.get(key).into_iter().flat_map(|shard| &shard.attempts);
            if !attempts.map(Attempt::nonce).any(|known| known == *nonce) {
                return Err(format!("{} is there, attempt {nonce}, and was deleted or never put", name(key)));
            }
        }
        let missing = |(key, shard): &(&ShardKey, &Shard)| shard.held && !listed.contains_key(key);
        let range = first_of(volume, from)..=shard_key(volume, to, u8::MAX.into());
        match self.shards.range(range).find(missing) {
            Some((key, _)) if !self.may_be_dropped(&volume) => Err(format!("{} was durable and is gone", name(key))),
            _ => Ok(()),
        }
    }

    fn list(&self, request: &ListShardsRequest, response: &ListShardsResponse) -> Result<(), String> {
        let volume = volume_key(request.volume, request.incarnation);
        if self.is_dropped(&volume) && !response.shards.is_empty() {
            return Err("shards of a dropped volume are listed".to_owned());
        }
        let entry = |shard: &ShardSummary| (shard_key(volume, shard.chunk, shard.shard), Nonce(shard.nonce));
        let listed: BTreeMap<ShardKey, Nonce> = response.shards.iter().map(entry).collect();
        let last = response.shards.last().map_or(request.after_chunk, |shard| shard.chunk);
        self.listed(volume, &listed, request.after_chunk + 1, if response.end { u64::MAX } else { last })
    }
}

/// Whether the answer to what needs a proof says that it was done.
fn obeys(response: &DataResponse) -> bool {
    match response {
        DataResponse::Delete(response) => response.status() == Status::Ok,
        DataResponse::SetFloor(response) => response.status() == Status::Ok,
        DataResponse::DropVolume(response) => response.status() == Status::Ok,
        _ => false,
    }
}

fn name(key: &ShardKey) -> String {
    format!("shard {} of chunk {}", key.shard, key.chunk.chunk.0)
}

fn named(header: &ShardHeader) -> String {
    format!("shard {} of chunk {}, attempt {}", header.shard, header.chunk, Nonce(header.nonce))
}

impl Shards {
    fn disk(&mut self, node: NodeId) -> (&mut Disk, bool) {
        (self.disks.entry(node).or_default(), self.rotting != Some(node))
    }

    /// Requests are about to be executed. Whatever becomes of those whose proof holds may have happened.
    pub(crate) fn begin(&mut self, node: NodeId, requests: &[(DataRequest, bool)]) {
        let (disk, _) = self.disk(node);
        for request in requests.iter().filter_map(|(request, proven)| proven.then_some(request)) {
            match request {
                DataRequest::Put(put, payload) => disk.begin_put(put, payload),
                DataRequest::Delete(delete) => disk.begin_delete(delete),
                DataRequest::DropVolume(drop) => {
                    disk.dropping.insert(volume_key(drop.volume, drop.incarnation));
                }
                DataRequest::Reserve(reserve) => {
                    disk.reserving.insert((reserve.volume, reserve.session));
                }
                _ => {}
            }
        }
    }

    /// Requests were executed, all reads before all changes. `available_bytes`: what is free now, for everybody.
    pub(crate) fn executed(
        &mut self,
        node: NodeId,
        requests: &[(DataRequest, bool)],
        responses: &[DataResponse],
        available_bytes: u64,
    ) -> Result<(), String> {
        for pair in requests.iter().map(|(request, _)| request).zip(responses) {
            match pair {
                (DataRequest::Read(request), DataResponse::Read(response, body)) => {
                    self.read(node, request, response, body)?;
                }
                (DataRequest::List(request), DataResponse::List(response)) if response.status() == Status::Ok => {
                    let (disk, trusted) = self.disk(node);
                    disk.list(request, response).or_else(|why| if trusted { Err(why) } else { Ok(()) })?;
                }
                _ => {}
            }
        }
        requests.iter().zip(responses).try_for_each(|((request, proven), response)| {
            if !proven && obeys(response) {
                return Err(format!("something is done without a proof: {request:?}"));
            }
            self.changed(node, request, response, available_bytes)
        })
    }

    fn read(
        &mut self,
        node: NodeId,
        request: &ReadShardsRequest,
        response: &ReadShardsResponse,
        body: &[Bytes],
    ) -> Result<(), String> {
        let (mut body, nothing) = (body.iter(), Bytes::new());
        for (range, data) in request.ranges.iter().zip(&response.results) {
            let bytes = if data.status() == Status::Ok { body.next() } else { None };
            self.compared += 1;
            let (disk, trusted) = self.disk(node);
            disk.read(range, data, bytes.unwrap_or(&nothing), trusted)?;
        }
        Ok(())
    }

    fn changed(
        &mut self,
        node: NodeId,
        request: &DataRequest,
        response: &DataResponse,
        available_bytes: u64,
    ) -> Result<(), String> {
        if let (DataRequest::Put(PutShardRequest { header: Some(header), .. }, _), DataResponse::Put(response)) =
            (request, response)
            && response.status() == Status::Ok
        {
            self.acknowledged.insert((header.chunk, header.shard, header.nonce));
        }
        let (disk, trusted) = self.disk(node);
        match (request, response) {
            (DataRequest::Put(request, payload), DataResponse::Put(response)) => match response.status() {
                // It may have lost what was there, and its floors.
                Status::Ok if !trusted => {}
                Status::Ok => disk.put(request, payload, available_bytes)?,
                status => {
                    if status == Status::Conflict {
                        disk.conflicted(request, payload)?;
                    }
                    self.refused += u64::from(matches!(
                        status,
                        Status::Conflict | Status::BelowFloor | Status::Dropped | Status::NoSpace
                    ));
                }
            },
            (DataRequest::Delete(request), DataResponse::Delete(response))
                if trusted && response.status() == Status::Ok =>
            {
                disk.deleted(request);
            }
            (DataRequest::SetFloor(request), DataResponse::SetFloor(response)) if response.status() == Status::Ok => {
                let floor = disk.floors.entry(volume_key(request.volume, request.incarnation)).or_default();
                *floor = request.floor.max(*floor);
            }
            (DataRequest::DropVolume(request), DataResponse::DropVolume(response))
                if response.status() == Status::Ok =>
            {
                disk.dropped.insert(volume_key(request.volume, request.incarnation));
            }
            _ => {}
        }
        Ok(())
    }

    /// A commit names chunks: each of their shards was answered as durable by some disk (R2).
    pub(crate) fn committed(&self, chunks: &[ChunkRecord]) -> Result<(), String> {
        let shards = |chunk: &ChunkRecord| {
            (0..chunk.data_shards + chunk.parity_shards).map({
                let (chunk, nonce) = (chunk.chunk, chunk.nonce);
                move |shard| (chunk, shard, nonce)
            })
        };
        match chunks.iter().flat_map(shards).find(|shard| !self.acknowledged.contains(shard)) {
            Some((chunk, shard, _)) => Err(format!("chunk {chunk} is committed, and its shard {shard} is not durable")),
            None => Ok(()),
        }
    }

    /// A machine is told to drop volumes.
    pub(crate) fn may_drop(&mut self, node: NodeId, volumes: impl Iterator<Item = VolumeKey>) {
        self.disk(node).0.dropping.extend(volumes);
    }

    /// A machine has dropped volumes.
    pub(crate) fn dropped(&mut self, node: NodeId, volumes: BTreeSet<VolumeKey>) {
        self.disk(node).0.dropped.extend(volumes);
    }

    /// A datanode's disk has gone out of service, and that was written down.
    pub(crate) fn failed(&mut self, node: NodeId) {
        self.disk(node).0.failed = true;
    }

    /// A datanode has started with these shards on its disk. Gives what is to be read of them and handed to
    /// [`Self::executed`].
    pub(crate) fn started(&mut self, node: NodeId, id: DiskId, held: &[HeldShard]) -> Result<Vec<ShardRange>, String> {
        let (disk, trusted) = self.disk(node);
        if !trusted {
            return Ok(Vec::new());
        }
        if disk.failed {
            return Err("its disk failed, and serves again".to_owned());
        }
        let mut volumes: BTreeMap<VolumeKey, BTreeMap<ShardKey, Nonce>> = BTreeMap::new();
        for key in disk.shards.keys() {
            volumes.entry(key.chunk.volume).or_default();
        }
        for shard in held {
            volumes.entry(shard.key.chunk.volume).or_default().insert(shard.key, shard.nonce);
        }
        // Those of a dropped volume are removed by and by.
        volumes.retain(|volume, _| !disk.may_be_dropped(volume));
        for (volume, listed) in &volumes {
            disk.listed(*volume, listed, 0, u64::MAX)?;
        }
        let there = held.iter().filter(|shard| volumes.contains_key(&shard.key.chunk.volume));
        let ranges = there.map(|shard| ShardRange {
            disk: id.0,
            volume: shard.key.chunk.volume.volume.0,
            incarnation: shard.key.chunk.volume.incarnation.0,
            chunk: shard.key.chunk.chunk.0,
            nonce: shard.nonce.0,
            shard: shard.key.shard.into(),
            offset: 0,
            length_bytes: shard.length_bytes,
        });
        Ok(ranges.collect())
    }

    /// Shards of a volume that may be on a machine.
    pub(crate) fn known(&self, node: NodeId, volume: VolumeKey) -> Vec<(ShardKey, Shard)> {
        let range = first_of(volume, 0)..=shard_key(volume, u64::MAX, u8::MAX.into());
        let shards = self.disks.get(&node).map(|disk| disk.shards.range(range));
        shards.into_iter().flatten().map(|(key, shard)| (*key, shard.clone())).collect()
    }

    /// A shard of a volume with a number below `end`.
    pub(crate) fn any_below(&self, node: NodeId, end: u64, random: &mut Random) -> Option<(ShardKey, Shard)> {
        let range = || Some(self.disks.get(&node)?.shards.range(..first_of(volume_key(end, 0), 0)));
        let count = range()?.count();
        let (key, shard) = if count == 0 { None } else { range()?.nth(random.index(count)) }?;
        Some((*key, shard.clone()))
    }

    /// Whether a machine has said that a volume is dropped.
    pub(crate) fn is_dropped(&self, node: NodeId, volume: &VolumeKey) -> bool {
        self.disks.get(&node).is_some_and(|disk| disk.is_dropped(volume))
    }

    /// The floor that a machine keeps for a volume.
    pub(crate) fn floor(&self, node: NodeId, volume: &VolumeKey) -> u64 {
        self.disks.get(&node).and_then(|disk| disk.floors.get(volume)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
