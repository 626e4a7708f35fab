use super::*;
use holdfast_proto::control::Endpoint;
use holdfast_proto::meta::{CloseSession, KeepAlive, MutateResponse, OpenSession, ReadResponse, StatFs};
use holdfast_transport::RpcError;

const LATER: Duration = Duration::from_secs(10);

fn members() -> Members {
    let mut members = Members::default();
    let endpoint = |node| Endpoint { node, address: format!("127.0.0.1:{node}"), alive: true, ..Default::default() };
    members.learn_endpoints(&[endpoint(1), endpoint(2)]);
    members
}

struct Bench {
    requests: Requests<u32>,
    members: Members,
    now: Moment,
    out: Effects,
}

impl Bench {
    fn new() -> Self {
        let requests = Requests::new(VolumeId(1), Incarnation(1), vec![NodeId(1), NodeId(2)], Sabotage::None);
        let mut bench = Self { requests, members: members(), now: Moment(0), out: Effects::default() };
        bench.session(1);
        bench
    }

    fn session(&mut self, id: u64) {
        self.requests.set_session(SessionId(id), self.now, &self.members, &mut self.out);
    }

    fn start(&mut self, body: Body, asker: u32) -> RequestId {
        self.requests.start(body, asker, self.now, &self.members, &mut self.out)
    }

    fn mutation(&mut self, asker: u32) -> RequestId {
        self.start(Body::Mutation(mutation::Op::CloseSession(CloseSession {})), asker)
    }

    fn question(&mut self, asker: u32) -> RequestId {
        self.start(Body::Question(read_request::Op::StatFs(StatFs {})), asker)
    }

    fn sent(&mut self) -> Vec<Send> {
        std::mem::take(&mut self.out.sends).into_vec()
    }

    fn numbers(&mut self) -> Vec<(u64, u64, u64)> {
        self.sent()
            .iter()
            .filter_map(|send| match &send.request {
                Wire::Mutate(request) => Some((request.session, request.sequence, request.acknowledged_below)),
                Wire::Read(_) => None,
            })
            .collect()
    }

    fn answer(&mut self, attempt: AttemptId, answer: Result<Response, CallFailed>) -> Outcome<u32> {
        self.requests.answered(attempt, answer, self.now, &self.members, &mut self.out)
    }

    fn later(&mut self) {
        self.now = self.now + LATER;
        self.requests.tick(self.now, &self.members, &mut self.out);
    }
}

fn says(code: Code) -> Result<Response, CallFailed> {
    Ok(Response::Mutate(Box::new(MutateResponse { code: code.into(), ..MutateResponse::default() })))
}

#[test]
fn a_number_is_acknowledged_only_below_the_oldest_that_is_not_answered() {
    let mut bench = Bench::new();
    bench.mutation(1);
    let first = bench.sent().remove(0).attempt;
    bench.mutation(2);
    assert_eq!(bench.numbers(), [(1, 2, 1)]);
    assert!(matches!(bench.answer(first, says(Code::Ok)), Outcome::Answered(1, Ok(_))));
    bench.mutation(3);
    assert_eq!(bench.numbers(), [(1, 3, 2)]);
}

#[test]
fn a_mutation_keeps_its_number_over_retries_and_turns_to_another_replica() {
    let mut bench = Bench::new();
    bench.mutation(1);
    let first = bench.sent().remove(0);
    assert!(matches!(bench.answer(first.attempt, Err(RpcError::Deadline.into())), Outcome::Pending));
    bench.later();
    let second = bench.sent().remove(0);
    assert_ne!(first.to, second.to);
    let Wire::Mutate(request) = &second.request else { panic!("a mutation") };
    assert_eq!(request.sequence, 1);
    // Whatever comes of the first attempt now is nobody's.
    assert!(matches!(bench.answer(first.attempt, says(Code::Ok)), Outcome::Pending));
    assert!(matches!(bench.answer(second.attempt, says(Code::Exists)), Outcome::Answered(1, Err(_))));
    assert_eq!(bench.requests.len(), 0);
}

/// Interleaving: a list of what is open is made, a file is opened, its leader dies, and the next one gets the list.
#[test]
fn a_list_of_what_is_open_is_never_sent_again() {
    let mut bench = Bench::new();
    for (attach, sends) in [(true, 0), (false, 1)] {
        let body = || Body::Question(read_request::Op::KeepAlive(KeepAlive { attach, ..KeepAlive::default() }));
        let elsewhere = ReadResponse { code: Code::NotLeader.into(), ..ReadResponse::default() };
        for answer in [Err(RpcError::Deadline.into()), Ok(Response::Read(Box::new(elsewhere)))] {
            bench.start(body(), 1);
            let first = bench.sent().remove(0).attempt;
            let ended = matches!(bench.answer(first, answer), Outcome::Answered(1, Err(Error::TimedOut(_))));
            assert_eq!(ended, attach);
            bench.later();
            assert_eq!(bench.sent().len(), sends);
            bench.requests = Bench::new().requests;
        }
    }
}

#[test]
fn a_named_leader_is_asked_next() {
    let mut bench = Bench::new();
    bench.question(1);
    let first = bench.sent().remove(0);
    let leader = "127.0.0.1:77".to_owned();
    let elsewhere = ReadResponse { code: Code::NotLeader.into(), leader, ..ReadResponse::default() };
    bench.answer(first.attempt, Ok(Response::Read(Box::new(elsewhere))));
    bench.later();
    assert_eq!(bench.sent()[0].to.port(), 77);
}

#[test]
fn numbers_in_flight_are_bounded_and_the_rest_waits_its_turn() {
    let mut bench = Bench::new();
    (0..).take(SESSION_IN_FLIGHT_MAX + 2).for_each(|asker| {
        bench.mutation(asker);
    });
    let sent = bench.sent();
    assert_eq!(sent.len(), SESSION_IN_FLIGHT_MAX);
    bench.answer(sent[7].attempt, says(Code::Ok));
    let next = SESSION_IN_FLIGHT_MAX as u64 + 1;
    assert_eq!(bench.numbers(), [(1, next, 1)]);
}

#[test]
fn a_forgotten_question_is_asked_no_more_and_a_mutation_is() {
    let mut bench = Bench::new();
    let (question, mutation) = (bench.question(1), bench.mutation(2));
    let sent = bench.sent();
    assert_eq!(bench.requests.forget_unsent(question), Some(1));
    assert_eq!(bench.requests.forget_unsent(mutation), None);
    sent.iter().for_each(|send| drop(bench.answer(send.attempt, Err(RpcError::Deadline.into()))));
    bench.later();
    assert_eq!(bench.numbers(), [(1, 1, 1)]);
}

#[test]
fn after_the_end_of_a_session_mutations_have_failed_and_questions_wait_for_the_next() {
    let mut bench = Bench::new();
    bench.mutation(1);
    bench.question(2);
    let sent = bench.sent();
    let expired = ReadResponse { code: Code::SessionExpired.into(), ..ReadResponse::default() };
    let outcome = bench.answer(sent[1].attempt, Ok(Response::Read(Box::new(expired))));
    assert!(matches!(outcome, Outcome::Expired(SessionId(1))));
    assert_eq!(bench.requests.end_session(), [1]);
    bench.mutation(3);
    bench.later();
    assert!(bench.sent().is_empty(), "nothing is sent without a session");
    bench.start(Body::Mutation(mutation::Op::OpenSession(OpenSession::default())), 4);
    assert_eq!(bench.numbers(), [(0, 0, 0)]);
    bench.session(2);
    let sent = bench.sent();
    assert_eq!(sent.len(), 2);
    assert!(matches!(&sent[0].request, Wire::Read(request) if request.session == 2));
    assert!(matches!(&sent[1].request, Wire::Mutate(request) if (request.session, request.sequence) == (2, 1)));
}

/// Interleaving: the session is replaced while an answer of the former one travels.
#[test]
fn a_late_word_of_a_former_session_does_not_end_the_next_one() {
    let mut bench = Bench::new();
    bench.question(1);
    let late = bench.sent().remove(0).attempt;
    bench.requests.end_session();
    bench.session(2);
    let expired = ReadResponse { code: Code::SessionExpired.into(), ..ReadResponse::default() };
    assert!(matches!(bench.answer(late, Ok(Response::Read(Box::new(expired)))), Outcome::Pending));
    assert_eq!(bench.sent().len(), 1, "it is asked again under the new session");
}

#[test]
fn a_replica_that_names_itself_and_does_not_lead_is_left() {
    let mut bench = Bench::new();
    bench.question(1);
    let first = bench.sent().remove(0);
    let leader = first.to.to_string();
    let itself = ReadResponse { code: Code::NotLeader.into(), leader, ..ReadResponse::default() };
    bench.answer(first.attempt, Ok(Response::Read(Box::new(itself))));
    bench.later();
    assert_ne!(bench.sent()[0].to, first.to);
}

/// Two requests fail at one replica: the second one's failure says nothing of the replica that was turned to.
#[test]
fn many_failures_at_one_replica_are_one_reason_to_turn_to_the_next() {
    let mut bench = Bench::new();
    bench.question(1);
    bench.question(2);
    let sent = bench.sent();
    sent.iter().for_each(|send| drop(bench.answer(send.attempt, Err(RpcError::Deadline.into()))));
    bench.later();
    let again = bench.sent();
    assert_eq!(again[0].to, again[1].to);
    assert_ne!(again[0].to, sent[0].to);
}

#[test]
fn pauses_double_up_to_half_a_second() {
    let mut bench = Bench::new();
    bench.question(1);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let send = bench.sent().remove(0);
        bench.answer(send.attempt, Err(RpcError::Deadline.into()));
        let wake = bench.requests.wake().unwrap();
        pauses.push(wake.since(bench.now).as_millis());
        bench.now = wake;
        bench.requests.tick(bench.now, &bench.members, &mut bench.out);
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 500, 500]);
}

/// A number of no code that this version knows.
const NO_CODE: i32 = 999;

/// The generated accessor takes the number for OK.
#[test]
fn an_answer_of_an_unknown_code_ends_its_request_and_is_no_success() {
    let mut bench = Bench::new();
    bench.mutation(1);
    bench.question(2);
    let sent = bench.sent();
    let answers = [
        Response::Mutate(Box::new(MutateResponse { code: NO_CODE, ..MutateResponse::default() })),
        Response::Read(Box::new(ReadResponse { code: NO_CODE, ..ReadResponse::default() })),
    ];
    for (send, answer) in sent.iter().zip(answers) {
        let Outcome::Answered(_, Err(error)) = bench.answer(send.attempt, Ok(answer)) else { panic!("a failure") };
        assert_eq!((&error, error.errno()), (&Error::Unknown { what: "code", number: NO_CODE }, libc::EIO));
    }
    bench.later();
    assert!(bench.sent().is_empty() && bench.requests.len() == 0, "it is not sent again");
}
