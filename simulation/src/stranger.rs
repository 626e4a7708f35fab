//! A machine that sends datanodes what no client and no table does: puts of other attempts, below floors and into dropped
//! volumes, reads and deletes of other attempts, deletes, floors and drops without a proof, puts into what others have
//! reserved. It has volumes of its own, of which it is the table: the cluster's volume it may ask only what must be refused.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{ChunkId, DiskId, Epoch, NodeId, Nonce, Random};
use holdfast_datanode::{ShardKey, VolumeKey};
use holdfast_proto::data::{
    DeleteShardsRequest, DiskReservation, DropVolumeRequest, ListShardsRequest, Proof, PutShardRequest,
    ReadShardsRequest, ReserveSpaceRequest, SetFloorRequest, ShardHeader, ShardName, ShardRange,
};

use crate::clock::Times;
use crate::machines::STRANGER_VOLUMES;
use crate::packet::{Packet, Request};
use crate::role::{Moment, Role, Timer, Wish};
use crate::truth::shards::{Attempt, Shard, Shards, name_of, volume_key};
use crate::truth::{Stage, Truth};

const PAGE: usize = 4096;
/// Pause between two bursts of requests, at most.
const PAUSE_MS_MAX: u64 = 250;
/// Requests of a burst, at most: they come to one group commit.
const BURST_MAX: u64 = 5;
/// Percent of bursts that go to the first disk.
const FIRST_PERCENT: u64 = 65;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most shards of the stranger on one disk.
const SHARDS_MAX: usize = 60;
/// Further shards that one delete names, less than this.
const DELETED_MAX: u64 = 6;
/// So many chunks are kept for long, and as many after them are not: some segments of a disk live on while later ones die.
const ERA_CHUNKS: u64 = 48;
/// A put that is longer than what may have been given back unseen, and how long all space is reserved for it.
const LARGE_PAGES: usize = 1000;
const RESERVED_MS: u32 = 300;
/// Sessions that reserve and that do not.
const RESERVING: u64 = 1;
const OTHER: u64 = 2;

pub(crate) struct StrangerRole {
    secret: ClusterSecret,
    disks: Vec<(NodeId, DiskId)>,
    due: bool,
}

/// A burst of requests to one disk.
struct Burst<'a> {
    secret: &'a ClusterSecret,
    random: &'a mut Random,
    shards: &'a mut Shards,
    node: NodeId,
    disk: DiskId,
    requests: Vec<Request>,
}

impl StrangerRole {
    pub(crate) fn new(secret: ClusterSecret, disks: BTreeMap<NodeId, DiskId>) -> Self {
        Self { secret, disks: disks.into_iter().collect(), due: true }
    }

    fn burst(&self, random: &mut Random, truth: &mut Truth) -> Vec<Wish> {
        // Mostly the same one: its segments fill up, die and are used again.
        let (node, disk) = self.disks[if random.chance(FIRST_PERCENT) { 0 } else { random.index(self.disks.len()) }];
        let (secret, shards) = (&self.secret, &mut truth.shards);
        let mut burst = Burst { secret, random, shards, node, disk, requests: Vec::new() };
        for _ in 0..burst.random.below(BURST_MAX) + 1 {
            burst.add();
        }
        let call = |request| Wish::Call { ticket: 0, to: node, request: Box::new(request), timeout: TIMEOUT };
        burst.requests.into_iter().map(call).collect()
    }
}

impl Role for StrangerRole {
    fn packet(&mut self, _: Times, _: NodeId, _: Packet) {}

    fn timer(&mut self, _: Times, _: Timer) {
        self.due = true;
    }

    fn drive(&mut self, moment: Moment<'_>) -> Vec<Wish> {
        let mut truth = moment.truth.lock();
        if !std::mem::take(&mut self.due) || truth.stage != Stage::Work {
            return Vec::new();
        }
        let mut wishes = self.burst(moment.random, &mut truth);
        let after = Duration::from_millis(moment.random.below(PAUSE_MS_MAX) + 1);
        wishes.push(Wish::Arm { timer: Timer::Look, after });
        wishes
    }
}

/// Bytes that differ from all others, most of them.
fn pattern(random: &mut Random, length: usize) -> Bytes {
    let mut bytes = vec![u8::try_from(random.below(255)).unwrap_or(0) + 1; length];
    for page in bytes.chunks_mut(PAGE) {
        page[..8].copy_from_slice(&random.bits().to_le_bytes());
    }
    bytes.into()
}

impl Burst<'_> {
    fn add(&mut self) {
        match self.random.below(100) {
            0..=33 => self.put_new(),
            34..=38 => self.put_again(),
            39..=46 => self.put_another(),
            47..=58 => self.read(false),
            59..=63 => self.read(true),
            64..=66 => self.read_of_others(),
            67..=81 => self.delete(false),
            82..=84 => self.delete(true),
            85..=86 => self.delete_unproven(),
            87..=88 => self.end_others(),
            89..=90 => self.raise_floor(),
            91..=94 => self.put_below_floor(),
            95 => self.drop_volume(),
            96..=97 => self.put_dropped(),
            98 if self.random.one_in(8) => self.put_reserved(),
            _ => self.list(),
        }
    }

    fn volume(&self) -> VolumeKey {
        volume_key(STRANGER_VOLUMES + self.shards.stranger.0, 1)
    }

    fn own(&self) -> Vec<(ShardKey, Shard)> {
        self.shards.known(self.node, self.volume())
    }

    fn any(&mut self) -> Option<(ShardKey, Shard)> {
        let mut own = self.own();
        if own.is_empty() { None } else { Some(own.swap_remove(self.random.index(own.len()))) }
    }

    fn put(&mut self, volume: VolumeKey, chunk: u64, nonce: Nonce, pages: usize, session: u64) {
        let payload = pattern(self.random, pages * PAGE);
        let shard = self.random.below(3);
        let place =
            ShardPlace { volume: volume.volume, chunk: ChunkId(chunk), shard: u8::try_from(shard).unwrap_or(0) };
        self.put_at(volume, place, nonce, payload, session);
    }

    fn put_at(&mut self, volume: VolumeKey, place: ShardPlace, nonce: Nonce, payload: Bytes, session: u64) {
        let length_bytes = u32::try_from(payload.len()).unwrap_or(0);
        let header = ShardHeader {
            volume: volume.volume.0,
            incarnation: volume.incarnation.0,
            chunk: place.chunk.0,
            nonce: nonce.0,
            group: 1,
            epoch: Epoch::FIRST.0,
            shard: place.shard.into(),
            data_shards: 2,
            parity_shards: 1,
            slots: Bytes::from_static(&[0, 1, 2]),
            chunk_length_bytes: length_bytes,
            shard_length_bytes: length_bytes,
            page_checksums: place.page_checksums(0, &payload).into(),
        };
        self.send_put(header, payload, session);
    }

    fn send_put(&mut self, header: ShardHeader, payload: Bytes, session: u64) {
        let request = PutShardRequest { disk: self.disk.0, header: Some(header), session };
        self.requests.push(Request::Put(request, payload));
    }

    fn put_new(&mut self) {
        if self.own().len() < SHARDS_MAX {
            let (volume, nonce) = (self.volume(), Nonce(self.random.bits()));
            self.shards.stranger.1 += 1;
            let chunk = self.shards.stranger.1;
            let pages = if self.random.one_in(6) { 16 + self.random.index(3) } else { 1 + self.random.index(3) };
            self.put(volume, chunk, nonce, pages, OTHER);
        }
    }

    /// Exactly what was put before.
    fn put_again(&mut self) {
        let Some((_, mut shard)) = self.any() else { return };
        // The long ones are for space that is reserved.
        if let Some(last) = shard.attempts.pop().filter(|last| last.payload.len() < LARGE_PAGES * PAGE) {
            self.send_put(last.header, last.payload, OTHER);
        }
    }

    /// Another attempt at a shard, or the same with another content.
    fn put_another(&mut self) {
        let Some((key, mut shard)) = self.any() else { return };
        let Some(last) = shard.attempts.pop().filter(|last| last.payload.len() < LARGE_PAGES * PAGE) else { return };
        let nonce = if self.random.chance(50) { last.nonce() } else { Nonce(self.random.bits()) };
        let payload = pattern(self.random, last.payload.len());
        self.put_at(key.chunk.volume, key.place(), nonce, payload, OTHER);
    }

    fn read(&mut self, other: bool) {
        if let Some((key, shard)) = self.any() {
            self.read_one(key, &shard, other);
        }
    }

    /// Another attempt at a shard of the cluster's volume.
    fn read_of_others(&mut self) {
        if let Some((key, shard)) = self.shards.any_below(self.node, STRANGER_VOLUMES, self.random) {
            self.read_one(key, &shard, true);
        }
    }

    fn read_one(&mut self, key: ShardKey, shard: &Shard, other: bool) {
        let Some(last) = shard.attempts.last() else { return };
        let nonce = if other { Nonce(self.random.bits()) } else { last.nonce() };
        let range = ShardRange {
            disk: self.disk.0,
            volume: key.chunk.volume.volume.0,
            incarnation: key.chunk.volume.incarnation.0,
            chunk: key.chunk.chunk.0,
            nonce: nonce.0,
            shard: key.shard.into(),
            offset: 0,
            length_bytes: last.header.shard_length_bytes,
        };
        self.requests.push(Request::Fetch(ReadShardsRequest { ranges: vec![range] }));
    }

    fn prove(&self, volume: VolumeKey, claim: Claim<'_>) -> Option<Proof> {
        let mac = self.secret.prove(volume.volume, volume.incarnation, claim);
        Some(Proof { issuer: String::new(), mac: Bytes::copy_from_slice(&mac) })
    }

    fn forged(&mut self) -> Option<Proof> {
        self.random.chance(80).then(|| Proof { issuer: String::new(), mac: self.random.bytes(32).into() })
    }

    /// Deletes a shard by name, or names another attempt, or the whole chunk; and further shards by name.
    fn delete(&mut self, other: bool) {
        let Some((key, shard)) = self.any_to_delete() else { return };
        let mut request = self.deletion(&key, &shard, other);
        for _ in 0..self.random.below(DELETED_MAX) {
            if let Some((key, shard)) = self.any_to_delete() {
                request.shards.append(&mut self.deletion(&key, &shard, other).shards);
            }
        }
        let chunks: Vec<ChunkId> = request.chunks.iter().copied().map(ChunkId).collect();
        let names: Vec<_> = request.shards.iter().map(name_of).collect();
        let claim = match &names[..] {
            [] => Claim::DeleteChunks(&chunks),
            names => Claim::DeleteShards(&chunks, names),
        };
        request.proof = self.prove(key.chunk.volume, claim);
        self.requests.push(Request::Delete(request));
    }

    /// Seldom one of those that are kept for long.
    fn any_to_delete(&mut self) -> Option<(ShardKey, Shard)> {
        let is_kept = |key: &ShardKey| (key.chunk.chunk.0 / ERA_CHUNKS).is_multiple_of(2);
        let all = self.random.one_in(12);
        let mut own: Vec<_> = self.own().into_iter().filter(|(key, _)| all || !is_kept(key)).collect();
        if own.is_empty() { None } else { Some(own.swap_remove(self.random.index(own.len()))) }
    }

    fn deletion(&mut self, key: &ShardKey, shard: &Shard, other: bool) -> DeleteShardsRequest {
        let nonce = shard.attempts.last().map_or(Nonce(0), Attempt::nonce);
        let nonce = if other { Nonce(self.random.bits()) } else { nonce };
        let whole = !other && self.random.one_in(4);
        let chunk = key.chunk.chunk.0;
        let named = ShardName { chunk, shard: key.shard.into(), nonce: nonce.0 };
        DeleteShardsRequest {
            disk: self.disk.0,
            volume: key.chunk.volume.volume.0,
            incarnation: key.chunk.volume.incarnation.0,
            chunks: if whole { vec![chunk] } else { Vec::new() },
            proof: None,
            shards: if whole { Vec::new() } else { vec![named] },
        }
    }

    /// Deletes of the cluster's volume that nobody asked for.
    fn delete_unproven(&mut self) {
        if let Some((key, shard)) = self.shards.any_below(self.node, STRANGER_VOLUMES, self.random) {
            let mut request = self.deletion(&key, &shard, false);
            request.proof = self.forged();
            self.requests.push(Request::Delete(request));
        }
    }

    /// A floor or the end of the cluster's volume, which nobody asked for.
    fn end_others(&mut self) {
        let Some((key, _)) = self.shards.any_below(self.node, STRANGER_VOLUMES, self.random) else { return };
        let (volume, incarnation) = (key.chunk.volume.volume.0, key.chunk.volume.incarnation.0);
        let proof = self.forged();
        self.requests.push(if self.random.chance(50) {
            Request::SetFloor(SetFloorRequest { volume, incarnation, floor: 1 << 50, proof })
        } else {
            Request::DropVolume(DropVolumeRequest { volume, incarnation, proof })
        });
    }

    fn raise_floor(&mut self) {
        let Some((key, _)) = self.any() else { return };
        let (volume, floor) = (key.chunk.volume, key.chunk.chunk);
        let proof = self.prove(volume, Claim::SetFloor(floor));
        let (volume, incarnation) = (volume.volume.0, volume.incarnation.0);
        self.requests.push(Request::SetFloor(SetFloorRequest { volume, incarnation, floor: floor.0, proof }));
    }

    /// In its own volume, or in the cluster's.
    fn put_below_floor(&mut self) {
        let mut volume = self.volume();
        if let Some((key, _)) = self.shards.any_below(self.node, STRANGER_VOLUMES, self.random)
            && self.random.chance(50)
        {
            volume = key.chunk.volume;
        }
        let floor = self.shards.floor(self.node, &volume);
        if floor > 1 {
            let (chunk, nonce) = (1 + self.random.below(floor - 1), Nonce(self.random.bits()));
            self.put(volume, chunk, nonce, 1, OTHER);
        }
    }

    /// Ends the life of its volume on all disks, and begins the next.
    fn drop_volume(&mut self) {
        let volume = self.volume();
        let proof = self.prove(volume, Claim::DropVolume);
        let request = DropVolumeRequest { volume: volume.volume.0, incarnation: volume.incarnation.0, proof };
        self.requests.push(Request::DropVolume(request));
        if self.random.one_in(3) {
            self.shards.stranger = (self.shards.stranger.0 + 1, 0);
        }
    }

    fn put_dropped(&mut self) {
        let number = self.random.below(self.shards.stranger.0 + 1);
        let volume = volume_key(STRANGER_VOLUMES + number, 1);
        if self.shards.is_dropped(self.node, &volume) {
            let (chunk, nonce) = (self.random.below(100) + 1, Nonce(self.random.bits()));
            self.put(volume, chunk, nonce, 1, OTHER);
        }
    }

    /// Reserves all there is, for a short while, and puts something under another session.
    fn put_reserved(&mut self) {
        let volume = self.volume();
        let wanted = DiskReservation { disk: self.disk.0, wanted_bytes: u64::MAX >> 1 };
        self.requests.push(Request::Reserve(ReserveSpaceRequest {
            session: RESERVING,
            disks: vec![wanted],
            lease_ms: RESERVED_MS,
            volume: volume.volume.0,
        }));
        self.shards.stranger.1 += 1;
        let (chunk, nonce) = (self.shards.stranger.1, Nonce(self.random.bits()));
        self.put(volume, chunk, nonce, LARGE_PAGES, OTHER);
    }

    fn list(&mut self) {
        let volume = self.volume();
        let after_chunk = if self.random.chance(50) { 0 } else { self.random.below(self.shards.stranger.1 + 1) };
        let max_count = 1 + u32::try_from(self.random.below(100)).unwrap_or(0);
        let (disk, incarnation) = (self.disk.0, volume.incarnation.0);
        let request = ListShardsRequest { disk, volume: volume.volume.0, incarnation, after_chunk, max_count };
        self.requests.push(Request::List(request));
    }
}
