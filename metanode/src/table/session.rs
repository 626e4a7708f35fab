//! Sessions: fencing, replies remembered exactly once (R8), ranges of chunk ids (R3), reservations of quota (R29).

use super::records::Session;
use super::tree::{Changing, Tree};
use super::{Answer, Broken, Outcome, Table, broken, refusal};
use crate::sabotage::Sabotage;
use bytes::Bytes;
use holdfast_common::SessionId;
use holdfast_common::limits::{PAGE_BYTES, SESSION_IN_FLIGHT_MAX, SESSION_LEASE_MS};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, ExpireSessions, MutateResponse, OpenSession, ReserveChunks, ReserveQuota};
use holdfast_proto::record::TableCommand;
use prost::Message;
use std::ops::Range;
use std::sync::Arc;

/// Most sessions of one table.
const SESSIONS_MAX: usize = 1 << 16;
/// Longest client key and longest description.
const CLIENT_KEY_BYTES_MAX: usize = 1024;
const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Most chunk ids by one `ReserveChunks`: 256 GiB of full chunks.
const RESERVE_CHUNKS_MAX: u32 = 1 << 16;
/// Most runs of unused chunk ids a session keeps; past it the lowest are given up, whose chunks are then rewritten.
const CHUNK_RANGES_MAX: usize = 1024;

impl Table {
    pub(super) fn exactly_once(&mut self, command: &TableCommand, op: &Op, now_ns: i64) -> Result<Answer, Broken> {
        let id = SessionId(command.session);
        let sequence = command.sequence;
        let forgets = self.breaks(Sabotage::RepliesForgotten);
        let Some(mut session) = self.sessions.get_mut(&id) else {
            return Ok(Answer::Fresh(refusal(Code::SessionExpired)));
        };
        if sequence == 0 {
            return Ok(Answer::Fresh(refusal(Code::Invalid)));
        }
        if sequence < session.acknowledged_below {
            return Ok(Answer::Fresh(refusal(Code::SequenceStale)));
        }
        session.acknowledge(command.acknowledged_below.min(sequence));
        if let Some(reply) = session.replies.get(&sequence).filter(|_| !forgets) {
            return Ok(Answer::Remembered(reply.clone()));
        }
        // The oldest unanswered request is never refused: while it waits the floor cannot rise, and nothing would ever make
        // room again.
        if session.replies.len() >= SESSION_IN_FLIGHT_MAX && sequence > session.acknowledged_below {
            // Not remembered: the client acknowledges what it has and asks again under the same sequence.
            return Ok(Answer::Fresh(refusal(Code::Unavailable)));
        }
        drop(session);
        let response = self.execute(op, id, now_ns)?;
        if response.code() == Code::Unavailable {
            // Not remembered: it is to be tried again once the leader has caught up.
            return Ok(Answer::Fresh(response));
        }
        let encoded = Bytes::from(response.encode_to_vec());
        // Closing the session took its replies along.
        if let Some(mut session) = self.sessions.get_mut(&id) {
            session.replies.insert(sequence, encoded.clone());
        }
        Ok(Answer::FreshEncoded(response, encoded))
    }

    /// The remembered reply of a command that was applied before, as a later duplicate would be answered.
    #[cfg(test)]
    pub(crate) fn remembered_reply(&self, session: SessionId, sequence: u64) -> Option<Bytes> {
        self.sessions.get(&session)?.replies.get(&sequence).cloned()
    }

    pub(super) fn open_session(&mut self, op: &OpenSession, now_ns: i64) -> Outcome<MutateResponse> {
        if op.client_key.is_empty()
            || op.client_key.len() > CLIENT_KEY_BYTES_MAX
            || op.description.len() > DESCRIPTION_BYTES_MAX
        {
            return Err(Code::Invalid.into());
        }
        let former = self.client_keys.get(&op.client_key).copied();
        if former.is_none() && self.sessions.len() >= SESSIONS_MAX {
            return Err(Code::NoSpace.into());
        }
        if let Some(former) = former {
            self.end_session(former)?;
        }
        let id = SessionId(self.counters.next_session);
        self.counters.next_session += 1;
        let client_key = Bytes::copy_from_slice(&op.client_key);
        self.client_keys.insert(client_key.clone(), id);
        let session = Session {
            client_key,
            description: op.description.as_str().into(),
            opened_ns: now_ns,
            acknowledged_below: 0,
            replies: Tree::default(),
            chunk_ranges: Arc::new([]),
            reserved_bytes: 0,
        };
        self.sessions.insert(id, session);
        Ok(MutateResponse { session: id.0, session_lease_ms: SESSION_LEASE_MS, ..MutateResponse::default() })
    }

    pub(super) fn close_session(&mut self, session: SessionId) -> Outcome<MutateResponse> {
        self.end_session(session)?;
        Ok(MutateResponse::default())
    }

    pub(super) fn expire_sessions(&mut self, op: &ExpireSessions) -> Outcome<MutateResponse> {
        for &session in &op.sessions {
            if self.sessions.contains(&SessionId(session)) {
                self.end_session(SessionId(session))?;
            }
        }
        Ok(MutateResponse::default())
    }

    fn end_session(&mut self, id: SessionId) -> Result<(), Broken> {
        let Some(session) = self.sessions.remove(&id) else {
            return broken(format!("session {id} is not there"));
        };
        self.client_keys.remove(&session.client_key);
        match self.counters.reserved_bytes.checked_sub(session.reserved_bytes) {
            Some(rest) => self.counters.reserved_bytes = rest,
            None => return broken("reservations do not add up"),
        }
        Ok(())
    }

    pub(super) fn reserve_chunks(&mut self, op: &ReserveChunks, session: SessionId) -> Outcome<MutateResponse> {
        if op.count == 0 || op.count > RESERVE_CHUNKS_MAX {
            return Err(Code::Invalid.into());
        }
        let first = self.counters.next_chunk;
        let end = first + u64::from(op.count);
        self.session_mut(session)?.add_chunk_range(first..end);
        if !self.breaks(Sabotage::ChunkIdsGivenTwice) {
            self.counters.next_chunk = end;
        }
        Ok(MutateResponse { first_chunk: first, ..MutateResponse::default() })
    }

    pub(super) fn reserve_quota(&mut self, op: &ReserveQuota, session: SessionId) -> Outcome<MutateResponse> {
        let held = self.session(session)?.reserved_bytes;
        let others = self.counters.reserved_bytes - held;
        let total = others.checked_add(op.bytes).ok_or(Code::Quota)?;
        // Giving back never fails.
        if op.bytes > held && !self.fits_quota(total, 0) {
            return Err(Code::Quota.into());
        }
        self.counters.reserved_bytes = total;
        self.session_mut(session)?.reserved_bytes = op.bytes;
        Ok(MutateResponse { reserved_bytes: op.bytes, ..MutateResponse::default() })
    }

    /// Whether the mapped pages, these many more, and `reserved_bytes` stay inside the quota.
    pub(super) fn fits_quota(&self, reserved_bytes: u64, more_pages: u64) -> bool {
        let quota = self.configuration.as_ref().map_or(0, |configuration| configuration.quota_bytes);
        let mapped = self.counters.mapped_pages.saturating_add(more_pages).saturating_mul(PAGE_BYTES.into());
        quota == 0 || self.breaks(Sabotage::QuotaIgnored) || mapped.saturating_add(reserved_bytes) <= quota
    }

    pub(super) fn session(&self, session: SessionId) -> Result<&Session, Broken> {
        self.sessions.get(&session).ok_or_else(|| Broken(format!("session {session} is not there")))
    }

    pub(super) fn session_mut(&mut self, session: SessionId) -> Result<Changing<'_, Session>, Broken> {
        self.sessions.get_mut(&session).ok_or_else(|| Broken(format!("session {session} is not there")))
    }
}

impl Session {
    /// Drops replies that the client has received.
    fn acknowledge(&mut self, below: u64) {
        if below <= self.acknowledged_below {
            return;
        }
        self.acknowledged_below = below;
        while let Some((&sequence, _)) = self.replies.first().filter(|(sequence, _)| **sequence < below) {
            self.replies.remove(&sequence);
        }
    }

    pub(super) fn owns_chunk(&self, chunk: u64) -> bool {
        self.chunk_ranges.iter().any(|range| range.contains(&chunk))
    }

    fn add_chunk_range(&mut self, range: Range<u64>) {
        let mut ranges = self.chunk_ranges.to_vec();
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
        self.set_chunk_ranges(ranges);
    }

    /// The id is used up.
    pub(super) fn burn_chunk(&mut self, chunk: u64) {
        let mut ranges = Vec::with_capacity(self.chunk_ranges.len() + 1);
        for range in self.chunk_ranges.iter() {
            if range.contains(&chunk) {
                ranges.extend([range.start..chunk, chunk + 1..range.end].into_iter().filter(|part| !part.is_empty()));
            } else {
                ranges.push(range.clone());
            }
        }
        self.set_chunk_ranges(ranges);
    }

    fn set_chunk_ranges(&mut self, mut ranges: Vec<Range<u64>>) {
        let excess = ranges.len().saturating_sub(CHUNK_RANGES_MAX);
        ranges.drain(..excess);
        self.chunk_ranges = ranges.into();
    }
}
