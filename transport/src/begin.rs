//! Work that is begun where it arises and goes to the runtime only if it has to wait.
//!
//! A task given to the runtime by a thread that is not the runtime's wakes a worker, which often wakes a second one to look
//! for more. So the caller polls once itself, and what then waits stays where it is until the first wake. That one mostly
//! comes from a worker, which has the task next and wakes nobody.

use parking_lot::Mutex;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use tokio::runtime::Handle;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Polls `work` once in this thread, and leaves the rest to the runtime. Returns without waiting.
///
/// `work` must name a deadline. What waits belongs to its wakers, and those may be kept by the work itself: the deadline, or
/// the end of the runtime, wakes it at the latest. Work that nothing can wake any more is dropped. A panic of the first poll
/// is logged as one of `operation`, and drops the work.
pub fn begin(runtime: &Handle, operation: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let _entered = runtime.enter();
    begin_within(runtime, operation, work);
}

/// [`begin`], for a thread that runs a task of `runtime`.
pub(crate) fn begin_within(runtime: &Handle, operation: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let mut work: Work = Box::pin(work);
    let begun = Arc::new(Begun { runtime: runtime.clone(), state: Mutex::new(State::Polled) });
    let waker = Arc::clone(&begun).into();
    let first = || work.as_mut().poll(&mut Context::from_waker(&waker));
    match catch_unwind(AssertUnwindSafe(first)) {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => begun.wait(work),
        // The rest of the work is dropped, not polled: the panic must not end the caller's thread.
        Err(_) => tracing::error!(operation, "an operation panicked"),
    }
}

struct Begun {
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    /// The first poll runs.
    Polled,
    /// Woken before the first poll had ended.
    Woken,
    Waiting(Work),
    /// A task of the runtime.
    Gone,
}

impl Begun {
    /// After the first poll.
    fn wait(&self, work: Work) {
        let mut state = self.state.lock();
        match *state {
            State::Woken => {
                *state = State::Gone;
                drop(state);
                self.runtime.spawn(work);
            }
            State::Polled | State::Waiting(_) | State::Gone => *state = State::Waiting(work),
        }
    }
}

impl Wake for Begun {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Gone) {
            State::Polled | State::Woken => *state = State::Woken,
            State::Waiting(work) => {
                drop(state);
                self.runtime.spawn(work);
            }
            State::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use tokio::runtime::Runtime;
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_secs(10);

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    #[test]
    fn what_need_not_wait_ends_in_the_callers_thread() {
        let runtime = runtime();
        let here = std::thread::current().id();
        let (sender, ended) = mpsc::channel();
        begin(runtime.handle(), "test", async move { sender.send(std::thread::current().id()).unwrap() });
        assert_eq!(ended.try_recv(), Ok(here));
    }

    #[test]
    fn what_waits_goes_on_in_the_runtime_whoever_wakes_it() {
        let runtime = runtime();
        let here = std::thread::current().id();
        let (sender, ended) = mpsc::channel();
        let (first, second) = (oneshot::channel(), oneshot::channel());
        begin(runtime.handle(), "test", async move {
            for awaited in [first.1, second.1] {
                let () = awaited.await.unwrap();
                assert_ne!(std::thread::current().id(), here);
            }
            sender.send(()).unwrap();
        });
        first.0.send(()).unwrap();
        runtime.block_on(async { second.0.send(()).unwrap() });
        assert_eq!(ended.recv_timeout(LONG), Ok(()));
    }

    #[test]
    fn a_wake_during_the_first_poll_is_not_lost() {
        let runtime = runtime();
        let (sender, ended) = mpsc::channel();
        begin(runtime.handle(), "test", async move {
            tokio::task::yield_now().await;
            sender.send(()).unwrap();
        });
        assert_eq!(ended.recv_timeout(LONG), Ok(()));
        // From another thread while the poll still runs: the waker is sent away, and the poll waits until it was used.
        let (sender, ended) = mpsc::channel();
        let mut polls = 0;
        begin(
            runtime.handle(),
            "test",
            std::future::poll_fn(move |context| {
                polls += 1;
                if polls > 1 {
                    sender.send(()).unwrap();
                    return Poll::Ready(());
                }
                let waker = context.waker().clone();
                std::thread::spawn(move || waker.wake()).join().unwrap();
                Poll::Pending
            }),
        );
        assert_eq!(ended.recv_timeout(LONG), Ok(()));
    }

    #[test]
    fn work_that_nobody_can_wake_is_dropped() {
        struct Dropped(mpsc::Sender<()>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let runtime = runtime();
        let (sender, dropped) = mpsc::channel();
        let guard = Dropped(sender.clone());
        begin(runtime.handle(), "test", async move {
            let _guard = guard;
            std::future::pending().await
        });
        assert_eq!(dropped.try_recv(), Ok(()));
        // With a deadline it is the runtime's end that drops it.
        let guard = Dropped(sender);
        begin(runtime.handle(), "test", async move {
            let _guard = guard;
            let _ = tokio::time::timeout(LONG * 10, std::future::pending::<()>()).await;
        });
        assert!(dropped.try_recv().is_err());
        runtime.shutdown_timeout(LONG);
        assert_eq!(dropped.recv_timeout(LONG), Ok(()));
    }
}
