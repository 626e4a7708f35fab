//! The leader's side of bringing a voter back that lost its log (R23). Pure.
//!
//! Such a voter has forgotten what it voted and acknowledged. It hosts nothing meanwhile, so it counts in no quorum. The leader
//! commits an empty entry of its term that *every other* voter acknowledges, and gives a snapshot at or above it. Whoever the
//! lost replica once voted for is one of the others, whose term was no higher than this one when it acknowledged; and whatever
//! the lost replica once acknowledged is below the entry. If another replica is dead, it waits.

use holdfast_common::{LogIndex, NodeId, Term};

use super::GroupCore;
use super::effects::{Admitted, Effects};
use crate::config::ELECTION_TICKS;
use crate::sabotage::Sabotage;
use crate::status::AdmissionError;

/// Ticks that an admission may take; then the voter asks again, of whoever leads then.
const ADMISSION_TICKS: usize = 10 * ELECTION_TICKS;
/// Most admissions of a Raft group under way; there are never more voters.
const ADMISSIONS_MAX: usize = 16;

/// A voter that waits.
pub(super) struct Admission {
    ticket: u64,
    to: u64,
    term: Term,
    /// Index of the empty entry.
    index: LogIndex,
    /// Every other voter has it. It stays true: none of them goes back behind this term.
    acknowledged: bool,
    ticks_left: usize,
}

impl<P, R> GroupCore<P, R> {
    /// Begins to bring a voter back. `ticket` is told how it went, by [`Effects::admitted`].
    pub(crate) fn admit(&mut self, ticket: u64, to: u64, out: &mut Effects<P, R>) {
        match self.try_admit(ticket, to) {
            Ok(admission) => self.admissions.push(admission),
            Err(error) => out.admitted.push((ticket, Err(error))),
        }
    }

    fn try_admit(&mut self, ticket: u64, to: u64) -> Result<Admission, AdmissionError> {
        if !self.leads() {
            return Err(AdmissionError::NotLeader { leader: self.leader() });
        }
        if to == self.options.node || !self.voters().contains(&to) {
            return Err(AdmissionError::NotAVoter);
        }
        if self.options.sabotage == Sabotage::AdmittedAtOnce {
            let (term, index) = (self.term(), self.raw.store().mark().index.max(LogIndex(1)));
            return Ok(Admission { ticket, to, term, index, acknowledged: true, ticks_left: ADMISSION_TICKS });
        }
        if self.admissions.len() >= ADMISSIONS_MAX || self.raw.propose(Vec::new(), Vec::new()).is_err() {
            return Err(AdmissionError::Overloaded);
        }
        let (term, index) = (self.term(), self.last_index());
        Ok(Admission { ticket, to, term, index, acknowledged: false, ticks_left: ADMISSION_TICKS })
    }

    pub(super) fn tick_admissions(&mut self) {
        self.admissions.iter_mut().for_each(|admission| admission.ticks_left = admission.ticks_left.saturating_sub(1));
    }

    /// Answers those that can be, and lets the state be frozen for those that only wait for a snapshot.
    pub(super) fn settle_admissions(&mut self, out: &mut Effects<P, R>) {
        let (leads, term) = (self.leads(), self.term());
        let (leader, mark) = (self.leader(), self.raw.store().mark());
        for mut admission in std::mem::take(&mut self.admissions) {
            let missing = self.not_acknowledged(&admission);
            admission.acknowledged |= missing.is_empty();
            let result = if !leads || term != admission.term {
                Err(AdmissionError::NotLeader { leader })
            } else if admission.acknowledged && mark.index >= admission.index {
                let Admission { to, index, .. } = admission;
                Ok(Admitted { group: self.group, to: NodeId(to), term, index, mark })
            } else if admission.ticks_left == 0 {
                Err(AdmissionError::Late { missing })
            } else {
                self.freeze_wanted |=
                    admission.acknowledged && self.freeze_pause_ticks == 0 && self.applied >= admission.index;
                self.admissions.push(admission);
                continue;
            };
            out.admitted.push((admission.ticket, result));
        }
    }

    /// The other voters that have not acknowledged the entry. What the lost replica acknowledged in its former life says nothing.
    fn not_acknowledged(&self, admission: &Admission) -> Vec<NodeId> {
        let progress = self.raw.raft.prs();
        let has = |id: u64| progress.get(id).is_some_and(|progress| LogIndex(progress.matched) >= admission.index);
        let others = self.voters().iter().filter(|id| **id != admission.to);
        others.filter(|id| !has(**id)).map(|id| NodeId(*id)).collect()
    }

    pub(super) fn fail_admissions(&mut self, out: &mut Effects<P, R>) {
        let lost = std::mem::take(&mut self.admissions);
        out.admitted.extend(lost.into_iter().map(|admission| (admission.ticket, Err(AdmissionError::Stopped))));
    }
}
