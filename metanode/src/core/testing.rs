//! A table with everything a leader has around it, for tests: no runtime, no clock.

use super::attendance::Attendance;
use super::known::Known;
use super::view::Borrowed;
use crate::table::{FEATURE_LEVEL, Table};
use holdfast_common::{Term, VolumeId};
use holdfast_proto::control::{Endpoint, HeartbeatResponse, TableAssignment};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, ChunkRecord, Commit, Configure, CreateNode, Extent, FileCommit, GroupSlot, Kind,
    MutateRequest, MutateResponse, Mutation, OpenSession, Unlink,
};
use holdfast_proto::record::TableCommand;
use prost::Message;

pub(crate) const VOLUME: VolumeId = VolumeId(7);

#[derive(Default)]
pub(crate) struct Rig {
    pub(crate) table: Table,
    pub(crate) known: Known,
    pub(crate) attendance: Attendance,
    pub(crate) now_ms: u64,
    pub(crate) term: Term,
    pub(crate) sequence: u64,
}

impl Rig {
    /// A volume that was assigned, with nothing in its table.
    pub(crate) fn assigned() -> Self {
        let mut rig = Self { term: Term(1), ..Self::default() };
        rig.learn(assignment());
        rig
    }

    /// A rig whose table is configured and has block groups for 64 GiB.
    pub(crate) fn configured() -> Self {
        let mut rig = Self::assigned();
        let TableAssignment { volume, incarnation, data_shards, parity_shards, quota_bytes, name, .. } = assignment();
        let op = Configure { volume, incarnation, data_shards, parity_shards, quota_bytes, name };
        assert_eq!(rig.apply_own(Op::Configure(op)).code, 0);
        let groups = (1..=2).map(group).collect();
        assert_eq!(rig.apply_own(Op::AddGroups(AddGroups { groups })).code, 0);
        rig
    }

    pub(crate) fn learn(&mut self, table: TableAssignment) {
        let nodes = vec![Endpoint { node: 2, address: "there:1".into(), alive: true, ..Default::default() }];
        self.known.learn(&HeartbeatResponse { tables: vec![table], nodes, ..Default::default() }, 0);
    }

    pub(crate) fn view(&mut self) -> Borrowed<'_> {
        Borrowed {
            volume: VOLUME,
            term: self.term,
            now_ms: self.now_ms,
            stamp_ns: 5,
            table: &self.table,
            known: &self.known,
            attendance: &mut self.attendance,
        }
    }

    /// Applies what was encoded for the log.
    pub(crate) fn apply_encoded(&mut self, command: &[u8]) -> MutateResponse {
        self.table.apply(&TableCommand::decode(command).unwrap()).unwrap()
    }

    /// Applies an entry of the leader's own.
    pub(crate) fn apply_own(&mut self, op: Op) -> MutateResponse {
        let command = super::command::encode(&self.view(), op, super::command::Place::default());
        self.apply_encoded(&command)
    }

    /// A client's request, through the leader, applied and answered.
    pub(crate) fn mutate(&mut self, session: u64, op: Op) -> MutateResponse {
        let request = self.request(session, op);
        let (command, note) = super::mutating::begin(&mut self.view(), request).unwrap();
        let answer = self.apply_encoded(&command);
        let encoded = answer.encode_to_vec().into();
        let ended = super::mutating::end(&mut self.view(), &note, Ok(encoded));
        super::mutating::let_go(&mut self.view(), &note);
        MutateResponse::decode(ended.unwrap()).unwrap()
    }

    pub(crate) fn request(&mut self, session: u64, op: Op) -> MutateRequest {
        self.sequence += 1;
        let (sequence, mutation) = (self.sequence, Some(Mutation { op: Some(op) }));
        MutateRequest { volume: VOLUME.0, incarnation: 1, session, sequence, acknowledged_below: sequence, mutation }
    }

    pub(crate) fn open_session(&mut self, key: &'static [u8]) -> u64 {
        let op = OpenSession { client_key: key.into(), description: String::new() };
        self.mutate(0, Op::OpenSession(op)).session
    }
}

/// A commit of nine bytes at an offset of a file, by a chunk of its own on the disks of slots 0, 3 and 5.
pub(crate) fn commit_of(inode: u64, chunk: u64, file_offset: u64) -> Commit {
    let record = ChunkRecord {
        chunk,
        nonce: 1,
        group: 1,
        epoch: 1,
        length_bytes: 9,
        data_shards: 1,
        parity_shards: 2,
        slots: vec![0, 3, 5].into(),
        shard_length_bytes: 4096,
    };
    let extents = vec![Extent { file_offset, length_bytes: 9, chunk, chunk_offset: 0 }];
    let file = FileCommit { inode, extents, size_at_least: file_offset + 9, ..FileCommit::default() };
    Commit { chunks: vec![record], files: vec![file] }
}

pub(crate) fn assignment() -> TableAssignment {
    TableAssignment {
        volume: VOLUME.0,
        incarnation: 1,
        name: "demo".into(),
        replicas: vec![1, 2, 3],
        data_shards: 4,
        parity_shards: 2,
        quota_bytes: 0,
        available_bytes: 1 << 40,
        feature_level: FEATURE_LEVEL,
    }
}

pub(crate) fn group(id: u64) -> BlockGroup {
    let slots = (1..=6).map(|i| GroupSlot { disk: 10 + i, node: 100 + i }).collect();
    BlockGroup { group: id, epoch: 1, slots, state: 0, used_bytes: 0, capacity_bytes: 32 << 30 }
}

pub(crate) fn create(name: &'static [u8], open: bool) -> Op {
    Op::Create(CreateNode { parent: 1, name: name.into(), kind: Kind::File.into(), open, ..CreateNode::default() })
}

pub(crate) fn unlink(name: &'static [u8]) -> Op {
    Op::Unlink(Unlink { parent: 1, name: name.into(), directory: false })
}
