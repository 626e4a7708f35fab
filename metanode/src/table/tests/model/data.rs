//! What changes bytes, sizes and attributes of files, and the quota.

use super::{Model, Node, Outcome, Reply, kill};
use holdfast_proto::meta::{Code, Commit, Fallocate, FallocateMode, FileCommit, Kind, ReserveQuota, SetAttr};
use std::collections::{BTreeMap, BTreeSet};

impl Model {
    pub(super) fn set_attr(&mut self, op: &SetAttr, now: i64) -> Outcome {
        let kind = self.nodes.get(&op.inode).ok_or(Code::Stale)?.attr.kind();
        if *op == (SetAttr { inode: op.inode, ..SetAttr::default() }) {
            return Ok(Reply { attr: self.attr(op.inode), ..Reply::default() });
        }
        let node = self.nodes.get_mut(&op.inode).unwrap();
        if let Some(size) = op.size_bytes {
            match kind {
                Kind::File => {}
                Kind::Directory => return Err(Code::IsDirectory),
                _ => return Err(Code::Invalid),
            }
            if size <= node.cells.len() as u64 {
                node.allocated.retain(|page| page * 4096 < size);
            }
            node.cells.resize(usize::try_from(size).unwrap(), None);
            node.attr.truncate_generation += 1;
            node.attr.mtime_ns = now;
        }
        let attr = &mut node.attr;
        attr.mode = op.mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.uid = op.uid.unwrap_or(attr.uid);
        attr.gid = op.gid.unwrap_or(attr.gid);
        if op.kill_suid_sgid {
            kill(attr);
        }
        attr.atime_ns = if op.atime_now { now } else { op.atime_ns.unwrap_or(attr.atime_ns) };
        attr.mtime_ns = if op.mtime_now { now } else { op.mtime_ns.unwrap_or(attr.mtime_ns) };
        attr.ctime_ns = op.ctime_ns.map_or(now, |given| given.min(now));
        self.recount();
        Ok(Reply { attr: self.attr(op.inode), ..Reply::default() })
    }

    pub(super) fn fallocate(&mut self, op: &Fallocate, now: i64) -> Outcome {
        let (used, reserved) = (self.used_bytes(), self.reserved_bytes);
        let allocated: usize = self.nodes.values().map(|node| node.allocated.len()).sum();
        let node = self.nodes.get_mut(&op.inode).ok_or(Code::Stale)?;
        if op.length_bytes == 0 {
            return Err(Code::Invalid);
        }
        match node.attr.kind() {
            Kind::File => {}
            Kind::Directory => return Err(Code::IsDirectory),
            _ => return Err(Code::Invalid),
        }
        let start = usize::try_from(op.offset).unwrap();
        let end = start + usize::try_from(op.length_bytes).unwrap();
        let wanted = op.offset / 4096..(op.offset + op.length_bytes).div_ceil(4096);
        let charges = self.level >= 1 && op.mode() != FallocateMode::PunchHole;
        if charges {
            let charged = node.charged();
            let more = wanted.clone().filter(|page| !charged.contains(page)).count() as u64 * 4096;
            if self.quota_bytes > 0 && used + reserved + more > self.quota_bytes {
                return Err(Code::Quota);
            }
            if more > 0 && op.available_bytes.is_some_and(|available| allocated as u64 * 4096 + more > available) {
                return Err(Code::NoSpace);
            }
        }
        if op.mode() != FallocateMode::Allocate {
            let size = node.cells.len();
            node.allocated.retain(|page| *page < op.offset.div_ceil(4096) || *page >= end as u64 / 4096);
            node.cells[start.min(size)..end.min(size)].fill(None);
            node.attr.truncate_generation += 1;
        }
        if !op.keep_size && op.mode() != FallocateMode::PunchHole && end > node.cells.len() {
            node.cells.resize(end, None);
        }
        if charges {
            let touched = node.touched();
            node.allocated.extend(wanted.filter(|page| !touched.contains(page)));
        }
        (node.attr.mtime_ns, node.attr.ctime_ns) = (now, now);
        self.recount();
        Ok(Reply { attr: self.attr(op.inode), ..Reply::default() })
    }

    pub(super) fn reserve_quota(&mut self, op: &ReserveQuota) -> Outcome {
        let fits = self.quota_bytes == 0 || self.used_bytes() + op.bytes <= self.quota_bytes;
        if op.bytes > self.reserved_bytes && !fits {
            return Err(Code::Quota);
        }
        self.reserved_bytes = op.bytes;
        Ok(Reply::default())
    }

    pub(super) fn commit(&mut self, op: &Commit, now: i64) -> Reply {
        let mut usable: BTreeMap<u64, Option<u32>> = BTreeMap::new();
        let live: BTreeSet<u64> = self.chunks.keys().filter(|chunk| !self.freed.contains(chunk)).copied().collect();
        for chunk in &op.chunks {
            let fresh = self.unused_chunks.remove(&chunk.chunk);
            if fresh {
                self.chunks.insert(chunk.chunk, chunk.length_bytes);
            }
            let known = live.contains(&chunk.chunk) && self.chunks[&chunk.chunk] == chunk.length_bytes;
            usable.insert(chunk.chunk, (fresh || known).then_some(chunk.length_bytes));
        }
        let commits = op.files.iter().map(|file| self.commit_file(file, &usable, now).err().unwrap_or(Code::Ok));
        Reply { commits: commits.collect(), ..Reply::default() }
    }

    fn commit_file(&mut self, file: &FileCommit, usable: &BTreeMap<u64, Option<u32>>, now: i64) -> Result<(), Code> {
        let node = self.nodes.get(&file.inode).ok_or(Code::Stale)?;
        if node.attr.kind() != Kind::File {
            return Err(Code::Invalid);
        }
        if node.attr.truncate_generation != file.truncate_generation {
            return Err(Code::Truncated);
        }
        let mut after = node.clone();
        let size = node.cells.len().max(usize::try_from(file.size_at_least).unwrap());
        after.cells.resize(size, None);
        for extent in &file.extents {
            let chunk_bytes = usable.get(&extent.chunk).ok_or(Code::Invalid)?.ok_or(Code::RewriteChunk)?;
            let (start, length) =
                (usize::try_from(extent.file_offset).unwrap(), usize::try_from(extent.length_bytes).unwrap());
            if extent.chunk_offset + u32::try_from(length).unwrap() > chunk_bytes || start + length > size {
                return Err(Code::Invalid);
            }
            for i in 0..length {
                after.cells[start + i] = Some((extent.chunk, extent.chunk_offset + u32::try_from(i).unwrap()));
            }
        }
        let pages = |node: &Node| node.charged().len() as u64;
        let more = (pages(&after) - pages(node)) * 4096;
        let consumed = file.quota_bytes.min(self.reserved_bytes);
        let used: u64 = self.nodes.values().map(|node| pages(node) * 4096).sum();
        let rest = self.reserved_bytes - consumed;
        if more > consumed && self.quota_bytes > 0 && used + more + rest > self.quota_bytes {
            return Err(Code::Quota);
        }
        self.reserved_bytes = rest;
        let touched = after.touched();
        after.allocated.retain(|page| !touched.contains(page));
        after.attr.mtime_ns = after.attr.mtime_ns.max(file.mtime_ns.min(now));
        after.attr.ctime_ns = now;
        if file.kill_suid_sgid {
            kill(&mut after.attr);
        }
        self.nodes.insert(file.inode, after);
        Ok(())
    }
}
