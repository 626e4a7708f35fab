//! Every role of a cluster in this process.

use anyhow::{Context as _, Result};
use holdfast_datanode::Process;
use holdfast_node::superblock;
use tokio::task::JoinSet;

use super::cluster::{RoleInfo, role_configs};
use super::plan::Plan;
use super::progress::Progress;
use crate::roles::{Role, RoleConfig, RoleKind};

/// The running roles.
#[derive(Default)]
pub(crate) struct InProcess {
    volmgr: Option<Role>,
    nodes: Vec<Role>,
    process: Process,
}

impl InProcess {
    /// Starts the volume manager; answers its address.
    pub(crate) async fn start_volmgr(&mut self, config: RoleConfig) -> Result<RoleInfo> {
        let role = config.clone().start(&self.process).await?;
        let info = RoleInfo::new(&config, 0, role.address().to_string(), std::process::id());
        self.volmgr = Some(role);
        Ok(info)
    }

    /// Formats what is new and starts all nodes at once.
    pub(crate) async fn start_nodes(
        &mut self,
        plan: &Plan,
        volmgr: &str,
        progress: &Progress,
    ) -> Result<Vec<RoleInfo>> {
        let mut starting = JoinSet::new();
        for (index, config) in role_configs(plan, volmgr) {
            let process = self.process.clone();
            starting.spawn(async move {
                let name = config.kind().title(index);
                format_if_new(&config).await.with_context(|| format!("{name} cannot be made"))?;
                let role = config.clone().start(&process).await.with_context(|| format!("{name} does not start"))?;
                let info = RoleInfo::new(&config, index, role.address().to_string(), std::process::id());
                anyhow::Ok((role, info))
            });
        }
        let mut infos = Vec::new();
        let count = starting.len();
        while let Some(started) = starting.join_next().await {
            let (role, info) = started.context("a node's start was interrupted")??;
            self.nodes.push(role);
            infos.push(info);
            progress.say(format!("starting nodes, {} of {count}", infos.len()));
        }
        infos.sort_by_key(|info: &RoleInfo| (info.kind == RoleKind::Datanode, info.index));
        Ok(infos)
    }

    /// Stops all nodes, then the volume manager.
    pub(crate) async fn stop(self) {
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

/// `up` is the explicit command that formats (R28), but never what is formatted already.
pub(crate) async fn format_if_new(config: &RoleConfig) -> Result<()> {
    if superblock::exists(config.dir()) { Ok(()) } else { config.format().await }
}
