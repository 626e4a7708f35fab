//! The note that a disk failed in a way that leaves open what is on it: a failed sync, a failed write. A disk with such a note
//! never serves under its id again, whatever it says of itself after a restart. It is written on the disk, and in its node's
//! directory, because a disk that just failed may not take it.

use std::io;
use std::path::PathBuf;

use holdfast_common::DiskId;
use holdfast_common::checksum::crc32c;
use holdfast_storage::Directory;

use super::fields::{FieldReader, FieldWriter};

/// Name of the note on the disk; in the node's directory the disk's id stands behind.
pub(crate) const FAILED_FILE: &str = "failed";
pub(crate) const FAILED_MAGIC: [u8; 4] = *b"HFfl";
/// Version of the format. Of one that is not known, that it is there says enough.
pub(crate) const FAILED_VERSION: u16 = 1;
const REASON_BYTES_MAX: usize = 1024;

#[must_use]
pub(crate) fn encode(disk: DiskId, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    let mut out = Vec::with_capacity(24 + reason.len());
    out.extend_from_slice(&FAILED_MAGIC);
    out.put_u16(FAILED_VERSION);
    out.put_u16(0);
    out.put_u64(disk.0);
    out.extend_from_slice(reason.as_bytes());
    let crc = crc32c(&out);
    out.put_u32(crc);
    out
}

/// The reason of a note; in general terms if the note itself is damaged.
fn reason(bytes: &[u8]) -> String {
    let body =
        bytes.split_at_checked(bytes.len().saturating_sub(4)).filter(|(body, crc)| crc32c(body).to_le_bytes() == **crc);
    let text = body.and_then(|(body, _)| {
        let mut fields = FieldReader::new(body);
        let known = fields.take(4)? == FAILED_MAGIC && fields.u16()? == FAILED_VERSION;
        let _ = (fields.u16()?, fields.u64()?);
        known.then(|| String::from_utf8_lossy(&body[16..]).into_owned())
    });
    text.unwrap_or_else(|| "the note of it is damaged".to_owned())
}

fn witness_file(disk: DiskId) -> String {
    format!("{FAILED_FILE}-{}", disk.0)
}

/// Places that may have a note: the disk, and its node's directory.
fn places<'a>(
    directory: &'a dyn Directory,
    witness: Option<&'a dyn Directory>,
    disk: DiskId,
) -> impl Iterator<Item = (&'a dyn Directory, String)> {
    let of_node = witness.map(|witness| (witness, witness_file(disk)));
    std::iter::once((directory, FAILED_FILE.to_owned())).chain(of_node)
}

/// Outcome of writing a note.
pub(super) struct Noted {
    /// A place has it.
    pub(super) is_taken: bool,
    /// Places that did not take it, and why.
    pub(super) refusals: Vec<(PathBuf, io::Error)>,
}

/// Writes the note wherever it can be written.
pub(super) fn note(directory: &dyn Directory, witness: Option<&dyn Directory>, disk: DiskId, reason: &str) -> Noted {
    let bytes = encode(disk, reason);
    let mut noted = Noted { is_taken: false, refusals: Vec::new() };
    for (place, name) in places(directory, witness, disk) {
        match place.replace(&name, &bytes) {
            Ok(()) => noted.is_taken = true,
            Err(error) => noted.refusals.push((place.path(&name), error)),
        }
    }
    noted
}

/// Reason in a note, if there is one.
///
/// # Errors
/// A directory cannot be read.
pub(super) fn find(
    directory: &dyn Directory,
    witness: Option<&dyn Directory>,
    disk: DiskId,
) -> io::Result<Option<String>> {
    for (place, name) in places(directory, witness, disk) {
        match place.read(&name) {
            Ok(bytes) => {
                // Whoever wrote it may have died before its name was durable.
                if let Err(error) = place.sync_names() {
                    tracing::error!(disk = disk.0, %error, "the note of a failure may not be durable");
                }
                return Ok(Some(reason(&bytes)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
