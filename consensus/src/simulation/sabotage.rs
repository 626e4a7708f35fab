//! That the checks of the simulation find each rule that is broken on purpose: what they do not find they do not prove.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{World, simulate};
use crate::Sabotage;
use crate::stop::Panicked;

/// Finding of a broken rule.
struct Known {
    /// The seed that found it when this was written; tried first.
    seed: u64,
    /// Seeds from 1 on that are tried after it, because any change of the simulation changes what a seed means. About
    /// four times as many as it took, and a quarter of a second each.
    seeds_max: u64,
}

/// The finding that is known of a broken rule; none of those that are beyond these replicas, and that whole clusters find.
fn known(sabotage: Sabotage) -> Option<Known> {
    let (seed, seeds_max) = match sabotage {
        // These replicas carry no more than one batch forward, never serve on new disks, and delete nothing on full ones.
        Sabotage::None | Sabotage::CarryCountedInParts | Sabotage::MissingLogMade | Sabotage::FreeingRefused => {
            return None;
        }
        // A leader's commit index is ahead of what a restarted follower holds.
        Sabotage::AnswersBeforeSync => (2, 20),
        // Acknowledged bytes of the log are missing.
        Sabotage::FailedSyncRetried => (6, 25),
        // A replica with entries of a term that it does not know.
        Sabotage::VotesUnwritten => (2, 20),
        // A read under the lease does not see what was acknowledged before.
        Sabotage::RestartedVotesAtOnce => (63, 250),
        // The same.
        Sabotage::LeaseOutlivesPatience => (46, 200),
        // The same, without a lease.
        Sabotage::ReadsWithoutQuorum => (4, 20),
        // Entries are missing from the log.
        Sabotage::TailNotRewritten => (1, 20),
        // A segment is missing that bytes of a former life speak of.
        Sabotage::ChecksumsIgnored => (1, 20),
        // A Raft group's records are gone.
        Sabotage::NeededSegmentsRecycled => (1, 20),
        // The file of the current snapshot is missing.
        Sabotage::SnapshotUnsynced => (1, 20),
        // An entry in the log contradicts the snapshot.
        Sabotage::InstalledEntriesKept => (228, 900),
        // A command is applied to a state that has it.
        Sabotage::AppliedAgain => (1, 20),
        // A leader takes for acknowledged what the replica that came back does not have.
        Sabotage::AdmittedAtOnce => (104, 400),
    };
    Some(Known { seed, seeds_max })
}

impl World {
    /// Broken rules are looked for without full disks, which hold up what breaks them, and without lost ones, unless it is about these.
    pub(super) fn draw_fault(&mut self) -> u64 {
        match self.sabotage {
            Sabotage::None => self.random.below(10),
            Sabotage::AdmittedAtOnce => Some(self.random.below(9)).filter(|fault| *fault < 8).unwrap_or(9),
            _ => self.random.below(8),
        }
    }
}

/// Says which seed finds the broken rule, and by what.
fn find(sabotage: Sabotage, known: &Known) -> Option<(u64, Panicked)> {
    [known.seed].into_iter().chain(1..=known.seeds_max).find_map(|seed| {
        let outcome = catch_unwind(AssertUnwindSafe(|| simulate(seed, sabotage)));
        outcome.err().map(|panic| (seed, Panicked::of(&*panic)))
    })
}

#[test]
fn every_rule_that_is_broken_is_found() {
    let mut missed = Vec::new();
    for sabotage in Sabotage::ALL {
        let Some(known) = known(sabotage) else { continue };
        let found = find(sabotage, &known);
        println!("{sabotage:?}: {found:?}");
        missed.extend(found.is_none().then_some(sabotage));
    }
    assert_eq!(missed, [], "the simulation does not find what is broken");
}

#[test]
fn a_seed_has_one_outcome() {
    let summaries = [5, 5].map(|seed| format!("{:?}", simulate(seed, Sabotage::None)));
    assert_eq!(summaries[0], summaries[1]);
}
