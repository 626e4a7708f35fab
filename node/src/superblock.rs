//! The small file that says what a directory is (R28): magic, format version, a record, a checksum. Others than superblocks are
//! framed the same way. Readable by their owner only: some hold the cluster's secret.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic, by kind |
//! | 4 | format version, little-endian: raised when older programs must keep off |
//! | 4 | length of the record, little-endian |
//! | n | the record, prost |
//! | 4 | CRC32C of all before, little-endian |

use std::io;
use std::path::{Path, PathBuf};

use holdfast_common::checksum::crc32c;
use holdfast_storage::replace_file;

/// A superblock's name in its directory.
pub const FILE_NAME: &str = "superblock";
/// Name of its second copy, where a kind has one.
pub const SECOND_NAME: &str = "superblock-copy";
/// Longest record of a superblock.
const SUPERBLOCK_RECORD_BYTES_MAX: usize = 64 << 10;
const HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;

/// A kind of file: its name and format in one kind of directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Name of the file in its directory.
    pub file: &'static str,
    /// The name of its second copy, if it has one: written first, read when the file itself is unreadable or older.
    pub second: Option<&'static str>,
    /// First bytes of the file.
    pub magic: [u8; 8],
    /// Newest known format version.
    pub version: u32,
    /// Longest record that is read: a longer one is damage.
    pub record_bytes_max: usize,
    /// The directory's kind, as errors tell it to people.
    pub name: &'static str,
}

impl Kind {
    /// A superblock of version 1.
    #[must_use]
    pub const fn superblock(magic: [u8; 8], name: &'static str) -> Self {
        let record_bytes_max = SUPERBLOCK_RECORD_BYTES_MAX;
        Self { file: FILE_NAME, second: None, magic, version: 1, record_bytes_max, name }
    }

    /// The same kind with a second copy, so that one bad sector does not take the directory.
    #[must_use]
    pub const fn with_second_copy(self) -> Self {
        Self { second: Some(SECOND_NAME), ..self }
    }
}

/// Reason why a superblock could not be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum SuperblockError {
    /// There is none.
    #[error("{} is not formatted as {name}", path.display())]
    NotFormatted {
        path: PathBuf,
        /// Kind that was expected.
        name: &'static str,
    },
    /// There is one of another kind.
    #[error("{} is not {name}: its {file} is of another kind", path.display())]
    OtherKind {
        path: PathBuf,
        /// Kind that was expected.
        name: &'static str,
        file: &'static str,
    },
    /// Written by a newer program.
    #[error("{} has format version {found}, this program knows up to {known}: use a newer holdfast", path.display())]
    Newer {
        path: PathBuf,
        found: u32,
        /// Newest version that this program knows.
        known: u32,
    },
    /// It does not verify.
    #[error("the {file} of {} is damaged", path.display())]
    Damaged { path: PathBuf, file: &'static str },
    /// There is one already.
    #[error("{} is formatted already", path.display())]
    Exists { path: PathBuf },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

impl SuperblockError {
    /// A directory whose superblock verifies and yet makes no sense.
    #[must_use]
    pub fn damaged(path: &Path) -> Self {
        Self::Damaged { path: path.to_owned(), file: FILE_NAME }
    }
}

/// Whether the directory has a superblock, of whatever kind.
#[must_use]
pub fn exists(directory: &Path) -> bool {
    [FILE_NAME, SECOND_NAME].iter().any(|name| directory.join(name).exists())
}

/// Refuses to format what is formatted.
///
/// # Errors
/// [`SuperblockError::Exists`].
pub fn must_not_exist(directory: &Path) -> Result<(), SuperblockError> {
    if exists(directory) { Err(SuperblockError::Exists { path: directory.to_owned() }) } else { Ok(()) }
}

/// Reads a directory's record.
///
/// # Errors
/// [`SuperblockError`].
pub fn read<M: prost::Message + Default>(directory: &Path, kind: Kind) -> Result<M, SuperblockError> {
    read_newest(directory, kind, |_| ())
}

/// Reads a directory's record: of its valid copies the one that `age` puts last.
///
/// # Errors
/// [`SuperblockError`]: no copy is valid, or one is of a newer program.
pub fn read_newest<M: prost::Message + Default, K: Ord>(
    directory: &Path,
    kind: Kind,
    age: impl Fn(&M) -> K,
) -> Result<M, SuperblockError> {
    // Of equals the last one counts: the file itself.
    let files = kind.second.into_iter().chain([kind.file]);
    let (mut valid, mut problem) = (Vec::new(), None);
    for file in files {
        match read_one(directory, file, kind) {
            Ok(record) => valid.push(record),
            // Rot in the version says so too; then the other copy knows better.
            Err(newer @ SuperblockError::Newer { .. }) if ends_in_its_checksum(directory, file) => return Err(newer),
            // That a copy is missing says less than that one is damaged.
            Err(SuperblockError::NotFormatted { .. }) if problem.is_some() => {}
            Err(error) => problem = Some(error),
        }
    }
    let found = valid.into_iter().max_by_key(|record| age(record));
    match (found, problem) {
        (Some(record), Some(SuperblockError::NotFormatted { .. }) | None) => Ok(record),
        (Some(record), Some(error)) => {
            tracing::error!(%error, "the other copy of this superblock is used; look after the disk");
            Ok(record)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(SuperblockError::NotFormatted { path: directory.to_owned(), name: kind.name }),
    }
}

/// Whether a file of whatever version is whole, as far as one can tell that does not know the version.
fn ends_in_its_checksum(directory: &Path, file: &str) -> bool {
    let bytes = std::fs::read(directory.join(file)).unwrap_or_default();
    let parts = bytes.split_at_checked(bytes.len().saturating_sub(CHECKSUM_BYTES));
    parts.is_some_and(|(covered, checksum)| crc32c(covered).to_le_bytes() == checksum)
}

fn read_one<M: prost::Message + Default>(
    directory: &Path,
    file: &'static str,
    kind: Kind,
) -> Result<M, SuperblockError> {
    let path = directory.to_owned();
    let bytes = match std::fs::read(directory.join(file)) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(SuperblockError::NotFormatted { path, name: kind.name });
        }
        Err(source) => return Err(SuperblockError::Io { path, source }),
    };
    decode(&bytes, kind).map_err(|problem| match problem {
        Problem::OtherKind => SuperblockError::OtherKind { path, name: kind.name, file },
        Problem::Newer(found) => SuperblockError::Newer { path, found, known: kind.version },
        Problem::Damaged => SuperblockError::Damaged { path, file },
    })
}

/// Writes a directory's record, the second copy first; durable when it returns.
///
/// # Errors
/// [`SuperblockError::Io`]; the old record then stands, or both do.
pub fn write<M: prost::Message>(directory: &Path, kind: Kind, record: &M) -> Result<(), SuperblockError> {
    let bytes = encode(kind, record);
    for file in kind.second.into_iter().chain([kind.file]) {
        replace_file(&directory.join(file), &bytes)
            .map_err(|source| SuperblockError::Io { path: directory.to_owned(), source })?;
    }
    Ok(())
}

enum Problem {
    OtherKind,
    Newer(u32),
    Damaged,
}

fn encode<M: prost::Message>(kind: Kind, record: &M) -> Vec<u8> {
    let record = record.encode_to_vec();
    let length = u32::try_from(record.len()).expect("records are bounded by what a heartbeat's answer may hold");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + record.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(&kind.magic);
    bytes.extend_from_slice(&kind.version.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&record);
    let checksum = crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode<M: prost::Message + Default>(bytes: &[u8], kind: Kind) -> Result<M, Problem> {
    let word = |at: usize| -> Option<u32> {
        bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(u32::from_le_bytes)
    };
    let Some(magic) = bytes.first_chunk::<8>() else { return Err(Problem::Damaged) };
    if *magic != kind.magic {
        return Err(Problem::OtherKind);
    }
    // The version comes first: what follows it is only known to a program that knows the version.
    let version = word(8).ok_or(Problem::Damaged)?;
    if version > kind.version {
        return Err(Problem::Newer(version));
    }
    let length = word(12).and_then(|l| usize::try_from(l).ok()).ok_or(Problem::Damaged)?;
    if length > kind.record_bytes_max || bytes.len() != HEADER_BYTES + length + CHECKSUM_BYTES {
        return Err(Problem::Damaged);
    }
    let (covered, _) = bytes.split_at(HEADER_BYTES + length);
    if word(covered.len()) != Some(crc32c(covered)) {
        return Err(Problem::Damaged);
    }
    M::decode(&covered[HEADER_BYTES..]).map_err(|_| Problem::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::cluster::VolmgrSuperblock;
    use std::os::unix::fs::PermissionsExt;

    const KIND: Kind = Kind::superblock(*b"HFTESTS1", "a test directory");

    fn record() -> VolmgrSuperblock {
        VolmgrSuperblock { cluster: vec![7; 16].into(), generation: 3, ..VolmgrSuperblock::default() }
    }

    #[test]
    fn a_superblock_reads_back_and_its_bytes_are_pinned() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), KIND, &record()).unwrap();
        assert_eq!(read::<VolmgrSuperblock>(dir.path(), KIND).unwrap(), record());
        let bytes = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        let mut expected = b"HFTESTS1\x01\0\0\0\x14\0\0\0\x0a\x10".to_vec();
        expected.extend_from_slice(&[7; 16]);
        expected.extend_from_slice(b"\x10\x03");
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), expected.len() + 4);
        let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it may hold the cluster's secret");
    }

    #[test]
    fn missing_foreign_newer_and_damaged_superblocks_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let read = |kind| read::<VolmgrSuperblock>(path, kind).unwrap_err();
        assert!(matches!(read(KIND), SuperblockError::NotFormatted { .. }));
        write(path, KIND, &record()).unwrap();
        assert!(matches!(read(Kind { magic: *b"HFOTHER1", ..KIND }), SuperblockError::OtherKind { .. }));
        write(path, Kind { version: 2, ..KIND }, &record()).unwrap();
        let newer = read(KIND);
        assert!(matches!(newer, SuperblockError::Newer { found: 2, known: 1, .. }));
        assert!(newer.to_string().contains("has format version 2, this program knows up to 1"), "{newer}");
        let good = encode(KIND, &record());
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            std::fs::write(path.join(FILE_NAME), &bad).unwrap();
            let error = read(KIND);
            match index {
                0..8 => assert!(matches!(error, SuperblockError::OtherKind { .. }), "byte {index}"),
                // Version 1 with its lowest bit gone is version 0, and the checksum tells.
                8 => assert!(matches!(error, SuperblockError::Damaged { .. }), "byte {index}"),
                9..12 => assert!(matches!(error, SuperblockError::Newer { .. }), "byte {index}"),
                _ => assert!(matches!(error, SuperblockError::Damaged { .. }), "byte {index}"),
            }
        }
        for length in 0..good.len() {
            std::fs::write(path.join(FILE_NAME), &good[..length]).unwrap();
            assert!(matches!(read(KIND), SuperblockError::Damaged { .. }), "length {length}");
        }
    }

    #[test]
    fn either_copy_stands_in_for_the_other_and_the_newer_one_counts() {
        const KIND: Kind = Kind::superblock(*b"HFTESTS1", "a test directory").with_second_copy();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let read = || read_newest::<VolmgrSuperblock, _>(path, KIND, |record| record.generation);
        write(path, KIND, &record()).unwrap();
        let good = std::fs::read(path.join(FILE_NAME)).unwrap();
        assert_eq!(std::fs::read(path.join(SECOND_NAME)).unwrap(), good);
        for (bad, other) in [(FILE_NAME, SECOND_NAME), (SECOND_NAME, FILE_NAME)] {
            std::fs::write(path.join(bad), b"HFTESTS1 is damaged").unwrap();
            assert_eq!(read().unwrap(), record());
            std::fs::remove_file(path.join(bad)).unwrap();
            assert_eq!(read().unwrap(), record());
            assert!(exists(path));
            // A crash between the two writes.
            let newer = VolmgrSuperblock { generation: 4, ..record() };
            std::fs::write(path.join(bad), encode(KIND, &newer)).unwrap();
            assert_eq!(read().unwrap(), newer);
            std::fs::write(path.join(other), &good[..20]).unwrap();
            std::fs::write(path.join(bad), &good[..20]).unwrap();
            assert!(matches!(read(), Err(SuperblockError::Damaged { .. })));
            write(path, KIND, &record()).unwrap();
        }
        // As f335d94 left it.
        std::fs::remove_file(path.join(SECOND_NAME)).unwrap();
        assert_eq!(read().unwrap(), record());
        std::fs::write(path.join(SECOND_NAME), encode(Kind { version: 2, ..KIND }, &record())).unwrap();
        assert!(matches!(read(), Err(SuperblockError::Newer { .. })));
    }
}
