//! Data: each file has one holder at a time, who writes, truncates, punches, reads, syncs and closes it; then another. Meanwhile
//! its name may be taken away, or led to another file, and the other client may truncate it.

use std::time::Duration;

use holdfast_client::{Error, FallocateMode, FileHandle, SetAttributes, WriteAt};
use holdfast_common::{InodeId, Owner};
use holdfast_proto::meta::Code;

use super::remove::remove;
use super::takeover::audit_taken_over;
use super::{Desk, RETRY_PAUSE, for_all};
use crate::truth::files::Change;

/// Names of files that programs work on.
pub(crate) const FILES: [&str; 4] = ["file0", "file1", "file2", "file3"];
/// Largest file.
const SIZE_MAX: u64 = 150_000;
/// Most operations of one holder.
const TURNS_MAX: u64 = 12;
/// A write of at most this many bytes; some are longer than a shard's least size times the data shards.
const WRITE_MAX: u64 = 60_000;
const READ_MAX: u32 = 1 << 20;
/// A read beside a sync begins within this.
const READER_DELAY_US_MAX: u64 = 20_000;

/// An open file of a holder.
struct Held {
    name: &'static str,
    inode: InodeId,
    handle: FileHandle,
    /// Data was seen to be lost, and no fsync has said so yet.
    untold: bool,
    /// The session was lost, and with it the inode, which had no name: nothing works on it any more.
    gone: bool,
}

/// Runs until the programs are to stop.
pub(crate) async fn work_on_files(mut desk: Desk) {
    while desk.goes_on() {
        let name = FILES[desk.random.index(FILES.len())];
        hold(&mut desk, name).await;
        desk.pause(80).await;
    }
}

/// Whether this mount has lost a session. When it learns that, and so what was written until then, only it knows.
fn has_lost_session(desk: &Desk) -> bool {
    desk.lost_sessions() > desk.losses
}

/// Whether data that was taken in may be lost: with a session, or for want of space. An fsync has to say so.
fn may_have_lost(desk: &Desk) -> bool {
    has_lost_session(desk) || desk.truth().room.may_run_out
}

/// Opens a file, makes it if it is not there, and works on it if nobody else does.
async fn hold(desk: &mut Desk, name: &'static str) {
    let losses = desk.lost_sessions();
    let opened = desk.fs.create(InodeId::ROOT, name.as_bytes(), 0o644, Owner::ROOT, false, for_all()).await;
    // On an error nothing was changed; the name may be there now.
    let Ok((made, handle)) = opened else { return desk.truth().not_opened(desk.client) };
    let inode = made.inode;
    let (there, mine) = {
        let mut truth = desk.truth();
        let there = truth.opened(inode, &desk.key, losses);
        (there, there && truth.files.take(inode, desk.client))
    };
    if mine {
        work_alone(desk, name, inode).await;
    }
    if there {
        desk.truth().closes(inode, desk.client);
    }
    // Another program's data may be flushed; whether that goes well it is told.
    let _ = desk.fs.release(handle).await;
}

/// Opens a file again that nobody else works on from now on: what the last one closed is seen only by who opens it after that.
async fn work_alone(desk: &mut Desk, name: &'static str, inode: InodeId) {
    let opened = desk.fs.open(inode, for_all()).await;
    let mut held = Held { name, inode, handle: FileHandle(0), untold: false, gone: false };
    match opened {
        Ok(handle) => {
            note(desk, inode, format!("opened {name}"));
            held.handle = handle;
            work(desk, &mut held).await;
            close(desk, &held).await;
        }
        Err(error) => failed(desk, &mut held, &error),
    }
    desk.truth().files.let_go(inode);
}

async fn work(desk: &mut Desk, held: &mut Held) {
    let known = !desk.truth().files.file(held.inode).is_doubtful();
    if known && desk.random.chance(50) {
        write(desk, held).await;
        sync_beside_reader(desk, held).await;
    } else {
        read(desk, held, true).await;
    }
    for _ in 0..desk.random.below(TURNS_MAX) + 1 {
        if held.gone {
            return;
        }
        match desk.random.below(20) {
            0..=9 => write(desk, held).await,
            10..=11 => truncate(desk, held).await,
            12..=13 => punch(desk, held).await,
            14..=16 => read(desk, held, false).await,
            17 => remove(desk, InodeId::ROOT, held.name, false).await,
            _ => sync(desk, held).await,
        }
        desk.pause(60).await;
    }
    if !held.gone {
        sync(desk, held).await;
    }
}

async fn close(desk: &mut Desk, held: &Held) {
    let closed = desk.fs.flush(held.handle).await;
    let released = desk.fs.release(held.handle).await;
    note(desk, held.inode, format!("closed: {closed:?}, {released:?}"));
    assert!(!held.untold || held.gone, "{}: data was lost, and no fsync said so", held.inode);
    if closed.is_err() || released.is_err() {
        // Lost between the last fsync and the close: a handle that is gone hears of nothing more.
        desk.truth().files.file(held.inode).doubt();
    }
}

/// An operation on an open file failed. That the file is not there is never why, unless the session was lost.
fn failed(desk: &Desk, held: &mut Held, error: &Error) {
    if !matches!(error, Error::Refused { code: Code::NotFound | Code::Stale, .. }) {
        return;
    }
    if !has_lost_session(desk) {
        wrong(desk, held.inode, &format!("it is open, and is gone: {error}"));
    }
    held.gone = true;
}

async fn write(desk: &mut Desk, held: &Held) {
    let size = desk.truth().files.file(held.inode).size() as u64;
    // Mostly inside the file or right behind it.
    let offset = if desk.random.chance(80) { desk.random.below(size + 1) } else { desk.random.below(SIZE_MAX) };
    let most = if desk.random.chance(70) { 6000 } else { WRITE_MAX };
    let length = (desk.random.below(most) + 1).min(SIZE_MAX - offset.min(SIZE_MAX - 1));
    let data = desk.pattern(length);
    intend(desk, held, Change::Write { offset: index(offset), data: data.clone() });
    let (fs, handle) = (desk.fs.clone(), held.handle);
    let writing = async move { fs.write(handle, WriteAt::Offset(offset), data, false).await };
    let outcome = desk.unless_interrupted(5, 500, writing).await;
    desk.truth().over_quota += u64::from(matches!(outcome, Some(Err(Error::Quota))));
    changed(desk, held, outcome.is_some_and(|outcome| outcome.is_ok()));
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

fn intend(desk: &Desk, held: &Held, change: Change) {
    note(desk, held.inode, format!("intends {change}"));
    desk.truth().files.file(held.inode).intends(change);
}

/// Notes what happened to a file, for whoever reads of a failure.
fn note(desk: &Desk, inode: InodeId, what: String) {
    let mut truth = desk.truth();
    let (now_ms, client) = (truth.now / 1_000_000, desk.client);
    truth.files.file(inode).note(format!("{now_ms} ms, client {client}: {what}"));
}

fn wrong(desk: &Desk, inode: InodeId, why: &str) -> ! {
    let notes = desk.truth().files.file(inode).notes();
    panic!("inode {inode}: {why}{notes}")
}

/// Settles an intended change: it has happened, or may have.
fn changed(desk: &Desk, held: &Held, happened: bool) {
    note(desk, held.inode, format!("happened: {happened}"));
    let mut truth = desk.truth();
    let file = truth.files.file(held.inode);
    if happened {
        file.did();
    } else {
        file.doubt();
    }
}

async fn truncate(desk: &mut Desk, held: &mut Held) {
    let size = desk.random.below(SIZE_MAX);
    intend(desk, held, Change::Resize(index(size)));
    let set = SetAttributes { size_bytes: Some(size), ..SetAttributes::default() };
    // A change whose answer did not come in time may still happen, but not behind the same change asked for again.
    while let Err(error) = desk.fs.set_attributes(held.inode, set).await {
        failed(desk, held, &error);
        if held.gone {
            return;
        }
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
    changed(desk, held, true);
}

async fn punch(desk: &mut Desk, held: &mut Held) {
    let (offset, length) = (desk.random.below(SIZE_MAX), desk.random.below(20_000) + 1);
    intend(desk, held, Change::Zero { offset: index(offset), length: index(length) });
    while let Err(error) = desk.fs.fallocate(held.handle, offset, length, FallocateMode::PunchHole).await {
        failed(desk, held, &error);
        if held.gone {
            return;
        }
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
    changed(desk, held, true);
}

/// Reads the whole file. `settled`: nothing that is pending can still come, because it was just opened or synced.
async fn read(desk: &mut Desk, held: &mut Held, settled: bool) {
    let pieces = match desk.fs.read(held.handle, 0, READ_MAX).await {
        Ok(pieces) => pieces,
        Err(error) => return failed(desk, held, &error),
    };
    let content = pieces.concat();
    let lost = may_have_lost(desk);
    note(desk, held.inode, format!("read {} bytes, settled: {settled}, may be lost: {lost}", content.len()));
    let (doubtful, seen) = {
        let mut truth = desk.truth();
        let file = truth.files.file(held.inode);
        (file.is_doubtful(), file.seen(&content, settled))
    };
    let Err(why) = seen else { return };
    if doubtful || !lost {
        wrong(desk, held.inode, &why);
    }
    held.untold = true;
    let possible = {
        let mut truth = desk.truth();
        let file = truth.files.file(held.inode);
        file.doubt();
        file.seen(&content, false)
    };
    possible.unwrap_or_else(|why| wrong(desk, held.inode, &format!("after a loss: {why}")));
}

/// Syncs until everything is durable, or is known to be lost and was told.
async fn sync(desk: &mut Desk, held: &mut Held) {
    loop {
        let synced = desk.sync(held.handle).await;
        note(desk, held.inode, format!("fsync: {synced:?}"));
        match synced {
            Ok(()) => {
                let doubtful = {
                    let mut truth = desk.truth();
                    let file = truth.files.file(held.inode);
                    file.synced();
                    file.is_doubtful()
                };
                if doubtful {
                    read(desk, held, true).await;
                }
                return;
            }
            Err(error) => {
                held.untold = false;
                let is_allowed = error != Error::NoSpace || desk.truth().room.may_run_out;
                assert!(is_allowed, "{}: given up for want of space, and enough disks have room", held.inode);
                let mut truth = desk.truth();
                truth.told_losses += 1;
                truth.files.file(held.inode).doubt();
            }
        }
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
}

/// Syncs while the file is read: the answer that tells the reader where its bytes are may come behind that to the commit.
async fn sync_beside_reader(desk: &mut Desk, held: &mut Held) {
    let (reader, inode, handle) = (desk.clone(), held.inode, held.handle);
    let losses = desk.lost_sessions();
    let delay = Duration::from_micros(desk.random.below(READER_DELAY_US_MAX));
    let reading = async {
        reader.runtime.sleep(delay).await;
        let Ok(pieces) = reader.fs.read(handle, 0, READ_MAX).await else { return };
        note(&reader, inode, "read beside a sync".to_owned());
        let seen = {
            let mut truth = reader.truth();
            let file = truth.files.file(inode);
            if file.is_doubtful() { Ok(()) } else { file.seen(&pieces.concat(), false) }
        };
        match seen {
            Err(why) if reader.lost_sessions() == losses && !reader.truth().room.may_run_out => {
                wrong(&reader, inode, &format!("beside a sync: {why}"))
            }
            _ => {}
        }
    };
    tokio::join!(sync(desk, held), reading);
}

/// Truncates a file that the other client holds, as that one's partner might. What the holder has written and not flushed is
/// written anew behind it (R9).
pub(super) async fn meddle(desk: &mut Desk) {
    // O_TRUNC, or truncate(2).
    let size = if desk.random.chance(40) { 0 } else { desk.random.below(SIZE_MAX) };
    let Some(inode) = desk.truth().files.meddle(desk.client, index(size)) else { return };
    note(desk, inode, format!("truncates it to {size} under its holder"));
    let set = SetAttributes { size_bytes: Some(size), ..SetAttributes::default() };
    while let Err(error) = desk.fs.set_attributes(inode, set).await {
        if matches!(error, Error::Refused { code: Code::NotFound | Code::Stale, .. }) {
            // It was closed meanwhile, and had no name.
            break;
        }
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
    note(desk, inode, "has truncated it".to_owned());
    let mut truth = desk.truth();
    truth.meddled += 1;
    truth.files.meddled(inode);
}

/// Reads every file when all is well, and compares it with what is known.
pub(crate) async fn audit(desk: &Desk) {
    for name in FILES {
        let Ok(found) = desk.fs.lookup(InodeId::ROOT, name.as_bytes()).await else { continue };
        let handle = desk.fs.open(found.inode, for_all()).await.expect("an open when all is well");
        let pieces = desk.fs.read(handle, 0, READ_MAX).await;
        let content = pieces.unwrap_or_else(|error| panic!("{name}: {error}")).concat();
        let seen = desk.truth().files.file(found.inode).seen(&content, true);
        seen.unwrap_or_else(|why| wrong(desk, found.inode, &format!("at the end: {why}")));
        desk.fs.release(handle).await.expect("a release when all is well");
    }
    audit_taken_over(desk).await;
}
