//! Conversions between sizes on disk (u64) and in memory (usize), in one place.

/// A size in memory. The code base is for 64-bit machines only; a compile-time assertion says so.
pub(crate) fn to_usize(bytes: u64) -> usize {
    const _: () = assert!(usize::BITS >= 64, "Holdfast needs a 64-bit machine");
    usize::try_from(bytes).expect("usize has 64 bits")
}

/// A count as a wire field: saturating, because a count that large is already nonsense to a reader.
pub(crate) fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
