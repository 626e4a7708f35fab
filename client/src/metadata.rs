//! The metadata client: finds the leader of the volume's table, follows it, and retries until the deadline.
//!
//! A mutation keeps its sequence number over all retries, so that the table executes it exactly once (R8); a sequence
//! counts as acknowledged only when its answer was received or its caller gave up for good.

use crate::Error;
use crate::cluster_map::ClusterMap;
use holdfast_common::limits::{REQUEST_DEADLINE_MS, SESSION_IN_FLIGHT_MAX};
use holdfast_common::{Incarnation, NodeId, SessionId, VolumeId};
use holdfast_proto::meta::{
    Code, MutateRequest, MutateResponse, Mutation, ReadRequest, ReadResponse, mutation, read_request,
};
use holdfast_proto::method;
use holdfast_transport::Client;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

/// One attempt at one metanode. Well above a sync on a busy disk; a retry under the same sequence is harmless.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between attempts while there is no leader.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);

/// The session as requests carry it.
#[derive(Debug)]
struct Session {
    id: SessionId,
    next_sequence: u64,
    outstanding: BTreeSet<u64>,
}

/// Speaks to one volume's metadata table.
pub(crate) struct Metadata {
    transport: Client,
    volume: VolumeId,
    incarnation: Incarnation,
    map: Arc<ClusterMap>,
    replicas: Vec<NodeId>,
    /// Whom to ask: an index into `replicas`, or an address a metanode named.
    target: Mutex<Target>,
    session: Mutex<Session>,
    in_flight: Semaphore,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    index: usize,
    named: Option<SocketAddr>,
}

/// What to do with an answer.
enum Verdict {
    Done,
    /// Ask this one next.
    Follow(SocketAddr),
    /// Ask another one, after a pause.
    Another,
    /// Ask the same one again, after a pause.
    Again,
}

fn judge(code: Code, leader: &str) -> Verdict {
    match code {
        Code::NotLeader => leader.parse().map_or(Verdict::Another, Verdict::Follow),
        Code::NoSuchVolume | Code::TableStopped => Verdict::Another,
        Code::Unavailable => Verdict::Again,
        _ => Verdict::Done,
    }
}

impl Metadata {
    pub(crate) fn new(
        transport: Client,
        volume: VolumeId,
        incarnation: Incarnation,
        map: Arc<ClusterMap>,
        replicas: Vec<NodeId>,
    ) -> Self {
        Self {
            transport,
            volume,
            incarnation,
            map,
            replicas,
            target: Mutex::new(Target { index: 0, named: None }),
            session: Mutex::new(Session { id: SessionId(0), next_sequence: 1, outstanding: BTreeSet::new() }),
            in_flight: Semaphore::new(SESSION_IN_FLIGHT_MAX),
        }
    }

    pub(crate) fn volume(&self) -> VolumeId {
        self.volume
    }

    pub(crate) fn session(&self) -> SessionId {
        self.session.lock().id
    }

    /// Goes on under a new session; sequences start anew.
    pub(crate) fn set_session(&self, id: SessionId) {
        *self.session.lock() = Session { id, next_sequence: 1, outstanding: BTreeSet::new() };
    }

    fn address(&self) -> Option<SocketAddr> {
        let target = *self.target.lock();
        target.named.or_else(|| {
            let node = self.replicas.get(target.index % self.replicas.len().max(1))?;
            self.map.address(*node)
        })
    }

    fn follow(&self, address: SocketAddr) {
        self.target.lock().named = Some(address);
    }

    /// Turns to the next replica, unless somebody else already turned away from `failed`.
    fn turn_from(&self, failed: Option<SocketAddr>) {
        if self.address() == failed {
            let mut target = self.target.lock();
            target.named = None;
            target.index = (target.index + 1) % self.replicas.len().max(1);
        }
    }

    /// Executes a mutation exactly once.
    ///
    /// # Errors
    /// The table's refusal, [`Error::SessionLost`], or [`Error::TimedOut`]: then it may still happen.
    pub(crate) async fn mutate(&self, op: mutation::Op) -> Result<MutateResponse, Error> {
        let response = self.mutate_raw(op).await?;
        match response.code() {
            Code::Ok => Ok(response),
            Code::SessionExpired => Err(Error::SessionLost),
            code => Err(Error::Refused { code, detail: response.detail }),
        }
    }

    async fn mutate_raw(&self, op: mutation::Op) -> Result<MutateResponse, Error> {
        let _permit = self.in_flight.acquire().await.expect("never closed");
        let opening = matches!(op, mutation::Op::OpenSession(_));
        let ticket = if opening { None } else { Some(Ticket::take(&self.session)) };
        let mut request = MutateRequest {
            volume: self.volume.0,
            incarnation: self.incarnation.0,
            session: ticket.as_ref().map_or(0, |t| t.session.0),
            sequence: ticket.as_ref().map_or(0, |t| t.sequence),
            acknowledged_below: 0,
            mutation: Some(Mutation { op: Some(op) }),
        };
        let mut retry = Retry::new();
        loop {
            if let Some(ticket) = &ticket {
                request.acknowledged_below = ticket.acknowledged_below();
            }
            let to = self.address();
            let outcome = match to {
                Some(to) => self
                    .transport
                    .unary::<_, MutateResponse>(to, method::META_MUTATE, &request, retry.attempt_timeout())
                    .await
                    .map_err(|e| e.to_string()),
                None => Err("no metanode's address is known".to_owned()),
            };
            match outcome {
                Ok(response) => match judge(response.code(), &response.leader) {
                    Verdict::Done => return Ok(response),
                    verdict => retry.after(self, to, verdict, response.detail).await?,
                },
                Err(reason) => retry.after(self, to, Verdict::Another, reason).await?,
            }
        }
    }

    /// Asks the leader; linearizable.
    ///
    /// # Errors
    /// The table's refusal, [`Error::SessionLost`], or [`Error::TimedOut`].
    pub(crate) async fn read(&self, op: read_request::Op) -> Result<ReadResponse, Error> {
        let request = ReadRequest {
            volume: self.volume.0,
            incarnation: self.incarnation.0,
            session: self.session().0,
            op: Some(op),
        };
        let mut retry = Retry::new();
        loop {
            let to = self.address();
            let outcome = match to {
                Some(to) => self
                    .transport
                    .unary::<_, ReadResponse>(to, method::META_READ, &request, retry.attempt_timeout())
                    .await
                    .map_err(|e| e.to_string()),
                None => Err("no metanode's address is known".to_owned()),
            };
            match outcome {
                Ok(response) => match judge(response.code(), &response.leader) {
                    Verdict::Done => {
                        return match response.code() {
                            Code::Ok => Ok(response),
                            Code::SessionExpired => Err(Error::SessionLost),
                            code => Err(Error::Refused { code, detail: response.detail }),
                        };
                    }
                    verdict => retry.after(self, to, verdict, response.detail).await?,
                },
                Err(reason) => retry.after(self, to, Verdict::Another, reason).await?,
            }
        }
    }
}

/// A sequence number in use.
struct Ticket<'a> {
    owner: &'a Mutex<Session>,
    session: SessionId,
    sequence: u64,
}

impl<'a> Ticket<'a> {
    fn take(owner: &'a Mutex<Session>) -> Self {
        let mut session = owner.lock();
        let sequence = session.next_sequence;
        session.next_sequence += 1;
        session.outstanding.insert(sequence);
        Self { owner, session: session.id, sequence }
    }

    /// Below this every sequence is answered. This one is outstanding itself, so it is never above it.
    fn acknowledged_below(&self) -> u64 {
        let session = self.owner.lock();
        if session.id == self.session { session.outstanding.first().copied().unwrap_or(self.sequence) } else { 0 }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut session = self.owner.lock();
        if session.id == self.session {
            session.outstanding.remove(&self.sequence);
        }
    }
}

/// The pauses and the end of one request's retries.
struct Retry {
    deadline: Instant,
    pause: Duration,
}

impl Retry {
    fn new() -> Self {
        Self { deadline: Instant::now() + Duration::from_millis(REQUEST_DEADLINE_MS.into()), pause: RETRY_PAUSE }
    }

    fn attempt_timeout(&self) -> Duration {
        ATTEMPT_TIMEOUT.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    async fn after(
        &mut self,
        metadata: &Metadata,
        asked: Option<SocketAddr>,
        verdict: Verdict,
        reason: String,
    ) -> Result<(), Error> {
        if Instant::now() + self.pause >= self.deadline {
            return Err(Error::TimedOut(reason));
        }
        tracing::debug!(?asked, reason, "metadata request is tried again");
        match verdict {
            Verdict::Done => return Ok(()),
            Verdict::Follow(leader) if Some(leader) != asked => {
                metadata.follow(leader);
                // Two replicas that name each other during an election must not make a busy loop.
                sleep(Duration::from_millis(1)).await;
                return Ok(());
            }
            Verdict::Again => {}
            Verdict::Follow(_) | Verdict::Another => {
                metadata.turn_from(asked);
                // Boxed, so that every request is not as large as this one call of another protocol.
                let refreshed = Box::pin(metadata.map.refresh_from_volmgr());
                let _ = timeout_at(self.deadline, refreshed).await;
            }
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_acknowledged_only_below_the_oldest_outstanding_one() {
        let session = Mutex::new(Session { id: SessionId(1), next_sequence: 1, outstanding: BTreeSet::new() });
        let first = Ticket::take(&session);
        let second = Ticket::take(&session);
        assert_eq!((first.sequence, second.sequence), (1, 2));
        assert_eq!(second.acknowledged_below(), 1);
        drop(first);
        assert_eq!(second.acknowledged_below(), 2);
    }

    #[test]
    fn a_ticket_of_a_former_session_does_not_touch_the_new_one() {
        let session = Mutex::new(Session { id: SessionId(1), next_sequence: 1, outstanding: BTreeSet::new() });
        let old = Ticket::take(&session);
        *session.lock() = Session { id: SessionId(2), next_sequence: 1, outstanding: BTreeSet::new() };
        let new = Ticket::take(&session);
        drop(old);
        assert_eq!(session.lock().outstanding.first(), Some(&new.sequence));
    }
}
