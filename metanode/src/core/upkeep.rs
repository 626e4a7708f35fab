//! A leader's work for its table: configuration, spare block groups, silent sessions, orphans. Pulled: each step is
//! done by the caller, its outcome told, the next step asked for, until the round rests.

use super::view::View;
use crate::table::{Configuration, FEATURE_LEVEL};
use holdfast_common::limits::{GROUP_CAPACITY_BYTES, SPARE_GROUP_BYTES};
use holdfast_common::{Epoch, GroupId, InodeId, VolumeId};
use holdfast_proto::control::{AllocateGroupsRequest, Group, TableAssignment};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, Code, Configure, ExpireSessions, FreeDead, GroupSlot, GroupState, MutateResponse,
    RaiseFeatureLevel, ReapOrphans, SetGroupState,
};
use std::collections::VecDeque;

/// Pause between a leader's rounds.
pub(crate) const ROUND_INTERVAL_MS: u64 = 500;
/// Pause after the volume manager did not give block groups.
const GROUPS_RETRY_MS: u64 = 1_000;
/// Most block groups asked for at once; the volume manager's limit is 64.
const GROUPS_PER_REQUEST_MAX: u64 = 64;
/// Orphans looked at in one round, and in one entry.
const ORPHANS_PER_ROUND_MAX: usize = 16 << 10;
const ORPHANS_PER_ENTRY_MAX: usize = 256;
/// Entries of one round that free what is dead, and files of one of them.
const DEAD_ENTRIES_PER_ROUND_MAX: usize = 64;
const DEAD_INODES_PER_ENTRY_MAX: usize = 64;
/// Extents freed by one entry: some milliseconds of apply.
const EXTENTS_PER_ENTRY_MAX: u32 = 4096;

/// Next step of the caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Propose an entry and tell [`Upkeep::proposed`].
    Propose(Op),
    /// Ask the volume manager for block groups and tell [`Upkeep::groups_given`].
    AskGroups(AllocateGroupsRequest),
    /// Send a heartbeat at once: the volume manager waits for what was done.
    Report,
    /// Nothing until the next round.
    Rest,
}

/// Place of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Configure,
    RaiseLevel,
    FindSwitches,
    Switch,
    AskGroups,
    AddGroups,
    Expire,
    FindOrphans,
    Reap,
    FreeDead,
    Rest,
}

/// Entry whose outcome is not told yet.
#[derive(Debug, Default)]
enum Proposed {
    #[default]
    Nothing,
    Configure(Configure),
    Level(u32),
    Groups(usize),
    Orphans(Vec<u64>),
    Dead,
}

/// The upkeep of one table. A round begins with the first [`Upkeep::next`] after a rest, behind a read barrier: the state is
/// complete then.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    stage: Stage,
    proposed: Proposed,
    /// Groups whose state does not fit, as the round found them.
    switches: VecDeque<(GroupId, GroupState)>,
    /// Block groups from the volume manager, to be proposed.
    given: Option<Vec<BlockGroup>>,
    /// The table had no block group when it asked.
    had_no_group: bool,
    report: bool,
    /// Not before this are block groups asked for again.
    groups_after_ms: u64,
    /// Orphans that the round found and has not looked at yet.
    orphans: VecDeque<InodeId>,
    /// Orphan behind which the next round goes on.
    orphans_after: InodeId,
    dead_entries: usize,
    /// Configuration that the table refused: it is proposed and complained of once.
    refused: Option<Configure>,
}

impl Upkeep {
    /// The next step of this round, or of a new one.
    pub(crate) fn next(&mut self, view: &mut impl View) -> Step {
        if std::mem::take(&mut self.report) {
            return Step::Report;
        }
        loop {
            // A stage names its successor before it asks for anything; without a step the successor goes on at once.
            let step = match self.stage {
                Stage::Configure => self.configure(view),
                Stage::RaiseLevel => self.raise_level(view),
                Stage::FindSwitches => self.find_switches(view),
                Stage::Switch => self.switch(view.volume()),
                Stage::AskGroups => self.ask_groups(view),
                Stage::AddGroups => self.add_groups(),
                Stage::Expire => self.expire(view),
                Stage::FindOrphans => self.find_orphans(view),
                Stage::Reap => self.reap(view),
                Stage::FreeDead => self.free_dead(view),
                Stage::Rest => {
                    (self.stage, self.dead_entries) = (Stage::Configure, 0);
                    return Step::Rest;
                }
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// The answer to the entry of the last step; `None` if it is not known to have happened.
    pub(crate) fn proposed(&mut self, answer: Option<&MutateResponse>, view: &mut impl View) {
        let volume = view.volume();
        let code = answer.map(MutateResponse::code);
        match (std::mem::take(&mut self.proposed), code) {
            (Proposed::Configure(wanted), Some(Code::Ok)) => {
                tracing::info!(%volume, name = wanted.name, "table configured");
            }
            (Proposed::Configure(wanted), Some(code)) => {
                tracing::error!(%volume, ?code, "the volume manager's configuration does not fit the table");
                self.refused = Some(wanted);
            }
            (Proposed::Level(level), Some(_)) => tracing::info!(%volume, level, "feature level raised"),
            (Proposed::Groups(count), Some(Code::Ok)) => {
                tracing::info!(%volume, count, "groups added");
                self.groups_after_ms = view.now_ms();
                self.report = self.had_no_group;
            }
            (Proposed::Groups(_), Some(code)) => {
                tracing::error!(%volume, ?code, "the volume manager's groups do not fit the table");
            }
            (Proposed::Orphans(chosen), Some(_)) => forget_reaped(view, chosen),
            (Proposed::Orphans(_), None) => {
                self.orphans.clear();
                self.stage = Stage::FreeDead;
            }
            (Proposed::Dead, None) => self.stage = Stage::Rest,
            (Proposed::Nothing | Proposed::Dead, _)
            | (Proposed::Configure(_) | Proposed::Level(_) | Proposed::Groups(_), None) => {}
        }
    }

    /// Takes the answer to the last step's request for block groups, or the reason why there is none.
    pub(crate) fn groups_given(&mut self, answer: Result<Vec<Group>, &str>, view: &impl View) {
        match answer {
            Ok(groups) => self.given = Some(groups.into_iter().map(block_group).collect()),
            Err(reason) => tracing::warn!(volume = %view.volume(), reason, "the volume manager gave no groups"),
        }
    }

    /// Configures the table: its first entry, and later what the volume manager changed since.
    fn configure(&mut self, view: &impl View) -> Option<Step> {
        self.stage = Stage::RaiseLevel;
        let wanted = view.known(|known| known.assignment(view.volume()).map(configure))?;
        let fits = |present: &Configuration| present.quota_bytes == wanted.quota_bytes && present.name == wanted.name;
        if view.table(|table| table.configuration().is_some_and(fits)) || self.refused.as_ref() == Some(&wanted) {
            return None;
        }
        self.proposed = Proposed::Configure(wanted.clone());
        Some(Step::Propose(Op::Configure(wanted)))
    }

    /// R26: the table takes up what the builds of all its replicas know, right after its configuration and after the last
    /// replica was upgraded. Before its configuration nothing else is done.
    fn raise_level(&mut self, view: &impl View) -> Option<Step> {
        let present = view.table(|table| table.configuration().map(|_| table.feature_level()));
        let Some(present) = present else {
            self.stage = Stage::Rest;
            return None;
        };
        self.stage = Stage::FindSwitches;
        let told = view.known(|known| known.assignment(view.volume()).map_or(0, |assignment| assignment.feature_level));
        let level = told.min(FEATURE_LEVEL);
        if level <= present {
            return None;
        }
        self.proposed = Proposed::Level(level);
        Some(Step::Propose(Op::RaiseFeatureLevel(RaiseFeatureLevel { level })))
    }

    fn find_switches(&mut self, view: &impl View) -> Option<Step> {
        self.stage = Stage::Switch;
        self.switches = view.table(|table| table.groups_to_switch()).into();
        None
    }

    fn switch(&mut self, volume: VolumeId) -> Option<Step> {
        let Some((group, state)) = self.switches.pop_front() else {
            self.stage = Stage::AskGroups;
            return None;
        };
        tracing::info!(%volume, %group, full = state == GroupState::GroupFull, "group state");
        Some(Step::Propose(Op::SetGroupState(SetGroupState { group: group.0, state: state.into() })))
    }

    /// Keeps block groups for at least [`SPARE_GROUP_BYTES`] open, so that a dead volume manager stops nobody.
    fn ask_groups(&mut self, view: &impl View) -> Option<Step> {
        self.stage = Stage::AddGroups;
        let (request, had_no_group) = groups_wanted(view)?;
        let now_ms = view.now_ms();
        if now_ms < self.groups_after_ms {
            return None;
        }
        self.groups_after_ms = now_ms + GROUPS_RETRY_MS;
        self.had_no_group = had_no_group;
        Some(Step::AskGroups(request))
    }

    fn add_groups(&mut self) -> Option<Step> {
        self.stage = Stage::Expire;
        let groups = self.given.take()?;
        self.proposed = Proposed::Groups(groups.len());
        Some(Step::Propose(Op::AddGroups(AddGroups { groups })))
    }

    fn expire(&mut self, view: &mut impl View) -> Option<Step> {
        self.stage = Stage::FindOrphans;
        let now_ms = view.now_ms();
        let silent = view.fresh_attendance(|attendance| attendance.silent(now_ms));
        if silent.is_empty() {
            return None;
        }
        tracing::info!(volume = %view.volume(), sessions = ?silent, "sessions expired");
        Some(Step::Propose(Op::ExpireSessions(ExpireSessions { sessions: silent })))
    }

    fn find_orphans(&mut self, view: &impl View) -> Option<Step> {
        self.stage = Stage::Reap;
        self.orphans = view.table(|table| table.orphans(self.orphans_after, ORPHANS_PER_ROUND_MAX)).into();
        // From the start again once the end was reached.
        self.orphans_after = match self.orphans.back() {
            Some(last) if self.orphans.len() == ORPHANS_PER_ROUND_MAX => *last,
            Some(_) | None => InodeId(0),
        };
        None
    }

    fn reap(&mut self, view: &mut impl View) -> Option<Step> {
        while !self.orphans.is_empty() {
            let count = self.orphans.len().min(ORPHANS_PER_ENTRY_MAX);
            let batch: Vec<InodeId> = self.orphans.drain(..count).collect();
            let chosen = view.fresh_attendance(|attendance| attendance.choose_orphans(&batch));
            if !chosen.is_empty() {
                self.proposed = Proposed::Orphans(chosen.clone());
                let op = ReapOrphans { inodes: chosen, max_extents: EXTENTS_PER_ENTRY_MAX };
                return Some(Step::Propose(Op::ReapOrphans(op)));
            }
        }
        self.stage = Stage::FreeDead;
        None
    }

    /// Frees in steps what truncations and commits of badly split files left (docs/decisions/0012).
    fn free_dead(&mut self, view: &impl View) -> Option<Step> {
        let inodes = view.table(|table| table.inodes_with_dead(DEAD_INODES_PER_ENTRY_MAX));
        if inodes.is_empty() || self.dead_entries == DEAD_ENTRIES_PER_ROUND_MAX {
            self.stage = Stage::Rest;
            return None;
        }
        self.dead_entries += 1;
        self.proposed = Proposed::Dead;
        let inodes = inodes.into_iter().map(|inode| inode.0).collect();
        Some(Step::Propose(Op::FreeDead(FreeDead { inodes, max_extents: EXTENTS_PER_ENTRY_MAX })))
    }
}

fn groups_wanted(view: &impl View) -> Option<(AllocateGroupsRequest, bool)> {
    view.table(|table| {
        let capacity = table.capacity();
        let missing = SPARE_GROUP_BYTES.checked_sub(capacity.open_bytes).filter(|missing| *missing > 0)?;
        let count = missing.div_ceil(GROUP_CAPACITY_BYTES).min(GROUPS_PER_REQUEST_MAX);
        let request = AllocateGroupsRequest {
            volume: view.volume().0,
            incarnation: table.configuration()?.incarnation.0,
            count: u32::try_from(count).ok()?,
            first_group: capacity.next_group.0,
        };
        Some((request, capacity.groups_count == 0))
    })
}

/// Those of the orphans that are gone may be forgotten; what is left of the others stays closed to everybody.
fn forget_reaped(view: &mut impl View, mut chosen: Vec<u64>) {
    view.table(|table| chosen.retain(|inode| table.get_attr(InodeId(*inode)).is_err()));
    view.attendance(|attendance| attendance.reaped(&chosen));
}

fn configure(wanted: &TableAssignment) -> Configure {
    Configure {
        volume: wanted.volume,
        incarnation: wanted.incarnation,
        data_shards: wanted.data_shards,
        parity_shards: wanted.parity_shards,
        quota_bytes: wanted.quota_bytes,
        name: wanted.name.clone(),
    }
}

fn block_group(group: Group) -> BlockGroup {
    BlockGroup {
        group: group.group,
        epoch: Epoch::FIRST.0,
        slots: group.members.iter().map(|member| GroupSlot { disk: member.disk, node: member.node }).collect(),
        state: GroupState::GroupOpen.into(),
        used_bytes: 0,
        capacity_bytes: group.capacity_bytes,
    }
}

#[cfg(test)]
mod tests;
