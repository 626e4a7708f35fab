//! A further mount of a cluster's volume.

use super::{Cluster, NEXT_PART, STOP_LIMIT, die_with_parent};
use crate::command::{Run, holdfast_binary, tagged_command, wait_or_kill};
use crate::namespace::{self, is_mounted};
use crate::processes::{self, ProcessId};
use crate::wait::{self, seconds};
use nix::sys::signal::Signal;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A mount made by `holdfast mount`.
pub struct Mounted {
    point: PathBuf,
    child: Child,
    log: PathBuf,
}

impl Mounted {
    #[track_caller]
    pub(super) fn mount(cluster: &Cluster, volume: &str, arguments: &[&str]) -> Self {
        let number = NEXT_PART.fetch_add(1, Ordering::Relaxed);
        let (point, log) =
            (cluster.root().join(format!("mnt{number}")), cluster.root().join(format!("mnt{number}.err")));
        std::fs::create_dir_all(&point).expect("a mount point can be made");
        let mut command = tagged_command(holdfast_binary(), &cluster.part);
        command
            .arg("mount")
            .arg(format!("{}/{volume}", cluster.ready().volmgr))
            .arg(&point)
            .arg("--foreground")
            .args(arguments);
        let log_file = File::create(&log).expect("the cluster's directory can be written");
        command.stdout(log_file.try_clone().expect("a file can be duplicated")).stderr(log_file);
        die_with_parent(&mut command);
        let child = command.spawn().expect("holdfast can be started");
        let mut mounted = Self { point, child, log };
        wait::until(seconds(30), || {
            let ended = mounted.child.try_wait().ok().flatten().is_some();
            (ended || is_mounted(&mounted.point)).then_some(())
        });
        assert!(is_mounted(&mounted.point), "{volume} was not mounted: {}", mounted.said());
        mounted
    }

    /// Where it is.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> ProcessId {
        self.child.id()
    }

    /// What it printed.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Unmounts by `umount`, and demands that the process ends well by itself.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn unmount(mut self) {
        Run::new("umount").arg(&self.point).limit(STOP_LIMIT).ok();
        let status = wait_or_kill(&mut self.child, STOP_LIMIT);
        assert!(status.is_some_and(|s| s.success()), "the mount ended with {status:?}: {}", self.said());
    }

    /// Ends it by SIGTERM; how it ended, `None` if not within the time promised, and what it printed.
    #[must_use]
    pub fn terminate(mut self) -> (Option<ExitStatus>, String) {
        processes::signal(self.pid(), Signal::SIGTERM);
        let status = wait_or_kill(&mut self.child, STOP_LIMIT);
        (status, self.said())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        namespace::abort_and_detach_below(&self.point);
        wait_or_kill(&mut self.child, Duration::from_secs(1));
    }
}
