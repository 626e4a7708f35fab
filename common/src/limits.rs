//! Limits that more than one part must agree on, with where each comes from, and their relations asserted.

/// The unit of checksums, of shard lengths and of quota: the page of the kernels we run on.
pub const PAGE_BYTES: u32 = 4096;
/// Most data in one chunk. 4 MiB at 4+2 gives shards of 1 MiB: large enough that a request's fixed cost vanishes (D7's table).
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;
/// Data per shard below which a chunk uses fewer data shards than k (D2).
pub const SHARD_TARGET_BYTES: u32 = 64 << 10;
/// A shard below this lives in a segment of small shards, reclaimed by copying; from this on it is punched (R14).
pub const SMALL_SHARD_BYTES: u32 = 64 << 10;
/// Most shards of a chunk, data and parity together.
pub const SHARDS_MAX: usize = 32;
/// Longest name of a directory entry, as Linux has it (NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, as Linux has it (PATH_MAX with its terminator).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest value of an extended attribute, as Linux has it (XATTR_SIZE_MAX).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Longest list of an inode's xattr names, as Linux has it (XATTR_LIST_MAX).
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
/// The extended attribute that holds a program's capabilities: the kernel looks for it before it writes to a file.
pub const CAPABILITY_XATTR: &[u8] = b"security.capability";
/// Most names of one inode (ext4 allows 65,000; a u32 is kept honest well above).
pub const LINKS_MAX: u32 = 1 << 20;
/// Largest file: the largest offset that fits Linux's signed 64-bit loff_t, rounded down to a page.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64 - 4095;
/// Requests of one session in flight (R8).
pub const SESSION_IN_FLIGHT_MAX: usize = 256;
/// A session that was not renewed for this long is expired by the leader. Generous until leases make it matter.
pub const SESSION_LEASE_MS: u32 = 30_000;
/// Interval at which a client renews.
pub const SESSION_KEEPALIVE_MS: u32 = 1_000;
/// Longest any request waits, all retries included, before its caller is answered with an error.
pub const REQUEST_DEADLINE_MS: u32 = 60_000;
/// A freed chunk is deleted this long after (docs/decisions/0008); a reader that comes later re-reads the map (R5).
pub const FREED_CHUNK_DELAY_MS: u32 = 10_000;
/// Most names of one walk; what a path has more is looked up by itself.
pub const WALK_NAMES_MAX: usize = 16;
/// First readdir cookie of a directory; below are "." and "..".
pub const FIRST_COOKIE: u64 = 16;
/// Data bytes a block group takes.
pub const GROUP_CAPACITY_BYTES: u64 = 32 << 30;
/// A table asks for more groups when its open ones could take less than this (a dead volume manager stops nobody).
pub const SPARE_GROUP_BYTES: u64 = 64 << 30;
/// Entries of one commit request: extents over all its files.
pub const COMMIT_EXTENTS_MAX: usize = 4096;

const _: () = assert!(CHUNK_BYTES_MAX.is_multiple_of(PAGE_BYTES));
const _: () = assert!(SHARD_TARGET_BYTES.is_multiple_of(PAGE_BYTES));
const _: () = assert!(SMALL_SHARD_BYTES.is_multiple_of(PAGE_BYTES));
const _: () = assert!(SESSION_KEEPALIVE_MS * 5 <= SESSION_LEASE_MS);
const _: () = assert!(GROUP_CAPACITY_BYTES * 2 >= SPARE_GROUP_BYTES);
