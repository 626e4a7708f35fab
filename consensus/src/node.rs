//! A node: the log, the snapshots and the driver of all Raft groups of a process.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use holdfast_common::{NodeId, RaftGroupId, random_bytes};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::admission::Admitted;
use crate::config::{ExpectedLog, LOG_DIRECTORY, NodeConfig, SNAPSHOT_DIRECTORY};
use crate::core::CoreOptions;
use crate::driver::worker::{Job, Make, Restored, WORKERS, Worker};
use crate::driver::{self, Driver, Groups, Seat};
use crate::group::Group;
use crate::log::LogOptions;
use crate::log::segment::Preparation;
use crate::machine::StateMachine;
use crate::opening;
use crate::outbox::{GroupMessage, Outbox};
use crate::queue::{ControlTicket, Item, Queue};
use crate::reserve::Reserve;
use crate::room::Room;
use crate::sabotage::Sabotage;
use crate::status::{AdmissionError, GroupError, OpenError};
use crate::turn::NodeCore;
use holdfast_storage::{Directory, RealDirectory, create_directories};

/// All Raft groups of this process, their shared log and their driver. Dropping it shuts it down.
pub struct Node<S> {
    queue: Arc<Queue>,
    groups: Groups<S>,
    snapshot_directory: PathBuf,
    reserve: Arc<Reserve>,
    identity: [u8; 16],
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<S: StateMachine> Node<S> {
    /// Replays log and snapshots, resumes all groups found on disk, and starts the driver. `make` makes the empty
    /// state machine of a group. Blocks for as long as that takes.
    ///
    /// # Errors
    /// See [`OpenError`]: nothing has voted or answered then.
    pub fn open(
        config: NodeConfig,
        outbox: Arc<dyn Outbox>,
        make: impl Fn(RaftGroupId) -> S + Send + 'static,
    ) -> Result<Self, OpenError> {
        let log_directory = config.directory.join(LOG_DIRECTORY);
        let snapshot_directory = config.directory.join(SNAPSHOT_DIRECTORY);
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        if config.log != ExpectedLog::AnyOrNone && !log_directory.exists() {
            return Err(OpenError::Missing { path: log_directory });
        }
        let open = |path: &Path| -> Result<Arc<dyn Directory>, OpenError> {
            create_directories(path).map_err(io_error(path))?;
            Ok(Arc::new(RealDirectory::new(path)))
        };
        let (log_disk, snapshots) = (open(&log_directory)?, open(&snapshot_directory)?);
        let options = LogOptions {
            segment_bytes: config.segment_bytes,
            bytes_max: config.log_bytes_max,
            tail_entries: config.tail_entries,
            // Recycled bytes of another log never pass for this one's.
            identity: random_bytes().map_err(io_error(&config.directory))?,
            expected: config.log,
            sabotage: Sabotage::None,
        };
        let opened = opening::open(Arc::clone(&log_disk), &snapshots, options, &make)?;
        let mut log = opened.log;
        let identity = log.identity();
        let queue = Arc::new(Queue::new(config.queue_bytes_max, config.queue_inputs_max));
        let make: Make<S> = Arc::new(Mutex::new(make));
        let command_bytes_max = config.command_bytes_max();
        let new_group = |id, state| Group::new(id, state, Arc::clone(&queue), command_bytes_max);
        let groups = opened.states.into_iter().map(|(id, state)| (id, new_group(id, state))).collect();

        let reserve = opened.reserve;
        let (filler, fillings) = mpsc::channel::<(Preparation, mpsc::Sender<_>)>();
        log.set_filler(filler);
        let fill = move || {
            for (preparation, done) in fillings {
                // Nobody waits for it when the node stops.
                let _ = done.send(preparation.run(&*log_disk));
            }
        };
        let (jobs, work) = mpsc::channel::<Job>();
        let restored: Restored<S> = Arc::default();
        let worker = Worker {
            disk: Arc::clone(&snapshots),
            reserve: Arc::clone(&reserve),
            queue: Arc::clone(&queue),
            make: Arc::clone(&make),
            restored: Arc::clone(&restored),
        };
        let groups: Groups<S> = Arc::new(RwLock::new(groups));
        let driver = Driver {
            core: NodeCore::new(core_options(&config), opened.groups, opened.next_file),
            log,
            room: Room::new(Arc::clone(&reserve), config.segment_bytes),
            queue: Arc::clone(&queue),
            outbox,
            groups: Arc::clone(&groups),
            snapshots,
            jobs,
            make,
            restored,
            tick: config.tick,
            command_bytes_max,
            admissions: BTreeMap::new(),
            next_admission: 0,
            left: Ok(Vec::new()),
        };
        let seat: Seat<S> = Arc::new(Mutex::new(Some(driver)));
        let (visited, driven) = (Arc::clone(&seat), Arc::clone(&queue));
        let mut tasks: Vec<(&str, Task)> = vec![
            ("consensus-fill", Box::new(fill)),
            ("consensus-drive", Box::new(move || driver::run(&seat, &driven))),
        ];
        let (worker, work) = (Arc::new(worker), Arc::new(Mutex::new(work)));
        for _ in 0..WORKERS {
            let (worker, work) = (Arc::clone(&worker), Arc::clone(&work));
            tasks.push(("consensus-snap", Box::new(move || worker.run(&work))));
        }
        let threads = start(tasks);
        let threads = Mutex::new(threads.map_err(io_error(&config.directory))?);
        // Only now: what visits holds the driver until its thread ends.
        queue.let_visitors(Box::new(move |items| driver::visit(&visited, items)));
        Ok(Self { queue, groups, snapshot_directory, reserve, identity, threads })
    }

    /// Creates this node's replica of a group; durable when it returns. Every replica is created with the same
    /// voters. Creating it again does nothing. Blocks for about one sync of the log.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn create_group(&self, group: RaftGroupId, voters: &[NodeId]) -> Result<(), GroupError> {
        self.control(|ticket| Item::Create { group, voters: voters.to_vec(), ticket })
    }

    /// Drops this node's replica of a group, if there is one, with its snapshots; durable when it returns. Blocks for
    /// about one sync of the log. Never create a group under an id that was dropped: the replica's votes are forgotten.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn drop_group(&self, group: RaftGroupId) -> Result<(), GroupError> {
        self.control(|ticket| Item::Drop { group, ticket })
    }

    fn control(&self, item: impl FnOnce(ControlTicket) -> Item) -> Result<(), GroupError> {
        let (ticket, result) = mpsc::channel();
        self.queue.push_always(item(ticket))?;
        result.recv().unwrap_or(Err(GroupError::Stopped))
    }

    /// Tells its log from all others; the caller keeps it for [`ExpectedLog::Identity`].
    #[must_use]
    pub fn log_identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Ids of the Raft groups of this node, ascending.
    #[must_use]
    pub fn groups(&self) -> Vec<RaftGroupId> {
        self.groups.read().keys().copied().collect()
    }

    /// Handle of a Raft group, if it is here.
    #[must_use]
    pub fn group(&self, group: RaftGroupId) -> Option<Group<S>> {
        self.groups.read().get(&group).cloned()
    }

    /// Takes messages in that another node's outbox sent, and may drive (see [`Group::state`]). Does not wait for the disk; drops
    /// messages when too much is waiting.
    pub fn deliver(&self, from: NodeId, messages: Vec<GroupMessage>) {
        self.queue.push_all(messages.into_iter().map(|message| Item::Message { from, message }));
    }

    /// Directory for files that [`Self::deliver_snapshot`] is to take: on the same file system, cleared at open. Names
    /// that do not end in `.snap` are free to use.
    #[must_use]
    pub fn snapshot_directory(&self) -> PathBuf {
        self.snapshot_directory.clone()
    }

    /// Takes a snapshot in that another node's outbox shipped; `file` is this node's from now on.
    pub fn deliver_snapshot(&self, from: NodeId, message: GroupMessage, file: PathBuf) {
        let _ = self.queue.push_always(Item::SnapshotFile { from, message, file });
    }

    /// Brings a voter of a group back that lost its log, if this node leads it (see [`crate::Recovering`]). Before it asks, the caller
    /// sees to it that no message of an earlier start of that node is heard any more. Takes as long as every other voter takes to
    /// answer and a snapshot to be written; ten election time-outs at most.
    ///
    /// # Errors
    /// See [`AdmissionError`].
    pub async fn admit(&self, group: RaftGroupId, to: NodeId) -> Result<Admitted, AdmissionError> {
        let (ticket, answer) = oneshot::channel();
        let item = Item::Admit { group, to, ticket };
        self.queue.push_always(item)?;
        answer.await.unwrap_or(Err(AdmissionError::Stopped))
    }

    /// Gives the room that is kept for a snapshot to one that could not be put there on a full disk. False if there is none: it
    /// was given before, and is kept again once there is room.
    pub fn give_back_reserve(&self) -> bool {
        self.reserve.give_back()
    }

    /// Reports how an [`Outbox::send_snapshot`] ended.
    pub fn report_snapshot(&self, group: RaftGroupId, to: NodeId, ok: bool) {
        let _ = self.queue.push_always(Item::SnapshotReported { group, to, ok });
    }
}

impl<S> Node<S> {
    /// Stops the driver and waits for it. Everything acknowledged is durable anyway; what waits is answered
    /// [`crate::ProposeError::Unknown`] or [`crate::ProposeError::Stopped`].
    pub fn shutdown(&self) {
        self.queue.close();
        for thread in self.threads.lock().drain(..) {
            // The last handle may be let go by an outbox, on a thread of this node.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the consensus node had panicked");
            }
        }
    }
}

impl<S> Drop for Node<S> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

type Task = Box<dyn FnOnce() + Send>;

fn start(tasks: Vec<(&str, Task)>) -> io::Result<Vec<JoinHandle<()>>> {
    tasks.into_iter().map(|(name, task)| std::thread::Builder::new().name(name.to_owned()).spawn(task)).collect()
}

fn core_options(config: &NodeConfig) -> CoreOptions {
    CoreOptions {
        node: config.node.0,
        seed: config.seed,
        tick_ns: u64::try_from(config.tick.as_nanos()).unwrap_or(u64::MAX / 100),
        snapshot_log_bytes: config.snapshot_log_bytes,
        tail_bytes: config.tail_bytes,
        tail_entries: config.tail_entries,
        sabotage: Sabotage::None,
    }
}
