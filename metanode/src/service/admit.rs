//! Letting a metanode back in that lost its log (R23): the shell around [`admitting`], which waits for the admission and reads the
//! snapshot.

use crate::core::admitting;
use crate::core::reporting;
use crate::hosted::{Context, Hosted};
use crate::machine::raft_group;
use crate::outbox::PIECE_BYTES;
use holdfast_common::checksum::crc32c;
use holdfast_common::{Incarnation, NodeId, VolumeId};
use holdfast_proto::raft::admit_answer::Outcome;
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest, Admitted, AdmittedPiece, AdmittedPieceRequest};
use holdfast_transport::{Refusal, Reply};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) async fn admit(context: &Context, request: AdmitRequest) -> Reply {
    let outcome = outcome(context, &request).await;
    Reply::message(&AdmitAnswer { outcome: Some(outcome) })
}

async fn outcome(context: &Context, request: &AdmitRequest) -> Outcome {
    let (from, volume) = (NodeId(request.from), VolumeId(request.volume));
    let Some(hosted) = context.hosted(volume) else {
        return Outcome::Refused(admitting::NO_REPLICA.to_owned());
    };
    let ours = incarnation(context, &hosted);
    if let Some(why) = admitting::refusal(request, &context.identity.secret, ours) {
        return Outcome::Refused(why);
    }
    // First of all: from here on nothing that the asker said in a former life is heard.
    if !context.inbox.is_current(from, request.generation) {
        return Outcome::Refused(admitting::LATER_START.to_owned());
    }
    let admitted = match context.node.admit(raft_group(volume), from).await {
        Ok(admitted) => admitted,
        Err(error) => return admitting::not_admitted(error),
    };
    let (term, index) = (admitted.term.0, admitted.index.0);
    match keep(context, request, admitted.file).await {
        Ok((transfer, snapshot_bytes)) => {
            tracing::info!(%volume, %from, snapshot_bytes, "a metanode that lost its log is let back in");
            Outcome::Admitted(Admitted { leader: context.identity.node.0, term, index, snapshot_bytes, transfer })
        }
        Err(error) => Outcome::Refused(format!("its snapshot cannot be read: {error}")),
    }
}

fn incarnation(context: &Context, hosted: &Hosted) -> Incarnation {
    let state = hosted.group.state().read();
    context.neighbours.known(|known| reporting::incarnation(hosted.volume, state.table(), known))
}

/// Keeps the snapshot open until it was fetched; says its number and length.
async fn keep(context: &Context, request: &AdmitRequest, file: File) -> io::Result<(u64, u64)> {
    let measured = tokio::task::spawn_blocking(move || file.metadata().map(|about| (file, about.len()))).await;
    let (file, bytes) = measured.map_err(io::Error::other)??;
    let transfer = context.grants.lock().keep(request, Arc::new(file), bytes, context.now_ms());
    Ok((transfer, bytes))
}

pub(super) async fn piece(context: &Context, request: AdmittedPieceRequest) -> Result<Reply, Refusal> {
    let found = context.grants.lock().piece(&request, context.now_ms());
    let Some((file, left_bytes)) = found else {
        return Ok(Reply::message(&AdmittedPiece { known: false, crc: 0 }));
    };
    let length = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(PIECE_BYTES);
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; length];
        file.read_exact_at(&mut piece, request.offset).map(|()| piece)
    });
    match read.await {
        Ok(Ok(piece)) => {
            let header = AdmittedPiece { known: true, crc: crc32c(&piece) };
            Ok(Reply::with_body(&header, vec![piece.into()]))
        }
        Ok(Err(error)) => {
            tracing::error!(volume = request.volume, %error, "a snapshot cannot be read");
            Err(Refusal::Internal)
        }
        Err(_) => Err(Refusal::Internal),
    }
}
