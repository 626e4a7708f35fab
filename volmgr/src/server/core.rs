//! What all requests share: the consensus group, the soft state that heartbeats bring, and the clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use holdfast_common::{ClusterId, Incarnation, NodeId, VolumeId, random_bytes};
use holdfast_consensus::{Group, ProposeError, ReadError};
use holdfast_proto::cluster::cluster_command::Op;
use holdfast_proto::cluster::{ClusterCommand, ClusterReply, Initialise};
use holdfast_proto::control::{Disk, TableReport};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tonic::Status;

use crate::liveness::Liveness;
use crate::machine::ClusterMachine;
use crate::state::{COMMAND_VERSION, ClusterState, RefusalKind};

/// Longest wait for an entry to be applied, repetitions included.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between repetitions.
const PROPOSE_PAUSE: Duration = Duration::from_millis(50);

/// What the last leader's report said of a table.
#[derive(Clone, Debug)]
pub(super) struct LeaderReport {
    pub(super) node: NodeId,
    pub(super) report: TableReport,
}

/// What only heartbeats know; rebuilt by them after a restart.
pub(super) struct Soft {
    pub(super) liveness: Liveness,
    pub(super) disks: BTreeMap<NodeId, Vec<Disk>>,
    pub(super) tables: BTreeMap<(VolumeId, Incarnation), LeaderReport>,
    /// The highest feature level of tables that each metanode's build knows (R26).
    pub(super) feature_levels: BTreeMap<NodeId, u32>,
}

/// The shared part of the volume manager's services.
pub(super) struct Core {
    pub(super) cluster: ClusterId,
    group: Group<ClusterMachine>,
    soft: Mutex<Soft>,
    started: Instant,
    changes: watch::Sender<u64>,
}

impl Core {
    pub(super) fn new(cluster: ClusterId, group: Group<ClusterMachine>) -> Self {
        let soft = Soft {
            liveness: Liveness::new(0),
            disks: BTreeMap::new(),
            tables: BTreeMap::new(),
            feature_levels: BTreeMap::new(),
        };
        Self { cluster, group, soft: Mutex::new(soft), started: Instant::now(), changes: watch::Sender::new(0) }
    }

    /// Makes sure that the log knows the cluster and a secret; waits for the group's first leader.
    pub(super) async fn initialise(&self) -> Result<(), Status> {
        let secret: [u8; 32] = random_bytes().map_err(|error| Status::internal(error.to_string()))?;
        let initialise = Initialise { cluster: self.cluster.0.to_vec().into(), secret: secret.to_vec().into() };
        self.propose(Op::Initialise(initialise)).await.map(|_| ())
    }

    /// Proposes until the entry was applied or the deadline is over. Every command may safely be proposed twice, so
    /// that an unknown outcome is simply tried again. A refusal is an error with its text.
    pub(super) async fn propose(&self, op: Op) -> Result<ClusterReply, Status> {
        let command = ClusterCommand { version: COMMAND_VERSION, time_ns: wall_ns(), op: Some(op) };
        let bytes = bytes::Bytes::from(command.encode_to_vec());
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        loop {
            let last = match tokio::time::timeout(PROPOSE_DEADLINE, self.group.propose(bytes.clone())).await {
                Ok(Ok(reply)) => return reply_of(&reply),
                Ok(Err(error @ (ProposeError::Stopped | ProposeError::TooLarge))) => {
                    return Err(Status::internal(format!("the volume manager's log: {error}")));
                }
                Ok(Err(error @ ProposeError::NoSpace)) => {
                    return Err(Status::resource_exhausted(format!("the volume manager: {error}; make room on it")));
                }
                Ok(Err(
                    error @ (ProposeError::NotLeader { .. } | ProposeError::Unknown | ProposeError::Overloaded),
                )) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Status::unavailable(format!("the volume manager's log does not accept entries: {last}")));
            }
            tokio::time::sleep(PROPOSE_PAUSE).await;
        }
    }

    /// Waits until [`Self::with_state`] shows everything acknowledged before.
    pub(super) async fn read_barrier(&self) -> Result<(), Status> {
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        loop {
            let last = match tokio::time::timeout(PROPOSE_DEADLINE, self.group.read_barrier()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error @ ReadError::Stopped)) => return Err(Status::internal(error.to_string())),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Status::unavailable(format!("the volume manager's log does not answer: {last}")));
            }
            tokio::time::sleep(PROPOSE_PAUSE).await;
        }
    }

    /// Looks at the state. Not to be called under [`Self::with_soft`]: state is locked before soft state.
    pub(super) fn with_state<R>(&self, look: impl FnOnce(&ClusterState) -> R) -> R {
        look(self.group.state().read().state())
    }

    /// Looks at or changes the soft state, at the present monotonic time in milliseconds.
    pub(super) fn with_soft<R>(&self, change: impl FnOnce(&mut Soft, u64) -> R) -> R {
        let mut soft = self.soft.lock();
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        change(&mut soft, now_ms)
    }

    pub(super) fn tick(&self) {
        self.with_soft(|soft, now_ms| soft.liveness.tick(now_ms));
    }

    /// Wakes those that wait for a volume to change.
    pub(super) fn announce_change(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn reply_of(bytes: &[u8]) -> Result<ClusterReply, Status> {
    let reply = ClusterReply::decode(bytes).map_err(|_| Status::internal("apply answered what is no reply"))?;
    if reply.refusal == 0 {
        return Ok(reply);
    }
    Err(match RefusalKind::from_number(reply.refusal) {
        Some(kind) => status_of(kind, reply.detail),
        None => Status::internal(reply.detail),
    })
}

pub(super) fn status_of(kind: RefusalKind, detail: String) -> Status {
    match kind {
        RefusalKind::Invalid => Status::invalid_argument(detail),
        RefusalKind::NotFound => Status::not_found(detail),
        RefusalKind::Exists => Status::already_exists(detail),
        RefusalKind::Forbidden => Status::failed_precondition(detail),
        RefusalKind::Busy => Status::unavailable(detail),
    }
}

pub(super) fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
