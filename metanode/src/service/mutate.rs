//! Mutations: the leader stamps, proposes, and answers what apply said.

use crate::attendance::CreateTicket;
use crate::hosted::{Context, Hosted, NotLed};
use crate::table::{is_leader_only, refusal};
use bytes::Bytes;
use holdfast_common::{Incarnation, InodeId, NodeId, SessionId, VolumeId};
use holdfast_consensus::ProposeError;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, MutateRequest, MutateResponse};
use holdfast_transport::{Refusal, Reply};
use prost::Message;

/// What the leader notes when the operation was done.
enum Note<'a> {
    Nothing,
    Entered,
    Left(SessionId),
    Opened { session: SessionId, _under_way: CreateGuard<'a> },
}

/// A create under way; taken back however its request ends.
struct CreateGuard<'a> {
    hosted: &'a Hosted,
    term: u64,
    now_ms: u64,
    ticket: CreateTicket,
}

impl Drop for CreateGuard<'_> {
    fn drop(&mut self) {
        self.hosted.attendance(self.term, self.now_ms).end_create(&self.ticket);
    }
}

pub(super) async fn mutate(context: &Context, request: MutateRequest) -> Result<Reply, Refusal> {
    match run(context, request).await {
        Ok(encoded) => Ok(Reply { header: encoded, body: Vec::new() }),
        Err(response) => Ok(Reply::message(&*response)),
    }
}

async fn run(context: &Context, request: MutateRequest) -> Result<Bytes, Box<MutateResponse>> {
    let refuse = |code| Box::new(refusal(code));
    let hosted = context.hosted(VolumeId(request.volume)).ok_or_else(|| refuse(Code::NoSuchVolume))?;
    let not_leader = |leader: Option<NodeId>| {
        let leader = leader.map(|node| context.neighbours.address_text(node)).unwrap_or_default();
        Box::new(MutateResponse { leader, ..refusal(Code::NotLeader) })
    };
    let term = match hosted.led_term() {
        Ok(term) => term,
        Err(NotLed::Stopped) => return Err(refuse(Code::TableStopped)),
        Err(NotLed::By(leader)) => return Err(not_leader(leader)),
    };
    let op = request.mutation.and_then(|mutation| mutation.op);
    let mut op = op.filter(|op| !is_leader_only(op)).ok_or_else(|| refuse(Code::Invalid))?;
    check_incarnation(&hosted, Incarnation(request.incarnation)).map_err(refuse)?;
    let session = SessionId(request.session);
    let note = note_before(&hosted, &op, session, term, context.now_ms());
    stamp(context, &hosted, &mut op);
    let command = hosted.encode_command(op, request.session, request.sequence, request.acknowledged_below);
    match hosted.group.propose(command).await {
        Ok(encoded) => {
            note_after(&hosted, &note, &encoded, term, context.now_ms());
            Ok(encoded)
        }
        Err(ProposeError::NotLeader { leader }) => Err(not_leader(leader)),
        Err(ProposeError::Unknown | ProposeError::Overloaded) => Err(refuse(Code::Unavailable)),
        Err(ProposeError::TooLarge) => Err(refuse(Code::Invalid)),
        Err(ProposeError::Stopped) => Err(refuse(Code::TableStopped)),
    }
}

/// What only heartbeats know rides in the command (docs/decisions/0007), whatever the client wrote there.
fn stamp(context: &Context, hosted: &Hosted, op: &mut Op) {
    if let Op::Fallocate(op) = op {
        op.available_bytes = Some(hosted.on_disks_bytes(context, hosted.group.state().read().table()));
    }
}

/// A request for another life of the table, or before its first entry, does not reach the log.
fn check_incarnation(hosted: &Hosted, incarnation: Incarnation) -> Result<(), Code> {
    match hosted.group.state().read().table().configuration() {
        None => Err(Code::Unavailable),
        Some(configuration) if configuration.incarnation != incarnation => Err(Code::NoSuchVolume),
        Some(_) => Ok(()),
    }
}

fn note_before<'a>(hosted: &'a Hosted, op: &Op, session: SessionId, term: u64, now_ms: u64) -> Note<'a> {
    let mut attendance = hosted.attendance(term, now_ms);
    attendance.renew(session, now_ms);
    match op {
        Op::OpenSession(_) => Note::Entered,
        Op::CloseSession(_) => Note::Left(session),
        Op::Create(create) if create.open => {
            let ticket = attendance.begin_create();
            Note::Opened { session, _under_way: CreateGuard { hosted, term, now_ms, ticket } }
        }
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
        | Op::FreeDead(_) => Note::Nothing,
    }
}

fn note_after(hosted: &Hosted, note: &Note<'_>, encoded: &Bytes, term: u64, now_ms: u64) {
    if let Note::Nothing = note {
        return;
    }
    let Ok(response) = MutateResponse::decode(encoded.as_ref()) else { return };
    if response.code() != Code::Ok {
        return;
    }
    let mut attendance = hosted.attendance(term, now_ms);
    match note {
        Note::Nothing => {}
        Note::Entered => attendance.enter(SessionId(response.session), now_ms),
        Note::Left(session) => attendance.leave(*session),
        Note::Opened { session, .. } => {
            if let Some(attr) = response.attr {
                // Refused only for what is going already: the answer of a repeated request may be that late.
                attendance.open(*session, InodeId(attr.inode), now_ms);
            }
        }
    }
}
