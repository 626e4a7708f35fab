use super::*;
use holdfast_common::Random;
use holdfast_proto::meta::{ChunkRecord, Extent, FileMap};

const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, sync: false };

fn attributes(inode: u64, data_version: u64) -> Attr {
    Attr { inode, data_version, size_bytes: data_version * 10, ..Attr::default() }
}

/// A map of so many extents, each of a chunk of its own.
fn map(extents: u64) -> FileMap {
    let extent = |at: u64| Extent { file_offset: at * 10, length_bytes: 5, chunk: at + 1, chunk_offset: 0 };
    let record = |at: u64| ChunkRecord { chunk: at + 1, ..ChunkRecord::default() };
    FileMap {
        offset: 0,
        covered_bytes: extents * 10,
        extents: (0..extents).map(extent).collect(),
        chunks: (0..extents).map(record).collect(),
    }
}

fn learn(files: &mut Files, inode: u64, extents: u64) {
    files.change_map(InodeId(inode), |inode| inode.learn_map(attributes(inode.id.0, 0), &map(extents)));
}

fn held(files: &mut Files) -> Vec<u64> {
    files.inodes().filter(|inode| inode.map_bytes() > 0).map(|inode| inode.id.0).collect()
}

#[test]
fn the_map_that_was_changed_last_goes_last_and_the_others_in_turn() {
    let mut files = Files::default();
    for inode in 1..=4 {
        files.open(attributes(inode, 0), BOTH);
        learn(&mut files, inode, 10);
    }
    let all = files.map_bytes();
    learn(&mut files, 2, 10);
    files.bound_maps(all - 1);
    assert_eq!(held(&mut files), [1, 2, 4], "the one behind it goes");
    files.bound_maps(files.map_bytes() - 1);
    assert_eq!(held(&mut files), [1, 2], "and not the first again and again");
    files.bound_maps(files.map_bytes() - 1);
    assert_eq!(held(&mut files), [2]);
    files.bound_maps(0);
    assert_eq!((held(&mut files).len(), files.map_bytes()), (0, 0), "one that is too large alone goes, too");
}

/// Random openings, maps and closes: the running total is the sum, and the budget holds.
#[test]
fn the_total_of_all_maps_is_their_sum() {
    for seed in 0..50 {
        let (mut files, mut random) = (Files::default(), Random::new(seed));
        let mut handles = Vec::new();
        for _ in 0..200 {
            let inode = random.below(8) + 1;
            match random.below(5) {
                0 => handles.push(files.open(attributes(inode, 0), BOTH).0),
                1..=2 => learn(&mut files, inode, random.below(20)),
                3 => drop(files.change_map(InodeId(inode), Inode::forget_map)),
                _ if handles.is_empty() => {}
                _ => {
                    let handle = handles.swap_remove(random.index(handles.len()));
                    let id = files.close(handle).unwrap();
                    files.forget_unused(id);
                }
            }
            files.bound_maps(5000);
            let sum: usize = files.inodes().map(|inode| inode.map_bytes()).sum();
            assert_eq!(files.map_bytes(), sum, "seed {seed}");
            assert!(sum <= 5000, "seed {seed}: {sum}");
            assert_eq!(held(&mut files), files.mapped.iter().map(|id| id.0).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}

#[test]
fn a_lost_write_is_for_the_handles_that_are_open_or_opened_before_it_was_told_and_the_first_reason_stays() {
    let mut files = Files::default();
    let (first, other) = (files.open(attributes(1, 0), BOTH).0, files.open(attributes(2, 0), BOTH).0);
    files.lost(InodeId(1), &Error::NoSpace);
    files.lost(InodeId(1), &Error::SessionLost);
    let later = files.open(attributes(1, 0), BOTH).0;
    let told_by_close = [first, other, later].map(|handle| files.told_by_close(handle));
    assert_eq!(told_by_close, [Some(Error::NoSpace), None, None]);
    assert_eq!(files.untold(), [InodeId(1)]);
    files.lost(InodeId(9), &Error::NoSpace);
    assert_eq!(files.untold(), [InodeId(1)], "an inode that nobody knows has lost nothing");
    let told = [later, other, first, first, later].map(|handle| files.tell(handle));
    assert_eq!(told, [Some(Error::NoSpace), None, Some(Error::NoSpace), None, None]);
    let after = files.open(attributes(1, 0), BOTH).0;
    assert_eq!((files.tell(after), files.untold().len()), (None, 0));
    // A handle that had inherited a loss was open at the next one.
    files.lost(InodeId(1), &Error::NoSpace);
    let inherits = files.open(attributes(1, 0), BOTH).0;
    assert_eq!(files.told_by_close(inherits), None);
    files.lost(InodeId(1), &Error::SessionLost);
    assert_eq!(files.told_by_close(inherits), Some(Error::NoSpace));
    files.tell(inherits);
    assert_eq!(files.untold(), [InodeId(1)], "the others have not told it");
    [first, later, after].into_iter().for_each(|handle| drop(files.tell(handle)));
    assert!(files.untold().is_empty());
}

#[test]
fn an_inode_stays_while_it_has_something_to_tell() {
    let mut files = Files::default();
    let (handle, _) = files.open(attributes(1, 0), BOTH);
    files.close(handle).unwrap();
    files.lost(InodeId(1), &Error::NoSpace);
    files.forget_unused(InodeId(1));
    assert_eq!(files.untold(), [InodeId(1)]);
    for told in [None, Some(Error::NoSpace)] {
        assert_eq!(files.untold(), [InodeId(1)]);
        let (handle, _) = files.open(attributes(1, 0), BOTH);
        if told.is_some() {
            assert_eq!(files.tell(handle), told, "it is this handle's to tell of");
        }
        files.close(handle).unwrap();
        files.forget_unused(InodeId(1));
        assert_eq!(files.close(handle), Err(Error::BadHandle));
    }
    assert_eq!((files.inodes().count(), files.untold().len()), (0, 0));
}

#[test]
fn only_so_many_files_that_nobody_has_open_are_remembered_for_a_loss_and_the_oldest_goes_first() {
    let mut files = Files::default();
    let lose = |files: &mut Files, inode| {
        let (handle, _) = files.open(attributes(inode, 0), BOTH);
        learn(files, inode, 10);
        files.lost(InodeId(inode), &Error::NoSpace);
        files.close(handle).unwrap();
        files.forget_unused(InodeId(inode));
        files.forget_unused(InodeId(inode));
    };
    let max = LOSSES_REMEMBERED_MAX as u64;
    (1..=max).for_each(|inode| lose(&mut files, inode));
    assert_eq!((files.inodes().count(), files.map_bytes()), (LOSSES_REMEMBERED_MAX, 0), "without their maps");
    // One that is open does not count, and is the newest when it is closed.
    let (handle, _) = files.open(attributes(1, 0), BOTH);
    lose(&mut files, max + 1);
    assert_eq!(files.untold().len(), LOSSES_REMEMBERED_MAX + 1);
    files.close(handle).unwrap();
    files.forget_unused(InodeId(1));
    let untold = files.untold();
    assert_eq!((untold.len(), files.inodes().count()), (LOSSES_REMEMBERED_MAX, LOSSES_REMEMBERED_MAX));
    assert!(untold.contains(&InodeId(1)) && !untold.contains(&InodeId(2)), "the oldest is forgotten");
}

/// Interleaving: a question is asked, the file is closed after it was changed, and then the answer arrives.
#[test]
fn an_answer_from_before_a_close_is_not_believed_and_does_not_open_the_file_anew() {
    let mut files = Files::default();
    let question = files.begin_question();
    let (handle, _) = files.open(attributes(1, 5), BOTH);
    files.close(handle).unwrap();
    files.forget_unused(InodeId(1));
    assert_eq!(files.see(attributes(1, 3)).size_bytes, 50);
    let (handle, inode) = files.open(attributes(1, 3), BOTH);
    assert_eq!(inode.size_bytes(), 50, "not by an open either");
    files.end_question(question);
    files.close(handle).unwrap();
    files.forget_unused(InodeId(1));
    assert_eq!(files.see(attributes(1, 3)).size_bytes, 30);
}

#[test]
fn every_attribute_of_an_answer_is_shown_as_this_mount_must() {
    let mut files = Files::default();
    for inode in 1..=5 {
        files.open(attributes(inode, 7), BOTH);
    }
    let old = |inode| Some(attributes(inode, 2));
    let entry = holdfast_proto::meta::DirectoryEntry { attr: old(3), ..Default::default() };
    let walked = old(2).into_iter().collect();
    let mut read = ReadResponse { attr: old(1), walked, entries: vec![entry], ..ReadResponse::default() };
    files.see_read(&mut read);
    let entries = read.entries.iter().filter_map(|entry| entry.attr);
    assert!(read.attr.into_iter().chain(read.walked).chain(entries).all(|attr| attr.data_version == 7));
    let mut mutated = MutateResponse { attr: old(4), other_attr: old(5), ..MutateResponse::default() };
    files.see_mutated(&mut mutated);
    assert!(mutated.attr.into_iter().chain(mutated.other_attr).all(|attr| attr.data_version == 7));
}

#[test]
fn changes_are_remembered_while_there_are_some() {
    let mut files = Files::default();
    files.changes(InodeId(1)).waiting.push_back(OpId(1));
    files.forget_unchanged(InodeId(1));
    assert!(!files.is_changing(InodeId(1)) && files.changes.len() == 1);
    let changes = files.changes(InodeId(1));
    changes.under_way = changes.waiting.pop_front();
    files.forget_unchanged(InodeId(1));
    assert!(files.is_changing(InodeId(1)));
    files.changes(InodeId(1)).under_way = None;
    files.forget_unchanged(InodeId(1));
    assert!(files.changes.is_empty());
}
