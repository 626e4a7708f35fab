//! A core on the bench: what it wants is kept until a test answers it, but what every mount does by itself is answered at once.
//! Time moves only when a test says so, and then from one wake to the next: a wake that is forgotten is never made up for.

use super::super::effects::{AttemptId, Call, PutChunk, Reserve, Send, Wire, WriteId};
use super::super::*;
use crate::{CallFailed, OpenMode, WriteAt};
use bytes::Bytes;
use holdfast_common::ChunkId;
use holdfast_common::limits::SESSION_LEASE_MS;
use holdfast_proto::control::Endpoint;
use holdfast_proto::data::{DiskGrant, PutShardResponse, Status};
use holdfast_proto::meta::{BlockGroup, Code, Commit, CommitResult, GroupSlot, Kind, NodeAddress};
use holdfast_transport::RpcError;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

pub(super) const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, sync: false };
pub(super) const APPEND: OpenMode = OpenMode { append: true, ..BOTH };
/// 2+1 over the five disks of one group.
pub(super) const DISKS: u64 = 5;
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
pub(super) const LEASE: Duration = Duration::from_millis(SESSION_LEASE_MS as u64);

pub(super) type Told = Result<Answer, Error>;

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) now: Moment,
    wake: Option<Moment>,
    pub(super) sends: Vec<Send>,
    pub(super) puts: Vec<PutChunk>,
    pub(super) reserves: Vec<Reserve>,
    pub(super) told: BTreeMap<OpId, Told>,
    pub(super) notes: Vec<Note>,
    pub(super) volmgr_asked: u32,
    /// Names of requests that wait for the test although every mount sends them by itself.
    pub(super) held: Vec<&'static str>,
    /// Bytes that each disk promises; `None`: reservations wait for the test.
    pub(super) free_bytes: Option<u64>,
    pub(super) groups: Vec<BlockGroup>,
    pub(super) groups_changes: u64,
    /// Attributes of files in the table.
    pub(super) files: BTreeMap<u64, Attr>,
    pub(super) session: u64,
    pub(super) next_chunk: u64,
    next_op: u64,
}

pub(super) fn settings() -> Settings {
    Settings {
        volume: VolumeId(7),
        incarnation: Incarnation(1),
        replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
        code: CodeMode::new(2, 1).unwrap(),
        limited: false,
        client_key: b"key".to_vec(),
        description: "bench".into(),
        dirty_bytes: 32 << 20,
        map_bytes: 1 << 20,
        seed: 1,
        sabotage: Sabotage::None,
    }
}

pub(super) fn metanode(node: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(100 + node).unwrap()))
}

/// The name of a request's operation.
pub(super) fn name(wire: &Wire) -> &'static str {
    use mutation::Op as Change;
    use read_request::Op as Question;
    match wire {
        Wire::Mutate(request) => match request.mutation.as_ref().unwrap().op.as_ref().unwrap() {
            Change::OpenSession(_) => "OpenSession",
            Change::CloseSession(_) => "CloseSession",
            Change::ReserveChunks(_) => "ReserveChunks",
            Change::ReserveQuota(_) => "ReserveQuota",
            Change::Commit(_) => "Commit",
            Change::SetAttr(_) => "SetAttr",
            Change::Create(_) => "Create",
            _ => "another change",
        },
        Wire::Read(request) => match request.op.as_ref().unwrap() {
            Question::KeepAlive(_) => "KeepAlive",
            Question::GetGroups(_) => "GetGroups",
            Question::GetNodes(_) => "GetNodes",
            Question::Open(_) => "Open",
            Question::GetAttr(_) => "GetAttr",
            Question::ReadMap(_) => "ReadMap",
            Question::Lookup(_) => "Lookup",
            _ => "another question",
        },
    }
}

pub(super) fn change_of(send: &Send) -> &mutation::Op {
    let Wire::Mutate(request) = &send.request else { panic!("a change: {send:?}") };
    request.mutation.as_ref().unwrap().op.as_ref().unwrap()
}

pub(super) fn question_of(send: &Send) -> &read_request::Op {
    let Wire::Read(request) = &send.request else { panic!("a question: {send:?}") };
    request.op.as_ref().unwrap()
}

pub(super) fn commit_of(send: &Send) -> &Commit {
    let mutation::Op::Commit(commit) = change_of(send) else { panic!("a commit: {send:?}") };
    commit
}

/// Session and sequence.
pub(super) fn number_of(send: &Send) -> (u64, u64) {
    let Wire::Mutate(request) = &send.request else { panic!("a change: {send:?}") };
    (request.session, request.sequence)
}

pub(super) fn mutate_says(code: Code) -> MutateResponse {
    MutateResponse { code: code.into(), ..MutateResponse::default() }
}

pub(super) fn read_says(code: Code) -> ReadResponse {
    ReadResponse { code: code.into(), ..ReadResponse::default() }
}

impl Bench {
    pub(super) fn mounted() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let mut bench = Self::unmounted(settings);
        let op = bench.begin(Call::Start);
        assert_eq!(bench.done(op), Some(Ok(())));
        bench
    }

    /// Nothing is answered before the first step.
    pub(super) fn unmounted(settings: Settings) -> Self {
        let mut members = Members::default();
        let endpoint =
            |node| Endpoint { node, address: metanode(node).to_string(), alive: true, ..Endpoint::default() };
        members.learn_endpoints(&[endpoint(1), endpoint(2), endpoint(3)]);
        let (core, effects) = Core::new(settings, members, Moment(0));
        let slots = (1..=DISKS).map(|disk| GroupSlot { disk, node: 10 + disk }).collect();
        let mut bench = Self {
            core,
            now: Moment(0),
            wake: None,
            sends: Vec::new(),
            puts: Vec::new(),
            reserves: Vec::new(),
            told: BTreeMap::new(),
            notes: Vec::new(),
            volmgr_asked: 0,
            held: Vec::new(),
            free_bytes: Some(1 << 40),
            groups: vec![BlockGroup { group: 1, epoch: 1, slots, ..BlockGroup::default() }],
            groups_changes: 1,
            files: BTreeMap::new(),
            session: 0,
            next_chunk: 1000,
            next_op: 0,
        };
        bench.keep(effects);
        bench
    }

    fn keep(&mut self, effects: Effects) {
        self.wake = effects.wake;
        self.sends.extend(effects.sends);
        self.puts.extend(effects.puts);
        self.reserves.extend(effects.reserve);
        self.notes.extend(effects.notes);
        self.volmgr_asked += u32::from(effects.ask_volmgr);
        for (op, outcome) in effects.outcomes {
            assert!(self.told.insert(op, outcome).is_none(), "{op:?} ended twice");
        }
    }

    /// Takes an input in, and does what every mount's surroundings do.
    pub(super) fn step(&mut self, input: Input) {
        let effects = self.core.step(self.now, input);
        self.keep(effects);
        self.keep_house();
    }

    fn keep_house(&mut self) {
        const HOUSE: [&str; 5] = ["OpenSession", "KeepAlive", "GetGroups", "GetNodes", "ReserveChunks"];
        let due = |bench: &Self, send: &Send| {
            let name = name(&send.request);
            HOUSE.contains(&name) && !bench.held.contains(&name)
        };
        loop {
            let input = if let Some(at) = (0..self.sends.len()).find(|at| due(self, &self.sends[*at])) {
                let send = self.sends.remove(at);
                let answer = Ok(self.house_answer(&send));
                Input::Answered { attempt: send.attempt, answer }
            } else if let Some(free_bytes) = self.free_bytes.filter(|_| !self.reserves.is_empty()) {
                Input::Granted(grants(&self.reserves.remove(0), free_bytes))
            } else {
                return;
            };
            let effects = self.core.step(self.now, input);
            self.keep(effects);
        }
    }

    /// The table's answer to a request that every mount makes by itself.
    pub(super) fn house_answer(&mut self, send: &Send) -> Response {
        match name(&send.request) {
            "OpenSession" => {
                self.session += 1;
                Response::Mutate(Box::new(MutateResponse { session: self.session, ..MutateResponse::default() }))
            }
            "ReserveChunks" => {
                let first_chunk = self.next_chunk;
                self.next_chunk += 4096;
                Response::Mutate(Box::new(MutateResponse { first_chunk, ..MutateResponse::default() }))
            }
            "GetGroups" => Response::Read(Box::new(ReadResponse {
                groups: self.groups.clone(),
                groups_changes: self.groups_changes,
                nodes_version: 1,
                ..ReadResponse::default()
            })),
            "GetNodes" => {
                let node = |node: u64| {
                    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(200 + node).unwrap())).to_string();
                    NodeAddress { node, address, alive: true, ..NodeAddress::default() }
                };
                let nodes = (11..=10 + DISKS).map(node).collect();
                Response::Read(Box::new(ReadResponse { nodes, nodes_version: 1, ..ReadResponse::default() }))
            }
            _ => Response::Read(Box::new(ReadResponse {
                groups_changes: self.groups_changes,
                nodes_version: 1,
                ..ReadResponse::default()
            })),
        }
    }

    pub(super) fn begin(&mut self, call: Call) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        self.step(Input::Begin { op, call });
        op
    }

    pub(super) fn abandon(&mut self, op: OpId) {
        self.step(Input::Abandon { op });
        assert!(!self.told.contains_key(&op), "nobody waits for it");
    }

    /// Lets time pass, with a tick whenever the core wants one.
    pub(super) fn later(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut ticks = 0;
        while let Some(wake) = self.wake.filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.step(Input::Tick);
            ticks += 1;
            assert!(ticks < 100_000, "it is woken without end at {:?}", self.now);
        }
        self.now = end;
    }

    /// Takes an operation's outcome, which comes once: a lost write that was told is an error.
    pub(super) fn done(&mut self, op: OpId) -> Option<Result<(), Error>> {
        self.told.remove(&op).map(|outcome| match outcome {
            Ok(Answer::Told(_, error)) => Err(error),
            other => other.map(|_| ()),
        })
    }

    // Requests to the table.

    pub(super) fn count(&self, wanted: &str) -> usize {
        self.sends.iter().filter(|send| name(&send.request) == wanted).count()
    }

    /// The only request of that name that is under way.
    pub(super) fn take(&mut self, wanted: &str) -> Send {
        let names: Vec<_> = self.sends.iter().map(|send| name(&send.request)).collect();
        assert_eq!(self.count(wanted), 1, "{wanted} among {names:?}");
        let at = names.iter().position(|name| *name == wanted).unwrap();
        self.sends.remove(at)
    }

    pub(super) fn answer(&mut self, attempt: AttemptId, answer: Result<Response, CallFailed>) {
        self.step(Input::Answered { attempt, answer });
    }

    pub(super) fn mutated(&mut self, send: &Send, response: MutateResponse) {
        self.answer(send.attempt, Ok(Response::Mutate(Box::new(response))));
    }

    pub(super) fn read(&mut self, send: &Send, response: ReadResponse) {
        self.answer(send.attempt, Ok(Response::Read(Box::new(response))));
    }

    pub(super) fn unanswered(&mut self, send: &Send) {
        self.answer(send.attempt, Err(RpcError::Deadline.into()));
    }

    /// The table ends the session.
    pub(super) fn expire(&mut self) {
        let op = self.begin(Call::Ask(read_request::Op::StatFs(holdfast_proto::meta::StatFs {})));
        let send = self.take("another question");
        self.read(&send, read_says(Code::SessionExpired));
        self.abandon(op);
        self.sends.retain(|send| name(&send.request) != "another question");
    }

    // Files.

    pub(super) fn attributes(&mut self, inode: u64) -> &mut Attr {
        self.files.entry(inode).or_insert_with(|| Attr {
            inode,
            kind: Kind::File.into(),
            nlink: 1,
            mode: 0o644,
            ..Attr::default()
        })
    }

    pub(super) fn open(&mut self, inode: u64, mode: OpenMode) -> FileHandle {
        let op = self.begin(Call::Open { inode: InodeId(inode), mode });
        let send = self.take("Open");
        let attr = Some(*self.attributes(inode));
        self.read(&send, ReadResponse { attr, ..ReadResponse::default() });
        match self.told.remove(&op) {
            Some(Ok(Answer::Opened(_, handle))) => handle,
            other => panic!("inode {inode} is not open: {other:?}"),
        }
    }

    pub(super) fn write(&mut self, handle: FileHandle, offset: u64, length: usize) -> OpId {
        self.write_at(handle, WriteAt::Offset(offset), length)
    }

    pub(super) fn write_at(&mut self, handle: FileHandle, at: WriteAt, length: usize) -> OpId {
        let data = Bytes::from(vec![1; length]);
        self.begin(Call::Write { handle, at, data, mtime_ns: 5, kill_suid_sgid: false })
    }

    /// Writes what is taken in at once.
    pub(super) fn written(&mut self, handle: FileHandle, offset: u64, length: usize) {
        let op = self.write(handle, offset, length);
        assert_eq!(self.done(op), Some(Ok(())));
    }

    pub(super) fn fsync(&mut self, handle: FileHandle) -> OpId {
        self.begin(Call::Flush { handle, closing: false })
    }

    pub(super) fn release(&mut self, handle: FileHandle) -> OpId {
        self.begin(Call::Release { handle })
    }

    // Chunks and commits.

    /// The only chunk that is on its way.
    pub(super) fn take_put(&mut self) -> PutChunk {
        assert_eq!(self.puts.len(), 1, "one chunk is on its way");
        self.puts.remove(0)
    }

    pub(super) fn put_says(&mut self, put: &PutChunk, shard: u8, status: Status) {
        let answer = Ok(PutShardResponse { status: status.into(), ..PutShardResponse::default() });
        self.put_ends(put.write, ChunkId(put.record.chunk), shard, answer);
    }

    pub(super) fn put_ends(
        &mut self,
        write: WriteId,
        chunk: ChunkId,
        shard: u8,
        answer: Result<PutShardResponse, CallFailed>,
    ) {
        self.step(Input::Put { write, chunk, shard, elapsed: Duration::from_millis(1), answer });
    }

    /// Every shard is durable.
    pub(super) fn store(&mut self, put: &PutChunk) {
        for shard in (0u8..).take(put.members.len()) {
            self.put_says(put, shard, Status::Ok);
        }
    }

    /// All shards but the first are durable; of that one its member says this.
    pub(super) fn store_but_first(&mut self, put: &PutChunk, status: Status) {
        for shard in (1u8..).take(put.members.len() - 1) {
            self.put_says(put, shard, Status::Ok);
        }
        self.put_says(put, 0, status);
    }

    pub(super) fn store_all(&mut self) {
        while !self.puts.is_empty() {
            let put = self.puts.remove(0);
            self.store(&put);
        }
    }

    /// The table takes a file's part of a commit.
    pub(super) fn apply(&mut self, file: &holdfast_proto::meta::FileCommit) -> CommitResult {
        let attr = self.attributes(file.inode);
        attr.size_bytes = attr.size_bytes.max(file.size_at_least);
        attr.data_version += 1;
        CommitResult { code: Code::Ok.into(), attr: Some(*attr) }
    }

    /// The table takes a commit.
    pub(super) fn committed(&mut self, send: &Send) {
        let commits = commit_of(send).files.iter().map(|file| self.apply(file)).collect();
        self.mutated(send, MutateResponse { commits, ..MutateResponse::default() });
    }

    /// The table answers for the files of a commit one by one; those that are not refused are taken.
    pub(super) fn commit_says(&mut self, send: &Send, codes: &[Code]) {
        let files = commit_of(send).files.clone();
        let result = |(file, code): (&holdfast_proto::meta::FileCommit, &Code)| match code {
            Code::Ok => self.apply(file),
            code => CommitResult { code: (*code).into(), attr: None },
        };
        let commits = files.iter().zip(codes).map(result).collect();
        self.mutated(send, MutateResponse { commits, ..MutateResponse::default() });
    }

    /// Everything that is frozen reaches the disks and the table.
    pub(super) fn settle(&mut self) {
        while !self.puts.is_empty() || self.count("Commit") > 0 {
            self.store_all();
            while let Some(at) = self.sends.iter().position(|send| name(&send.request) == "Commit") {
                let send = self.sends.remove(at);
                self.committed(&send);
            }
        }
    }

    /// Nothing is held and nothing waits.
    #[track_caller]
    pub(super) fn assert_empty(&mut self) {
        assert_eq!(self.core.memory.used_bytes(), 0, "memory");
        assert_eq!(self.core.quota.charged_bytes(), 0, "quota");
        assert!(self.core.unflushed().is_empty(), "{:?}", self.core.unflushed());
        assert!(self.core.operations.is_empty(), "{:?}", self.core.operations);
        assert!(self.core.writers.is_empty() && self.core.dirty.is_empty());
    }
}

/// Every disk that is asked promises at most so much.
pub(super) fn grants(reserve: &Reserve, free_bytes: u64) -> Vec<(std::net::IpAddr, DiskGrant)> {
    let disks = reserve.disks.iter().flat_map(|(address, disks)| disks.iter().map(|disk| (address.ip(), *disk)));
    disks
        .map(|(host, disk)| {
            let granted_bytes = disk.wanted_bytes.min(free_bytes);
            (host, DiskGrant { disk: disk.disk, granted_bytes, ..DiskGrant::default() })
        })
        .collect()
}
