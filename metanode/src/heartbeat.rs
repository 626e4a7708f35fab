//! The node's conversation with the volume manager: it registers, reports its tables, and does what it is told to host
//! or drop. Everything else on the node goes on while the volume manager is dead.

use crate::core::reporting::{self, Reporter, Reporting};
use crate::directory::KIND;
use crate::hosted::{Context, Hosted};
use crate::leading;
use crate::machine::raft_group;
use holdfast_common::VolumeId;
use holdfast_consensus::GroupError;
use holdfast_node::superblock::SuperblockError;
use holdfast_node::{Complaint, HomeLost, NodeSuperblock, is_final, look_at_home};
use holdfast_proto::control::{HeartbeatRequest, HeartbeatResponse, Role, TableAssignment, VolumeDrop};
use std::future::ready;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Registers unless that was done, then sends heartbeats. Returns only when the node must serve no more, with the reason:
/// the volume manager refuses it for good, or `home`, its directory, is gone or another.
pub(crate) async fn run(
    context: Arc<Context>,
    home: PathBuf,
    address: SocketAddr,
    registered: bool,
    interval: Duration,
) -> String {
    let mut complaint = Complaint::new("the volume manager does not answer");
    if !registered {
        let registration = context.identity.registration(Role::Metanode, address, Vec::new());
        let request = || ready(registration.clone());
        if let Err(status) = context.volmgr.register_at_last(request, |status| complaint.about(status)).await {
            return status.message().to_owned();
        }
    }
    let mut reporting = Reporting::default();
    loop {
        if let Err(why) = check_home(&context, &home).await {
            return why.to_string();
        }
        context.grants.lock().expire(context.now_ms());
        match context.volmgr.heartbeat(report(&context, &reporting)).await {
            Ok(response) => {
                complaint.end();
                reporting.answered();
                obey(&context, response, &mut reporting).await;
            }
            Err(status) if is_final(&status) => return status.message().to_owned(),
            Err(status) => complaint.about(&status),
        }
        if !reporting.is_urgent() {
            tokio::select! {
                () = sleep(interval) => {}
                () = context.report.notified() => {}
            }
        }
    }
}

/// Whether the node's directory is still there, and its own: log and snapshots would be written on through open files.
async fn check_home(context: &Arc<Context>, home: &Path) -> Result<(), HomeLost> {
    let (context, home) = (Arc::clone(context), home.to_owned());
    look_at_home(move || context.identity.check_home(&home, KIND)).await
}

fn report(context: &Context, reporting: &Reporting) -> HeartbeatRequest {
    let NodeSuperblock { cluster, node, generation, .. } = context.identity;
    let table_report = |hosted: &Arc<Hosted>| {
        let status = hosted.group.status();
        let state = hosted.group.state().read();
        context.neighbours.known(|known| reporting::table_report(hosted.volume, &status, state.table(), known))
    };
    let tables = context.all_hosted().iter().map(table_report).collect();
    reporting.request(Reporter { cluster, node, generation }, tables)
}

async fn obey(context: &Arc<Context>, response: HeartbeatResponse, reporting: &mut Reporting) {
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
            reporting.dropped(order);
        }
    }
}

/// Makes this node's replica of a table unless it is there.
async fn create(context: &Arc<Context>, assignment: &TableAssignment) {
    let volume = VolumeId(assignment.volume);
    let is_here = context.hosted(volume).is_some();
    let Some(voters) = reporting::to_create(assignment, context.identity.node, is_here) else { return };
    let node = Arc::clone(&context.node);
    match tokio::task::spawn_blocking(move || node.create_group(raft_group(volume), &voters)).await {
        Ok(Ok(())) => {
            tracing::info!(%volume, name = assignment.name, "table created");
            leading::host(context, volume);
        }
        Ok(Err(error)) => tracing::error!(%volume, %error, "the table's replica was not created"),
        Err(error) => tracing::error!(%volume, %error, "creating the table's replica failed"),
    }
}

/// Reason why a replica was not dropped.
#[derive(Debug, thiserror::Error)]
enum DropFailed {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Addresses(SuperblockError),
}

/// Drops a replica that the volume manager proves to want gone. True if nothing of it is here any more.
async fn drop_table(context: &Arc<Context>, order: &VolumeDrop) -> bool {
    let volume = VolumeId(order.volume);
    let obeyed = {
        let hosted = context.hosted(volume);
        let state = hosted.as_ref().map(|hosted| hosted.group.state().read());
        let table = state.as_ref().map(|state| state.table());
        context.neighbours.known(|known| reporting::may_drop(order, &context.identity.secret, table, known))
    };
    if !obeyed {
        return false;
    }
    context.unhost(volume);
    let dropping = Arc::clone(context);
    let gone = tokio::task::spawn_blocking(move || {
        dropping.node.drop_group(raft_group(volume))?;
        dropping.neighbours.forget_table(volume).map_err(DropFailed::Addresses)
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
