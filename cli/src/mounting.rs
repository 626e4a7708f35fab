//! A volume as a client's file system and a FUSE mount together, for `mount` and for `up`.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use holdfast_client::{FileSystem, MountConfig, Sabotage};
use holdfast_client_fuse::{Mount, MountOptions, MountPoint, SessionEnd, UnmountError, UnmountHow};
use tokio::time::Instant;

/// Budget of one mount unless told otherwise (D12).
pub(crate) const MEMORY_BYTES_DEFAULT: usize = 512 << 20;
/// Longest wait for a volume to answer when it is being mounted.
const MOUNT_DEADLINE: Duration = Duration::from_secs(30);
/// Longest flush of a mount that is told to stop: with all that follows it ends within 20 s.
const STOP_FLUSH_MAX: Duration = Duration::from_secs(12);

/// Volume to mount, and options of the mount.
pub(crate) struct MountRequest<'a> {
    pub(crate) volmgr: &'a str,
    pub(crate) volume: &'a str,
    pub(crate) point: &'a MountPoint,
    pub(crate) options: MountOptions,
    pub(crate) memory_bytes: usize,
}

pub(crate) struct Mounted {
    file_system: FileSystem,
    mount: Mount,
}

impl Mounted {
    pub(crate) async fn start(request: MountRequest<'_>) -> Result<Self> {
        let path = request.point.path();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // A later mount at the same place of the same host fences this one (the former session is certainly gone).
        let client_key = [host.trim().as_bytes(), b":", path.as_os_str().as_bytes()].concat();
        let config = MountConfig {
            volmgr: request.volmgr.to_owned(),
            volume: request.volume.to_owned(),
            client_key,
            description: format!("{}:{} (pid {})", host.trim(), path.display(), std::process::id()),
            read_only: request.options.is_read_only(),
            memory_bytes: request.memory_bytes,
            sabotage: Sabotage::None,
        };
        let file_system = tokio::time::timeout(MOUNT_DEADLINE, FileSystem::mount(config))
            .await
            .with_context(|| format!("volume '{}' does not answer", request.volume))??;
        let source = format!("{}/{}", request.volmgr, request.volume);
        let (point, options, runtime) = (request.point.clone(), request.options, tokio::runtime::Handle::current());
        let served = file_system.clone();
        // mount(2) and the first request block.
        let mount = tokio::task::spawn_blocking(move || Mount::start(served, &source, &point, &options, runtime)).await;
        match mount.context("the mounting thread ended")? {
            Ok(mount) => Ok(Self { file_system, mount }),
            Err(error) => {
                // Nothing was written: only the session is given back.
                let _ = file_system.shutdown().await;
                Err(error.into())
            }
        }
    }

    /// Waits until it is unmounted from outside, or breaks.
    pub(crate) async fn wait(&self) -> SessionEnd {
        self.mount.wait_unmounted().await
    }

    /// Flushes what an unmount from outside left, and closes the session.
    pub(crate) async fn finish(self) -> Result<()> {
        self.file_system.shutdown().await.context("what was written last may be lost")
    }

    /// Flushes, unmounts (lazily if somebody uses it, who is named to `say`), closes the session.
    pub(crate) async fn stop(&self, say: impl Fn(String)) -> Result<()> {
        let deadline = Instant::now() + STOP_FLUSH_MAX;
        // Before the unmount: a mount that is made at this place then fences this one.
        let flushed = tokio::time::timeout_at(deadline, self.file_system.sync_all()).await;
        match &flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => say(format!("flushing failed: {error}")),
            Err(_) => say(format!("not everything was flushed within {} s", STOP_FLUSH_MAX.as_secs())),
        }
        match self.mount.unmount(UnmountHow::IfUnused).await {
            Ok(()) => {}
            Err(error @ UnmountError::Busy { .. }) => {
                say(format!("{error}; detaching it, those will get errors"));
                self.mount.unmount(UnmountHow::Lazily).await?;
            }
            Err(error @ UnmountError::UsedElsewhere(_)) => say(format!("{error}, until this process ends")),
            Err(error) => {
                say(format!("{error}; detaching it"));
                self.mount.unmount(UnmountHow::Lazily).await?;
            }
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        self.file_system.shutdown_within(rest).await.context("what was written last may be lost")?;
        flushed.unwrap_or(Ok(())).context("what was written last may be lost")
    }

    /// Ends the mount at once; every request on it fails.
    pub(crate) fn abort(&self) {
        if let Err(error) = self.mount.abort() {
            tracing::warn!(%error, "the mount could not be aborted");
        }
    }
}
