//! The roles that an `up` cluster consists of: how each is set up, and what is told of it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use holdfast_node::superblock;
use serde_json::{Value, json};

use super::plan::Plan;
use crate::roles::{RoleConfig, RoleKind};

/// One running role, as the ready line shows it.
#[derive(Clone, Debug)]
pub(crate) struct RoleInfo {
    pub(crate) kind: RoleKind,
    /// Counts from 0; the names of directories from 1.
    pub(crate) index: u32,
    pub(crate) address: String,
    pub(crate) pid: u32,
    pub(crate) directory: std::path::PathBuf,
}

impl RoleInfo {
    pub(crate) fn new(config: &RoleConfig, index: u32, address: String, pid: u32) -> Self {
        Self { kind: config.kind(), index, address, pid, directory: config.dir().to_owned() }
    }

    /// One that does not serve yet.
    pub(crate) fn absent(config: &RoleConfig, index: u32) -> Self {
        Self::new(config, index, String::new(), 0)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "role": self.kind.name(),
            "index": self.index,
            "pid": self.pid,
            "address": self.address,
            "directory": self.directory,
        })
    }
}

/// The metanodes and datanodes of a cluster, by index.
pub(crate) fn role_configs(plan: &Plan, volmgr: &str) -> Vec<(u32, RoleConfig)> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let metanode = |index| RoleConfig::Metanode { dir: plan.layout.metanode(index), listen, volmgr: volmgr.to_owned() };
    let datanode = |index| RoleConfig::Datanode {
        dir: plan.layout.datanode(index),
        disks: vec![plan.layout.disk(index)],
        listen,
        volmgr: volmgr.to_owned(),
    };
    let metanodes = (0..plan.record.metanodes).map(|index| (index, metanode(index)));
    metanodes.chain((0..plan.record.datanodes).map(|index| (index, datanode(index)))).collect()
}

/// `up` is the explicit command that formats (R28), but never what is formatted already.
pub(crate) async fn format_if_new(config: &RoleConfig) -> Result<()> {
    if superblock::exists(config.dir()) { Ok(()) } else { config.format().await }
}

/// A metanode that the cluster comes up without, and why: it is started as soon as it is back.
#[derive(Clone, Debug)]
pub(crate) struct Absent {
    pub(crate) role: RoleInfo,
    pub(crate) reason: String,
}

/// The nodes of a cluster after their start.
#[derive(Default)]
pub(crate) struct Started {
    pub(crate) roles: Vec<RoleInfo>,
    pub(crate) absent: Vec<Absent>,
}

impl Started {
    /// In the order of indices, metanodes first.
    pub(crate) fn sort(&mut self) {
        let place = |role: &RoleInfo| (role.kind == RoleKind::Datanode, role.index);
        self.roles.sort_by_key(place);
        self.absent.sort_by_key(|absent| place(&absent.role));
    }

    pub(crate) fn count(&self) -> usize {
        self.roles.len() + self.absent.len()
    }
}

/// End or return of a role while the cluster was up.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// It ended, and will be started again.
    Died {
        role: RoleInfo,
        /// Exit status or reason, for people.
        how: String,
    },
    /// It was started again.
    Restarted {
        /// With its present address.
        role: RoleInfo,
    },
    /// It could not be started again yet.
    NotRestarted { role: RoleInfo, reason: String },
}
