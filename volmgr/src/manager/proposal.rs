//! Entries of the log: how they are written, and what their outcomes mean.

use std::time::Duration;

use bytes::Bytes;
use holdfast_common::ClusterId;
use holdfast_consensus::{ProposeError, ReadError};
use holdfast_proto::cluster::cluster_command::Op;
use holdfast_proto::cluster::{ClusterCommand, ClusterReply, Initialise};
use prost::Message;

use super::{Denial, Now};
use crate::state::{COMMAND_VERSION, RefusalKind};

/// Longest wait for an entry to be applied, repetitions included.
pub(crate) const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between repetitions.
pub(crate) const PROPOSE_PAUSE: Duration = Duration::from_millis(50);

/// Encodes the entry of an operation.
pub(crate) fn command_of(op: Op, now: Now) -> Bytes {
    let command = ClusterCommand { version: COMMAND_VERSION, time_ns: now.wall_ns, op: Some(op) };
    command.encode_to_vec().into()
}

/// The first entry: the log knows its cluster and a secret. Of many, the first one's secret stays.
pub(crate) fn initialising(cluster: ClusterId, secret: [u8; 32]) -> Op {
    Op::Initialise(Initialise { cluster: cluster.0.to_vec().into(), secret: secret.to_vec().into() })
}

/// Outcome of a proposal, or of a question whether the state may be read.
pub(crate) enum Verdict<T, E> {
    /// It was done or refused.
    Decided(Result<T, Denial>),
    /// Whether it was done is unknown, or it was not. Every command may safely be proposed twice.
    Again(E),
}

/// Judges the outcome of a proposal.
pub(crate) fn verdict(outcome: Result<Bytes, ProposeError>) -> Verdict<ClusterReply, ProposeError> {
    match outcome {
        Ok(reply) => Verdict::Decided(reply_of(&reply)),
        Err(error @ (ProposeError::Stopped | ProposeError::TooLarge)) => {
            Verdict::Decided(Err(Denial::internal(format!("the volume manager's log: {error}"))))
        }
        Err(error @ ProposeError::NoSpace) => Verdict::Decided(Err(Denial::busy(format!(
            "the volume manager takes nothing new: {error}; make room on it"
        )))),
        Err(error @ (ProposeError::NotLeader { .. } | ProposeError::Unknown | ProposeError::Overloaded)) => {
            Verdict::Again(error)
        }
    }
}

/// Judges the outcome of a read barrier.
pub(crate) fn read_verdict(outcome: Result<(), ReadError>) -> Verdict<(), ReadError> {
    match outcome {
        Ok(()) => Verdict::Decided(Ok(())),
        Err(error @ ReadError::Stopped) => Verdict::Decided(Err(Denial::internal(error.to_string()))),
        Err(error @ (ReadError::NotLeader { .. } | ReadError::Overloaded)) => Verdict::Again(error),
    }
}

/// Decodes a reply; a refusal by apply is an error with its text.
fn reply_of(bytes: &[u8]) -> Result<ClusterReply, Denial> {
    let reply = ClusterReply::decode(bytes).map_err(|_| Denial::internal("apply answered what is no reply"))?;
    if reply.refusal == 0 {
        return Ok(reply);
    }
    Err(match RefusalKind::from_number(reply.refusal) {
        Some(kind) => Denial::of(kind, reply.detail),
        None => Denial::internal(reply.detail),
    })
}
