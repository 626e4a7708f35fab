//! A volume's metadata table: a deterministic state machine over ordered copy-on-write trees (D3, D4).
//!
//! `apply` takes one command of the log and either changes everything it says or nothing: every operation first checks
//! all its preconditions, then changes. One exception: what would take away more allocated intervals than an entry may frees the
//! first of them and is refused (decision 12). Nothing here names a clock, a file, randomness or a hash map; time, ids and
//! choices ride in the command. Readers return what a linearizable read may answer once a read barrier has passed.

mod allocate;
mod attributes;
mod check;
mod commit;
mod dead;
mod digest;
mod extents;
mod groups;
mod hasher;
mod key;
mod level;
mod namespace;
mod owed;
mod read;
mod records;
mod rename;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod tree;
mod xattr;

pub use level::FEATURE_LEVEL;
pub(crate) use read::FreedChunk;
pub(crate) use snapshot::FrozenTable;

use crate::sabotage::Sabotage;
use bytes::Bytes;
use dead::PiecesMax;
use extents::Runs;
use holdfast_common::{ChunkId, DiskId, GroupId, Incarnation, InodeId, SessionId, VolumeId};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, FallocateMode, MutateResponse};
use holdfast_proto::record::TableCommand;
use key::NameKey;
pub(crate) use records::Owed;
use records::{Chunk, Dentry, Group, Inode, Session};
use tree::Tree;

/// The version of [`TableCommand`] that this table understands; any other halts the replica (R26).
pub const COMMAND_VERSION: u32 = 1;

/// An invariant does not hold, or a command is not understood: the replica must stop this table (R26).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata table broken: {0}")]
pub struct Broken(pub String);

/// Reason why an operation did not happen. `Refused` has changed nothing.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Refused(Code),
    Broken(Broken),
}
impl From<Code> for Fault {
    fn from(code: Code) -> Self {
        Self::Refused(code)
    }
}
impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}
type Outcome<T> = Result<T, Fault>;

fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

/// The volume manager's decisions about the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Volume of the table; also the number of its Raft group.
    pub volume: VolumeId,
    /// Life of the volume's table (R3).
    pub incarnation: Incarnation,
    /// k: data shards of a full stripe.
    pub data_shards: u8,
    /// m: parity shards of every stripe.
    pub parity_shards: u8,
    /// Most mapped bytes; 0: no quota.
    pub quota_bytes: u64,
    /// Name that people gave the volume.
    pub name: String,
}

/// The metadata table. Cloning is O(1) and gives a frozen copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    configuration: Option<Configuration>,
    counters: Counters,
    inodes: Tree<InodeId, Inode>,
    dentries: Tree<NameKey, Dentry>,
    /// (parent, cookie) to (parent, name): readdir in an order that no change disturbs.
    cookies: Tree<(InodeId, u64), NameKey>,
    extents: Runs,
    /// (inode, from) to the end: where extents count no more and the leader has not freed them yet.
    dead: Tree<(InodeId, u64), u64>,
    /// Extents that were committed into dead intervals.
    fresh: Runs,
    /// (inode, first page) to the page behind the last: set aside by fallocate, touched by no extent.
    allocated: Tree<(InodeId, u64), u64>,
    chunks: Tree<ChunkId, Chunk>,
    /// Chunks without live bytes by (time freed, id), until they are deleted on the datanodes and forgotten.
    freed: Tree<(i64, ChunkId), ()>,
    xattrs: Tree<NameKey, Bytes>,
    /// Inodes without a name, until the leader knows that nobody has them open.
    orphans: Tree<InodeId, ()>,
    sessions: Tree<SessionId, Session>,
    client_keys: Tree<Bytes, SessionId>,
    groups: Tree<GroupId, Group>,
    /// (last change, block group): what a client has not seen yet is a range.
    group_changes: Tree<(u64, GroupId), ()>,
    /// Members of which chunks were forgotten before they confirmed.
    owed: Tree<DiskId, Owed>,
    pieces_max: PiecesMax,
    broken_rule: BrokenRule,
}

/// Of the process, not of the contents.
#[derive(Clone, Copy, Debug, Default)]
struct BrokenRule(Sabotage);

impl PartialEq for BrokenRule {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for BrokenRule {}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Counters {
    next_inode: u64,
    next_chunk: u64,
    next_session: u64,
    next_group: u64,
    /// Raised by every change of a block group's membership or state.
    groups_version: u64,
    /// Commits of chunks below are refused (R4).
    floor: u64,
    last_time_ns: i64,
    /// Pages that extents touch or that are allocated.
    mapped_pages: u64,
    allocated_pages: u64,
    reserved_bytes: u64,
    /// Behaviour that apply has (R26); 0 in tables made before levels were.
    feature_level: u32,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            next_inode: InodeId::ROOT.0 + 1,
            next_chunk: 1,
            next_session: 1,
            next_group: 1,
            groups_version: 0,
            floor: 0,
            last_time_ns: 0,
            mapped_pages: 0,
            allocated_pages: 0,
            reserved_bytes: 0,
            feature_level: 0,
        }
    }
}

/// Answer to a command: made now, or remembered from the first time (R8).
enum Answer {
    Fresh(MutateResponse),
    FreshEncoded(MutateResponse, Bytes),
    Remembered(Bytes),
}

impl Table {
    /// A table before its first entry, which must be `Configure`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks a rule from now on, in this replica: neither its contents nor its snapshots know of it.
    pub(crate) fn break_rule(&mut self, rule: Sabotage) {
        self.broken_rule = BrokenRule(rule);
    }

    fn breaks(&self, rule: Sabotage) -> bool {
        self.broken_rule.0 == rule
    }

    /// Applies one command of the log.
    ///
    /// # Errors
    /// [`Broken`] if an invariant does not hold or the command is not understood; the table must not be used any more.
    pub fn apply(&mut self, command: &TableCommand) -> Result<MutateResponse, Broken> {
        match self.answer(command)? {
            Answer::Fresh(response) | Answer::FreshEncoded(response, _) => Ok(response),
            Answer::Remembered(bytes) => decode_reply(&bytes),
        }
    }

    /// As [`Table::apply`], with the response encoded as the table remembers it.
    ///
    /// # Errors
    /// As [`Table::apply`].
    pub(crate) fn apply_encoded(&mut self, command: &TableCommand) -> Result<Bytes, Broken> {
        Ok(match self.answer(command)? {
            Answer::Fresh(response) => prost::Message::encode_to_vec(&response).into(),
            Answer::FreshEncoded(_, bytes) | Answer::Remembered(bytes) => bytes,
        })
    }

    fn answer(&mut self, command: &TableCommand) -> Result<Answer, Broken> {
        if command.version != COMMAND_VERSION {
            return broken(format!("command version {}", command.version));
        }
        let Some(op) = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) else {
            return broken("a command that this version does not know");
        };
        // Saturating: a clock at the end of time must not stop the table.
        let rising_ns = command.time_ns.max(self.counters.last_time_ns.saturating_add(1));
        let now_ns = if self.breaks(Sabotage::TimeGoesBack) { command.time_ns } else { rising_ns };
        if self.configuration.is_none() && !matches!(op, Op::Configure(_)) {
            return Ok(Answer::Fresh(refusal(Code::Unavailable)));
        }
        if is_leader_only(op) || matches!(op, Op::OpenSession(_)) {
            return Ok(Answer::Fresh(self.execute(op, SessionId(0), now_ns)?));
        }
        self.exactly_once(command, op, now_ns)
    }

    /// Runs the operation; a refusal becomes its response.
    fn execute(&mut self, op: &Op, session: SessionId, now_ns: i64) -> Result<MutateResponse, Broken> {
        match self.dispatch(op, session, now_ns) {
            Ok(response) => {
                self.counters.last_time_ns = now_ns;
                Ok(response)
            }
            Err(Fault::Refused(code)) => Ok(refusal(code)),
            Err(Fault::Broken(broken)) => Err(broken),
        }
    }

    fn dispatch(&mut self, op: &Op, session: SessionId, now_ns: i64) -> Outcome<MutateResponse> {
        match op {
            Op::OpenSession(op) => self.open_session(op, now_ns),
            Op::CloseSession(_) => self.close_session(session),
            Op::Create(op) => self.create(op, now_ns),
            Op::Link(op) => self.link(op, now_ns),
            Op::Unlink(op) => self.unlink(op, now_ns),
            Op::Rename(op) => self.rename(op, now_ns),
            Op::SetAttr(op) => self.set_attr(op, now_ns),
            Op::Commit(op) => self.commit(op, session, now_ns),
            Op::Fallocate(op) => self.fallocate(op, now_ns),
            Op::SetXattr(op) => self.set_xattr(op, now_ns),
            Op::RemoveXattr(op) => self.remove_xattr(op, now_ns),
            Op::ReserveChunks(op) => self.reserve_chunks(op, session),
            Op::ReserveQuota(op) => self.reserve_quota(op, session),
            Op::ExpireSessions(op) => self.expire_sessions(op),
            Op::ReapOrphans(op) => self.reap_orphans(op, now_ns),
            Op::AddGroups(op) => self.add_groups(op),
            Op::VacateSlot(op) => self.vacate_slot(op),
            Op::SetGroupState(op) => self.set_group_state(op),
            Op::ForgetChunks(op) => self.forget_chunks(op),
            Op::RaiseFloor(op) => self.raise_floor(op),
            Op::Configure(op) => self.configure(op, now_ns),
            Op::RaiseFeatureLevel(op) => self.raise_feature_level(op),
            Op::FreeDead(op) => self.free_dead(op, now_ns),
            Op::Swept(op) => self.swept(op),
        }
    }
}

/// Whether only the leader itself may propose this: a client that sends it is refused.
#[must_use]
pub fn is_leader_only(op: &Op) -> bool {
    match op {
        Op::ExpireSessions(_)
        | Op::ReapOrphans(_)
        | Op::AddGroups(_)
        | Op::VacateSlot(_)
        | Op::SetGroupState(_)
        | Op::ForgetChunks(_)
        | Op::RaiseFloor(_)
        | Op::Configure(_)
        | Op::RaiseFeatureLevel(_)
        | Op::FreeDead(_)
        | Op::Swept(_) => true,
        Op::OpenSession(_)
        | Op::CloseSession(_)
        | Op::Create(_)
        | Op::Link(_)
        | Op::Unlink(_)
        | Op::Rename(_)
        | Op::SetAttr(_)
        | Op::Commit(_)
        | Op::Fallocate(_)
        | Op::SetXattr(_)
        | Op::RemoveXattr(_)
        | Op::ReserveChunks(_)
        | Op::ReserveQuota(_) => false,
    }
}

/// Whether this is taken although a metanode's disk is nearly full, because it does not make the table larger by much: it deletes
/// or changes what is there, or ends what was begun. Commits are bounded by the chunk ids that sessions reserved before, and a
/// session is what deleting begins with.
#[must_use]
pub fn frees(op: &Op) -> bool {
    match op {
        Op::ExpireSessions(_)
        | Op::ReapOrphans(_)
        | Op::VacateSlot(_)
        | Op::SetGroupState(_)
        | Op::ForgetChunks(_)
        | Op::Swept(_)
        | Op::RaiseFloor(_)
        | Op::RaiseFeatureLevel(_)
        | Op::FreeDead(_)
        | Op::OpenSession(_)
        | Op::CloseSession(_)
        | Op::Unlink(_)
        | Op::Rename(_)
        | Op::SetAttr(_)
        | Op::Commit(_)
        | Op::RemoveXattr(_) => true,
        Op::Fallocate(op) => op.mode() == FallocateMode::PunchHole,
        Op::ReserveQuota(op) => op.bytes == 0,
        Op::AddGroups(_) | Op::Configure(_) | Op::Create(_) | Op::Link(_) | Op::SetXattr(_) | Op::ReserveChunks(_) => {
            false
        }
    }
}

/// A response of this code and nothing else.
#[must_use]
pub fn refusal(code: Code) -> MutateResponse {
    MutateResponse { code: code.into(), ..MutateResponse::default() }
}

fn decode_reply(bytes: &Bytes) -> Result<MutateResponse, Broken> {
    prost::Message::decode(bytes.as_ref())
        .or_else(|error| broken(format!("a remembered reply does not decode: {error}")))
}
