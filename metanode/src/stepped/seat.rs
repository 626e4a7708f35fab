//! A table of a stepped metanode, and the leader's own work on it.

use super::{Now, Output, SteppedMetanode, Waiting};
use crate::core::attendance::Attendance;
use crate::core::collect::{self, Answer, Collector, Question};
use crate::core::command::{self, Place};
use crate::core::patience::Patience;
use crate::core::sweep::{self, Member, Sweep};
use crate::core::upkeep::{self, Upkeep};
use crate::core::view::Borrowed;
use crate::machine::raft_group;
use crate::sabotage::Sabotage;
use bytes::Bytes;
use holdfast_common::{Term, VolumeId};
use holdfast_consensus::ProposeError;
use holdfast_proto::control::AllocateGroupsResponse;
use holdfast_proto::data::DeleteShardsResponse;
use holdfast_proto::meta::MutateResponse;
use holdfast_proto::meta::mutation::Op;

/// A piece of the leader's own work that waits for an answer.
pub(super) enum Work {
    /// A round of the upkeep begins behind it.
    Barrier,
    Upkeep,
    Sweep,
    Groups,
    Delete(Member),
    Collect,
    CollectBarrier,
    Compare(Member),
}

/// A piece of the leader's own work, and its answer.
pub(super) enum Worked {
    Upkeep(Option<MutateResponse>),
    Sweep(Option<MutateResponse>),
    Groups(Option<AllocateGroupsResponse>),
    Deleted(Member, Option<DeleteShardsResponse>),
    Collect(Option<MutateResponse>),
    Compared(Member, Option<Answer>),
}

impl Work {
    pub(super) fn proposed(self, volume: VolumeId, answer: Result<Bytes, ProposeError>) -> Option<Worked> {
        let answer = command::own_answer(volume, answer);
        match self {
            Self::Upkeep => Some(Worked::Upkeep(answer)),
            Self::Sweep => Some(Worked::Sweep(answer)),
            Self::Collect => Some(Worked::Collect(answer)),
            Self::Barrier | Self::Groups | Self::Delete(_) | Self::CollectBarrier | Self::Compare(_) => None,
        }
    }

    pub(super) fn groups(self, answer: Option<AllocateGroupsResponse>) -> Option<Worked> {
        matches!(self, Self::Groups).then_some(Worked::Groups(answer))
    }

    pub(super) fn deleted(self, answer: Option<DeleteShardsResponse>) -> Option<Worked> {
        match self {
            Self::Delete(member) => Some(Worked::Deleted(member, answer)),
            other => other.compared(answer.map(Answer::Deleted)),
        }
    }

    pub(super) fn compared(self, answer: Option<Answer>) -> Option<Worked> {
        match self {
            Self::Compare(member) => Some(Worked::Compared(member, answer)),
            Self::Barrier | Self::Upkeep | Self::Sweep | Self::Groups | Self::Delete(_) | Self::Collect => None,
            Self::CollectBarrier => None,
        }
    }
}

/// Work that a look found due.
pub(super) struct Due {
    pub(super) upkeep: bool,
    pub(super) sweep: bool,
    pub(super) collect: bool,
}

/// When a worker that starts over in each term works.
#[derive(Default)]
struct Shift {
    term: Term,
    works: bool,
    due_ms: u64,
}

impl Shift {
    /// Whether it is due; it counts as begun. A new term's work does not wait for the answers to a former one's.
    fn begins(&mut self, term: Term, now_ms: u64, interval_ms: u64) -> bool {
        let begins = (!self.works || term != self.term) && now_ms >= self.due_ms;
        if begins {
            *self = Self { term, works: true, due_ms: now_ms + interval_ms };
        }
        begins
    }
}

/// A table of which this node has a replica, and what only its leader has.
pub(super) struct Seat {
    attendance: Attendance,
    /// The term of the last look: in a new one all is due at once.
    term: Term,
    upkeep: Upkeep,
    upkeep_works: bool,
    upkeep_due_ms: u64,
    sweep: Sweep,
    sweeps: Shift,
    collector: Collector,
    collects: Shift,
}

impl Seat {
    pub(super) fn new(patience: Patience, sabotage: Sabotage) -> Self {
        Self {
            attendance: Attendance::sabotaged(sabotage),
            term: Term::ZERO,
            upkeep: Upkeep::default(),
            upkeep_works: false,
            upkeep_due_ms: 0,
            sweep: Sweep::new(patience, sabotage),
            sweeps: Shift::default(),
            collector: Collector::new(patience, sabotage),
            collects: Shift::default(),
        }
    }

    /// Looks for work that is due, by this replica's leading in `term`; it counts as begun.
    pub(super) fn look(&mut self, term: Term, now_ms: u64) -> Due {
        if term != self.term {
            (self.term, self.upkeep_due_ms, self.sweeps.due_ms, self.collects.due_ms) = (term, 0, 0, 0);
        }
        let upkeep = !self.upkeep_works && now_ms >= self.upkeep_due_ms;
        if upkeep {
            self.upkeep_works = true;
            self.upkeep_due_ms = now_ms + upkeep::ROUND_INTERVAL_MS;
        }
        let sweep = self.sweeps.begins(term, now_ms, sweep::ROUND_INTERVAL_MS);
        if sweep {
            self.sweep.follow(term);
        }
        let collect = self.collects.begins(term, now_ms, collect::ROUND_INTERVAL_MS);
        if collect {
            self.collector.follow(term);
        }
        Due { upkeep, sweep, collect }
    }

    pub(super) fn upkeep_rests(&mut self) {
        self.upkeep_works = false;
    }

    /// Whether an answer to a question of that term is waited for. Sweep and collector start over in a new one.
    fn works_in(&self, term: Term, worker: Worker) -> bool {
        match worker {
            Worker::Upkeep => true,
            Worker::Sweep => self.sweeps.term == term,
            Worker::Collector => self.collects.term == term,
        }
    }
}

/// The leader's work, apart from its attendance.
pub(super) struct Workers<'a> {
    upkeep: &'a mut Upkeep,
    sweep: &'a mut Sweep,
    collector: &'a mut Collector,
}

/// The part of the leader's work that goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worker {
    Upkeep,
    Sweep,
    Collector,
}

impl SteppedMetanode {
    /// A table as this replica sees it in a term, and the work on it.
    pub(super) fn seated(&mut self, now: Now, volume: VolumeId, term: Term) -> Option<(Borrowed<'_>, Workers<'_>)> {
        let seat = self.seats.get_mut(&volume)?;
        let table = self.node.state(raft_group(volume))?.table();
        let view = Borrowed {
            volume,
            term,
            now_ms: now.now_ms(),
            stamp_ns: self.known.stamp_ns(now.wall_ns, now.monotonic_ns),
            table,
            known: &self.known,
            attendance: &mut seat.attendance,
        };
        let Seat { upkeep, sweep, collector, .. } = seat;
        Some((view, Workers { upkeep, sweep, collector }))
    }

    /// Takes in what the volume manager or a datanode answered.
    pub(super) fn own(&mut self, now: Now, ticket: u64, answer: impl FnOnce(Work) -> Option<Worked>) {
        if let Some(Waiting::Own { volume, term, work }) = self.waiting.remove(&ticket) {
            self.worked(now, (volume, term), answer(work));
        }
    }

    /// Takes an answer in and goes on with the round.
    pub(super) fn worked(&mut self, now: Now, (volume, term): (VolumeId, Term), worked: Option<Worked>) {
        let worker = match &worked {
            Some(Worked::Upkeep(_) | Worked::Groups(_)) => Worker::Upkeep,
            Some(Worked::Sweep(_) | Worked::Deleted(..)) => Worker::Sweep,
            Some(Worked::Collect(_) | Worked::Compared(..)) => Worker::Collector,
            None => return,
        };
        if !self.seats.get(&volume).is_some_and(|seat| seat.works_in(term, worker)) {
            return;
        }
        let Some((mut view, workers)) = self.seated(now, volume, term) else { return };
        match worked {
            Some(Worked::Upkeep(answer)) => workers.upkeep.proposed(answer.as_ref(), &mut view),
            Some(Worked::Groups(answer)) => {
                let groups = answer.map(|answer| answer.groups).ok_or("it does not answer");
                workers.upkeep.groups_given(groups, &view);
            }
            Some(Worked::Sweep(answer)) => workers.sweep.proposed(answer.as_ref()),
            Some(Worked::Deleted(member, answer)) => workers.sweep.answered(member, answer.as_ref(), &view),
            Some(Worked::Collect(answer)) => workers.collector.proposed(answer.as_ref(), &view),
            Some(Worked::Compared(member, answer)) => workers.collector.answered(member, answer, &view),
            None => return,
        }
        match worker {
            Worker::Upkeep => self.upkeep(now, volume, term),
            Worker::Sweep => self.sweep(now, volume, term),
            Worker::Collector => self.collect(now, volume, term),
        }
    }

    /// A barrier that the leader's own work waited for was passed, or was not.
    pub(super) fn barred(&mut self, now: Now, (volume, term): (VolumeId, Term), work: &Work, passed: bool) {
        let collects = self.seats.get(&volume).is_some_and(|seat| seat.works_in(term, Worker::Collector));
        match work {
            Work::CollectBarrier if collects => {
                let Some((view, workers)) = self.seated(now, volume, term) else { return };
                if workers.collector.barred(passed, &view) {
                    self.collect(now, volume, term);
                } else if let Some(seat) = self.seats.get_mut(&volume) {
                    seat.collects.works = false;
                }
            }
            // Of a former term: it has started over.
            Work::CollectBarrier => {}
            _ if passed => self.upkeep(now, volume, term),
            _ => {
                if let Some(seat) = self.seats.get_mut(&volume) {
                    seat.upkeep_rests();
                }
            }
        }
    }

    /// Goes on with a round of the upkeep until it waits or rests.
    pub(super) fn upkeep(&mut self, now: Now, volume: VolumeId, term: Term) {
        loop {
            let Some((mut view, workers)) = self.seated(now, volume, term) else { return };
            match workers.upkeep.next(&mut view) {
                upkeep::Step::Propose(op) => return self.propose_own(now, (volume, term), op, Work::Upkeep),
                upkeep::Step::AskGroups(request) => {
                    let ticket = self.wait(Waiting::Own { volume, term, work: Work::Groups });
                    return self.outputs.push(Output::AskGroups { ticket, request });
                }
                upkeep::Step::Report => self.report_due_ms = 0,
                upkeep::Step::Rest => {
                    if let Some(seat) = self.seats.get_mut(&volume) {
                        seat.upkeep_rests();
                    }
                    return;
                }
            }
        }
    }

    /// Goes on with a round of the sweep until it waits or rests.
    pub(super) fn sweep(&mut self, now: Now, volume: VolumeId, term: Term) {
        let secret = self.options.secret.clone();
        let Some((view, workers)) = self.seated(now, volume, term) else { return };
        match workers.sweep.next(&view, &secret) {
            sweep::Step::Delete(requests) => {
                for (member, request) in requests {
                    let ticket = self.wait(Waiting::Own { volume, term, work: Work::Delete(member) });
                    self.outputs.push(Output::Delete { ticket, node: member.0, request });
                }
            }
            sweep::Step::Forget(op) => self.propose_own(now, (volume, term), op, Work::Sweep),
            sweep::Step::Wait => {}
            sweep::Step::Rest => {
                if let Some(seat) = self.seats.get_mut(&volume) {
                    seat.sweeps.works = false;
                }
            }
        }
    }

    /// Goes on with a round of the collector until it waits or rests.
    pub(super) fn collect(&mut self, now: Now, volume: VolumeId, term: Term) {
        let secret = self.options.secret.clone();
        let Some((view, workers)) = self.seated(now, volume, term) else { return };
        match workers.collector.next(&view, &secret) {
            collect::Step::Propose(op) => self.propose_own(now, (volume, term), op, Work::Collect),
            collect::Step::Ask(questions) => {
                for (member, question) in questions {
                    let ticket = self.wait(Waiting::Own { volume, term, work: Work::Compare(member) });
                    let node = member.0;
                    self.outputs.push(match question {
                        Question::SetFloor(request) => Output::SetFloor { ticket, node, request },
                        Question::List(request) => Output::List { ticket, node, request },
                        Question::Delete(request) => Output::Delete { ticket, node, request },
                    });
                }
            }
            collect::Step::Barrier => {
                let ticket = self.wait(Waiting::Own { volume, term, work: Work::CollectBarrier });
                self.node.read(now.boottime_ns, raft_group(volume), ticket);
            }
            collect::Step::Wait => {}
            collect::Step::Rest => {
                if let Some(seat) = self.seats.get_mut(&volume) {
                    seat.collects.works = false;
                }
            }
        }
    }

    fn propose_own(&mut self, now: Now, (volume, term): (VolumeId, Term), op: Op, work: Work) {
        let Some((view, _)) = self.seated(now, volume, term) else { return };
        let command = command::encode(&view, op, Place::default());
        let ticket = self.wait(Waiting::Own { volume, term, work });
        self.node.propose(raft_group(volume), command, ticket);
    }
}
