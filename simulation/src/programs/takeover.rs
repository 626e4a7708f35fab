//! A client writes a file and syncs it now and then. Once its session is lost, another client takes the file over, writes the whole
//! of it and syncs that: nothing that the former writer had on its way may come behind it (R22).

use holdfast_client::{Error, FileHandle, WriteAt};
use holdfast_common::{InodeId, Owner};

use super::{Desk, for_all};

/// Beginning of the files' names.
const NAME: &str = "mine-";
const SIZE: u64 = 6_000;
const READ_MAX: u32 = 1 << 16;
/// Longest pauses: between two writes, and between two looks for what can be taken over.
const WRITE_PAUSE_MS: u64 = 1_000;
const LOOK_PAUSE_MS: u64 = 1_500;
/// Pauses before a client makes another file, at most.
const LOST_PAUSES: u64 = 40;
/// Times that a file is read after it was taken over.
const LOOKS: usize = 4;
const SYNC_PERCENT: u64 = 30;

/// Runs until the programs are to stop.
pub(crate) async fn write_until_lost(mut desk: Desk) {
    while desk.goes_on() {
        if let Some((inode, handle)) = make(&mut desk).await {
            while write(&mut desk, inode, handle).await {
                desk.pause(WRITE_PAUSE_MS).await;
            }
            // Unflushed data may be lost, and the handle is told of it.
            let _ = desk.sync(handle).await;
            let _ = desk.fs.release(handle).await;
        }
        for _ in 0..desk.random.below(LOST_PAUSES) + 1 {
            if !desk.goes_on() {
                return;
            }
            desk.pause(LOOK_PAUSE_MS).await;
        }
    }
}

/// Makes a file. On an error nothing was begun.
async fn make(desk: &mut Desk) -> Option<(InodeId, FileHandle)> {
    // No other has this name: what a former life asked for cannot befall it.
    let name = format!("{NAME}{:x}", desk.random.bits());
    let losses = desk.lost_sessions();
    let made = desk.fs.create(InodeId::ROOT, name.as_bytes(), 0o644, Owner::ROOT, true, for_all()).await;
    let Ok((made, handle)) = made else {
        desk.truth().not_opened(desk.client);
        return None;
    };
    let there = {
        let mut truth = desk.truth();
        let there = truth.opened(made.inode, &desk.key, losses);
        if there {
            truth.closes(made.inode, desk.client);
            let session = truth.made_under.get(&made.inode).copied().unwrap_or_default();
            truth.takeovers.begin(made.inode, desk.client, session);
        }
        there
    };
    if !there {
        let _ = desk.fs.release(handle).await;
    }
    there.then_some((made.inode, handle))
}

/// Writes a part of the file. False if it is this client's no longer, or if the programs are to stop.
async fn write(desk: &mut Desk, inode: InodeId, handle: FileHandle) -> bool {
    if !desk.goes_on() || !desk.truth().write_own(inode, true) {
        return false;
    }
    let offset = desk.random.below(SIZE);
    let data = desk.pattern(SIZE - offset);
    // Whether it went well does not matter: whoever takes the file over writes all of it.
    let _ = desk.fs.write(handle, WriteAt::Offset(offset), data, false).await;
    let is_mine = desk.truth().write_own(inode, false);
    if is_mine && desk.random.chance(SYNC_PERCENT) {
        let _ = desk.fs.fsync(handle).await;
    }
    is_mine
}

/// Runs until the programs are to stop.
pub(crate) async fn take_over(mut desk: Desk) {
    while desk.goes_on() {
        desk.pause(LOOK_PAUSE_MS).await;
        let taken = desk.truth().take_over(desk.client);
        if let Some(inode) = taken {
            write_anew(&mut desk, inode).await;
            for _ in 0..LOOKS {
                desk.pause(LOOK_PAUSE_MS).await;
                // An error shows nothing.
                let _ = look(&desk, inode).await;
            }
        }
    }
}

async fn write_anew(desk: &mut Desk, inode: InodeId) {
    let losses_before = desk.lost_sessions();
    let content = desk.pattern(SIZE);
    let mut synced = false;
    if let Ok(handle) = desk.fs.open(inode, for_all()).await {
        let written = desk.fs.write(handle, WriteAt::Offset(0), content.clone(), false).await.is_ok();
        synced = desk.sync(handle).await.is_ok() && written;
        let _ = desk.fs.release(handle).await;
    }
    let is_known = synced && desk.lost_sessions() == losses_before;
    desk.truth().takeovers.taken(inode, is_known.then_some(content));
}

/// Reads a file that was taken over as somebody who opens it does.
async fn look(desk: &Desk, inode: InodeId) -> Result<(), Error> {
    let Some(wanted) = desk.truth().takeovers.content(inode) else { return Ok(()) };
    let handle = desk.fs.open(inode, for_all()).await?;
    let read = desk.fs.read(handle, 0, READ_MAX).await;
    desk.fs.release(handle).await?;
    let content = read?.concat();
    assert!(
        content == wanted,
        "inode {inode}: what a client had on its way when its session was lost came behind what its successor synced"
    );
    Ok(())
}

/// Reads every file that was taken over, when all is well.
pub(super) async fn audit_taken_over(desk: &Desk) {
    let settled = desk.truth().takeovers.settled();
    for inode in settled {
        look(desk, inode).await.unwrap_or_else(|error| panic!("inode {inode}: {error}"));
    }
}
