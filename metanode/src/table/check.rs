//! Walks a whole table and verifies what must hold between its trees. For tests and for `fsck`.

use super::Table;
use super::extents::{Layer, PAGE};
use super::records::Body;
use holdfast_common::limits::{FILE_BYTES_MAX, FIRST_COOKIE, SESSION_IN_FLIGHT_MAX};
use holdfast_common::{ChunkId, GroupId, InodeId};
use holdfast_proto::meta::Kind;
use std::collections::BTreeMap;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckError(String);

type Check = Result<(), CheckError>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(CheckError(what())) }
}

impl Table {
    /// Verifies every invariant between the trees. Reads everything.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check(&self) -> Result<(), CheckError> {
        if self.configuration.is_none() {
            return ensure(self.inodes.len() == 0, || "an unconfigured table has inodes".into());
        }
        ensure(self.inodes.contains(&InodeId::ROOT), || "there is no root".into())?;
        self.check_cookies()?;
        self.check_links()?;
        self.check_inodes()?;
        self.check_extents()?;
        self.check_chunks()?;
        self.check_sessions()?;
        self.check_owed()?;
        self.check_sums()
    }

    fn check_owed(&self) -> Check {
        ensure(self.owed.len() == 0 || self.feature_level() >= 2, || {
            "disks owe at a level that knows no debts".into()
        })?;
        ensure(self.counters.floor <= self.counters.next_chunk, || "the floor is above what was given".into())?;
        for (disk, owed) in self.owed.iter() {
            let was_given = (1..self.counters.next_chunk).contains(&owed.chunk.0);
            ensure(was_given && disk.0 != 0 && owed.entries > 0, || format!("disk {disk} cannot owe {owed:?}"))?;
        }
        Ok(())
    }

    /// The digest says what the trees hold.
    fn check_sums(&self) -> Check {
        let sums = [
            ("inodes", self.inodes.sum_is_right()),
            ("dentries", self.dentries.sum_is_right()),
            ("cookies", self.cookies.sum_is_right()),
            ("extents", self.extents.sum_is_right()),
            ("dead intervals", self.dead.sum_is_right()),
            ("fresh extents", self.fresh.sum_is_right()),
            ("allocated pages", self.allocated.sum_is_right()),
            ("chunks", self.chunks.sum_is_right()),
            ("freed", self.freed.sum_is_right()),
            ("xattrs", self.xattrs.sum_is_right()),
            ("orphans", self.orphans.sum_is_right()),
            ("sessions", self.sessions.sum_is_right()),
            ("client keys", self.client_keys.sum_is_right()),
            ("groups", self.groups.sum_is_right()),
            ("group changes", self.group_changes.sum_is_right()),
            ("owed", self.owed.sum_is_right()),
            ("replies", self.sessions.iter().all(|(_, session)| session.replies.sum_is_right())),
        ];
        let wrong = sums.iter().find(|(_, right)| !right);
        ensure(wrong.is_none(), || format!("the sum of hashes of {wrong:?} is wrong"))
    }

    fn check_cookies(&self) -> Check {
        ensure(self.cookies.len() == self.dentries.len(), || "dentries and cookies differ in number".into())?;
        for (key, dentry) in self.dentries.iter() {
            let back = self.cookies.get(&(key.inode(), dentry.cookie));
            ensure(back == Some(key), || format!("{key:?} is not under its cookie {}", dentry.cookie))?;
            let parent = self.inodes.get(&key.inode()).map(|inode| &inode.body);
            let next = match parent {
                Some(Body::Directory { next_cookie, .. }) => *next_cookie,
                _ => return Err(CheckError(format!("{key:?} is in no directory"))),
            };
            ensure((FIRST_COOKIE..next).contains(&dentry.cookie), || format!("{key:?} has a cookie never given"))?;
        }
        Ok(())
    }

    fn check_links(&self) -> Check {
        let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
        let mut directories_in: BTreeMap<InodeId, u32> = BTreeMap::new();
        for (key, dentry) in self.dentries.iter() {
            let inode = self.inodes.get(&dentry.inode);
            ensure(inode.is_some_and(|inode| inode.kind == dentry.kind), || format!("{key:?} leads to no such inode"))?;
            *names.entry(dentry.inode).or_default() += 1;
            if let Some(Body::Directory { parent, .. }) = inode.map(|inode| &inode.body) {
                ensure(*parent == key.inode(), || {
                    format!("directory {} has another parent than its name", dentry.inode)
                })?;
                *directories_in.entry(*parent).or_default() += 1;
            }
        }
        for (id, inode) in self.inodes.iter() {
            let names = names.get(id).copied().unwrap_or(0) + u32::from(*id == InodeId::ROOT);
            let nlink = match inode.kind {
                Kind::Directory if names == 1 => 2 + directories_in.get(id).copied().unwrap_or(0),
                Kind::Directory => {
                    ensure(names == 0 && self.is_empty_directory(*id), || format!("directory {id} has {names} names"))?;
                    0
                }
                _ => names,
            };
            ensure(inode.nlink == nlink, || format!("inode {id} says nlink {}, has {nlink}", inode.nlink))?;
            ensure(self.orphans.contains(id) == (nlink == 0), || {
                format!("inode {id} with nlink {nlink} as an orphan")
            })?;
        }
        let orphan = self.orphans.iter().find(|(id, ())| !self.inodes.contains(*id));
        ensure(orphan.is_none(), || format!("orphan {orphan:?} is no inode"))
    }

    fn check_inodes(&self) -> Check {
        let mut pages = 0;
        for (id, inode) in self.inodes.iter() {
            ensure(id.0 < self.counters.next_inode, || format!("inode {id} was never given"))?;
            let body_fits = match (&inode.body, inode.kind) {
                (Body::Directory { .. }, kind) => kind == Kind::Directory,
                (Body::Symlink(target), kind) => kind == Kind::Symlink && inode.size_bytes == target.len() as u64,
                (Body::Plain, kind) => !matches!(kind, Kind::Directory | Kind::Symlink | Kind::Unknown),
            };
            ensure(body_fits, || format!("inode {id} has the body of another kind"))?;
            ensure(inode.size_bytes <= FILE_BYTES_MAX, || format!("inode {id} is too large"))?;
            pages += inode.mapped_pages;
        }
        ensure(pages == self.counters.mapped_pages, || "mapped pages do not add up".into())?;
        let xattr = self.xattrs.iter().find(|(key, _)| !self.inodes.contains(&key.inode()));
        ensure(xattr.is_none(), || format!("{xattr:?} belongs to no inode"))
    }

    fn check_extents(&self) -> Check {
        let mut pages: BTreeMap<InodeId, u64> = BTreeMap::new();
        for layer in [Layer::Base, Layer::Fresh] {
            self.check_layer(layer, &mut pages)?;
        }
        self.check_dead()?;
        for (id, inode) in self.inodes.iter() {
            let end = self.live(*id, 0, u64::MAX).last().map_or(0, |live| live.run.end(live.offset));
            ensure(end == 0 || (inode.kind == Kind::File && end <= inode.size_bytes), || {
                format!("inode {id} has bytes at {end}")
            })?;
        }
        self.check_allocated(&mut pages)?;
        let wrong = self.inodes.iter().find(|(id, inode)| pages.get(id).copied().unwrap_or(0) != inode.mapped_pages);
        ensure(wrong.is_none(), || format!("mapped pages of {wrong:?} are wrong"))
    }

    fn check_layer(&self, layer: Layer, pages: &mut BTreeMap<InodeId, u64>) -> Check {
        let mut last = (InodeId(0), 0, 0);
        for ((id, offset), run) in self.layer(layer).iter() {
            let (last_id, last_end, last_page) = if last.0 == *id { last } else { (*id, 0, 0) };
            let end = run.end(*offset);
            ensure(*offset >= last_end, || format!("extents of inode {last_id} overlap at {offset}"))?;
            ensure(self.inodes.contains(id), || format!("extents of inode {id}, which is not there"))?;
            let chunk = self.chunks.get(&run.chunk);
            ensure(chunk.is_some_and(|chunk| run.chunk_offset + run.length_bytes <= chunk.length_bytes), || {
                format!("inode {id} at {offset} lies outside chunk {}", run.chunk)
            })?;
            ensure(run.length_bytes > 0, || format!("inode {id} has an empty extent at {offset}"))?;
            let (first_page, end_page) = ((offset / PAGE).max(last_page), end.div_ceil(PAGE));
            *pages.entry(*id).or_default() += end_page.saturating_sub(first_page);
            last = (*id, end, end_page.max(last_page));
        }
        Ok(())
    }

    /// Dead intervals are apart and not adjacent, and each fresh extent lies in one.
    fn check_dead(&self) -> Check {
        let mut last = (InodeId(0), 0);
        for ((id, from), to) in self.dead.iter() {
            ensure(from < to && (last.0 != *id || last.1 < *from), || {
                format!("dead intervals of inode {id} are not apart at {from}")
            })?;
            ensure(self.inodes.contains(id), || format!("inode {id} is not there and has dead intervals"))?;
            last = (*id, *to);
        }
        let outside = self.fresh.iter().find(|((id, offset), run)| {
            let end = run.end(*offset);
            !self.dead_in(*id, *offset..end).any(|dead| dead.start <= *offset && end <= dead.end)
        });
        ensure(outside.is_none(), || format!("a fresh extent outside dead intervals: {outside:?}"))
    }

    fn check_allocated(&self, pages: &mut BTreeMap<InodeId, u64>) -> Check {
        let mut total = 0;
        let mut last = (InodeId(0), 0);
        for ((id, start), end) in self.allocated.iter() {
            ensure(start < end && (last.0 != *id || last.1 < *start), || {
                format!("allocated pages of inode {id} are not apart at page {start}")
            })?;
            let file = self.inodes.get(id).is_some_and(|inode| inode.kind == Kind::File);
            ensure(file, || format!("inode {id} has allocated pages and is no file"))?;
            let touching = self.live(*id, start * PAGE, end * PAGE).next();
            ensure(touching.is_none(), || format!("inode {id} has an extent in allocated pages: {touching:?}"))?;
            *pages.entry(*id).or_default() += end - start;
            total += end - start;
            last = (*id, *end);
        }
        ensure(total == self.counters.allocated_pages, || "allocated pages do not add up".into())
    }

    fn check_chunks(&self) -> Check {
        let mut live: BTreeMap<ChunkId, u64> = BTreeMap::new();
        for (_, run) in self.extents.iter().chain(self.fresh.iter()) {
            *live.entry(run.chunk).or_default() += u64::from(run.length_bytes);
        }
        let mut used: BTreeMap<GroupId, u64> = BTreeMap::new();
        let mut freed = 0;
        for (id, chunk) in self.chunks.iter() {
            let bytes = live.get(id).copied().unwrap_or(0);
            ensure(chunk.live_bytes == bytes, || format!("chunk {id} says {}, has {bytes}", chunk.live_bytes))?;
            ensure(id.0 < self.counters.next_chunk, || format!("chunk {id} was never given"))?;
            let on_list = self.freed.contains(&(chunk.freed_ns, *id));
            ensure(on_list == (bytes == 0), || format!("chunk {id} with {bytes} live bytes, freed: {on_list}"))?;
            freed += usize::from(on_list);
            *used.entry(chunk.group).or_default() += u64::from(chunk.length_bytes);
        }
        ensure(freed == self.freed.len(), || "the freed list names chunks that are not there".into())?;
        for (id, group) in self.groups.iter() {
            let bytes = used.remove(id).unwrap_or(0);
            ensure(group.used_bytes == bytes, || format!("group {id} says {}, has {bytes}", group.used_bytes))?;
            ensure(id.0 < self.counters.next_group, || format!("group {id} is above the next"))?;
            let is_listed = self.group_changes.contains(&(group.changed, *id));
            ensure(is_listed && group.changed <= self.counters.groups_version, || {
                format!("group {id} is not under its last change {}", group.changed)
            })?;
        }
        ensure(self.group_changes.len() == self.groups.len(), || "groups and their changes differ in number".into())?;
        ensure(used.is_empty(), || format!("chunks in unknown groups: {used:?}"))
    }

    fn check_sessions(&self) -> Check {
        let mut reserved = 0;
        let mut next_free = 0;
        let mut ranges: Vec<_> = Vec::new();
        for (id, session) in self.sessions.iter() {
            ensure(id.0 < self.counters.next_session, || format!("session {id} was never given"))?;
            let by_key = self.client_keys.get(&session.client_key);
            ensure(by_key == Some(id), || format!("session {id} is not under its client key"))?;
            ensure(session.replies.len() <= SESSION_IN_FLIGHT_MAX + 1, || {
                format!("session {id} keeps too many replies")
            })?;
            let lowest = session.replies.first().map_or(u64::MAX, |(sequence, _)| *sequence);
            ensure(lowest >= session.acknowledged_below, || format!("session {id} keeps acknowledged replies"))?;
            reserved += session.reserved_bytes;
            ranges.extend(session.chunk_ranges.iter().cloned());
        }
        ensure(self.client_keys.len() == self.sessions.len(), || "client keys and sessions differ in number".into())?;
        ensure(reserved == self.counters.reserved_bytes, || "reservations do not add up".into())?;
        ranges.sort_by_key(|range| range.start);
        for range in ranges {
            ensure(range.start >= next_free && range.start < range.end, || format!("chunk range {range:?} overlaps"))?;
            next_free = range.end;
            ensure(range.end <= self.counters.next_chunk, || format!("chunk range {range:?} was never given"))?;
            let known = self.chunks.iter().find(|(id, _)| range.contains(&id.0));
            ensure(known.is_none(), || format!("chunk {known:?} is used and still reserved"))?;
        }
        Ok(())
    }
}
