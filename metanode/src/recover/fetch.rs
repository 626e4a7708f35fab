//! A table's way back over the network: its replicas are asked, and the snapshot comes in pieces.

use super::home::Begun;
use super::{RecoverFailed, RecoverProgress, RecoveredTable, disk_failed, io_failed};
use crate::core::recovery::{Asker, Asking, Fetching, Heard, Needed, PieceUnusable};
use crate::machine::raft_group;
use crate::neighbours::resolve;
use bytes::Bytes;
use holdfast_common::NodeId;
use holdfast_consensus::RecoverError;
use holdfast_proto::method::{RAFT_ADMIT, RAFT_ADMITTED_PIECE};
use holdfast_proto::raft::{AdmitAnswer, Admitted, AdmittedPiece};
use holdfast_transport::{Client, ClientLimits, Identity, Refusal, RpcError};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the answer to a request to be let in: a leader gives up after 10 s.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for one piece of a snapshot.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// File of the snapshot that comes in, until it is whole; cleared away when the log is opened.
const INCOMING: &str = "incoming-recovery.part";

/// End of an attempt for a table.
pub(super) enum Outcome {
    Recovered(RecoveredTable),
    /// Reason of the wait, as a sentence.
    Waits(String),
}

/// Reason why an attempt ended, while another one may do better.
#[derive(Debug, thiserror::Error)]
enum AttemptEnded {
    #[error(transparent)]
    Call(#[from] RpcError),
    #[error(transparent)]
    Piece(#[from] PieceUnusable),
    #[error(transparent)]
    Admission(#[from] RecoverError),
}

/// Asks for snapshots and hands them to the new log.
pub(super) struct Fetcher {
    begun: Arc<Begun>,
    client: Client,
}

impl Fetcher {
    pub(super) fn new(begun: Arc<Begun>) -> Self {
        let client = Client::new(Identity { cluster: begun.identity().cluster }, ClientLimits::default());
        Self { begun, client }
    }

    pub(super) fn node(&self) -> NodeId {
        self.begun.identity().node
    }

    fn asker(&self) -> Asker<'_> {
        let identity = self.begun.identity();
        Asker { node: identity.node, generation: identity.generation, secret: &identity.secret }
    }

    /// Whether a table is back, durably.
    pub(super) fn has(&self, table: &Needed) -> bool {
        self.begun.recovering().lock().has(raft_group(table.volume))
    }

    /// Tries once to get a table back.
    pub(super) async fn fetch(
        &self,
        table: &Needed,
        tell: &mut (impl FnMut(RecoverProgress) + Send),
    ) -> Result<Outcome, RecoverFailed> {
        let mut asking = Asking::new(table.clone());
        while let Some(node) = asking.next() {
            let (heard, address) = self.ask(table, node).await;
            let (Some(admitted), Some(address)) = (asking.heard(node, heard), address) else { continue };
            match self.receive(table, node, address, admitted, tell).await? {
                Ok(()) => {
                    let (volume, bytes) = (table.name.clone(), admitted.snapshot_bytes);
                    return Ok(Outcome::Recovered(RecoveredTable { volume, from: node, bytes }));
                }
                // It stopped, or leads no more: whoever does is asked.
                Err(ended) => drop(asking.heard(node, Heard::Refused(ended.to_string()))),
            }
        }
        Ok(Outcome::Waits(asking.waits().to_string()))
    }

    async fn ask(&self, table: &Needed, node: NodeId) -> (Heard, Option<SocketAddr>) {
        let text = table.others.get(&node).cloned().unwrap_or_default();
        let Ok(Some(address)) = tokio::task::spawn_blocking(move || resolve(&text)).await else {
            return (Heard::Silent("its address does not resolve".to_owned()), None);
        };
        let request = self.asker().request(table);
        let asked = self.client.unary::<_, AdmitAnswer>(address, RAFT_ADMIT, &request, ADMIT_TIMEOUT).await;
        let heard = match asked {
            Ok(answer) => Heard::of(answer, node),
            Err(RpcError::Refused(Refusal::UnknownMethod)) => {
                Heard::Refused("its build is older than recoveries: upgrade it first".to_owned())
            }
            Err(error) => Heard::Silent(error.to_string()),
        };
        (heard, Some(address))
    }

    /// Gets a snapshot and hands it to the new log. An inner error ends this attempt only.
    async fn receive(
        &self,
        table: &Needed,
        from: NodeId,
        address: SocketAddr,
        admitted: Admitted,
        tell: &mut (impl FnMut(RecoverProgress) + Send),
    ) -> Result<Result<(), AttemptEnded>, RecoverFailed> {
        let path = self.begun.snapshots().join(INCOMING);
        let made = tokio::task::spawn_blocking(move || File::create(path)).await?;
        let mut file = made.map_err(io_failed(self.begun.directory()))?;
        let mut fetching = Fetching::new(&admitted);
        while let Some(offset) = fetching.next() {
            let (volume, bytes) = (table.name.clone(), admitted.snapshot_bytes);
            tell(RecoverProgress::Receiving { volume, from, done_bytes: offset, bytes });
            let (head, piece) = match self.piece(table, address, admitted, offset).await {
                Ok(answer) => answer,
                Err(error) => return Ok(Err(error.into())),
            };
            if let Err(error) = fetching.take(head.known, head.crc, &piece) {
                return Ok(Err(error.into()));
            }
            let written = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file)).await?;
            file = written.map_err(io_failed(self.begun.directory()))?;
        }
        drop(file);
        self.take(table, from, admitted).await
    }

    async fn piece(
        &self,
        table: &Needed,
        address: SocketAddr,
        admitted: Admitted,
        offset: u64,
    ) -> Result<(AdmittedPiece, Bytes), RpcError> {
        let request = self.asker().piece(table, &admitted, offset);
        let mut answer = self.client.call(address, RAFT_ADMITTED_PIECE, &request, Vec::new(), PIECE_TIMEOUT).await?;
        Ok((answer.message()?, answer.body))
    }

    /// The whole file is verified, made durable, and named by the new log.
    async fn take(
        &self,
        table: &Needed,
        leader: NodeId,
        admitted: Admitted,
    ) -> Result<Result<(), AttemptEnded>, RecoverFailed> {
        let admission = self.asker().admission(table, leader, &admitted);
        // Holds the directory's lock for as long as it writes, also if nobody waits for it any more.
        let begun = Arc::clone(&self.begun);
        let taken = tokio::task::spawn_blocking(move || {
            begun.recovering().lock().receive(&admission, |disk, name| disk.rename(INCOMING, name))
        });
        match taken.await? {
            Ok(()) => Ok(Ok(())),
            Err(error @ (RecoverError::Stale | RecoverError::Snapshot(_))) => Ok(Err(error.into())),
            Err(error @ (RecoverError::Io(_) | RecoverError::Log(_))) => {
                Err(disk_failed(self.begun.directory(), &error))
            }
        }
    }
}
