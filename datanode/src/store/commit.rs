//! The write path: a batch of requests becomes appended records, one sync a touched segment, index changes, answers.
//!
//! The order is the promise (D6): nothing is indexed or answered before the syncs returned. A request that contradicts
//! an earlier one of the same batch (a delete of a chunk just put) ends the batch before it, so that within a batch
//! every request can be decided against the index as it stands.

use std::collections::BTreeSet;
use std::iter::repeat;
use std::sync::atomic::Ordering;

use holdfast_common::ChunkId;

use super::batch::{Batch, Change, Copied, LANE_BYTES, Payload, fill, merge};
use super::index::{Entry, Location};
use super::record::{self, Body, TOMBSTONE_TARGETS_MAX, encode, shard_header_area_bytes, tombstone_bytes};
use super::scan::read_header;
use super::segment::{Segment, SegmentKind};
use super::types::{
    ChunkKey, Done, Outcome, Put, Request, ShardError, ShardKey, ShardMeta, ShardName, Target, VolumeKey,
};
use super::units::to_usize;
use super::volumes::VolumeState;
use super::{Cursor, Sabotage, Store};
use holdfast_storage::{is_no_space, is_out_of_descriptors};

impl Store {
    /// Executes requests in order and makes them durable together. One outcome for each, in the same order.
    pub(crate) fn commit(&mut self, requests: &[Request]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(requests.len());
        while outcomes.len() < requests.len() {
            let rest = &requests[outcomes.len()..];
            if self.is_failed() {
                outcomes.extend(rest.iter().map(|_| Err(ShardError::DiskFailed)));
            } else {
                outcomes.extend(self.commit_some(rest));
            }
        }
        outcomes
    }

    /// Commits a prefix of the requests, at least one.
    fn commit_some(&mut self, requests: &[Request]) -> Vec<Outcome> {
        match &requests[0] {
            Request::SetFloor { volume, floor } => return vec![self.set_floor(volume, *floor)],
            Request::DropVolume { volume } => return vec![self.drop_volume(volume)],
            Request::Put(_) | Request::Delete { .. } => {}
        }
        let mut batch = Batch::default();
        for (number, request) in requests.iter().enumerate() {
            if batch.must_end_before(request) {
                break;
            }
            let settled = match request {
                Request::Put(put) => self.plan_put(&mut batch, number, put),
                Request::Delete { volume, chunks, shards } => {
                    self.plan_delete(&mut batch, number, volume, (chunks, shards))
                }
                Request::SetFloor { .. } | Request::DropVolume { .. } => unreachable!("ends the batch before"),
            };
            batch.outcomes.push(settled.transpose());
        }
        self.finish(batch)
    }

    /// `None` when the answer waits for the batch's sync.
    fn plan_put(&mut self, batch: &mut Batch, number: usize, put: &Put) -> Result<Option<Done>, ShardError> {
        let meta = &put.meta;
        if put.payload.len() as u64 != u64::from(meta.shard_length_bytes) {
            return Err(ShardError::Invalid("the payload is not as long as the header says"));
        }
        if let Some(twin) = batch.shards.get(&meta.key).copied() {
            let Change::Put { meta: first, .. } = &batch.planned[twin].change else {
                unreachable!("shards maps to puts")
            };
            if **first != *meta {
                return Err(ShardError::Conflict);
            }
            batch.twins.push((number, twin));
            return Ok(None);
        }
        if self.exists_already(meta)? {
            return Ok(Some(Done::default()));
        }
        let kind = if meta.is_small() { SegmentKind::Small } else { SegmentKind::Bulk };
        let area = shard_header_area_bytes(&meta.stripe, meta.shard_length_bytes, kind.alignment_bytes());
        let bytes = area + u64::from(meta.shard_length_bytes);
        self.admit(put, bytes)?;
        let body = Body::Shard(meta.clone());
        let (at, version) = self.append(batch, kind, None, bytes, &body, &Payload::Verified(put))?;
        batch.shards.insert(meta.key, batch.planned.len());
        batch.put_chunks.insert(meta.key.chunk);
        let change = Change::Put { key: meta.key, meta: Box::new(meta.clone()), version, at };
        batch.plan(kind, change, Some(number));
        Ok(None)
    }

    /// Whether this very shard is here (R1). Refuses what must not be put at all.
    fn exists_already(&self, meta: &ShardMeta) -> Result<bool, ShardError> {
        let (entry, segment) = {
            let state = self.shared.state.read();
            let volume = state.volumes.get(&meta.key.chunk.volume);
            let sabotage = self.shared.sabotage;
            if volume.dropped && sabotage != Sabotage::PutAfterDrop {
                return Err(ShardError::Dropped);
            }
            if meta.key.chunk.chunk < volume.floor && sabotage != Sabotage::IgnoreFloor {
                return Err(ShardError::BelowFloor(volume.floor));
            }
            let Some(entry) = state.index.get(&meta.key) else { return Ok(false) };
            (entry.clone(), state.segments[&entry.at.segment].clone())
        };
        match read_header(&segment, entry.at.offset) {
            Ok(Some(record::Header { body: Body::Shard(stored), .. })) if stored == *meta => Ok(true),
            Err(super::scan::ScanError::Io(error)) => Err(self.shared.unread(&meta.key, &error)),
            _ if self.shared.sabotage == Sabotage::OverwriteOtherShard => Ok(false),
            _ => Err(ShardError::Conflict),
        }
    }

    /// Takes the space of a put before any byte of it is written (R29).
    fn admit(&self, put: &Put, bytes: u64) -> Result<(), ShardError> {
        let now = self.shared.now();
        let mut budget = self.shared.budget(now)?;
        let mut own = self.shared.book.fill(&mut budget, put.session, now);
        if self.shared.sabotage == Sabotage::IgnoreReservations {
            own = u64::MAX;
        }
        if budget.for_session(own) < bytes {
            self.shared.doubt_space();
            budget = self.shared.budget(now)?;
            own = self.shared.book.fill(&mut budget, put.session, now);
            if budget.for_session(own) < bytes {
                return Err(ShardError::NoSpace);
            }
        }
        self.shared.book.draw(put.session, bytes);
        self.shared.spend(bytes);
        self.shared.unapplied_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// `None` when the answer waits for the batch's sync.
    fn plan_delete(
        &mut self,
        batch: &mut Batch,
        number: usize,
        volume: &VolumeKey,
        named: (&[ChunkId], &[ShardName]),
    ) -> Result<Option<Done>, ShardError> {
        let Some((present, kept_count)) = self.named_here(volume, named) else { return Ok(Some(Done::default())) };
        let done = Done { deleted_count: 0, kept_count };
        if present.is_empty() {
            return Ok(Some(done));
        }
        for (part, kept_count) in present.chunks(TOMBSTONE_TARGETS_MAX).zip([kept_count].into_iter().chain(repeat(0))) {
            let body = Body::Tombstone { volume: *volume, targets: part.to_vec() };
            let bytes = tombstone_bytes(part);
            let (at, version) = self.append(batch, SegmentKind::Small, None, bytes, &body, &Payload::None)?;
            let change = Change::Delete { volume: *volume, targets: part.to_vec(), kept_count, version, at };
            batch.plan(SegmentKind::Small, change, Some(number));
            batch.deleted_chunks.extend(part.iter().map(|target| ChunkKey { volume: *volume, chunk: target.chunk }));
        }
        Ok(None)
    }

    /// Targets of a delete that are here, ascending, and the count of shards it names that are of another attempt.
    /// `None` if all of the volume is deleted. A tombstone need not hold the nonce: of each shard one attempt is here,
    /// and only what is older than the tombstone dies by it.
    fn named_here(
        &self,
        volume: &VolumeKey,
        (chunks, shards): (&[ChunkId], &[ShardName]),
    ) -> Option<(Vec<Target>, u32)> {
        let state = self.shared.state.read();
        if state.volumes.get(volume).dropped {
            return None;
        }
        let key = |chunk| ChunkKey { volume: *volume, chunk };
        let mut present = BTreeSet::new();
        for chunk in chunks {
            let target = |shard| Target { chunk: *chunk, shard: Some(shard) };
            present.extend(state.index.shards_of(&key(*chunk)).map(target));
        }
        let mut kept_count = 0;
        for name in shards {
            let key = ShardKey { chunk: key(name.chunk), shard: name.shard };
            match state.index.get(&key) {
                Some(entry) if entry.nonce == name.nonce || self.shared.sabotage == Sabotage::DeleteAnyNonce => {
                    present.insert(key.grave().target);
                }
                Some(_) => kept_count += 1,
                None => {}
            }
        }
        Some((present.into_iter().collect(), kept_count))
    }

    /// Puts a record into its lane, and the lane to disk first if it is full. A record without a version gets its append
    /// number as one. Nothing is taken when it fails.
    pub(super) fn append(
        &mut self,
        batch: &mut Batch,
        kind: SegmentKind,
        version: Option<u64>,
        bytes: u64,
        body: &Body,
        payload: &Payload<'_>,
    ) -> Result<(Location, u64), ShardError> {
        let used = batch.lane(kind).used;
        let fits = self.cursor(kind).is_some_and(|c| {
            c.append + used as u64 + bytes <= c.segment.header.size_bytes && used + to_usize(bytes) <= LANE_BYTES
        });
        if !fits {
            self.flush(batch, kind)?;
            let room = self.cursor(kind).is_some_and(|c| c.append + bytes <= c.segment.header.size_bytes);
            if !room {
                self.roll(kind)?;
            }
        }
        if kind == SegmentKind::Small && batch.small.used == 0 {
            self.read_tail()?;
        }
        let cursor = self.cursor(kind).expect("rolled");
        let used = batch.lane(kind).used;
        let place = cursor.segment.place(cursor.append + used as u64);
        let version = version.unwrap_or(self.next_sequence);
        let header = encode(&place, self.next_sequence, self.durable_sequence, version, bytes, body);
        let into = match kind {
            SegmentKind::Small => {
                let start = cursor.tail_bytes() + used;
                batch.small_buffer.resize(start + to_usize(bytes), 0);
                &mut batch.small_buffer[start..]
            }
            SegmentKind::Bulk => self.bulk_buffer.range_mut(used, to_usize(bytes)),
        };
        fill(into, &header, payload)?;
        self.next_sequence += 1;
        batch.lane_mut(kind).used += to_usize(bytes);
        Ok((Location { segment: place.segment, offset: place.offset, bytes }, version))
    }

    /// Reads what the page holds in which the next small record begins. If it cannot be read, the next segment is begun: writing
    /// over it would lose for good what stands there.
    fn read_tail(&mut self) -> Result<(), ShardError> {
        match self.small.as_mut().map_or(Ok(()), Cursor::read_tail) {
            Ok(()) => Ok(()),
            Err(error) if is_out_of_descriptors(&error) => {
                Err(self.shared.trouble("reading a page to write on", &error))
            }
            Err(error) => {
                tracing::error!(disk = self.shared.disk.0, %error, "the end of a segment cannot be read; the next is begun");
                self.roll(SegmentKind::Small)
            }
        }
    }

    fn cursor(&self, kind: SegmentKind) -> Option<&Cursor> {
        match kind {
            SegmentKind::Small => self.small.as_ref(),
            SegmentKind::Bulk => self.bulk.as_ref(),
        }
    }

    /// Writes a lane to its segment. Records that did not fit on the disk fail alone; anything worse fails the disk.
    fn flush(&mut self, batch: &mut Batch, kind: SegmentKind) -> Result<(), ShardError> {
        let used = std::mem::take(&mut batch.lane_mut(kind).used);
        let pending = std::mem::take(&mut batch.lane_mut(kind).pending);
        if used == 0 {
            return Ok(());
        }
        let cursor = match kind {
            SegmentKind::Small => self.small.as_mut(),
            SegmentKind::Bulk => self.bulk.as_mut(),
        };
        let cursor = cursor.expect("a lane with bytes has a segment");
        let (segment, append) = (cursor.segment.clone(), cursor.append);
        batch.touch(&segment);
        let written = match kind {
            SegmentKind::Small => {
                // A record that was refused while it was being built may stand behind the others.
                batch.small_buffer.truncate(cursor.tail_bytes() + used);
                cursor.write_pages(&mut batch.small_buffer)
            }
            SegmentKind::Bulk => segment
                .file
                .write_direct(append, self.bulk_buffer.bytes(used))
                .inspect(|()| cursor.append = append + used as u64),
        };
        match written {
            Ok(()) => {}
            Err(error) if is_no_space(&error) => {
                // What was written of these records must not be taken for them once their numbers count as durable:
                // the hole is synced with this batch, before a later record can say so.
                segment.file.punch(append, used as u64).map_err(|e| self.shared.trouble("punching", &e))?;
                self.shared.doubt_space();
                for planned in pending {
                    batch.planned[planned].failed = Some(ShardError::NoSpace);
                }
                // A bulk segment goes on behind the hole.
                if kind == SegmentKind::Bulk {
                    self.bulk.as_mut().expect("just used").append = append + used as u64;
                }
            }
            // Nothing was written. The numbers of these records are never seen again, like those of refused ones.
            Err(error) if is_out_of_descriptors(&error) => {
                let busy = self.shared.trouble("writing", &error);
                pending.into_iter().for_each(|planned| batch.planned[planned].failed = Some(busy));
            }
            Err(error) => return Err(self.shared.trouble("writing", &error)),
        }
        Ok(())
    }

    /// Writes, syncs, indexes and answers.
    pub(super) fn finish(&mut self, mut batch: Batch) -> Vec<Outcome> {
        let durable = self.make_durable(&mut batch);
        if let Err(error) = durable {
            return batch.outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(error))).collect();
        }
        let mut results: Vec<Result<Done, ShardError>> = vec![Ok(Done::default()); batch.planned.len()];
        self.apply(&batch, &mut results);
        for (planned, result) in batch.planned.iter().zip(&results) {
            let Some(request) = planned.request else { continue };
            merge(&mut batch.outcomes[request], *result);
        }
        for (request, twin) in &batch.twins {
            batch.outcomes[*request] = Some(results[*twin]);
        }
        batch.outcomes.into_iter().map(|o| o.expect("every request was settled or planned")).collect()
    }

    fn make_durable(&mut self, batch: &mut Batch) -> Result<(), ShardError> {
        self.flush(batch, SegmentKind::Bulk)?;
        self.flush(batch, SegmentKind::Small)?;
        for segment in &batch.touched {
            self.sync(batch, segment)?;
        }
        if self.is_failed() {
            return Err(ShardError::DiskFailed);
        }
        self.durable_sequence = self.next_sequence - 1;
        Ok(())
    }

    fn sync(&self, batch: &Batch, segment: &Segment) -> Result<(), ShardError> {
        let synced = match self.shared.sabotage {
            Sabotage::AnswerPutBeforeSync if !batch.put_chunks.is_empty() => Ok(()),
            Sabotage::AnswerDeleteBeforeSync if !batch.deleted_chunks.is_empty() => Ok(()),
            Sabotage::RetryFailedSync => segment.file.sync_data().or_else(|_| segment.file.sync_data()),
            _ => segment.file.sync_data(),
        };
        synced.map_err(|e| self.shared.trouble("fdatasync", &e))
    }

    fn apply(&mut self, batch: &Batch, results: &mut [Result<Done, ShardError>]) {
        let mut state = self.shared.state.write();
        self.shared.unapplied_bytes.store(0, Ordering::Relaxed);
        let index = &mut state.index;
        for (planned, result) in batch.planned.iter().zip(results) {
            if let Some(error) = planned.failed {
                *result = Err(error);
                continue;
            }
            self.records_since_checkpoint += 1;
            match &planned.change {
                Change::Put { key, meta, version, at } => {
                    let stripe = index.intern(&meta.stripe);
                    let entry = Entry {
                        at: *at,
                        version: *version,
                        nonce: meta.nonce,
                        shard_length_bytes: meta.shard_length_bytes,
                        chunk_length_bytes: meta.chunk_length_bytes,
                        stripe,
                    };
                    match self.shared.sabotage {
                        Sabotage::OverwriteOtherShard => index.restore_shard(*key, entry),
                        _ => index.insert_shard(*key, entry),
                    }
                }
                Change::Delete { volume, targets, kept_count, version, at } => {
                    let deleted_count = index.apply_tombstone(*volume, targets, *version, *at);
                    *result = Ok(Done { deleted_count, kept_count: *kept_count });
                }
                Change::MoveShard { key, from, to } => index.move_shard(key, *from, *to),
                Change::MoveTombstone { version, to } => index.move_tombstone(*version, *to),
            }
        }
        for cursor in [&self.small, &self.bulk].into_iter().flatten() {
            index.segment_mut(cursor.segment.header.number).append = cursor.append;
        }
    }

    /// Appends copies of records for compaction and makes them durable. Their changes are applied like any other.
    pub(super) fn commit_copies(&mut self, copies: &[Copied]) -> Result<(), ShardError> {
        let mut batch = Batch::default();
        for copy in copies {
            let payload = if copy.payload.is_empty() { Payload::None } else { Payload::Raw(&copy.payload) };
            let version = Some(copy.version);
            let (to, _) =
                self.append(&mut batch, SegmentKind::Small, version, copy.record_bytes, &copy.body, &payload)?;
            let change = match &copy.body {
                Body::Shard(meta) => Change::MoveShard { key: meta.key, from: copy.from, to },
                Body::Tombstone { .. } | Body::Filler => Change::MoveTombstone { version: copy.version, to },
            };
            batch.plan(SegmentKind::Small, change, None);
        }
        self.make_durable(&mut batch)?;
        let mut results = vec![Ok(Done::default()); batch.planned.len()];
        self.apply(&batch, &mut results);
        results.into_iter().try_for_each(|result| result.map(|_| ()))
    }

    fn set_floor(&mut self, volume: &VolumeKey, floor: ChunkId) -> Outcome {
        self.learn(&[(*volume, VolumeState { floor, dropped: false })])
    }

    fn drop_volume(&mut self, volume: &VolumeKey) -> Outcome {
        self.learn(&[(*volume, VolumeState { dropped: true, ..VolumeState::default() })])
    }

    /// Records floors and drops, durably, as far as they say more than is known.
    pub(crate) fn learn(&mut self, states: &[(VolumeKey, VolumeState)]) -> Outcome {
        let mut volumes = self.shared.state.read().volumes.clone();
        let mut dropped = Vec::new();
        let mut learnt = false;
        for (volume, state) in states {
            if volumes.learn(*volume, *state) {
                learnt = true;
                dropped.extend(state.dropped.then_some(*volume));
            }
        }
        if learnt {
            self.store_volumes(volumes)?;
            self.dropping.extend(dropped);
        }
        Ok(Done::default())
    }

    fn store_volumes(&mut self, volumes: super::Volumes) -> Outcome {
        match volumes.store(&*self.shared.directory) {
            Ok(()) => {
                self.shared.state.write().volumes = volumes;
                Ok(Done::default())
            }
            // The old file stands, and nothing was promised.
            Err(error) => Err(self.shared.unchanged("replacing the volumes file", &error)),
        }
    }
}
