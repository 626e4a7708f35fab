//! A living connection of a client and the calls that wait on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_common::Ascending;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::Answer;
use crate::connection::{self, Agreed, Ended, Incoming, Life};
use crate::error::{Refusal, RpcError};
use crate::frame::{Frame, FrameError, Kind};
use crate::limits::ClientLimits;
use crate::outbox::{Outbox, Outgoing, PushError, QueueMax};

/// Nothing rides on a client's frames.
pub(super) type NoTicket = ();

/// The handle that callers hold; when the last is gone, the connection closes.
pub(super) struct Link {
    pub(super) places: Semaphore,
    to: SocketAddr,
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    outbox: Outbox<NoTicket>,
    calls: Mutex<Calls>,
    open: AtomicBool,
    next_stream: AtomicU64,
    life: Life,
}

#[derive(Default)]
struct Calls {
    waiting: Ascending<u64, oneshot::Sender<Result<Answer, RpcError>>>,
    /// Set once, when the connection ended. No call may wait from then on, for nobody would answer it.
    ended: Option<RpcError>,
}

impl Link {
    /// Runs an agreed connection on the current runtime.
    pub(super) fn start(agreed: Agreed, to: SocketAddr, limits: &ClientLimits) -> Arc<Self> {
        let Agreed { incoming, writer } = agreed;
        let shared = Arc::new(Shared {
            outbox: Outbox::new(writer),
            calls: Mutex::default(),
            open: AtomicBool::new(true),
            next_stream: AtomicU64::new(1),
            life: Life::default(),
        });
        let (for_reader, for_writer, limits) = (Arc::clone(&shared), Arc::clone(&shared), *limits);
        let reading = tokio::spawn(async move {
            let _ending = EndOnDrop(Arc::clone(&for_reader));
            let shared = &for_reader;
            let why = tokio::select! {
                why = shared.read(incoming, &limits) => why,
                why = connection::watch(&shared.life, &shared.outbox, limits.ping_interval, limits.one_way_queue_max) => why,
            };
            tracing::debug!(%to, %why, "connection ended");
            shared.end(match why {
                Ended::Frame(error) => error.into(),
                Ended::Io(_) | Ended::Handshake(_) | Ended::Closed | Ended::Silent | Ended::NotReading => {
                    RpcError::Disconnected
                }
            });
        });
        let writing = tokio::spawn(async move {
            let _ending = EndOnDrop(Arc::clone(&for_writer));
            // An error here is one of the connection, and ends it as any other.
            let _ = for_writer.outbox.write().await;
        });
        let tasks = [reading.abort_handle(), writing.abort_handle()];
        Arc::new(Self { places: Semaphore::new(limits.in_flight_max), to, shared, tasks })
    }

    pub(super) fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Acquire)
    }

    pub(super) fn next_stream(&self) -> u64 {
        self.shared.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request; its answer comes through what is returned.
    pub(super) fn send(&self, stream: u64, frame: Outgoing<NoTicket>) -> Result<Pending, RpcError> {
        let (sender, answer) = oneshot::channel();
        let alone = {
            let mut calls = self.shared.calls.lock();
            if calls.ended.is_some() {
                return Err(self.not_sent());
            }
            calls.waiting.insert(stream, sender);
            calls.waiting.len() == 1
        };
        let pending = Pending { shared: Arc::clone(&self.shared), stream, answer, waits: true };
        // Requests are bounded by the places, so no other limit applies.
        match self.shared.outbox.push(frame, QueueMax::NONE, alone) {
            Ok(()) => Ok(pending),
            Err(PushError::Closed | PushError::Full) => Err(self.not_sent()),
        }
    }

    fn not_sent(&self) -> RpcError {
        let detail = "the connection broke before the request was sent".to_owned();
        RpcError::Connect { to: self.to, kind: io::ErrorKind::ConnectionReset, detail }
    }

    pub(super) fn send_one_way(&self, frame: Outgoing<NoTicket>, limits: &ClientLimits) {
        let max = QueueMax::frames_and_bytes(limits.one_way_queue_max, limits.one_way_bytes_max);
        // Lossy by contract.
        let _ = self.shared.outbox.push(frame, max, true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Ends the connection whichever way a task of it ends, abort and panic included.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(RpcError::Disconnected);
    }
}

impl Shared {
    async fn read(&self, mut incoming: Incoming<tokio::net::tcp::OwnedReadHalf>, limits: &ClientLimits) -> Ended {
        loop {
            let Frame { head, header, body } = match incoming.next().await {
                Ok(frame) => frame,
                Err(why) => return why,
            };
            self.life.sign();
            match head.kind {
                Kind::Response => self.complete(head.stream, Ok(Answer { header, body })),
                Kind::Refusal => self.complete(head.stream, Err(Refusal::from_code(head.method).into())),
                Kind::Ping => {
                    let max = QueueMax::frames(limits.one_way_queue_max);
                    if self.outbox.push(Outgoing::bare(Kind::Pong, 0, 0), max, false) == Err(PushError::Closed) {
                        return Ended::Closed;
                    }
                }
                // Pushes have no receiver before leases do; a server sends none without an agreed feature.
                Kind::Pong | Kind::Push => {}
                unexpected @ (Kind::Hello | Kind::Request | Kind::OneWay) => {
                    return FrameError::Unexpected(unexpected).into();
                }
            }
        }
    }

    /// An answer whose call was forgotten is dropped.
    fn complete(&self, stream: u64, result: Result<Answer, RpcError>) {
        let waiting = self.calls.lock().waiting.remove(&stream);
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }

    /// Fails all calls that wait, and all that come. The first reason stays.
    fn end(&self, error: RpcError) {
        self.open.store(false, Ordering::Release);
        let waiting = {
            let mut calls = self.calls.lock();
            calls.ended.get_or_insert_with(|| error.clone());
            std::mem::take(&mut calls.waiting)
        };
        for (_, sender) in waiting {
            let _ = sender.send(Err(error.clone()));
        }
        self.outbox.close();
    }
}

/// A call that waits. Dropped, it is forgotten.
pub(super) struct Pending {
    shared: Arc<Shared>,
    stream: u64,
    answer: oneshot::Receiver<Result<Answer, RpcError>>,
    /// It is among the calls that wait, or was until the connection ended.
    waits: bool,
}

impl Pending {
    pub(super) async fn answer(&mut self) -> Result<Answer, RpcError> {
        let answer = (&mut self.answer).await.unwrap_or(Err(RpcError::Disconnected));
        self.waits = false;
        answer
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.waits {
            self.shared.calls.lock().waiting.remove(&self.stream);
        }
    }
}
