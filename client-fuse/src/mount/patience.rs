//! Waiting for the kernel with a limit: what touches a mounted file system may never come back.

use std::sync::mpsc;
use std::time::Duration;

/// Runs `work` on a thread of its own and waits so long for it. None: it has not come back; the thread is left to its fate.
///
/// A new thread is in the mount namespace of the one that starts it.
pub(super) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("holdfast-probe".into());
    thread
        .spawn(move || {
            // Nobody listens any more if the limit has passed.
            let _ = sender.send(work());
        })
        .ok()?;
    receiver.recv_timeout(limit).ok()
}

/// As [`within`], for an async task: blocks no thread of its runtime.
pub(super) async fn within_async<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("holdfast-unmount".into());
    thread
        .spawn(move || {
            // Nobody listens any more if the limit has passed.
            let _ = sender.send(work());
        })
        .ok()?;
    tokio::time::timeout(limit, receiver).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_in_time_is_returned_and_what_hangs_is_left() {
        assert_eq!(within(Duration::from_secs(10), || 7), Some(7));
        let (_keep, forever) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || forever.recv().is_ok()), None);
    }
}
