//! Any directory that somebody else mounted.

use crate::systems;
use crate::workloads::System;

/// Made cold by a command, if one is given.
pub(crate) struct Mounted {
    pub(crate) label: String,
    pub(crate) remount: Option<String>,
}

impl System for Mounted {
    fn name(&self) -> &str {
        &self.label
    }

    fn cold_by(&self) -> &'static str {
        match self.remount {
            Some(_) => "the given command, kernel caches dropped",
            None => "kernel caches dropped",
        }
    }

    fn forget(&mut self) -> anyhow::Result<()> {
        if let Some(command) = &self.remount {
            systems::run("sh", &["-c", command])?;
        }
        Ok(())
    }

    fn hang_breaker(&self) -> Box<dyn Fn() + Send> {
        // Whose processes these are is not known here; the message on stderr has to do.
        Box::new(|| {})
    }
}
