//! Bytes of segments.
