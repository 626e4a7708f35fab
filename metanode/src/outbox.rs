//! Raft's way out: batches as one-way frames, snapshots in pieces.

use crate::machine::TableMachine;
use crate::neighbours::Neighbours;
use bytes::Bytes;
use holdfast_common::NodeId;
use holdfast_common::checksum::crc32c;
use holdfast_consensus::{GroupMessage, Node, Outbox};
use holdfast_proto::method::{RAFT_MESSAGES, RAFT_SNAPSHOT};
use holdfast_proto::raft::{GroupMessage as Head, RaftBatch, SnapshotPiece, SnapshotPieceAnswer};
use holdfast_transport::{BODY_BYTES_MAX, Client, RpcError};
use prost::Message;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{AcquireError, Semaphore};
use tokio::task::JoinError;

/// A frame is sent once it has this much; a message alone may be larger, up to a frame's limit.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of a snapshot in one call.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Longest wait for one piece.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most snapshots on their way at once; others wait.
const SNAPSHOTS_MAX: usize = 2;

const _: () = assert!(2 * BATCH_BYTES <= BODY_BYTES_MAX as usize);

/// Carries Raft over transport.
pub(crate) struct RaftOutbox {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    from: NodeId,
    generation: u64,
    client: Client,
    neighbours: Arc<Neighbours>,
    node: OnceLock<Weak<Node<TableMachine>>>,
    sending: Semaphore,
    next_transfer: AtomicU64,
}

impl RaftOutbox {
    pub(crate) fn new(from: NodeId, generation: u64, client: Client, neighbours: Arc<Neighbours>) -> Self {
        let shared = Shared {
            from,
            generation,
            client,
            neighbours,
            node: OnceLock::new(),
            sending: Semaphore::new(SNAPSHOTS_MAX),
            next_transfer: AtomicU64::new(1),
        };
        Self { shared: Arc::new(shared), runtime: Handle::current() }
    }

    /// Sets the node that is told how the sending of snapshots ended.
    pub(crate) fn report_to(&self, node: &Arc<Node<TableMachine>>) {
        // Set once, right after the node opened.
        let _ = self.shared.node.set(Arc::downgrade(node));
    }
}

impl Outbox for RaftOutbox {
    fn send(&self, to: NodeId, messages: Vec<GroupMessage>) {
        let shared = &self.shared;
        let Some(address) = shared.neighbours.address(to) else { return };
        let mut batch = Batch::default();
        for message in messages {
            if batch.bytes + message.bytes.len() > BATCH_BYTES {
                shared.send_batch(address, std::mem::take(&mut batch));
            }
            batch.push(message);
        }
        shared.send_batch(address, batch);
    }

    fn send_snapshot(&self, to: NodeId, message: GroupMessage, file: PathBuf) {
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            let group = message.group;
            let sent = shared.ship(to, message, &file).await;
            if let Err(why) = &sent {
                tracing::warn!(%group, %to, %why, "a snapshot was not delivered");
            }
            if let Some(node) = shared.node.get().and_then(Weak::upgrade) {
                node.report_snapshot(group, to, sent.is_ok());
            }
        });
    }
}

/// Reason why a snapshot was not delivered.
#[derive(Debug, thiserror::Error)]
enum ShipFailed {
    #[error(transparent)]
    Stopping(#[from] AcquireError),
    #[error("its address is not known")]
    UnknownAddress,
    #[error(transparent)]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Task(#[from] JoinError),
    #[error(transparent)]
    Call(#[from] RpcError),
    /// The other metanode's words.
    #[error("{0}")]
    Refused(String),
}

#[derive(Default)]
struct Batch {
    heads: Vec<Head>,
    bodies: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, message: GroupMessage) {
        let Ok(length_bytes) = u32::try_from(message.bytes.len()) else { return };
        self.bytes += message.bytes.len();
        self.heads.push(Head { group: message.group.0, length_bytes });
        self.bodies.push(message.bytes);
    }
}

impl Shared {
    fn send_batch(&self, address: SocketAddr, batch: Batch) {
        if batch.heads.is_empty() {
            return;
        }
        let header = RaftBatch { from: self.from.0, generation: self.generation, messages: batch.heads };
        self.client.send_one_way(address, RAFT_MESSAGES, header.encode_to_vec().into(), batch.bodies);
    }

    /// Sends a snapshot from its first byte to its last; any failure ends it.
    async fn ship(&self, to: NodeId, message: GroupMessage, file: &Path) -> Result<(), ShipFailed> {
        let _place = self.sending.acquire().await?;
        let address = self.neighbours.address(to).ok_or(ShipFailed::UnknownAddress)?;
        let mut pieces = Pieces::open(file.to_owned()).await?;
        let transfer = self.next_transfer.fetch_add(1, Ordering::Relaxed);
        let mut offset = 0;
        loop {
            let (bytes, last);
            (pieces, bytes, last) = pieces.next().await?;
            let piece = SnapshotPiece {
                from: self.from.0,
                generation: self.generation,
                group: message.group.0,
                transfer,
                offset,
                crc: crc32c(&bytes),
                last,
                message: if last { message.bytes.clone() } else { Bytes::new() },
            };
            offset += bytes.len() as u64;
            let answer = self.client.call(address, RAFT_SNAPSHOT, &piece, vec![bytes], PIECE_TIMEOUT).await;
            let answer: SnapshotPieceAnswer = answer?.message()?;
            if !answer.accepted {
                return Err(ShipFailed::Refused(answer.detail));
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// A file read in pieces, off the runtime's threads.
struct Pieces {
    file: std::fs::File,
    left: u64,
}

impl Pieces {
    async fn open(path: PathBuf) -> Result<Self, ShipFailed> {
        let open = move || -> std::io::Result<Self> {
            let file = std::fs::File::open(path)?;
            let left = file.metadata()?.len();
            Ok(Self { file, left })
        };
        blocking(open).await
    }

    /// The next piece, and whether it is the last.
    async fn next(mut self) -> Result<(Self, Bytes, bool), ShipFailed> {
        let read = move || -> std::io::Result<(Self, Bytes, bool)> {
            let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let mut bytes = vec![0; length];
            self.file.read_exact(&mut bytes)?;
            self.left -= length as u64;
            let last = self.left == 0;
            Ok((self, bytes.into(), last))
        };
        blocking(read).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ShipFailed> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Inbox;
    use holdfast_common::{ClusterId, RaftGroupId};
    use holdfast_proto::control::{Endpoint, HeartbeatResponse};
    use holdfast_transport::{Call, ClientLimits, Identity, Refusal, Reply, Server, ServerLimits, Service};
    use parking_lot::Mutex;

    const IDENTITY: Identity = Identity { cluster: ClusterId([1; 16]) };

    /// Puts pieces together; refuses the piece at one offset.
    struct Receiver {
        inbox: Inbox,
        directory: PathBuf,
        refused_offset: Option<u64>,
        received: Mutex<Option<(Bytes, PathBuf)>>,
    }

    impl Service for Receiver {
        async fn call(&self, mut call: Call) -> Result<Reply, Refusal> {
            let piece: SnapshotPiece = call.message()?;
            let put = match self.refused_offset {
                Some(offset) if offset == piece.offset => Err("full".to_owned()),
                _ => self.inbox.put(&self.directory, &piece, &call.body, &|| {}).map_err(|error| error.to_string()),
            };
            let (accepted, detail) = match put {
                Ok(whole) => {
                    *self.received.lock() = whole.map(|file| (piece.message.clone(), file));
                    (true, String::new())
                }
                Err(detail) => (false, detail),
            };
            Ok(Reply::message(&SnapshotPieceAnswer { accepted, detail }))
        }
    }

    async fn ship(length: usize, refused_offset: Option<u64>) -> Result<(Bytes, Vec<u8>), ShipFailed> {
        let directory = tempfile::tempdir().unwrap();
        let (inbox, path) = (Inbox::default(), directory.path().to_owned());
        let receiver = Arc::new(Receiver { inbox, directory: path, refused_offset, received: Mutex::default() });
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(any, IDENTITY, Arc::clone(&receiver), ServerLimits::default()).await.unwrap();
        let neighbours = Neighbours::load(directory.path()).unwrap();
        let endpoint =
            Endpoint { node: 2, address: server.local_addr().to_string(), alive: true, ..Default::default() };
        neighbours.learn(&HeartbeatResponse { nodes: vec![endpoint], ..HeartbeatResponse::default() }).unwrap();
        let client = Client::new(IDENTITY, ClientLimits::default());
        let outbox = RaftOutbox::new(NodeId(1), 1, client, Arc::new(neighbours));
        let file = directory.path().join("snapshot");
        std::fs::write(&file, pattern(length)).unwrap();
        let message = GroupMessage { group: RaftGroupId(7), bytes: b"announcement"[..].into() };
        outbox.shared.ship(NodeId(2), message, &file).await?;
        let (message, file) = receiver.received.lock().take().unwrap();
        Ok((message, std::fs::read(file).unwrap()))
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_snapshot_arrives_whole_in_pieces() {
        for length in [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 5] {
            let (message, bytes) = ship(length, None).await.unwrap();
            assert_eq!(message, b"announcement"[..]);
            assert!(bytes == pattern(length), "{length}");
        }
    }

    #[tokio::test]
    async fn a_refused_piece_ends_the_transfer() {
        let offset = PIECE_BYTES as u64;
        let shipped = ship(2 * PIECE_BYTES + 5, Some(offset)).await;
        assert!(matches!(&shipped, Err(ShipFailed::Refused(why)) if why == "full"), "{shipped:?}");
    }
}
