//! Offsets as types: a place in a file is not one in a chunk, nor a length.

use crate::number::{place, shown};

/// A place in a file: bytes from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileOffset(pub u64);

shown!(FileOffset, "{}", "@{}");

place!(FileOffset);

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
