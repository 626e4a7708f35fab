//! Collects orphans (R4): shards that no commit named and none can name any more, of burnt chunks, dead clients and late puts,
//! and what a member kept of chunks that were forgotten while it was away. Pulled, as the sweep is.
//!
//! The order is the promise. The floor is an entry: a commit below it was applied before, hence is visible to every look-up after
//! it, or is refused for ever. The disk learns the floor durably: then no shard below it comes any more. Then it lists what it
//! has, and only after a page was read is each shard of it looked up. What the table does not place there is deleted by name.
//!
//! The floor follows chunk ids [`Patience::floor_delay_ms`] behind, by this leader's monotonic clock, so that nobody who writes meets it: a
//! request ends within one deadline, and the ids it uses were given out at most one before. Listing twice is harmless, so a new
//! leader simply starts over.

use super::backoff::Backoff;
use super::patience::Patience;
use super::sweep::{Member, deletion, issued};
use super::view::View;
use crate::sabotage::Sabotage;
use crate::table::Table;
use holdfast_common::proof::{Claim, ClusterSecret, ShardName};
use holdfast_common::{ChunkId, DiskId, Nonce, Term};
use holdfast_proto::data::{
    DeleteShardsRequest, DeleteShardsResponse, ListShardsRequest, ListShardsResponse, SetFloorRequest,
    SetFloorResponse, ShardSummary, Status,
};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, MutateResponse, RaiseFloor, Swept};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pause between a leader's rounds.
pub(crate) const ROUND_INTERVAL_MS: u64 = 1_000;
/// Most disks compared at a time.
const DISKS_AT_ONCE: usize = 4;
/// Requests to each of these in one round: listing goes on beside everything else that disks do.
const ASKS_PER_ROUND_MAX: usize = 16;
/// Most shards of one page.
const PAGE_SHARDS_MAX: u32 = 1024;

/// A request to a datanode.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Question {
    SetFloor(SetFloorRequest),
    List(ListShardsRequest),
    Delete(DeleteShardsRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    FloorSet(SetFloorResponse),
    Listed(ListShardsResponse),
    Deleted(DeleteShardsResponse),
}

/// Next step of the caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Propose an entry and tell [`Collector::proposed`].
    Propose(Op),
    /// Send these requests, all at once, and tell [`Collector::answered`] of each.
    Ask(Vec<(Member, Question)>),
    /// Pass a read barrier and tell [`Collector::barred`].
    Barrier,
    /// Nothing until an answer comes.
    Wait,
    /// Nothing until the next round.
    Rest,
}

/// Progress of chunk ids at one time.
#[derive(Debug)]
struct Mark {
    at_ms: u64,
    next_chunk: ChunkId,
    /// The table as it was; only for a rule that is broken.
    table: Option<Table>,
}

/// A disk that is being compared.
#[derive(Debug)]
struct Visit {
    floor: ChunkId,
    /// Entries of the disk's debt when it began: only these are settled.
    owed_entries: u64,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    SetFloor,
    List(Option<ChunkId>),
    LookUp(Vec<ShardSummary>, Option<ChunkId>),
    Delete(Vec<ShardName>, Option<ChunkId>),
    Settle,
}

impl Stage {
    /// Place behind a page: the next one is above `after`, if there is one.
    fn behind(after: Option<ChunkId>) -> Self {
        after.map_or(Self::Settle, |after| Self::List(Some(after)))
    }
}

/// Entry whose outcome is not told yet.
#[derive(Debug, Default, PartialEq)]
enum Proposed {
    #[default]
    Nothing,
    Floor(ChunkId),
    Swept(Member),
}

/// Progress of collecting in one term.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    term: Term,
    /// Requests of the present round; `None` between rounds.
    asks: Option<usize>,
    marks: VecDeque<Mark>,
    raised_ms: Option<u64>,
    proposed: Proposed,
    /// Members of the table's block groups, with the version they are of.
    members: (Option<u64>, BTreeSet<Member>),
    /// Below which floor a disk was compared, and not away since.
    swept: BTreeMap<DiskId, ChunkId>,
    visits: BTreeMap<Member, Visit>,
    asked: BTreeSet<Member>,
    backoff: Backoff,
    patience: Patience,
    sabotage: Sabotage,
}

impl Collector {
    pub(crate) fn new(patience: Patience, sabotage: Sabotage) -> Self {
        Self { backoff: Backoff::new(patience), patience, sabotage, ..Self::default() }
    }

    /// In a new term all starts over: how far ids had come under another leader nobody here knows. To be called before each
    /// round.
    pub(crate) fn follow(&mut self, term: Term) {
        if term != self.term {
            *self = Self { term, ..Self::new(self.patience, self.sabotage) };
        }
    }

    /// The next step of this round, or of a new one.
    pub(crate) fn next(&mut self, view: &impl View, secret: &ClusterSecret) -> Step {
        if !self.asked.is_empty() || self.proposed != Proposed::Nothing {
            return Step::Wait;
        }
        if self.asks.is_none() {
            self.asks = Some(0);
            if view.table(Table::feature_level) < 2 {
                return self.rest();
            }
            self.note_members(view);
            if let Some(op) = self.raise(view) {
                return Step::Propose(op);
            }
        }
        if let Some(op) = self.settle(view) {
            return Step::Propose(op);
        }
        self.begin_visits(view);
        if self.visits.values().any(|visit| matches!(visit.stage, Stage::LookUp(..))) {
            return Step::Barrier;
        }
        let questions = self.questions(view, secret);
        match &mut self.asks {
            Some(asks) if !questions.is_empty() && *asks < ASKS_PER_ROUND_MAX => *asks += 1,
            _ => return self.rest(),
        }
        self.asked = questions.iter().map(|(member, _)| *member).collect();
        Step::Ask(questions)
    }

    fn rest(&mut self) -> Step {
        self.asks = None;
        Step::Rest
    }

    /// The answer to the entry of the last step; without one the round is over.
    pub(crate) fn proposed(&mut self, answer: Option<&MutateResponse>, view: &impl View) {
        let done = answer.map(MutateResponse::code);
        match (std::mem::take(&mut self.proposed), done) {
            (Proposed::Floor(floor), Some(Code::Ok)) => {
                tracing::debug!(volume = %view.volume(), %floor, "floor raised");
                self.raised_ms = Some(view.now_ms());
            }
            (Proposed::Swept(member), Some(Code::Ok)) => self.end_visit(member),
            (Proposed::Floor(_) | Proposed::Swept(_), Some(code)) => {
                tracing::error!(volume = %view.volume(), ?code, "the table refuses its leader's entry");
                self.asks = Some(ASKS_PER_ROUND_MAX);
            }
            (Proposed::Floor(_) | Proposed::Swept(_), None) => self.asks = Some(ASKS_PER_ROUND_MAX),
            (Proposed::Nothing, _) => {}
        }
    }

    /// The barrier was passed, or was not: then the pages wait for the next round.
    pub(crate) fn barred(&mut self, passed: bool, view: &impl View) -> bool {
        if passed {
            view.table(|table| self.look_up(table));
        } else {
            self.asks = None;
        }
        passed
    }

    /// A disk answered, or cannot be reached.
    pub(crate) fn answered(&mut self, member: Member, answer: Option<Answer>, view: &impl View) {
        if !self.asked.remove(&member) {
            return;
        }
        let Some(visit) = self.visits.get_mut(&member) else { return };
        let next = match (std::mem::replace(&mut visit.stage, Stage::Settle), answer) {
            (Stage::SetFloor, Some(Answer::FloorSet(answer))) if is_ok(answer.status) => Some(Stage::List(None)),
            (Stage::List(after), Some(Answer::Listed(answer))) if is_ok(answer.status) => {
                visit.page(after.unwrap_or_default(), answer)
            }
            (Stage::Delete(names, after), Some(Answer::Deleted(answer))) if is_ok(answer.status) => {
                let (volume, disk, named_count) = (view.volume(), member.1, names.len());
                let (deleted_count, kept_count) = (answer.deleted_count, answer.kept_count);
                tracing::info!(%volume, %disk, named_count, deleted_count, kept_count, "orphaned shards deleted");
                Some(Stage::behind(after))
            }
            (_, answer) => {
                tracing::debug!(volume = %view.volume(), disk = %member.1, ?answer, "a disk is not compared now");
                None
            }
        };
        match next {
            Some(stage) => {
                visit.stage = stage;
                self.backoff.answered(member.1);
            }
            None => {
                self.visits.remove(&member);
                self.backoff.failed(member.1, view.now_ms());
            }
        }
    }

    /// Takes note of members. One that is away is to be compared when it returns: deletions went past it.
    fn note_members(&mut self, view: &impl View) {
        let version = view.table(Table::groups_version);
        if self.members.0 != Some(version) {
            self.members = (Some(version), view.table(Table::members));
        }
        for (node, disk) in &self.members.1 {
            if !view.known(|known| known.is_well(*node, *disk)) {
                self.swept.remove(disk);
            }
        }
    }

    /// Notes how far ids have come, and raises the floor to where they were.
    fn raise(&mut self, view: &impl View) -> Option<Op> {
        let now_ms = view.now_ms();
        let (present, next_chunk) = view.table(|table| (table.floor(), table.next_chunk()));
        if self.marks.back().is_none_or(|last| now_ms.saturating_sub(last.at_ms) >= self.patience.mark_interval_ms) {
            let keeps_table = self.sabotage == Sabotage::LookedUpBeforePage;
            let table = keeps_table.then(|| view.table(Table::clone));
            self.marks.push_back(Mark { at_ms: now_ms, next_chunk, table });
        }
        let floor_delay_ms = self.patience.floor_delay_ms();
        let ripe = |mark: &Mark| now_ms.saturating_sub(mark.at_ms) >= floor_delay_ms;
        // The youngest ripe mark stays: it says how far the floor may come until a younger one is ripe.
        while self.marks.get(1).is_some_and(ripe) {
            self.marks.pop_front();
        }
        let then = self.marks.front().filter(|mark| ripe(mark)).map(|mark| mark.next_chunk);
        let wanted = if self.sabotage == Sabotage::FloorAtPresentId { Some(next_chunk) } else { then };
        let floor = wanted.filter(|floor| *floor > present)?;
        let raise_interval_ms = self.patience.raise_interval_ms;
        if self.raised_ms.is_some_and(|raised_ms| now_ms.saturating_sub(raised_ms) < raise_interval_ms) {
            return None;
        }
        self.proposed = Proposed::Floor(floor);
        Some(Op::RaiseFloor(RaiseFloor { floor: floor.0 }))
    }

    fn begin_visits(&mut self, view: &impl View) {
        let now_ms = view.now_ms();
        for member in &self.members.1 {
            if self.visits.len() >= DISKS_AT_ONCE {
                return;
            }
            let (node, disk) = *member;
            if self.visits.contains_key(member) || self.backoff.is_paused(disk, now_ms) {
                continue;
            }
            let (floor, owed) = view.table(|table| (table.floor(), table.owed(disk)));
            let is_behind = self.swept.get(&disk).copied().unwrap_or_default() < floor;
            let owes = owed.is_some_and(|owed| owed.chunk < floor);
            if (is_behind || owes) && view.known(|known| known.is_well(node, disk)) {
                let owed_entries = owed.unwrap_or_default().entries;
                self.visits.insert(*member, Visit { floor, owed_entries, stage: Stage::SetFloor });
            }
        }
    }

    /// Ends the visits that have come to their end. Only what a disk owes is worth an entry.
    fn settle(&mut self, view: &impl View) -> Option<Op> {
        let ended = |(_, visit): &(&Member, &Visit)| visit.stage == Stage::Settle;
        while let Some((member, visit)) = self.visits.iter().find(ended) {
            let (member, floor, owed_entries) = (*member, visit.floor, visit.owed_entries);
            let owed = view.table(|table| table.owed(member.1));
            let clears_all = self.sabotage == Sabotage::SweptClearsAll;
            if owed.is_some_and(|owed| clears_all || (owed.chunk < floor && owed.entries == owed_entries)) {
                self.proposed = Proposed::Swept(member);
                return Some(Op::Swept(Swept { disk: member.1.0, floor: floor.0, owed_entries }));
            }
            self.end_visit(member);
        }
        None
    }

    fn end_visit(&mut self, member: Member) {
        if let Some(visit) = self.visits.remove(&member) {
            self.swept.insert(member.1, visit.floor);
        }
    }

    /// Behind a barrier that was passed after the pages were read.
    fn look_up(&mut self, table: &Table) {
        let former = self.marks.front().and_then(|mark| mark.table.as_ref());
        let table = former.unwrap_or(table);
        for ((_, disk), visit) in &mut self.visits {
            let Stage::LookUp(page, after) = &visit.stage else { continue };
            let names = page.iter().filter_map(name_of).filter(|name| !table.places(name, *disk));
            let (names, after) = (names.collect::<Vec<_>>(), *after);
            visit.stage = if names.is_empty() { Stage::behind(after) } else { Stage::Delete(names, after) };
        }
    }

    fn questions(&self, view: &impl View, secret: &ClusterSecret) -> Vec<(Member, Question)> {
        let incarnation = view.table(|table| table.configuration().map(|configuration| configuration.incarnation));
        let (Some(incarnation), volume) = (incarnation, view.volume()) else { return Vec::new() };
        let question = |(member, visit): (&Member, &Visit)| {
            let disk = member.1;
            let question = match &visit.stage {
                Stage::SetFloor => {
                    let mac = secret.prove(volume, incarnation, Claim::SetFloor(visit.floor));
                    let (floor, proof) = (visit.floor.0, Some(issued(volume, mac)));
                    Question::SetFloor(SetFloorRequest { volume: volume.0, incarnation: incarnation.0, floor, proof })
                }
                Stage::List(after) => Question::List(ListShardsRequest {
                    disk: disk.0,
                    volume: volume.0,
                    incarnation: incarnation.0,
                    after_chunk: after.unwrap_or_default().0,
                    max_count: PAGE_SHARDS_MAX,
                }),
                Stage::Delete(names, _) => Question::Delete(deletion((volume, incarnation), disk, names, secret)),
                Stage::LookUp(..) | Stage::Settle => return None,
            };
            Some((*member, question))
        };
        self.visits.iter().filter_map(question).collect()
    }
}

impl Visit {
    /// The page above a chunk was read; `None` if it makes no sense.
    fn page(&self, after: ChunkId, answer: ListShardsResponse) -> Option<Stage> {
        let ListShardsResponse { mut shards, end, .. } = answer;
        let last = ChunkId(shards.last().map_or(0, |shard| shard.chunk));
        // A page that does not rise would be asked for for ever.
        if !end && last <= after {
            return None;
        }
        shards.retain(|shard| shard.chunk < self.floor.0);
        let goes_on = !end && last < self.floor;
        Some(Stage::LookUp(shards, goes_on.then_some(last)))
    }
}

fn name_of(shard: &ShardSummary) -> Option<ShardName> {
    let (chunk, nonce) = (ChunkId(shard.chunk), Nonce(shard.nonce));
    Some(ShardName { chunk, shard: u8::try_from(shard.shard).ok()?, nonce })
}

/// The number of a status that this version does not know is not OK, which the generated accessor takes it for.
fn is_ok(status: i32) -> bool {
    status == i32::from(Status::Ok)
}

#[cfg(test)]
mod tests;
