//! The framed service: dispatch by method. What the methods do is next door.

mod admit;
mod mutate;
mod read;

use crate::hosted::Context;
use bytes::Bytes;
use holdfast_proto::method;
use holdfast_proto::raft::{SnapshotPiece, SnapshotPieceAnswer};
use holdfast_transport::{Call, Refusal, Reply, Service};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// Serves a metanode's port.
pub(crate) struct MetaService {
    context: Arc<Context>,
}

impl MetaService {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn snapshot_piece(&self, mut call: Call) -> Result<Reply, Refusal> {
        let piece: SnapshotPiece = call.message()?;
        let context = Arc::clone(&self.context);
        let taken = tokio::task::spawn_blocking(move || context.inbox.piece(&context.node, &piece, &call.body)).await;
        let answer = match taken.map_err(|_| Refusal::Internal)? {
            Ok(()) => SnapshotPieceAnswer { accepted: true, detail: String::new() },
            Err(error) => SnapshotPieceAnswer { accepted: false, detail: error.to_string() },
        };
        Ok(Reply::message(&answer))
    }
}

impl Service for MetaService {
    async fn call(&self, mut call: Call) -> Result<Reply, Refusal> {
        let deadline = call.deadline;
        let mut answer = pin!(async {
            match call.method {
                method::META_MUTATE => mutate::mutate(&self.context, call.message()?).await,
                method::META_READ => read::read(&self.context, call.message()?).await,
                method::RAFT_SNAPSHOT => self.snapshot_piece(call).await,
                method::RAFT_ADMIT => Ok(admit::admit(&self.context, call.message()?).await),
                method::RAFT_ADMITTED_PIECE => admit::piece(&self.context, call.message()?).await,
                _ => Err(Refusal::UnknownMethod),
            }
        });
        // Most questions are answered at once: a timer would be made for nothing.
        if let Poll::Ready(answered) = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await {
            return answered;
        }
        tokio::time::timeout_at(deadline, answer).await.unwrap_or(Err(Refusal::Deadline))
    }

    fn one_way(&self, method: u16, header: Bytes, body: Bytes) {
        if method == method::RAFT_MESSAGES {
            self.context.inbox.batch(&self.context.node, &header, body);
        }
    }
}
