//! Mutations: the shell around [`mutating`], which waits for the proposal.

use crate::core::led_term;
use crate::core::mutating::{self, Note};
use crate::hosted::{Context, Seat};
use crate::table::refusal;
use bytes::Bytes;
use holdfast_common::VolumeId;
use holdfast_proto::meta::{Code, MutateRequest, MutateResponse};
use holdfast_transport::{Refusal, Reply};

/// A mutation under way; let go however its request ends, its deadline included.
struct UnderWay<'a> {
    seat: Seat<'a>,
    note: Note,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        mutating::let_go(&mut self.seat, &self.note);
    }
}

pub(super) async fn mutate(context: &Context, request: MutateRequest) -> Result<Reply, Refusal> {
    match run(context, request).await {
        Ok(encoded) => Ok(Reply::encoded(&encoded)),
        Err(response) => Ok(Reply::message(&*response)),
    }
}

async fn run(context: &Context, request: MutateRequest) -> Result<Bytes, Box<MutateResponse>> {
    let refuse = |code| Box::new(refusal(code));
    let hosted = context.hosted(VolumeId(request.volume)).ok_or_else(|| refuse(Code::NoSuchVolume))?;
    let term = led_term(&hosted.group.status())
        .map_err(|why| Box::new(context.neighbours.known(|known| mutating::not_led(&why, known))))?;
    let mut seat = Seat { context, hosted: &hosted, term };
    let (command, note) = mutating::begin(&mut seat, request).map_err(refuse)?;
    let mut under_way = UnderWay { seat, note };
    let answer = hosted.group.propose(command).await;
    let UnderWay { seat, note } = &mut under_way;
    mutating::end(seat, note, answer)
}
