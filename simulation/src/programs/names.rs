//! Names: a few clients make, link, rename, remove and list the same few names in the same directories.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_client::{NewNode, RenameMode};
use holdfast_common::{InodeId, Owner};
use holdfast_proto::meta::Kind;
use holdfast_proto::meta::mutation::Op;

use super::Desk;
use super::data::{FILES, meddle};
use super::remove::{remove, told};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Once in this many steps, names of files that hold data.
const FILES_ONE_IN: u64 = 24;
/// Entries asked for at once: directories here are smaller.
const LISTING_MAX: u32 = 100;

/// Runs until the programs are to stop.
pub(crate) async fn work_on_names(mut desk: Desk) {
    while desk.goes_on() {
        step(&mut desk).await;
        desk.pause(120).await;
    }
}

/// Looks at names and changes none, until the programs are to stop: while changes wait for a leader, somebody still hears what
/// a former one says.
pub(crate) async fn watch_names(mut desk: Desk) {
    while desk.goes_on() {
        let name = name(&mut desk);
        if desk.random.chance(60) {
            list(&mut desk, InodeId::ROOT).await;
        } else {
            look(&mut desk, InodeId::ROOT, name).await;
        }
        desk.pause(200).await;
    }
}

async fn step(desk: &mut Desk) {
    if desk.random.one_in(FILES_ONE_IN) {
        return work_on_names_of_files(desk).await;
    }
    let parent = directory(desk);
    let name = name(desk);
    match desk.random.below(12) {
        0..=1 => make(desk, parent, name, true).await,
        2..=3 => make(desk, parent, name, false).await,
        4 => remove(desk, parent, name, true).await,
        5..=6 => remove(desk, parent, name, false).await,
        7 => rename(desk, parent, name).await,
        8 => link(desk, parent, name).await,
        9..=10 => look(desk, parent, name).await,
        _ => list(desk, parent).await,
    }
}

/// Takes the names of files away that programs may have open, and truncates what another client writes.
async fn work_on_names_of_files(desk: &mut Desk) {
    let file = FILES[desk.random.index(FILES.len())];
    match desk.random.below(5) {
        0..=1 => remove(desk, InodeId::ROOT, file, false).await,
        2 => {
            let to = FILES[desk.random.index(FILES.len())];
            rename_to(desk, (InodeId::ROOT, file), (InodeId::ROOT, to)).await;
        }
        _ => meddle(desk).await,
    }
}

fn name(desk: &mut Desk) -> &'static str {
    NAMES[desk.random.index(NAMES.len())]
}

/// The root, or a directory that is in it just now.
fn directory(desk: &mut Desk) -> InodeId {
    let listing: Vec<u64> = desk.truth().names.listing(InodeId::ROOT.0).into_values().collect();
    if listing.is_empty() || desk.random.chance(60) {
        return InodeId::ROOT;
    }
    InodeId(listing[desk.random.index(listing.len())])
}

async fn make(desk: &mut Desk, parent: InodeId, name: &'static str, directory: bool) {
    let node = if directory { NewNode::Directory } else { NewNode::File };
    let low = desk.truth().observed;
    let fs = desk.fs.clone();
    let making = async move { fs.create_node(parent, name.as_bytes(), node, 0o755, Owner::ROOT).await };
    let Some(outcome) = desk.unless_interrupted(10, 3000, making).await else { return };
    let made = outcome.as_ref().map_or(0, |made| made.inode.0);
    let kind = if directory { Kind::Directory } else { Kind::File };
    desk.truth().told("make", low, told(&outcome), |_, op, answer| {
        let Op::Create(op) = op else { return false };
        let same = op.parent == parent.0 && op.name == name.as_bytes() && op.kind() == kind && op.exclusive;
        same && (made == 0 || answer.attr.is_some_and(|attr| attr.inode == made))
    });
}

async fn rename(desk: &mut Desk, parent: InodeId, from: &'static str) {
    let to = (directory(desk), name(desk));
    rename_to(desk, (parent, from), to).await;
}

async fn rename_to(
    desk: &mut Desk,
    (parent, from): (InodeId, &'static str),
    (new_parent, to): (InodeId, &'static str),
) {
    let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][desk.random.index(3)];
    let low = desk.truth().observed;
    let outcome = desk.fs.rename(parent, from.as_bytes(), new_parent, to.as_bytes(), mode).await;
    desk.truth().told("rename", low, told(&outcome), |_, op, _| {
        let Op::Rename(op) = op else { return false };
        let places = (op.parent, &op.name[..], op.new_parent, &op.new_name[..]);
        places == (parent.0, from.as_bytes(), new_parent.0, to.as_bytes())
    });
}

async fn link(desk: &mut Desk, parent: InodeId, name: &'static str) {
    let of = InodeId(desk.truth().names.now(parent.0, NAMES[0].as_bytes()));
    if of.0 == 0 {
        return;
    }
    let low = desk.truth().observed;
    let outcome = desk.fs.link(of, parent, name.as_bytes()).await;
    desk.truth().told("link", low, told(&outcome), |_, op, _| {
        let Op::Link(op) = op else { return false };
        (op.inode, op.parent, &op.name[..]) == (of.0, parent.0, name.as_bytes())
    });
}

async fn look(desk: &mut Desk, parent: InodeId, name: &'static str) {
    let low = desk.truth().observed;
    let outcome = desk.fs.lookup(parent, name.as_bytes()).await;
    let seen = outcome.as_ref().map(|seen| seen.inode.0);
    desk.truth().looked_up(low, parent.0, name.as_bytes(), seen);
}

async fn list(desk: &mut Desk, parent: InodeId) {
    let low = desk.truth().observed;
    if let Ok(entries) = desk.fs.read_directory(parent, 0, LISTING_MAX, false).await {
        let seen: BTreeMap<Vec<u8>, u64> =
            entries.into_iter().map(|entry| (entry.name.to_vec(), entry.inode.0)).collect();
        desk.truth().listed(low, parent.0, &seen);
    }
}

/// Removes everything below the root. Nobody else may be at work.
pub(crate) async fn clear(desk: &Desk) {
    let mut waiting = vec![(InodeId::ROOT, false)];
    while let Some((directory, emptied)) = waiting.pop() {
        let entries = desk.fs.read_directory(directory, 0, LISTING_MAX, true).await.expect("a listing");
        let mut deeper = Vec::new();
        for entry in entries {
            let is_directory = entry.kind == holdfast_client::NodeKind::Directory;
            if is_directory && !emptied {
                deeper.push((entry.inode, false));
            } else {
                remove_for_good(desk, directory, &entry.name, is_directory).await;
            }
        }
        if !deeper.is_empty() {
            waiting.push((directory, true));
            waiting.append(&mut deeper);
        }
    }
}

async fn remove_for_good(desk: &Desk, parent: InodeId, name: &Bytes, directory: bool) {
    let outcome =
        if directory { desk.fs.remove_directory(parent, name).await } else { desk.fs.unlink(parent, name).await };
    outcome.unwrap_or_else(|error| panic!("{name:?} in {parent} cannot be removed when all is well: {error}"));
}
