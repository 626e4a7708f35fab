//! Connection to a peer over time: down, being made (by one attempt that all callers share), up, and down again.

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_common::Pauses;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::link::Link;
use crate::connection::{self, Ended};
use crate::error::RpcError;
use crate::handshake::Identity;
use crate::limits::ClientLimits;

type Outcome = Option<Result<Arc<Link>, RpcError>>;

pub(super) struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    identity: Identity,
    limits: ClientLimits,
    state: Mutex<State>,
}

enum State {
    Down,
    /// The last attempt failed; until `retry_at` callers get its error.
    Resting {
        error: RpcError,
        retry_at: Instant,
        pauses: Pauses,
    },
    Connecting(watch::Receiver<Outcome>),
    Up(Arc<Link>),
}

impl Lane {
    pub(super) fn new(to: SocketAddr, identity: Identity, limits: ClientLimits) -> Self {
        Self { shared: Arc::new(Shared { to, identity, limits, state: Mutex::new(State::Down) }) }
    }

    /// A living connection; waits for the attempt that is under way or starts one.
    pub(super) async fn link(&self, runtime: &Handle) -> Result<Arc<Link>, RpcError> {
        let mut outcome = match self.shared.current(runtime) {
            Current::Link(link) => return Ok(link),
            Current::Resting(error) => return Err(error),
            Current::Connecting(outcome) => outcome,
        };
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        // Without a result the attempt's task ended with its runtime.
        result.unwrap_or_else(|| Err(self.shared.error(std::io::ErrorKind::Interrupted, "the runtime shuts down")))
    }

    /// Whether there is a connection or one is being made.
    pub(super) fn is_up(&self) -> bool {
        match &*self.shared.state.lock() {
            State::Up(link) => link.is_open(),
            State::Connecting(_) => true,
            State::Down | State::Resting { .. } => false,
        }
    }

    /// The connection if there is one now; otherwise has one made and answers `None`.
    pub(super) fn ready_link(&self, runtime: &Handle) -> Option<Arc<Link>> {
        match self.shared.current(runtime) {
            Current::Link(link) => Some(link),
            Current::Resting(_) | Current::Connecting(_) => None,
        }
    }
}

enum Current {
    Link(Arc<Link>),
    Resting(RpcError),
    Connecting(watch::Receiver<Outcome>),
}

impl Shared {
    fn current(self: &Arc<Self>, runtime: &Handle) -> Current {
        let mut state = self.state.lock();
        let pauses = match &*state {
            State::Up(link) if link.is_open() => return Current::Link(Arc::clone(link)),
            State::Connecting(outcome) if outcome.has_changed().is_ok() => {
                return Current::Connecting(outcome.clone());
            }
            State::Resting { error, retry_at, .. } if Instant::now() < *retry_at => {
                return Current::Resting(error.clone());
            }
            State::Resting { pauses, .. } => *pauses,
            State::Up(_) | State::Down | State::Connecting(_) => {
                Pauses::new(self.limits.backoff_min, self.limits.backoff_max)
            }
        };
        let (sender, outcome) = watch::channel(None);
        *state = State::Connecting(outcome.clone());
        drop(state);
        runtime.spawn(Arc::clone(self).connect(sender, pauses));
        Current::Connecting(outcome)
    }

    async fn connect(self: Arc<Self>, outcome: watch::Sender<Outcome>, mut pauses: Pauses) {
        let attempt = async {
            let stream = TcpStream::connect(self.to).await?;
            connection::greet(stream, self.identity).await
        };
        let result = match tokio::time::timeout(self.limits.connect_timeout, attempt).await {
            Ok(Ok(agreed)) => Ok(Link::start(agreed, self.to, &self.limits)),
            Ok(Err(Ended::Handshake(reason))) => Err(RpcError::Handshake { to: self.to, reason }),
            Ok(Err(Ended::Frame(error))) => Err(self.error(std::io::ErrorKind::InvalidData, &error.to_string())),
            Ok(Err(Ended::Io(error))) => Err(self.error(error.kind(), &error.to_string())),
            Ok(Err(other @ (Ended::Closed | Ended::Silent | Ended::NotReading))) => {
                Err(self.error(std::io::ErrorKind::ConnectionAborted, &other.to_string()))
            }
            Err(_) => Err(self.error(std::io::ErrorKind::TimedOut, "no answer in time")),
        };
        *self.state.lock() = match &result {
            Ok(link) => State::Up(Arc::clone(link)),
            Err(error) => {
                let retry_at = Instant::now() + pauses.next_pause();
                State::Resting { error: error.clone(), retry_at, pauses }
            }
        };
        outcome.send_replace(Some(result));
    }

    fn error(&self, kind: std::io::ErrorKind, detail: &str) -> RpcError {
        RpcError::Connect { to: self.to, kind, detail: detail.to_owned() }
    }
}
