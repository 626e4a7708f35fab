//! Reed-Solomon coding and stripe geometry. Pure.
//!
//! A chunk of `n` bytes becomes d data shards, of which shard i holds bytes `[i*L, (i+1)*L)`, and m parity shards, all
//! of length L. d follows the chunk's length and the members at hand, so a short chunk is a short stripe with the full
//! parity, coded by a code of its own (d, m). With d = 1 the parity shards are copies.

mod code_mode;
mod codec;
pub mod geometry;
mod placement;

pub use code_mode::{CodeMode, CodeModeError};
pub use codec::{ReconstructError, encode, reconstruct};
pub use geometry::{Geometry, Piece};
pub use placement::choose_slots;
