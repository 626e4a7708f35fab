//! The seam between the client and what it runs in: who carries its tasks, and what time it is. It exists so that a simulation
//! can drive whole clients in one thread, under clocks of its own.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A task that the runtime carries on until it ends.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Carries tasks and tells the time.
pub trait Runtime: Send + Sync + 'static {
    /// Time since a fixed moment of this process. Never goes back.
    fn now(&self) -> Duration;

    /// Nanoseconds since the epoch, by a clock that may be set.
    fn wall_ns(&self) -> i64;

    /// Carries a work beside its caller, until it ends or the process does.
    fn spawn(&self, work: Work);

    /// Ends after `duration`, or somewhat later.
    fn sleep(&self, duration: Duration) -> Work;
}

pub(crate) struct TokioRuntime {
    handle: Handle,
    started: Instant,
}

impl TokioRuntime {
    /// The runtime that this is called in; panics outside of one.
    pub(crate) fn current() -> Self {
        Self { handle: Handle::current(), started: Instant::now() }
    }
}

impl Runtime for TokioRuntime {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn wall_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn spawn(&self, work: Work) {
        self.handle.spawn(work);
    }

    fn sleep(&self, duration: Duration) -> Work {
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Waits for `work` as long as `duration`; `None` if it did not end by then. It is dropped in any case.
pub async fn within<T>(runtime: &dyn Runtime, duration: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut sleep = runtime.sleep(duration);
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        if let std::task::Poll::Ready(output) = work.as_mut().poll(context) {
            return std::task::Poll::Ready(Some(output));
        }
        sleep.as_mut().poll(context).map(|()| None)
    })
    .await
}
