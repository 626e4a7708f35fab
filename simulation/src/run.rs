//! One run: the cluster is set up, things go wrong while programs work, everything is well again, and it must all come to rest.

use std::panic::{AssertUnwindSafe, catch_unwind};

use holdfast_common::Random;

use crate::checks;
use crate::clock::SECOND;
use crate::cluster;
use crate::coverage::Coverage;
use crate::faults::{self, FATE};
use crate::machines::CLIENTS;
use crate::plan::Plan;
use crate::sabotage::Sabotage;
use crate::trace::Trace;
use crate::truth::volumes::Demands;
use crate::truth::{Stage, Truth};
use crate::world::World;

/// All clients are mounted within this while all is well.
const MOUNT_NS_MAX: u64 = 30 * SECOND;
/// Programs end within this after all is well: the longest lease, and a deadline of requests.
const STOP_NS_MAX: u64 = 180 * SECOND;
/// Everybody has heard of everybody within this after all is well: a heartbeat's longest wait, and the next one.
const KNOWN_NS: u64 = 5 * SECOND;
/// Longest time until replicas agree.
const CONVERGE_NS_MAX: u64 = 60 * SECOND;
/// Everything is read, removed and unmounted within this.
const LEAVE_NS_MAX: u64 = 180 * SECOND;
/// Longest time until removed files are deleted and forgotten: a freed chunk's delay, and the floor's behind what is
/// owed.
const FORGET_NS_MAX: u64 = 600 * SECOND;

/// Options of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The rule that is broken.
    pub sabotage: Sabotage,
    /// Every event is printed.
    pub shown: bool,
}

/// Findings of a run in which everything held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Equal for equal runs.
    pub trace: u64,
    /// Counts of its events.
    pub coverage: Coverage,
}

/// Runs a seed.
///
/// # Errors
/// The claim that did not hold, in words.
pub fn run(seed: u64, options: Options) -> Result<Report, String> {
    let ran = catch_unwind(AssertUnwindSafe(|| live(seed, options)));
    ran.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic without a text").to_owned()
    })
}

fn live(seed: u64, options: Options) -> Report {
    let plan = Plan::new(&mut Random::new(seed ^ 0xfa17));
    let faults_ns = plan.faults_ns;
    let demands = Demands::new(&mut Random::new(seed ^ 0xde_3a9d));
    let mut world = World::new(seed, Truth::new(CLIENTS, demands), (plan, FATE), Trace::new(options.shown));
    world.truth.lock().shards.rotting = world.plan.rotting();
    cluster::build(&mut world, options.sabotage, demands);
    wait(&mut world, "all clients mount", MOUNT_NS_MAX, |world| world.truth.lock().mounted() == CLIENTS);
    faults::begin(&mut world);
    let end = world.now + faults_ns;
    world.run_until(end, |_| false);
    faults::end(&mut world);
    world.truth.lock().stage = Stage::Stop;
    let known = world.now + KNOWN_NS;
    wait(&mut world, "all programs end", STOP_NS_MAX, |world| {
        let truth = world.truth.lock();
        world.now >= known
            && truth.programs == 0
            && truth.mounted() == CLIENTS
            && world.machines.keys().all(|node| world.lives(*node) || world.plan.is_lost(*node))
    });
    wait(&mut world, "all replicas agree", CONVERGE_NS_MAX, checks::replicas_agree);
    world.truth.lock().stage = Stage::Audit;
    wait(&mut world, "all clients leave", LEAVE_NS_MAX, |world| world.truth.lock().left == CLIENTS);
    wait(&mut world, "what was removed is forgotten", FORGET_NS_MAX, checks::all_forgotten);
    checks::nothing_is_left(&world);
    let coverage = checks::coverage(&world);
    Report { trace: world.trace.hash(), coverage }
}

fn wait(world: &mut World, what: &str, most_ns: u64, done: impl FnMut(&World) -> bool) {
    let end = world.now + most_ns;
    assert!(world.run_until(end, done), "within {} s not: {what}: {}", most_ns / SECOND, checks::state(world));
}
