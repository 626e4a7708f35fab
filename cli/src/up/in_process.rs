//! Every role of a cluster in this process.

use std::time::Duration;

use anyhow::{Context as _, Result};
use holdfast_datanode::Process;
use tokio::task::JoinSet;

use super::absent::log_changes;
use super::members::{Absent, Event, RoleInfo, Started, format_if_new, role_configs};
use super::plan::Plan;
use super::progress::Progress;
use crate::roles::{Lost, Role, RoleConfig};

/// Pause before a metanode that is being brought back is tried again.
const ABSENT_PAUSE: Duration = Duration::from_secs(2);

/// Roles that run in this process.
#[derive(Default)]
pub(crate) struct InProcess {
    volmgr: Option<Role>,
    nodes: Vec<Role>,
    /// Metanodes that lost their log, until they are back.
    absent: JoinSet<(Role, RoleInfo)>,
    process: Process,
}

impl InProcess {
    /// Starts the volume manager; answers its address.
    pub(crate) async fn start_volmgr(&mut self, config: RoleConfig) -> Result<RoleInfo> {
        let role = Box::pin(config.clone().start(&self.process)).await?;
        let info = RoleInfo::new(&config, 0, role.address().to_string(), std::process::id());
        self.volmgr = Some(role);
        Ok(info)
    }

    /// Formats what is new and starts all nodes at once.
    pub(crate) async fn start_nodes(&mut self, plan: &Plan, volmgr: &str, progress: &Progress) -> Result<Started> {
        let mut starting = JoinSet::new();
        for (index, config) in role_configs(plan, volmgr) {
            let process = self.process.clone();
            starting.spawn(async move {
                let name = config.kind().title(index);
                format_if_new(&config).await.with_context(|| format!("{name} cannot be made"))?;
                match start(&config, index, &process).await {
                    Err(error) if error.is::<Lost>() => Ok((index, config, Err(format!("{error:#}")))),
                    started => {
                        anyhow::Ok((index, config, Ok(started.with_context(|| format!("{name} does not start"))?)))
                    }
                }
            });
        }
        let count = starting.len();
        let mut nodes = Started::default();
        while let Some(started) = starting.join_next().await {
            match started.context("a node's start was interrupted")?? {
                (_, _, Ok((role, info))) => {
                    self.nodes.push(role);
                    nodes.roles.push(info);
                }
                (index, config, Err(reason)) => {
                    nodes.absent.push(Absent { role: RoleInfo::absent(&config, index), reason });
                    self.absent.spawn(start_when_back(config, index, self.process.clone()));
                }
            }
            progress.say(format!("starting nodes, {} of {count}", nodes.count()));
        }
        nodes.sort();
        Ok(nodes)
    }

    /// Waits for a metanode that is back. May be dropped while waiting.
    pub(crate) async fn next_event(&mut self) -> Event {
        loop {
            match self.absent.join_next().await {
                Some(Ok((node, role))) => {
                    self.nodes.push(node);
                    return Event::Restarted { role };
                }
                Some(Err(error)) => tracing::error!(%error, "a metanode is tried no more"),
                None => std::future::pending().await,
            }
        }
    }

    /// Stops all nodes, then the volume manager.
    pub(crate) async fn stop(mut self) {
        self.absent.shutdown().await;
        let mut stopping = JoinSet::new();
        for node in self.nodes {
            stopping.spawn(node.shutdown());
        }
        while stopping.join_next().await.is_some() {}
        if let Some(volmgr) = self.volmgr {
            volmgr.shutdown().await;
        }
    }
}

async fn start(config: &RoleConfig, index: u32, process: &Process) -> Result<(Role, RoleInfo)> {
    let role = config.clone().start(process).await?;
    let info = RoleInfo::new(config, index, role.address().to_string(), std::process::id());
    Ok((role, info))
}

/// Tries until it starts, whenever something about its log has changed: somebody brings it back.
async fn start_when_back(config: RoleConfig, index: u32, process: Process) -> (Role, RoleInfo) {
    let mut is_lost = true;
    loop {
        match is_lost {
            true => log_changes(config.dir()).await,
            false => tokio::time::sleep(ABSENT_PAUSE).await,
        }
        match start(&config, index, &process).await {
            Ok(started) => return started,
            Err(error) => {
                is_lost = error.is::<Lost>();
                tracing::info!(%error, index, "a metanode is not back yet");
            }
        }
    }
}
