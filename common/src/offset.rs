//! Offsets as types: a place in a file is not one in a chunk, nor a length.

use std::fmt;
use std::ops::{Add, Sub};

/// A place in a file: bytes from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileOffset(pub u64);

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// So many bytes further.
impl Add<u64> for FileOffset {
    type Output = Self;

    fn add(self, length_bytes: u64) -> Self {
        Self(self.0 + length_bytes)
    }
}

/// Bytes between two places, of which the right one is not the later.
impl Sub for FileOffset {
    type Output = u64;

    fn sub(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_and_a_length_make_a_place_and_two_places_a_length() {
        let (from, to) = (FileOffset(10), FileOffset(10) + 5);
        assert_eq!((to, to - from), (FileOffset(15), 5));
        assert_eq!(format!("{to} {to:?}"), "15 @15");
    }
}
