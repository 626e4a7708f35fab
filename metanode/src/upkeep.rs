//! What a leader does for its table by itself: configuration, spare groups, silent sessions, orphans.

use crate::hosted::{Context, Hosted, Leadership};
use crate::table::FEATURE_LEVEL;
use holdfast_common::InodeId;
use holdfast_common::limits::{GROUP_CAPACITY_BYTES, SPARE_GROUP_BYTES};
use holdfast_proto::control::{AllocateGroupsRequest, Group, TableAssignment};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, Code, Configure, ExpireSessions, FreeDead, GroupSlot, GroupState, RaiseFeatureLevel,
    ReapOrphans, SetGroupState,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often a leader looks after its table.
const ROUND_INTERVAL: Duration = Duration::from_millis(500);
/// Pause after the volume manager did not give groups.
const GROUPS_RETRY: Duration = Duration::from_secs(1);
/// Most groups asked for at once; the volume manager's limit is 64.
const GROUPS_PER_REQUEST_MAX: u64 = 64;
/// Orphans looked at in one round, and in one entry.
const ORPHANS_PER_ROUND_MAX: usize = 16 << 10;
const ORPHANS_PER_ENTRY_MAX: usize = 256;
/// Entries of one round that free what is dead, and files of one of them.
const DEAD_ENTRIES_PER_ROUND_MAX: usize = 64;
const DEAD_INODES_PER_ENTRY_MAX: usize = 64;
/// Extents freed by one entry: some milliseconds of apply.
const EXTENTS_PER_ENTRY_MAX: u32 = 4096;

/// Runs until the table is dropped or stopped; idle while another replica leads.
pub(crate) async fn run(context: Arc<Context>, hosted: Arc<Hosted>) {
    let mut ticks = interval(ROUND_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut upkeep = Upkeep {
        context: &context,
        hosted: &hosted,
        groups_after: Instant::now(),
        orphans_after: InodeId(0),
        refused: None,
    };
    let mut leadership = Leadership::of(&hosted);
    while let Some(term) = leadership.wait().await {
        upkeep.round(term).await;
        tokio::select! {
            _ = ticks.tick() => {}
            () = leadership.changed() => {}
        }
    }
}

struct Upkeep<'a> {
    context: &'a Context,
    hosted: &'a Hosted,
    /// Not before this are groups asked for again.
    groups_after: Instant,
    /// Where the next round goes on among the orphans.
    orphans_after: InodeId,
    /// What the table refused, so that it is said and proposed once.
    refused: Option<Configure>,
}

impl Upkeep<'_> {
    /// One look at everything. Does nothing unless this replica leads and its state is complete.
    async fn round(&mut self, term: u64) {
        if self.hosted.group.read_barrier().await.is_err() {
            return;
        }
        self.configure().await;
        if self.hosted.group.state().read().table().configuration().is_none() {
            return;
        }
        self.raise_feature_level().await;
        self.switch_groups().await;
        self.add_groups().await;
        self.expire_sessions(term).await;
        self.reap_orphans(term).await;
        self.free_dead().await;
    }

    /// What truncations and commits of badly split files left to be freed, in steps (docs/decisions/0012).
    async fn free_dead(&self) {
        for _ in 0..DEAD_ENTRIES_PER_ROUND_MAX {
            let inodes = self.hosted.group.state().read().table().inodes_with_dead(DEAD_INODES_PER_ENTRY_MAX);
            if inodes.is_empty() {
                return;
            }
            let inodes = inodes.into_iter().map(|inode| inode.0).collect();
            let op = FreeDead { inodes, max_extents: EXTENTS_PER_ENTRY_MAX };
            if self.hosted.propose(Op::FreeDead(op)).await.is_none() {
                return;
            }
        }
    }

    /// The first entry of a table, and whatever the volume manager changed since.
    async fn configure(&mut self) {
        let volume = self.hosted.volume;
        let Some(wanted) = self.context.neighbours.assignment(volume).map(|assignment| configure(&assignment)) else {
            return;
        };
        let fits = {
            let state = self.hosted.group.state().read();
            let present = state.table().configuration();
            present.is_some_and(|present| present.quota_bytes == wanted.quota_bytes && present.name == wanted.name)
        };
        if fits || self.refused.as_ref() == Some(&wanted) {
            return;
        }
        match self.hosted.propose(Op::Configure(wanted.clone())).await.map(|response| response.code()) {
            Some(Code::Ok) => tracing::info!(%volume, name = wanted.name, "table configured"),
            Some(code) => {
                tracing::error!(%volume, ?code, "the volume manager's configuration does not fit the table");
                self.refused = Some(wanted);
            }
            None => {}
        }
    }

    /// R26: the table takes up what the builds of all its replicas know, right after its configuration and after the last
    /// replica was upgraded.
    async fn raise_feature_level(&self) {
        let volume = self.hosted.volume;
        let assignment = self.context.neighbours.assignment(volume);
        let level = assignment.map_or(0, |assignment| assignment.feature_level).min(FEATURE_LEVEL);
        if level <= self.hosted.group.state().read().table().feature_level() {
            return;
        }
        let op = Op::RaiseFeatureLevel(RaiseFeatureLevel { level });
        if self.hosted.propose(op).await.is_some() {
            tracing::info!(%volume, level, "feature level raised");
        }
    }

    async fn switch_groups(&self) {
        let switches = self.hosted.group.state().read().table().groups_to_switch();
        for (group, state) in switches {
            tracing::info!(volume = %self.hosted.volume, %group, full = state == GroupState::GroupFull, "group state");
            let op = SetGroupState { group: group.0, state: state.into() };
            self.hosted.propose(Op::SetGroupState(op)).await;
        }
    }

    /// Keeps groups for at least [`SPARE_GROUP_BYTES`] open, so that a dead volume manager stops nobody.
    async fn add_groups(&mut self) {
        let Some((request, had_none)) = self.groups_wanted() else { return };
        if Instant::now() < self.groups_after {
            return;
        }
        self.groups_after = Instant::now() + GROUPS_RETRY;
        let volume = self.hosted.volume;
        let allocated = match self.context.volmgr.allocate_groups(request).await {
            Ok(response) => response.groups,
            Err(status) => {
                return tracing::warn!(%volume, reason = status.message(), "the volume manager gave no groups");
            }
        };
        let count = allocated.len();
        let groups = allocated.into_iter().map(block_group).collect();
        match self.hosted.propose(Op::AddGroups(AddGroups { groups })).await.map(|response| response.code()) {
            Some(Code::Ok) => {
                tracing::info!(%volume, count, "groups added");
                self.groups_after = Instant::now();
                if had_none {
                    self.context.report.notify_one();
                }
            }
            Some(code) => tracing::error!(%volume, ?code, "the volume manager's groups do not fit the table"),
            None => {}
        }
    }

    fn groups_wanted(&self) -> Option<(AllocateGroupsRequest, bool)> {
        let state = self.hosted.group.state().read();
        let table = state.table();
        let capacity = table.capacity();
        let missing = SPARE_GROUP_BYTES.checked_sub(capacity.open_bytes).filter(|missing| *missing > 0)?;
        let count = missing.div_ceil(GROUP_CAPACITY_BYTES).min(GROUPS_PER_REQUEST_MAX);
        let request = AllocateGroupsRequest {
            volume: self.hosted.volume.0,
            incarnation: table.configuration()?.incarnation.0,
            count: u32::try_from(count).ok()?,
            first_group: capacity.next_group.0,
        };
        Some((request, capacity.groups_count == 0))
    }

    async fn expire_sessions(&self, term: u64) {
        let now_ms = self.context.now_ms();
        let silent = self.hosted.fresh_attendance(term, now_ms).silent(now_ms);
        if silent.is_empty() {
            return;
        }
        tracing::info!(volume = %self.hosted.volume, sessions = ?silent, "sessions expired");
        self.hosted.propose(Op::ExpireSessions(ExpireSessions { sessions: silent })).await;
    }

    async fn reap_orphans(&mut self, term: u64) {
        let orphans = {
            let state = self.hosted.group.state().read();
            state.table().orphans(self.orphans_after, ORPHANS_PER_ROUND_MAX)
        };
        // From the start again once the end was reached.
        self.orphans_after = match orphans.last() {
            Some(last) if orphans.len() == ORPHANS_PER_ROUND_MAX => *last,
            Some(_) | None => InodeId(0),
        };
        for batch in orphans.chunks(ORPHANS_PER_ENTRY_MAX) {
            let chosen = self.hosted.fresh_attendance(term, self.context.now_ms()).choose_orphans(batch);
            if chosen.is_empty() {
                continue;
            }
            let op = ReapOrphans { inodes: chosen.clone(), max_extents: EXTENTS_PER_ENTRY_MAX };
            if self.hosted.propose(Op::ReapOrphans(op)).await.is_none() {
                return;
            }
            let mut attendance = self.hosted.attendance(term, self.context.now_ms());
            let state = self.hosted.group.state().read();
            let gone = chosen.into_iter().filter(|inode| state.table().get_attr(InodeId(*inode)).is_err());
            attendance.reaped(&gone.collect::<Vec<u64>>());
        }
    }
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
        epoch: 1,
        slots: group.members.iter().map(|member| GroupSlot { disk: member.disk, node: member.node }).collect(),
        state: GroupState::GroupOpen.into(),
        used_bytes: 0,
        capacity_bytes: group.capacity_bytes,
    }
}
