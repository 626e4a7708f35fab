//! Requests to the metadata table: sequence numbers, the acknowledged floor, retries, and whom to ask. Pure.
//!
//! A mutation keeps its sequence number until it is answered, also when nobody waits for it any more, so that the table
//! executes it exactly once (R8). A number counts as acknowledged only when its answer was taken in. Questions may be
//! dropped at any time.

use super::code_of;
use super::effects::{AttemptId, Effects, Note, RequestId, Response, Send, Wire};
use super::members::Members;
use super::sabotage::Sabotage;
use super::time::Moment;
use crate::{CallFailed, Error};
use holdfast_common::limits::SESSION_IN_FLIGHT_MAX;
use holdfast_common::{Ascending, Incarnation, NodeId, Pauses, SessionId, VolumeId};
use holdfast_proto::meta::{Code, MutateRequest, Mutation, ReadRequest, mutation, read_request};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// One attempt at one metanode. Well above a sync on a busy disk; a retry under the same number is harmless.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between attempts while there is no leader; doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Pause before a named leader is asked: two replicas that name each other during an election must not make a busy loop.
const FOLLOW_PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Mutation(mutation::Op),
    Question(read_request::Op),
}

#[derive(Debug)]
struct Request<A> {
    asker: A,
    body: Body,
    sequence: Option<u64>,
    /// Session of the last attempt.
    session: SessionId,
    pauses: Pauses,
    retry_at: Option<Moment>,
    attempts: u32,
    /// Address of the last attempt, until it is answered.
    sent_to: Option<SocketAddr>,
}

/// Meaning of an answer for the asker.
#[derive(Debug)]
pub(crate) enum Outcome<A> {
    /// An answer, or the table's refusal.
    Answered(A, Result<Response, Error>),
    /// The table says that this session has ended. The request waits for the next one, or has ended with [`Self::Answered`].
    Expired(SessionId),
    /// It goes on.
    Pending,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    index: usize,
    named: Option<SocketAddr>,
}

/// Requests under way of one mount. `A` says what an answer is for.
#[derive(Debug)]
pub(crate) struct Requests<A> {
    volume: VolumeId,
    incarnation: Incarnation,
    replicas: Vec<NodeId>,
    target: Target,
    session: Option<SessionId>,
    next_sequence: u64,
    outstanding: Ascending<u64>,
    next_id: u64,
    /// Boxed, to be moved cheaply.
    requests: Ascending<RequestId, Box<Request<A>>>,
    retries: Ascending<(Moment, RequestId)>,
    /// Without a number or a session yet, in their order.
    waiting: VecDeque<RequestId>,
    sabotage: Sabotage,
}

/// Meaning of an answer's code.
enum Verdict {
    Done,
    Expired,
    /// This one leads: it is asked next.
    Follow(SocketAddr),
    /// Ask another one, after a pause.
    Another,
    /// Ask the same one again, after a pause.
    Again,
}

fn judge(code: Code, leader: &str) -> Verdict {
    match code {
        Code::NotLeader => leader.parse().map_or(Verdict::Another, Verdict::Follow),
        Code::NoSuchVolume | Code::TableStopped => Verdict::Another,
        Code::Unavailable => Verdict::Again,
        Code::SessionExpired => Verdict::Expired,
        Code::Ok
        | Code::NotFound
        | Code::Exists
        | Code::NotDirectory
        | Code::IsDirectory
        | Code::NotEmpty
        | Code::Invalid
        | Code::NameTooLong
        | Code::TooManyLinks
        | Code::NoData
        | Code::TooBig
        | Code::FileTooLarge
        | Code::NoSpace
        | Code::Quota
        | Code::Stale
        | Code::NotSupported
        | Code::NotPermitted
        | Code::SequenceStale
        | Code::RewriteChunk
        | Code::Truncated
        | Code::Changed => Verdict::Done,
    }
}

/// Whether this lists what is open. It is not sent again: another leader would take an old list for the whole one, and reap what
/// was opened since, under its predecessor. The next keep-alive asks whether a list is needed.
fn lists_open(body: &Body) -> bool {
    matches!(body, Body::Question(read_request::Op::KeepAlive(keep_alive)) if keep_alive.attach)
}

impl Response {
    fn code(&self) -> Result<Code, Error> {
        code_of(match self {
            Self::Mutate(response) => response.code,
            Self::Read(response) => response.code,
        })
    }

    fn leader(&self) -> &str {
        match self {
            Self::Mutate(response) => &response.leader,
            Self::Read(response) => &response.leader,
        }
    }

    fn detail(&self) -> &str {
        match self {
            Self::Mutate(response) => &response.detail,
            Self::Read(response) => &response.detail,
        }
    }

    fn checked(self) -> Result<Self, Error> {
        match self.code()? {
            Code::Ok => Ok(self),
            code => Err(Error::Refused { code, detail: self.detail().to_owned() }),
        }
    }
}

impl<A> Requests<A> {
    pub(crate) fn new(volume: VolumeId, incarnation: Incarnation, replicas: Vec<NodeId>, sabotage: Sabotage) -> Self {
        Self {
            volume,
            incarnation,
            replicas,
            target: Target { index: 0, named: None },
            session: None,
            next_sequence: 1,
            outstanding: Ascending::default(),
            next_id: 0,
            requests: Ascending::default(),
            retries: Ascending::default(),
            waiting: VecDeque::new(),
            sabotage,
        }
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// Requests that are not answered yet.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Goes on under a new session; numbers start anew. What waited for it is sent.
    pub(crate) fn set_session(&mut self, session: SessionId, now: Moment, members: &Members, out: &mut Effects) {
        self.session = Some(session);
        self.next_sequence = 1;
        self.outstanding.clear();
        self.pump(now, members, out);
    }

    /// Ends the session. Gives back who asked for mutations: whether those happened will never be known. Questions wait for
    /// the next session.
    pub(crate) fn end_session(&mut self) -> Vec<A> {
        self.session = None;
        let mutations = self.requests.iter().filter(|(_, request)| matches!(request.body, Body::Mutation(_)));
        let ended: Vec<RequestId> = mutations.map(|(id, _)| *id).collect();
        ended.into_iter().filter_map(|id| self.remove(id)).map(|request| request.asker).collect()
    }

    /// Sends a request as soon as it may be sent.
    pub(crate) fn start(
        &mut self,
        body: Body,
        asker: A,
        now: Moment,
        members: &Members,
        out: &mut Effects,
    ) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let request = Request {
            asker,
            body,
            sequence: None,
            session: SessionId(0),
            pauses: Pauses::new(RETRY_PAUSE, RETRY_PAUSE_MAX),
            retry_at: None,
            attempts: 0,
            sent_to: None,
        };
        self.requests.insert(id, Box::new(request));
        if !self.dispatch(id, now, members, out) {
            self.waiting.push_back(id);
        }
        id
    }

    /// Forgets a question, or a mutation that was never sent, and gives back who asked it. A mutation that was sent goes on until
    /// it is answered.
    pub(crate) fn forget_unsent(&mut self, id: RequestId) -> Option<A> {
        let request = self.requests.get(&id)?;
        let unsent = matches!(request.body, Body::Question(_)) || request.sequence.is_none();
        unsent.then(|| self.remove(id)).flatten().map(|request| request.asker)
    }

    fn remove(&mut self, id: RequestId) -> Option<Box<Request<A>>> {
        let request = self.requests.remove(&id)?;
        if let Some(at) = request.retry_at {
            self.retries.remove(&(at, id));
        }
        if request.session == self.session.unwrap_or_default()
            && let Some(sequence) = request.sequence
        {
            self.outstanding.remove(&sequence);
        }
        Some(request)
    }

    /// Sends what waits, as far as the bound on numbers in flight allows.
    fn pump(&mut self, now: Moment, members: &Members, out: &mut Effects) {
        while let Some(id) = self.waiting.pop_front() {
            if self.requests.contains(&id) && !self.dispatch(id, now, members, out) {
                self.waiting.push_front(id);
                return;
            }
        }
    }

    /// Whether it could be sent, or tried.
    fn dispatch(&mut self, id: RequestId, now: Moment, members: &Members, out: &mut Effects) -> bool {
        let Some(request) = self.requests.get_mut(&id) else { return true };
        let opens_session = matches!(request.body, Body::Mutation(mutation::Op::OpenSession(_)));
        let is_mutation = matches!(request.body, Body::Mutation(_));
        if opens_session {
            request.session = SessionId(0);
        } else {
            let Some(session) = self.session else { return false };
            if self.sabotage == Sabotage::NewNumberOnRetry
                && let Some(former) = request.sequence.take()
            {
                self.outstanding.remove(&former);
            }
            if is_mutation && request.sequence.is_none() {
                if self.outstanding.len() >= SESSION_IN_FLIGHT_MAX {
                    return false;
                }
                request.sequence = Some(self.next_sequence);
                self.outstanding.insert(self.next_sequence, ());
                self.next_sequence += 1;
            }
            request.session = session;
        }
        self.send(id, now, members, out);
        true
    }

    fn address(&self, members: &Members) -> Option<SocketAddr> {
        self.target.named.or_else(|| {
            let node = self.replicas.get(self.target.index % self.replicas.len().max(1))?;
            members.address(*node)
        })
    }

    fn send(&mut self, id: RequestId, now: Moment, members: &Members, out: &mut Effects) {
        let to = self.address(members);
        let floor = self.outstanding.first().map(|(sequence, ())| *sequence);
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(to) = to else {
            out.ask_volmgr = true;
            return self.pause(id, now);
        };
        request.attempts += 1;
        request.sent_to = Some(to);
        let attempt = AttemptId { request: id, attempt: request.attempts };
        let (volume, incarnation, session) = (self.volume.0, self.incarnation.0, request.session.0);
        let wire = match &request.body {
            Body::Mutation(op) => Wire::Mutate(Box::new(MutateRequest {
                volume,
                incarnation,
                session,
                sequence: request.sequence.unwrap_or(0),
                // Its own number is outstanding, so that the floor is never above it.
                acknowledged_below: request.sequence.map_or(0, |own| floor.unwrap_or(own).min(own)),
                mutation: Some(Mutation { op: Some(op.clone()) }),
            })),
            Body::Question(op) => {
                Wire::Read(Box::new(ReadRequest { volume, incarnation, session, op: Some(op.clone()) }))
            }
        };
        out.sends.push(Send { attempt, to, request: wire, timeout: ATTEMPT_TIMEOUT });
    }

    /// Tries again after its pause, which doubles.
    fn pause(&mut self, id: RequestId, now: Moment) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let at = now + request.pauses.next_pause();
        self.retry_at(id, at);
    }

    fn retry_at(&mut self, id: RequestId, at: Moment) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.retry_at = Some(at);
            self.retries.insert((at, id), ());
        }
    }

    /// Time of the next [`Requests::tick`] that has something to do.
    pub(crate) fn wake(&self) -> Option<Moment> {
        self.retries.first().map(|((at, _), ())| *at)
    }

    /// Tries again what has paused long enough.
    pub(crate) fn tick(&mut self, now: Moment, members: &Members, out: &mut Effects) {
        while let Some((at, id)) = self.retries.first().map(|(key, ())| *key).filter(|(at, _)| *at <= now) {
            self.retries.remove(&(at, id));
            if let Some(request) = self.requests.get_mut(&id) {
                request.retry_at = None;
            }
            if !self.dispatch(id, now, members, out) {
                self.waiting.push_back(id);
            }
        }
    }

    /// Takes an answer in.
    pub(crate) fn answered(
        &mut self,
        attempt: AttemptId,
        answer: Result<Response, CallFailed>,
        now: Moment,
        members: &Members,
        out: &mut Effects,
    ) -> Outcome<A> {
        let id = attempt.request;
        let request = self.requests.get_mut(&id).filter(|request| request.attempts == attempt.attempt);
        let Some(asked) = request.and_then(|request| request.sent_to.take()) else { return Outcome::Pending };
        let verdict = match &answer {
            // One that this version does not know ends the request, too: asked again it would be answered the same.
            Ok(response) => response.code().map_or(Verdict::Done, |code| judge(code, response.leader())),
            Err(_) => Verdict::Another,
        };
        let reason = match &answer {
            Ok(response) => response.detail().to_owned(),
            Err(failed) => failed.to_string(),
        };
        match verdict {
            Verdict::Done => {
                let Some(request) = self.remove(id) else { return Outcome::Pending };
                self.pump(now, members, out);
                let answer = answer.map_err(|_| Error::TimedOut(reason)).and_then(Response::checked);
                return Outcome::Answered(request.asker, answer);
            }
            Verdict::Expired => return self.expired(id, now, members, out),
            Verdict::Follow(leader) if leader != asked => {
                self.target.named = Some(leader);
                self.retry_at(id, now + FOLLOW_PAUSE);
            }
            Verdict::Again => self.pause(id, now),
            Verdict::Follow(_) | Verdict::Another => {
                self.turn_from(asked, members);
                out.ask_volmgr = true;
                self.pause(id, now);
            }
        }
        out.notes.push(Note::Again(reason.clone()));
        if self.requests.get(&id).is_some_and(|request| lists_open(&request.body)) {
            let ended = self.remove(id).map(|request| request.asker);
            return ended.map_or(Outcome::Pending, |asker| Outcome::Answered(asker, Err(Error::TimedOut(reason))));
        }
        Outcome::Pending
    }

    fn expired(&mut self, id: RequestId, now: Moment, members: &Members, out: &mut Effects) -> Outcome<A> {
        let Some(request) = self.requests.get(&id) else { return Outcome::Pending };
        let under = request.session;
        if Some(under) == self.session {
            if request.sequence.is_none() {
                // A question is asked again under the next session.
                self.waiting.push_back(id);
            }
            return Outcome::Expired(under);
        }
        if request.sequence.is_some() {
            // Of a session that was replaced meanwhile.
            return self.remove(id).map_or(Outcome::Pending, |r| Outcome::Answered(r.asker, Err(Error::SessionLost)));
        }
        if !self.dispatch(id, now, members, out) {
            self.waiting.push_back(id);
        }
        Outcome::Pending
    }

    /// Turns to the next replica, unless somebody else already turned away from `failed`.
    fn turn_from(&mut self, failed: SocketAddr, members: &Members) {
        if self.address(members) == Some(failed) {
            self.target = Target { index: (self.target.index + 1) % self.replicas.len().max(1), named: None };
        }
    }
}

#[cfg(test)]
mod tests;
