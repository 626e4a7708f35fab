//! kill -9 of everything at once, and power failures, which also take what no sync covered. What was promised is there
//! afterwards, nothing else is, and nothing hangs.

use holdfast_tests::forgetful::power::{Loss, Taken};
use holdfast_tests::random::{self, Random};
use holdfast_tests::wait::{self, seconds};
use holdfast_tests::workload::{Crew, wait_for_progress};
use holdfast_tests::{Claim, Cluster, Room, claims, processes};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Half of them take all that was not synced, half of them anything of it.
const POWER_FAILURES: u32 = 6;

const CLAIMS: &[Claim] = &claims![
    420 => ten_crashes_while_writing_lose_nothing_that_was_promised,
    420 => power_failures_while_writing_lose_nothing_that_was_promised,
    150 => crashes_while_coming_up_lose_nothing,
    90 => a_crash_right_after_the_first_start_is_survived,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// Lets the crew write for a random time, kills everything, and brings it up again.
fn crash_while_writing(cluster: &mut Cluster, crew: &mut Crew, random: &mut Random) {
    end_while_writing(cluster, crew, random, Cluster::kill_everything);
}

/// The same with another end of everything than kill -9.
fn end_while_writing<T>(
    cluster: &mut Cluster,
    crew: &mut Crew,
    random: &mut Random,
    end: impl FnOnce(&mut Cluster) -> T,
) -> T {
    let top = cluster.mount().join("crash");
    std::fs::create_dir_all(&top).expect("a directory can be made after a restart");
    let ((killed_at, said), ends) = crew.work(&top, |signal| {
        // At least something, then any moment.
        wait_for_progress(signal, 60, seconds(40), || {});
        let moment = Instant::now() + Duration::from_millis(random.below(1500));
        wait::until(seconds(5), || (Instant::now() >= moment).then_some(()));
        let killed_at = signal.progress();
        let said = end(cluster);
        // A writer that was closing a file met the end there, where it is not told; its next call tells it.
        wait::for_state("every writer meets the end", seconds(40), || signal.at_work() == 0);
        (killed_at, said)
    });
    for (writer, end) in ends {
        assert!(end.is_err(), "the {writer} was not stopped by the crash");
    }
    let started = Instant::now();
    cluster.up();
    eprintln!("killed after {killed_at} calls, up again in {:.1} s", started.elapsed().as_secs_f64());
    said
}

fn ten_crashes_while_writing_lose_nothing_that_was_promised(room: &mut Room) {
    let mut random = random::fresh("moments of the crashes");
    let mut crew = Crew::of_all_kinds(random.bits() >> 8);
    let cluster = room.cluster();
    for round in 1..=10 {
        eprintln!("crash {round}");
        crash_while_writing(cluster, &mut crew, &mut random);
        crew.verify(&cluster.mount().join("crash"));
    }
    cluster.stop();
    cluster.up();
    crew.verify(&cluster.mount().join("crash"));
}

fn power_failures_while_writing_lose_nothing_that_was_promised(room: &mut Room) {
    let mut random = random::fresh("moments of the power failures, and what they take");
    let mut crew = Crew::of_all_kinds(random.bits() >> 8);
    room.drop_cluster();
    let mut cluster = Cluster::prepare(&[]);
    cluster.set_forgetful();
    cluster.up();
    let mut sum = Taken::default();
    for round in 1..=POWER_FAILURES {
        let loss = if round % 2 == 0 { Loss::Everything } else { Loss::Anything(Random::new(random.bits())) };
        let taken = end_while_writing(&mut cluster, &mut crew, &mut random, |cluster| cluster.fail_power(loss));
        eprintln!("power failure {round}: {taken:?}");
        sum.sectors += taken.sectors;
        sum.syncs += taken.syncs;
        crew.verify(&cluster.mount().join("crash"));
    }
    assert!(sum.sectors > 0 && sum.syncs > 0, "the power failures took nothing, or nothing was synced: {sum:?}");
    cluster.stop();
    cluster.up();
    crew.verify(&cluster.mount().join("crash"));
}

fn crashes_while_coming_up_lose_nothing(room: &mut Room) {
    let mut random = random::fresh("moments of the crashes while coming up");
    let mut crew = Crew::of_all_kinds(random.bits() >> 8);
    room.drop_cluster();
    let cluster = room.cluster();
    crash_while_writing(cluster, &mut crew, &mut random);
    cluster.kill_everything();
    for _ in 0..5 {
        let mut child = cluster.spawn();
        let moment = Instant::now() + Duration::from_millis(random.below(2000));
        wait::until(seconds(5), || (Instant::now() >= moment).then_some(()));
        processes::signal(child.id(), nix::sys::signal::Signal::SIGKILL);
        child.wait().expect("a killed child ends");
        let rest = processes::tagged(&cluster.tag());
        assert!(processes::kill_all(&rest, seconds(20)).is_empty(), "killed processes are still there");
    }
    cluster.up();
    crew.verify(&cluster.mount().join("crash"));
    crash_while_writing(cluster, &mut crew, &mut random);
    crew.verify(&cluster.mount().join("crash"));
}

fn a_crash_right_after_the_first_start_is_survived(room: &mut Room) {
    room.drop_cluster();
    let cluster = room.cluster();
    let id = cluster.ready().cluster.clone();
    cluster.kill_everything();
    cluster.up();
    assert_eq!(cluster.ready().cluster, id, "another cluster was made");
    std::fs::write(cluster.mount().join("file"), "works").expect("the volume works");
}
