//! Snapshot files (docs/disk-format/log.md): a header that says whose state at which index, and a checksum over all.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use holdfast_common::checksum::{crc32c, crc32c_append};
use holdfast_common::{LogIndex, RaftGroupId, Term};

use crate::log::record::SnapshotMark;
use crate::machine::{Broken, Snapshot, StateMachine};
use crate::reserve::Reserve;
use crate::sabotage::Sabotage;
use holdfast_storage::{Cursor, Directory, DiskFile};

/// Version that is written; newer ones are refused.
pub(crate) const SNAPSHOT_VERSION: u32 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"HFSN");
/// Bytes of a header without its members and checksum.
const FIXED_BYTES: usize = 56;
const BUFFER_BYTES: usize = 256 << 10;

/// Raft group and time of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHeader {
    pub(crate) group: RaftGroupId,
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
}

/// Reason why a file is no usable snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    #[error("snapshot version {0} is newer than this program knows")]
    NewerVersion(u32),
    #[error("the state machine refused the snapshot: {0}")]
    Refused(Broken),
}

pub(crate) fn name(group: RaftGroupId, file: u64) -> String {
    format!("{:016x}-{file:016x}.snap", group.0)
}

/// Group and number of a file name.
pub(crate) fn parse_name(name: &str) -> Option<(RaftGroupId, u64)> {
    let (group, file) = name.strip_suffix(".snap")?.split_once('-')?;
    Some((RaftGroupId(u64::from_str_radix(group, 16).ok()?), u64::from_str_radix(file, 16).ok()?))
}

impl SnapshotHeader {
    fn encode(&self, payload_bytes: u64, payload_crc: u32) -> Vec<u8> {
        let members = self.voters.len() + self.learners.len();
        let length = FIXED_BYTES + 8 * members + 4;
        let mut header = Vec::with_capacity(length);
        header.put_u32_le(MAGIC);
        header.put_u32_le(SNAPSHOT_VERSION);
        header.put_u32_le(0); // required features: none yet
        header.put_u32_le(u32::try_from(length).expect("a group has few members"));
        for number in [self.group.0, self.index.0, self.term.0, payload_bytes] {
            header.put_u64_le(number);
        }
        header.put_u32_le(payload_crc);
        for list in [&self.voters, &self.learners] {
            header.put_u16_le(u16::try_from(list.len()).expect("a group has few members"));
        }
        self.voters.iter().chain(&self.learners).for_each(|id| header.put_u64_le(*id));
        let crc = crc32c(&header);
        header.put_u32_le(crc);
        header
    }
}

/// Description of the bytes behind a header.
struct Payload {
    offset: u64,
    bytes: u64,
    crc: u32,
}

fn read_header(file: &dyn DiskFile) -> Result<(SnapshotHeader, Payload), SnapshotError> {
    let mut fixed = [0; FIXED_BYTES];
    let n = file.read_at(0, &mut fixed)?;
    let mut from = &fixed[..];
    if n < FIXED_BYTES || from.get_u32_le() != MAGIC {
        return Err(SnapshotError::Damaged("no header"));
    }
    let (version, features, length) = (from.get_u32_le(), from.get_u32_le(), from.get_u32_le() as usize);
    let (group, index, term) = (RaftGroupId(from.get_u64_le()), LogIndex(from.get_u64_le()), Term(from.get_u64_le()));
    let bytes = from.get_u64_le();
    let (crc, voters, learners) = (from.get_u32_le(), from.get_u16_le(), from.get_u16_le());
    let members = usize::from(voters) + usize::from(learners);
    if length != FIXED_BYTES + 8 * members + 4 {
        return Err(SnapshotError::Damaged("length of its header"));
    }
    let mut header = vec![0; length];
    if file.read_at(0, &mut header)? < length {
        return Err(SnapshotError::Damaged("short header"));
    }
    let (body, checksum) = header.split_at(length - 4);
    if crc32c(body).to_le_bytes() != checksum {
        return Err(SnapshotError::Damaged("checksum of its header"));
    }
    if version > SNAPSHOT_VERSION || features != 0 {
        return Err(SnapshotError::NewerVersion(version.max(SNAPSHOT_VERSION + 1)));
    }
    let mut ids = &body[FIXED_BYTES..];
    let mut take = |count: u16| (0..count).map(|_| ids.get_u64_le()).collect::<Vec<_>>();
    let (voters, learners) = (take(voters), take(learners));
    Ok((SnapshotHeader { group, index, term, voters, learners }, Payload { offset: length as u64, bytes, crc }))
}

/// Sums up the bytes that pass through.
struct Summing<W> {
    inner: W,
    crc: u32,
    bytes: u64,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.crc = crc32c_append(self.crc, &bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a snapshot file; durable, name and all, when it returns its length.
pub(crate) fn write(
    disk: &dyn Directory,
    file: u64,
    header: &SnapshotHeader,
    state: &dyn Snapshot,
    sabotage: Sabotage,
) -> io::Result<u64> {
    let name = name(header.group, file);
    let handle = disk.create_empty(&name)?;
    let offset = header.encode(0, 0).len() as u64;
    let buffered = BufWriter::with_capacity(BUFFER_BYTES, Cursor::new(&*handle, offset));
    let mut summing = Summing { inner: buffered, crc: 0, bytes: 0 };
    state.write_to(&mut summing)?;
    summing.flush()?;
    let (bytes, crc) = (summing.bytes, summing.crc);
    drop(summing);
    handle.write_at(0, &header.encode(bytes, crc))?;
    make_durable(disk, &*handle, sabotage)?;
    Ok(offset + bytes)
}

pub(crate) fn make_durable(disk: &dyn Directory, file: &dyn DiskFile, sabotage: Sabotage) -> io::Result<()> {
    if sabotage == Sabotage::SnapshotUnsynced {
        return Ok(());
    }
    file.sync_data()?;
    disk.sync_names()
}

/// Checks every byte of a snapshot file; says what it is and how long.
pub(crate) fn verify(file: &dyn DiskFile) -> Result<(SnapshotHeader, u64), SnapshotError> {
    let (header, payload) = read_header(file)?;
    let total = payload.offset.checked_add(payload.bytes).ok_or(SnapshotError::Damaged("length"))?;
    if file.length_bytes()? != total {
        return Err(SnapshotError::Damaged("length"));
    }
    let mut from = Cursor::new(file, payload.offset).take(payload.bytes);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut crc = 0;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        crc = crc32c_append(crc, &buffer[..n]);
    }
    if crc == payload.crc { Ok((header, total)) } else { Err(SnapshotError::Damaged("checksum of its content")) }
}

/// Verifies a file and makes `machine`, which is fresh, its state.
pub(crate) fn restore<S: StateMachine>(
    file: &dyn DiskFile,
    machine: &mut S,
) -> Result<(SnapshotHeader, u64), SnapshotError> {
    let (header, total) = verify(file)?;
    let (_, payload) = read_header(file)?;
    let content = Cursor::new(file, payload.offset).take(payload.bytes);
    let mut from = io::BufReader::with_capacity(BUFFER_BYTES, content);
    machine.restore(&mut from).map_err(SnapshotError::Refused)?;
    Ok((header, total))
}

/// Makes `machine`, which is fresh, the current snapshot of a Raft group.
pub(crate) fn restore_current<S: StateMachine>(
    disk: &dyn Directory,
    group: RaftGroupId,
    mark: SnapshotMark,
    machine: &mut S,
) -> Result<(), SnapshotError> {
    let file = open_current(disk, group, mark)?;
    let (header, _) = restore(&*file, machine)?;
    is_of(&header, group, mark)
}

/// Whether the file of a group's current snapshot is whole.
pub(crate) fn verify_current(
    disk: &dyn Directory,
    group: RaftGroupId,
    mark: SnapshotMark,
) -> Result<(), SnapshotError> {
    let (header, _) = verify(&*open_current(disk, group, mark)?)?;
    is_of(&header, group, mark)
}

fn open_current(
    disk: &dyn Directory,
    group: RaftGroupId,
    mark: SnapshotMark,
) -> Result<Arc<dyn DiskFile>, SnapshotError> {
    disk.open(&name(group, mark.file)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SnapshotError::Damaged("its file is missing"),
        _ => error.into(),
    })
}

fn is_of(header: &SnapshotHeader, group: RaftGroupId, mark: SnapshotMark) -> Result<(), SnapshotError> {
    if (header.group, header.index, header.term) == (group, mark.index, mark.term) {
        Ok(())
    } else {
        Err(SnapshotError::Damaged("it is another snapshot"))
    }
}

/// Verifies the file of a snapshot that another node sent, restores it, and makes it durable before the log may name it
/// (R25).
pub(crate) fn receive<S: StateMachine>(
    disk: &dyn Directory,
    group: RaftGroupId,
    file: u64,
    mut machine: S,
    sabotage: Sabotage,
) -> Result<(SnapshotMark, S), SnapshotError> {
    let handle = disk.open(&name(group, file))?;
    let (header, bytes) = restore(&*handle, &mut machine)?;
    if header.group != group {
        return Err(SnapshotError::Damaged("it is another group's"));
    }
    make_durable(disk, &*handle, sabotage)?;
    Ok((SnapshotMark { index: header.index, term: header.term, file, bytes }, machine))
}

/// Writes a frozen state to the file of `mark`, on a full disk in the room that is kept for it. Says whether it is there, with
/// its length.
pub(crate) fn write_frozen(
    disk: &dyn Directory,
    reserve: &Reserve,
    header: &SnapshotHeader,
    mark: SnapshotMark,
    state: &dyn Snapshot,
    sabotage: Sabotage,
) -> (SnapshotMark, bool) {
    let group = header.group;
    let written = reserve.write(|| write(disk, mark.file, header, state, sabotage), || remove(disk, group, mark.file));
    match written {
        Ok(bytes) => (SnapshotMark { bytes, ..mark }, true),
        Err(error) => {
            tracing::error!(%group, index = mark.index.0, %error, "a snapshot could not be written; trying again later");
            remove(disk, group, mark.file);
            (mark, false)
        }
    }
}

/// Removes a snapshot file, if it is there. Its space is free only when its name is durably gone.
pub(crate) fn remove(disk: &dyn Directory, group: RaftGroupId, file: u64) {
    match disk.remove(&name(group, file)).and_then(|()| disk.sync_names()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%group, file, %error, "an old snapshot could not be removed; the next start will");
        }
        _ => {}
    }
}

/// Numbers of the snapshot files of a group.
pub(crate) fn files_of(disk: &dyn Directory, group: RaftGroupId) -> Vec<u64> {
    let names = disk.list().unwrap_or_default();
    let files = names.iter().filter_map(|name| parse_name(name));
    files.filter(|(owner, _)| *owner == group).map(|(_, file)| file).collect()
}

#[cfg(test)]
mod tests;
