//! Parts that all requests share: the Raft group, the decisions, and the clocks. A request is a
//! [`Conversation`]; here it waits for the log.

use std::time::{Duration, Instant, SystemTime};

use holdfast_common::{ClusterId, random_bytes};
use holdfast_consensus::Group;
use holdfast_proto::cluster::ClusterReply;
use holdfast_proto::cluster::cluster_command::Op;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::machine::ClusterMachine;
use crate::manager::conversation::{Conversation, Event, Step, World};
use crate::manager::{
    Denial, Manager, Now, PROPOSE_DEADLINE, PROPOSE_PAUSE, Sabotage, Verdict, VolmgrRequest, VolmgrResponse,
    command_of, initialising, read_verdict, verdict,
};

/// The shared part of the volume manager's services.
pub(super) struct Core {
    group: Group<ClusterMachine>,
    manager: Mutex<Manager>,
    started: Instant,
    /// Counts entries that were applied for requests.
    changes: watch::Sender<u64>,
}

impl Core {
    pub(super) fn new(cluster: ClusterId, group: Group<ClusterMachine>) -> Self {
        let manager = Mutex::new(Manager::new(cluster, Now::default(), Sabotage::None));
        Self { group, manager, started: Instant::now(), changes: watch::Sender::new(0) }
    }

    /// Makes sure that the log knows the cluster and a secret; waits for the Raft group's first leader.
    pub(super) async fn initialise(&self) -> Result<(), Denial> {
        let secret = random_bytes().map_err(|error| Denial::internal(error.to_string()))?;
        let cluster = self.manager.lock().cluster();
        self.propose(initialising(cluster, secret)).await.map(|_| ())
    }

    /// Has a request answered.
    pub(super) async fn converse(&self, request: VolmgrRequest) -> Result<VolmgrResponse, Denial> {
        let random = random_bytes().map_err(|error| Denial::internal(error.to_string()))?;
        let mut conversation = Conversation::new(request, u64::from_le_bytes(random));
        let mut changes = self.changes.subscribe();
        let mut event = Event::Begun;
        loop {
            changes.mark_unchanged();
            event = match self.step(&mut conversation, event) {
                Step::Read => {
                    self.read_barrier().await?;
                    Event::Read
                }
                Step::Propose(op) => Event::Proposed(self.propose(op).await?),
                Step::Wait { until_ms } => {
                    let left = Duration::from_millis(until_ms.saturating_sub(self.now().ms()));
                    if let Ok(Err(_)) = tokio::time::timeout(left, changes.changed()).await {
                        return Err(Denial::busy("the volume manager is stopping"));
                    }
                    Event::Changed
                }
                Step::Done(result) => return result,
            };
        }
    }

    /// Locks the state before the manager: the order of all who hold both.
    fn step(&self, conversation: &mut Conversation, event: Event) -> Step {
        let machine = self.group.state().read();
        let mut manager = self.manager.lock();
        conversation.step(World { manager: &mut manager, state: machine.state(), now: self.now() }, event)
    }

    /// Proposes until the entry was applied or the deadline is over. Every command may safely be proposed twice, so
    /// that an unknown outcome is simply tried again. A refusal is an error with its text.
    async fn propose(&self, op: Op) -> Result<ClusterReply, Denial> {
        let command = command_of(op, self.now());
        let attempt = || async {
            let verdict = verdict(self.group.propose(command.clone()).await);
            if matches!(verdict, Verdict::Decided(_)) {
                self.changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            verdict
        };
        until_decided(attempt, Denial::no_entry).await
    }

    /// Waits until the state shows everything acknowledged before.
    async fn read_barrier(&self) -> Result<(), Denial> {
        until_decided(|| async { read_verdict(self.group.read_barrier().await) }, Denial::no_read).await
    }

    /// Both clocks; the monotonic one counts from the start.
    fn now(&self) -> Now {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            wall_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        }
    }

    pub(super) fn tick(&self) {
        let now = self.now();
        self.manager.lock().tick(now);
    }
}

/// Tries until the log decides or the deadline is over; `denial` then tells the last reason.
async fn until_decided<T, E: std::fmt::Display, F: Future<Output = Verdict<T, E>>>(
    attempt: impl Fn() -> F,
    denial: fn(&str) -> Denial,
) -> Result<T, Denial> {
    let deadline = Instant::now() + PROPOSE_DEADLINE;
    loop {
        let last = match tokio::time::timeout(PROPOSE_DEADLINE, attempt()).await {
            Ok(Verdict::Decided(result)) => return result,
            Ok(Verdict::Again(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(denial(&last));
        }
        tokio::time::sleep(PROPOSE_PAUSE).await;
    }
}
