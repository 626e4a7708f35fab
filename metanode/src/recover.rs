//! Bringing a metanode back that lost its log (R23): `holdfast metanode recover`.
//!
//! It hosts nothing meanwhile, so that it counts in no quorum. For each of its tables it asks the leader to be let back in and takes
//! a snapshot, which the new log names with the leader's term and a vote for it. It dies anywhere, and goes on when it is run again:
//! `home` says in which order the directory changes.

mod fetch;
mod home;

use crate::core::recovery::{Needed, Standing, needed, standing};
use crate::server::StartError;
use fetch::{Fetcher, Outcome};
use holdfast_common::NodeId;
use holdfast_node::{NodeSuperblock, VolumeManager, is_final};
use holdfast_proto::control::Volume;
use home::{Found, Home};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinError;
use tokio::time::Instant;
use tonic::Status;

/// Pause between two rounds of questions, while something is waited for.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Longest time that the volume manager may go on hearing this node: it calls nobody dead before three seconds of
/// silence, and after its own start takes everybody for alive as long.
const HEARD_MAX: Duration = Duration::from_secs(10);

/// Metanode that is to be brought back.
#[derive(Clone, Debug)]
pub struct RecoverConfig {
    /// Directory that was formatted for it and lost its log.
    pub directory: PathBuf,
    /// The volume manager, host:port.
    pub volmgr: String,
}

/// Event of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoverProgress {
    /// It begins; what was left of the old log is kept there.
    Begun {
        /// Failure of the old log to open.
        lost: String,
        /// Below the metanode's directory; `None` if nothing was left.
        set_aside: Option<PathBuf>,
    },
    /// An earlier recovery was not finished and goes on.
    Resumed,
    /// Something has to happen elsewhere first: a sentence. It is said again in each round.
    Waits(String),
    /// A snapshot is on its way.
    Receiving {
        /// Name of its volume.
        volume: String,
        /// Replica that gives it.
        from: NodeId,
        /// Bytes received.
        done_bytes: u64,
        /// Its length.
        bytes: u64,
    },
    /// A table is back.
    Table(RecoveredTable),
}

/// A table that is back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredTable {
    /// Name of its volume.
    pub volume: String,
    /// Replica that gave its snapshot.
    pub from: NodeId,
    /// Length of the snapshot.
    pub bytes: u64,
}

/// A metanode that may serve again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Id that it keeps in the cluster.
    pub node: NodeId,
    /// Tables that this run brought back; one that was resumed may have had some before.
    pub tables: Vec<RecoveredTable>,
}

/// Reason why a metanode was not brought back.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum RecoverFailed {
    /// Its directory, or the address of its volume manager, is not what it should be.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is nothing to be brought back. Nothing was changed.
    #[error("the log of {} is whole: there is nothing to recover; start it with: holdfast metanode serve --dir {0}", directory.display())]
    Healthy { directory: PathBuf },
    /// It never hosted a table. Nothing was changed.
    #[error("the metanode of {} never registered, so that it has nothing to recover: remove the directory and format it again", directory.display())]
    Unregistered { directory: PathBuf },
    /// Nothing was changed.
    #[error("no volume manager answers at {address} ({reason}): it says which tables are to be recovered (--volmgr)")]
    Unreachable {
        /// Address it was asked at.
        address: String,
        /// Failure of the last attempt.
        reason: String,
    },
    /// Another copy of the directory runs. Nothing was changed.
    #[error("the volume manager hears node {node} at {address}: another copy of {} runs; stop it first", directory.display())]
    Living {
        node: NodeId,
        /// Address it is heard at.
        address: String,
        /// Directory that was to be brought back.
        directory: PathBuf,
    },
    /// Nothing was changed.
    #[error("this metanode cannot be recovered: {0}")]
    Refused(String),
    /// The other replicas of a table are no majority, so that nobody can say what was agreed. Nothing was changed.
    #[error(
        "volume '{volume}' cannot be recovered: its table has too few other replicas; bring the log back from a backup, or delete the volume"
    )]
    Hopeless {
        /// Name of the volume.
        volume: String,
    },
    /// The disk of the new log failed or is full.
    #[error("{}: {reason}; make sure that its disk is well and has room, and run the same command again", directory.display())]
    Disk {
        directory: PathBuf,
        /// Failure of the disk.
        reason: String,
    },
}

impl From<JoinError> for RecoverFailed {
    fn from(error: JoinError) -> Self {
        Self::Start(error.into())
    }
}

/// Brings the metanode of a directory back whose log is gone, another or damaged. Waits, and says so by `tell`, until every other
/// replica of its tables runs. It may be ended at any time, and goes on when it is called again. Must run inside a tokio runtime.
///
/// # Errors
/// [`RecoverFailed`].
pub async fn recover(
    config: RecoverConfig,
    mut tell: impl FnMut(RecoverProgress) + Send,
) -> Result<Recovered, RecoverFailed> {
    let volmgr = VolumeManager::new(&config.volmgr).map_err(|_| StartError::BadVolmgr(config.volmgr.clone()))?;
    let directory = config.directory.clone();
    let (home, found) = tokio::task::spawn_blocking(move || Home::look(&directory)).await??;
    let volumes = ask_volmgr(&config, &volmgr, home.identity(), &mut tell).await?;
    let node = home.identity().node;
    // As of now: what is made later was never hosted here.
    let tables = needed(&volumes, node);
    if let Some(table) = tables.iter().find(|table| table.is_hopeless()) {
        return Err(RecoverFailed::Hopeless { volume: table.name.clone() });
    }
    let lost = match &found {
        Found::Lost(error) => Some(error.to_string()),
        Found::Unfinished => None,
    };
    let (begun, set_aside) = tokio::task::spawn_blocking(move || home.begin(&found)).await??;
    tell(match lost {
        Some(lost) => RecoverProgress::Begun { lost, set_aside },
        None => RecoverProgress::Resumed,
    });
    let begun = Arc::new(begun);
    let fetcher = Fetcher::new(Arc::clone(&begun));
    let recovered = fetch_all(&fetcher, &volmgr, tables, &mut tell).await?;
    tokio::task::spawn_blocking(move || begun.finish()).await??;
    Ok(Recovered { node, tables: recovered })
}

/// Sees to it that this node may come back, and answers the volumes of its cluster.
async fn ask_volmgr(
    config: &RecoverConfig,
    volmgr: &VolumeManager,
    identity: &NodeSuperblock,
    tell: &mut (impl FnMut(RecoverProgress) + Send),
) -> Result<Vec<Volume>, RecoverFailed> {
    let unreachable = |status: Status| match is_final(&status) {
        true => RecoverFailed::Refused(status.message().to_owned()),
        false => RecoverFailed::Unreachable { address: config.volmgr.clone(), reason: status.message().to_owned() },
    };
    let deadline = Instant::now() + HEARD_MAX;
    loop {
        let cluster = volmgr.show_cluster().await.map_err(unreachable)?;
        match standing(&cluster, &identity.cluster.to_string(), identity.node, identity.generation) {
            Standing::Free => break,
            Standing::Refused(why) => return Err(RecoverFailed::Refused(why)),
            Standing::Heard(address) if Instant::now() >= deadline => {
                let (node, directory) = (identity.node, config.directory.clone());
                return Err(RecoverFailed::Living { node, address, directory });
            }
            Standing::Heard(address) => {
                let node = identity.node;
                tell(RecoverProgress::Waits(format!("the volume manager heard node {node} at {address} a moment ago")));
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }
    Ok(volmgr.list_volumes().await.map_err(unreachable)?.volumes)
}

/// Goes round until every table is back, or its volume is gone.
async fn fetch_all(
    fetcher: &Fetcher,
    volmgr: &VolumeManager,
    mut tables: Vec<Needed>,
    tell: &mut (impl FnMut(RecoverProgress) + Send),
) -> Result<Vec<RecoveredTable>, RecoverFailed> {
    let mut recovered = Vec::new();
    loop {
        tables.retain(|table| !fetcher.has(table));
        let mut waits = false;
        for table in &tables {
            match fetcher.fetch(table, tell).await? {
                Outcome::Recovered(table) => {
                    tell(RecoverProgress::Table(table.clone()));
                    recovered.push(table);
                }
                Outcome::Waits(why) => {
                    waits = true;
                    tell(RecoverProgress::Waits(why));
                }
            }
        }
        if !waits {
            return Ok(recovered);
        }
        tokio::time::sleep(ROUND_PAUSE).await;
        match volmgr.list_volumes().await {
            Ok(listed) => {
                let now = needed(&listed.volumes, fetcher.node());
                tables = now.into_iter().filter(|now| tables.iter().any(|table| table.volume == now.volume)).collect();
            }
            Err(status) => {
                tell(RecoverProgress::Waits(format!("the volume manager does not answer: {}", status.message())))
            }
        }
    }
}

fn disk_failed(directory: &std::path::Path, error: &dyn std::error::Error) -> RecoverFailed {
    RecoverFailed::Disk { directory: directory.to_owned(), reason: error.to_string() }
}

/// As the shells of this module meet it.
fn io_failed(directory: &std::path::Path) -> impl Fn(io::Error) -> RecoverFailed {
    let directory = directory.to_owned();
    move |error| disk_failed(&directory, &error)
}
