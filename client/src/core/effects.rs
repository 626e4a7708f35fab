//! Inputs of the core, and the effects it wants.
//!
//! Effects are performed after the core's lock is let go, by whoever brought the input, so that those of two steps may be
//! performed in either order. None relies on an earlier one having been performed: where order matters, the core waits for
//! the answer.

use super::members::Member;
use super::readahead::Advice;
use super::time::Moment;
use crate::{CallFailed, Error, FileHandle, OpenMode, Whence, WriteAt};
use bytes::Bytes;
use holdfast_common::{ChunkId, DiskId, FileOffset, InodeId, SessionId};
use holdfast_erasure::Geometry;
use holdfast_proto::control::Endpoint;
use holdfast_proto::data::{DiskGrant, DiskReservation, PutShardResponse};
use holdfast_proto::meta::{
    Attr, ChunkRecord, CreateNode, MutateRequest, MutateResponse, ReadRequest, ReadResponse, mutation, read_request,
};
use smallvec::SmallVec;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// An operation of a caller. Numbers ascend and are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpId(pub(crate) u64);

/// A metadata request, over all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId(pub(super) u64);

/// One sending of a metadata request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AttemptId {
    pub(crate) request: RequestId,
    pub(crate) attempt: u32,
}

/// A chunk being written, over all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WriteId(pub(crate) u64);

/// Purpose of a look-up of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// For read(2).
    Wanted,
    /// Again, because what was told before was of no use: the map is asked for anew.
    Again,
    /// Ahead of a reader.
    Ahead,
}

/// Operation that a caller begins.
#[derive(Debug)]
pub(crate) enum Call {
    /// To be told when the first session is open and the groups are known.
    Start,
    /// A question to the table.
    Ask(read_request::Op),
    /// A change of names or attributes that needs nothing else.
    Mutate(mutation::Op),
    /// A change of an inode that everything written before must precede, and nothing written later (R9).
    Barrier { inode: InodeId, op: mutation::Op },
    /// Makes a file and opens it, in one request.
    Create { request: CreateNode, mode: OpenMode },
    /// Opens a regular file.
    Open { inode: InodeId, mode: OpenMode },
    /// Takes data in, once there is room for it.
    Write { handle: FileHandle, at: WriteAt, data: Bytes, mtime_ns: i64, kill_suid_sgid: bool },
    /// Makes what was written durable. `closing`: tells of a lost write and leaves it to be told again.
    Flush { handle: FileHandle, closing: bool },
    /// The last close.
    Release { handle: FileHandle },
    /// Finds out where the bytes of a range are.
    Plan { handle: FileHandle, offset: FileOffset, length_bytes: u64, reading: Reading },
    /// lseek(2) for data and holes.
    Seek { handle: FileHandle, offset: FileOffset, whence: Whence },
    /// Flushes all inodes.
    Sync,
    /// Ends the session for good: no other is opened.
    Close,
}

/// Result of a caller's operation.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Read(Box<ReadResponse>),
    Mutated(Box<MutateResponse>),
    Opened(Box<Attr>, FileHandle),
    Plan(Vec<PlanPiece>, Advice),
    Offset(FileOffset),
    /// A lost write, told by this handle for the last time.
    Told(FileHandle, Error),
}

/// A part of a range that is to be read. Parts follow each other without gaps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PlanPiece {
    /// Written here and not committed yet.
    Bytes(Bytes),
    /// Nothing was ever written there.
    Zeros(u64),
    /// `length_bytes` of a chunk, from `offset` in it on.
    Chunk { chunk: Arc<ChunkRecord>, offset: u64, length_bytes: u64 },
}

#[derive(Debug)]
pub(crate) enum Response {
    Mutate(Box<MutateResponse>),
    Read(Box<ReadResponse>),
}

/// Event that steps the core.
#[derive(Debug)]
pub(crate) enum Input {
    /// [`Effects::wake`] has come.
    Tick,
    /// A caller begins.
    Begin { op: OpId, call: Call },
    /// A caller does not wait any more. What was sent goes on.
    Abandon { op: OpId },
    /// An operation ended, and its caller was gone before it could be told.
    Undelivered { outcome: Result<Answer, Error> },
    /// A request was answered, or not within its time.
    Answered { attempt: AttemptId, answer: Result<Response, CallFailed> },
    /// A shard was put, or not within its time.
    Put { write: WriteId, chunk: ChunkId, shard: u8, elapsed: Duration, answer: Result<PutShardResponse, CallFailed> },
    /// Addresses from the volume manager; none if it did not answer.
    Endpoints(Vec<Endpoint>),
    /// Promises of disks, by the addresses of their hosts.
    Granted(Vec<(IpAddr, DiskGrant)>),
    /// A member did not answer a reader.
    Unanswered { disk: DiskId },
    /// Groups and addresses are out of date.
    DoubtGroups,
}

/// A metadata request to be sent.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) attempt: AttemptId,
    pub(crate) to: SocketAddr,
    pub(crate) request: Wire,
    pub(crate) timeout: Duration,
}

/// A metadata request as it travels.
#[derive(Debug)]
pub(crate) enum Wire {
    Mutate(Box<MutateRequest>),
    Read(Box<ReadRequest>),
}

/// A chunk to be encoded and sent to its members, each shard answered by [`Input::Put`].
#[derive(Debug)]
pub(crate) struct PutChunk {
    pub(crate) write: WriteId,
    pub(crate) record: ChunkRecord,
    pub(crate) geometry: Geometry,
    /// One for each shard, in the order of shards.
    pub(crate) members: Vec<Member>,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) session: SessionId,
    pub(crate) timeout: Duration,
}

/// Reservations of space to be asked for, answered by one [`Input::Granted`].
#[derive(Debug)]
pub(crate) struct Reserve {
    pub(crate) session: SessionId,
    pub(crate) disks: Vec<(SocketAddr, Vec<DiskReservation>)>,
    pub(crate) lease: Duration,
    pub(crate) timeout: Duration,
}

/// Work for the shell, in any order. Mostly it is one send or one outcome, which are kept without an allocation.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) sends: SmallVec<[Send; 1]>,
    /// So many of them, the first, follow from what this step took in; the rest from the time that has come.
    pub(crate) own_sends: usize,
    pub(crate) puts: Vec<PutChunk>,
    pub(crate) reserve: Option<Reserve>,
    /// The volume manager is to be asked for addresses.
    pub(crate) ask_volmgr: bool,
    pub(crate) outcomes: SmallVec<[(OpId, Result<Answer, Error>); 1]>,
    /// Lines for the log.
    pub(crate) notes: Vec<Note>,
    /// When the core wants [`Input::Tick`]; `None`: never. Of two steps the later one's holds.
    pub(crate) wake: Option<Moment>,
}

/// Event that is logged for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Written data will never reach the disks.
    Lost { inode: InodeId, bytes: u64, error: Error },
    /// The table has ended the session.
    SessionLost(SessionId),
    /// The session's lease ran out without an answer.
    SessionUnsure(SessionId),
    /// A request is tried again.
    Again(String),
}
