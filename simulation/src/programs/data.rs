//! Data: each file has one holder at a time, who writes, truncates, punches, reads, syncs and closes it; then another.

use std::time::Duration;

use bytes::Bytes;
use holdfast_client::{Error, FallocateMode, FileHandle, SetAttributes, WriteAt};
use holdfast_common::{InodeId, Owner};

use super::Desk;
use super::names::for_all;
use crate::truth::files::Change;

/// Files that programs work on.
pub(crate) const FILES: usize = 4;
/// Largest file.
const SIZE_MAX: u64 = 150_000;
/// Most operations of one holder.
const TURNS_MAX: u64 = 12;
/// A write of at most this many bytes; some are longer than a shard's least size times the data shards.
const WRITE_MAX: u64 = 60_000;
const READ_MAX: u32 = 1 << 20;
/// Pause before what found no members or leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// An open file of a holder.
struct Held {
    file: usize,
    inode: InodeId,
    handle: FileHandle,
    /// Data was seen to be lost, and no fsync has said so yet.
    untold: bool,
}

pub(crate) fn file_name(file: usize) -> String {
    format!("file{file}")
}

/// Runs until the programs are to stop.
pub(crate) async fn work_on_files(mut desk: Desk) {
    while desk.goes_on() {
        let file = desk.random.index(FILES);
        if take(&desk, file) {
            hold(&mut desk, file).await;
        }
        desk.pause(80).await;
    }
}

fn take(desk: &Desk, file: usize) -> bool {
    let mut truth = desk.truth();
    let holder = &mut truth.files[file].holder;
    let free = holder.is_none();
    *holder = holder.or(Some(desk.client));
    free
}

/// Whether this mount has lost a session. When it learns that, and so what was written until then, only it knows.
fn has_lost_session(desk: &Desk) -> bool {
    desk.truth().losses_of(&desk.key) > desk.losses
}

async fn hold(desk: &mut Desk, file: usize) {
    let name = file_name(file);
    let opened = desk.fs.create(InodeId::ROOT, name.as_bytes(), 0o644, Owner::ROOT, false, for_all()).await;
    let Ok((made, handle)) = opened else {
        // Nothing was changed; the name may be there now.
        desk.truth().files[file].holder = None;
        return;
    };
    note(desk, file, format!("opened inode {}", made.inode));
    let mut held = Held { file, inode: made.inode, handle, untold: false };
    read(desk, &mut held, true).await;
    for _ in 0..desk.random.below(TURNS_MAX) + 1 {
        match desk.random.below(10) {
            0..=4 => write(desk, &held).await,
            5 => truncate(desk, &held).await,
            6 => punch(desk, &held).await,
            7..=8 => read(desk, &mut held, false).await,
            _ => sync(desk, &mut held).await,
        }
        desk.pause(60).await;
    }
    sync(desk, &mut held).await;
    let closed = desk.fs.flush(handle).await;
    let released = desk.fs.release(handle).await;
    note(desk, file, format!("closed: {closed:?}, {released:?}"));
    let mut truth = desk.truth();
    assert!(!held.untold, "{name}: data was lost, and no fsync said so");
    if closed.is_err() || released.is_err() {
        // Lost between the last fsync and the close: a handle that is gone hears of nothing more.
        truth.files[file].doubt();
    }
    truth.files[file].holder = None;
}

/// Bytes that tell where and when they were written.
fn pattern(desk: &mut Desk, length: u64) -> Bytes {
    let stamp = desk.random.bits();
    let byte = |at: u64| u8::try_from(stamp.wrapping_add(at.wrapping_mul(131)) >> 3 & 0xff).unwrap_or(0) | 1;
    (0..length).map(byte).collect::<Vec<u8>>().into()
}

async fn write(desk: &mut Desk, held: &Held) {
    let size = desk.truth().files[held.file].size() as u64;
    // Mostly inside the file or right behind it.
    let offset = if desk.random.chance(80) { desk.random.below(size + 1) } else { desk.random.below(SIZE_MAX) };
    let most = if desk.random.chance(70) { 6000 } else { WRITE_MAX };
    let length = (desk.random.below(most) + 1).min(SIZE_MAX - offset.min(SIZE_MAX - 1));
    let data = pattern(desk, length);
    intend(desk, held, Change::Write { offset: index(offset), data: data.clone() });
    let (fs, handle) = (desk.fs.clone(), held.handle);
    let writing = async move { fs.write(handle, WriteAt::Offset(offset), data, false).await };
    let outcome = desk.unless_interrupted(5, 500, writing).await;
    changed(desk, held, outcome.is_some_and(|outcome| outcome.is_ok()));
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

fn intend(desk: &Desk, held: &Held, change: Change) {
    note(desk, held.file, format!("intends {change}"));
    desk.truth().files[held.file].intends(change);
}

/// Notes what happened to a file, for whoever reads of a failure.
fn note(desk: &Desk, file: usize, what: String) {
    let mut truth = desk.truth();
    let (now_ms, client) = (truth.now / 1_000_000, desk.client);
    truth.files[file].note(format!("{now_ms} ms, client {client}: {what}"));
}

fn wrong(desk: &Desk, file: usize, why: &str) -> ! {
    let notes = desk.truth().files[file].notes();
    panic!("{}: {why}{notes}", file_name(file))
}

/// What was intended has happened, or may have.
fn changed(desk: &Desk, held: &Held, happened: bool) {
    note(desk, held.file, format!("happened: {happened}"));
    let mut truth = desk.truth();
    let file = &mut truth.files[held.file];
    if happened {
        file.did();
    } else {
        file.doubt();
    }
}

async fn truncate(desk: &mut Desk, held: &Held) {
    let size = desk.random.below(SIZE_MAX);
    intend(desk, held, Change::Resize(index(size)));
    let set = SetAttributes { size_bytes: Some(size), ..SetAttributes::default() };
    // A change whose answer did not come in time may still happen, but not behind the same change asked for again.
    while desk.fs.set_attributes(held.inode, set).await.is_err() {
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
    changed(desk, held, true);
}

async fn punch(desk: &mut Desk, held: &Held) {
    let (offset, length) = (desk.random.below(SIZE_MAX), desk.random.below(20_000) + 1);
    intend(desk, held, Change::Zero { offset: index(offset), length: index(length) });
    while desk.fs.fallocate(held.handle, offset, length, FallocateMode::PunchHole).await.is_err() {
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
    changed(desk, held, true);
}

/// Reads the whole file. `settled`: nothing that is pending can still come, because it was just opened or synced.
async fn read(desk: &mut Desk, held: &mut Held, settled: bool) {
    let Ok(pieces) = desk.fs.read(held.handle, 0, READ_MAX).await else { return };
    let content = pieces.concat();
    let lost = has_lost_session(desk);
    note(desk, held.file, format!("read {} bytes, settled: {settled}, session lost: {lost}", content.len()));
    let (doubtful, seen) = {
        let mut truth = desk.truth();
        let file = &mut truth.files[held.file];
        (file.is_doubtful(), file.seen(&content, settled))
    };
    let Err(why) = seen else { return };
    if doubtful || !lost {
        wrong(desk, held.file, &why);
    }
    // The session was lost with what was not committed; an fsync has to say so.
    held.untold = true;
    let possible = {
        let mut truth = desk.truth();
        truth.files[held.file].doubt();
        truth.files[held.file].seen(&content, false)
    };
    possible.unwrap_or_else(|why| wrong(desk, held.file, &format!("after a lost session: {why}")));
}

/// Syncs until it is known what became of everything.
async fn sync(desk: &mut Desk, held: &mut Held) {
    loop {
        let synced = desk.fs.fsync(held.handle).await;
        note(desk, held.file, format!("fsync: {synced:?}"));
        match synced {
            Ok(()) => {
                let doubtful = {
                    let mut truth = desk.truth();
                    truth.files[held.file].synced();
                    truth.files[held.file].is_doubtful()
                };
                if doubtful {
                    read(desk, held, true).await;
                }
                return;
            }
            Err(Error::TimedOut(_)) => {}
            Err(_) => {
                held.untold = false;
                let mut truth = desk.truth();
                truth.told_losses += 1;
                truth.files[held.file].doubt();
            }
        }
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
}

/// Reads every file when all is well, and compares it with what is known.
pub(crate) async fn audit(desk: &Desk) {
    for file in 0..FILES {
        let name = file_name(file);
        let Ok(found) = desk.fs.lookup(InodeId::ROOT, name.as_bytes()).await else { continue };
        let handle = desk.fs.open(found.inode, for_all()).await.expect("an open when all is well");
        let pieces = desk.fs.read(handle, 0, READ_MAX).await;
        let content = pieces.unwrap_or_else(|error| panic!("{name}: {error}")).concat();
        let seen = desk.truth().files[file].seen(&content, true);
        seen.unwrap_or_else(|why| wrong(desk, file, &format!("at the end: {why}")));
        desk.fs.release(handle).await.expect("a release when all is well");
    }
}
