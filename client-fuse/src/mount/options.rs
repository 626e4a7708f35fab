//! Mount options as `mount -o` and fstab have them. Pure.

use crate::fuse::REQUEST_BYTES_MAX;
use nix::mount::MsFlags;
use std::os::fd::RawFd;

/// Smallest read request that makes sense: a page. The kernel raises less to it anyway.
const READ_BYTES_MIN: u32 = 4096;

/// Options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    flags: MsFlags,
    sync_writes: bool,
    allow_other: bool,
    max_read_bytes: u32,
}

/// Reason why an option cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error(
        "mount option '{0}' is not known; there are ro, rw, [no]dev, [no]suid, [no]exec, [no]atime, [no]diratime, \
         relatime, strictatime, sync, async, dirsync, [no]allow_other, default_permissions, max_read=BYTES"
    )]
    Unknown(String),
    /// It takes a value, or another one.
    #[error("mount option '{option}' needs a number of bytes from {READ_BYTES_MIN} to {REQUEST_BYTES_MAX}")]
    Value {
        /// As it was given.
        option: String,
    },
}

impl Default for MountOptions {
    /// As root mounts a local file system: writable, with devices and suid, for everybody.
    fn default() -> Self {
        Self { flags: MsFlags::empty(), sync_writes: false, allow_other: true, max_read_bytes: REQUEST_BYTES_MAX }
    }
}

impl MountOptions {
    /// Reads a list with commas. Of options that contradict each other the last one counts, as with mount(8).
    ///
    /// # Errors
    /// An option that is unknown or has a wrong value.
    pub fn parse(list: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        list.split(',').filter(|option| !option.is_empty()).try_for_each(|option| options.apply(option))?;
        Ok(options)
    }

    /// The same options for a mount on which nothing can be changed.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.flags |= MsFlags::MS_RDONLY;
        self
    }

    /// Whether the mount refuses changes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    fn apply(&mut self, option: &str) -> Result<(), OptionError> {
        const ATIMES: MsFlags = MsFlags::MS_NOATIME.union(MsFlags::MS_RELATIME).union(MsFlags::MS_STRICTATIME);
        match option {
            "ro" => self.flags |= MsFlags::MS_RDONLY,
            "rw" => self.flags -= MsFlags::MS_RDONLY,
            "nodev" => self.flags |= MsFlags::MS_NODEV,
            "dev" => self.flags -= MsFlags::MS_NODEV,
            "nosuid" => self.flags |= MsFlags::MS_NOSUID,
            "suid" => self.flags -= MsFlags::MS_NOSUID,
            "noexec" => self.flags |= MsFlags::MS_NOEXEC,
            "exec" => self.flags -= MsFlags::MS_NOEXEC,
            "noatime" => self.flags = (self.flags - ATIMES) | MsFlags::MS_NOATIME,
            "relatime" => self.flags = (self.flags - ATIMES) | MsFlags::MS_RELATIME,
            "strictatime" => self.flags = (self.flags - ATIMES) | MsFlags::MS_STRICTATIME,
            "atime" => self.flags -= MsFlags::MS_NOATIME,
            "nodiratime" => self.flags |= MsFlags::MS_NODIRATIME,
            "diratime" => self.flags -= MsFlags::MS_NODIRATIME,
            "sync" => self.sync_writes = true,
            "async" => self.sync_writes = false,
            "allow_other" => self.allow_other = true,
            "noallow_other" => self.allow_other = false,
            "defaults" => *self = Self::default(),
            // Always so: permissions are the kernel's to check, changes of directories are durable when answered.
            "default_permissions" | "dirsync" => {}
            // For mount(8) and systemd, which hand them on.
            "auto" | "noauto" | "nofail" | "_netdev" | "nouser" => {}
            other if other.starts_with("x-") || other.starts_with("comment=") => {}
            other => return self.apply_value(other),
        }
        Ok(())
    }

    fn apply_value(&mut self, option: &str) -> Result<(), OptionError> {
        match option.split_once('=').unwrap_or((option, "")) {
            ("max_read", value) => {
                let bytes = value.parse().ok().filter(|bytes| (READ_BYTES_MIN..=REQUEST_BYTES_MAX).contains(bytes));
                self.max_read_bytes = bytes.ok_or_else(|| OptionError::Value { option: option.to_owned() })?;
                Ok(())
            }
            _ => Err(OptionError::Unknown(option.to_owned())),
        }
    }

    /// Flags for mount(2).
    pub(super) fn flags(&self) -> MsFlags {
        self.flags
    }

    pub(super) fn sync_writes(&self) -> bool {
        self.sync_writes
    }

    pub(super) fn allow_other(&self) -> bool {
        self.allow_other
    }

    /// mount(2)'s data for a connection on this open /dev/fuse.
    pub(super) fn data(&self, device: RawFd) -> String {
        let max_read = self.max_read_bytes;
        let allow_other = if self.allow_other { ",allow_other" } else { "" };
        format!("fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={max_read}{allow_other}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_suid_work_unless_asked_otherwise() {
        assert_eq!(MountOptions::parse("").unwrap().flags(), MsFlags::empty());
        assert_eq!(
            MountOptions::parse("nodev,nosuid,noexec").unwrap().flags(),
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC
        );
    }

    #[test]
    fn of_two_that_contradict_the_last_one_counts() {
        assert!(!MountOptions::parse("ro,rw").unwrap().is_read_only());
        assert!(MountOptions::parse("rw,ro").unwrap().is_read_only());
        assert_eq!(MountOptions::parse("noatime,relatime").unwrap().flags(), MsFlags::MS_RELATIME);
        assert_eq!(MountOptions::parse("ro,nodev,defaults"), Ok(MountOptions::default()));
    }

    #[test]
    fn what_mount_8_and_systemd_hand_on_changes_nothing() {
        let list = "_netdev,nofail,noauto,x-systemd.automount,x-gvfs-hide,default_permissions,allow_other,,";
        assert_eq!(MountOptions::parse(list), Ok(MountOptions::default()));
    }

    #[test]
    fn an_unknown_option_is_named() {
        let error = MountOptions::parse("ro,subtype=x").unwrap_err();
        assert_eq!(error, OptionError::Unknown("subtype=x".into()));
        assert!(error.to_string().contains("'subtype=x' is not known"));
    }

    #[test]
    fn a_wrong_number_is_named() {
        for option in ["max_read", "max_read=", "max_read=many", "max_read=4095", "max_read=1048577", "max_read=-1"] {
            assert_eq!(MountOptions::parse(option), Err(OptionError::Value { option: option.into() }), "{option}");
        }
    }

    #[test]
    fn the_kernel_gets_what_was_asked() {
        assert_eq!(
            MountOptions::default().data(7),
            "fd=7,rootmode=40000,user_id=0,group_id=0,default_permissions,max_read=1048576,allow_other"
        );
        assert_eq!(
            MountOptions::parse("noallow_other,max_read=65536").unwrap().data(7),
            "fd=7,rootmode=40000,user_id=0,group_id=0,default_permissions,max_read=65536"
        );
    }
}
