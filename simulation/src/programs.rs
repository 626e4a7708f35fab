//! Programs on a simulated client, which use the file system and tell the truth what they were told.

mod burnt;
mod data;
mod names;
mod remove;
mod takeover;
mod volumes;

pub(crate) use burnt::{Lines, name_burnt_chunks};
pub(crate) use data::{audit, work_on_files};
pub(crate) use names::{clear, watch_names, work_on_names};
pub(crate) use takeover::{take_over, write_until_lost};
pub(crate) use volumes::{Ask, clear_volumes, work_on_volumes};

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::runtime::{Runtime, within};
use holdfast_client::{Error, FileHandle, FileSystem, OpenMode};
use holdfast_common::Random;
use parking_lot::{Mutex, MutexGuard};

use crate::truth::{Stage, Truth};

/// Pause before what found no members or leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Tools of a program.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) fs: FileSystem,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) truth: Arc<Mutex<Truth>>,
    pub(crate) random: Random,
    /// Index of the client, and its key.
    pub(crate) client: usize,
    pub(crate) key: Vec<u8>,
    /// Sessions that the client had lost when it mounted.
    pub(crate) losses: u64,
}

/// Mode in which programs open files.
fn for_all() -> OpenMode {
    OpenMode { read: true, write: true, ..OpenMode::default() }
}

impl Desk {
    pub(crate) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock()
    }

    /// Sessions that the client has lost so far.
    fn lost_sessions(&self) -> u64 {
        self.truth().losses_of(&self.key)
    }

    fn goes_on(&self) -> bool {
        self.truth().stage == Stage::Work
    }

    /// Bytes that tell where and when they were written; none is 0.
    fn pattern(&mut self, length: u64) -> Bytes {
        let stamp = self.random.bits();
        let byte = |at: u64| u8::try_from(stamp.wrapping_add(at.wrapping_mul(131)) >> 3 & 0xff).unwrap_or(0) | 1;
        (0..length).map(byte).collect::<Vec<u8>>().into()
    }

    /// Syncs until it is known what became of everything.
    async fn sync(&self, handle: FileHandle) -> Result<(), Error> {
        loop {
            match self.fs.fsync(handle).await {
                Err(Error::TimedOut(_)) => self.runtime.sleep(RETRY_PAUSE).await,
                told => return told,
            }
        }
    }

    async fn pause(&mut self, most_ms: u64) {
        let pause = Duration::from_micros(self.random.below(most_ms * 1000) + 1);
        self.runtime.sleep(pause).await;
    }

    /// Lets go of a work that does not end within a time, as an interrupted system call does.
    async fn unless_interrupted<T>(&mut self, percent: u64, most_us: u64, work: impl Future<Output = T>) -> Option<T> {
        if !self.random.chance(percent) {
            return Some(work.await);
        }
        let patience = Duration::from_micros(self.random.below(most_us));
        within(&*self.runtime, patience, work).await
    }
}
