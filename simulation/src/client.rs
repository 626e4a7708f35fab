//! A client's process: the real `FileSystem`, shell and core, with its tasks, its clock and its network in the simulation's hands.

mod executor;
mod link;

use std::sync::Arc;
use std::time::Duration;

use holdfast_client::network::Network;
use holdfast_client::runtime::Runtime;
use holdfast_client::{FileSystem, MountConfig};
use holdfast_common::{NodeId, Random, SessionId};
use holdfast_proto::control::VolumeState;
use parking_lot::Mutex;

use crate::clock::Times;
use crate::machines::{CLIENTS, key_of};
use crate::packet::{Packet, address_of};
use crate::programs::{
    Ask, Desk, Lines, audit, clear, clear_volumes, name_burnt_chunks, take_over, watch_names, work_on_files,
    work_on_names, work_on_volumes, write_until_lost,
};
use crate::role::{Moment, Role, Timer, Wish};
use crate::sabotage::Sabotage;
use crate::truth::{Stage, Truth};
use executor::Executor;
use link::{Link, Outgoing};

/// Memory of a mount: little, so that budgets are met.
const MEMORY_BYTES: usize = 2 << 20;
/// Pause before a mount that failed is tried again, and between looks at what is to be done.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Requests that nobody waits for any more are answered within this when all is well.
const CLEAR_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a request that no client makes.
const STRANGE_TIMEOUT: Duration = Duration::from_secs(2);
/// Tasks polled in one go: more means that tasks wake each other for ever.
const POLLS_MAX: usize = 100_000;

pub(crate) struct ClientRole {
    executor: Executor,
    link: Link,
    mounted: Mounted,
}

/// The file system of a process, once it is mounted: here a process looks at its own core.
type Mounted = Arc<Mutex<Option<FileSystem>>>;

impl ClientRole {
    /// Starts the process: it mounts the volume and lets its programs work.
    pub(crate) fn start(
        client: usize,
        sabotage: Sabotage,
        (volmgr, volume): (NodeId, &str),
        truth: &Arc<Mutex<Truth>>,
        random: Random,
        times: Times,
    ) -> Self {
        let link = Link::new(volmgr, volume);
        let mounted = Mounted::default();
        let mut process = Self { executor: Executor::default(), link: link.clone(), mounted: Arc::clone(&mounted) };
        process.set_time(times);
        let truth = Arc::clone(truth);
        process.executor.spawn(Box::pin(async move {
            live(client, sabotage, (&link, &mounted), truth, random).await;
            // A file system that nobody has any more ends its tasks.
            *mounted.lock() = None;
        }));
        process
    }

    fn set_time(&self, times: Times) {
        let mut state = self.link.state();
        state.now = times.monotonic;
        state.wall_ns = times.wall_ns;
    }

    fn wishes(&self) -> Vec<Wish> {
        let mut state = self.link.state();
        let mut wishes = Vec::new();
        for Outgoing { number, to, request, timeout } in std::mem::take(&mut state.outgoing) {
            wishes.push(Wish::Call { ticket: number, to, request: Box::new(request), timeout });
        }
        let sleeps = std::mem::take(&mut state.sleeps);
        wishes.extend(sleeps.into_iter().map(|(number, after)| Wish::Arm { timer: Timer::Sleep(number), after }));
        wishes
    }
}

impl Role for ClientRole {
    fn packet(&mut self, times: Times, _: NodeId, packet: Packet) {
        self.set_time(times);
        if let Packet::Answer(number, answer) = packet {
            self.link.answered(number, *answer);
        }
    }

    fn timer(&mut self, times: Times, timer: Timer) {
        self.set_time(times);
        if let Timer::Sleep(number) = timer {
            self.link.slept(number);
        }
    }

    /// Carries all tasks on until each waits for something.
    fn drive(&mut self, moment: Moment<'_>) -> Vec<Wish> {
        self.set_time(moment.times);
        for _ in 0..POLLS_MAX {
            let spawned = std::mem::take(&mut self.link.state().spawned);
            spawned.into_iter().for_each(|work| self.executor.spawn(work));
            if !self.executor.poll_one() && self.link.state().spawned.is_empty() {
                return self.wishes();
            }
        }
        panic!("{} tasks of a client never come to rest", self.executor.tasks_count());
    }

    fn lease(&self) -> Option<(SessionId, Duration)> {
        self.mounted.lock().as_ref()?.session_lease()
    }
}

impl Drop for ClientRole {
    fn drop(&mut self) {
        *self.mounted.lock() = None;
        // Tasks that end put what goes on without them among the spawned, which hold the link.
        self.executor = Executor::default();
        loop {
            let spawned = std::mem::take(&mut self.link.state().spawned);
            if spawned.is_empty() {
                return;
            }
        }
    }
}

/// The whole life of a process: it mounts, its programs work, and it leaves when all is over.
async fn live(
    client: usize,
    sabotage: Sabotage,
    (link, mounted): (&Link, &Mounted),
    truth: Arc<Mutex<Truth>>,
    mut random: Random,
) {
    let fs = mount(client, sabotage, link, random.bits()).await;
    *mounted.lock() = Some(fs.clone());
    // The former mount is fenced: nothing of it can come any more.
    truth.lock().client_mounted(client);
    let losses = truth.lock().losses_of(&key_of(client));
    let runtime: Arc<dyn Runtime> = Arc::new(link.clone());
    let mut desk = || Desk {
        fs: fs.clone(),
        runtime: Arc::clone(&runtime),
        truth: Arc::clone(&truth),
        random: random.fork(),
        client,
        key: key_of(client),
        losses,
    };
    let makes_volumes = client == 0 && truth.lock().demands.volumes;
    begin_all(link, makes_volumes, &mut desk);
    follow_stages(link, &desk()).await;
}

/// Begins all programs, each at a desk of its own. A trace depends on their order, in which desks draw their randomness.
fn begin_all(link: &Link, makes_volumes: bool, mut desk: impl FnMut() -> Desk) {
    for _ in 0..2 {
        begin(desk(), work_on_names);
        begin(desk(), work_on_files);
    }
    if makes_volumes {
        begin(desk(), |desk| work_on_volumes(desk, operator(link)));
    }
    begin(desk(), write_until_lost);
    begin(desk(), take_over);
    begin(desk(), watch_names);
    begin(desk(), |desk| name_burnt_chunks(desk, lines(link)));
}

/// Does what is asked of a client at each stage of the run, until it has left.
async fn follow_stages(link: &Link, desk: &Desk) {
    loop {
        let stage = desk.truth().stage;
        match stage {
            Stage::Work | Stage::Stop => {}
            Stage::Audit if desk.client == 0 => {
                audit(desk).await;
                let others_left = || desk.truth().left + 1 == CLIENTS;
                while !others_left() {
                    desk.runtime.sleep(LOOK_PAUSE).await;
                }
                desk.truth().stage = Stage::Clear;
            }
            Stage::Clear if desk.client == 0 => {
                clear_volumes(desk, &operator(link)).await;
                clear(desk).await;
                // What a program had let go of may have happened meanwhile.
                desk.runtime.sleep(CLEAR_PAUSE).await;
                clear(desk).await;
                return leave(desk).await;
            }
            Stage::Audit => return leave(desk).await,
            Stage::Clear => {}
        }
        desk.runtime.sleep(LOOK_PAUSE).await;
    }
}

fn operator(link: &Link) -> Ask {
    let link = link.clone();
    Box::new(move |request| link.operate(request))
}

fn lines(link: &Link) -> Lines {
    let (table, manager) = (link.clone(), link.clone());
    let mutate = move |node, request| table.mutate(address_of(node), request, STRANGE_TIMEOUT);
    Lines { mutate: Box::new(mutate), volume: Box::new(move || manager.volume()) }
}

async fn leave(desk: &Desk) {
    desk.fs.shutdown().await.unwrap_or_else(|error| panic!("a mount does not end well: {error}"));
    let held = desk.fs.held_bytes();
    assert_eq!(held, 0, "client {} holds {held} bytes at its end", desk.client);
    desk.truth().left += 1;
}

/// Begins a program beside the others.
fn begin<P: Future<Output = ()> + Send + 'static>(desk: Desk, program: impl FnOnce(Desk) -> P) {
    let life = desk.truth().program_begins(desk.client);
    let (client, truth, runtime) = (desk.client, Arc::clone(&desk.truth), Arc::clone(&desk.runtime));
    let program = program(desk);
    runtime.spawn(Box::pin(async move {
        program.await;
        truth.lock().program_ended(client, life);
    }));
}

async fn mount(client: usize, sabotage: Sabotage, link: &Link, seed: u64) -> FileSystem {
    let config = MountConfig {
        volmgr: String::new(),
        volume: String::new(),
        client_key: key_of(client),
        description: String::new(),
        read_only: false,
        memory_bytes: MEMORY_BYTES,
        sabotage: sabotage.client(),
    };
    loop {
        if let Ok(volume) = link.volume().await
            && volume.state() == VolumeState::Active
        {
            let (runtime, network) = (Arc::new(link.clone()), Arc::new(link.clone()));
            if let Ok(fs) = FileSystem::mount_in(runtime, config.clone(), &volume, network, seed).await {
                return fs;
            }
        }
        link.sleep(LOOK_PAUSE).await;
    }
}
