//! Does what the collector decides ([`crate::core::collect`]), for one table.

use crate::core::collect::{Answer, Collector, Question, ROUND_INTERVAL_MS, Step};
use crate::core::sweep::Member;
use crate::hosted::{Context, Hosted, Leadership, Seat};
use holdfast_proto::method::{DATA_DELETE, DATA_LIST, DATA_SET_FLOOR};
use holdfast_transport::{Client, RpcError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// A disk syncs what it promises first; a busy one takes its time.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until the table is dropped or stopped; idle while another replica leads.
pub(crate) async fn run(context: Arc<Context>, hosted: Arc<Hosted>) {
    let mut ticks = interval(Duration::from_millis(ROUND_INTERVAL_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut collector = Collector::default();
    let mut leadership = Leadership::of(&hosted);
    while let Some(term) = leadership.wait().await {
        collector.follow(term);
        round(&mut collector, &Seat { context: &context, hosted: &hosted, term }).await;
        ticks.tick().await;
    }
}

async fn round(collector: &mut Collector, seat: &Seat<'_>) {
    loop {
        match collector.next(seat, &seat.context.identity.secret) {
            Step::Propose(op) => collector.proposed(seat.propose(op).await.as_ref(), seat),
            Step::Ask(questions) => ask(collector, seat, questions).await,
            Step::Barrier => {
                let passed = seat.hosted.group.read_barrier().await.is_ok();
                if !collector.barred(passed, seat) {
                    return;
                }
            }
            Step::Wait | Step::Rest => return,
        }
    }
}

/// Asks every disk at once and waits for all answers.
async fn ask(collector: &mut Collector, seat: &Seat<'_>, questions: Vec<(Member, Question)>) {
    let asked: Vec<Member> = questions.iter().map(|(member, _)| *member).collect();
    let mut under_way = JoinSet::new();
    for (member, question) in questions {
        let Some(address) = seat.context.neighbours.address(member.0) else { continue };
        let client = seat.context.client.clone();
        under_way.spawn(async move { (member, put(&client, address, &question).await) });
    }
    while let Some(answered) = under_way.join_next().await {
        let Ok((member, answer)) = answered else { continue };
        if let Err(error) = &answer {
            let (volume, disk) = (seat.hosted.volume, member.1);
            tracing::debug!(%volume, %disk, %error, "a disk's node cannot be reached to compare it");
        }
        collector.answered(member, answer.ok(), seat);
    }
    // Those of an unknown address among them.
    asked.into_iter().for_each(|member| collector.answered(member, None, seat));
}

async fn put(client: &Client, address: SocketAddr, question: &Question) -> Result<Answer, RpcError> {
    Ok(match question {
        Question::SetFloor(request) => {
            Answer::FloorSet(client.unary(address, DATA_SET_FLOOR, request, ASK_TIMEOUT).await?)
        }
        Question::List(request) => Answer::Listed(client.unary(address, DATA_LIST, request, ASK_TIMEOUT).await?),
        Question::Delete(request) => Answer::Deleted(client.unary(address, DATA_DELETE, request, ASK_TIMEOUT).await?),
    })
}
