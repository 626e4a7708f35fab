//! Accepting end: connections, their requests, limits, shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::begin::begin_within;
use crate::connection::{self, Agreed, Ended, Incoming, Life};
use crate::error::Refusal;
use crate::frame::{Frame, FrameError, Head, Kind};
use crate::handshake::Identity;
use crate::limits::ServerLimits;
use crate::outbox::{Outbox, Outgoing, PushError, QueueMax};
use crate::service::{Call, Reply, Service};

/// Deadline of a request that names none.
const DEADLINE_DEFAULT: Duration = Duration::from_millis(holdfast_common::limits::REQUEST_DEADLINE_MS as u64);
/// A request that is alone on its connection and carries no more than this is begun by the task that reads the connection: most
/// need not wait, and need no task then. Verifying a longer body would hold up the requests behind it.
const BEGUN_HERE_BYTES_MAX: usize = 64 << 10;
/// Pause after a failed accept: it fails for want of file descriptors, and at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening server. Dropping it stops it without waiting for running requests.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    accepting: JoinHandle<()>,
    load: Arc<Load>,
    drain_timeout: Duration,
}

impl Server {
    /// Binds and serves from now on.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind<S: Service>(
        addr: SocketAddr,
        identity: Identity,
        service: Arc<S>,
        limits: ServerLimits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        let load = Arc::new(Load::default());
        let shared =
            Arc::new(Shared { identity, service, limits, load: Arc::clone(&load), runtime: Handle::current() });
        let accepting = tokio::spawn(accept(listener, shared));
        Ok(Self { local_addr, accepting, load, drain_timeout: limits.drain_timeout })
    }

    /// Address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, closes all connections, and waits a while for requests that run.
    pub async fn shutdown(mut self) {
        self.accepting.abort();
        // The task owns the listener and the connections, so all are closed once it has ended.
        let _ = (&mut self.accepting).await;
        if tokio::time::timeout(self.drain_timeout, self.load.idle()).await.is_err() {
            tracing::warn!(address = %self.local_addr, "requests still run after the server was stopped");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Requests of all connections together.
#[derive(Debug, Default)]
struct Load {
    requests: AtomicUsize,
    body_bytes: AtomicUsize,
    ended: Notify,
}

impl Load {
    async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.requests.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }
}

struct Shared<S> {
    identity: Identity,
    service: Arc<S>,
    limits: ServerLimits,
    load: Arc<Load>,
    runtime: Handle,
}

async fn accept<S: Service>(listener: TcpListener, shared: Arc<Shared<S>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let full = connections.len() >= shared.limits.connections_max;
                    if connections.len() >= shared.limits.connections_max.saturating_mul(2) {
                        // Even saying no costs memory until the other side has heard it.
                        tracing::warn!(%peer, "dropped a connection of far too many");
                        continue;
                    }
                    connections.spawn(serve(stream, peer, Arc::clone(&shared), full));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve<S: Service>(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared<S>>, full: bool) {
    let welcomed =
        tokio::time::timeout(shared.limits.handshake_timeout, connection::welcome(stream, shared.identity, full)).await;
    let agreed = match welcomed {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(Ended::Closed)) => return,
        Ok(Err(why)) => return tracing::warn!(%peer, %why, "refused a connection"),
        Err(_) => return tracing::warn!(%peer, "no hello in time"),
    };
    let Agreed { incoming, writer } = agreed;
    let link = Arc::new(Link { outbox: Outbox::new(writer), requests: AtomicUsize::new(0), life: Life::default() });
    let mut tasks = JoinSet::new();
    let for_writer = Arc::clone(&link);
    tasks.spawn(async move {
        match for_writer.outbox.write().await {
            Ok(()) => Ended::Closed,
            Err(error) => error.into(),
        }
    });
    let (for_watch, limits) = (Arc::clone(&link), shared.limits);
    tasks.spawn(async move {
        connection::watch(&for_watch.life, &for_watch.outbox, limits.ping_interval, limits.send_queue_max).await
    });
    let _closing = CloseOnDrop(Arc::clone(&link));
    let why = tokio::select! {
        why = read(incoming, &shared, &link) => why,
        Some(Ok(why)) = tasks.join_next() => why,
    };
    match why {
        Ended::Closed => {}
        why => tracing::debug!(%peer, %why, "connection ended"),
    }
}

/// Outgoing side and count of requests of one connection.
struct Link {
    outbox: Outbox<Ticket>,
    requests: AtomicUsize,
    life: Life,
}

/// Guard of a connection: answers of requests that still run are dropped, whichever way its task ends.
struct CloseOnDrop(Arc<Link>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.outbox.close();
    }
}

async fn read<S: Service>(
    mut incoming: Incoming<tokio::net::tcp::OwnedReadHalf>,
    shared: &Arc<Shared<S>>,
    link: &Arc<Link>,
) -> Ended {
    loop {
        let frame = match incoming.next().await {
            Ok(frame) => frame,
            Err(why) => return why,
        };
        link.life.sign();
        let pushed = match frame.head.kind {
            Kind::Request => start(frame, shared, link),
            Kind::OneWay => {
                shared.service.one_way(frame.head.method, frame.header, frame.body);
                Ok(())
            }
            Kind::Ping => link.outbox.push(
                Outgoing::bare(Kind::Pong, 0, 0),
                QueueMax::frames(shared.limits.send_queue_max),
                false,
            ),
            Kind::Pong => Ok(()),
            unexpected @ (Kind::Hello | Kind::Response | Kind::Refusal | Kind::Push) => {
                return FrameError::Unexpected(unexpected).into();
            }
        };
        match pushed {
            Ok(()) => {}
            Err(PushError::Full) => return Ended::NotReading,
            Err(PushError::Closed) => return Ended::Closed,
        }
    }
}

/// Begins a request, or refuses it if a limit is reached.
fn start<S: Service>(frame: Frame, shared: &Arc<Shared<S>>, link: &Arc<Link>) -> Result<(), PushError> {
    let Frame { head, header, body } = frame;
    let timeout = match head.deadline_ms {
        0 => DEADLINE_DEFAULT,
        ms => Duration::from_millis(ms.into()),
    };
    let Some(ticket) = Ticket::take(shared, link, body.len()) else {
        return link.outbox.push(
            refusal(&head, Refusal::Overloaded),
            QueueMax::frames(shared.limits.send_queue_max),
            false,
        );
    };
    let call = Call { method: head.method, header, body, deadline: Instant::now() + timeout };
    let answering = Answering { link: Arc::clone(link), head, ticket: Some(ticket) };
    let service = Arc::clone(&shared.service);
    let here = call.body.len() <= BEGUN_HERE_BYTES_MAX && answering.is_alone();
    let work = async move {
        let deadline = call.deadline;
        let result = match Instant::now() < deadline {
            true => service.call(call).await,
            false => Err(Refusal::Deadline),
        };
        answering.answer(result, deadline);
    };
    if here {
        begin_within(&shared.runtime, "a request", work);
    } else {
        shared.runtime.spawn(work);
    }
    Ok(())
}

fn refusal(head: &Head, why: Refusal) -> Outgoing<Ticket> {
    Outgoing::bare(Kind::Refusal, why.code(), head.stream)
}

/// Duty to answer a request. Dropped without an answer (the service panicked), it says so to the caller.
struct Answering {
    link: Arc<Link>,
    head: Head,
    ticket: Option<Ticket>,
}

impl Answering {
    fn answer(mut self, result: Result<Reply, Refusal>, deadline: Instant) {
        let Some(ticket) = self.ticket.take() else { return };
        let frame = match result {
            Ok(_) if Instant::now() >= deadline => refusal(&self.head, Refusal::Deadline),
            Ok(reply) => self.response(reply),
            Err(why) => {
                if let Refusal::Malformed(_) | Refusal::Internal = why {
                    tracing::warn!(method = self.head.method, %why, "request refused");
                }
                refusal(&self.head, why)
            }
        };
        self.send(frame, ticket);
    }

    fn response(&self, Reply { frame, body }: Reply) -> Outgoing<Ticket> {
        let head = Head { kind: Kind::Response, header_bytes: 0, body_bytes: 0, deadline_ms: 0, ..self.head };
        Outgoing::framed(head, frame, body).unwrap_or_else(|error| {
            tracing::error!(method = self.head.method, %error, "an answer does not fit a frame");
            refusal(&self.head, Refusal::Internal)
        })
    }

    fn send(&self, frame: Outgoing<Ticket>, ticket: Ticket) {
        // Answers are bounded by the tickets, so no other limit applies. A closed connection has nobody to tell.
        let alone = self.is_alone();
        let _ = self.link.outbox.push(frame.with_ticket(ticket), QueueMax::NONE, alone);
    }

    /// Whether the connection has no other request.
    fn is_alone(&self) -> bool {
        self.link.requests.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.send(refusal(&self.head, Refusal::Internal), ticket);
        }
    }
}

/// Place among the requests in flight, from arrival until the answer was written.
struct Ticket {
    load: Arc<Load>,
    link: Arc<Link>,
    body_bytes: usize,
}

impl Ticket {
    fn take<S>(shared: &Shared<S>, link: &Arc<Link>, body_bytes: usize) -> Option<Self> {
        let load = &shared.load;
        // Counted first and judged after: the ticket gives back what it counted if it is refused.
        let of_link = link.requests.fetch_add(1, Ordering::Relaxed);
        let of_all = load.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = load.body_bytes.fetch_add(body_bytes, Ordering::Relaxed);
        let ticket = Self { load: Arc::clone(load), link: Arc::clone(link), body_bytes };
        let limits = &shared.limits;
        let granted = of_link < limits.in_flight_per_connection_max
            && of_all < limits.in_flight_max
            && bytes.saturating_add(body_bytes) <= limits.request_bytes_max;
        granted.then_some(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.link.requests.fetch_sub(1, Ordering::Relaxed);
        self.load.body_bytes.fetch_sub(self.body_bytes, Ordering::Relaxed);
        if self.load.requests.fetch_sub(1, Ordering::Release) == 1 {
            self.load.ended.notify_waiters();
        }
    }
}
