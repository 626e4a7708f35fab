//! Serves a table on this node: its replica, and the tasks that do the leader's work whenever it leads.

use crate::hosted::Context;
use crate::{collect, sweep, upkeep};
use holdfast_common::VolumeId;
use std::sync::Arc;

/// Serves a replica that consensus has, unless it is served already.
pub(crate) fn host(context: &Arc<Context>, volume: VolumeId) {
    context.host(volume, |hosted| {
        let upkeep = tokio::spawn(upkeep::run(Arc::clone(context), Arc::clone(hosted))).abort_handle();
        let sweep = tokio::spawn(sweep::run(Arc::clone(context), Arc::clone(hosted))).abort_handle();
        let collect = tokio::spawn(collect::run(Arc::clone(context), Arc::clone(hosted))).abort_handle();
        [upkeep, sweep, collect]
    });
}
