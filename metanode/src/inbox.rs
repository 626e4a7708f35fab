//! Raft's way in: batches split again, snapshots put together from their pieces, old starts of nodes refused (R28).

use crate::core::starts::Starts;
use crate::machine::TableMachine;
use crate::outbox::PIECE_BYTES;
use bytes::Bytes;
use holdfast_common::checksum::crc32c;
use holdfast_common::{NodeId, RaftGroupId};
use holdfast_consensus::{GroupMessage, Node};
use holdfast_proto::raft::{RaftBatch, SnapshotPiece};
use holdfast_storage::is_no_space;
use parking_lot::Mutex;
use prost::Message;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Snapshots coming in at once; the one that was begun first gives way to a further one.
const TRANSFERS_MAX: usize = 16;

/// Messages and snapshots from other metanodes that are not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    starts: Mutex<Starts>,
    transfers: Mutex<Transfers>,
}

/// Reason why a piece of a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceRefused {
    #[error("of an older start")]
    OldStart,
    #[error("no replica of this table here")]
    NoReplica,
    #[error("the piece is damaged")]
    Damaged,
    #[error("the piece does not follow what came before")]
    Gap,
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug, Default)]
struct Transfers {
    by_source: BTreeMap<(NodeId, RaftGroupId), Transfer>,
    begun: u64,
}

#[derive(Debug)]
struct Transfer {
    number: u64,
    begun: u64,
    written_bytes: u64,
    file: File,
    path: PathBuf,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // A finished one was renamed away and has nothing here. What cannot be removed is removed at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Inbox {
    /// Hands a batch to the node. Does not wait for the disk, but may apply entries.
    pub(crate) fn batch(&self, node: &Node<TableMachine>, header: &[u8], mut body: Bytes) {
        let Ok(batch) = RaftBatch::decode(header) else {
            return tracing::warn!("a Raft batch does not decode");
        };
        let from = NodeId(batch.from);
        if !self.is_current(from, batch.generation) {
            return tracing::warn!(%from, generation = batch.generation, "a batch of an older start was dropped");
        }
        let mut messages = Vec::with_capacity(batch.messages.len());
        for head in &batch.messages {
            let length = usize::try_from(head.length_bytes).unwrap_or(usize::MAX);
            if length > body.len() {
                return tracing::warn!(%from, "a Raft batch is shorter than it says");
            }
            messages.push(GroupMessage { group: RaftGroupId(head.group), bytes: body.split_to(length) });
        }
        node.deliver(from, messages);
    }

    /// Whether no later start of the node was heard of; from now on no earlier one is heard.
    pub(crate) fn is_current(&self, from: NodeId, generation: u64) -> bool {
        self.starts.lock().is_current(from, generation)
    }

    /// Takes a piece of a snapshot; with the last one the snapshot goes to the node. Blocks on the disk.
    ///
    /// # Errors
    /// [`PieceRefused`]: the sender must start over.
    pub(crate) fn piece(
        &self,
        node: &Node<TableMachine>,
        piece: &SnapshotPiece,
        body: &[u8],
    ) -> Result<(), PieceRefused> {
        let from = NodeId(piece.from);
        if !self.is_current(from, piece.generation) {
            return Err(PieceRefused::OldStart);
        }
        if node.group(RaftGroupId(piece.group)).is_none() {
            return Err(PieceRefused::NoReplica);
        }
        // The sender starts over, and finds room then.
        let no_room = || {
            let _ = node.give_back_reserve();
        };
        let whole = self.put(&node.snapshot_directory(), piece, body, &no_room)?;
        if let Some(file) = whole {
            let message = GroupMessage { group: RaftGroupId(piece.group), bytes: piece.message.clone() };
            node.deliver_snapshot(from, message, file);
        }
        Ok(())
    }

    /// The path of the whole file if this was its last piece. `no_room` is called if the disk is full.
    pub(crate) fn put(
        &self,
        directory: &Path,
        piece: &SnapshotPiece,
        body: &[u8],
        no_room: &dyn Fn(),
    ) -> Result<Option<PathBuf>, PieceRefused> {
        if body.len() > PIECE_BYTES || crc32c(body) != piece.crc {
            return Err(PieceRefused::Damaged);
        }
        let source = (NodeId(piece.from), RaftGroupId(piece.group));
        let mut transfers = self.transfers.lock();
        // Taken out while it is written to: whatever fails drops it, and its file with it.
        let known = transfers.by_source.remove(&source).filter(|transfer| transfer.number == piece.transfer);
        let mut transfer = match known {
            Some(transfer) if transfer.written_bytes == piece.offset => transfer,
            None if piece.offset == 0 => {
                transfers.begun += 1;
                let begun = transfers.begun;
                Transfer::begin(directory, piece, begun)?
            }
            Some(_) | None => return Err(PieceRefused::Gap),
        };
        drop(transfers);
        if let Err(error) = transfer.file.write_all(body) {
            // Its own part goes first: it may be all that is missing.
            drop(transfer);
            if is_no_space(&error) {
                no_room();
            }
            return Err(error.into());
        }
        transfer.written_bytes += body.len() as u64;
        if piece.last {
            return Ok(Some(transfer.finish()?));
        }
        self.transfers.lock().keep(source, transfer);
        Ok(None)
    }
}

impl Transfers {
    fn keep(&mut self, source: (NodeId, RaftGroupId), transfer: Transfer) {
        self.by_source.insert(source, transfer);
        if self.by_source.len() > TRANSFERS_MAX {
            let oldest = self.by_source.iter().min_by_key(|(_, transfer)| transfer.begun).map(|(source, _)| *source);
            oldest.and_then(|source| self.by_source.remove(&source));
        }
    }
}

impl Transfer {
    fn begin(directory: &Path, piece: &SnapshotPiece, begun: u64) -> io::Result<Self> {
        let name = format!("incoming-{}-{}-{begun}.part", piece.from, piece.group);
        let path = directory.join(name);
        let file = File::create(&path)?;
        Ok(Self { number: piece.transfer, begun, written_bytes: 0, file, path })
    }

    fn finish(self) -> io::Result<PathBuf> {
        self.file.sync_all()?;
        let path = self.path.with_extension("whole");
        std::fs::rename(&self.path, &path)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(transfer: u64, offset: u64, body: &[u8], last: bool) -> SnapshotPiece {
        let message = Bytes::new();
        SnapshotPiece { from: 2, generation: 1, group: 7, transfer, offset, crc: crc32c(body), last, message }
    }

    #[test]
    fn pieces_in_order_make_the_file_and_others_start_over() {
        let directory = tempfile::tempdir().unwrap();
        let inbox = Inbox::default();
        let put = |transfer, offset, body: &[u8], last| {
            inbox.put(directory.path(), &piece(transfer, offset, body, last), body, &|| {})
        };
        assert_eq!(put(1, 0, b"abc", false).unwrap(), None);
        assert!(put(1, 4, b"x", true).is_err(), "a gap");
        assert!(put(1, 3, b"def", true).is_err(), "given up after the gap");
        assert_eq!(put(2, 0, b"abc", false).unwrap(), None);
        assert_eq!(put(3, 0, b"123", false).unwrap(), None, "a new transfer replaces the former");
        assert!(put(2, 3, b"def", true).is_err());
        assert_eq!(put(4, 0, b"abc", false).unwrap(), None);
        let whole = put(4, 3, b"def", true).unwrap().unwrap();
        assert_eq!(std::fs::read(whole).unwrap(), b"abcdef");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_damaged_piece_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let wrong = SnapshotPiece { crc: 1, ..piece(1, 0, b"abc", true) };
        assert!(Inbox::default().put(directory.path(), &wrong, b"abc", &|| {}).is_err());
    }

    #[test]
    fn an_older_start_of_a_node_is_refused_once_a_later_one_was_heard() {
        let inbox = Inbox::default();
        assert!(inbox.is_current(NodeId(2), 4));
        assert!(inbox.is_current(NodeId(2), 5));
        assert!(!inbox.is_current(NodeId(2), 4));
        assert!(inbox.is_current(NodeId(3), 1));
    }
}
