//! Plan of an `up`, checked before anything is changed; and how it is taken back if the first `up` fails.

use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use holdfast_client_fuse::MountPoint;
use holdfast_erasure::CodeMode;
use holdfast_storage::DirectoryLock;
use holdfast_volmgr::check_volume_name;

use super::layout::{Layout, Record};
use crate::args::UpArgs;

/// Nodes of a first `up` that was not told otherwise.
const METANODES_DEFAULT: u32 = 3;
const DATANODES_DEFAULT: u32 = 6;

/// A cluster to bring up, in a directory that is ours now.
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) record: Record,
    pub(crate) listen: SocketAddr,
    pub(crate) volume: String,
    pub(crate) code: CodeMode,
    pub(crate) quota_bytes: u64,
    pub(crate) mount: Option<MountPoint>,
    _lock: DirectoryLock,
    undo: Undo,
}

/// Files and directories to remove if this `up` fails.
struct Undo {
    /// The cluster is made by this `up`.
    first: bool,
    /// The directories made for the cluster and the mount point, the topmost of each.
    made: Vec<PathBuf>,
}

/// Checks everything that can be checked, then claims the directory.
pub(crate) fn prepare(args: &UpArgs) -> Result<Plan> {
    let layout = Layout::new(resolve(&args.dir)?);
    let mount = args.mount.as_deref().map(resolve).transpose()?;
    if let Some(mount) = &mount {
        check_apart(layout.dir(), mount)?;
    }
    check_volume_name(&args.volume)?;
    let known = layout.read()?;
    let first = known.as_ref().is_none_or(|record| record.cluster.is_none());
    let record = counts(args, known.as_ref(), layout.dir())?;
    if first {
        check_width(args.code, record.datanodes)?;
    }
    // A running cluster is told before its port is: that is the reason, the port only follows from it.
    let early = known.is_some().then(|| claim(layout.dir())).transpose()?;
    check_port(args.listen)?;
    let mut undo = Undo { first, made: Vec::new() };
    let claimed = claim_all(&layout, mount.as_deref(), early, &mut undo);
    let (mount, lock) = claimed.inspect_err(|_| undo.remove_directories())?;
    let plan = Plan {
        layout,
        record,
        listen: args.listen,
        volume: args.volume.clone(),
        code: args.code,
        quota_bytes: args.quota.unwrap_or(0),
        mount,
        _lock: lock,
        undo,
    };
    if first && let Err(error) = plan.layout.write(&plan.record) {
        plan.undo();
        return Err(error);
    }
    Ok(plan)
}

fn claim_all(
    layout: &Layout,
    mount: Option<&Path>,
    early: Option<DirectoryLock>,
    undo: &mut Undo,
) -> Result<(Option<MountPoint>, DirectoryLock)> {
    let mount = mount.map(|place| {
        let missing = topmost_missing(place);
        let prepared = MountPoint::prepare(place, true)?;
        undo.made.extend(missing);
        anyhow::Ok(prepared)
    });
    let mount = mount.transpose()?;
    let lock = match early {
        Some(lock) => lock,
        None => {
            let missing = topmost_missing(layout.dir());
            holdfast_storage::create_directories(layout.dir())
                .with_context(|| format!("cannot create {}", layout.dir().display()))?;
            undo.made.extend(missing);
            // The roles' directories hold the cluster's secret and everybody's data.
            std::fs::set_permissions(layout.dir(), Permissions::from_mode(0o700))
                .with_context(|| format!("cannot protect {}", layout.dir().display()))?;
            claim(layout.dir())?
        }
    };
    Ok((mount, lock))
}

impl Plan {
    /// Takes back what this `up` made, if it was the first; to be called when everything is stopped.
    pub(crate) fn undo(self) {
        let Self { layout, undo, .. } = self;
        if undo.first
            && let Err(error) = layout.remove_contents()
        {
            tracing::warn!(%error, "what the failed start left could not be removed");
        }
        undo.remove_directories();
    }
}

impl Undo {
    fn remove_directories(&self) {
        for made in self.made.iter().rev() {
            remove_empty(made);
        }
    }
}

/// Removes a directory with the directories below it, as long as there is nothing else in them.
fn remove_empty(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // Fails when something is in it, and then it stays.
    let _ = std::fs::remove_dir(directory);
}

fn claim(dir: &Path) -> Result<DirectoryLock> {
    Ok(DirectoryLock::acquire(dir)?)
}

fn counts(args: &UpArgs, known: Option<&Record>, dir: &Path) -> Result<Record> {
    let count = |told: Option<u32>, had: Option<u32>, default: u32, what: &str| match (told, had) {
        (Some(told), Some(had)) if told < had => {
            bail!("the cluster in {} has {had} {what}; it cannot run with {told}", dir.display())
        }
        (told, had) => Ok(told.or(had).unwrap_or(default)),
    };
    Ok(Record {
        cluster: known.and_then(|record| record.cluster),
        metanodes: count(args.metanodes, known.map(|r| r.metanodes), METANODES_DEFAULT, "metanodes")?,
        datanodes: count(args.datanodes, known.map(|r| r.datanodes), DATANODES_DEFAULT, "datanodes")?,
    })
}

fn check_width(code: CodeMode, datanodes: u32) -> Result<()> {
    let width = code.width();
    if width > datanodes as usize {
        bail!(
            "code {code} needs {width} disks, the cluster has {datanodes}: add --datanodes {width}, or a smaller --code"
        );
    }
    Ok(())
}

/// Port 0 is always free.
fn check_port(listen: SocketAddr) -> Result<()> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "port {} of {} is in use: stop what uses it, or choose another with --listen",
                listen.port(),
                listen.ip()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {listen}")),
    }
}

fn check_apart(dir: &Path, mount: &Path) -> Result<()> {
    if mount.starts_with(dir) {
        bail!("the mount point {} is inside the cluster's directory {}", mount.display(), dir.display());
    }
    if dir.starts_with(mount) {
        bail!("the cluster's directory {} is inside the mount point {}", dir.display(), mount.display());
    }
    Ok(())
}

/// The absolute path, with the links in its existing part resolved. The last part is not looked at: it may be a dead
/// mount, which answers nobody.
fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("'{}' is no path", path.display()))?;
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
        let is_last = plain == absolute;
        if !is_last && let Ok(real) = plain.canonicalize() {
            plain = real;
        }
    }
    // A link as the last part is followed; what does not answer is taken as it stands.
    if std::fs::read_link(&plain).is_ok()
        && let Ok(real) = plain.canonicalize()
    {
        plain = real;
    }
    Ok(plain)
}

/// The topmost part of a path that does not exist; `None` if all of it does. Asked by readlink(2), which the kernel answers
/// by itself even for the root of a mount that hangs.
fn topmost_missing(path: &Path) -> Option<PathBuf> {
    path.ancestors().take_while(|part| part.read_link().is_err_and(is_not_found)).last().map(Path::to_owned)
}

fn is_not_found(error: std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests;
