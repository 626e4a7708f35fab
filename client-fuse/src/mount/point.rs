//! Is this a place to mount at? Every answer is a plain sentence, and a look at a dead or hanging mount does not hang.

use super::mountinfo::{self, MountEntry};
use super::patience::within;
use super::{FILE_SYSTEM_TYPE, FUSE_DEVICE};
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file system that has not answered by then is taken to hang.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// Dead mounts that may lie over each other at one place. Each crash can leave one.
const DEAD_MOUNTS_MAX: usize = 64;

/// Reason why nothing was mounted. Nothing was changed either.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum MountError {
    /// No FUSE in this kernel or container.
    #[error(
        "{FUSE_DEVICE} is not there: load the kernel's fuse module (modprobe fuse), or give the container the device"
    )]
    NoFuse,
    /// It is there and cannot be opened.
    #[error("{FUSE_DEVICE} cannot be opened: {0}")]
    FuseDevice(#[source] io::Error),
    /// mount(2) is for root.
    #[error("mounting needs root")]
    NotPermitted,
    /// There is no such directory.
    #[error("the mount point {} does not exist", .0.display())]
    Missing(PathBuf),
    /// It could not be made.
    #[error("the mount point {} cannot be created: {cause}", .path.display())]
    Create {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// It is no directory.
    #[error("the mount point {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A mount would hide its entries.
    #[error("the mount point {} is not empty: it holds '{entry}'", .path.display())]
    NotEmpty {
        path: PathBuf,
        /// The first of its entries.
        entry: String,
    },
    /// Something is mounted there.
    #[error("something is mounted at {} already: {by}", .path.display())]
    AlreadyMounted {
        path: PathBuf,
        /// Type and source of that mount.
        by: String,
    },
    /// Something on the way does not answer.
    #[error("the mount point {} does not answer; 'umount --lazy' detaches a file system that hangs", .0.display())]
    Hangs(PathBuf),
    /// It cannot be looked at.
    #[error("the mount point {} cannot be used: {cause}", .path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// mount(2) failed.
    #[error("mounting at {} failed: {cause}", .path.display())]
    Failed {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// An empty directory with nothing mounted on it, by its real path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    path: PathBuf,
}

impl MountPoint {
    /// Checks `path`, creates it if it is missing and `create` is given, and detaches a dead mount of ours that a crash
    /// left there. May take some seconds when a file system on the way hangs; not for an async task.
    ///
    /// # Errors
    /// Fault of the mount point, as a sentence for people.
    pub fn prepare(path: &Path, create: bool) -> Result<Self, MountError> {
        check_device()?;
        let path = resolve(path, create)?;
        detach_dead_mounts(&path)?;
        check_empty_directory(&path)?;
        Ok(Self { path })
    }

    /// Its real path: absolute, no symlinks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check_device() -> Result<(), MountError> {
    match fs::metadata(FUSE_DEVICE) {
        Ok(found) if found.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(MountError::NoFuse),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(MountError::NoFuse),
        Err(error) => Err(MountError::FuseDevice(error)),
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> MountError + '_ {
    move |cause| MountError::Unusable { path: path.to_owned(), cause }
}

/// A look at `path` that ends, whatever is mounted there.
fn look<T: Send + 'static>(
    path: &Path,
    at: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<io::Result<T>, MountError> {
    let asked = path.to_owned();
    within(PROBE_LIMIT, move || at(&asked)).ok_or_else(|| MountError::Hangs(path.to_owned()))
}

fn resolve(path: &Path, create: bool) -> Result<PathBuf, MountError> {
    match look(path, |path| path.canonicalize())? {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == ErrorKind::NotFound && create => {
            let failed = |cause| MountError::Create { path: path.to_owned(), cause };
            look(path, |path| fs::create_dir_all(path))?.map_err(failed)?;
            look(path, |path| path.canonicalize())?.map_err(unusable(path))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(MountError::Missing(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Err(MountError::NotADirectory(path.to_owned())),
        Err(error) => Err(unusable(path)(error)),
    }
}

/// Leaves `path` with nothing mounted on it, or says what is.
fn detach_dead_mounts(path: &Path) -> Result<(), MountError> {
    for _ in 0..DEAD_MOUNTS_MAX {
        let mounts = mountinfo::read().map_err(unusable(path))?;
        let Some(top) = mountinfo::topmost(&mounts, path) else { return Ok(()) };
        if !is_dead(top)? {
            break;
        }
        tracing::info!(mount_point = %path.display(), source = ?top.source, "detaching a dead mount that a crash left");
        umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| unusable(path)(errno.into()))?;
    }
    let mounts = mountinfo::read().map_err(unusable(path))?;
    let by = mountinfo::topmost(&mounts, path)
        .map_or_else(String::new, |top| format!("{} ({})", top.source.display(), top.kind));
    Err(MountError::AlreadyMounted { path: path.to_owned(), by })
}

/// A mount of ours whose process is gone: every access says ENOTCONN.
fn is_dead(mount: &MountEntry) -> Result<bool, MountError> {
    if mount.kind != FILE_SYSTEM_TYPE {
        return Ok(false);
    }
    let stat = look(&mount.point, |path| fs::metadata(path))?;
    Ok(stat.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)))
}

fn check_empty_directory(path: &Path) -> Result<(), MountError> {
    let first = look(path, |path| fs::read_dir(path)?.next().transpose())?;
    match first {
        Ok(None) => Ok(()),
        Ok(Some(entry)) => {
            let entry = entry.file_name().to_string_lossy().into_owned();
            Err(MountError::NotEmpty { path: path.to_owned(), entry })
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => Err(MountError::NotADirectory(path.to_owned())),
        Err(error) => Err(unusable(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_must_be_an_empty_directory() {
        let root = tempfile::tempdir().unwrap();
        let (file, full, empty) = (root.path().join("file"), root.path().join("full"), root.path().join("empty"));
        fs::write(&file, b"x").unwrap();
        fs::create_dir(&full).unwrap();
        fs::write(full.join("inside"), b"x").unwrap();
        fs::create_dir(&empty).unwrap();
        let error = |path: &Path| MountPoint::prepare(path, true).unwrap_err().to_string();
        assert!(error(&file).ends_with("file is not a directory"), "{}", error(&file));
        assert!(error(&file.join("below")).contains("below is not a directory"), "{}", error(&file.join("below")));
        assert!(error(&full).ends_with("full is not empty: it holds 'inside'"), "{}", error(&full));
        assert!(error(Path::new("/proc")).contains("already: proc (proc)"), "{}", error(Path::new("/proc")));
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        let real = empty.canonicalize().unwrap();
        assert_eq!(MountPoint::prepare(&link, false).unwrap().path(), real);
    }

    #[test]
    fn a_missing_mount_point_is_made_only_when_told_to() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("a/b");
        let error = MountPoint::prepare(&missing, false).unwrap_err();
        assert!(matches!(error, MountError::Missing(_)), "{error}");
        assert!(!root.path().join("a").exists());
        let made = MountPoint::prepare(&missing, true).unwrap();
        assert_eq!(made.path(), missing.canonicalize().unwrap());
    }
}
