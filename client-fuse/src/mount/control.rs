//! The kernel's controls of a FUSE connection outside of the connection itself: aborting it, and how far it reads ahead.
//!
//! An abort ends every waiting request with an error at once, and with it every process that hangs in one.

use super::mountinfo::Device;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Usual mount point of the control file system.
const CONTROL_DIRECTORY: &str = "/sys/fs/fuse/connections";
/// Bytes that the kernel reads ahead of a sequential reader: a request of the largest size. Its default is 128 KiB, and
/// what is agreed on when the mount begins can only lower it.
const READ_AHEAD_KIB: u32 = crate::fuse::REQUEST_BYTES_MAX / 1024;

/// The file which, written to, aborts the connection. There only where the control file system is mounted.
pub(super) fn abort_file(device: Device) -> PathBuf {
    // Named by the kernel's own form of the device number: 20 bits for the minor.
    let connection = u64::from(device.major) << 20 | u64::from(device.minor);
    Path::new(CONTROL_DIRECTORY).join(connection.to_string()).join("abort")
}

/// Aborts the connection. One that is gone already is fine.
pub(super) fn abort(device: Device) -> io::Result<()> {
    let file = abort_file(device);
    match std::fs::write(&file, b"1") {
        Err(error) if error.kind() == ErrorKind::NotFound && !is_mounted() => {
            mount_control()?;
            match std::fs::write(&file, b"1") {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_mounted() -> bool {
    super::mountinfo::read().is_ok_and(|mounts| {
        mounts.iter().any(|mount| mount.kind == "fusectl" && mount.point == Path::new(CONTROL_DIRECTORY))
    })
}

fn mount_control() -> io::Result<()> {
    match mount(Some("fusectl"), CONTROL_DIRECTORY, Some("fusectl"), MsFlags::empty(), None::<&str>) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Widens the read-ahead. The mount works without it.
pub(super) fn widen_read_ahead(device: Device) {
    let file = format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.major, device.minor);
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, file, "the kernel's read-ahead stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_named_by_its_device_number() {
        let file = |major, minor| abort_file(Device { major, minor });
        assert_eq!(file(0, 52), Path::new("/sys/fs/fuse/connections/52/abort"));
        assert_eq!(file(1, 2), Path::new("/sys/fs/fuse/connections/1048578/abort"));
    }
}
