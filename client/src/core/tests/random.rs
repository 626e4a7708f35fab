//! Random inputs by seed, against a table and disks that are kept as plain maps: answers in any order, twice, late or never,
//! lost before or after they were executed; members that fail, are full or busy; callers that give up; sessions that end, floors
//! that rise, other mounts that truncate. After every step the budget holds; in the end every operation has been told once, and
//! in time, all that was held has come back, and a file has what was written to it last.

use super::super::effects::{Call, Input, PutChunk, Send, Wire};
use super::super::*;
use super::bench::{BOTH, Bench, DEADLINE, commit_of, mutate_says, question_of, read_says, settings};
use crate::WriteAt;
use bytes::Bytes;
use holdfast_common::ChunkId;
use holdfast_common::limits::{PAGE_BYTES, SESSION_IN_FLIGHT_MAX};
use holdfast_proto::data::{PutShardResponse, Status};
use holdfast_proto::meta::{Code, CommitResult, Extent, FileCommit, FileMap, SetAttr};
use holdfast_transport::RpcError;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PAGE: u64 = PAGE_BYTES as u64;
const FILES: u64 = 3;
const FILE_PAGES: u64 = 24;
const BUDGET: usize = 300 << 10;
const QUOTA_PAGES: usize = 50;

/// Content of a file in the end, in the order in which it was taken in.
enum Event {
    Written {
        offset: usize,
        length: usize,
        stamp: u8,
    },
    /// Cut to so many bytes, if the table has executed this operation.
    Cut {
        op: OpId,
        size: usize,
    },
}

#[derive(Default)]
struct File {
    content: Vec<u8>,
    log: Vec<Event>,
    /// A session was lost or another mount has cut it: the log does not tell all.
    unsure: bool,
}

#[derive(Default)]
struct Table {
    files: BTreeMap<u64, File>,
    /// Answers by session and sequence.
    answers: BTreeMap<(u64, u64), MutateResponse>,
    executed: BTreeSet<OpId>,
    ended: BTreeSet<u64>,
    mapped: BTreeSet<(u64, u64)>,
    reserved: u64,
    floor: u64,
}

/// A chunk on its way: what it holds, and which shards are durable.
struct Chunk {
    session: u64,
    bytes: Vec<u8>,
    left: BTreeSet<u8>,
}

enum Doing {
    Write {
        inode: u64,
        offset: usize,
        length: usize,
        stamp: u8,
    },
    /// With its file's log and the length of it at that time.
    Sync {
        inode: u64,
        events: usize,
    },
    Other,
}

struct Run {
    bench: Bench,
    random: Random,
    table: Table,
    chunks: BTreeMap<u64, Chunk>,
    /// Shards that were not answered.
    shards: Vec<(PutChunk, u8)>,
    handles: Vec<FileHandle>,
    doing: BTreeMap<OpId, (Moment, Doing)>,
    seed: u64,
    cuts: bool,
    told_count: usize,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let limited = random.chance(50);
        let mut bench = Bench::with(Settings { dirty_bytes: BUDGET, limited, seed, ..settings() });
        let handles = (0..FILES).map(|inode| bench.open(10 + inode, BOTH)).collect();
        bench.held = vec!["KeepAlive", "GetGroups", "GetNodes", "ReserveChunks"];
        let mut table = Table::default();
        (0..FILES).for_each(|inode| drop(table.files.insert(10 + inode, File::default())));
        let (chunks, doing) = (BTreeMap::new(), BTreeMap::new());
        // With a limit nobody cuts: what a counted write needs would be another by the time of its commit.
        Self { bench, random, table, chunks, shards: Vec::new(), handles, doing, seed, cuts: !limited, told_count: 0 }
    }

    fn begin(&mut self, call: Call, doing: Doing) -> OpId {
        let op = self.bench.begin(call);
        self.doing.insert(op, (self.bench.now, doing));
        op
    }

    fn act(&mut self) {
        let at = self.random.index(self.handles.len());
        let (handle, inode) = (self.handles[at], 10 + at as u64);
        match self.random.below(10) {
            0..=5 => {
                let page = usize::try_from(PAGE).unwrap();
                let offset = self.random.index(usize::try_from(FILE_PAGES).unwrap() * page);
                let most = if self.random.chance(10) { 20 * page } else { 2 * page };
                let length = self.random.index(most) + 1;
                let stamp = u8::try_from(self.random.below(255) + 1).unwrap();
                let data = Bytes::from(vec![stamp; length]);
                let place = WriteAt::Offset(offset as u64);
                let call = Call::Write { handle, at: place, data, mtime_ns: 5, kill_suid_sgid: false };
                self.begin(call, Doing::Write { inode, offset, length, stamp });
            }
            6..=7 => {
                self.observe();
                let events = self.table.files[&inode].log.len();
                self.begin(Call::Flush { handle, closing: false }, Doing::Sync { inode, events });
            }
            8 if self.cuts => {
                self.observe();
                let size = self.random.below(FILE_PAGES * PAGE);
                // The operation's number travels as a time.
                let ctime_ns = i64::try_from(self.told_count + self.doing.len()).unwrap();
                let op = SetAttr { inode, size_bytes: Some(size), ctime_ns: Some(ctime_ns), ..SetAttr::default() };
                let begun =
                    self.begin(Call::Barrier { inode: InodeId(inode), op: mutation::Op::SetAttr(op) }, Doing::Other);
                assert_eq!(
                    begun.0,
                    u64::try_from(ctime_ns).unwrap() + FILES + 1,
                    "numbers of operations follow each other"
                );
                let size = usize::try_from(size).unwrap();
                self.table.files.get_mut(&inode).unwrap().log.push(Event::Cut { op: begun, size });
            }
            _ => {
                self.begin(Call::Sync, Doing::Other);
            }
        }
    }

    /// Takes in all that was told.
    fn observe(&mut self) {
        for (op, outcome) in std::mem::take(&mut self.bench.told) {
            let (begun, doing) = self.doing.remove(&op).expect("it was begun and not told before");
            self.told_count += 1;
            let age = self.bench.now.since(begun);
            assert!(age <= DEADLINE, "seed {}: {op:?} took {age:?}", self.seed);
            match (doing, &outcome) {
                (Doing::Write { inode, offset, length, stamp }, Ok(_)) => {
                    self.table.files.get_mut(&inode).unwrap().log.push(Event::Written { offset, length, stamp });
                }
                (Doing::Sync { inode, events }, Ok(Answer::Done)) => {
                    let file = &self.table.files[&inode];
                    if !file.unsure && file.log.len() == events {
                        self.check(inode, "after a sync");
                    }
                }
                _ => {}
            }
        }
    }

    /// The file has what was written to it last.
    fn check(&self, inode: u64, when: &str) {
        let file = &self.table.files[&inode];
        let mut wanted: Vec<u8> = Vec::new();
        for event in &file.log {
            match event {
                Event::Written { offset, length, stamp } => {
                    wanted.resize(wanted.len().max(offset + length), 0);
                    wanted[*offset..offset + length].fill(*stamp);
                }
                Event::Cut { op, size } if self.table.executed.contains(op) => wanted.resize(*size, 0),
                Event::Cut { .. } => {}
            }
        }
        if wanted != file.content {
            let differs = (0..).find(|at| wanted.get(*at) != file.content.get(*at));
            panic!("seed {}: first byte of file {inode} that differs {when}: {differs:?}", self.seed);
        }
    }

    fn gather_puts(&mut self) {
        for put in self.bench.puts.drain(..) {
            let left: BTreeSet<u8> = (0u8..).take(put.members.len()).collect();
            let chunk = Chunk { session: put.session.0, bytes: put.pieces.concat(), left: left.clone() };
            assert!(self.chunks.insert(put.record.chunk, chunk).is_none(), "seed {}: an id was used twice", self.seed);
            for shard in left {
                self.shards.push((clone(&put), shard));
            }
        }
    }

    fn answer_shard(&mut self, faults: bool) {
        if self.shards.is_empty() {
            return;
        }
        let at = self.random.index(self.shards.len());
        // Some are answered twice.
        let twice = faults && self.random.chance(5);
        let (put, shard) =
            if twice { (clone(&self.shards[at].0), self.shards[at].1) } else { self.shards.swap_remove(at) };
        let status = match self.random.below(100) {
            _ if put.record.chunk < self.table.floor => Some(Status::BelowFloor),
            0..=2 if faults => None,
            3 if faults => Some(Status::DiskFailed),
            4 if faults => Some(Status::Busy),
            5 if faults => Some(Status::WrongDisk),
            6 if faults => Some(Status::NoSpace),
            _ => Some(Status::Ok),
        };
        if status == Some(Status::Ok) {
            self.chunks.get_mut(&put.record.chunk).unwrap().left.remove(&shard);
        }
        let answer = status.map(|status| PutShardResponse { status: status.into(), ..PutShardResponse::default() });
        let (write, chunk) = (put.write, ChunkId(put.record.chunk));
        self.bench.step(Input::Put {
            write,
            chunk,
            shard,
            elapsed: Duration::from_millis(1),
            answer: answer.ok_or(RpcError::Deadline.into()),
        });
    }

    fn answer_request(&mut self, faults: bool) {
        if self.bench.sends.is_empty() {
            return;
        }
        let send = {
            let at = self.random.index(self.bench.sends.len());
            self.bench.sends.swap_remove(at)
        };
        if faults && self.random.chance(8) {
            return self.bench.unanswered(&send);
        }
        let answer = match &send.request {
            Wire::Mutate(request) => {
                let (session, sequence, floor) = (request.session, request.sequence, request.acknowledged_below);
                Response::Mutate(Box::new(self.execute(&send, session, sequence, floor)))
            }
            Wire::Read(request) if self.table.ended.contains(&request.session) => {
                Response::Read(Box::new(read_says(Code::SessionExpired)))
            }
            Wire::Read(_) => self.question(&send),
        };
        if faults && self.random.chance(8) {
            return self.bench.unanswered(&send);
        }
        self.bench.answer(send.attempt, Ok(answer));
    }

    /// A mutation is executed once, however often it is sent.
    fn execute(&mut self, send: &Send, session: u64, sequence: u64, floor: u64) -> MutateResponse {
        if self.table.ended.contains(&session) {
            return mutate_says(Code::SessionExpired);
        }
        assert!(0 < floor && floor <= sequence, "seed {}: {floor} of {sequence}", self.seed);
        assert!(sequence - floor < SESSION_IN_FLIGHT_MAX as u64 * 2);
        let known = self.table.answers.get(&(session, sequence));
        if let Some(known) = known {
            return known.clone();
        }
        let answer = match super::bench::change_of(send) {
            mutation::Op::Commit(_) => self.commit(send, session),
            mutation::Op::SetAttr(op) => self.cut(*op),
            mutation::Op::ReserveQuota(op) => {
                let used = self.table.mapped.len() as u64 * PAGE + op.bytes;
                if op.bytes > self.table.reserved && used > QUOTA_PAGES as u64 * PAGE {
                    mutate_says(Code::Quota)
                } else {
                    self.table.reserved = op.bytes;
                    MutateResponse { reserved_bytes: op.bytes, ..MutateResponse::default() }
                }
            }
            _ => match self.bench.house_answer(send) {
                Response::Mutate(response) => *response,
                Response::Read(_) => panic!("{send:?}"),
            },
        };
        self.table.answers.insert((session, sequence), answer.clone());
        answer
    }

    fn commit(&mut self, send: &Send, session: u64) -> MutateResponse {
        let commit = commit_of(send);
        for record in &commit.chunks {
            let chunk = &self.chunks[&record.chunk];
            assert!(chunk.left.is_empty(), "seed {}: a shard is not durable (R2)", self.seed);
            assert_eq!(chunk.session, session, "seed {}: it belongs to another session (R22)", self.seed);
        }
        let usable = commit.chunks.iter().all(|record| record.chunk >= self.table.floor);
        let commits = commit.files.iter().map(|file| self.commit_file(file, usable)).collect();
        MutateResponse { commits, ..MutateResponse::default() }
    }

    fn commit_file(&mut self, file: &FileCommit, usable: bool) -> CommitResult {
        let attr = *self.bench.attributes(file.inode);
        let refused = |code: Code, attr| CommitResult { code: code.into(), attr };
        if !usable {
            return refused(Code::RewriteChunk, self.random.chance(50).then_some(attr));
        }
        if file.truncate_generation != attr.truncate_generation {
            return refused(Code::Truncated, self.random.chance(50).then_some(attr));
        }
        let content = &mut self.table.files.get_mut(&file.inode).unwrap().content;
        let mut newly_mapped = 0;
        for extent in &file.extents {
            let index = |at: u64| usize::try_from(at).unwrap();
            let (from, to) = (index(extent.file_offset), index(extent.file_offset + extent.length_bytes));
            content.resize(content.len().max(to), 0);
            let source = extent.chunk_offset as usize..extent.chunk_offset as usize + to - from;
            content[from..to].copy_from_slice(&self.chunks[&extent.chunk].bytes[source]);
            let pages = extent.file_offset / PAGE..(extent.file_offset + extent.length_bytes).div_ceil(PAGE);
            newly_mapped += pages.filter(|page| self.table.mapped.insert((file.inode, *page))).count() as u64;
        }
        if self.bench.core.quota.limited {
            let quota = file.quota_bytes;
            assert!(newly_mapped * PAGE <= quota, "seed {}: {newly_mapped} pages for {quota} bytes", self.seed);
            let reserved = self.table.reserved;
            assert!(quota <= reserved, "seed {}: {quota} bytes of {reserved} reserved", self.seed);
            self.table.reserved -= quota;
        }
        self.bench.apply(file)
    }

    fn cut(&mut self, op: SetAttr) -> MutateResponse {
        let size_bytes = op.size_bytes.unwrap();
        let op_number = u64::try_from(op.ctime_ns.unwrap()).unwrap() + FILES + 1;
        assert!(self.table.executed.insert(OpId(op_number)), "seed {}: executed twice", self.seed);
        self.table.files.get_mut(&op.inode).unwrap().content.resize(usize::try_from(size_bytes).unwrap(), 0);
        let attr = self.bench.attributes(op.inode);
        (attr.size_bytes, attr.truncate_generation) = (size_bytes, attr.truncate_generation + 1);
        attr.data_version += 1;
        MutateResponse { attr: Some(*attr), ..MutateResponse::default() }
    }

    fn question(&mut self, send: &Send) -> Response {
        let (inode, map) = match question_of(send) {
            read_request::Op::GetAttr(op) => (op.inode, None),
            read_request::Op::ReadMap(op) => {
                // A part, so that who counts has to go on.
                let covered_bytes = op.length_bytes.min(3 * PAGE);
                let pages = op.offset / PAGE..(op.offset + covered_bytes).div_ceil(PAGE);
                let mapped = pages.filter(|page| self.table.mapped.contains(&(op.inode, *page)));
                let extent = |page: u64| Extent { file_offset: page * PAGE, length_bytes: PAGE, ..Extent::default() };
                let extents = mapped.map(extent).collect();
                (op.inode, Some(FileMap { offset: op.offset, covered_bytes, extents, chunks: Vec::new() }))
            }
            read_request::Op::KeepAlive(_) => {
                let floor = self.table.floor;
                let known = ReadResponse { floor, groups_changes: 1, nodes_version: 1, ..ReadResponse::default() };
                return Response::Read(Box::new(known));
            }
            _ => return self.bench.house_answer(send),
        };
        let attr = Some(*self.bench.attributes(inode));
        Response::Read(Box::new(ReadResponse { attr, map, ..ReadResponse::default() }))
    }

    /// Does what other clients and nodes may do.
    fn disturb(&mut self) {
        match self.random.below(4) {
            0 if self.random.chance(30) => {
                self.table.ended.insert(self.bench.session);
                self.table.reserved = 0;
                self.table.files.values_mut().for_each(|file| file.unsure = true);
            }
            1 => self.table.floor = self.bench.next_chunk.saturating_sub(2000),
            2 if self.cuts => {
                let inode = 10 + self.random.below(FILES);
                let file = self.table.files.get_mut(&inode).unwrap();
                file.unsure = true;
                file.content.clear();
                let attr = self.bench.attributes(inode);
                (attr.size_bytes, attr.truncate_generation) = (0, attr.truncate_generation + 1);
                attr.data_version += 1;
            }
            _ => {
                let ops: Vec<OpId> = self.doing.keys().copied().collect();
                let Some(op) = ops.get(self.random.index(ops.len().max(1))) else { return };
                self.bench.abandon(*op);
                self.doing.remove(op);
                self.told_count += 1;
            }
        }
    }

    fn step(&mut self, faults: bool, acting: bool) {
        match self.random.below(20) {
            0..=5 if acting => self.act(),
            0..=11 => self.answer_shard(faults),
            12..=17 => self.answer_request(faults),
            18 => self.bench.later(Duration::from_millis(self.random.below(60))),
            _ if faults && self.random.chance(10) => {
                self.observe();
                self.disturb();
            }
            _ => {}
        }
        self.gather_puts();
        self.observe();
        let held = self.bench.core.memory.used_bytes();
        assert!(held <= BUDGET, "seed {}: {held} bytes are held", self.seed);
    }

    fn run(mut self) {
        for _ in 0..1500 {
            self.step(true, true);
        }
        for _ in 0..20_000 {
            self.step(false, false);
            let waits = |send: &Send| super::bench::name(&send.request) != "KeepAlive";
            let settled = self.doing.is_empty() && self.bench.core.unflushed().is_empty() && self.shards.is_empty();
            if settled && !self.bench.sends.iter().any(waits) {
                break;
            }
        }
        assert!(self.doing.is_empty(), "seed {}: never told: {:?}", self.seed, self.doing.keys());
        self.bench.assert_empty();
        for (inode, _) in self.table.files.iter().filter(|(_, file)| !file.unsure) {
            self.check(*inode, "in the end");
        }
    }
}

fn clone(put: &PutChunk) -> PutChunk {
    PutChunk {
        write: put.write,
        record: put.record.clone(),
        geometry: put.geometry,
        members: put.members.clone(),
        pieces: Vec::new(),
        session: put.session,
        timeout: put.timeout,
    }
}

#[test]
fn whatever_comes_in_whatever_order_the_budget_holds_and_everything_comes_back() {
    (0..60).for_each(|seed| Run::new(seed).run());
}
