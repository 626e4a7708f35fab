//! Futures of one task beside each other.

use std::future::Future;
use std::task::Poll;

/// Waits for all of a few futures at once, in the caller's task. Outputs are in their order.
pub(crate) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Some(Box::pin(future)), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, output) in &mut running {
            match future.as_mut().map(|future| future.as_mut().poll(context)) {
                Some(Poll::Ready(ended)) => {
                    *output = Some(ended);
                    *future = None;
                }
                Some(Poll::Pending) => waiting = true,
                None => {}
            }
        }
        if waiting { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn of_all_outputs_are_in_the_order_of_the_futures() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        assert_eq!(runtime.block_on(all(std::iter::empty::<std::future::Ready<u8>>())), []);
        let (first, second) = (oneshot::channel(), oneshot::channel());
        let waiting = runtime.spawn(all([second.1, first.1]));
        first.0.send(1).unwrap();
        runtime.block_on(tokio::task::yield_now());
        assert!(!waiting.is_finished());
        second.0.send(2).unwrap();
        assert_eq!(runtime.block_on(waiting).unwrap(), [Ok(2), Ok(1)]);
    }
}
