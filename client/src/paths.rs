//! Paths of files, for people: from the name by which a file was opened, upwards by asking the table.

use crate::UnflushedFile;
use crate::core::effects::{Answer, Call};
use crate::error::NAMED_MAX;
use crate::shell::Shell;
use bytes::Bytes;
use holdfast_common::InodeId;
use holdfast_proto::meta::{Lookup, ReadDirectory, ReadResponse, read_request};
use std::sync::Arc;

/// Entries asked for at once.
const PAGE_ENTRIES: u32 = 1024;

/// Finds the paths of as many files as are named, one after the other. What is not found, or not before this is dropped, has none.
pub(crate) async fn find(shell: &Arc<Shell>, files: &mut [UnflushedFile]) {
    for file in files.iter_mut().take(NAMED_MAX) {
        file.path = path_of(shell, file.inode).await;
    }
}

async fn path_of(shell: &Arc<Shell>, inode: InodeId) -> Option<Bytes> {
    let opened = shell.with(|core, _| core.name_of(inode))?;
    // It may have been renamed or removed since.
    if look_up(shell, opened.parent, &opened.name).await? != inode {
        return None;
    }
    let (mut directory, mut names) = (opened.parent, vec![opened.name]);
    while directory != InodeId::ROOT {
        let parent = look_up(shell, directory, b"..").await?;
        names.push(name_in(shell, parent, directory).await?);
        directory = parent;
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Some(path.into())
}

async fn look_up(shell: &Arc<Shell>, parent: InodeId, name: &[u8]) -> Option<InodeId> {
    let op = Lookup { parent: parent.0, name: Bytes::copy_from_slice(name) };
    let attributes = ask(shell, read_request::Op::Lookup(op)).await?.attr?;
    Some(InodeId(attributes.inode))
}

/// The name of a directory in the one above it.
async fn name_in(shell: &Arc<Shell>, parent: InodeId, directory: InodeId) -> Option<Bytes> {
    let mut after_cookie = 0;
    loop {
        let max_entries = PAGE_ENTRIES;
        let op = ReadDirectory { inode: parent.0, after_cookie, max_entries, with_attributes: false };
        let entries = ask(shell, read_request::Op::ReadDirectory(op)).await?.entries;
        after_cookie = entries.last()?.cookie;
        if let Some(entry) = entries.into_iter().find(|entry| entry.inode == directory.0) {
            return Some(entry.name);
        }
    }
}

async fn ask(shell: &Arc<Shell>, question: read_request::Op) -> Option<ReadResponse> {
    match shell.run(Call::Ask(question)).await {
        Ok(Answer::Read(response)) => Some(*response),
        _ => None,
    }
}
