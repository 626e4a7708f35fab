//! Ids as types. Every id is a 64-bit number given out once and never reused; 0 is never an id. An [`Epoch`] and a [`Nonce`]
//! are no ids: they tell states of one group, and attempts at one chunk, apart.

use crate::number::shown;
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        shown!($name, "{}", concat!($prefix, "{}"));

        impl From<u64> for $name {
            fn from(raw: u64) -> Self {
                Self(raw)
            }
        }
    };
}

id!(/// A process that hosts tables or disks.
    NodeId, "n");
id!(/// One disk of a datanode.
    DiskId, "d");
id!(/// A volume: one file system instance.
    VolumeId, "v");
id!(/// A life of a volume's table: raised by a restore from backup, so that ids of another life never match (R3).
    Incarnation, "i");
id!(/// An inode of a volume. The root directory is [`InodeId::ROOT`].
    InodeId, "ino");
id!(/// One attempt at writing a chunk: one content, one member set (R1).
    ChunkId, "c");
id!(/// A block group of a volume.
    GroupId, "g");
id!(/// One mounted client, as a table knows it.
    SessionId, "s");

/// A membership of a block group: every change of its members raises it (R12).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Of a new group.
    pub const FIRST: Self = Self(1);

    /// Of the same group after one more change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

shown!(Epoch, "{}", "e{}");

/// An attempt at putting the shards of a chunk: a random number, that shards of different attempts never combine (R1).
/// Equal or not is all that it says; it has an order only so that names with it can be sorted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u64);

// Hexadecimal: all bits are random.
shown!(Nonce, "{:x}", "x{:x}");

/// A formatting of a node's directory: a random number that ties its disks to it and repeated registrations to each
/// other (R28). No attempt at a chunk is meant, as a [`Nonce`] means one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FormatNonce(pub u64);

impl FormatNonce {
    /// Of a node that names none.
    pub const NONE: Self = Self(0);
}

impl fmt::Debug for FormatNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{:x}", self.0)
    }
}

/// Owner of an inode, by the numbers that the kernel knows users and groups by. They are passed together, so that
/// nobody takes one for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Owner {
    /// The superuser and its group.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

impl InodeId {
    /// The root directory of every volume.
    pub const ROOT: Self = Self(1);
}

/// A cluster's identity: 16 random bytes, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a cluster id has 32 hexadecimal digits")]
pub struct ParseClusterIdError;

impl std::str::FromStr for ClusterId {
    type Err = ParseClusterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseClusterIdError);
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(0..) {
            *byte = u8::from_str_radix(&text[2 * pair..2 * pair + 2], 16).map_err(|_| ParseClusterIdError)?;
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_of_a_group_has_a_higher_epoch() {
        assert!(Epoch::FIRST < Epoch::FIRST.next());
        assert_eq!(Epoch::FIRST.next(), Epoch(2));
    }

    #[test]
    fn an_epoch_and_a_nonce_cannot_be_taken_for_each_other_when_they_are_shown() {
        assert_eq!(format!("{} {:?}", Epoch(26), Epoch(26)), "26 e26");
        assert_eq!(format!("{} {:?}", Nonce(26), Nonce(26)), "1a x1a");
    }

    #[test]
    fn a_cluster_id_reads_back_what_it_prints() {
        let id = ClusterId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 254, 255]);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_malformed_cluster_id_is_refused() {
        for text in ["", "00", "zz000000000000000000000000000000", "+1000000000000000000000000000000"] {
            assert_eq!(text.parse::<ClusterId>(), Err(ParseClusterIdError), "{text}");
        }
    }
}
