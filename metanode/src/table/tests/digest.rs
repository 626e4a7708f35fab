//! The digest over contents: whatever one field of one record is changed to, the digest changes; changed back, it is the
//! former one.

use super::persistence::{full_table, image};
use super::{Fixture, ROOT, create};
use crate::table::Table;
use crate::table::hasher::Digest;
use crate::table::key::NameProbe;
use crate::table::records::{Body, Slot};
use crate::table::tree::Tree;
use bytes::Bytes;
use holdfast_common::{DiskId, GroupId, InodeId, NodeId};
use holdfast_proto::meta::{GroupState, Kind, Unlink, mutation::Op};
use proptest::prelude::*;

/// Changes one field of one record, chosen by the first number, by the second, which is not 0.
type Change = fn(&mut Table, usize, u64);

fn nth<K: Ord + Clone, V: Clone>(tree: &Tree<K, V>, n: usize) -> (K, V) {
    let (key, value) = tree.iter().nth(n % tree.len()).unwrap();
    (key.clone(), value.clone())
}

/// Puts a record under another key.
fn rekey<K: Ord + Clone + Digest, V: Clone + Digest>(tree: &mut Tree<K, V>, n: usize, other: impl Fn(K) -> K) {
    let (key, value) = nth(tree, n);
    tree.remove(&key);
    tree.insert(other(key), value);
}

fn longer(bytes: &[u8], by: u64) -> Bytes {
    [bytes, &by.to_le_bytes()].concat().into()
}

fn narrow(by: u64) -> u32 {
    u32::try_from(by >> 32 ^ by & 0xffff_ffff).unwrap().max(1)
}

fn tiny(by: u64) -> u8 {
    by.to_le_bytes().into_iter().fold(0, |all, byte| all ^ byte).max(1)
}

fn signed(by: u64) -> i64 {
    by.cast_signed()
}

/// One change in place of one field of a record of a tree.
macro_rules! fields {
    ($tree:ident: $($record:ident, $by:ident => $change:expr;)*) => {
        [$({
            let change: Change = |table, n, $by| {
                let (key, _) = nth(&table.$tree, n);
                let mut $record = table.$tree.get_mut(&key).unwrap();
                $change;
            };
            change
        }),*]
    };
}

fn changes() -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    all.extend(fields! { inodes:
        inode, by => inode.kind = if by % 2 == 0 && inode.kind != Kind::Fifo { Kind::Fifo } else { Kind::Socket };
        inode, by => inode.mode ^= narrow(by);
        inode, by => inode.nlink ^= narrow(by);
        inode, by => inode.uid ^= narrow(by);
        inode, by => inode.gid ^= narrow(by);
        inode, by => inode.rdev ^= narrow(by);
        inode, by => inode.size_bytes ^= by;
        inode, by => inode.mapped_pages ^= by;
        inode, by => inode.atime_ns ^= signed(by);
        inode, by => inode.mtime_ns ^= signed(by);
        inode, by => inode.ctime_ns ^= signed(by);
        inode, by => inode.btime_ns ^= signed(by);
        inode, by => inode.truncate_generation ^= by;
        inode, by => inode.data_version ^= by;
        inode, by => inode.body = match inode.body.clone() {
            Body::Plain => Body::Directory { parent: InodeId(by), next_cookie: 0 },
            Body::Directory { parent, next_cookie } => Body::Directory { parent, next_cookie: next_cookie ^ by },
            Body::Symlink(target) => Body::Symlink(longer(&target, by).as_ref().into()),
        };
        inode, by => inode.body = match inode.body.clone() {
            Body::Plain => Body::Symlink(longer(b"", by).as_ref().into()),
            Body::Directory { parent, next_cookie } => Body::Directory { parent: InodeId(parent.0 ^ by), next_cookie },
            Body::Symlink(_) => Body::Plain,
        };
    });
    all.extend(fields! { dentries:
        dentry, by => dentry.inode.0 ^= by;
        dentry, by => dentry.kind = if by % 2 == 0 && dentry.kind != Kind::Fifo { Kind::Fifo } else { Kind::Socket };
        dentry, by => dentry.cookie ^= by;
    });
    all.extend(fields! { cookies:
        name, by => *name = NameProbe::new(InodeId(name.inode().0 ^ by), name.name()).unwrap().to_key();
        name, by => *name = NameProbe::new(name.inode(), &longer(name.name(), by)).unwrap().to_key();
    });
    all.extend(fields! { extents:
        run, by => run.length_bytes ^= narrow(by);
        run, by => run.chunk_offset ^= narrow(by);
        run, by => run.chunk.0 ^= by;
    });
    all.extend(fields! { dead: end, by => *end ^= by; });
    all.extend(fields! { fresh: run, by => run.chunk.0 ^= by; });
    all.extend(fields! { allocated: end, by => *end ^= by; });
    all.extend(fields! { chunks:
        chunk, by => chunk.nonce.0 ^= by;
        chunk, by => chunk.group.0 ^= by;
        chunk, by => chunk.epoch.0 ^= by;
        chunk, by => chunk.length_bytes ^= narrow(by);
        chunk, by => chunk.shard_length_bytes ^= narrow(by);
        chunk, by => chunk.data_shards ^= tiny(by);
        chunk, by => chunk.parity_shards ^= tiny(by);
        chunk, by => chunk.slots = [chunk.slots[0] ^ tiny(by)].iter().chain(&chunk.slots[1..]).copied().collect();
        chunk, by => chunk.slots = longer(&chunk.slots, by).as_ref().into();
        chunk, by => chunk.live_bytes ^= by;
        chunk, by => chunk.freed_ns ^= signed(by);
    });
    all.extend(fields! { xattrs: value, by => *value = longer(&value, by); });
    all.extend(fields! { sessions:
        session, by => session.client_key = longer(&session.client_key, by);
        session, by => session.description = format!("{}{by}", session.description).into();
        session, by => session.opened_ns ^= signed(by);
        session, by => session.acknowledged_below ^= by;
        session, by => session.replies.insert(by, Bytes::new());
        session, by => session.chunk_ranges = std::iter::once(by..u64::MAX).collect();
        session, by => session.reserved_bytes ^= by;
    });
    all.extend(fields! { client_keys: session, by => session.0 ^= by; });
    all.extend(fields! { groups:
        group, by => group.epoch.0 ^= by;
        group, by => group.slots = slots(&group.slots, |slot| slot.disk = DiskId(slot.disk.0 ^ by));
        group, by => group.slots = slots(&group.slots, |slot| slot.node = NodeId(slot.node.0 ^ by));
        group, by => group.slots = slots(&group.slots, |slot| slot.since_epoch.0 ^= by);
        group, by => {
            let _ = by;
            group.state = GroupState::GroupFull;
        };
        group, by => group.used_bytes ^= by;
        group, by => group.capacity_bytes ^= by;
        group, by => group.changed ^= by;
    });
    all.extend(fields! { owed:
        owed, by => owed.chunk.0 ^= by;
        owed, by => owed.entries ^= by;
    });
    all.extend(keys());
    all.extend(single_numbers());
    all
}

fn slots(slots: &[Slot], change: impl Fn(&mut Slot)) -> std::sync::Arc<[Slot]> {
    let mut slots = slots.to_vec();
    change(&mut slots[1]);
    slots.into()
}

fn keys() -> Vec<Change> {
    vec![
        |table, n, by| rekey(&mut table.inodes, n, |key| InodeId(key.0 ^ by)),
        |table, n, by| {
            rekey(&mut table.dentries, n, |key| NameProbe::new(InodeId(by), key.name()).unwrap().to_key());
        },
        |table, n, by| rekey(&mut table.cookies, n, |(inode, cookie)| (InodeId(inode.0 ^ by), cookie)),
        |table, n, by| rekey(&mut table.cookies, n, |(inode, cookie)| (inode, cookie ^ by)),
        |table, n, by| rekey(&mut table.extents, n, |(inode, offset)| (InodeId(inode.0 ^ by), offset)),
        |table, n, by| rekey(&mut table.extents, n, |(inode, offset)| (inode, offset ^ by)),
        |table, n, by| rekey(&mut table.dead, n, |(inode, from)| (inode, from ^ by)),
        |table, n, by| rekey(&mut table.fresh, n, |(inode, offset)| (inode, offset ^ by)),
        |table, n, by| rekey(&mut table.allocated, n, |(inode, page)| (InodeId(inode.0 ^ by), page)),
        |table, n, by| rekey(&mut table.allocated, n, |(inode, page)| (inode, page ^ by)),
        |table, n, by| rekey(&mut table.chunks, n, |key| (key.0 ^ by).into()),
        |table, n, by| rekey(&mut table.freed, n, |(time_ns, chunk)| (time_ns ^ signed(by), chunk)),
        |table, n, by| rekey(&mut table.freed, n, |(time_ns, chunk)| (time_ns, (chunk.0 ^ by).into())),
        |table, n, by| rekey(&mut table.owed, n, |key| DiskId(key.0 ^ by)),
        |table, n, by| rekey(&mut table.orphans, n, |key| InodeId(key.0 ^ by)),
        |table, n, by| rekey(&mut table.sessions, n, |key| (key.0 ^ by).into()),
        |table, n, by| rekey(&mut table.client_keys, n, |key| longer(&key, by)),
        |table, n, by| rekey(&mut table.group_changes, n, |(changed, group)| (changed ^ by, group)),
        |table, n, by| rekey(&mut table.group_changes, n, |(changed, group)| (changed, GroupId(group.0 ^ by))),
        |table, n, by| rekey(&mut table.groups, n, |key| GroupId(key.0 ^ by)),
        |table, n, by| {
            rekey(&mut table.xattrs, n, |key| NameProbe::new(key.inode(), &longer(key.name(), by)).unwrap().to_key());
        },
        |table, n, by| {
            let (id, _) = nth(&table.sessions, n);
            table.sessions.get_mut(&id).unwrap().replies.insert(u64::MAX, longer(b"reply", by));
        },
    ]
}

fn single_numbers() -> Vec<Change> {
    vec![
        |table, _, by| table.counters.next_inode ^= by,
        |table, _, by| table.counters.next_chunk ^= by,
        |table, _, by| table.counters.next_session ^= by,
        |table, _, by| table.counters.next_group ^= by,
        |table, _, by| table.counters.groups_version ^= by,
        |table, _, by| table.counters.floor ^= by,
        |table, _, by| table.counters.last_time_ns ^= signed(by),
        |table, _, by| table.counters.mapped_pages ^= by,
        |table, _, by| table.counters.allocated_pages ^= by,
        |table, _, by| table.counters.reserved_bytes ^= by,
        |table, _, by| table.counters.feature_level ^= narrow(by),
        |table, _, by| table.configuration.as_mut().unwrap().volume.0 ^= by,
        |table, _, by| table.configuration.as_mut().unwrap().incarnation.0 ^= by,
        |table, _, by| table.configuration.as_mut().unwrap().data_shards ^= tiny(by),
        |table, _, by| table.configuration.as_mut().unwrap().parity_shards ^= tiny(by),
        |table, _, by| table.configuration.as_mut().unwrap().quota_bytes ^= by,
        |table, _, by| table.configuration.as_mut().unwrap().name += &by.to_string(),
        |table, _, _| table.configuration = None,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_changed_field_of_any_record_gives_another_digest(n in 0..9_usize, by in 1..u64::MAX) {
        let table = full_table().table;
        let digest = table.digest();
        for (index, change) in changes().into_iter().enumerate() {
            let mut changed = table.clone();
            change(&mut changed, n, by);
            prop_assert!(changed.digest() != digest, "change {} of record {} by {}", index, n, by);
        }
    }
}

#[test]
fn equal_contents_give_equal_digests_however_they_came_about() {
    let fixture = full_table();
    let restored = Table::restore(&mut image(&fixture.table).as_slice()).unwrap();
    assert_eq!(restored.digest(), fixture.table.digest());
    let mut changed = fixture.table.clone();
    for by in [1, 2, 3, 2, 1, 3] {
        changed.inodes.get_mut(&InodeId::ROOT).unwrap().atime_ns ^= by;
        assert_eq!(changed.digest() == fixture.table.digest(), changed == fixture.table);
    }
    assert!(changed == fixture.table);
}

/// Stable across builds: replicas of different ones compare it.
#[test]
fn the_digest_of_a_table_is_pinned() {
    for (level, digest) in
        [(1, 17_353_193_991_459_912_952), (2, 11_767_105_222_318_565_409), (3, 13_462_998_095_756_458_650)]
    {
        let mut fixture = Fixture::at_level(level, 0);
        fixture.create(ROOT, b"kept", Kind::Symlink);
        fixture.create(ROOT, b"orphan", Kind::File);
        fixture.ok(Op::Unlink(Unlink { parent: ROOT, name: b"orphan"[..].into(), directory: false }));
        fixture.ok(create(ROOT, b"directory", Kind::Directory));
        assert_eq!(fixture.table.digest(), digest, "level {level}");
    }
}
