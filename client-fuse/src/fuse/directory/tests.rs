//! Listings against a directory in memory, through buffers of every size.

use super::*;
use bytes::Bytes;
use fuser::Errno;
use holdfast_client::NodeKind;
use std::cell::RefCell;

const THIS: InodeId = InodeId(5);
const PARENT: InodeId = InodeId(3);

/// Name, inode, offset.
type Row = (Vec<u8>, u64, u64);

/// A reply's buffer of so many bytes, laid out as fuser lays it out.
struct Taken<const PLUS: bool> {
    room: usize,
    rows: Vec<Row>,
}
impl<const PLUS: bool> Taken<PLUS> {
    fn take(&mut self, name: &[u8], inode: InodeId, offset: u64) -> bool {
        let size = (if PLUS { PLUS_BYTES } else { PLAIN_BYTES } + name.len()).next_multiple_of(8);
        if size > self.room {
            return true;
        }
        self.room -= size;
        self.rows.push((name.to_vec(), inode.0, offset));
        false
    }
}
impl<const PLUS: bool> Buffer for Taken<PLUS> {
    const WITH_ATTRIBUTES: bool = PLUS;
    fn dot(&mut self, name: &'static str, inode: InodeId, offset: u64) -> bool {
        self.take(name.as_bytes(), inode, offset)
    }
    fn entry(&mut self, entry: &DirectoryEntry) -> bool {
        self.take(&entry.name, entry.inode, entry.cookie)
    }
}

fn directory(entries: u64) -> Vec<DirectoryEntry> {
    (0..entries)
        .map(|n| DirectoryEntry {
            name: Bytes::from("n".repeat(usize::try_from(n % 40 + 1).unwrap()) + &n.to_string()),
            inode: InodeId(100 + n),
            kind: NodeKind::File,
            cookie: FIRST_COOKIE + 3 * n,
            attributes: None,
        })
        .collect()
}

/// One readdir request, and which cookies were asked for.
fn ask<const PLUS: bool>(
    directories: &Directories,
    of: &[DirectoryEntry],
    handle: u64,
    offset: u64,
    room: usize,
) -> (Vec<Row>, Vec<u64>) {
    let asked = RefCell::new(Vec::new());
    let mut into = Taken::<PLUS> { room, rows: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let listing = directories.list(handle, (THIS, offset), &mut into, async { PARENT }, |after, most| {
        asked.borrow_mut().push(after);
        let found: Vec<_> = of.iter().filter(|e| e.cookie > after).take(most as usize).cloned().collect();
        async move { Ok(found) }
    });
    runtime.block_on(listing).unwrap();
    (into.rows, asked.into_inner())
}

fn whole<const PLUS: bool>(of: &[DirectoryEntry], room: usize) -> Vec<Row> {
    let directories = Directories::new();
    let handle = directories.opened();
    let (mut rows, mut offset) = (Vec::new(), 0);
    while !directories.ends_at(handle, offset) {
        let (more, _) = ask::<PLUS>(&directories, of, handle, offset, room);
        let Some(last) = more.last() else { break };
        offset = last.2;
        rows.extend(more);
    }
    rows
}

#[test]
fn every_entry_is_listed_once_whatever_the_buffer_holds() {
    for entries in [0, 1, 15, 16, 17, 300] {
        let of = directory(entries);
        let mut expected = vec![(b".".to_vec(), THIS.0, 1), (b"..".to_vec(), PARENT.0, 2)];
        expected.extend(of.iter().map(|e| (e.name.to_vec(), e.inode.0, e.cookie)));
        for room in [256, 300, 1000, 4096, 32 << 10, 1 << 20] {
            assert_eq!(whole::<false>(&of, room), expected, "{entries} entries, {room} bytes");
            assert_eq!(whole::<true>(&of, room), expected, "{entries} entries with attributes, {room} bytes");
        }
    }
}

#[test]
fn a_buffer_that_ends_between_the_dots_goes_on_with_the_second() {
    let (directories, of) = (Directories::new(), directory(1));
    let (rows, _) = ask::<false>(&directories, &of, 1, 0, 40);
    assert_eq!(rows, [(b".".to_vec(), THIS.0, 1)]);
    let (rows, _) = ask::<false>(&directories, &of, 1, 1, 40);
    assert_eq!(rows, [(b"..".to_vec(), PARENT.0, 2)]);
}

#[test]
fn the_ask_behind_the_end_is_answered_without_the_cluster_and_a_rewind_is_not() {
    for entries in [0, 3] {
        let (directories, of) = (Directories::new(), directory(entries));
        let (handle, other) = (directories.opened(), directories.opened());
        let (rows, _) = ask::<false>(&directories, &of, handle, 0, 4096);
        let end = rows.last().unwrap().2;
        assert!(directories.ends_at(handle, end));
        assert!(!directories.ends_at(handle, 0) && !directories.ends_at(other, end));
        directories.released(handle);
        assert!(!directories.ends_at(handle, end));
    }
}

#[test]
fn what_a_reply_held_sizes_the_next_fetch() {
    let (directories, of) = (Directories::new(), directory(2000));
    let most = |directories: &Directories| {
        let mut first = None;
        let mut into = Taken::<true> { room: 4096, rows: Vec::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let listing = directories.list(1, (THIS, 2), &mut into, async { PARENT }, |after, most| {
            first.get_or_insert(most);
            let found: Vec<_> = of.iter().filter(|e| e.cookie > after).take(most as usize).cloned().collect();
            async move { Ok(found) }
        });
        runtime.block_on(listing).unwrap();
        first.unwrap()
    };
    assert_eq!(most(&directories), 196, "32 KiB are assumed");
    assert!((16..30).contains(&most(&directories)), "4 KiB were seen");
}

#[test]
fn an_error_is_passed_on() {
    let directories = Directories::new();
    let mut into = Taken::<false> { room: 4096, rows: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let listing =
        directories.list(1, (THIS, 0), &mut into, async { PARENT }, |_, _| async { Err(Refusal(Errno::ESTALE)) });
    assert_eq!(runtime.block_on(listing), Err(Refusal(Errno::ESTALE)));
}
