//! Putting a volume into the file system tree, and taking it out again.
//!
//! We mount by mount(2) ourselves and hand fuser the open device: a session that mounted by itself would, when it is
//! dropped, unmount whatever is mounted there by then, and its handle would be used up by an unmount that fails.
//!
//! The order in which to stop: [`FileSystem::sync_all`], so that everything written is durable while errors can still be
//! reported; [`Mount::unmount`], in which the kernel writes back what is dirty in mappings; [`FileSystem::shutdown`], which
//! flushes that. The kernel sends nothing at an unmount that could wait for us, so umount(8) from outside returns before
//! that last flush.

mod control;
mod holders;
mod mountinfo;
mod options;
mod patience;
mod point;

pub use holders::{Holder, Holding};
pub use options::{MountOptions, OptionError};
pub use point::{MountError, MountPoint};

use crate::fuse::Adapter;
use fuser::{Session, SessionACL};
use holdfast_client::FileSystem;
use mountinfo::{Device, MountEntry};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Type of the mounts in the kernel's list, in `findmnt` and in fstab.
pub(crate) const FILE_SYSTEM_TYPE: &str = "fuse.holdfast";
const FUSE_DEVICE: &str = "/dev/fuse";
/// Threads that read requests. They only parse, copy and hand over; two keep up with what two cores ask.
const EVENT_LOOPS: usize = 2;
/// Longest time for umount(2). Together with a second, lazy one it leaves time for flushing within the 20 s in which a
/// process that is told to stop has to.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(6);
/// Longest time that a session may run on after a good umount(2). Longer means that somebody else keeps it.
const LINGER_LIMIT: Duration = Duration::from_secs(3);

/// End of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// It was unmounted, by us or from outside.
    Unmounted,
    /// The connection was aborted.
    Aborted,
    /// The event loops failed; what was mounted has been detached.
    Failed(String),
}

/// Force of an unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountHow {
    /// Fails if the mount is in use.
    IfUnused,
    /// Out of the tree at once, and served until the last user leaves. [`Mount::wait_unmounted`] tells when, and
    /// [`Mount::abort`] ends the wait.
    Lazily,
}

/// Reason why it is still mounted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum UnmountError {
    /// Somebody uses it.
    #[error("{} is in use{}", .point.display(), listed(.holders))]
    Busy {
        point: PathBuf,
        /// Processes and mounts that use it, as far as they could be found out.
        holders: Vec<Holder>,
    },
    /// Something is mounted over it.
    #[error("{} is covered by another mount: {by}", .point.display())]
    Covered {
        point: PathBuf,
        /// Type and source of that mount.
        by: String,
    },
    /// It is out of this tree, and another mount namespace (a container) still has it.
    #[error("{} is unmounted here, and another mount namespace still uses it", .0.display())]
    UsedElsewhere(PathBuf),
    /// umount(2) did not come back.
    #[error("unmounting {} takes longer than {} s", .0.display(), UNMOUNT_LIMIT.as_secs())]
    TimedOut(PathBuf),
    /// The kernel refuses for another reason.
    #[error("unmounting {} failed: {cause}", .point.display())]
    Failed {
        point: PathBuf,
        #[source]
        cause: io::Error,
    },
}

fn listed(holders: &[Holder]) -> String {
    holders.iter().enumerate().map(|(n, holder)| format!("{} {holder}", if n == 0 { ":" } else { ";" })).collect()
}

/// A mounted volume. Dropped while mounted, it is detached lazily.
#[derive(Debug)]
pub struct Mount {
    place: Place,
    ended: watch::Receiver<Option<SessionEnd>>,
}

impl Mount {
    /// Mounts `file_system` and serves it by tasks on `runtime`. `source` is what `findmnt` shows: `HOST:PORT/VOLUME`.
    ///
    /// # Errors
    /// mount(2) or the kernel's first request failed. Nothing is left mounted.
    pub fn start(
        file_system: FileSystem,
        source: &str,
        point: &MountPoint,
        options: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let adapter = Adapter::new(file_system, runtime, options.sync_writes());
        Self::start_serving(adapter, source, point, options)
    }

    fn start_serving(
        adapter: impl fuser::Filesystem,
        source: &str,
        point: &MountPoint,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        let failed = |cause| MountError::Failed { path: point.path().to_owned(), cause };
        let device = open_device()?;
        let place = Place::mount(source, point.path(), options, &device)?;
        let started = session(adapter, device, options).and_then(|session| place.clone().serve(session));
        match started {
            Ok(ended) => {
                control::widen_read_ahead(place.device);
                Ok(Self { place, ended })
            }
            Err(cause) => {
                // Its connection is closed, so that this does not wait for anybody.
                if let Err(error) = place.unmount(MntFlags::MNT_DETACH) {
                    tracing::warn!(%error, "a mount that did not start is left behind");
                }
                Err(failed(cause))
            }
        }
    }

    /// Directory that it was mounted on, absolute.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.place.point
    }

    /// The file which, written to, aborts the connection: every request fails and every process that waits for one comes
    /// back. There if the kernel's FUSE control file system is mounted; [`Mount::abort`] sees to that.
    #[must_use]
    pub fn abort_file(&self) -> PathBuf {
        control::abort_file(self.place.device)
    }

    /// Waits until the session is over, by whomever. May be called any number of times.
    pub async fn wait_unmounted(&self) -> SessionEnd {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(SessionEnd::Unmounted),
            Err(_) => SessionEnd::Failed("the session's thread is gone".into()),
        }
    }

    /// Unmounts. With [`UnmountHow::IfUnused`] the session is over when this returns well. A failure leaves it mounted
    /// and served, and may be followed by another try. One that was unmounted from outside before is fine.
    ///
    /// # Errors
    /// Why it is still there; who uses it.
    pub async fn unmount(&self, how: UnmountHow) -> Result<(), UnmountError> {
        let place = self.place.clone();
        let flags = match how {
            UnmountHow::IfUnused => MntFlags::empty(),
            UnmountHow::Lazily => MntFlags::MNT_DETACH,
        };
        match patience::within_async(UNMOUNT_LIMIT, move || place.unmount(flags)).await {
            Some(outcome) => outcome?,
            None => return Err(UnmountError::TimedOut(self.place.point.clone())),
        }
        if how == UnmountHow::IfUnused && tokio::time::timeout(LINGER_LIMIT, self.wait_unmounted()).await.is_err() {
            return Err(UnmountError::UsedElsewhere(self.place.point.clone()));
        }
        Ok(())
    }

    /// Ends it now: aborts the connection, so that every request fails, and detaches the mount.
    ///
    /// # Errors
    /// The kernel refused both ways of aborting.
    pub fn abort(&self) -> io::Result<()> {
        self.place.abort()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.ended.borrow().is_some() {
            return;
        }
        // The last user may be gone, and then the kernel writes back dirty mappings here, which takes other threads.
        let place = self.place.clone();
        match patience::within(UNMOUNT_LIMIT, move || place.unmount(MntFlags::MNT_DETACH)) {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "a mount is left behind"),
            None => tracing::warn!(mount_point = %self.place.point.display(), "detaching the mount hangs"),
        }
    }
}

fn open_device() -> Result<OwnedFd, MountError> {
    // Opened with O_CLOEXEC: a child that inherited it would keep a dead mount from being noticed.
    match OpenOptions::new().read(true).write(true).open(FUSE_DEVICE) {
        Ok(device) => Ok(device.into()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Err(MountError::NoFuse)
        }
        Err(error) => Err(MountError::FuseDevice(error)),
    }
}

/// Answers the kernel's first request.
fn session<F: fuser::Filesystem>(adapter: F, device: OwnedFd, options: &MountOptions) -> io::Result<Session<F>> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(EVENT_LOOPS);
    // With a device of its own for each event loop, the requests of one that dies are ended by the kernel.
    config.clone_fd = true;
    let acl = if options.allow_other() { SessionACL::All } else { SessionACL::Owner };
    config.acl = acl;
    Session::from_fd(adapter, device, acl, config)
}

/// A mount of ours, known by more than its path: by then another may be mounted there.
#[derive(Clone, Debug)]
struct Place {
    id: u64,
    device: Device,
    /// Directory that it was mounted on; it may have been moved since.
    point: PathBuf,
}

impl Place {
    fn mount(source: &str, point: &Path, options: &MountOptions, device: &impl AsRawFd) -> Result<Self, MountError> {
        let failed = |cause| MountError::Failed { path: point.to_owned(), cause };
        let data = options.data(device.as_raw_fd());
        nix::mount::mount(Some(source), point, Some(FILE_SYSTEM_TYPE), options.flags(), Some(data.as_str())).map_err(
            |errno| match errno {
                Errno::EPERM => MountError::NotPermitted,
                Errno::ENODEV => MountError::NoFuse,
                errno => failed(errno.into()),
            },
        )?;
        match Self::find_new(point) {
            Ok(place) => Ok(place),
            Err(cause) => {
                // Mounted a moment ago, so that it is this one, but for a race that leaves nothing better to do.
                let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
                Err(failed(cause))
            }
        }
    }

    fn find_new(point: &Path) -> io::Result<Self> {
        let mounts = mountinfo::read()?;
        let ours = mountinfo::topmost(&mounts, point).filter(|top| top.kind == FILE_SYSTEM_TYPE);
        let ours =
            ours.ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the new mount is not in the kernel's list"))?;
        Ok(Self { id: ours.id, device: ours.device, point: point.to_owned() })
    }

    /// Starts the session's thread. It ends when the file system is gone from every mount namespace.
    fn serve<F: fuser::Filesystem>(self, session: Session<F>) -> io::Result<watch::Receiver<Option<SessionEnd>>> {
        let (sender, ended) = watch::channel(None);
        std::thread::Builder::new().name("holdfast-fuse".into()).spawn(move || {
            let outcome = session.run();
            // A session that ended while mounted leaves a tree that only answers errors.
            let left = self.find(&mountinfo::read().unwrap_or_default()).is_some();
            let end = match outcome {
                Ok(()) if left => SessionEnd::Aborted,
                Ok(()) => SessionEnd::Unmounted,
                Err(error) => SessionEnd::Failed(error.to_string()),
            };
            if left || matches!(end, SessionEnd::Failed(_)) {
                tracing::warn!(mount_point = %self.point.display(), ?end, "the mount's session ended before its unmount");
                if let Err(error) = self.abort() {
                    tracing::error!(%error, "a mount without a session is left behind");
                }
            }
            // Nobody may be left to hear it.
            let _ = sender.send(Some(end));
        })?;
        Ok(ended)
    }

    fn find<'list>(&self, mounts: &'list [MountEntry]) -> Option<&'list MountEntry> {
        mounts.iter().find(|mount| mount.id == self.id && mount.device == self.device)
    }

    /// umount2(2) of exactly this mount. Fine if it is gone already.
    fn unmount(&self, flags: MntFlags) -> Result<(), UnmountError> {
        let failed = |cause| UnmountError::Failed { point: self.point.clone(), cause };
        let mounts = mountinfo::read().map_err(failed)?;
        let Some(ours) = self.find(&mounts) else { return Ok(()) };
        let point = ours.point.clone();
        if let Some(top) = mountinfo::topmost(&mounts, &point).filter(|top| top.id != ours.id) {
            return Err(UnmountError::Covered { point, by: format!("{} ({})", top.source.display(), top.kind) });
        }
        match umount2(&point, flags | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: not a mount point any more, somebody was faster.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(Errno::EBUSY) => Err(UnmountError::Busy { point, holders: holders::of(ours) }),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    fn abort(&self) -> io::Result<()> {
        let by_control_file = control::abort(self.device);
        // MNT_FORCE aborts as well, for a mount that is in the tree; detaching alone would leave ENOTCONN there.
        match (self.unmount(MntFlags::MNT_FORCE | MntFlags::MNT_DETACH), by_control_file) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(error), Ok(())) => Err(io::Error::other(error)),
            (_, Err(error)) => {
                if self.find(&mountinfo::read()?).is_some() {
                    Err(error)
                } else {
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
