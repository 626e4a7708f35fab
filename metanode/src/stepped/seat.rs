//! A table of a stepped metanode, and the leader's own work on it.

use super::{Now, Output, SteppedMetanode, Waiting};
use crate::core::attendance::Attendance;
use crate::core::command::{self, Place};
use crate::core::sweep::{self, Member, Sweep};
use crate::core::upkeep::{self, Upkeep};
use crate::core::view::Borrowed;
use crate::sabotage::Sabotage;
use bytes::Bytes;
use holdfast_common::VolumeId;
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
}

/// A piece of the leader's own work, and its answer.
pub(super) enum Worked {
    Upkeep(Option<MutateResponse>),
    Sweep(Option<MutateResponse>),
    Groups(Option<AllocateGroupsResponse>),
    Deleted(Member, Option<DeleteShardsResponse>),
}

impl Work {
    pub(super) fn proposed(self, volume: VolumeId, answer: Result<Bytes, ProposeError>) -> Option<Worked> {
        let answer = command::own_answer(volume, answer);
        match self {
            Self::Upkeep => Some(Worked::Upkeep(answer)),
            Self::Sweep => Some(Worked::Sweep(answer)),
            Self::Barrier | Self::Groups | Self::Delete(_) => None,
        }
    }

    pub(super) fn groups(self, answer: Option<AllocateGroupsResponse>) -> Option<Worked> {
        matches!(self, Self::Groups).then_some(Worked::Groups(answer))
    }

    pub(super) fn deleted(self, answer: Option<DeleteShardsResponse>) -> Option<Worked> {
        match self {
            Self::Delete(member) => Some(Worked::Deleted(member, answer)),
            Self::Barrier | Self::Upkeep | Self::Sweep | Self::Groups => None,
        }
    }
}

/// What a look found due.
pub(super) struct Due {
    pub(super) upkeep: bool,
    pub(super) sweep: bool,
}

/// A table of which this node has a replica, and what only its leader has.
pub(super) struct Seat {
    attendance: Attendance,
    /// The term of the last look: in a new one all is due at once.
    term: u64,
    upkeep: Upkeep,
    upkeep_works: bool,
    upkeep_due_ms: u64,
    sweep: Sweep,
    sweep_term: u64,
    sweep_works: bool,
    sweep_due_ms: u64,
}

impl Seat {
    pub(super) fn new(sabotage: Sabotage) -> Self {
        Self {
            attendance: Attendance::sabotaged(sabotage),
            term: 0,
            upkeep: Upkeep::default(),
            upkeep_works: false,
            upkeep_due_ms: 0,
            sweep: Sweep::sabotaged(sabotage),
            sweep_term: 0,
            sweep_works: false,
            sweep_due_ms: 0,
        }
    }

    /// What is due, by this replica's leading in `term`; it counts as begun.
    pub(super) fn look(&mut self, term: u64, now_ms: u64) -> Due {
        if term != self.term {
            (self.term, self.upkeep_due_ms, self.sweep_due_ms) = (term, 0, 0);
        }
        let upkeep = !self.upkeep_works && now_ms >= self.upkeep_due_ms;
        if upkeep {
            self.upkeep_works = true;
            self.upkeep_due_ms = now_ms + upkeep::ROUND_INTERVAL_MS;
        }
        // A new term's sweep does not wait for the answers to a former one's.
        let sweep = (!self.sweep_works || term != self.sweep_term) && now_ms >= self.sweep_due_ms;
        if sweep {
            self.sweep.follow(term);
            (self.sweep_term, self.sweep_works) = (term, true);
            self.sweep_due_ms = now_ms + sweep::ROUND_INTERVAL_MS;
        }
        Due { upkeep, sweep }
    }

    pub(super) fn upkeep_rests(&mut self) {
        self.upkeep_works = false;
    }
}

/// The leader's work, apart from its attendance.
pub(super) struct Workers<'a> {
    upkeep: &'a mut Upkeep,
    sweep: &'a mut Sweep,
}

impl SteppedMetanode {
    /// A table as this replica sees it in a term, and the work on it.
    pub(super) fn seated(&mut self, now: Now, volume: VolumeId, term: u64) -> Option<(Borrowed<'_>, Workers<'_>)> {
        let seat = self.seats.get_mut(&volume)?;
        let table = self.node.state(volume.0)?.table();
        let view = Borrowed {
            volume,
            term,
            now_ms: now.now_ms(),
            stamp_ns: self.known.stamp_ns(now.wall_ns, now.monotonic_ns),
            table,
            known: &self.known,
            attendance: &mut seat.attendance,
        };
        Some((view, Workers { upkeep: &mut seat.upkeep, sweep: &mut seat.sweep }))
    }

    /// Takes in what the volume manager or a datanode answered.
    pub(super) fn own(&mut self, now: Now, ticket: u64, answer: impl FnOnce(Work) -> Option<Worked>) {
        if let Some(Waiting::Own { volume, term, work }) = self.waiting.remove(&ticket) {
            self.worked(now, (volume, term), answer(work));
        }
    }

    /// Takes an answer in and goes on with the round.
    pub(super) fn worked(&mut self, now: Now, (volume, term): (VolumeId, u64), worked: Option<Worked>) {
        let sweep_term = self.seats.get(&volume).map(|seat| seat.sweep_term);
        let is_upkeeps = matches!(worked, Some(Worked::Upkeep(_) | Worked::Groups(_)));
        let Some((mut view, workers)) = self.seated(now, volume, term) else { return };
        match worked {
            Some(Worked::Upkeep(answer)) => workers.upkeep.proposed(answer.as_ref(), &mut view),
            Some(Worked::Groups(answer)) => {
                let groups = answer.map(|answer| answer.groups).ok_or("it does not answer");
                workers.upkeep.groups_given(groups, &view);
            }
            // Of a former term: the sweep has started over.
            Some(Worked::Sweep(_) | Worked::Deleted(..)) if sweep_term != Some(term) => return,
            Some(Worked::Sweep(answer)) => workers.sweep.proposed(answer.as_ref()),
            Some(Worked::Deleted(member, answer)) => workers.sweep.answered(member, answer.as_ref(), &view),
            None => return,
        }
        if is_upkeeps {
            self.upkeep(now, volume, term);
        } else {
            self.sweep(now, volume, term);
        }
    }

    /// Goes on with a round of the upkeep until it waits or rests.
    pub(super) fn upkeep(&mut self, now: Now, volume: VolumeId, term: u64) {
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
    pub(super) fn sweep(&mut self, now: Now, volume: VolumeId, term: u64) {
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
                    seat.sweep_works = false;
                }
            }
        }
    }

    fn propose_own(&mut self, now: Now, (volume, term): (VolumeId, u64), op: Op, work: Work) {
        let Some((view, _)) = self.seated(now, volume, term) else { return };
        let command = command::encode(&view, op, Place::default());
        let ticket = self.wait(Waiting::Own { volume, term, work });
        self.node.propose(volume.0, command, ticket);
    }
}
