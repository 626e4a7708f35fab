//! A living connection of a client and the calls that wait on it.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_common::Ascending;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::Answer;
use crate::connection::{self, Agreed, Ended, Incoming, Life};
use crate::error::{Refusal, RpcError};
use crate::frame::{Frame, FrameError, Kind};
use crate::limits::ClientLimits;
use crate::outbox::{Outbox, Outgoing, PushError, QueueMax};

/// Ticket of a client's frames, on which nothing rides.
pub(super) type NoTicket = ();

/// Handle that callers hold; when the last is gone, the connection closes.
pub(super) struct Link {
    pub(super) places: Semaphore,
    to: SocketAddr,
    shared: Arc<Shared>,
    tasks: [AbortHandle; 3],
}

struct Shared {
    outbox: Outbox<NoTicket>,
    calls: Mutex<Calls>,
    /// A call ends sooner than the next look at the deadlines.
    sooner: Notify,
    open: AtomicBool,
    next_stream: AtomicU64,
    life: Life,
}

#[derive(Default)]
struct Calls {
    waiting: Ascending<u64, Waiting>,
    /// Time at which the deadlines are looked at next; `None` while nothing waits.
    look_at: Option<Instant>,
    /// Set once, when the connection ended. No call may wait from then on, for nobody would answer it.
    ended: Option<RpcError>,
}

type Sender = oneshot::Sender<Result<Answer, RpcError>>;

struct Waiting {
    sender: Sender,
    deadline: Instant,
}

impl Calls {
    /// Puts a call among those that wait. True if its deadline is before the next look.
    fn wait(&mut self, stream: u64, waiting: Waiting) -> bool {
        let deadline = waiting.deadline;
        self.waiting.insert(stream, waiting);
        let sooner = self.look_at.is_none_or(|at| deadline < at);
        if sooner {
            self.look_at = Some(deadline);
        }
        sooner
    }

    /// Takes out the calls whose deadline has passed, and sets the next look.
    fn take_late(&mut self, now: Instant) -> Vec<Sender> {
        let late: Vec<u64> = self.waiting.iter().filter(|(_, call)| call.deadline <= now).map(|(id, _)| *id).collect();
        let senders = late.iter().filter_map(|stream| self.waiting.remove(stream)).map(|call| call.sender).collect();
        self.look_at = self.waiting.iter().map(|(_, call)| call.deadline).min();
        senders
    }
}

impl Link {
    /// Runs an agreed connection on the current runtime.
    pub(super) fn start(agreed: Agreed, to: SocketAddr, limits: &ClientLimits) -> Arc<Self> {
        let Agreed { incoming, writer } = agreed;
        let shared = Arc::new(Shared {
            outbox: Outbox::new(writer),
            calls: Mutex::default(),
            sooner: Notify::new(),
            open: AtomicBool::new(true),
            next_stream: AtomicU64::new(1),
            life: Life::default(),
        });
        let limits = *limits;
        let tasks = [
            Shared::run(&shared, to, async move |shared| shared.read(incoming, &limits).await),
            Shared::run(&shared, to, async |shared| {
                shared.outbox.write().await.map_or_else(Ended::from, |()| Ended::Closed)
            }),
            // Not beside the reading: it would be polled with every frame.
            Shared::run(&shared, to, async move |shared| {
                tokio::select! {
                    never = shared.expire() => match never {},
                    why = connection::watch(&shared.life, &shared.outbox, limits.ping_interval, limits.one_way_queue_max) => why,
                }
            }),
        ];
        Arc::new(Self { places: Semaphore::new(limits.in_flight_max), to, shared, tasks })
    }

    pub(super) fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Acquire)
    }

    pub(super) fn next_stream(&self) -> u64 {
        self.shared.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request; its answer comes through what is returned, or that there was none until `deadline`.
    pub(super) fn send(&self, stream: u64, frame: Outgoing<NoTicket>, deadline: Instant) -> Result<Pending, RpcError> {
        let (sender, answer) = oneshot::channel();
        let (sooner, alone) = {
            let mut calls = self.shared.calls.lock();
            if calls.ended.is_some() {
                return Err(self.not_sent());
            }
            (calls.wait(stream, Waiting { sender, deadline }), calls.waiting.len() == 1)
        };
        if sooner {
            self.shared.sooner.notify_one();
        }
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

/// Guard of a task: the connection ends whichever way it ends, abort and panic included.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(RpcError::Disconnected);
    }
}

impl Shared {
    /// Runs a part of the connection, which ends as a whole with any of them.
    fn run<F>(shared: &Arc<Self>, to: SocketAddr, part: impl FnOnce(Arc<Self>) -> F) -> AbortHandle
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let ending = EndOnDrop(Arc::clone(shared));
        let part = part(Arc::clone(shared));
        let task = tokio::spawn(async move {
            let why = part.await;
            tracing::debug!(%to, %why, "connection ended");
            ending.0.end(match why {
                Ended::Frame(error) => error.into(),
                Ended::Io(_) | Ended::Handshake(_) | Ended::Closed | Ended::Silent | Ended::NotReading => {
                    RpcError::Disconnected
                }
            });
        });
        task.abort_handle()
    }

    /// Fails calls whose deadline has passed. One timer serves them all: each call's own was set and cleared for nothing.
    async fn expire(&self) -> Infallible {
        loop {
            let (late, next) = {
                let mut calls = self.calls.lock();
                (calls.take_late(Instant::now()), calls.look_at)
            };
            for sender in late {
                let _ = sender.send(Err(RpcError::Deadline));
            }
            let sooner = self.sooner.notified();
            match next {
                Some(at) => drop(timeout_at(at, sooner).await),
                None => sooner.await,
            }
        }
    }

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
            let _ = waiting.sender.send(result);
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
        for (_, call) in waiting {
            let _ = call.sender.send(Err(error.clone()));
        }
        self.outbox.close();
    }
}

/// Call that waits. Dropped, it is forgotten.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn deadlines_are_looked_at_when_the_first_of_them_has_come() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut calls = Calls::default();
        let wait = |calls: &mut Calls, stream, ms| {
            let (sender, receiver) = oneshot::channel();
            (calls.wait(stream, Waiting { sender, deadline: at(ms) }), receiver)
        };
        let (first, _first) = wait(&mut calls, 1, 100);
        let (later, _later) = wait(&mut calls, 2, 200);
        let (sooner, _sooner) = wait(&mut calls, 3, 50);
        assert_eq!((first, later, sooner, calls.look_at), (true, false, true, Some(at(50))));
        // One that was answered leaves the look where it was, and that finds nothing.
        calls.waiting.remove(&3);
        assert_eq!((calls.take_late(at(50)).len(), calls.look_at), (0, Some(at(100))));
        assert_eq!((calls.take_late(at(150)).len(), calls.look_at), (1, Some(at(200))));
        assert_eq!((calls.take_late(at(200)).len(), calls.look_at), (1, None));
        assert!(wait(&mut calls, 4, 300).0, "nothing waited, and nobody looks");
    }
}
