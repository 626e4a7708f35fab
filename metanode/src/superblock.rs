//! Small files of a metanode's directory that say what they are: magic, format version, length of the record, the
//! record (prost), CRC32C of all before; integers little-endian.

use holdfast_common::checksum::crc32c;
use holdfast_common::durable::replace_file;
use std::io;
use std::path::{Path, PathBuf};

/// The file that makes a directory a metanode's (`MetanodeSuperblock`).
pub(crate) const SUPERBLOCK: Kind = Kind { file: "superblock", magic: *b"HFMETA\0\n", version: 1 };
/// What the volume manager said last (`Neighbours`).
pub(crate) const NEIGHBOURS: Kind = Kind { file: "neighbours", magic: *b"HFNEIGH\n", version: 1 };
/// Longest record; a file is refused above. Ten thousand nodes take half of it.
const RECORD_BYTES_MAX: usize = 1 << 20;
const HEADER_BYTES: usize = 16;

/// Which file, and the newest format of it this program knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    file: &'static str,
    magic: [u8; 8],
    version: u32,
}

/// Why such a file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("{} is not formatted as a metanode's directory", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to something else.
    #[error("{} is the directory of another kind of node", path.display())]
    OtherKind {
        /// The directory.
        path: PathBuf,
    },
    /// Written by a newer program.
    #[error("{} has format version {found}, this program knows up to {known}: use a newer holdfast", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known one.
        known: u32,
    },
    /// It does not verify.
    #[error("the file {file} of {} is damaged", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// The file's name.
        file: &'static str,
    },
    /// It is there already.
    #[error("{} is formatted already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

pub(crate) fn exists(directory: &Path, kind: Kind) -> bool {
    directory.join(kind.file).exists()
}

pub(crate) fn read<M: prost::Message + Default>(directory: &Path, kind: Kind) -> Result<M, FileError> {
    let path = directory.to_owned();
    match std::fs::read(directory.join(kind.file)) {
        Ok(bytes) => decode(&bytes, path, kind),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(FileError::Missing { path }),
        Err(source) => Err(FileError::Io { path, source }),
    }
}

/// Durable when it returns.
pub(crate) fn write<M: prost::Message>(directory: &Path, kind: Kind, record: &M) -> Result<(), FileError> {
    replace_file(&directory.join(kind.file), &encode(kind, record))
        .map_err(|source| FileError::Io { path: directory.to_owned(), source })
}

fn encode<M: prost::Message>(kind: Kind, record: &M) -> Vec<u8> {
    let record = record.encode_to_vec();
    let length = u32::try_from(record.len()).expect("records are bounded by what a heartbeat's answer may hold");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + record.len() + 4);
    bytes.extend_from_slice(&kind.magic);
    bytes.extend_from_slice(&kind.version.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&record);
    let checksum = crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode<M: prost::Message + Default>(bytes: &[u8], path: PathBuf, kind: Kind) -> Result<M, FileError> {
    let damaged = |path| FileError::Damaged { path, file: kind.file };
    let word = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|word| u32::from_le_bytes(*word));
    if bytes.get(..8) != Some(&kind.magic[..]) {
        return Err(FileError::OtherKind { path });
    }
    // The version comes first: what follows is only known to a program that knows the version.
    let Some(found) = word(8) else { return Err(damaged(path)) };
    if found > kind.version {
        return Err(FileError::Newer { path, found, known: kind.version });
    }
    let length = word(12).and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= RECORD_BYTES_MAX);
    let Some(end) = length.map(|length| HEADER_BYTES + length).filter(|end| bytes.len() == end + 4) else {
        return Err(damaged(path));
    };
    if word(end) != Some(crc32c(&bytes[..end])) {
        return Err(damaged(path));
    }
    M::decode(&bytes[HEADER_BYTES..end]).map_err(|_| damaged(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::metanode::MetanodeSuperblock;

    #[test]
    fn a_superblock_reads_back_and_its_bytes_are_pinned() {
        let directory = tempfile::tempdir().unwrap();
        let record = MetanodeSuperblock { node: 5, generation: 3, ..MetanodeSuperblock::default() };
        write(directory.path(), SUPERBLOCK, &record).unwrap();
        assert_eq!(read::<MetanodeSuperblock>(directory.path(), SUPERBLOCK).unwrap(), record);
        let bytes = std::fs::read(directory.path().join("superblock")).unwrap();
        assert_eq!(bytes[..20], *b"HFMETA\0\n\x01\0\0\0\x04\0\0\0\x10\x05\x18\x03");
        assert_eq!(bytes.len(), 24);
    }

    #[test]
    fn missing_foreign_newer_and_damaged_files_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let read = || read::<MetanodeSuperblock>(path, SUPERBLOCK).unwrap_err();
        assert!(matches!(read(), FileError::Missing { .. }));
        let good = encode(SUPERBLOCK, &MetanodeSuperblock { node: 5, ..MetanodeSuperblock::default() });
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            std::fs::write(path.join("superblock"), &bad).unwrap();
            match index {
                0..8 => assert!(matches!(read(), FileError::OtherKind { .. }), "byte {index}"),
                // Version 1 with its lowest bit gone is version 0, and the checksum tells.
                8 => assert!(matches!(read(), FileError::Damaged { .. }), "byte {index}"),
                9..12 => assert!(matches!(read(), FileError::Newer { .. }), "byte {index}"),
                _ => assert!(matches!(read(), FileError::Damaged { .. }), "byte {index}"),
            }
        }
        for length in 8..good.len() {
            std::fs::write(path.join("superblock"), &good[..length]).unwrap();
            assert!(matches!(read(), FileError::Damaged { .. }), "length {length}");
        }
    }
}
