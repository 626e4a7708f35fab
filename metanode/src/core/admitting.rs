//! The leader's side of letting a metanode back in that lost its log (R23): who asks rightly, what is answered, and the snapshots that
//! were promised and are being fetched. What a snapshot is read from is the caller's `F`.

use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{Incarnation, NodeId, VolumeId};
use holdfast_consensus::AdmissionError;
use holdfast_proto::raft::admit_answer::Outcome;
use holdfast_proto::raft::{AdmitRequest, AdmittedPieceRequest, Missing, OtherLeader};
use std::collections::BTreeMap;

/// Snapshots that are being fetched at once; the one that was not asked for the longest gives way.
const GRANTS_MAX: usize = 16;
/// A snapshot that nobody asks for is kept open for this long: a piece takes 10 s at most.
const GRANT_IDLE_MS: u64 = 60_000;

/// Reason why a request is not heard by a node without the table.
pub(crate) const NO_REPLICA: &str = "it has no replica of this table";
/// Reason why a request of an earlier start of its node is not heard.
pub(crate) const LATER_START: &str = "a later start of this node was heard";

/// Reason why no replica hears a request. `ours` is the incarnation of the table here.
pub(crate) fn refusal(request: &AdmitRequest, secret: &ClusterSecret, ours: Incarnation) -> Option<String> {
    let (volume, asked) = (VolumeId(request.volume), Incarnation(request.incarnation));
    let claim = Claim::Admit(NodeId(request.from), request.generation);
    if !secret.verify(volume, asked, claim, &request.mac) {
        return Some("it carries no proof that a node of this cluster asks".to_owned());
    }
    (asked != ours).then(|| format!("the table here is of incarnation {ours}, not {asked}"))
}

/// Answer to an asker whose admission did not come about.
pub(crate) fn not_admitted(error: AdmissionError) -> Outcome {
    match error {
        AdmissionError::NotLeader { leader } => other_leader(leader),
        AdmissionError::Late { missing } => {
            Outcome::Missing(Missing { nodes: missing.iter().map(|id| id.0).collect() })
        }
        AdmissionError::NotAVoter | AdmissionError::Overloaded | AdmissionError::Stopped => {
            Outcome::Refused(error.to_string())
        }
    }
}

pub(crate) fn other_leader(leader: Option<NodeId>) -> Outcome {
    Outcome::OtherLeader(OtherLeader { node: leader.map_or(0, |id| id.0) })
}

/// Snapshots under way, one for each asker and table.
#[derive(Debug)]
pub(crate) struct Grants<F> {
    next_transfer: u64,
    by_asker: BTreeMap<(NodeId, VolumeId), Grant<F>>,
}

#[derive(Debug)]
struct Grant<F> {
    generation: u64,
    transfer: u64,
    file: F,
    bytes: u64,
    asked_ms: u64,
}

impl<F: Clone> Grants<F> {
    /// Of this start of the node: a transfer of an earlier one is not taken for one of this.
    pub(crate) fn new(generation: u64) -> Self {
        Self { next_transfer: (generation << 32) + 1, by_asker: BTreeMap::new() }
    }

    /// Keeps a snapshot for who was admitted, in the place of what it had before; says under which number.
    pub(crate) fn keep(&mut self, request: &AdmitRequest, file: F, bytes: u64, now_ms: u64) -> u64 {
        let transfer = self.next_transfer;
        self.next_transfer += 1;
        let grant = Grant { generation: request.generation, transfer, file, bytes, asked_ms: now_ms };
        self.by_asker.insert((NodeId(request.from), VolumeId(request.volume)), grant);
        if self.by_asker.len() > GRANTS_MAX {
            let oldest = self.by_asker.iter().min_by_key(|(_, grant)| (grant.asked_ms, grant.transfer));
            oldest.map(|(asker, _)| *asker).and_then(|asker| self.by_asker.remove(&asker));
        }
        transfer
    }

    /// Opens the piece that is asked for and says how many bytes follow its offset; `None` if the transfer is over.
    pub(crate) fn piece(&mut self, request: &AdmittedPieceRequest, now_ms: u64) -> Option<(F, u64)> {
        let grant = self.by_asker.get_mut(&(NodeId(request.from), VolumeId(request.volume)))?;
        if (grant.generation, grant.transfer) != (request.generation, request.transfer) {
            return None;
        }
        let left_bytes = grant.bytes.checked_sub(request.offset)?;
        grant.asked_ms = now_ms;
        Some((grant.file.clone(), left_bytes))
    }

    /// Lets go of what nobody asks for any more: its file may have been removed, and keeps its space while it is open.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        self.by_asker.retain(|_, grant| now_ms.saturating_sub(grant.asked_ms) < GRANT_IDLE_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: ClusterSecret = ClusterSecret([5; 32]);

    fn request(from: u64) -> AdmitRequest {
        let claim = Claim::Admit(NodeId(from), 4);
        let mac = SECRET.prove(VolumeId(9), Incarnation(1), claim).to_vec().into();
        AdmitRequest { from, generation: 4, volume: 9, incarnation: 1, mac }
    }

    fn piece(from: u64, transfer: u64, offset: u64) -> AdmittedPieceRequest {
        AdmittedPieceRequest { from, generation: 4, volume: 9, transfer, offset }
    }

    #[test]
    fn only_a_node_of_the_cluster_is_heard_and_for_what_it_asks() {
        let ours = Incarnation(1);
        assert_eq!(refusal(&request(3), &SECRET, ours), None);
        for forged in [
            AdmitRequest { from: 2, ..request(3) },
            AdmitRequest { generation: 5, ..request(3) },
            AdmitRequest { volume: 8, ..request(3) },
            AdmitRequest { mac: vec![0; 32].into(), ..request(3) },
        ] {
            assert!(refusal(&forged, &SECRET, ours).unwrap().contains("no proof"));
        }
        assert!(refusal(&request(3), &SECRET, Incarnation(2)).unwrap().contains("incarnation 2"));
    }

    #[test]
    fn a_snapshot_is_given_to_whom_it_was_promised_from_any_offset() {
        let mut grants = Grants::new(2);
        let transfer = grants.keep(&request(3), "file", 10, 0);
        assert_eq!(grants.piece(&piece(3, transfer, 4), 0), Some(("file", 6)));
        assert_eq!(grants.piece(&piece(3, transfer, 4), 0), Some(("file", 6)), "twice");
        assert_eq!(grants.piece(&piece(3, transfer, 10), 0), Some(("file", 0)));
        assert_eq!(grants.piece(&piece(3, transfer, 11), 0), None, "behind its end");
        assert_eq!(grants.piece(&piece(2, transfer, 0), 0), None, "somebody else");
        assert_eq!(grants.piece(&AdmittedPieceRequest { generation: 3, ..piece(3, transfer, 0) }, 0), None);
        let again = grants.keep(&request(3), "newer", 20, 0);
        assert_eq!(grants.piece(&piece(3, transfer, 0), 0), None, "the former one is over");
        assert_eq!(grants.piece(&piece(3, again, 0), 0), Some(("newer", 20)));
        assert_ne!(Grants::new(3).keep(&request(3), "file", 10, 0), Grants::new(2).keep(&request(3), "file", 10, 0));
    }

    #[test]
    fn snapshots_kept_open_are_bounded_in_count_and_time() {
        let mut grants = Grants::new(1);
        let first = grants.keep(&request(1), (), 1, 0);
        let transfers: Vec<u64> = (2..18).map(|from| grants.keep(&request(from), (), 1, from)).collect();
        assert_eq!(grants.by_asker.len(), GRANTS_MAX);
        assert_eq!(grants.piece(&piece(1, first, 0), 20), None);
        assert!(grants.piece(&piece(2, transfers[0], 0), 50_000).is_some());
        grants.expire(60_017);
        assert_eq!(grants.by_asker.len(), 1, "the one that was asked for is left");
        assert!(grants.piece(&piece(2, transfers[0], 0), 60_017).is_some());
        grants.expire(120_017);
        assert!(grants.by_asker.is_empty());
    }

    #[test]
    fn why_nobody_was_admitted_is_told() {
        let missing = AdmissionError::Late { missing: vec![NodeId(2)] };
        assert_eq!(not_admitted(missing), Outcome::Missing(Missing { nodes: vec![2] }));
        let led = AdmissionError::NotLeader { leader: Some(NodeId(2)) };
        assert_eq!(not_admitted(led), Outcome::OtherLeader(OtherLeader { node: 2 }));
        assert_eq!(other_leader(None), Outcome::OtherLeader(OtherLeader { node: 0 }));
        assert!(matches!(not_admitted(AdmissionError::NotAVoter), Outcome::Refused(_)));
    }
}
