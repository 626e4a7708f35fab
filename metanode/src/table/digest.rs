//! A digest over the contents of a table (R26): equal contents give equal digests, on every replica, in every build and
//! however the contents came about; one changed field gives another.
//!
//! Each tree keeps the sum of the hashes of its records and moves it with every change, so that a digest costs two hashes of
//! the record a change and nothing to ask for; a walk would read every record of a frozen copy for each comparison. A sum, because it does not depend on the order. The hash is a chain of
//! bijections of 64 bits: two records that differ in one number never have the same, others by accident in one of 2^64 cases.
//! It guards against faults, not against somebody who makes collisions.

use super::hasher::{Digest, Hasher};
use super::records::{Body, Chunk, Dentry, Group, Inode, Owed, Run, Session, Slot};
use super::{Configuration, Counters, Table};
use std::ops::Range;

impl Digest for Inode {
    fn feed(&self, to: &mut Hasher) {
        let Self {
            kind,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size_bytes,
            mapped_pages,
            atime_ns,
            mtime_ns,
            ctime_ns,
            btime_ns,
            truncate_generation,
            data_version,
            body,
        } = self;
        kind.feed(to);
        for number in [mode, nlink, uid, gid, rdev] {
            to.word(u64::from(*number));
        }
        for number in [size_bytes, mapped_pages, truncate_generation, data_version] {
            to.word(*number);
        }
        for time_ns in [atime_ns, mtime_ns, ctime_ns, btime_ns] {
            time_ns.feed(to);
        }
        match body {
            Body::Plain => to.word(0),
            Body::Directory { parent, next_cookie } => {
                to.word(1);
                (*parent, *next_cookie).feed(to);
            }
            Body::Symlink(target) => {
                to.word(2);
                to.bytes(target);
            }
        }
    }
}

impl Digest for Dentry {
    fn feed(&self, to: &mut Hasher) {
        let Self { inode, kind, cookie } = self;
        (*inode, *cookie).feed(to);
        kind.feed(to);
    }
}

impl Digest for Run {
    fn feed(&self, to: &mut Hasher) {
        let Self { length_bytes, chunk_offset, chunk } = self;
        to.word(u64::from(*length_bytes));
        to.word(u64::from(*chunk_offset));
        chunk.feed(to);
    }
}

impl Digest for Chunk {
    fn feed(&self, to: &mut Hasher) {
        let Self {
            nonce,
            group,
            epoch,
            length_bytes,
            shard_length_bytes,
            data_shards,
            parity_shards,
            slots,
            live_bytes,
            freed_ns,
        } = self;
        for number in [nonce.0, group.0, epoch.0, *live_bytes, freed_ns.cast_unsigned()] {
            to.word(number);
        }
        for number in [*length_bytes, *shard_length_bytes, (*data_shards).into(), (*parity_shards).into()] {
            to.word(u64::from(number));
        }
        to.bytes(slots);
    }
}

impl Digest for Session {
    fn feed(&self, to: &mut Hasher) {
        let Self { client_key, description, opened_ns, acknowledged_below, replies, chunk_ranges, reserved_bytes } =
            self;
        to.bytes(client_key);
        to.bytes(description.as_bytes());
        opened_ns.feed(to);
        to.word(*acknowledged_below);
        replies.feed(to);
        to.word(chunk_ranges.len() as u64);
        for Range { start, end } in chunk_ranges.iter() {
            (*start, *end).feed(to);
        }
        to.word(*reserved_bytes);
    }
}

impl Digest for Group {
    fn feed(&self, to: &mut Hasher) {
        let Self { epoch, slots, state, used_bytes, capacity_bytes, changed } = self;
        to.word(epoch.0);
        to.word(slots.len() as u64);
        for Slot { disk, node, since_epoch } in slots.iter() {
            for number in [disk.0, node.0, since_epoch.0] {
                to.word(number);
            }
        }
        state.feed(to);
        to.word(*used_bytes);
        to.word(*capacity_bytes);
        to.word(*changed);
    }
}

impl Digest for Owed {
    fn feed(&self, to: &mut Hasher) {
        let Self { chunk, entries } = self;
        (*chunk, *entries).feed(to);
    }
}

impl Digest for Counters {
    fn feed(&self, to: &mut Hasher) {
        let Self {
            next_inode,
            next_chunk,
            next_session,
            next_group,
            groups_version,
            floor,
            last_time_ns,
            mapped_pages,
            allocated_pages,
            reserved_bytes,
            feature_level,
        } = self;
        for number in [next_inode, next_chunk, next_session, next_group, groups_version, floor] {
            to.word(*number);
        }
        last_time_ns.feed(to);
        for number in [*mapped_pages, *allocated_pages, *reserved_bytes, (*feature_level).into()] {
            to.word(number);
        }
    }
}

impl Digest for Option<Configuration> {
    fn feed(&self, to: &mut Hasher) {
        to.word(u64::from(self.is_some()));
        let Some(Configuration { volume, incarnation, data_shards, parity_shards, quota_bytes, name }) = self else {
            return;
        };
        for number in [volume.0, incarnation.0, (*data_shards).into(), (*parity_shards).into(), *quota_bytes] {
            to.word(number);
        }
        to.bytes(name.as_bytes());
    }
}

impl Table {
    /// A digest of everything in the table, which replicas must agree on at the same index. Constant time.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let Self {
            configuration,
            counters,
            inodes,
            dentries,
            cookies,
            extents,
            dead,
            fresh,
            allocated,
            chunks,
            freed,
            xattrs,
            orphans,
            sessions,
            client_keys,
            groups,
            group_changes,
            owed,
            pieces_max: _,
            broken_rule: _,
        } = self;
        let mut to = Hasher::new();
        configuration.feed(&mut to);
        counters.feed(&mut to);
        inodes.feed(&mut to);
        dentries.feed(&mut to);
        cookies.feed(&mut to);
        extents.feed(&mut to);
        dead.feed(&mut to);
        fresh.feed(&mut to);
        allocated.feed(&mut to);
        chunks.feed(&mut to);
        freed.feed(&mut to);
        xattrs.feed(&mut to);
        orphans.feed(&mut to);
        sessions.feed(&mut to);
        client_keys.feed(&mut to);
        groups.feed(&mut to);
        group_changes.feed(&mut to);
        // Builds that know only lower levels do not feed it.
        if counters.feature_level >= 2 {
            owed.feed(&mut to);
        }
        to.finish()
    }
}
