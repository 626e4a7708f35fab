//! Reads: the shell around [`reading`], which waits for the barrier.

use crate::core::{led_term, reading};
use crate::hosted::{Context, Seat};
use holdfast_common::VolumeId;
use holdfast_proto::meta::{Code, ReadRequest, ReadResponse};
use holdfast_transport::{Refusal, Reply};

pub(super) async fn read(context: &Context, request: ReadRequest) -> Result<Reply, Refusal> {
    Ok(Reply::message(&answer(context, &request).await))
}

async fn answer(context: &Context, request: &ReadRequest) -> ReadResponse {
    let Some(hosted) = context.hosted(VolumeId(request.volume)) else {
        return reading::refusal(Code::NoSuchVolume);
    };
    let term = match led_term(&hosted.group.status()) {
        Ok(term) => term,
        Err(why) => return context.neighbours.known(|known| reading::not_led(&why, known)),
    };
    let barrier = hosted.group.read_barrier().await;
    reading::answer(&mut Seat { context, hosted: &hosted, term }, request, barrier)
}
