//! The client that is killed: a mount of its own, a crew of writers on it, and what they were promised looked up through the
//! next mount. The calls of a killed client may fail; nothing else of it may.

use super::panics;
use crate::cluster::{Cluster, Mounted};
use crate::processes::{self, ProcessId};
use crate::workload::Crew;
use crate::{Run, wait};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest that the writers of a killed client may take to notice.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// Longest that the removal of what a crew left may take.
const REMOVE_LIMIT: Duration = Duration::from_secs(240);
const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// A crew goes on after so many kills before the next one takes its place, so that the volume does not grow.
const KILLS_OF_SHIFT: u64 = 3;

type Ends = Vec<(String, std::io::Result<()>)>;

/// See the module. Must be made and killed on one thread, which its mounts die with.
pub(super) struct Victim {
    mounted: Mounted,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Crew, u64, Ends)>,
    /// The crew's directory below the mount.
    directory: PathBuf,
    seed: u64,
    past: Past,
}

/// What was before this client.
#[derive(Clone, Copy, Default)]
struct Past {
    /// Calls of all clients.
    calls: u64,
    /// Clients killed.
    kills: u64,
}

impl Victim {
    pub(super) fn start(cluster: &Cluster, directory: PathBuf, seed: u64) -> Self {
        Self::work(cluster.mount_again("demo"), directory, crew(0, seed), seed, Past::default())
    }

    fn work(mounted: Mounted, directory: PathBuf, mut crew: Crew, seed: u64, past: Past) -> Self {
        let (stop, top) = (Arc::new(AtomicBool::new(false)), mounted.point().join(&directory));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (calls, ends) = crew.work(&top, |signal| {
                wait::until(FOREVER, || (stopped.load(Ordering::Relaxed) || signal.at_work() == 0).then_some(()));
                signal.progress()
            });
            (crew, calls, ends)
        });
        Self { mounted, stop, thread, directory, seed, past }
    }

    pub(super) fn pid(&self) -> ProcessId {
        self.mounted.pid()
    }

    /// kill -9; the next client looks at what is there, and works on. `Err` says what was broken.
    pub(super) fn kill(self, cluster: &Cluster) -> Result<Self, String> {
        let Self { mounted, stop, thread, directory, seed, mut past } = self;
        processes::signal(mounted.pid(), Signal::SIGKILL);
        let noticed = wait::until(NOTICE_LIMIT, || thread.is_finished().then_some(()));
        stop.store(true, Ordering::Relaxed);
        // Aborts what hangs.
        drop(mounted);
        let (mut working, calls, _) = thread.join().map_err(|panic| panics::message(&*panic))?;
        let mounted = cluster.mount_again("demo");
        let top = mounted.point().join(&directory);
        panics::caught(|| working.verify(&top))?;
        if noticed.is_none() {
            return Err(format!("calls of a killed client hung for {} s", NOTICE_LIMIT.as_secs()));
        }
        (past.calls, past.kills) = (past.calls + calls, past.kills + 1);
        if past.kills.is_multiple_of(KILLS_OF_SHIFT) {
            panics::caught(|| Run::new("find").arg(&top).args(["-mindepth", "1", "-delete"]).limit(REMOVE_LIMIT).ok())?;
            working = crew(past.kills / KILLS_OF_SHIFT, seed);
        }
        Ok(Self::work(mounted, directory, working, seed, past))
    }

    /// Stops the last one in the orderly way; the calls of all.
    pub(super) fn end(self) -> Result<u64, String> {
        let Self { mounted, stop, thread, directory, past, .. } = self;
        stop.store(true, Ordering::Relaxed);
        let (mut crew, calls, ends) = thread.join().map_err(|panic| panics::message(&*panic))?;
        if let Some((writer, Err(error))) = ends.into_iter().find(|(_, end)| end.is_err()) {
            return Err(format!("the {writer} of a client that nobody killed got an error: {error}"));
        }
        let top = mounted.point().join(&directory);
        panics::caught(|| crew.verify(&top))?;
        panics::caught(|| mounted.unmount())?;
        Ok(past.calls + calls)
    }
}

/// The crew of a shift.
fn crew(shift: u64, seed: u64) -> Crew {
    Crew::of_shift(1, shift, seed)
}
