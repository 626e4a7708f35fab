//! Random bytes of the system.

use std::io::{self, Read};

/// Random bytes of the system.
///
/// # Errors
/// Any I/O error of `/dev/urandom`.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
