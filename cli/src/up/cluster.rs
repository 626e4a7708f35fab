//! The roles of an `up` cluster, in this process or each in its own, behind one face; and the wait until they work.

use std::time::Duration;

use anyhow::{Result, bail};
use holdfast_common::ClusterId;
use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::control::{CreateVolumeRequest, ShowClusterRequest, ShowVolumeRequest, Volume, VolumeState};
use tonic::Code;
use tonic::transport::Channel;

use super::in_process::InProcess;
use super::layout::Layout;
use super::members::{Absent, Event, RoleInfo, format_if_new};
use super::plan::Plan;
use super::processes::Processes;
use super::progress::Progress;
use crate::roles::RoleConfig;
use crate::volume::{connect, refused};

/// Pause between two looks at whether everybody is there.
const POLL_PAUSE: Duration = Duration::from_millis(50);

enum Roles {
    InProcess(InProcess),
    Processes(Processes),
}

/// A cluster coming up or up.
pub(crate) struct Cluster {
    roles: Roles,
}

/// A cluster that came up.
pub(crate) struct Ready {
    pub(crate) cluster: ClusterId,
    pub(crate) volmgr: String,
    pub(crate) roles: Vec<RoleInfo>,
    pub(crate) absent: Vec<Absent>,
    pub(crate) volume: Volume,
    pub(crate) created: bool,
}

impl Cluster {
    pub(crate) fn new(separate_processes: bool, layout: &Layout) -> Result<Self> {
        let roles = if separate_processes {
            Roles::Processes(Processes::new(layout.run())?)
        } else {
            Roles::InProcess(InProcess::default())
        };
        Ok(Self { roles })
    }

    /// Starts every role, waits until all are known to be alive, and sees to the volume. Metanodes that lost their log are done without.
    pub(crate) async fn bring_up(&mut self, plan: &mut Plan, progress: &Progress) -> Result<Ready> {
        progress.say("starting the volume manager".to_owned());
        let config = RoleConfig::Volmgr { dir: plan.layout.volmgr(), listen: plan.listen };
        format_if_new(&config).await?;
        let cluster = holdfast_volmgr::cluster_of(config.dir())?;
        if plan.record.cluster.is_none() {
            plan.record.cluster = Some(cluster);
        }
        plan.layout.write(&plan.record)?;
        let first = match &mut self.roles {
            Roles::InProcess(roles) => roles.start_volmgr(config).await?,
            Roles::Processes(roles) => roles.start(config, 0).await?,
        };
        let volmgr = first.address.clone();
        progress.say("starting nodes".to_owned());
        let nodes = match &mut self.roles {
            Roles::InProcess(roles) => roles.start_nodes(plan, &volmgr, progress).await?,
            Roles::Processes(roles) => roles.start_nodes(plan, &volmgr, progress).await?,
        };
        let mut admin = connect(&volmgr).await?;
        wait_for_nodes(&mut admin, &nodes.roles, progress).await?;
        let (volume, created) = see_to_volume(&mut admin, plan, progress).await?;
        let roles = std::iter::once(first).chain(nodes.roles).collect();
        Ok(Ready { cluster, volmgr, roles, absent: nodes.absent, volume, created })
    }

    /// Waits for something worth telling: a role that died or came back. May be dropped while waiting.
    pub(crate) async fn next_event(&mut self) -> Event {
        match &mut self.roles {
            Roles::InProcess(roles) => roles.next_event().await,
            Roles::Processes(roles) => roles.next_event().await,
        }
    }

    /// Stops every role.
    pub(crate) async fn stop(self) {
        match self.roles {
            Roles::InProcess(roles) => roles.stop().await,
            Roles::Processes(roles) => roles.stop().await,
        }
    }
}

/// Waits until every node is known at the address where it listens now: after a restart that means that it spoke.
async fn wait_for_nodes(admin: &mut AdminClient<Channel>, nodes: &[RoleInfo], progress: &Progress) -> Result<()> {
    loop {
        let cluster = admin.show_cluster(ShowClusterRequest {}).await.map_err(|s| refused(&s))?.into_inner();
        let known = |info: &&RoleInfo| cluster.nodes.iter().any(|n| n.alive && n.address == info.address);
        let missing: Vec<String> = nodes.iter().filter(|n| !known(n)).map(|n| n.kind.title(n.index)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        progress.say(format!("waiting for {}", missing.join(", ")));
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Creates the volume unless it is there, and waits until its table has a leader. Answers whether it was created.
async fn see_to_volume(admin: &mut AdminClient<Channel>, plan: &Plan, progress: &Progress) -> Result<(Volume, bool)> {
    let show = ShowVolumeRequest { name: plan.volume.clone() };
    progress.say(format!("looking for volume '{}'", plan.volume));
    match admin.show_volume(show.clone()).await {
        Ok(_) => {}
        Err(status) if status.code() == Code::NotFound => {
            progress.say(format!("creating volume '{}' with code {}", plan.volume, plan.code));
            let request = CreateVolumeRequest {
                name: plan.volume.clone(),
                data_shards: plan.code.k().into(),
                parity_shards: plan.code.m().into(),
                quota_bytes: plan.quota_bytes,
            };
            let volume = admin.create_volume(request).await.map_err(|s| refused(&s))?.into_inner();
            return Ok((volume, true));
        }
        Err(status) => return Err(refused(&status)),
    }
    loop {
        let volume = admin.show_volume(show.clone()).await.map_err(|s| refused(&s))?.into_inner();
        match VolumeState::try_from(volume.state) {
            Ok(VolumeState::Active) if volume.leader_node != 0 => return Ok((volume, false)),
            Ok(VolumeState::Active | VolumeState::Creating) => {}
            Ok(VolumeState::Deleting) => bail!("volume '{}' is being deleted", plan.volume),
            Err(_) => bail!("volume '{}' is in a state that this program is too old to know", plan.volume),
        }
        progress.say(format!("waiting for the metadata table of volume '{}' to elect its leader", plan.volume));
        tokio::time::sleep(POLL_PAUSE).await;
    }
}
