//! Decisions of a metanode that lost its log and is on its way back (R23): which tables it needs, whom it asks, what it
//! waits for, and which pieces of a snapshot it takes.

use crate::machine::raft_group;
use holdfast_common::checksum::crc32c;
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{Incarnation, LogIndex, NodeId, Term, VolumeId};
use holdfast_consensus::Admission;
use holdfast_proto::control::{Cluster, Role, Volume, VolumeState};
use holdfast_proto::raft::admit_answer::Outcome;
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest, Admitted, AdmittedPieceRequest};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// A table that this node may have voted in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) volume: VolumeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) name: String,
    /// The other replicas, with their addresses as the volume manager wrote them.
    pub(crate) others: BTreeMap<NodeId, String>,
    /// Leader when the volume manager heard last.
    pub(crate) leader: Option<NodeId>,
}

impl Needed {
    /// Whether the others are no majority without this node: they elect nobody, and what was lost is lost.
    pub(crate) fn is_hopeless(&self) -> bool {
        let replicas = self.others.len() + 1;
        self.others.len() * 2 <= replicas
    }
}

/// The tables of a node, but for those whose volumes are being deleted: these are never made here again.
pub(crate) fn needed(volumes: &[Volume], node: NodeId) -> Vec<Needed> {
    let is_here = |volume: &&Volume| {
        volume.state() != VolumeState::Deleting && volume.metanodes.iter().any(|replica| replica.node == node.0)
    };
    let need = |volume: &Volume| {
        let others = volume.metanodes.iter().filter(|replica| replica.node != node.0);
        Needed {
            volume: VolumeId(volume.volume),
            incarnation: Incarnation(volume.incarnation),
            name: volume.name.clone(),
            others: others.map(|replica| (NodeId(replica.node), replica.address.clone())).collect(),
            leader: Some(NodeId(volume.leader_node)).filter(|leader| leader.0 != 0),
        }
    };
    volumes.iter().filter(is_here).map(need).collect()
}

/// Standing of the node that wants to come back, with the volume manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing stands against it.
    Free,
    /// It is heard, at this address: another copy of its directory runs, or it ended a moment ago.
    Heard(String),
    /// It must not come back from this directory, for this reason.
    Refused(String),
}

pub(crate) fn standing(cluster: &Cluster, ours: &str, node: NodeId, generation: u64) -> Standing {
    if cluster.cluster != ours {
        return Standing::Refused(format!(
            "the volume manager is of cluster {}, this metanode belongs to cluster {ours}",
            cluster.cluster
        ));
    }
    let known = cluster.nodes.iter().find(|known| known.node == node.0 && known.role() == Role::Metanode);
    match known {
        None => Standing::Refused(format!("the volume manager knows no metanode with the id {node}")),
        Some(known) if known.generation > generation => Standing::Refused(format!(
            "this is start {generation} of node {node}, and start {} registered: it is an old copy of its directory",
            known.generation
        )),
        Some(known) if known.alive => Standing::Heard(known.address.clone()),
        Some(_) => Standing::Free,
    }
}

/// The start of a node that wants to come back, as the others hear of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    pub(crate) secret: &'a ClusterSecret,
}

impl Asker<'_> {
    /// Asks to be let in.
    pub(crate) fn request(&self, table: &Needed) -> AdmitRequest {
        let claim = Claim::Admit(self.node, self.generation);
        AdmitRequest {
            from: self.node.0,
            generation: self.generation,
            volume: table.volume.0,
            incarnation: table.incarnation.0,
            mac: self.secret.prove(table.volume, table.incarnation, claim).to_vec().into(),
        }
    }

    /// Asks for a piece of the snapshot that was promised.
    pub(crate) fn piece(&self, table: &Needed, admitted: &Admitted, offset: u64) -> AdmittedPieceRequest {
        let (volume, transfer) = (table.volume.0, admitted.transfer);
        AdmittedPieceRequest { from: self.node.0, generation: self.generation, volume, transfer, offset }
    }

    /// Terms on which the new log takes the whole snapshot.
    pub(crate) fn admission(&self, table: &Needed, leader: NodeId, admitted: &Admitted) -> Admission {
        let group = raft_group(table.volume);
        let (term, index) = (Term(admitted.term), LogIndex(admitted.index));
        Admission { group, to: self.node, generation: self.generation, leader, term, index }
    }
}

/// Answer of a metanode to a request to be let in, or its silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Admitted(Admitted),
    /// Another one leads; `None` if no leader is known.
    LedBy(Option<NodeId>),
    /// It leads, and these do not acknowledge. None: the snapshot takes long.
    Missing(Vec<NodeId>),
    Refused(String),
    Silent(String),
}

impl Heard {
    /// `asked` is who answers: a snapshot of another leader is not what it promised.
    pub(crate) fn of(answer: AdmitAnswer, asked: NodeId) -> Self {
        match answer.outcome {
            Some(Outcome::Admitted(admitted)) if admitted.leader == asked.0 => Self::Admitted(admitted),
            Some(Outcome::OtherLeader(other)) => Self::LedBy(Some(NodeId(other.node)).filter(|node| node.0 != 0)),
            Some(Outcome::Missing(missing)) => Self::Missing(missing.nodes.into_iter().map(NodeId).collect()),
            Some(Outcome::Refused(why)) => Self::Refused(why),
            Some(Outcome::Admitted(_)) | None => Self::Refused("its answer makes no sense to this build".to_owned()),
        }
    }
}

/// Asks the other replicas of a table, who is said to lead first, each once.
#[derive(Debug)]
pub(crate) struct Asking {
    table: Needed,
    order: VecDeque<NodeId>,
    heard: BTreeMap<NodeId, Heard>,
}

impl Asking {
    pub(crate) fn new(table: Needed) -> Self {
        let (order, leader) = (table.others.keys().copied().collect(), table.leader);
        let mut asking = Self { table, order, heard: BTreeMap::new() };
        asking.prefer(leader);
        asking
    }

    /// The table that is asked for.
    pub(crate) fn table(&self) -> &Needed {
        &self.table
    }

    fn prefer(&mut self, node: Option<NodeId>) {
        if let Some(at) = self.order.iter().position(|waiting| Some(*waiting) == node) {
            self.order.swap(0, at);
        }
    }

    /// Replica to ask next; `None` when all were asked.
    pub(crate) fn next(&mut self) -> Option<NodeId> {
        self.order.pop_front()
    }

    /// Takes an answer in. A snapshot that was promised is what all this is for.
    pub(crate) fn heard(&mut self, from: NodeId, heard: Heard) -> Option<Admitted> {
        match &heard {
            Heard::Admitted(admitted) => return Some(*admitted),
            Heard::LedBy(leader) => self.prefer(*leader),
            Heard::Missing(_) | Heard::Refused(_) | Heard::Silent(_) => {}
        }
        self.heard.insert(from, heard);
        None
    }

    /// The table's wait, as a sentence.
    pub(crate) fn waits(self) -> Waits {
        Waits { table: self.table, heard: self.heard }
    }
}

/// Sentence: why a table is not back yet.
#[derive(Debug)]
pub(crate) struct Waits {
    table: Needed,
    heard: BTreeMap<NodeId, Heard>,
}

impl fmt::Display for Waits {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "volume '{}' waits: every other replica of its table must run", self.table.name)?;
        let mut said = Vec::new();
        for (node, heard) in &self.heard {
            let at = self.table.others.get(node).map_or("", String::as_str);
            match heard {
                Heard::Silent(why) => said.push(format!("node {node} at {at} does not answer ({why})")),
                Heard::Refused(why) => said.push(format!("node {node} at {at} refuses: {why}")),
                Heard::LedBy(None) => said.push(format!("node {node} knows no leader")),
                Heard::Missing(nodes) if nodes.is_empty() => {
                    said.push(format!("node {node}, which leads, has no snapshot yet"));
                }
                Heard::Missing(nodes) => {
                    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                    said.push(format!("node {node}, which leads, waits for node {}", names.join(" and node ")));
                }
                Heard::LedBy(Some(_)) | Heard::Admitted(_) => {}
            }
        }
        if said.is_empty() { Ok(()) } else { write!(to, "; {}", said.join("; ")) }
    }
}

/// Reason why a piece ends the transfer of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PieceUnusable {
    #[error("it does not know the snapshot any more")]
    Forgotten,
    #[error("a piece of the snapshot is damaged")]
    Damaged,
}

/// A snapshot that is being fetched, from its first byte to its last.
#[derive(Debug)]
pub(crate) struct Fetching {
    bytes: u64,
    done_bytes: u64,
}

impl Fetching {
    pub(crate) fn new(admitted: &Admitted) -> Self {
        Self { bytes: admitted.snapshot_bytes, done_bytes: 0 }
    }

    /// The offset of the next piece; `None` when all are there.
    pub(crate) fn next(&self) -> Option<u64> {
        (self.done_bytes < self.bytes).then_some(self.done_bytes)
    }

    /// Takes a piece for the offset last asked for. An error ends the transfer.
    pub(crate) fn take(&mut self, known: bool, crc: u32, piece: &[u8]) -> Result<(), PieceUnusable> {
        if !known {
            return Err(PieceUnusable::Forgotten);
        }
        let left_bytes = self.bytes - self.done_bytes;
        if piece.is_empty() || piece.len() as u64 > left_bytes || crc32c(piece) != crc {
            return Err(PieceUnusable::Damaged);
        }
        self.done_bytes += piece.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
