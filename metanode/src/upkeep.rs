//! Does what the upkeep decides ([`crate::core::upkeep`]), for one table.

use crate::core::upkeep::{ROUND_INTERVAL_MS, Step, Upkeep};
use crate::hosted::{Context, Hosted, Leadership, Seat};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Runs until the table is dropped or stopped; idle while another replica leads.
pub(crate) async fn run(context: Arc<Context>, hosted: Arc<Hosted>) {
    let mut ticks = interval(Duration::from_millis(ROUND_INTERVAL_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut upkeep = Upkeep::default();
    let mut leadership = Leadership::of(&hosted);
    while let Some(term) = leadership.wait().await {
        // Nothing unless this replica leads and its state is complete.
        if hosted.group.read_barrier().await.is_ok() {
            round(&mut upkeep, Seat { context: &context, hosted: &hosted, term }).await;
        }
        tokio::select! {
            _ = ticks.tick() => {}
            () = leadership.changed() => {}
        }
    }
}

async fn round(upkeep: &mut Upkeep, mut seat: Seat<'_>) {
    loop {
        match upkeep.next(&mut seat) {
            Step::Propose(op) => {
                let answer = seat.propose(op).await;
                upkeep.proposed(answer.as_ref(), &mut seat);
            }
            Step::AskGroups(request) => match seat.context.volmgr.allocate_groups(request).await {
                Ok(response) => upkeep.groups_given(Ok(response.groups), &seat),
                Err(status) => upkeep.groups_given(Err(status.message()), &seat),
            },
            Step::Report => seat.context.report.notify_one(),
            Step::Rest => return,
        }
    }
}
