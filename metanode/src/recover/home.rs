//! The directory of a metanode that is being brought back, and the order in which it changes:
//!
//! 1. the superblock names the new log beside the old one: from here on nothing serves, whatever log is there;
//! 2. `consensus`, the old log, gets the name `consensus-lost-1` (or 2, ...): nothing of it is deleted;
//! 3. the new log is made, under the name that the superblock has;
//! 4. it is filled with the tables;
//! 5. the superblock names it alone.
//!
//! A death before 3 was done begins again at 1, under another name for the new log; one after it goes on at 4.

use super::{RecoverFailed, io_failed};
use crate::directory::{CONSENSUS_DIRECTORY, KIND};
use crate::server::{StartError, claim};
use holdfast_common::random_bytes;
use holdfast_consensus::{ExpectedLog, NodeConfig, OpenError, Recovering, examine_log, format_log_as};
use holdfast_node::NodeSuperblock;
use holdfast_storage::{DirectoryLock, sync_parent};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};

/// Name under which a log that is of no use any more is kept, with a number behind it.
const ASIDE: &str = "consensus-lost";

/// A directory that is to be brought back, locked. Nothing has changed.
#[derive(Debug)]
pub(super) struct Home {
    directory: PathBuf,
    identity: NodeSuperblock,
    _lock: DirectoryLock,
}

/// State of a directory.
#[derive(Debug)]
pub(super) enum Found {
    /// The log that the superblock names is not there, or not whole.
    Lost(OpenError),
    /// The new log of a recovery that has begun, whole as far as it got.
    Unfinished,
}

impl Home {
    /// Locks a directory and looks at it. Blocks for as long as reading the log takes.
    pub(super) fn look(directory: &Path) -> Result<(Self, Found), RecoverFailed> {
        let (identity, lock) = claim(directory)?;
        let directory = directory.to_owned();
        if !identity.is_registered() {
            return Err(RecoverFailed::Unregistered { directory });
        }
        let found = found(&directory, &identity)?;
        Ok((Self { directory, identity, _lock: lock }, found))
    }

    pub(super) fn identity(&self) -> &NodeSuperblock {
        &self.identity
    }

    /// Steps 1 to 3, unless they were done. Says where the old log is, if there was anything of it. Blocks.
    pub(super) fn begin(mut self, found: &Found) -> Result<(Begun, Option<PathBuf>), RecoverFailed> {
        let mut aside = None;
        match found {
            Found::Unfinished => self.raise(self.identity.recovering)?,
            Found::Lost(_) => {
                let new = random_bytes().map_err(io_failed(&self.directory))?;
                self.raise(Some(new))?;
                aside = set_aside(&self.directory).map_err(io_failed(&self.directory))?;
                format_log_as(&self.consensus(), new).map_err(StartError::from)?;
            }
        }
        let expected = self.identity.recovering.map_or(ExpectedLog::Any, ExpectedLog::Identity);
        let config = NodeConfig { log: expected, ..NodeConfig::new(self.identity.node, self.consensus()) };
        let recovering = Recovering::open(&config, self.identity.generation).map_err(StartError::from)?;
        Ok((Begun { home: self, recovering: Mutex::new(recovering) }, aside))
    }

    /// The start that asks is a new one: what former ones said is heard no more.
    fn raise(&mut self, recovering: Option<[u8; 16]>) -> Result<(), RecoverFailed> {
        // One that no log has where none was named: a build that does not know recoveries must not serve the new log half filled.
        let log = self.identity.log.map_or_else(random_bytes, Ok).map_err(io_failed(&self.directory))?;
        let generation = self.identity.generation + 1;
        let marked = NodeSuperblock { generation, log: Some(log), recovering, ..self.identity.clone() };
        marked.write(&self.directory, KIND).map_err(StartError::from)?;
        self.identity = marked;
        Ok(())
    }

    fn consensus(&self) -> PathBuf {
        self.directory.join(CONSENSUS_DIRECTORY)
    }
}

fn found(directory: &Path, identity: &NodeSuperblock) -> Result<Found, RecoverFailed> {
    let expected = identity.recovering.or(identity.log).map_or(ExpectedLog::Any, ExpectedLog::Identity);
    match examine_log(&directory.join(CONSENSUS_DIRECTORY), expected) {
        Ok(()) if identity.recovering.is_some() => Ok(Found::Unfinished),
        Ok(()) => Err(RecoverFailed::Healthy { directory: directory.to_owned() }),
        Err(error) if error.is_lost() => Ok(Found::Lost(error)),
        Err(error) => Err(StartError::Open(error).into()),
    }
}

/// Gives what is left of a log a name that nobody has; durable when it returns. `None` if nothing is left of it.
fn set_aside(directory: &Path) -> io::Result<Option<PathBuf>> {
    let consensus = directory.join(CONSENSUS_DIRECTORY);
    // Directories that are empty, and only these, go.
    for empty in [consensus.join("log"), consensus.join("snapshots"), consensus.clone()] {
        let _ = std::fs::remove_dir(empty);
    }
    if consensus.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let names = (1..).map(|number: u32| directory.join(format!("{ASIDE}-{number}")));
    let free = names.into_iter().find(|name| name.symlink_metadata().is_err());
    let aside = free.ok_or(io::ErrorKind::AlreadyExists)?;
    std::fs::rename(&consensus, &aside)?;
    sync_parent(&aside)?;
    Ok(Some(aside))
}

/// A recovery that has begun.
pub(super) struct Begun {
    home: Home,
    recovering: Mutex<Recovering>,
}

impl Begun {
    pub(super) fn identity(&self) -> &NodeSuperblock {
        &self.home.identity
    }

    pub(super) fn directory(&self) -> &Path {
        &self.home.directory
    }

    /// Directory of snapshots that come in.
    pub(super) fn snapshots(&self) -> PathBuf {
        self.home.consensus().join("snapshots")
    }

    pub(super) fn recovering(&self) -> &Mutex<Recovering> {
        &self.recovering
    }

    /// Step 5. Blocks.
    pub(super) fn finish(&self) -> Result<(), RecoverFailed> {
        let Home { directory, identity, .. } = &self.home;
        let whole = NodeSuperblock { log: identity.recovering, recovering: None, ..identity.clone() };
        whole.write(directory, KIND).map_err(StartError::from)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
