//! Settings that are agreed on with the kernel when the mount begins.
//!
//! Each capability is asked for by itself: one that the kernel does not know would drop all that are asked with it.

use super::validity::ENTRY_VALIDITY;
use fuser::{InitFlags, KernelConfig};

/// Largest write and read request. 256 pages are what the kernel allows without being tuned.
pub(crate) const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that nobody waits for in a system call (readahead, asynchronous direct I/O, write-back of mappings). fuser's
/// default of 16 starves a pipeline over six datanodes.
const BACKGROUND_MAX: u16 = 128;
/// Requests in the background above which the kernel starts no new readahead.
const CONGESTION_THRESHOLD: u16 = 96;
const _: () = assert!(CONGESTION_THRESHOLD <= BACKGROUND_MAX);

/// Wanted, and worked without if the kernel has it not.
///
/// Left out on purpose: `ATOMIC_O_TRUNC` (the kernel sends a setattr instead), `WRITEBACK_CACHE` and `AUTO_INVAL_DATA` (they
/// make size and mtime the kernel's, or cost a getattr for each read), `POSIX_LOCKS` and `FLOCK_LOCKS` (locks stay local
/// to this kernel), `POSIX_ACL` (with it goes `DONT_MASK`), `SETXATTR_EXT` (fuser asserts on it), `SPLICE_*` (fuser does not).
const WANTED: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    // A symlink's target never changes and its number is never reused, so that a cached one is never stale.
    InitFlags::FUSE_CACHE_SYMLINKS,
    // A file opened with O_DIRECT can still be mapped.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Wanted as soon as entries are valid for some time. Until then the kernel looks up every entry again that
/// a readdirplus brought: listing 20,000 entries and looking at each took as many lookups and getattrs with it as without.
const WANTED_WITH_VALIDITY: [InitFlags; 2] = [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO];

/// Capabilities agreed on with the kernel, as far as the adapter heeds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Dropping suid and sgid on write, truncate and chown is ours (`HANDLE_KILLPRIV_V2`). Else the kernel does it by setattr.
    pub(crate) kill_privileges: bool,
}

pub(crate) fn negotiate(config: &mut KernelConfig) -> Agreed {
    let with_validity = WANTED_WITH_VALIDITY.into_iter().filter(|_| !ENTRY_VALIDITY.is_zero());
    for wanted in WANTED.into_iter().chain(with_validity) {
        if config.add_capabilities(wanted).is_err() {
            tracing::debug!(?wanted, "this kernel's FUSE does without");
        }
    }
    let kill_privileges = config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2).is_ok();
    // Each of these answers the nearest value it would take; our constants are within every kernel's range.
    let limits = [
        config.set_max_write(REQUEST_BYTES_MAX).is_ok(),
        config.set_max_background(BACKGROUND_MAX).is_ok(),
        config.set_congestion_threshold(CONGESTION_THRESHOLD).is_ok(),
    ];
    if limits.contains(&false) {
        tracing::warn!(?limits, "the kernel's FUSE did not take a limit");
    }
    Agreed { kill_privileges }
}
