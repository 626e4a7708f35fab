//! Blocks that say who they are: 4 KiB stamped with the file, the place and the generation they were written as, and
//! filled to the last byte with what follows from these. So a reader knows of any 4 KiB whether this file's writer put
//! them there, and which of its writes it was.

use crate::random::Random;

/// Bytes of a block: the unit of checksums and of quota.
pub const BLOCK_BYTES: usize = 4096;
/// The same, as an offset.
pub const BLOCK_BYTES_U64: u64 = 4096;

const MAGIC: u64 = 0x4b43_4f4c_4254_5346;

/// Who a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The file it was written to; the test chooses the numbers.
    pub file: u64,
    /// Its place: the offset in units of blocks.
    pub index: u64,
    /// Which write of this place it was.
    pub generation: u64,
}

/// What 4 KiB turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Zeros, all of them.
    Hole,
    /// A block that is whole.
    Block(Stamp),
    /// Anything else: torn, mixed or foreign bytes.
    Garbage,
}

impl Stamp {
    /// Writes the block into 4 KiB.
    ///
    /// # Panics
    /// If the buffer has another length.
    pub fn write_to(self, buffer: &mut [u8]) {
        assert_eq!(buffer.len(), BLOCK_BYTES);
        for (field, value) in buffer.chunks_exact_mut(8).zip([MAGIC, self.file, self.index, self.generation]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let mut filler = self.filler();
        filler.fill(&mut buffer[32..]);
    }

    /// The block.
    #[must_use]
    pub fn block(self) -> Vec<u8> {
        let mut buffer = vec![0; BLOCK_BYTES];
        self.write_to(&mut buffer);
        buffer
    }

    fn filler(self) -> Random {
        let mut mixed = Random::new(self.file.rotate_left(40) ^ self.index.rotate_left(20) ^ self.generation);
        Random::new(mixed.bits())
    }
}

/// `count` consecutive blocks of one file and generation.
#[must_use]
pub fn run_of_blocks(file: u64, first: u64, count: u64, generation: u64) -> Vec<u8> {
    let length = usize::try_from(count).expect("a run fits in memory") * BLOCK_BYTES;
    let mut buffer = vec![0; length];
    for (block, index) in buffer.chunks_exact_mut(BLOCK_BYTES).zip(first..) {
        Stamp { file, index, generation }.write_to(block);
    }
    buffer
}

/// Says what 4 KiB are. A last block cut by the end of its file is judged by the bytes that are there.
///
/// # Panics
/// If there are more than 4 KiB.
#[must_use]
pub fn identify(bytes: &[u8]) -> Seen {
    assert!(bytes.len() <= BLOCK_BYTES);
    if bytes.iter().all(|byte| *byte == 0) {
        return Seen::Hole;
    }
    let mut fields = bytes.chunks_exact(8).map(|field| u64::from_le_bytes(field.try_into().expect("8 bytes")));
    let (Some(MAGIC), Some(file), Some(index), Some(generation)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Seen::Garbage;
    };
    let stamp = Stamp { file, index, generation };
    if stamp.block()[..bytes.len()] == *bytes { Seen::Block(stamp) } else { Seen::Garbage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_who_it_is() {
        let stamp = Stamp { file: 3, index: 9, generation: 2 };
        assert_eq!(identify(&stamp.block()), Seen::Block(stamp));
        assert_eq!(identify(&stamp.block()[..1000]), Seen::Block(stamp));
        assert_eq!(identify(&[0; BLOCK_BYTES]), Seen::Hole);
    }

    #[test]
    fn any_changed_byte_is_garbage() {
        let good = Stamp { file: 3, index: 9, generation: 2 }.block();
        for at in [0, 8, 24, 31, 32, 100, BLOCK_BYTES - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(identify(&bad), Seen::Garbage, "byte {at}");
        }
    }

    #[test]
    fn half_of_one_block_and_half_of_another_is_garbage() {
        let mut torn = Stamp { file: 3, index: 9, generation: 2 }.block();
        let newer = Stamp { file: 3, index: 9, generation: 3 }.block();
        torn[..2048].copy_from_slice(&newer[..2048]);
        assert_eq!(identify(&torn), Seen::Garbage);
    }
}
