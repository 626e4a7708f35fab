//! The node's conversation with the volume manager: it registers, reports its tables, and does what it is told to host
//! or drop. Everything else on the node goes on while the volume manager is dead.

use crate::hosted::{Context, Hosted};
use crate::server::KIND;
use crate::table::FEATURE_LEVEL;
use holdfast_common::proof::Claim;
use holdfast_common::{Incarnation, NodeId, VolumeId};
use holdfast_consensus::Role as RaftRole;
use holdfast_node::{REGISTER_RETRY, is_final};
use holdfast_proto::control::{
    DroppedVolume, HeartbeatRequest, HeartbeatResponse, Role, TableAssignment, TableReport, VolumeDrop,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tonic::Status;

/// Registers unless that was done, then sends heartbeats. Returns only when the node must serve no more, with the reason:
/// the volume manager refuses it for good, or `home`, its directory, is gone or another.
pub(crate) async fn run(
    context: Arc<Context>,
    home: PathBuf,
    address: SocketAddr,
    registered: bool,
    interval: Duration,
) -> String {
    let mut complaint = Complaint::default();
    if !registered {
        let registration = context.identity.registration(Role::Metanode, address, Vec::new());
        while let Err(status) = context.volmgr.register(registration.clone()).await {
            if is_final(&status) {
                return status.message().to_owned();
            }
            complaint.about(&status);
            sleep(REGISTER_RETRY).await;
        }
    }
    let mut dropped = BTreeSet::new();
    loop {
        if let Err(why) = check_home(&context, &home).await {
            return why;
        }
        match context.volmgr.heartbeat(report(&context, &dropped)).await {
            Ok(response) => {
                complaint = Complaint::default();
                dropped.clear();
                obey(&context, response, &mut dropped).await;
            }
            Err(status) if is_final(&status) => return status.message().to_owned(),
            Err(status) => complaint.about(&status),
        }
        // What was dropped is reported at once: the volume's deletion waits for it.
        if dropped.is_empty() {
            tokio::select! {
                () = sleep(interval) => {}
                () = context.report.notified() => {}
            }
        }
    }
}

/// Whether the node's directory is still there, and its own: log and snapshots would be written on through open files.
async fn check_home(context: &Arc<Context>, home: &Path) -> Result<(), String> {
    let (context, home) = (Arc::clone(context), home.to_owned());
    let looked = tokio::task::spawn_blocking(move || context.identity.check_home(&home, KIND)).await;
    looked.unwrap_or(Ok(()))
}

/// Says the same thing once, however often it happens.
#[derive(Default)]
struct Complaint(String);

impl Complaint {
    fn about(&mut self, status: &Status) {
        if self.0 != status.message() {
            status.message().clone_into(&mut self.0);
            tracing::warn!(reason = status.message(), "the volume manager does not answer");
        }
    }
}

fn report(context: &Context, dropped: &BTreeSet<(VolumeId, Incarnation)>) -> HeartbeatRequest {
    HeartbeatRequest {
        cluster: context.identity.cluster.to_string(),
        node: context.identity.node.0,
        generation: context.identity.generation,
        disks: Vec::new(),
        tables: context.all_hosted().iter().map(|hosted| table_report(context, hosted)).collect(),
        dropped: dropped.iter().map(|(v, i)| DroppedVolume { volume: v.0, incarnation: i.0 }).collect(),
        feature_level: FEATURE_LEVEL,
    }
}

fn table_report(context: &Context, hosted: &Hosted) -> TableReport {
    let status = hosted.group.status();
    let state = hosted.group.state().read();
    let table = state.table();
    let stat = table.stat_fs();
    let capacity = table.capacity();
    let incarnation = incarnation(context, hosted.volume, table.configuration().map(|c| c.incarnation));
    TableReport {
        volume: hosted.volume.0,
        incarnation: incarnation.0,
        leader: status.role == RaftRole::Leader,
        term: status.term,
        applied: status.applied,
        used_bytes: stat.used_bytes,
        inodes_count: stat.inodes,
        groups_count: capacity.groups_count,
        ready: table.configuration().is_some() && capacity.open_bytes > 0,
        feature_level: table.feature_level(),
    }
}

/// As the table says, else as it was assigned.
fn incarnation(context: &Context, volume: VolumeId, configured: Option<Incarnation>) -> Incarnation {
    let assigned = || context.neighbours.assignment(volume).map(|assignment| Incarnation(assignment.incarnation));
    configured.or_else(assigned).unwrap_or_default()
}

async fn obey(context: &Arc<Context>, response: HeartbeatResponse, dropped: &mut BTreeSet<(VolumeId, Incarnation)>) {
    let response = Arc::new(response);
    let (learner, news) = (Arc::clone(context), Arc::clone(&response));
    match tokio::task::spawn_blocking(move || learner.neighbours.learn(&news)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "addresses were not written down"),
        Err(error) => tracing::error!(%error, "learning addresses failed"),
    }
    for assignment in &response.tables {
        create(context, assignment).await;
    }
    for order in &response.drops {
        if drop_table(context, order).await {
            dropped.insert((VolumeId(order.volume), Incarnation(order.incarnation)));
        }
    }
}

/// Makes this node's replica of a table unless it is there.
async fn create(context: &Arc<Context>, assignment: &TableAssignment) {
    let volume = VolumeId(assignment.volume);
    if context.hosted(volume).is_some() || !assignment.replicas.contains(&context.identity.node.0) {
        return;
    }
    let voters: Vec<NodeId> = assignment.replicas.iter().copied().map(NodeId).collect();
    let node = Arc::clone(&context.node);
    match tokio::task::spawn_blocking(move || node.create_group(volume.0, &voters)).await {
        Ok(Ok(())) => {
            tracing::info!(%volume, name = assignment.name, "table created");
            context.host(volume);
        }
        Ok(Err(error)) => tracing::error!(%volume, %error, "the table's replica was not created"),
        Err(error) => tracing::error!(%volume, %error, "creating the table's replica failed"),
    }
}

/// Drops a replica that the volume manager proves to want gone. True if nothing of it is here any more.
async fn drop_table(context: &Arc<Context>, order: &VolumeDrop) -> bool {
    let (volume, wanted) = (VolumeId(order.volume), Incarnation(order.incarnation));
    if !context.identity.secret.verify(volume, wanted, Claim::DropVolume, &order.mac) {
        tracing::error!(%volume, "an order to drop a table carries no valid proof and is ignored");
        return false;
    }
    if let Some(hosted) = context.hosted(volume) {
        let configured = hosted.group.state().read().table().configuration().map(|c| c.incarnation);
        if incarnation(context, volume, configured) != wanted {
            tracing::error!(%volume, %wanted, "an order to drop another incarnation of a table is ignored");
            return false;
        }
        context.unhost(volume);
    }
    let dropping = Arc::clone(context);
    let gone = tokio::task::spawn_blocking(move || {
        dropping.node.drop_group(volume.0).map_err(|error| error.to_string())?;
        dropping.neighbours.forget_table(volume).map_err(|error| error.to_string())
    });
    match gone.await {
        Ok(Ok(())) => {
            tracing::info!(%volume, "table dropped");
            true
        }
        Ok(Err(error)) => {
            tracing::error!(%volume, %error, "the table was not dropped");
            false
        }
        Err(error) => {
            tracing::error!(%volume, %error, "dropping the table failed");
            false
        }
    }
}
