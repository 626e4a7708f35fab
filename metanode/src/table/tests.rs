//! Tests of the table: against a plain model of a file system, and one scenario for each rule.

mod allocations;
mod bounds;
mod commits;
mod digest;
mod frees;
mod model;
mod names;
mod owed;
mod persistence;
mod random;
mod sabotage;
mod sessions;

use super::{COMMAND_VERSION, FEATURE_LEVEL, Table};
use holdfast_common::limits::PAGE_BYTES;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, Attr, BlockGroup, ChunkRecord, Code, Commit, Configure, CreateNode, Extent, FileCommit, GroupSlot, Kind,
    MutateResponse, Mutation, OpenSession, RaiseFeatureLevel, ReserveChunks,
};
use holdfast_proto::record::TableCommand;

pub(super) const ROOT: u64 = 1;

/// A configured table of code 4+2 with one block group and one session.
pub(super) struct Fixture {
    pub(super) table: Table,
    pub(super) session: u64,
    pub(super) sequence: u64,
    pub(super) time_ns: i64,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with_quota(0)
    }

    pub(super) fn with_quota(quota_bytes: u64) -> Self {
        Self::at_level(FEATURE_LEVEL, quota_bytes)
    }

    pub(super) fn at_level(level: u32, quota_bytes: u64) -> Self {
        let mut fixture = Self { table: Table::new(), session: 0, sequence: 0, time_ns: 1_000 };
        fixture.lead(configure(quota_bytes));
        fixture.lead(Op::RaiseFeatureLevel(RaiseFeatureLevel { level }));
        fixture.lead(Op::AddGroups(AddGroups { groups: vec![group(1)] }));
        fixture.session = fixture.open_session(b"client");
        fixture
    }

    pub(super) fn open_session(&mut self, key: &'static [u8]) -> u64 {
        let op = OpenSession { client_key: key.into(), description: "test".into() };
        self.lead(Op::OpenSession(op)).session
    }

    /// A command without a session.
    pub(super) fn lead(&mut self, op: Op) -> MutateResponse {
        self.time_ns += 10;
        let response = self.table.apply(&command(op, self.time_ns, 0, 0)).unwrap();
        self.table.check().unwrap();
        response
    }

    pub(super) fn next_command(&mut self, op: Op) -> TableCommand {
        self.time_ns += 10;
        self.sequence += 1;
        TableCommand { acknowledged_below: self.sequence, ..command(op, self.time_ns, self.session, self.sequence) }
    }

    /// A command of the session.
    pub(super) fn run(&mut self, op: Op) -> MutateResponse {
        let command = self.next_command(op);
        let response = self.table.apply(&command).unwrap();
        self.table.check().unwrap();
        response
    }

    pub(super) fn ok(&mut self, op: Op) -> MutateResponse {
        let response = self.run(op);
        assert_eq!(response.code(), Code::Ok, "{response:?}");
        response
    }

    pub(super) fn refused(&mut self, op: Op, code: Code) {
        let before = self.table.clone();
        let response = self.run(op);
        assert_eq!(response.code(), code);
        self.assert_same_but_replies(&before);
    }

    /// An operation that failed left everything as it was, save the remembered reply.
    pub(super) fn assert_same_but_replies(&self, before: &Table) {
        let mut now = self.table.clone();
        now.sessions = before.sessions.clone();
        assert!(now == *before, "a refused operation changed the table");
    }

    pub(super) fn create(&mut self, parent: u64, name: &'static [u8], kind: Kind) -> u64 {
        self.ok(create(parent, name, kind)).attr.unwrap().inode
    }

    pub(super) fn attr(&self, inode: u64) -> Attr {
        self.table.get_attr(inode.into()).unwrap()
    }

    pub(super) fn reserve_chunk(&mut self) -> u64 {
        self.ok(Op::ReserveChunks(ReserveChunks { count: 1 })).first_chunk
    }

    /// Commits one chunk of one file and answers the file's result.
    pub(super) fn commit_one(&mut self, chunk: ChunkRecord, file: FileCommit) -> Code {
        let response = self.ok(Op::Commit(Commit { chunks: vec![chunk], files: vec![file] }));
        response.commits[0].code()
    }
}

pub(super) fn command(op: Op, time_ns: i64, session: u64, sequence: u64) -> TableCommand {
    let mutation = Some(Mutation { op: Some(op) });
    TableCommand { version: COMMAND_VERSION, time_ns, session, sequence, acknowledged_below: 0, mutation }
}

pub(super) fn configure(quota_bytes: u64) -> Op {
    let name = "test".to_owned();
    Op::Configure(Configure { volume: 7, incarnation: 1, data_shards: 4, parity_shards: 2, quota_bytes, name })
}

pub(super) fn group(group: u64) -> BlockGroup {
    let slots = (1..=6).map(|i| GroupSlot { disk: i, node: 100 + i }).collect();
    BlockGroup { group, epoch: 1, slots, state: 0, used_bytes: 0, capacity_bytes: 1 << 30 }
}

pub(super) fn create(parent: u64, name: &'static [u8], kind: Kind) -> Op {
    let target = if kind == Kind::Symlink { b"target".as_slice().into() } else { bytes::Bytes::new() };
    Op::Create(CreateNode {
        parent,
        name: name.into(),
        kind: kind.into(),
        mode: 0o644,
        uid: 5,
        gid: 6,
        rdev: 0,
        target,
        exclusive: true,
        open: false,
    })
}

/// A record of one data shard and two parity shards.
pub(super) fn chunk(chunk: u64, length_bytes: u32) -> ChunkRecord {
    ChunkRecord {
        chunk,
        nonce: chunk * 31,
        group: 1,
        epoch: 1,
        length_bytes,
        data_shards: 1,
        parity_shards: 2,
        slots: vec![0, 3, 5].into(),
        shard_length_bytes: length_bytes.next_multiple_of(PAGE_BYTES),
    }
}

/// The first bytes of a chunk at an offset of a file that was never truncated.
pub(super) fn file_commit(inode: u64, file_offset: u64, length_bytes: u64, chunk: u64) -> FileCommit {
    FileCommit {
        inode,
        truncate_generation: 0,
        extents: vec![Extent { file_offset, length_bytes, chunk, chunk_offset: 0 }],
        size_at_least: file_offset + length_bytes,
        mtime_ns: 0,
        quota_bytes: 0,
        kill_suid_sgid: false,
    }
}
