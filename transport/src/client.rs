//! Calling end: one address in, an answer out. Connections come and go behind it.

mod lane;
mod link;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use crate::error::RpcError;
use crate::frame::{Head, Kind};
use crate::handshake::Identity;
use crate::limits::{CALL_TIMEOUT_MAX, ClientLimits, PEERS_MAX};
use crate::outbox::{Framed, Outgoing};
use lane::Lane;
use link::Link;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The encoded response message.
    pub header: Bytes,
    /// The raw body.
    pub body: Bytes,
}

impl Answer {
    /// Decodes the response message, and takes it away.
    ///
    /// # Errors
    /// [`RpcError::Malformed`].
    pub fn message<M: Message + Default>(&mut self) -> Result<M, RpcError> {
        M::decode(std::mem::take(&mut self.header))
            .map_err(|_| RpcError::Malformed("the response message does not decode"))
    }
}

/// Caller of peers by address. Clones share their connections; the last one dropped closes them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    limits: ClientLimits,
    runtime: Handle,
    peers: Mutex<BTreeMap<SocketAddr, Arc<[Lane]>>>,
}

impl Client {
    /// A client without connections; they are made when first needed.
    ///
    /// # Panics
    /// Outside a tokio runtime: connections run on the one this is called in.
    #[must_use]
    pub fn new(identity: Identity, limits: ClientLimits) -> Self {
        let runtime = Handle::current();
        Self { inner: Arc::new(Inner { identity, limits, runtime, peers: Mutex::default() }) }
    }

    /// Calls `method` at `to` and waits for the answer. Dropping the future forgets the call.
    ///
    /// # Errors
    /// See [`RpcError`]; [`RpcError::certainly_not_executed`] tells which leave no doubt.
    pub async fn call(
        &self,
        to: SocketAddr,
        method: u16,
        header: &impl Message,
        body: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<Answer, RpcError> {
        let deadline = Instant::now() + timeout.min(CALL_TIMEOUT_MAX);
        let limits = &self.inner.limits;
        let bulk = body.iter().map(Bytes::len).sum::<usize>() >= limits.bulk_bytes;
        let link = self.link(to, bulk, deadline).await?;
        let _place = match link.places.try_acquire() {
            Ok(place) => place,
            Err(_) => match timeout_at(deadline, link.places.acquire()).await {
                Ok(Ok(place)) => place,
                Ok(Err(_)) => return Err(RpcError::Disconnected),
                Err(_) => return Err(RpcError::QueueFull),
            },
        };
        let stream = link.next_stream();
        let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis();
        let head = Head {
            kind: Kind::Request,
            method,
            stream,
            header_bytes: 0,
            body_bytes: 0,
            deadline_ms: u32::try_from(left_ms).unwrap_or(u32::MAX).max(1),
        };
        let frame = Outgoing::framed(head, Framed::message(header), body)?;
        let mut pending = link.send(stream, frame, deadline)?;
        pending.answer().await
    }

    /// A call without bodies.
    ///
    /// # Errors
    /// As [`Client::call`], and [`RpcError::Malformed`] if the answer does not decode.
    pub async fn unary<Req: Message, Res: Message + Default>(
        &self,
        to: SocketAddr,
        method: u16,
        request: &Req,
        timeout: Duration,
    ) -> Result<Res, RpcError> {
        self.call(to, method, request, Vec::new(), timeout).await?.message()
    }

    /// Sends a frame that wants no answer, in order with others to the same peer. Never blocks and may be called from
    /// any thread; drops the frame if there is no connection yet (and has one made) or too many
    /// frames or bytes wait.
    pub fn send_one_way(&self, to: SocketAddr, method: u16, header: Bytes, body: Vec<Bytes>) {
        let lanes = self.lanes(to);
        let Some(link) = lanes[0].ready_link(&self.inner.runtime) else { return };
        let head = Head { kind: Kind::OneWay, method, stream: 0, header_bytes: 0, body_bytes: 0, deadline_ms: 0 };
        match Outgoing::encoded(head, header, body) {
            Ok(frame) => link.send_one_way(frame, &self.inner.limits),
            Err(error) => tracing::error!(%to, method, %error, "one-way frame dropped"),
        }
    }

    /// A living connection to the peer, made now if there is none.
    async fn link(&self, to: SocketAddr, bulk: bool, deadline: Instant) -> Result<Arc<Link>, RpcError> {
        let lanes = self.lanes(to);
        let lane = match bulk {
            true => &lanes[lanes.len() - 1],
            false => &lanes[0],
        };
        if let Some(link) = lane.ready_link(&self.inner.runtime) {
            return Ok(link);
        }
        match timeout_at(deadline, lane.link(&self.inner.runtime)).await {
            Ok(result) => result,
            Err(_) => Err(RpcError::Connect {
                to,
                kind: std::io::ErrorKind::TimedOut,
                detail: "no connection within the deadline".to_owned(),
            }),
        }
    }

    fn lanes(&self, to: SocketAddr) -> Arc<[Lane]> {
        let mut peers = self.inner.peers.lock();
        if peers.len() >= PEERS_MAX && !peers.contains_key(&to) {
            peers.retain(|_, lanes| lanes.iter().any(Lane::is_up));
        }
        let lanes = peers.entry(to).or_insert_with(|| {
            let count = self.inner.limits.connections_per_peer.max(1);
            (0..count).map(|_| Lane::new(to, self.inner.identity, self.inner.limits)).collect()
        });
        Arc::clone(lanes)
    }
}
