//! Progress of `up`, shown on a terminal while it comes up, and told if it does not come up in time.

use std::io::{IsTerminal as _, Write as _};

use parking_lot::Mutex;

/// The present step.
pub(crate) struct Progress {
    terminal: bool,
    step: Mutex<String>,
}

impl Progress {
    /// Shows steps only on a terminal.
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), step: Mutex::new("starting".to_owned()) }
    }

    pub(crate) fn say(&self, step: String) {
        let mut shown = self.step.lock();
        if *shown == step {
            return;
        }
        if self.terminal {
            let mut terminal = std::io::stderr().lock();
            // Progress that cannot be shown is no reason to stop.
            let _ = write!(terminal, "\r\x1b[K{step} ...").and_then(|()| terminal.flush());
        }
        *shown = step;
    }

    pub(crate) fn step(&self) -> String {
        self.step.lock().clone()
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}
