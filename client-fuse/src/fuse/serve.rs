//! From a callback to its answer: every request runs under a deadline of its own and is answered exactly once.
//!
//! fuser's reply types answer EIO when they are dropped unanswered. Work that panics, and a task that a stopping runtime
//! drops or never starts, thereby answers too.
//!
//! The event loop begins the work itself ([`begin`]). On two busy cores, a 4 KiB write that needs not wait took 46 to
//! 100 us by way of a task, and 11 to 22 us so. A poll never waits, so neither does the callback.

use fuser::Errno;
use holdfast_client::{Error, begin};
use holdfast_common::limits::REQUEST_DEADLINE_MS;
use std::future::Future;
use std::time::Duration;
use tokio::runtime::Handle;

/// The client ends every call within its own deadline. This one is behind it, for the case that it does not.
const SERVE_DEADLINE: Duration = Duration::from_millis(REQUEST_DEADLINE_MS as u64 + 5_000);

/// Why a request is refused: an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) Errno);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let errno = error.errno();
        if errno == libc::EIO {
            tracing::warn!(%error, "an operation fails with an I/O error");
        }
        Self(Errno::from_i32(errno))
    }
}

/// A reply that can carry an errno. Dropped unanswered, it must answer EIO by itself, as fuser's do.
pub(super) trait Answerable: Send + 'static {
    /// Answers with an error.
    fn refuse(self, errno: Errno);
}

macro_rules! answerable {
    ($($reply:ident),+) => {
        $(impl Answerable for fuser::$reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}
answerable!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Runs requests on a runtime. How many run at once is bounded by the kernel: one for each thread that waits in a system
/// call, and `max_background` without one.
#[derive(Clone, Debug)]
pub(super) struct Server {
    runtime: Handle,
    deadline: Duration,
}

impl Server {
    pub(super) fn new(runtime: Handle) -> Self {
        Self { runtime, deadline: SERVE_DEADLINE }
    }

    /// Starts `work` and returns. Its outcome goes to `reply`, by `answer` if it is good.
    pub(super) fn serve<R, T, E>(
        &self,
        operation: &'static str,
        reply: R,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: Answerable,
        T: Send + 'static,
        E: Into<Refusal> + Send + 'static,
    {
        // In a box it is moved once. A future that awaits what it captured has room for it twice, and this one is awaited
        // by three around it.
        let work = Box::pin(work);
        self.run(operation, async move {
            match work.await {
                Ok(value) => answer(reply, value),
                Err(why) => {
                    let Refusal(errno) = why.into();
                    reply.refuse(errno);
                }
            }
        });
    }

    /// Starts `work`, which owns its reply, and returns. At the deadline it is dropped, and the reply with it.
    pub(super) fn run(&self, operation: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let deadline = self.deadline;
        begin(&self.runtime, operation, async move {
            if tokio::time::timeout(deadline, work).await.is_err() {
                tracing::error!(operation, ?deadline, "the client did not end an operation within its deadline");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Behaves as fuser's replies: answers EIO when dropped unanswered.
    struct Reply(Option<Sender<i32>>);
    impl Reply {
        fn send(&mut self, code: i32) {
            if let Some(to) = self.0.take() {
                to.send(code).expect("the test listens");
            }
        }
    }
    impl Answerable for Reply {
        fn refuse(mut self, errno: Errno) {
            self.send(errno.code());
        }
    }
    impl Drop for Reply {
        fn drop(&mut self) {
            self.send(libc::EIO);
        }
    }

    const LONG: Duration = Duration::from_secs(10);

    fn answers(deadline: Duration, work: impl Future<Output = Result<(), Refusal>> + Send + 'static) -> Vec<i32> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = Server { runtime: runtime.handle().clone(), deadline };
        let (sender, receiver) = channel();
        server.serve("test", Reply(Some(sender)), work, |mut reply, ()| reply.send(0));
        let first = receiver.recv_timeout(LONG).expect("an answer");
        // The channel is closed by the reply's end, so this collects everything that is ever said.
        std::iter::once(first).chain(receiver.iter()).collect()
    }

    #[test]
    fn a_good_outcome_is_answered_once() {
        assert_eq!(answers(LONG, async { Ok(()) }), [0]);
    }

    #[test]
    fn an_error_is_answered_with_its_errno_once() {
        assert_eq!(answers(LONG, async { Err(Error::NoSpace.into()) }), [libc::ENOSPC]);
    }

    #[test]
    fn a_panic_is_answered_with_eio_once() {
        assert_eq!(answers(LONG, async { panic!("as a bug would") }), [libc::EIO]);
        let later = async {
            tokio::task::yield_now().await;
            panic!("as a bug would")
        };
        assert_eq!(answers(LONG, later), [libc::EIO]);
    }

    #[test]
    fn what_has_to_wait_is_waited_for_by_a_task() {
        let begun = std::thread::current().id();
        let work = async move {
            assert_eq!(std::thread::current().id(), begun, "the first poll is the caller's");
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_ne!(std::thread::current().id(), begun, "the caller does not wait");
            tokio::task::yield_now().await;
            Ok(())
        };
        assert_eq!(answers(LONG, work), [0]);
    }

    #[test]
    fn an_operation_without_end_is_answered_with_eio_at_the_deadline() {
        assert_eq!(answers(Duration::from_millis(20), std::future::pending()), [libc::EIO]);
    }

    #[test]
    fn a_runtime_that_stops_answers_what_it_was_given() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = Server { runtime: runtime.handle().clone(), deadline: LONG };
        let (sender, receiver) = channel();
        let endless = || std::future::pending::<Result<(), Refusal>>();
        server.serve("test", Reply(Some(sender.clone())), endless(), |mut reply: Reply, ()| reply.send(0));
        runtime.shutdown_timeout(LONG);
        assert_eq!(receiver.recv_timeout(LONG), Ok(libc::EIO));
        server.serve("test", Reply(Some(sender)), endless(), |mut reply: Reply, ()| reply.send(0));
        assert_eq!(receiver.recv_timeout(LONG), Ok(libc::EIO));
    }
}
