//! Carries the tasks of one simulated process, in the caller's thread, in the order in which they were woken.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use holdfast_client::runtime::Work;
use parking_lot::Mutex;

/// Tasks that were woken and not polled since.
#[derive(Default)]
struct Ready(Mutex<VecDeque<u64>>);

struct Alarm {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.0.lock().push_back(self.task);
        }
    }
}

struct Task {
    work: Work,
    alarm: Arc<Alarm>,
    waker: Waker,
}

/// The tasks. Dropping it ends the process: no task goes on.
#[derive(Default)]
pub(super) struct Executor {
    tasks: BTreeMap<u64, Task>,
    ready: Arc<Ready>,
    next_task: u64,
}

impl Executor {
    pub(super) fn spawn(&mut self, work: Work) {
        let task = self.next_task;
        self.next_task += 1;
        let alarm = Arc::new(Alarm { task, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        alarm.wake_by_ref();
        let waker = Waker::from(Arc::clone(&alarm));
        self.tasks.insert(task, Task { work, alarm, waker });
    }

    /// Polls the task that was woken first. False if none is.
    pub(super) fn poll_one(&mut self) -> bool {
        let Some(number) = self.ready.0.lock().pop_front() else { return false };
        if let Some(task) = self.tasks.get_mut(&number) {
            task.alarm.queued.store(false, Ordering::Relaxed);
            if task.work.as_mut().poll(&mut Context::from_waker(&task.waker)) == Poll::Ready(()) {
                self.tasks.remove(&number);
            }
        }
        true
    }

    pub(super) fn tasks_count(&self) -> usize {
        self.tasks.len()
    }
}
