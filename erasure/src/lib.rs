//! Reed-Solomon coding and stripe geometry.
