//! Shards from bytes, and missing shards from the others.
//!
//! The generator matrix is `reed-solomon-erasure`'s (Vandermonde, made systematic); it is part of the disk format, and
//! a test pins it. Rebuilding inverts the rows of any d shards by hand, so that only the wanted shards are computed,
//! and of any common part of them.

mod matrix;

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use holdfast_common::limits::SHARDS_MAX;
use reed_solomon_erasure::galois_8::{ReedSolomon, mul_slice, mul_slice_xor};

use crate::Geometry;
use matrix::Row;

/// Bytes of every shard that are worked on at once, so that a wide stripe's parity stays in the second-level cache.
const BLOCK_BYTES: usize = 16 << 10;

/// Reason why shards could not be rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum ReconstructError {
    /// Fewer shards than data shards.
    #[error("{present} shards are here and {needed} are needed")]
    TooFew {
        /// Shards that are here.
        present: usize,
        needed: usize,
    },
    /// Not d + m places, or a wanted shard beyond them.
    #[error("the stripe has {0} shards")]
    WrongCount(usize),
    /// Shards of different lengths.
    #[error("the shards differ in length")]
    UnequalLengths,
}

/// A code of d data and m parity shards.
struct Codec {
    inner: ReedSolomon,
    data_shards: usize,
    /// Row p holds the coefficients of parity shard p.
    parity_rows: Vec<Row>,
}

/// The codec of (d, m), made once.
fn codec(data_shards: u8, parity_shards: u8) -> &'static Codec {
    static CODECS: [[OnceLock<Codec>; SHARDS_MAX]; SHARDS_MAX] =
        [const { [const { OnceLock::new() }; SHARDS_MAX] }; SHARDS_MAX];
    let (d, m) = (usize::from(data_shards), usize::from(parity_shards));
    CODECS[d][m].get_or_init(|| Codec::new(d, m))
}

impl Codec {
    fn new(data_shards: usize, parity_shards: usize) -> Self {
        let inner = ReedSolomon::new(data_shards, parity_shards).expect("1 <= d, 1 <= m and d + m <= 32 make a code");
        // The library keeps its matrix to itself; coding the unit vectors, all in one go, shows it.
        let units: Vec<Vec<u8>> =
            (0..data_shards).map(|i| (0..data_shards).map(|column| u8::from(column == i)).collect()).collect();
        let mut parity_rows = vec![vec![0; data_shards]; parity_shards];
        inner.encode_sep(&units, &mut parity_rows).expect("the counts and lengths fit");
        Self { inner, data_shards, parity_rows }
    }

    /// The coefficients of shard `index`.
    fn row(&self, index: usize) -> Row {
        match index.checked_sub(self.data_shards) {
            Some(parity) => self.parity_rows[parity].clone(),
            None => matrix::unit(self.data_shards, index),
        }
    }
}

/// The d + m shards of a chunk, whose bytes are those of `data`, one piece after another. Data shards that lie within
/// one piece share its memory; others, and the padded last one, are copies.
///
/// # Panics
/// If `data` has not the length that the geometry was made for.
#[must_use]
pub fn encode(geometry: &Geometry, data: &[Bytes]) -> Vec<Bytes> {
    let length_bytes: usize = data.iter().map(Bytes::len).sum();
    assert_eq!(u32::try_from(length_bytes), Ok(geometry.length_bytes()), "the data has the geometry's length");
    let mut shards = data_shards(geometry, data);
    let parity_shards = usize::from(geometry.parity_shards());
    if let [only] = &shards[..] {
        // The parity rows of a code with one data shard are ones.
        return vec![only.clone(); parity_shards + 1];
    }
    let codec = codec(geometry.data_shards(), geometry.parity_shards());
    let shard_length = to_usize(geometry.shard_length_bytes());
    let mut parity: Vec<Vec<u8>> = vec![vec![0; shard_length]; parity_shards];
    for start in (0..shard_length).step_by(BLOCK_BYTES) {
        let block = start..shard_length.min(start + BLOCK_BYTES);
        let from: Vec<&[u8]> = shards.iter().map(|shard| &shard[block.clone()]).collect();
        let mut to: Vec<&mut [u8]> = parity.iter_mut().map(|shard| &mut shard[block.clone()]).collect();
        codec.inner.encode_sep(&from, &mut to).expect("the counts and lengths are the geometry's");
    }
    shards.extend(parity.into_iter().map(Bytes::from));
    shards
}

fn data_shards(geometry: &Geometry, data: &[Bytes]) -> Vec<Bytes> {
    let shard_length = to_usize(geometry.shard_length_bytes());
    let mut rest = data.iter().filter(|piece| !piece.is_empty()).cloned();
    let mut piece = Bytes::new();
    let mut shards = Vec::with_capacity(geometry.shards_count());
    for _ in 0..geometry.data_shards() {
        if piece.is_empty() {
            piece = rest.next().unwrap_or_default();
        }
        if piece.len() >= shard_length {
            shards.push(piece.split_to(shard_length));
            continue;
        }
        let mut shard = BytesMut::with_capacity(shard_length);
        loop {
            let taken = piece.split_to(piece.len().min(shard_length - shard.len()));
            shard.extend_from_slice(&taken);
            if shard.len() == shard_length {
                break;
            }
            match rest.next() {
                Some(next) => piece = next,
                None => shard.resize(shard_length, 0),
            }
        }
        shards.push(shard.freeze());
    }
    shards
}

/// Rebuilds the wanted ones of the missing shards (`None`) from any d that are here. The shards may be whole, or the
/// same part of each; wanted shards that are here stay.
///
/// # Errors
/// See [`ReconstructError`]; nothing has changed then.
pub fn reconstruct(
    geometry: &Geometry,
    shards: &mut [Option<Bytes>],
    wanted: &[usize],
) -> Result<(), ReconstructError> {
    let count = geometry.shards_count();
    if shards.len() != count || wanted.iter().any(|index| *index >= count) {
        return Err(ReconstructError::WrongCount(count));
    }
    let needed = usize::from(geometry.data_shards());
    // Data shards come first: their rows are units, which makes the inversion and the coefficients cheap.
    let present: Vec<(usize, Bytes)> =
        shards.iter().enumerate().filter_map(|(index, shard)| Some((index, shard.clone()?))).collect();
    let length = present.first().map_or(0, |(_, shard)| shard.len());
    if present.iter().any(|(_, shard)| shard.len() != length) {
        return Err(ReconstructError::UnequalLengths);
    }
    let Some(sources) = present.get(..needed) else {
        return Err(ReconstructError::TooFew { present: present.len(), needed });
    };
    if wanted.iter().all(|index| shards[*index].is_some()) {
        return Ok(());
    }
    let codec = codec(geometry.data_shards(), geometry.parity_shards());
    let inverse = matrix::invert(sources.iter().map(|(index, _)| codec.row(*index)).collect())
        .expect("any d rows of the generator matrix are independent");
    for index in wanted {
        if shards[*index].is_none() {
            let coefficients = matrix::multiply_row(&codec.row(*index), &inverse);
            shards[*index] = Some(combine(&coefficients, sources, length));
        }
    }
    Ok(())
}

/// The sum of the sources, each times its coefficient.
fn combine(coefficients: &Row, sources: &[(usize, Bytes)], length: usize) -> Bytes {
    let mut terms = coefficients.iter().zip(sources).filter(|(coefficient, _)| **coefficient != 0);
    if let (Some((1, (_, copied))), None) = (terms.next(), terms.next()) {
        return copied.clone();
    }
    let mut sum = vec![0; length];
    for start in (0..length).step_by(BLOCK_BYTES) {
        let block = start..length.min(start + BLOCK_BYTES);
        let mut first = true;
        for (coefficient, (_, source)) in coefficients.iter().zip(sources).filter(|(c, _)| **c != 0) {
            match std::mem::take(&mut first) {
                true => mul_slice(*coefficient, &source[block.clone()], &mut sum[block.clone()]),
                false => mul_slice_xor(*coefficient, &source[block.clone()], &mut sum[block.clone()]),
            }
        }
    }
    sum.into()
}

fn to_usize(length: u32) -> usize {
    usize::try_from(length).expect("this code runs on 64-bit machines")
}

#[cfg(test)]
mod tests;
