//! Path walks: one request for the directories of a path where the kernel asks two questions for each.
//!
//! While nothing is valid for any time, the kernel resolves a path by a getattr of the directory where it starts (whether
//! it may be searched), and a lookup and again a getattr for every name. A thread asks one question after the other, so
//! its questions can be told from those of others. At the first one of a walk, the directories that its last walk from
//! there went through are asked for as well. As long as the thread goes the same way, they answer it.
//!
//! Each answer was true at a moment between the first question of the system call and the answer, which is what being
//! asked anew promises too. A new system call is not taken for the old one, for it begins with a getattr where it starts.
//! That continues a walk only if the former call ended with the lookup of the very directory (`open(2)` with `O_PATH`,
//! `mkdir(2)` of what is there). For that case answers are good for [`ANSWER_AGE_MAX`].
//!
//! The kernel keeps the answer to one thread for all of them: it reads mode and owner again a little later than it
//! asked for them. So no thread is told of a directory's former mode or owner after another has been told of the new
//! one, here as by the kernel, which drops an answer that was overtaken.
//!
//! Only directories are answered so: the kernel takes a file's size from any answer, and an old one would undo what
//! another thread has just written. The one exception is a file that the system call has just made: `open(2)` asks for its
//! attributes again after the create, and this mount knows them, with what it wrote since, unless somebody else is known to have
//! changed it.

use bytes::Bytes;
use holdfast_client::{Attributes, NodeKind};
use holdfast_common::InodeId;
use holdfast_common::limits::WALK_NAMES_MAX;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Maximum age of a prefetched answer, from when it was asked for.
const ANSWER_AGE_MAX: Duration = Duration::from_millis(2);
/// Walks remembered of a thread: it may take turns between a few directories where they start.
const WALKS_PER_THREAD_MAX: usize = 4;
/// Threads remembered. All are forgotten when there are more.
const THREADS_MAX: usize = 1024;
/// Most directories that walks are kept of.
const DIRECTORIES_MAX: usize = 16 * 1024;

/// Id that the kernel gives to all threads that the PID namespace of the mount does not see.
const UNKNOWN_THREAD: u32 = 0;

/// Walks of all threads.
#[derive(Debug, Default)]
pub(super) struct Walks {
    state: Mutex<State>,
    /// Counts what takes back all answers: beginnings and ends of this mount's changes to directories, and changes by others
    /// that were seen.
    changes: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    threads: HashMap<u32, Thread>,
    /// Mode and owner of directories as they were last told of.
    seen: HashMap<InodeId, (u32, u32, u32)>,
}

/// Way to answer a question.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// At once, with these.
    Known(Attributes),
    /// By asking; these names too if there are any, with [`Walks::walked`] behind it.
    Ask(Asking, Vec<Bytes>),
}

/// Moment of a question, and the changes known then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Asking {
    thread: u32,
    since: Instant,
    changes: u64,
}

/// A change under way: no answer that was asked for before its end is given after its beginning.
#[derive(Debug)]
pub(super) struct Change(Arc<AtomicU64>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct Thread {
    /// The walk under way.
    walk: Option<Walk>,
    /// Last walks from different directories, the latest first.
    known: Vec<Walk>,
    /// Next questions if it goes the same way, with the answers.
    ahead: VecDeque<(Question, Attributes)>,
    asking: Option<Asking>,
    /// File that its last request made.
    made: Option<(InodeId, Asking)>,
}

#[derive(Clone, Debug)]
struct Walk {
    start: InodeId,
    /// Names with the directories they led to.
    steps: Vec<(Bytes, InodeId)>,
    /// The attributes of the last one were asked for: asking again begins another walk.
    entered: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Question {
    Attributes(InodeId),
    Entry(InodeId, Bytes),
}

impl Walk {
    fn place(&self) -> InodeId {
        self.steps.last().map_or(self.start, |(_, directory)| *directory)
    }

    fn step(&mut self, from: InodeId, name: &Bytes, to: InodeId) {
        if from == self.place() && self.steps.len() < WALK_NAMES_MAX {
            self.steps.push((name.clone(), to));
            self.entered = false;
        }
    }

    /// Whether asking for these attributes belongs to this walk.
    fn enters(&mut self, directory: InodeId) -> bool {
        self.place() == directory && !std::mem::replace(&mut self.entered, true)
    }
}

impl Asking {
    /// Whether an answer from then is still good now.
    fn holds(&self, now: &Self) -> bool {
        self.changes == now.changes && now.since.saturating_duration_since(self.since) <= ANSWER_AGE_MAX
    }
}

impl Thread {
    /// The answer, if this question was expected and the answer is still good; otherwise nothing is expected any more.
    fn expected(&mut self, question: &Question, now: Asking) -> Option<Attributes> {
        self.made = None;
        let expected = self.ahead.front().is_some_and(|(next, _)| next == question);
        if !expected || !self.asking.is_some_and(|then| then.holds(&now)) {
            self.ahead.clear();
            return None;
        }
        self.ahead.pop_front().map(|(_, attributes)| attributes)
    }

    /// Remembers the walk that ends here, unless it went a part of a known way.
    fn end(&mut self) {
        self.ahead.clear();
        self.made = None;
        let Some(walk) = self.walk.take().filter(|walk| !walk.steps.is_empty()) else { return };
        let before = self.known.iter().position(|known| known.start == walk.start).map(|at| self.known.remove(at));
        let latest = before.filter(|known| known.steps.starts_with(&walk.steps)).unwrap_or(walk);
        self.known.insert(0, latest);
        self.known.truncate(WALKS_PER_THREAD_MAX);
    }
}

impl Walks {
    /// A thread asks for an inode's attributes. `created` knows those of a file made a moment ago.
    pub(super) fn attributes(
        &self,
        thread: u32,
        inode: InodeId,
        now: Instant,
        created: impl FnOnce() -> Option<Attributes>,
    ) -> Answer {
        let asking = self.asking(thread, now);
        self.with(thread, |of| {
            if of.made.take().is_some_and(|(made, then)| made == inode && then.holds(&asking))
                && let Some(known) = created()
            {
                return Answer::Known(known);
            }
            let known = of.expected(&Question::Attributes(inode), asking);
            let enters = of.walk.as_mut().is_some_and(|walk| walk.enters(inode));
            if let Some(known) = known {
                return Answer::Known(known);
            }
            if enters {
                return Answer::Ask(asking, Vec::new());
            }
            of.end();
            let known = of.known.iter().find(|known| known.start == inode);
            let names = known.map(|known| known.steps.iter().map(|(name, _)| name.clone()).collect());
            of.walk = Some(Walk { start: inode, steps: Vec::new(), entered: true });
            Answer::Ask(asking, names.unwrap_or_default())
        })
    }

    /// Takes note of an inode's attributes that the table gave.
    pub(super) fn seen(&self, attributes: &Attributes) {
        if attributes.kind != NodeKind::Directory {
            return;
        }
        let told = (attributes.mode, attributes.uid, attributes.gid);
        let mut state = self.state.lock();
        let forgets = state.seen.len() >= DIRECTORIES_MAX && !state.seen.contains_key(&attributes.inode);
        if forgets {
            state.seen.clear();
        }
        let before = state.seen.insert(attributes.inode, told);
        if forgets || before.is_some_and(|before| before != told) {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The directories that the names led to, which were asked for with the attributes of `start`.
    pub(super) fn walked(&self, asking: Asking, start: InodeId, names: Vec<Bytes>, directories: &[Attributes]) {
        directories.iter().for_each(|directory| self.seen(directory));
        self.with(asking.thread, |of| {
            let mut at = start;
            for (name, attributes) in names.into_iter().zip(directories) {
                of.ahead.push_back((Question::Entry(at, name), *attributes));
                of.ahead.push_back((Question::Attributes(attributes.inode), *attributes));
                at = attributes.inode;
            }
            of.asking = Some(asking);
        });
    }

    /// A thread asks what a name leads to.
    pub(super) fn entry(&self, thread: u32, parent: InodeId, name: &Bytes, now: Instant) -> Answer {
        let asking = self.asking(thread, now);
        self.with(thread, |of| {
            let Some(known) = of.expected(&Question::Entry(parent, name.clone()), asking) else {
                return Answer::Ask(asking, Vec::new());
            };
            if let Some(walk) = &mut of.walk {
                walk.step(parent, name, known.inode);
            }
            Answer::Known(known)
        })
    }

    /// Takes note of the inode that a name led to.
    pub(super) fn found(&self, asking: Asking, parent: InodeId, name: &Bytes, attributes: &Attributes) {
        if attributes.kind != NodeKind::Directory {
            return;
        }
        self.seen(attributes);
        self.with(asking.thread, |of| {
            if let Some(walk) = &mut of.walk {
                walk.step(parent, name, attributes.inode);
            }
            of.ahead.push_back((Question::Attributes(attributes.inode), *attributes));
            of.asking = Some(asking);
        });
    }

    /// A thread is told that it has made a file, as was asked.
    pub(super) fn made(&self, asking: Asking, file: InodeId) {
        self.with(asking.thread, |of| of.made = Some((file, asking)));
    }

    /// A thread asks for something else: its walk has ended.
    pub(super) fn end(&self, thread: u32) {
        if let Some(of) = self.state.lock().threads.get_mut(&thread) {
            of.end();
        }
    }

    /// Something that a walk may have seen is about to change, until the answer is dropped.
    pub(super) fn change(&self) -> Change {
        self.changes.fetch_add(1, Ordering::SeqCst);
        Change(Arc::clone(&self.changes))
    }

    /// A question of a thread, now.
    pub(super) fn asking(&self, thread: u32, now: Instant) -> Asking {
        Asking { thread, since: now, changes: self.changes.load(Ordering::SeqCst) }
    }

    fn with<T>(&self, thread: u32, action: impl FnOnce(&mut Thread) -> T) -> T {
        if thread == UNKNOWN_THREAD {
            return action(&mut Thread::default());
        }
        let threads = &mut self.state.lock().threads;
        if threads.len() >= THREADS_MAX && !threads.contains_key(&thread) {
            threads.clear();
        }
        action(threads.entry(thread).or_default())
    }
}

#[cfg(test)]
mod tests;
