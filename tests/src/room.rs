//! A room: one process with its claims, run one after another on the main thread, in the output format of `cargo test`.
//! (The kernel ends a child together with the thread that started it, as the guard asks it to; so clusters are started
//! from the one thread that lives as long as the room.)

use crate::cluster::Cluster;
use crate::watchdog::Watchdog;
use crate::{diagnose, namespace, processes, variables};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One behaviour and what proves it.
#[derive(Clone, Copy)]
pub struct Claim {
    /// The claim in words.
    pub name: &'static str,
    /// What it may take at most, a cluster's start included.
    pub limit: Duration,
    /// The proof: panics if the claim does not hold.
    pub body: fn(&mut Room),
}

/// `claims![seconds => function, ...]`: the functions' names are the claims.
#[macro_export]
macro_rules! claims {
    ($($limit:literal => $claim:ident),* $(,)?) => {
        [$($crate::Claim { name: stringify!($claim), limit: std::time::Duration::from_secs($limit), body: $claim }),*]
    };
}

/// What the claims of a room share.
pub struct Room {
    root: PathBuf,
    cluster: Option<Cluster>,
    plain: Option<PathBuf>,
    claim: &'static str,
}

impl Room {
    /// The room's cluster; started by the first claim that asks, and anew after a claim that failed.
    pub fn cluster(&mut self) -> &mut Cluster {
        assert!(self.plain.is_none(), "this claim needs a cluster, not {}", variables::PLAIN_DIRECTORY);
        self.cluster.get_or_insert_with(|| Cluster::start(&[]))
    }

    /// Removes the shared cluster; the next claim that asks gets a new one.
    pub fn drop_cluster(&mut self) {
        self.cluster = None;
    }

    /// An empty directory of this claim's own, on the mounted volume.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    pub fn directory(&mut self) -> PathBuf {
        let base = match &self.plain {
            Some(plain) => plain.join(format!("room-{}", std::process::id())),
            None => self.cluster().mount(),
        };
        let directory = base.join(self.claim);
        std::fs::create_dir_all(&directory).expect("a directory can be made on the volume");
        directory
    }

    /// An empty directory of this claim's own, on the local disk.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn local_directory(&self) -> PathBuf {
        let directory = self.root.join("local").join(self.claim);
        std::fs::create_dir_all(&directory).expect("a directory can be made on the local disk");
        directory
    }
}

/// What the command line asks for; what else test runners pass is ignored.
#[derive(Default)]
struct Arguments {
    list: bool,
    ignored_only: bool,
    exact: bool,
    filters: Vec<String>,
    skip: Vec<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored_only = true,
                "--exact" => arguments.exact = true,
                "--skip" => arguments.skip.extend(words.next()),
                "--format" | "--test-threads" | "--color" | "--logfile" | "-Z" => drop(words.next()),
                option if option.starts_with('-') => {}
                _ => arguments.filters.push(word),
            }
        }
        arguments
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        !self.ignored_only
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skip.iter().any(matches)
    }
}

/// Runs a room's claims as its command line asks: what each file of `tests/` does in `main`.
#[must_use]
pub fn run(claims: &[Claim]) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let wanted: Vec<Claim> = claims.iter().copied().filter(|claim| arguments.wants(claim.name)).collect();
    if arguments.list {
        wanted.iter().for_each(|claim| println!("{}: test", claim.name));
        return ExitCode::SUCCESS;
    }
    if let Err(error) = prepare() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let plain = std::env::var_os(variables::PLAIN_DIRECTORY).map(PathBuf::from);
    let root = crate::cluster::room_directory();
    let mut room = Room { root: root.clone(), cluster: None, plain, claim: "" };
    let failed = run_all(&mut room, &wanted, claims.len() - wanted.len());
    room.drop_cluster();
    leave(&root, room.plain.as_deref());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Before the first thread: a mount namespace of our own, and the promise to die with who started us.
fn prepare() -> anyhow::Result<()> {
    namespace::enter()?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

fn run_all(room: &mut Room, wanted: &[Claim], filtered_out: usize) -> usize {
    let started = Instant::now();
    let counts = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    println!("\nrunning {} tests", wanted.len());
    let (for_dog, total) = (Arc::clone(&counts), wanted.len());
    let dog = Watchdog::start(&room.root, move |name| {
        // What was not run has not passed.
        let passed = for_dog.0.load(Ordering::Relaxed);
        println!("test {name} ... FAILED (could not be ended)");
        print_result(passed, total - passed, filtered_out, started);
        std::process::exit(101);
    });
    for claim in wanted {
        let ok = run_one(room, claim, &dog);
        let count = if ok { &counts.0 } else { &counts.1 };
        count.fetch_add(1, Ordering::Relaxed);
    }
    // Removing the last cluster may hang too.
    dog.watch("the room's end", Duration::from_secs(60));
    room.drop_cluster();
    dog.release();
    let (passed, failed) = (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
    print_result(passed, failed, filtered_out, started);
    failed
}

fn run_one(room: &mut Room, claim: &Claim, dog: &Watchdog) -> bool {
    let started = Instant::now();
    room.claim = claim.name;
    eprintln!("---- {}", claim.name);
    dog.watch(claim.name, claim.limit);
    let held = catch_unwind(AssertUnwindSafe(|| (claim.body)(room))).is_ok();
    if !held {
        diagnose::print_logs(&room.root);
        // What the failure left behind must not fail the next claim.
        room.drop_cluster();
    }
    let helped = dog.release();
    if helped {
        room.drop_cluster();
    }
    let ok = held && !helped;
    let word = if ok { "ok" } else { "FAILED" };
    println!("test {} ... {word} ({:.1} s)", claim.name, started.elapsed().as_secs_f64());
    ok
}

fn print_result(passed: usize, failed: usize, filtered_out: usize, started: Instant) {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered_out} filtered out; \
         finished in {:.2}s\n",
        started.elapsed().as_secs_f64()
    );
}

/// The last guard: no process with our tag, no mount below our directory, and then no directory.
fn leave(root: &Path, plain: Option<&Path>) {
    let left = processes::tagged(&processes::room_tag());
    if !left.is_empty() {
        eprintln!("harness: killing what a claim left running: {left:?}");
        processes::kill_all(&left, Duration::from_secs(10));
    }
    namespace::abort_and_detach_below(root);
    crate::cluster::remove_directory(root);
    if let Some(plain) = plain {
        crate::cluster::remove_directory(&plain.join(format!("room-{}", std::process::id())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn filters_are_parts_of_names_unless_exact() {
        assert!(parse("--nocapture --test-threads 1 rename").wants("rename_over_a_file"));
        assert!(!parse("--exact rename").wants("rename_over_a_file"));
        assert!(!parse("--skip rename").wants("rename_over_a_file"));
        assert!(!parse("--ignored --list").wants("rename_over_a_file"));
    }
}
