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
    let desk = |random: Random| Desk {
        fs: fs.clone(),
        runtime: Arc::clone(&runtime),
        truth: Arc::clone(&truth),
        random,
        client,
        key: key_of(client),
        losses,
    };
    for _ in 0..2 {
        let (names, files) = (desk(random.fork()), desk(random.fork()));
        begin(client, &runtime, &truth, work_on_names(names));
        begin(client, &runtime, &truth, work_on_files(files));
    }
    let demands = truth.lock().demands;
    if client == 0 && demands.volumes {
        begin(client, &runtime, &truth, work_on_volumes(desk(random.fork()), operator(link)));
    }
    begin(client, &runtime, &truth, write_until_lost(desk(random.fork())));
    begin(client, &runtime, &truth, take_over(desk(random.fork())));
    begin(client, &runtime, &truth, watch_names(desk(random.fork())));
    begin(client, &runtime, &truth, name_burnt_chunks(desk(random.fork()), lines(link)));
    let desk = desk(random.fork());
    loop {
        let stage = truth.lock().stage;
        match stage {
            Stage::Work | Stage::Stop => {}
            Stage::Audit if client == 0 => {
                audit(&desk).await;
                let others_left = || truth.lock().left + 1 == CLIENTS;
                while !others_left() {
                    runtime.sleep(LOOK_PAUSE).await;
                }
                truth.lock().stage = Stage::Clear;
            }
            Stage::Clear if client == 0 => {
                clear_volumes(&desk, &operator(link)).await;
                clear(&desk).await;
                // What a program had let go of may have happened meanwhile.
                runtime.sleep(CLEAR_PAUSE).await;
                clear(&desk).await;
                return leave(client, &desk).await;
            }
            Stage::Audit => return leave(client, &desk).await,
            Stage::Clear => {}
        }
        runtime.sleep(LOOK_PAUSE).await;
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

async fn leave(client: usize, desk: &Desk) {
    desk.fs.shutdown().await.unwrap_or_else(|error| panic!("a mount does not end well: {error}"));
    let held = desk.fs.held_bytes();
    assert_eq!(held, 0, "client {client} holds {held} bytes at its end");
    desk.truth().left += 1;
}

/// Begins a program beside the others.
fn begin(
    client: usize,
    runtime: &Arc<dyn Runtime>,
    truth: &Arc<Mutex<Truth>>,
    program: impl Future<Output = ()> + Send + 'static,
) {
    let life = truth.lock().program_begins(client);
    let truth = Arc::clone(truth);
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
