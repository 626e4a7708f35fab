//! Random operations on the table and on the model; every answer, every attribute and every byte must agree.

use super::model::{Cell, Model, Node, Reply};
use super::{Fixture, chunk, command};
use crate::table::Table;
use crate::table::dead::PiecesMax;
use holdfast_common::{FileOffset, InodeId, Random};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Attr, ChunkRecord, Code, Commit, CreateNode, Extent, Fallocate, FileCommit, ForgetChunks, FreeDead, Kind, Link,
    MutateResponse, ReapOrphans, RemoveXattr, Rename, ReserveChunks, ReserveQuota, SetAttr, SetXattr, Unlink,
};
use holdfast_proto::record::TableCommand;
use std::collections::{BTreeMap, BTreeSet};

const OPERATIONS: u32 = 1500;
const FILE_BYTES: u64 = 12_500;

/// What only these tests roll.
trait Rolls {
    /// An offset or length below `end`; every other one is at a page's border, where counting pages goes wrong first.
    fn offset(&mut self, end: u64) -> u64;
    fn pick<T: Copy>(&mut self, from: &[T]) -> T;
}

impl Rolls for Random {
    fn offset(&mut self, end: u64) -> u64 {
        let offset = self.below(end);
        if self.one_in(2) { offset / 4096 * 4096 } else { offset }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

struct Run {
    fixture: Fixture,
    model: Model,
    random: Random,
    /// Commands with the answers they had, to be repeated later.
    past: Vec<(TableCommand, MutateResponse)>,
    /// How often each code was answered.
    codes: BTreeMap<i32, u32>,
    /// One entry may take away but one piece, so that nearly every one leaves dead intervals.
    tiny: bool,
    /// How often there were dead intervals, fresh extents, and a file that had to wait.
    left: [u32; 3],
}

#[test]
fn random_operations_agree_with_a_plain_model() {
    let chosen = std::env::var("HOLDFAST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut codes = BTreeMap::new();
    for seed in chosen.map_or(1..25, |seed| seed..seed + 1) {
        println!("HOLDFAST_SEED={seed}");
        run_seed(seed, &mut codes);
    }
    // The generator must reach what the table can refuse, or the comparison proves little.
    let reached = [
        Code::Ok,
        Code::NotFound,
        Code::Exists,
        Code::NotDirectory,
        Code::IsDirectory,
        Code::NotEmpty,
        Code::Invalid,
        Code::NameTooLong,
        Code::NoData,
        Code::NotPermitted,
        Code::Quota,
        Code::NoSpace,
        Code::Stale,
        Code::Truncated,
        Code::RewriteChunk,
    ];
    for code in reached.into_iter().filter(|_| chosen.is_none()) {
        assert!(codes.contains_key(&code.into()), "no operation answered {code:?}: {codes:?}");
    }
}

/// Decision 12: whatever is left dead, readers see what the model has, and after the leader has freed it everything agrees.
#[test]
fn random_operations_agree_with_a_plain_model_when_nearly_everything_is_left_dead() {
    let chosen = std::env::var("HOLDFAST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut left = [0; 3];
    for seed in chosen.map_or(1..7, |seed| seed..seed + 1) {
        println!("HOLDFAST_SEED={seed}");
        let mut run = Run::new(seed, 1, 0, BTreeMap::new());
        run.tiny = true;
        run.fixture.table.pieces_max = PiecesMax(1);
        for step in 0..OPERATIONS / 2 {
            run.step();
            if step % 20 == 0 {
                run.compare_everything();
            }
            if step % 40 == 0 {
                run.free_dead();
                run.compare_everything();
            }
        }
        left = std::array::from_fn(|i| left[i] + run.left[i]);
    }
    assert!(left.iter().all(|count| *count > 0), "never met: dead, fresh, waiting {left:?}");
}

fn run_seed(seed: u64, codes: &mut BTreeMap<i32, u32>) {
    let quota_bytes = if seed.is_multiple_of(3) { 12 * 4096 } else { 0 };
    // The former behaviour stands as long as the leader has not raised the level.
    let level = u32::from(!seed.is_multiple_of(4));
    let mut run = Run::new(seed, level, quota_bytes, std::mem::take(codes));
    for step in 0..OPERATIONS {
        run.step();
        if step % 50 == 0 {
            run.compare_everything();
        }
    }
    run.compare_everything();
    *codes = run.codes;
}

impl Run {
    fn new(seed: u64, level: u32, quota_bytes: u64, codes: BTreeMap<i32, u32>) -> Self {
        let fixture = Fixture::at_level(level, quota_bytes);
        let model = Model::new(level, fixture.attr(1), quota_bytes);
        Self { fixture, model, random: Random::new(seed), past: vec![], codes, tiny: false, left: [0; 3] }
    }

    /// The leader frees all that is dead.
    fn free_dead(&mut self) {
        loop {
            let inodes: Vec<u64> = self.fixture.table.inodes_with_dead(3).iter().map(|inode| inode.0).collect();
            if inodes.is_empty() {
                return;
            }
            let before = self.fixture.table.extents.len() + self.fixture.table.fresh.len();
            self.fixture.lead(Op::FreeDead(FreeDead { inodes, max_extents: 4096 }));
            let after = self.fixture.table.extents.len() + self.fixture.table.fresh.len();
            assert!(before <= after + 2, "one entry took away {before} - {after} extents");
        }
    }

    fn has_dead(&self) -> bool {
        self.fixture.table.dead.len() > 0
    }

    /// Without what the model does not count, and while something is dead, does not know.
    fn known(&self, attr: Attr) -> Attr {
        let mapped_bytes = if self.tiny { 0 } else { attr.mapped_bytes };
        Attr { mapped_bytes, ..plain(attr) }
    }

    fn step(&mut self) {
        let op = self.random_op();
        if self.tiny && matches!(op, Op::ForgetChunks(_)) {
            self.free_dead();
        }
        if let Op::ReserveChunks(_) = op {
            let response = self.fixture.ok(op.clone());
            self.model.unused_chunks.insert(response.first_chunk);
            return;
        }
        let command = if crate::table::is_leader_only(&op) {
            self.fixture.time_ns += 10;
            command(op.clone(), self.fixture.time_ns, 0, 0)
        } else {
            self.fixture.next_command(op.clone())
        };
        // Clocks of leaders differ: the table's time must rise all the same.
        let command = TableCommand { time_ns: command.time_ns - 300 + self.random.below(300).cast_signed(), ..command };
        let now = command.time_ns.max(self.fixture.table.last_time_ns() + 1);
        let before = self.fixture.table.clone();
        let response = self.fixture.table.apply(&command).unwrap();
        self.fixture.table.check().unwrap_or_else(|error| panic!("{error} after {op:?}"));
        if response.code() == Code::Unavailable {
            self.left[2] += 1;
            self.fixture.assert_same_but_replies(&before);
            return self.free_dead();
        }
        self.left[0] += u32::from(self.has_dead());
        self.left[1] += u32::from(self.fixture.table.fresh.len() > 0);
        if self.tiny && !matches!(op, Op::ReapOrphans(_)) {
            let taken = before.extents.len().saturating_sub(self.fixture.table.extents.len());
            assert!(taken <= 1, "one entry took away {taken} extents: {op:?}");
        }
        let expected = self.model.apply(&op, now);
        self.compare(&op, &response, &expected);
        if response.code() != Code::Ok {
            self.fixture.assert_same_but_replies(&before);
        }
        for code in response.commits.iter().map(|commit| commit.code).chain([response.code]) {
            *self.codes.entry(code).or_default() += 1;
        }
        self.repeat(&command, &response);
    }

    /// At once and later: a command happens once (R8).
    fn repeat(&mut self, command: &TableCommand, response: &MutateResponse) {
        if command.session == 0 {
            return;
        }
        let before = self.fixture.table.clone();
        assert_eq!(self.fixture.table.apply(command).unwrap(), *response);
        assert!(self.fixture.table == before, "a repeated command changed the table");
        self.past.push((command.clone(), response.clone()));
        let past = self.past[usize::try_from(self.random.below(self.past.len() as u64)).unwrap()].clone();
        let answer = self.fixture.table.apply(&past.0).unwrap();
        let stale = past.0.sequence < command.acknowledged_below;
        let expected = if stale { super::super::refusal(Code::SequenceStale) } else { past.1 };
        assert_eq!(answer, expected);
        assert!(self.fixture.table == before, "a late command changed the table");
    }

    fn compare(&self, op: &Op, response: &MutateResponse, expected: &Result<Reply, Code>) {
        match expected {
            Err(code) => assert_eq!(response.code(), *code, "{op:?}"),
            Ok(reply) => {
                assert_eq!(response.code(), Code::Ok, "{op:?} should be {reply:?}");
                let known = |attr: Option<Attr>| attr.map(|attr| self.known(attr));
                assert_eq!(known(response.attr), known(reply.attr), "{op:?}");
                assert_eq!(known(response.other_attr), known(reply.other_attr), "{op:?}");
                let commits: Vec<Code> = response.commits.iter().map(|commit| commit.code()).collect();
                assert_eq!(commits, reply.commits, "{op:?}");
            }
        }
    }

    fn compare_everything(&self) {
        let table = &self.fixture.table;
        for (inode, node) in &self.model.nodes {
            let id = InodeId(*inode);
            let has_dead = self.has_dead();
            let known = |attr: Attr| if has_dead { self.known(attr) } else { plain(attr) };
            assert_eq!(table.get_attr(id).map(known), Ok(known(node.attr)));
            let names: Vec<_> = table.list_xattr(id).unwrap().iter().map(|name| name.to_vec()).collect();
            assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>());
            for (name, value) in &node.xattrs {
                assert_eq!(table.get_xattr(id, name).unwrap(), value);
            }
            match node.attr.kind() {
                Kind::Directory => compare_directory(self, id),
                Kind::File => assert_eq!(cells(table, id), node.cells, "inode {inode}"),
                Kind::Symlink => assert_eq!(table.read_link(id).unwrap(), node.target),
                _ => {}
            }
        }
        let stat = table.stat_fs();
        assert_eq!(stat.inodes, self.model.nodes.len() as u64);
        let mut image = Vec::new();
        table.freeze().write_to(&mut image).unwrap();
        assert!(Table::restore(&mut image.as_slice()).unwrap() == *table, "a restored snapshot differs");
        if self.has_dead() {
            assert!(stat.used_bytes >= self.model.used_bytes());
            return;
        }
        assert_eq!(stat.used_bytes, self.model.used_bytes());
        let freed = table.freed_chunks(i64::MAX, (0, 0.into()), usize::MAX);
        let freed: BTreeSet<u64> = freed.iter().map(|freed| freed.record.chunk).collect();
        assert_eq!(freed, self.model.freed);
    }

    // ---------------------------------------------------------------- generation

    fn random_op(&mut self) -> Op {
        if self.tiny && self.random.one_in(2) {
            let reserve = self.random.one_in(3);
            return if reserve { Op::ReserveChunks(ReserveChunks { count: 1 }) } else { self.random_commit() };
        }
        match self.random.below(100) {
            0..16 => self.random_create(),
            16..22 => Op::Link(Link { inode: self.inode(), parent: self.directory(), name: self.name() }),
            22..32 => {
                let directory = self.random.one_in(3);
                Op::Unlink(Unlink { parent: self.directory(), name: self.name(), directory })
            }
            32..46 => Op::Rename(Rename {
                parent: self.directory(),
                name: self.name(),
                new_parent: self.directory(),
                new_name: self.name(),
                no_replace: self.random.one_in(5),
                exchange: self.random.one_in(4),
            }),
            46..54 => self.random_set_attr(),
            54..60 => Op::Fallocate(Fallocate {
                inode: self.inode(),
                offset: self.random.offset(FILE_BYTES),
                length_bytes: self.random.offset(9000),
                mode: i32::try_from(self.random.below(3)).unwrap(),
                keep_size: self.random.one_in(2),
                available_bytes: (!self.tiny && self.random.one_in(2)).then(|| self.random.below(12) * 4096),
            }),
            60..64 => Op::SetXattr(SetXattr {
                inode: self.inode(),
                name: self.random.pick(&[&b"user.a"[..], b"user.b", b"x"]).into(),
                value: vec![7; usize::try_from(self.random.below(9)).unwrap()].into(),
                create: self.random.one_in(4),
                replace: self.random.one_in(4),
            }),
            64..66 => Op::RemoveXattr(RemoveXattr { inode: self.inode(), name: b"user.a"[..].into() }),
            66..74 => Op::ReserveChunks(ReserveChunks { count: 1 }),
            74..94 => self.random_commit(),
            94..96 => Op::ReserveQuota(ReserveQuota { bytes: self.random.below(20) * 4096 }),
            96..98 => {
                let inodes = self.model.nodes.keys().copied().filter(|_| self.random.one_in(3)).collect();
                Op::ReapOrphans(ReapOrphans { inodes, max_extents: 1 << 20 })
            }
            _ => {
                let chunks = self.model.chunks.keys().copied().filter(|_| self.random.one_in(2)).collect();
                let disks = (11..17).filter(|_| self.random.one_in(6)).collect();
                Op::ForgetChunks(ForgetChunks { chunks, disks })
            }
        }
    }

    fn random_create(&mut self) -> Op {
        let kind = self.random.pick(&[
            Kind::File,
            Kind::File,
            Kind::File,
            Kind::Directory,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
            Kind::CharDevice,
        ]);
        let target = if kind == Kind::Symlink {
            b"ab"[..usize::try_from(self.random.below(3)).unwrap()].into()
        } else {
            bytes::Bytes::new()
        };
        Op::Create(CreateNode {
            parent: self.directory(),
            name: self.name(),
            kind: kind.into(),
            mode: self.random.pick(&[0o644, 0o755, 0o2755, 0o6711, 0o4644]),
            uid: 5,
            gid: u32::try_from(self.random.below(3)).unwrap(),
            rdev: 99,
            target,
            exclusive: self.random.one_in(2),
            open: false,
        })
    }

    fn random_set_attr(&mut self) -> Op {
        let random = &mut self.random;
        let mut op = SetAttr { size_bytes: random.one_in(2).then(|| random.offset(FILE_BYTES)), ..SetAttr::default() };
        op.mode = random.one_in(3).then(|| random.pick(&[0o6755, 0o17777, 0o600]));
        op.uid = random.one_in(4).then_some(3);
        op.gid = random.one_in(4).then_some(4);
        op.atime_ns = random.one_in(4).then_some(-5);
        op.mtime_ns = random.one_in(4).then_some(77);
        op.ctime_ns = random.one_in(9).then(|| random.pick(&[3, i64::MAX]));
        op.atime_now = random.one_in(6);
        op.mtime_now = random.one_in(6);
        op.kill_suid_sgid = random.one_in(4);
        op.inode = self.inode();
        Op::SetAttr(op)
    }

    fn random_commit(&mut self) -> Op {
        let mut chunks: Vec<ChunkRecord> = (0..=self.random.below(2)).filter_map(|_| self.random_chunk()).collect();
        chunks.dedup_by_key(|chunk| chunk.chunk);
        let files = (0..=self.random.below(2)).map(|_| self.random_file(&chunks)).collect();
        Op::Commit(Commit { chunks, files })
    }

    fn random_chunk(&mut self) -> Option<ChunkRecord> {
        let unused: Vec<u64> = self.model.unused_chunks.iter().copied().collect();
        let known: Vec<u64> = self.model.chunks.keys().copied().collect();
        // What the model has for freed may still be named by what is dead.
        if !known.is_empty() && !self.tiny && self.random.one_in(8) {
            // Live, freed, or with another length than it had.
            let id = self.random.pick(&known);
            return Some(chunk(id, self.model.chunks[&id] + u32::from(self.random.one_in(4))));
        }
        if unused.is_empty() || self.random.one_in(30) {
            return self.random.one_in(2).then(|| chunk(9_999, 100));
        }
        Some(chunk(self.random.pick(&unused), 1 + u32::try_from(self.random.offset(9000)).unwrap().max(200)))
    }

    fn random_file(&mut self, chunks: &[ChunkRecord]) -> FileCommit {
        let inode = self.inode();
        let attr = self.model.attr(inode);
        let generation = attr.map_or(0, |attr| attr.truncate_generation) + u64::from(self.random.one_in(10));
        let mut extents = Vec::new();
        let mut next = self.random.offset(if self.tiny { FILE_BYTES / 6 } else { FILE_BYTES / 2 });
        for record in chunks {
            let chunk_offset = u32::try_from(self.random.below(record.length_bytes.into())).unwrap();
            let left = u64::from(record.length_bytes - chunk_offset).min(FILE_BYTES.saturating_sub(next));
            if left == 0 || self.random.one_in(6) {
                continue;
            }
            let left = if self.tiny { left.min(900) } else { left };
            let length_bytes = self.random.offset(left).max(1) + u64::from(self.random.one_in(20));
            extents.push(Extent { file_offset: next, length_bytes, chunk: record.chunk, chunk_offset });
            next += length_bytes + self.random.pick(&[0, 0, 1, 600, 4096]);
        }
        let end = extents.last().map_or(0, |extent| extent.file_offset + extent.length_bytes);
        FileCommit {
            inode,
            truncate_generation: generation,
            extents,
            size_at_least: if self.random.one_in(12) { 0 } else { end },
            mtime_ns: self.fixture.time_ns - 500 + self.random.below(1000).cast_signed(),
            quota_bytes: self.random.below(4) * 4096,
            kill_suid_sgid: self.random.one_in(5),
        }
    }

    fn inode(&mut self) -> u64 {
        if self.random.one_in(40) {
            return self.random.below(self.model.next_inode + 2);
        }
        // A few files that are changed again and again.
        let is_busy = |node: &&Node| node.attr.kind() == Kind::File && node.attr.nlink > 0;
        let busy: Vec<u64> = self.model.nodes.values().filter(is_busy).map(|node| node.attr.inode).take(2).collect();
        if self.tiny && !busy.is_empty() && !self.random.one_in(5) {
            return self.random.pick(&busy);
        }
        let known: Vec<u64> = self.model.nodes.keys().copied().collect();
        self.random.pick(&known)
    }

    fn directory(&mut self) -> u64 {
        let directories = self.model.nodes.iter().filter(|(_, node)| node.attr.kind() == Kind::Directory);
        let directories: Vec<u64> = directories.map(|(inode, _)| *inode).collect();
        if self.random.one_in(25) { self.inode() } else { self.random.pick(&directories) }
    }

    fn name(&mut self) -> bytes::Bytes {
        if self.random.one_in(60) {
            return self.random.pick(&[&b"."[..], b"..", b"", b"a/b", b"a\0", &[b'x'; 256]]).into();
        }
        self.random.pick(&[&b"a"[..], b"b", b"c", b"d", &[b'y'; 255]]).into()
    }
}

/// Without what the model does not count.
fn plain(attr: Attr) -> Attr {
    Attr { data_version: 0, ..attr }
}

fn compare_directory(run: &Run, id: InodeId) {
    let (table, model) = (&run.fixture.table, &run.model);
    let known = |attr: Attr| if run.has_dead() { run.known(attr) } else { plain(attr) };
    let node = &model.nodes[&id.0];
    let mut seen = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = table.read_directory(id, after, 2, true).unwrap();
        for entry in &page.entries {
            assert!(entry.cookie > after && entry.cookie >= 16);
            after = entry.cookie;
            assert_eq!(entry.attr.map(known), model.attr(entry.inode).map(known));
            assert_eq!(table.lookup(id, &entry.name), Ok(entry.attr.unwrap()));
            seen.insert(entry.name.to_vec(), entry.inode);
        }
        if page.end {
            break;
        }
    }
    assert_eq!(seen, node.entries);
    let parent = model.attr(node.parent).ok_or(Code::Stale);
    assert_eq!(table.lookup(id, b"..").map(plain), parent.map(plain));
    assert_eq!(table.lookup(id, b".").map(|attr| attr.inode), Ok(id.0));
}

/// A file's bytes as the table maps them, read in pieces of at most two extents.
fn cells(table: &Table, id: InodeId) -> Vec<Cell> {
    let size = table.get_attr(id).unwrap().size_bytes;
    let mut cells = vec![None; usize::try_from(size).unwrap()];
    let mut offset = 0;
    while offset < size {
        let (_, map) = table.read_map(id, FileOffset(offset), size - offset, 2).unwrap();
        assert!(map.covered_bytes > 0);
        for extent in &map.extents {
            assert!(map.chunks.iter().filter(|chunk| chunk.chunk == extent.chunk).count() == 1);
            for i in 0..extent.length_bytes {
                let cell = (extent.chunk, extent.chunk_offset + u32::try_from(i).unwrap());
                cells[usize::try_from(extent.file_offset + i).unwrap()] = Some(cell);
            }
        }
        offset += map.covered_bytes;
    }
    cells
}
