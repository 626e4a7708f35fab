//! Any directory that somebody else mounted.

use crate::systems;
use crate::workloads::Cold;

/// Made cold by a command, if one is given.
pub(crate) struct Mounted {
    pub(crate) remount: Option<String>,
}

impl Mounted {
    pub(crate) fn cold_by(&self) -> &'static str {
        match self.remount {
            Some(_) => "the given command, kernel caches dropped",
            None => "kernel caches dropped",
        }
    }
}

impl Cold for Mounted {
    fn forget(&mut self) -> anyhow::Result<()> {
        if let Some(command) = &self.remount {
            systems::run("sh", &["-c", command])?;
        }
        Ok(())
    }
}
