//! Does what the sweep decides ([`crate::core::sweep`]), for one table.

use crate::core::sweep::{Member, ROUND_INTERVAL_MS, Step, Sweep};
use crate::hosted::{Context, Hosted, Leadership, Seat};
use holdfast_proto::data::{DeleteShardsRequest, DeleteShardsResponse};
use holdfast_proto::method::DATA_DELETE;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// A disk syncs its tombstones first; a busy one takes its time.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until the table is dropped or stopped; idle while another replica leads.
pub(crate) async fn run(context: Arc<Context>, hosted: Arc<Hosted>) {
    let mut ticks = interval(Duration::from_millis(ROUND_INTERVAL_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep = Sweep::default();
    let mut leadership = Leadership::of(&hosted);
    while let Some(term) = leadership.wait().await {
        sweep.follow(term);
        round(&mut sweep, &Seat { context: &context, hosted: &hosted, term }).await;
        ticks.tick().await;
    }
}

async fn round(sweep: &mut Sweep, seat: &Seat<'_>) {
    loop {
        match sweep.next(seat, &seat.context.identity.secret) {
            Step::Delete(requests) => send(sweep, seat, requests).await,
            Step::Forget(op) => sweep.proposed(seat.propose(op).await.as_ref()),
            Step::Wait | Step::Rest => return,
        }
    }
}

/// Sends every disk its part at once and waits for all answers.
async fn send(sweep: &mut Sweep, seat: &Seat<'_>, requests: Vec<(Member, DeleteShardsRequest)>) {
    let asked: Vec<Member> = requests.iter().map(|(member, _)| *member).collect();
    let mut under_way = JoinSet::new();
    for (member, request) in requests {
        let Some(address) = seat.context.neighbours.address(member.0) else {
            continue;
        };
        let client = seat.context.client.clone();
        under_way.spawn(async move {
            let answer: Result<DeleteShardsResponse, _> =
                client.unary(address, DATA_DELETE, &request, DELETE_TIMEOUT).await;
            (member, answer)
        });
    }
    while let Some(answered) = under_way.join_next().await {
        let Ok((member, answer)) = answered else { continue };
        if let Err(error) = &answer {
            let (volume, disk) = (seat.hosted.volume, member.1);
            tracing::debug!(%volume, %disk, %error, "a disk's node cannot be reached to delete shards");
        }
        sweep.answered(member, answer.as_ref().ok(), seat);
    }
    // Those of an unknown address among them.
    asked.into_iter().for_each(|member| sweep.answered(member, None, seat));
}
