//! Entries of the log: how they are stamped and encoded, and what the answer to one of the leader's own says.

use super::view::View;
use crate::table::COMMAND_VERSION;
use bytes::Bytes;
use holdfast_common::VolumeId;
use holdfast_consensus::ProposeError;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{MutateResponse, Mutation};
use holdfast_proto::record::TableCommand;
use prost::Message;

/// Number of a client's command among the others of its session (R8); zeros for one of the leader's own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) session: u64,
    pub(crate) sequence: u64,
    pub(crate) acknowledged_below: u64,
}

/// An entry of the log, stamped with this node's clock; the table makes its time rise.
pub(crate) fn encode(view: &impl View, op: Op, place: Place) -> Bytes {
    let command = TableCommand {
        version: COMMAND_VERSION,
        time_ns: view.stamp_ns(),
        session: place.session,
        sequence: place.sequence,
        acknowledged_below: place.acknowledged_below,
        mutation: Some(Mutation { op: Some(op) }),
    };
    command.encode_to_vec().into()
}

/// Answer to an entry of the leader's own; `None` if it is not known to have happened, which the log then tells.
pub(crate) fn own_answer(volume: VolumeId, answer: Result<Bytes, ProposeError>) -> Option<MutateResponse> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(ProposeError::NotLeader { .. }) => return None,
        Err(why) => {
            tracing::warn!(%volume, %why, "an entry of the leader's own was not answered");
            return None;
        }
    };
    match MutateResponse::decode(answer) {
        Ok(response) => Some(response),
        Err(error) => {
            tracing::error!(%volume, %error, "apply answered what is no response");
            None
        }
    }
}
