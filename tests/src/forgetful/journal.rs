//! What the preloaded library writes down, one record a `write(2)`, so that a process killed in between leaves at most one
//! torn record, of something that did not happen.
//!
//! A record is its length in bytes after this field (u32), its kind (u8), and its fields; numbers are little-endian u64,
//! byte strings are preceded by their length.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A file or directory; all are on one file system, and no number is used twice while a journal lives.
pub type Inode = u64;

/// What was in a range before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// That many zeros.
    Zeros(u64),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Before {
    /// Remembers bytes, shortly if they are all zero.
    #[must_use]
    pub fn of(bytes: Vec<u8>) -> Self {
        if bytes.iter().all(|byte| *byte == 0) { Self::Zeros(bytes.len() as u64) } else { Self::Bytes(bytes) }
    }

    /// How many bytes.
    ///
    /// # Panics
    /// If they would not fit in memory.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Zeros(length) => usize::try_from(*length).expect("a range of a file under test"),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// A part of them, which is inside.
    #[must_use]
    pub fn part(&self, from: usize, length: usize) -> Vec<u8> {
        match self {
            Self::Zeros(_) => vec![0; length],
            Self::Bytes(bytes) => bytes[from..from + length].to_vec(),
        }
    }
}

/// Something about to happen, or a sync that has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Content or length of a file changes. The range is whole sectors; past the old end it was zeros.
    Changes {
        /// The file.
        file: Inode,
        /// Its length before.
        length: u64,
        /// Where the range starts.
        offset: u64,
        /// What was there.
        before: Before,
    },
    /// A name appears.
    Creates {
        /// Where.
        directory: Inode,
        /// The name.
        name: OsString,
    },
    /// A name goes.
    Removes {
        /// Where.
        directory: Inode,
        /// The name.
        name: OsString,
        /// The name its file is kept under, beside the journal.
        held: OsString,
    },
    /// A name becomes another one of the same directory.
    Renames {
        /// Where.
        directory: Inode,
        /// The old name.
        from: OsString,
        /// The new one.
        to: OsString,
        /// What the replaced file is kept under; empty if nothing was replaced.
        held: OsString,
    },
    /// Everything of this file or directory that this process had written down before its record number `up_to`, and
    /// everything that earlier processes had, is durable.
    Synced {
        /// The file or directory.
        file: Inode,
        /// A count of records.
        up_to: u64,
    },
}

const CHANGES_FROM_ZEROS: u8 = 1;
const CHANGES_FROM_BYTES: u8 = 2;
const CREATES: u8 = 3;
const REMOVES: u8 = 4;
const RENAMES: u8 = 5;
const SYNCED: u8 = 6;

impl Record {
    /// The record's bytes.
    ///
    /// # Panics
    /// If it is larger than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out(vec![0; 4]);
        match self {
            Self::Changes { file, length, offset, before: Before::Zeros(count) } => {
                out.kind(CHANGES_FROM_ZEROS).numbers(&[*file, *length, *offset, *count]);
            }
            Self::Changes { file, length, offset, before: Before::Bytes(bytes) } => {
                out.kind(CHANGES_FROM_BYTES).numbers(&[*file, *length, *offset]).bytes(bytes);
            }
            Self::Creates { directory, name } => {
                out.kind(CREATES).numbers(&[*directory]).bytes(name.as_bytes());
            }
            Self::Removes { directory, name, held } => {
                out.kind(REMOVES).numbers(&[*directory]).bytes(name.as_bytes()).bytes(held.as_bytes());
            }
            Self::Renames { directory, from, to, held } => {
                let names = out.kind(RENAMES).numbers(&[*directory]);
                names.bytes(from.as_bytes()).bytes(to.as_bytes()).bytes(held.as_bytes());
            }
            Self::Synced { file, up_to } => {
                out.kind(SYNCED).numbers(&[*file, *up_to]);
            }
        }
        let length = u32::try_from(out.0.len() - 4).expect("a record is small");
        out.0[..4].copy_from_slice(&length.to_le_bytes());
        out.0
    }

    /// All whole records of a journal.
    ///
    /// # Panics
    /// If a whole record is not one.
    #[must_use]
    pub fn decode_all(mut journal: &[u8]) -> Vec<Self> {
        let mut records = Vec::new();
        while let Some((length, rest)) = journal.split_first_chunk::<4>() {
            let Some((record, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
            records.push(Self::decode(record).expect("the journal holds records"));
            journal = rest;
        }
        records
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let (kind, rest) = record.split_first()?;
        let mut fields = Fields(rest);
        Some(match *kind {
            CHANGES_FROM_ZEROS => {
                let (file, length, offset) = (fields.number()?, fields.number()?, fields.number()?);
                Self::Changes { file, length, offset, before: Before::Zeros(fields.number()?) }
            }
            CHANGES_FROM_BYTES => {
                let (file, length, offset) = (fields.number()?, fields.number()?, fields.number()?);
                Self::Changes { file, length, offset, before: Before::Bytes(fields.bytes()?) }
            }
            CREATES => Self::Creates { directory: fields.number()?, name: fields.name()? },
            REMOVES => Self::Removes { directory: fields.number()?, name: fields.name()?, held: fields.name()? },
            RENAMES => {
                let directory = fields.number()?;
                Self::Renames { directory, from: fields.name()?, to: fields.name()?, held: fields.name()? }
            }
            SYNCED => Self::Synced { file: fields.number()?, up_to: fields.number()? },
            _ => return None,
        })
    }
}

struct Out(Vec<u8>);

impl Out {
    fn kind(&mut self, kind: u8) -> &mut Self {
        self.0.push(kind);
        self
    }

    fn numbers(&mut self, numbers: &[u64]) -> &mut Self {
        for number in numbers {
            self.0.extend(number.to_le_bytes());
        }
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.numbers(&[bytes.len() as u64]);
        self.0.extend(bytes);
        self
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn name(&mut self) -> Option<OsString> {
        self.bytes().map(OsString::from_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_a_torn_one_ends_the_journal() {
        let name = OsString::from;
        let records = vec![
            Record::Changes { file: 1, length: 700, offset: 512, before: Before::of(vec![7; 512]) },
            Record::Changes { file: 1, length: 700, offset: 0, before: Before::of(vec![0; 1024]) },
            Record::Creates { directory: 2, name: name("a") },
            Record::Removes { directory: 2, name: name("a"), held: name("held-1") },
            Record::Renames { directory: 2, from: name("b"), to: name("c"), held: name("") },
            Record::Synced { file: 1, up_to: 5 },
        ];
        assert!(matches!(&records[1], Record::Changes { before: Before::Zeros(1024), .. }));
        let mut bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        assert_eq!(Record::decode_all(&bytes), records);
        bytes.pop();
        assert_eq!(Record::decode_all(&bytes), records[..5]);
    }
}
