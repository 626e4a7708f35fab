//! Mutations: what the leader checks, stamps and notes before it proposes, and what it notes and answers then. Between
//! [`begin`] and [`end`] lies the proposal; however the request ends, [`let_go`] comes last.

use super::NotLed;
use super::attendance::CreateTicket;
use super::command::{self, Place};
use super::known::Known;
use super::view::View;
use crate::table::{Table, is_leader_only, refusal};
use bytes::Bytes;
use holdfast_common::{Incarnation, InodeId, NodeId, SessionId};
use holdfast_consensus::ProposeError;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, MutateRequest, MutateResponse};
use prost::Message;

/// Note for the leader once the operation is done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Nothing,
    Entered,
    Left(SessionId),
    Opened { session: SessionId, ticket: CreateTicket },
}

/// The answer of a replica that does not lead.
pub(crate) fn not_led(why: &NotLed, known: &Known) -> MutateResponse {
    match why {
        NotLed::By(leader) => not_leader(*leader, known),
        NotLed::Stopped => refusal(Code::TableStopped),
    }
}

fn not_leader(leader: Option<NodeId>, known: &Known) -> MutateResponse {
    let leader = leader.map(|node| known.address_text(node).to_owned()).unwrap_or_default();
    MutateResponse { leader, ..refusal(Code::NotLeader) }
}

/// Prepares the entry to propose for a client, and the note for when it is answered.
pub(crate) fn begin(view: &mut impl View, request: MutateRequest) -> Result<(Bytes, Note), Code> {
    let op = request.mutation.and_then(|mutation| mutation.op);
    let mut op = op.filter(|op| !is_leader_only(op)).ok_or(Code::Invalid)?;
    view.table(|table| {
        check_incarnation(table, Incarnation(request.incarnation))?;
        stamp(view, table, &mut op);
        Ok(())
    })?;
    let note = note_before(view, &op, SessionId(request.session));
    let place =
        Place { session: request.session, sequence: request.sequence, acknowledged_below: request.acknowledged_below };
    Ok((command::encode(view, op, place), note))
}

/// Notes what the operation did, and makes the client's answer: as apply encoded it, or a refusal.
pub(crate) fn end(
    view: &mut impl View,
    note: &Note,
    answer: Result<Bytes, ProposeError>,
) -> Result<Bytes, Box<MutateResponse>> {
    let refuse = |code| Box::new(refusal(code));
    match answer {
        Ok(encoded) => {
            note_after(view, note, &encoded);
            Ok(encoded)
        }
        Err(ProposeError::NotLeader { leader }) => Err(Box::new(view.known(|known| not_leader(leader, known)))),
        Err(ProposeError::Unknown | ProposeError::Overloaded) => Err(refuse(Code::Unavailable)),
        Err(ProposeError::NoSpace) => Err(refuse(Code::NoSpace)),
        Err(ProposeError::TooLarge) => Err(refuse(Code::Invalid)),
        Err(ProposeError::Stopped) => Err(refuse(Code::TableStopped)),
    }
}

/// The request is under way no more, answered or not: its create holds up no reaping.
pub(crate) fn let_go(view: &mut impl View, note: &Note) {
    if let Note::Opened { ticket, .. } = note {
        view.attendance(|attendance| attendance.end_create(ticket));
    }
}

/// A request for another life of the table, or before its first entry, does not reach the log.
fn check_incarnation(table: &Table, incarnation: Incarnation) -> Result<(), Code> {
    match table.configuration() {
        None => Err(Code::Unavailable),
        Some(configuration) if configuration.incarnation != incarnation => Err(Code::NoSuchVolume),
        Some(_) => Ok(()),
    }
}

/// Puts into the command what only heartbeats know (docs/decisions/0007), whatever the client wrote there.
fn stamp(view: &impl View, table: &Table, op: &mut Op) {
    if let Op::Fallocate(op) = op {
        op.available_bytes = Some(view.on_disks_bytes(table));
    }
}

fn note_before(view: &mut impl View, op: &Op, session: SessionId) -> Note {
    let now_ms = view.now_ms();
    view.attendance(|attendance| {
        attendance.renew(session, now_ms);
        match op {
            Op::OpenSession(_) => Note::Entered,
            Op::CloseSession(_) => Note::Left(session),
            Op::Create(create) if create.open => Note::Opened { session, ticket: attendance.begin_create() },
            Op::Create(_)
            | Op::Link(_)
            | Op::Unlink(_)
            | Op::Rename(_)
            | Op::SetAttr(_)
            | Op::Commit(_)
            | Op::Fallocate(_)
            | Op::SetXattr(_)
            | Op::RemoveXattr(_)
            | Op::ReserveChunks(_)
            | Op::ReserveQuota(_) => Note::Nothing,
            // Not taken from clients.
            Op::ExpireSessions(_)
            | Op::ReapOrphans(_)
            | Op::AddGroups(_)
            | Op::VacateSlot(_)
            | Op::SetGroupState(_)
            | Op::ForgetChunks(_)
            | Op::RaiseFloor(_)
            | Op::Configure(_)
            | Op::RaiseFeatureLevel(_)
            | Op::FreeDead(_)
            | Op::Swept(_) => Note::Nothing,
        }
    })
}

fn note_after(view: &mut impl View, note: &Note, encoded: &Bytes) {
    if let Note::Nothing = note {
        return;
    }
    let Ok(response) = MutateResponse::decode(encoded.as_ref()) else { return };
    if response.code() != Code::Ok {
        return;
    }
    let now_ms = view.now_ms();
    view.attendance(|attendance| match note {
        Note::Nothing => {}
        Note::Entered => attendance.enter(SessionId(response.session), now_ms),
        Note::Left(session) => attendance.leave(*session),
        Note::Opened { session, .. } => {
            if let Some(attr) = &response.attr {
                // Refused only for what is going already: the answer of a repeated request may be that late.
                attendance.open(*session, InodeId(attr.inode), now_ms);
            }
        }
    });
}

#[cfg(test)]
mod tests;
