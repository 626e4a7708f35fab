//! CRC32C of 4 KiB pages, seeded with the place they belong to, so that misplaced bytes never verify (R6).

use crate::limits::PAGE_BYTES;
use crate::{ChunkId, VolumeId};

/// Place of a shard; the seed of its pages' checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardPlace {
    /// The volume the chunk belongs to.
    pub volume: VolumeId,
    /// The chunk.
    pub chunk: ChunkId,
    /// Number of the shard in the chunk.
    pub shard: u8,
}

impl ShardPlace {
    /// The checksum of page `page_index` of this shard. `page` has at most [`PAGE_BYTES`] bytes.
    #[must_use]
    pub fn page_checksum(&self, page_index: u32, page: &[u8]) -> u32 {
        let mut seed = [0u8; 21];
        seed[..8].copy_from_slice(&self.volume.0.to_le_bytes());
        seed[8..16].copy_from_slice(&self.chunk.0.to_le_bytes());
        seed[16] = self.shard;
        seed[17..].copy_from_slice(&page_index.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&seed), page)
    }

    /// The checksums of consecutive pages from `first_page` on, little-endian, as headers carry them.
    #[must_use]
    pub fn page_checksums(&self, first_page: u32, payload: &[u8]) -> Vec<u8> {
        payload
            .chunks(PAGE_BYTES as usize)
            .zip(first_page..)
            .flat_map(|(page, index)| self.page_checksum(index, page).to_le_bytes())
            .collect()
    }

    /// Checks consecutive pages from `first_page` on against their checksums.
    ///
    /// # Errors
    /// The index of the first page that differs; `checksums` of another length than the payload needs count as
    /// differing in the first page.
    pub fn verify(&self, first_page: u32, payload: &[u8], checksums: &[u8]) -> Result<(), PageMismatch> {
        if checksums.len() != payload.len().div_ceil(PAGE_BYTES as usize) * 4 {
            return Err(PageMismatch { page_index: first_page });
        }
        for ((page, expected), page_index) in
            payload.chunks(PAGE_BYTES as usize).zip(checksums.chunks_exact(4)).zip(first_page..)
        {
            if self.page_checksum(page_index, page).to_le_bytes() != expected {
                return Err(PageMismatch { page_index });
            }
        }
        Ok(())
    }
}

/// A page does not carry the bytes its checksum was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checksum mismatch in page {page_index}")]
pub struct PageMismatch {
    /// Index of the page within its shard.
    pub page_index: u32,
}

/// CRC32C (Castagnoli) of `bytes`, for records that are not shards.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Continues a CRC32C over more bytes.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: ShardPlace = ShardPlace { volume: VolumeId(7), chunk: ChunkId(9), shard: 2 };

    #[test]
    fn a_flipped_bit_names_its_page() {
        let mut payload = vec![5u8; 3 * 4096];
        let sums = PLACE.page_checksums(4, &payload);
        assert_eq!(PLACE.verify(4, &payload, &sums), Ok(()));
        payload[4096 + 17] ^= 0x40;
        assert_eq!(PLACE.verify(4, &payload, &sums), Err(PageMismatch { page_index: 5 }));
    }

    #[test]
    fn bytes_of_another_place_never_verify() {
        let payload = vec![5u8; 4096];
        let sums = PLACE.page_checksums(0, &payload);
        for other in [
            ShardPlace { volume: VolumeId(8), ..PLACE },
            ShardPlace { chunk: ChunkId(8), ..PLACE },
            ShardPlace { shard: 3, ..PLACE },
        ] {
            assert!(other.verify(0, &payload, &sums).is_err(), "{other:?}");
        }
        assert!(PLACE.verify(1, &payload, &sums).is_err());
    }

    #[test]
    fn the_checksum_of_a_page_is_pinned() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        // The seed, byte by byte: volume 7, chunk 9, shard 2, page 3, all little-endian; then the page.
        let mut bytes = vec![7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0];
        bytes.extend_from_slice(b"page");
        assert_eq!(PLACE.page_checksum(3, b"page"), crc32c(&bytes));
    }
}
