//! A table on this node, and what everything on the node shares.

use crate::core::admitting::Grants;
use crate::core::attendance::Attendance;
use crate::core::command::{self, Place};
use crate::core::known::Known;
use crate::core::view::View;
use crate::inbox::Inbox;
use crate::machine::{TableMachine, raft_group};
use crate::neighbours::Neighbours;
use crate::table::Table;
use holdfast_common::{SessionId, Term, VolumeId};
use holdfast_consensus::{Group, GroupStatus, Node, Role};
use holdfast_node::{NodeSuperblock, VolumeManager};
use holdfast_proto::meta::MutateResponse;
use holdfast_proto::meta::mutation::Op;
use holdfast_transport::Client;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Longest wait for an entry that the leader proposes for itself.
const UPKEEP_PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Parts of the node that its tasks share.
pub(crate) struct Context {
    pub(crate) identity: NodeSuperblock,
    pub(crate) node: Arc<Node<TableMachine>>,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) client: Client,
    pub(crate) volmgr: VolumeManager,
    pub(crate) inbox: Inbox,
    /// Snapshots that metanodes which lost their log are fetching.
    pub(crate) grants: Mutex<Grants<Arc<File>>>,
    /// Something happened that the volume manager waits for: the next heartbeat goes at once.
    pub(crate) report: Notify,
    started: Instant,
    hosted: RwLock<BTreeMap<VolumeId, Served>>,
}

/// A table and the tasks that do its leader's work.
struct Served {
    hosted: Arc<Hosted>,
    tasks: [AbortHandle; 3],
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
    attendance: Mutex<Attendance>,
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
    pub(crate) async fn wait(&mut self) -> Option<Term> {
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
        let grants = Mutex::new(Grants::new(identity.generation));
        Self {
            identity,
            node,
            neighbours,
            client,
            volmgr,
            inbox: Inbox::default(),
            grants,
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

    /// Serves a replica that consensus has. `work` starts the tasks that do the leader's work; they end with the serving.
    pub(crate) fn host(&self, volume: VolumeId, work: impl FnOnce(&Arc<Hosted>) -> [AbortHandle; 3]) {
        let Some(group) = self.node.group(raft_group(volume)) else { return };
        let mut tables = self.hosted.write();
        if tables.contains_key(&volume) {
            return;
        }
        let hosted = Arc::new(Hosted { volume, group, attendance: Mutex::default() });
        let tasks = work(&hosted);
        tables.insert(volume, Served { hosted, tasks });
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
    /// The attendance of this term. Sessions that nobody told it of are taken from the table.
    ///
    /// Lock order: attendance before state. A session that enters after its entry was applied then never meets a list
    /// of sessions that was read before.
    fn attendance(&self, term: Term, now_ms: u64) -> MutexGuard<'_, Attendance> {
        let mut attendance = self.attendance.lock();
        if !attendance.is_of(term) {
            self.follow_sessions(&mut attendance, term, now_ms);
        }
        attendance
    }

    fn follow_sessions(&self, attendance: &mut Attendance, term: Term, now_ms: u64) {
        let sessions: Vec<SessionId> = self.group.state().read().table().sessions();
        attendance.follow(term, &sessions, now_ms);
    }
}

/// A table as this node serves it in one term. Every look takes its lock and lets it go.
#[derive(Clone, Copy)]
pub(crate) struct Seat<'a> {
    pub(crate) context: &'a Context,
    pub(crate) hosted: &'a Hosted,
    pub(crate) term: Term,
}

impl View for Seat<'_> {
    fn volume(&self) -> VolumeId {
        self.hosted.volume
    }

    fn term(&self) -> Term {
        self.term
    }

    fn now_ms(&self) -> u64 {
        self.context.now_ms()
    }

    fn stamp_ns(&self) -> i64 {
        self.context.neighbours.stamp_ns(wall_ns())
    }

    fn table<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(self.hosted.group.state().read().table())
    }

    fn known<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        self.context.neighbours.known(look)
    }

    fn attendance<T>(&mut self, act: impl FnOnce(&mut Attendance) -> T) -> T {
        let now_ms = self.now_ms();
        act(&mut self.hosted.attendance(self.term, now_ms))
    }

    fn fresh_attendance<T>(&mut self, act: impl FnOnce(&mut Attendance) -> T) -> T {
        let now_ms = self.now_ms();
        let mut attendance = self.hosted.attendance.lock();
        self.hosted.follow_sessions(&mut attendance, self.term, now_ms);
        act(&mut attendance)
    }
}

impl Seat<'_> {
    /// Proposes an entry of the leader's own; `None` if it is not known to have happened, which the log then tells.
    pub(crate) async fn propose(&self, op: Op) -> Option<MutateResponse> {
        let command = command::encode(self, op, Place::default());
        match tokio::time::timeout(UPKEEP_PROPOSE_TIMEOUT, self.hosted.group.propose(command)).await {
            Ok(answer) => command::own_answer(self.hosted.volume, answer),
            Err(_) => {
                tracing::warn!(volume = %self.hosted.volume, "an entry of the leader's own was not answered in time");
                None
            }
        }
    }
}

fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
