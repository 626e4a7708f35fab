//! A table on this node, and what everything on the node shares.

use crate::attendance::Attendance;
use crate::inbox::Inbox;
use crate::machine::TableMachine;
use crate::neighbours::Neighbours;
use crate::sweep;
use crate::table::Table;
use crate::upkeep;
use bytes::Bytes;
use holdfast_common::{NodeId, SessionId, VolumeId};
use holdfast_consensus::{Group, GroupStatus, Node, ProposeError, Role};
use holdfast_node::{NodeSuperblock, VolumeManager};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{MutateResponse, Mutation};
use holdfast_proto::record::TableCommand;
use holdfast_transport::Client;
use parking_lot::{Mutex, MutexGuard, RwLock};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Longest wait for an entry that the leader proposes for itself.
const UPKEEP_PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What everything on the node shares.
pub(crate) struct Context {
    pub(crate) identity: NodeSuperblock,
    pub(crate) node: Arc<Node<TableMachine>>,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) client: Client,
    pub(crate) volmgr: VolumeManager,
    pub(crate) inbox: Inbox,
    /// Something happened that the volume manager waits for: the next heartbeat goes at once.
    pub(crate) report: Notify,
    started: Instant,
    hosted: RwLock<BTreeMap<VolumeId, Served>>,
}

/// A table and the tasks that do its leader's work.
struct Served {
    hosted: Arc<Hosted>,
    tasks: [AbortHandle; 2],
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// A table of which this node has a replica.
pub(crate) struct Hosted {
    pub(crate) volume: VolumeId,
    pub(crate) group: Group<TableMachine>,
    neighbours: Arc<Neighbours>,
    attendance: Mutex<Attendance>,
}

/// Why this replica does not answer.
pub(crate) enum NotLed {
    /// Another one leads, if anybody does.
    By(Option<NodeId>),
    /// It met a broken invariant and stands still (R26).
    Stopped,
}

/// Follows whether a replica leads, for what only a leader does.
pub(crate) struct Leadership {
    status: watch::Receiver<GroupStatus>,
    ended: bool,
}

impl Leadership {
    pub(crate) fn of(hosted: &Hosted) -> Self {
        Self { status: hosted.group.watch(), ended: false }
    }

    /// Waits until the replica leads, and says in which term; `None` once the table is dropped or stopped.
    pub(crate) async fn wait(&mut self) -> Option<u64> {
        while !self.ended {
            let (role, term) = {
                let status = self.status.borrow_and_update();
                (status.role, status.term)
            };
            match role {
                Role::Leader => return Some(term),
                Role::Stopped => return None,
                Role::Follower | Role::Candidate => self.changed().await,
            }
        }
        None
    }

    /// Waits for another role or term.
    pub(crate) async fn changed(&mut self) {
        self.ended = self.status.changed().await.is_err();
    }
}

impl Context {
    pub(crate) fn new(
        identity: NodeSuperblock,
        node: Arc<Node<TableMachine>>,
        neighbours: Arc<Neighbours>,
        client: Client,
        volmgr: VolumeManager,
    ) -> Self {
        Self {
            identity,
            node,
            neighbours,
            client,
            volmgr,
            inbox: Inbox::default(),
            report: Notify::new(),
            started: Instant::now(),
            hosted: RwLock::default(),
        }
    }

    /// Monotonic milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn hosted(&self, volume: VolumeId) -> Option<Arc<Hosted>> {
        self.hosted.read().get(&volume).map(|served| Arc::clone(&served.hosted))
    }

    pub(crate) fn all_hosted(&self) -> Vec<Arc<Hosted>> {
        self.hosted.read().values().map(|served| Arc::clone(&served.hosted)).collect()
    }

    /// Serves a replica that consensus has, and does the leader's work whenever it leads.
    pub(crate) fn host(self: &Arc<Self>, volume: VolumeId) {
        let Some(group) = self.node.group(volume.0) else { return };
        let mut tables = self.hosted.write();
        if tables.contains_key(&volume) {
            return;
        }
        let hosted =
            Arc::new(Hosted { volume, group, neighbours: Arc::clone(&self.neighbours), attendance: Mutex::default() });
        let upkeep = tokio::spawn(upkeep::run(Arc::clone(self), Arc::clone(&hosted))).abort_handle();
        let sweep = tokio::spawn(sweep::run(Arc::clone(self), Arc::clone(&hosted))).abort_handle();
        tables.insert(volume, Served { hosted, tasks: [upkeep, sweep] });
    }

    /// Serves it no more.
    pub(crate) fn unhost(&self, volume: VolumeId) {
        drop(self.hosted.write().remove(&volume));
    }

    pub(crate) fn unhost_all(&self) {
        self.hosted.write().clear();
    }
}

impl Hosted {
    /// The term this replica leads in.
    pub(crate) fn led_term(&self) -> Result<u64, NotLed> {
        let status = self.group.status();
        match status.role {
            Role::Leader => Ok(status.term),
            Role::Follower | Role::Candidate => Err(NotLed::By(status.leader)),
            Role::Stopped => Err(NotLed::Stopped),
        }
    }

    /// The attendance of this term. Sessions that nobody told it of are taken from the table.
    ///
    /// Lock order: attendance before state. A session that enters after its entry was applied then never meets a list
    /// of sessions that was read before.
    pub(crate) fn attendance(&self, term: u64, now_ms: u64) -> MutexGuard<'_, Attendance> {
        let mut attendance = self.attendance.lock();
        if !attendance.is_of(term) {
            self.follow_sessions(&mut attendance, term, now_ms);
        }
        attendance
    }

    /// The attendance, brought up to date with the table's sessions.
    pub(crate) fn fresh_attendance(&self, term: u64, now_ms: u64) -> MutexGuard<'_, Attendance> {
        let mut attendance = self.attendance.lock();
        self.follow_sessions(&mut attendance, term, now_ms);
        attendance
    }

    fn follow_sessions(&self, attendance: &mut Attendance, term: u64, now_ms: u64) {
        let sessions: Vec<SessionId> = self.group.state().read().table().sessions();
        attendance.follow(term, &sessions, now_ms);
    }

    /// What the disks have left for data of this table, by the last heartbeat; while the volume manager was never heard, what
    /// its groups could take.
    pub(crate) fn on_disks_bytes(&self, context: &Context, table: &Table) -> u64 {
        match context.neighbours.assignment(self.volume) {
            Some(assignment) => assignment.available_bytes,
            None => table.capacity().open_bytes,
        }
    }

    /// An entry of the log, stamped with this node's clock; the table makes its time rise.
    pub(crate) fn encode_command(&self, op: Op, session: u64, sequence: u64, acknowledged_below: u64) -> Bytes {
        let command = TableCommand {
            version: crate::table::COMMAND_VERSION,
            time_ns: self.neighbours.stamp_ns(wall_ns()),
            session,
            sequence,
            acknowledged_below,
            mutation: Some(Mutation { op: Some(op) }),
        };
        command.encode_to_vec().into()
    }

    /// Proposes an entry of the leader's own; `None` if it is not known to have happened, which the log then tells.
    pub(crate) async fn propose(&self, op: Op) -> Option<MutateResponse> {
        let command = self.encode_command(op, 0, 0, 0);
        let answer = match tokio::time::timeout(UPKEEP_PROPOSE_TIMEOUT, self.group.propose(command)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(ProposeError::NotLeader { .. })) => return None,
            Ok(Err(why)) => {
                tracing::warn!(volume = %self.volume, %why, "an entry of the leader's own was not answered");
                return None;
            }
            Err(_) => {
                tracing::warn!(volume = %self.volume, "an entry of the leader's own was not answered in time");
                return None;
            }
        };
        match MutateResponse::decode(answer) {
            Ok(response) => Some(response),
            Err(error) => {
                tracing::error!(volume = %self.volume, %error, "apply answered what is no response");
                None
            }
        }
    }
}

fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
