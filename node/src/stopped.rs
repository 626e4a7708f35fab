//! The end of a role that stops by itself.

use tokio::sync::watch;

/// Waits until a role has stopped by itself, and says why. Never ends if the role is shut down: nothing is sent any more then.
pub async fn reason_of_stop(stopped: &watch::Receiver<Option<String>>) -> String {
    let mut stopped = stopped.clone();
    match stopped.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_default(),
        Err(_) => std::future::pending().await,
    }
}
