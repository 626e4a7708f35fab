//! A metanode without threads that lost its log, on its way back (R23): a value that says what it asks next and is handed the
//! answer. It shares every decision with [`crate::recover()`], and dies as a [`SteppedMetanode`](super::SteppedMetanode) does.
//!
//! Which log the superblock names, and that it is not whole yet, is the caller's to keep: the value is opened with the new log as
//! the one that must be there, or with any if it is to be made.

use super::MetanodeOptions;
use crate::core::recovery::{Asker, Asking, Fetching, Heard, Needed, Standing, needed, standing};
use crate::machine::raft_group;
use bytes::Bytes;
use holdfast_common::{NodeId, VolumeId};
use holdfast_consensus::{OpenError, RecoverError, Recovering, SteppedOptions};
use holdfast_proto::control::{Cluster, Volume};
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest, Admitted, AdmittedPiece, AdmittedPieceRequest};
use holdfast_storage::Directory;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// What a recovery asks next, one thing at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Asks the volume manager for its nodes.
    Cluster,
    /// Asks the volume manager for its volumes.
    Volumes,
    /// Asks another metanode to be let back in.
    Admit {
        /// The other one.
        node: NodeId,
        /// The request.
        request: AdmitRequest,
    },
    /// Asks for a piece of a snapshot that was promised.
    Piece {
        /// Who promised it.
        node: NodeId,
        /// The request.
        request: AdmittedPieceRequest,
    },
    /// Waits for half a second or so.
    Pause,
    /// Nothing: all tables are back, durably. The superblock may name the new log alone.
    Nothing,
}

/// The answer to the [`Question`] of the same name; `None` if there is none.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Answer {
    Cluster(Option<Cluster>),
    Volumes(Option<Vec<Volume>>),
    Admit(Option<AdmitAnswer>),
    Piece(Option<(AdmittedPiece, Bytes)>),
    Paused,
}

/// Why a recovery goes no further in this life.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryStopped {
    /// This node must not come back, and why.
    #[error("{0}")]
    Refused(String),
    /// The disk of the new log.
    #[error(transparent)]
    Disk(#[from] RecoverError),
}

/// How far it is.
enum At {
    Standing,
    Listing,
    /// A replica is asked.
    Asking(Asking, NodeId),
    Fetching(Transfer),
    /// After the pause it is asked whether it may come back, or what tables there are, as before.
    Pausing(Box<At>),
    Done,
}

/// A snapshot on its way.
struct Transfer {
    asking: Asking,
    from: NodeId,
    admitted: Admitted,
    fetching: Fetching,
    bytes: Vec<u8>,
}

/// A metanode on its way back, driven by whoever calls.
pub struct SteppedRecovery {
    options: MetanodeOptions,
    recovering: Recovering,
    at: At,
    /// The tables that this node may have voted in; `None` before the volume manager said.
    wanted: Option<BTreeSet<VolumeId>>,
    /// Those of this round that nobody was asked for yet.
    tables: VecDeque<Needed>,
    /// Some table of this round did not come back.
    waits: bool,
}

impl SteppedRecovery {
    /// Opens the new log, as a run of the command does.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        options: MetanodeOptions,
        log: Arc<dyn Directory>,
        snapshots: Arc<dyn Directory>,
    ) -> Result<Self, OpenError> {
        let consensus = SteppedOptions { node: options.node, ..options.consensus };
        let recovering = Recovering::open_stepped(consensus, options.generation, log, snapshots)?;
        let tables = VecDeque::new();
        Ok(Self { options, recovering, at: At::Standing, wanted: None, tables, waits: false })
    }

    /// What is to be asked now. The same until [`Self::answered`].
    #[must_use]
    pub fn question(&self) -> Question {
        match &self.at {
            At::Standing => Question::Cluster,
            At::Listing => Question::Volumes,
            At::Asking(asking, node) => Question::Admit { node: *node, request: self.asker().request(asking.table()) },
            At::Fetching(Transfer { asking, from, admitted, fetching, .. }) => {
                let offset = fetching.next().unwrap_or_default();
                Question::Piece { node: *from, request: self.asker().piece(asking.table(), admitted, offset) }
            }
            At::Pausing(_) => Question::Pause,
            At::Done => Question::Nothing,
        }
    }

    fn asker(&self) -> Asker<'_> {
        let MetanodeOptions { node, generation, secret, .. } = &self.options;
        Asker { node: *node, generation: *generation, secret }
    }

    /// Takes the answer to the present question; one to another question says nothing.
    ///
    /// # Errors
    /// See [`RecoveryStopped`].
    pub fn answered(&mut self, answer: Answer) -> Result<(), RecoveryStopped> {
        match (std::mem::replace(&mut self.at, At::Done), answer) {
            (At::Standing, Answer::Cluster(cluster)) => self.stands(cluster.as_ref())?,
            (At::Listing, Answer::Volumes(Some(volumes))) => self.listed(&volumes)?,
            (at @ At::Listing, Answer::Volumes(None)) => self.at = At::Pausing(Box::new(at)),
            (At::Asking(asking, node), Answer::Admit(answer)) => self.heard(asking, node, answer)?,
            (At::Fetching(transfer), Answer::Piece(piece)) => self.received(transfer, piece)?,
            (At::Pausing(next), Answer::Paused) => self.at = *next,
            (at, _) => self.at = at,
        }
        Ok(())
    }

    fn stands(&mut self, cluster: Option<&Cluster>) -> Result<(), RecoveryStopped> {
        let MetanodeOptions { cluster: ours, node, generation, .. } = self.options;
        let standing = cluster.map(|cluster| standing(cluster, &ours.to_string(), node, generation));
        self.at = match standing {
            Some(Standing::Free) => At::Listing,
            Some(Standing::Refused(why)) => return Err(RecoveryStopped::Refused(why)),
            Some(Standing::Heard(_)) | None => At::Pausing(Box::new(At::Standing)),
        };
        Ok(())
    }

    /// A round begins. What was made since the first one was never hosted here.
    fn listed(&mut self, volumes: &[Volume]) -> Result<(), RecoveryStopped> {
        let tables = needed(volumes, self.options.node);
        if let Some(table) = tables.iter().find(|table| table.is_hopeless()) {
            return Err(RecoveryStopped::Refused(format!("volume '{}' has too few other replicas", table.name)));
        }
        let wanted = self.wanted.get_or_insert_with(|| tables.iter().map(|table| table.volume).collect());
        let waits = |table: &Needed| wanted.contains(&table.volume) && !self.recovering.has(raft_group(table.volume));
        self.tables = tables.into_iter().filter(waits).collect();
        self.waits = false;
        self.next_table();
        Ok(())
    }

    fn next_table(&mut self) {
        match self.tables.pop_front() {
            Some(table) => self.next_replica(Asking::new(table)),
            None if self.waits => self.at = At::Pausing(Box::new(At::Listing)),
            None => self.at = At::Done,
        }
    }

    fn next_replica(&mut self, mut asking: Asking) {
        match asking.next() {
            Some(node) => self.at = At::Asking(asking, node),
            None => {
                self.waits = true;
                self.next_table();
            }
        }
    }

    fn heard(&mut self, mut asking: Asking, node: NodeId, answer: Option<AdmitAnswer>) -> Result<(), RecoveryStopped> {
        let silent = || Heard::Silent("no answer".to_owned());
        let heard = answer.map_or_else(silent, |answer| Heard::of(answer, node));
        match asking.heard(node, heard) {
            Some(admitted) => {
                let fetching = Fetching::new(&admitted);
                self.fetch(Transfer { asking, from: node, admitted, fetching, bytes: Vec::new() })
            }
            None => {
                self.next_replica(asking);
                Ok(())
            }
        }
    }

    fn received(
        &mut self,
        mut transfer: Transfer,
        answer: Option<(AdmittedPiece, Bytes)>,
    ) -> Result<(), RecoveryStopped> {
        let taken = match &answer {
            Some((head, piece)) => {
                transfer.fetching.take(head.known, head.crc, piece).map_err(|unusable| unusable.to_string())
            }
            None => Err("no answer".to_owned()),
        };
        match taken {
            Ok(()) => {
                transfer.bytes.extend(answer.into_iter().flat_map(|(_, piece)| piece));
                self.fetch(transfer)
            }
            Err(why) => {
                self.failed(transfer, why);
                Ok(())
            }
        }
    }

    /// It stopped, or leads no more: another one is asked.
    fn failed(&mut self, Transfer { mut asking, from, .. }: Transfer, why: String) {
        let _ = asking.heard(from, Heard::Refused(why));
        self.next_replica(asking);
    }

    /// Goes on with a snapshot; a whole one is made durable, and named by the new log.
    fn fetch(&mut self, transfer: Transfer) -> Result<(), RecoveryStopped> {
        if transfer.fetching.next().is_some() {
            self.at = At::Fetching(transfer);
            return Ok(());
        }
        let admission = self.asker().admission(transfer.asking.table(), transfer.from, &transfer.admitted);
        let put = |disk: &dyn Directory, name: &str| disk.create_empty(name)?.write_at(0, &transfer.bytes);
        match self.recovering.receive(&admission, put) {
            Ok(()) => self.next_table(),
            Err(error @ (RecoverError::Stale | RecoverError::Snapshot(_))) => self.failed(transfer, error.to_string()),
            Err(error @ (RecoverError::Io(_) | RecoverError::Log(_))) => return Err(error.into()),
        }
        Ok(())
    }
}
