//! The node's conversation with the volume manager: what is reported, and what an answer asks for.

use super::known::Known;
use crate::table::{FEATURE_LEVEL, Table};
use holdfast_common::proof::{Claim, ClusterSecret};
use holdfast_common::{ClusterId, Incarnation, NodeId, VolumeId};
use holdfast_consensus::{GroupStatus, Role};
use holdfast_proto::control::{DroppedVolume, HeartbeatRequest, TableAssignment, TableReport, VolumeDrop};
use std::collections::BTreeSet;

/// The node that reports, as of this start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reporter {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
}

/// Contents of a report besides the tables.
#[derive(Debug, Default)]
pub(crate) struct Reporting {
    dropped: BTreeSet<(VolumeId, Incarnation)>,
}

impl Reporting {
    pub(crate) fn request(&self, reporter: Reporter, tables: Vec<TableReport>) -> HeartbeatRequest {
        HeartbeatRequest {
            cluster: reporter.cluster.to_string(),
            node: reporter.node.0,
            generation: reporter.generation,
            disks: Vec::new(),
            tables,
            dropped: self.dropped.iter().map(|(v, i)| DroppedVolume { volume: v.0, incarnation: i.0 }).collect(),
            feature_level: FEATURE_LEVEL,
        }
    }

    /// Forgets what the last request said: it was answered.
    pub(crate) fn answered(&mut self) {
        self.dropped.clear();
    }

    /// Nothing of the table is here any more.
    pub(crate) fn dropped(&mut self, order: &VolumeDrop) {
        self.dropped.insert((VolumeId(order.volume), Incarnation(order.incarnation)));
    }

    /// Whether the next heartbeat goes at once: the volume's deletion waits for it.
    pub(crate) fn is_urgent(&self) -> bool {
        !self.dropped.is_empty()
    }
}

/// Report of one replica.
pub(crate) fn table_report(volume: VolumeId, status: &GroupStatus, table: &Table, known: &Known) -> TableReport {
    let stat = table.stat_fs();
    let capacity = table.capacity();
    TableReport {
        volume: volume.0,
        incarnation: incarnation(volume, table, known).0,
        leader: status.role == Role::Leader,
        term: status.term.0,
        applied: status.applied.0,
        used_bytes: stat.used_bytes,
        inodes_count: stat.inodes,
        groups_count: capacity.groups_count,
        ready: table.configuration().is_some() && capacity.open_bytes > 0,
        feature_level: table.feature_level(),
    }
}

/// From the table; until it says so, from the assignment.
pub(crate) fn incarnation(volume: VolumeId, table: &Table, known: &Known) -> Incarnation {
    known_incarnation(volume, table, known).unwrap_or_default()
}

/// `None` for an empty table of which the volume manager has not spoken since this node started.
fn known_incarnation(volume: VolumeId, table: &Table, known: &Known) -> Option<Incarnation> {
    let assigned = || known.assignment(volume).map(|assignment| Incarnation(assignment.incarnation));
    table.configuration().map(|configuration| configuration.incarnation).or_else(assigned)
}

/// The voters of a replica that is to be made here; `None` if it is here, or belongs elsewhere.
pub(crate) fn to_create(assignment: &TableAssignment, node: NodeId, is_here: bool) -> Option<Vec<NodeId>> {
    let wanted = !is_here && assignment.replicas.contains(&node.0);
    wanted.then(|| assignment.replicas.iter().copied().map(NodeId).collect())
}

/// Whether an order to drop a table is obeyed: it carries a proof (R30), and means the incarnation that is here, if any is. An empty
/// table that nobody assigns any more, of a volume deleted while this node was away, is dropped by any proven order, or it stayed for
/// ever.
pub(crate) fn may_drop(order: &VolumeDrop, secret: &ClusterSecret, table: Option<&Table>, known: &Known) -> bool {
    let (volume, wanted) = (VolumeId(order.volume), Incarnation(order.incarnation));
    if !secret.verify(volume, wanted, Claim::DropVolume, &order.mac) {
        tracing::error!(%volume, "an order to drop a table carries no valid proof and is ignored");
        return false;
    }
    let here = table.and_then(|table| known_incarnation(volume, table, known));
    if here.is_some_and(|here| here != wanted) {
        tracing::error!(%volume, %wanted, "an order to drop another incarnation of a table is ignored");
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::control::HeartbeatResponse;

    const SECRET: ClusterSecret = ClusterSecret([5; 32]);
    const VOLUME: VolumeId = VolumeId(9);

    fn assignment(replicas: &[u64]) -> TableAssignment {
        TableAssignment { volume: 9, incarnation: 3, replicas: replicas.to_vec(), ..TableAssignment::default() }
    }

    fn order(incarnation: u64) -> VolumeDrop {
        let mac = SECRET.prove(VOLUME, Incarnation(incarnation), Claim::DropVolume).to_vec().into();
        VolumeDrop { volume: 9, incarnation, mac }
    }

    #[test]
    fn a_replica_is_made_where_it_is_assigned_and_not_there_yet() {
        let voters = Some(vec![NodeId(1), NodeId(2)]);
        assert_eq!(to_create(&assignment(&[1, 2]), NodeId(2), false), voters);
        assert_eq!(to_create(&assignment(&[1, 2]), NodeId(2), true), None);
        assert_eq!(to_create(&assignment(&[1, 2]), NodeId(3), false), None);
    }

    #[test]
    fn a_table_is_dropped_only_by_a_proof_for_its_own_incarnation() {
        let mut known = Known::default();
        known.learn(&HeartbeatResponse { tables: vec![assignment(&[1])], ..Default::default() }, 0);
        let table = Table::new();
        assert!(may_drop(&order(3), &SECRET, Some(&table), &known));
        assert!(!may_drop(&order(4), &SECRET, Some(&table), &known), "another incarnation");
        assert!(may_drop(&order(3), &SECRET, Some(&table), &Known::default()), "of an empty table nobody speaks of");
        assert!(may_drop(&order(4), &SECRET, None, &known), "nothing is here: it is confirmed");
        assert!(!may_drop(&order(3), &ClusterSecret([6; 32]), Some(&table), &known), "no proof");
        assert!(!may_drop(&VolumeDrop { incarnation: 4, ..order(3) }, &SECRET, None, &known), "a proof for another");
    }

    #[test]
    fn what_was_dropped_is_said_until_it_was_heard() {
        let reporter = Reporter { cluster: ClusterId([7; 16]), node: NodeId(1), generation: 2 };
        let mut reporting = Reporting::default();
        assert!(!reporting.is_urgent());
        reporting.dropped(&order(3));
        assert!(reporting.is_urgent());
        let said = reporting.request(reporter, vec![]);
        assert_eq!((said.node, said.generation, said.dropped.len()), (1, 2, 1));
        reporting.answered();
        assert!(!reporting.is_urgent() && reporting.request(reporter, vec![]).dropped.is_empty());
    }
}
