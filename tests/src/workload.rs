//! Writers that know what they were promised: each works in a directory of its own until it is told to stop or a call
//! fails, and can then tell of every byte and name there whether it may be so. They go on where they were after a crash.
//!
//! What they hold the file system to: a call that changes names and returned has happened, and one that failed happened
//! wholly or not at all; bytes that an fsync covered are there; every other byte is one that was written there, or is in a
//! hole that the writer left.

mod appender;
mod churner;
mod overwriter;
mod packer;
mod replacer;

pub use appender::Appender;
pub use churner::Churner;
pub use overwriter::Overwriter;
pub use packer::Packer;
pub use replacer::Replacer;

use crate::block::{BLOCK_BYTES, Seen, identify};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How writers are told to stop and tell how far they are.
#[derive(Debug, Default)]
pub struct Signal {
    stop: AtomicBool,
    progress: AtomicU64,
    at_work: AtomicUsize,
}

impl Signal {
    /// Tells them to stop after the call they are in.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Calls that have succeeded so far.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Writers that have not ended yet.
    #[must_use]
    pub fn at_work(&self) -> usize {
        self.at_work.load(Ordering::Relaxed)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn advance(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// One writer. Every writer of a test has another number; it is in the ids of its files.
pub trait Writer: Send {
    /// Works below `directory` until stopped; an error of the file system ends it early.
    ///
    /// # Errors
    /// What the file system answered.
    fn work(&mut self, directory: &Path, signal: &Signal) -> io::Result<()>;

    /// Checks everything below `directory` against what it was promised, and takes what is there as its new state.
    ///
    /// # Panics
    /// If a promise was broken.
    fn verify(&mut self, directory: &Path);
}

/// Ids of files: no two files of a test have the same.
#[derive(Clone, Copy, Debug)]
pub struct FileIds(u64);

impl FileIds {
    /// The ids of one writer.
    #[must_use]
    pub fn of_writer(number: u64) -> Self {
        Self(number << 32)
    }

    /// One that was not given before.
    pub fn fresh(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// A set of writers at work, each in its own thread and directory.
pub struct Crew {
    writers: Vec<(String, Box<dyn Writer>)>,
}

impl Crew {
    /// One writer of each kind; `seed` decides what they do.
    #[must_use]
    pub fn of_all_kinds(seed: u64) -> Self {
        Self::numbered_from(1, seed)
    }

    /// The same beside other crews: its writers have five numbers of their own, from `first` on.
    #[must_use]
    fn numbered_from(first: u64, seed: u64) -> Self {
        let ids = |offset| FileIds::of_writer(first + offset);
        let writers: Vec<(&str, Box<dyn Writer>)> = vec![
            ("appender", Box::new(Appender::new(ids(0), seed + 1))),
            ("overwriter", Box::new(Overwriter::new(ids(1), seed + 2))),
            ("replacer", Box::new(Replacer::new(ids(2), seed + 3))),
            ("churner", Box::new(Churner::new(ids(3), seed + 4))),
            ("packer", Box::new(Packer::new(ids(4), seed + 5))),
        ];
        Self { writers: writers.into_iter().map(|(name, writer)| (name.to_owned(), writer)).collect() }
    }

    /// A crew that follows others in the same place, and works beside those of other places: no two have a number in common. The
    /// files of a crew can then not be taken for those of the one before it.
    #[must_use]
    pub fn of_shift(place: u64, shift: u64, seed: u64) -> Self {
        const PLACES: u64 = 2;
        const WRITERS: u64 = 5;
        assert!(place < PLACES, "a place more needs numbers of its own");
        Self::numbered_from(1 + WRITERS * (shift * PLACES + place), seed.wrapping_add(shift))
    }

    /// Lets them work below `top` while `meanwhile` runs on this thread, and stops them when it returns. What each of them
    /// ended with is given back with what `meanwhile` said.
    pub fn work<T>(&mut self, top: &Path, meanwhile: impl FnOnce(&Signal) -> T) -> (T, Vec<(String, io::Result<()>)>) {
        let signal = Signal { at_work: AtomicUsize::new(self.writers.len()), ..Signal::default() };
        std::thread::scope(|scope| {
            // A panic of `meanwhile` must stop them too, or the scope would never end.
            let stopper = StopOnDrop(&signal);
            let threads: Vec<_> = self
                .writers
                .iter_mut()
                .map(|(name, writer)| {
                    let (directory, signal) = (top.join(&*name), &signal);
                    let name = name.clone();
                    let thread = scope.spawn(move || {
                        let end = std::fs::create_dir_all(&directory).and_then(|()| writer.work(&directory, signal));
                        signal.at_work.fetch_sub(1, Ordering::Relaxed);
                        end
                    });
                    (name, thread)
                })
                .collect();
            let said = meanwhile(&signal);
            drop(stopper);
            let ends = threads.into_iter().map(|(name, thread)| (name, thread.join().expect("a writer never panics")));
            (said, ends.collect())
        })
    }

    /// Checks all of it; no name may be there that no writer made.
    ///
    /// # Panics
    /// If a promise was broken.
    pub fn verify(&mut self, top: &Path) {
        let known: BTreeSet<PathBuf> = self.writers.iter().map(|(name, _)| top.join(name)).collect();
        for path in children(top) {
            assert!(known.contains(&path), "{} came from nowhere", path.display());
        }
        for (name, writer) in &mut self.writers {
            let directory = top.join(&*name);
            if directory.exists() {
                writer.verify(&directory);
            }
        }
    }
}

struct StopOnDrop<'a>(&'a Signal);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Waits for this much more progress.
///
/// # Panics
/// If it does not come in time.
#[track_caller]
pub fn wait_for_progress(signal: &Signal, more: u64, limit: Duration, while_waiting: impl FnMut()) -> Duration {
    let (started, goal) = (Instant::now(), signal.progress() + more);
    let mut while_waiting = while_waiting;
    crate::wait::for_state(&format!("{more} more calls succeed"), limit, || {
        while_waiting();
        signal.progress() >= goal
    });
    started.elapsed()
}

/// The entries of a directory, each of which must refer to something.
///
/// # Panics
/// If it cannot be listed, or a name refers to nothing.
#[must_use]
pub fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", directory.display())).path()).collect();
    paths.sort();
    for path in &paths {
        if let Err(error) = path.symlink_metadata() {
            panic!("the name {} refers to nothing: {error}", path.display());
        }
    }
    paths
}

/// What each block of a file is.
///
/// # Panics
/// If it cannot be read, or the size is not what is read.
#[must_use]
pub fn blocks_of(path: &Path) -> Vec<Seen> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let size = path.metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display())).len();
    assert_eq!(bytes.len() as u64, size, "{} reads as another length than it has", path.display());
    bytes.chunks(BLOCK_BYTES).map(identify).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writers_promises_hold_on_a_local_file_system_round_after_round() {
        let directory = tempfile::tempdir().unwrap();
        let mut crew = Crew::of_all_kinds(1);
        for _ in 0..3 {
            let (_, ends) = crew.work(directory.path(), |signal| {
                wait_for_progress(signal, 400, Duration::from_secs(60), || {});
            });
            assert!(ends.iter().all(|(_, end)| end.is_ok()), "{ends:?}");
            crew.verify(directory.path());
        }
    }

    fn broken_by(spoil: impl FnOnce(&Path)) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let mut crew = Crew::of_all_kinds(2);
        crew.work(directory.path(), |signal| wait_for_progress(signal, 600, Duration::from_secs(60), || {}));
        spoil(directory.path());
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| crew.verify(directory.path()))).is_err()
    }

    fn first_file(directory: &Path) -> PathBuf {
        children(directory).into_iter().find(|path| path.metadata().unwrap().len() > 0).unwrap()
    }

    #[test]
    fn a_lost_file_a_zeroed_block_a_foreign_block_and_a_ghost_are_all_found() {
        assert!(!broken_by(|_| {}));
        assert!(broken_by(|top| std::fs::remove_file(first_file(&top.join("packer"))).unwrap()));
        assert!(broken_by(|top| std::fs::remove_file(top.join("replacer/current")).unwrap()));
        assert!(broken_by(|top| std::fs::write(top.join("churner/ghost"), "").unwrap()));
        let zero_first_block = |path: &Path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; BLOCK_BYTES], 0).unwrap();
        };
        assert!(broken_by(|top| zero_first_block(&first_file(&top.join("appender")))));
        assert!(broken_by(|top| {
            std::fs::copy(first_file(&top.join("packer")), first_file(&top.join("appender"))).unwrap();
        }));
    }
}
