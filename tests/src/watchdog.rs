//! The watchdog: a thread that ends a claim which does not end by itself. First it says where things are stuck and aborts
//! the room's mounts, which makes every hung call fail and so, as a rule, the claim. If that does not help it kills the
//! room's processes, and at last the room itself, after the closing line.

use crate::{diagnose, namespace, processes};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What an aborted claim has before the next, harder step.
const STEP: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

struct Watched {
    name: String,
    limit: Duration,
    deadline: Instant,
    step: u32,
}

/// The handle of the claims' runner.
#[derive(Clone)]
pub(crate) struct Watchdog {
    watched: Arc<Mutex<Option<Watched>>>,
}

impl Watchdog {
    /// Starts the thread. `give_up` is called when nothing else helped; it must end the process.
    pub(crate) fn start(root: &Path, give_up: impl Fn(&str) + Send + 'static) -> Self {
        let dog = Self { watched: Arc::new(Mutex::new(None)) };
        let (own, root) = (dog.clone(), root.to_owned());
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(POLL_INTERVAL);
                own.look(&root, &give_up);
            }
        });
        dog
    }

    /// From now on this claim has so long.
    pub(crate) fn watch(&self, name: &str, limit: Duration) {
        let watched = Watched { name: name.to_owned(), limit, deadline: Instant::now() + limit, step: 0 };
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
    }

    /// The claim ended; whether it had to be helped.
    pub(crate) fn release(&self) -> bool {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).take();
        watched.is_some_and(|watched| watched.step > 0)
    }

    fn look(&self, root: &Path, give_up: &impl Fn(&str)) {
        let Some((name, limit, step)) = self.next_step() else { return };
        match step {
            1 => {
                eprintln!("watchdog: {name} did not end within {} s", limit.as_secs());
                diagnose::print_stuck_threads();
                namespace::abort_and_detach_below(root);
            }
            2 => {
                eprintln!("watchdog: {name} is still there with its mounts aborted; killing the room's processes");
                diagnose::print_logs(root);
                processes::kill_all(&processes::tagged(&processes::room_tag()), Duration::from_secs(5));
            }
            _ => give_up(&name),
        }
    }

    fn next_step(&self) -> Option<(String, Duration, u32)> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = watched.as_mut().filter(|watched| Instant::now() >= watched.deadline)?;
        watched.step += 1;
        watched.deadline = Instant::now() + STEP;
        Some((watched.name.clone(), watched.limit, watched.step))
    }
}
