//! The roles a process can play, started and stopped alike whether for `serve` or for `up`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use holdfast_datanode::{Datanode, DatanodeConfig, Process};
use holdfast_metanode::{Metanode, MetanodeConfig, StartError};
use holdfast_volmgr::{Volmgr, VolmgrConfig};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleKind {
    Volmgr,
    Metanode,
    Datanode,
}

impl RoleKind {
    /// As the command line and JSON name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Volmgr => "volmgr",
            Self::Metanode => "metanode",
            Self::Datanode => "datanode",
        }
    }

    /// As people are told of one, by its index from 0: there is one volume manager, the others are counted from 1.
    pub(crate) fn title(self, index: u32) -> String {
        match self {
            Self::Volmgr => "the volume manager".to_owned(),
            Self::Metanode | Self::Datanode => format!("{} {}", self.name(), index + 1),
        }
    }
}

/// Settings that a role starts with.
#[derive(Clone, Debug)]
pub(crate) enum RoleConfig {
    Volmgr { dir: PathBuf, listen: SocketAddr },
    Metanode { dir: PathBuf, listen: SocketAddr, volmgr: String },
    Datanode { dir: PathBuf, disks: Vec<PathBuf>, listen: SocketAddr, volmgr: String },
}

/// Reason why a metanode does not start that others can do without: it lost its log, or is not back yet. A sentence
/// with the command that brings it back.
#[derive(Clone, Debug)]
pub(crate) struct Lost(pub(crate) String);

impl std::fmt::Display for Lost {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

impl Lost {
    fn of(error: StartError) -> anyhow::Error {
        match error {
            StartError::Lost { .. } | StartError::Unfinished { .. } => Self(error.to_string()).into(),
            error => error.into(),
        }
    }
}

pub(crate) enum Role {
    Volmgr(Volmgr),
    Metanode(Metanode),
    Datanode(Datanode),
}

impl RoleConfig {
    pub(crate) fn kind(&self) -> RoleKind {
        match self {
            Self::Volmgr { .. } => RoleKind::Volmgr,
            Self::Metanode { .. } => RoleKind::Metanode,
            Self::Datanode { .. } => RoleKind::Datanode,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        match self {
            Self::Volmgr { dir, .. } | Self::Metanode { dir, .. } | Self::Datanode { dir, .. } => dir,
        }
    }

    /// Makes the role's directory, and its disks, what they must be to serve (R28: only when told to).
    pub(crate) async fn format(&self) -> Result<()> {
        match self {
            Self::Volmgr { dir, .. } => {
                let dir = dir.clone();
                tokio::task::spawn_blocking(move || holdfast_volmgr::format(&dir)).await.context("formatting")??;
            }
            Self::Metanode { dir, .. } => {
                holdfast_metanode::format(dir).await?;
            }
            Self::Datanode { dir, disks, .. } => {
                holdfast_datanode::format(dir, disks).await?;
            }
        }
        Ok(())
    }

    /// Starts serving, beside the other roles of this process.
    pub(crate) async fn start(self, process: &Process) -> Result<Role> {
        Ok(match self {
            Self::Volmgr { dir, listen } => {
                Role::Volmgr(holdfast_volmgr::start(VolmgrConfig { directory: dir, listen }).await?)
            }
            Self::Metanode { dir, listen, volmgr } => {
                let config = MetanodeConfig { directory: dir, listen, volmgr };
                Role::Metanode(holdfast_metanode::start(config).await.map_err(Lost::of)?)
            }
            Self::Datanode { dir, disks, listen, volmgr } => {
                let config = DatanodeConfig { directory: dir, disks, listen, volmgr };
                Role::Datanode(holdfast_datanode::start_in(config, process).await?)
            }
        })
    }
}

impl Role {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Volmgr(volmgr) => volmgr.local_addr(),
            Self::Metanode(metanode) => metanode.local_addr(),
            Self::Datanode(datanode) => datanode.local_addr(),
        }
    }

    /// Waits until a role stops serving by itself, and says why: its directory is gone or another, or the volume manager refuses a
    /// node for good, because a later copy of it is at work.
    pub(crate) async fn refused(&self) -> String {
        match self {
            Self::Datanode(datanode) => datanode.refused().await,
            Self::Metanode(metanode) => metanode.refused().await,
            Self::Volmgr(volmgr) => volmgr.refused().await,
        }
    }

    pub(crate) async fn shutdown(self) {
        match self {
            Self::Volmgr(volmgr) => volmgr.shutdown().await,
            Self::Metanode(metanode) => metanode.shutdown().await,
            Self::Datanode(datanode) => datanode.shutdown().await,
        }
    }
}
