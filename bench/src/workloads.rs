//! The workloads, in the order they run, and what they share.
//!
//! Writes are timed to the end of their last fsync. "Cold" makes the system under test forget first ([`System`]) and
//! drops the kernel's caches. Each workload makes what it needs if it is not there, so that any can run alone.

mod random;
mod sequential;
mod small_files;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_common::Random;

use crate::figures::{Figure, Outcome, Report, Unit};
use crate::interrupt;

/// Sizes and choices, the same for every system of a run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Size of the large file.
    #[arg(long, default_value_t = 1024)]
    pub(crate) size_mb: usize,
    /// Number of small files.
    #[arg(long, default_value_t = 5000)]
    pub(crate) files: usize,
    /// Seconds for each random workload.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) runtime: f64,
    /// Only these figures, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Seconds after which a workload that does not end counts as hanging, and its system is ended.
    #[arg(long, default_value_t = 900)]
    pub(crate) hang_timeout: u64,
    /// An archive to unpack, read and remove.
    #[arg(long)]
    pub(crate) tar: Option<PathBuf>,
}

impl Options {
    /// The same options as arguments of another process.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--size-mb={}", self.size_mb),
            format!("--files={}", self.files),
            format!("--runtime={}", self.runtime),
            format!("--hang-timeout={}", self.hang_timeout),
        ];
        arguments.extend(self.only.iter().map(|name| format!("--only={name}")));
        arguments.extend(self.tar.iter().map(|tar| format!("--tar={}", tar.display())));
        arguments
    }

    /// Whether a figure was asked for.
    pub(crate) fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == figure)
    }

    /// Refuses what could not run, before anything is started. `figures` are all that there are.
    pub(crate) fn check(&self, figures: &[&str]) -> anyhow::Result<()> {
        anyhow::ensure!(self.size_mb >= 4, "--size-mb must be at least 4");
        anyhow::ensure!(self.files >= 10, "--files must be at least 10");
        anyhow::ensure!(self.runtime > 0.0 && self.runtime.is_finite(), "--runtime must be positive");
        for name in &self.only {
            anyhow::ensure!(
                figures.contains(&name.as_str()),
                "--only names {name:?}, which is no figure; they are: {}",
                figures.join(", ")
            );
        }
        if let Some(tar) = &self.tar {
            fs::metadata(tar).with_context(|| format!("cannot read {}", tar.display()))?;
        }
        Ok(())
    }
}

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    WORKLOADS.iter().map(|workload| workload.name)
}

/// Interface of the system under test to the workloads.
pub(crate) trait System {
    /// Its name, as a column's head.
    fn name(&self) -> &str;
    /// How it is made cold, for the report.
    fn cold_by(&self) -> &'static str;
    /// Makes its client forget what it cached.
    fn forget(&mut self) -> anyhow::Result<()>;
    /// What to do, from another thread, when an operation hangs: end the processes that owe the kernel an answer.
    fn hang_breaker(&self) -> Box<dyn Fn() + Send>;
}

/// A directory under test.
pub(crate) struct Bench<'a> {
    root: PathBuf,
    options: &'a Options,
    system: &'a mut dyn System,
}

impl Bench<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Cold caches, as far as can be.
    fn make_cold(&mut self) -> anyhow::Result<()> {
        self.system.forget()?;
        nix::unistd::sync();
        fs::write("/proc/sys/vm/drop_caches", "3\n").context("cannot drop the kernel's caches (not root?)")
    }

    /// An empty directory of this name.
    fn fresh_directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Large,
    Small,
    Tree,
}

struct Workload {
    name: &'static str,
    phase: Phase,
    run: fn(&mut Bench<'_>) -> anyhow::Result<Figure>,
}

macro_rules! workloads {
    ($($phase:ident $name:literal $run:expr;)*) => {
        &[$(Workload { name: $name, phase: Phase::$phase, run: $run }),*]
    };
}

const WORKLOADS: &[Workload] = workloads![
    Large "seq_write_1m" sequential::write;
    Large "seq_read_1m_cold" sequential::read_cold;
    Large "seq_read_1m_warm" sequential::read_warm;
    Large "seq_read_1m_direct" sequential::read_direct;
    Large "seq_write_4jobs" sequential::write_four;
    Large "seq_read_4jobs_cold" sequential::read_four_cold;
    Large "rand_read_4k_direct" random::read_direct;
    Large "rand_read_4k_direct_8j" random::read_direct_eight;
    Large "rand_write_4k_direct" random::write_direct;
    Large "rand_write_4k_buffered" random::write_buffered;
    Large "rand_write_4k_fsync" random::write_fsync;
    Small "create_4k_1t" small_files::create_one;
    Small "stat_cold_1t" small_files::stat_one;
    Small "ls_l" small_files::list;
    Small "read_4k_cold_1t" small_files::read_one;
    Small "unlink_1t" small_files::unlink_one;
    Small "create_4k_8p" small_files::create_eight;
    Small "read_4k_cold_8p" small_files::read_eight;
    Small "stat_cold_8p" small_files::stat_eight;
    Small "unlink_8p" small_files::unlink_eight;
    Small "create_4k_fsync_1t" small_files::create_fsync;
    Small "mkdir_1t" small_files::make_directories;
    Small "rename_1t" small_files::rename_directories;
    Tree "untar" tree::unpack;
    Tree "read_tree_cold" tree::read_cold;
    Tree "rm_tree" tree::remove;
];

/// Runs the workloads in `directory` and leaves it as it was.
pub(crate) fn run(directory: &Path, options: &Options, system: &mut dyn System) -> anyhow::Result<Report> {
    let root = directory.join("holdfast-bench");
    fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let hangs = HangWatch::start(Duration::from_secs(options.hang_timeout), system.hang_breaker());
    let mut bench = Bench { root, options, system };
    let mut figures = Vec::new();
    let mut phase = Phase::Large;
    for workload in WORKLOADS {
        if !options.wants(workload.name) || (workload.phase == Phase::Tree && options.tar.is_none()) {
            continue;
        }
        interrupt::check()?;
        if phase != workload.phase {
            phase = workload.phase;
            remove_content(&bench.root)?;
        }
        let outcome = match (workload.run)(&mut bench) {
            Ok(figure) => Outcome::Measured(figure),
            Err(error) => Outcome::Failed { error: format!("{error:#}") },
        };
        hangs.progress();
        eprintln!("  {:<10} {:<24} {}", bench.system.name(), workload.name, serde_json::to_string(&outcome)?);
        figures.push((workload.name.to_owned(), outcome));
    }
    fs::remove_dir_all(&bench.root).with_context(|| format!("cannot remove {}", bench.root.display()))?;
    Ok(Report { system: bench.system.name().to_owned(), cold_by: bench.system.cold_by().to_owned(), figures })
}

/// A thread that breaks a hang: no operation of a mount may freeze the machine it runs on.
pub(crate) struct HangWatch(mpsc::Sender<()>);

impl HangWatch {
    pub(crate) fn start(timeout: Duration, breaker: Box<dyn Fn() + Send>) -> Self {
        let (sender, progress) = mpsc::channel();
        std::thread::spawn(move || {
            loop {
                match progress.recv_timeout(timeout) {
                    Ok(()) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        eprintln!("no workload has ended for {} s: ending the system under test", timeout.as_secs());
                        breaker();
                    }
                }
            }
        });
        Self(sender)
    }

    pub(crate) fn progress(&self) {
        // Without the thread nobody listens, and nothing can be done about it.
        let _ = self.0.send(());
    }
}

fn remove_content(directory: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(directory)?;
    Ok(fs::create_dir(directory)?)
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn megabytes_per_s(megabytes_2: usize, time: Duration) -> Figure {
    let value = megabytes_2 as f64 * 1.048_576 / time.as_secs_f64();
    Figure { value, unit: Unit::MegabytesPerSecond, p99_us: None }
}

fn operations_per_s(count: usize, time: Duration) -> Figure {
    Figure { value: count as f64 / time.as_secs_f64(), unit: Unit::OperationsPerSecond, p99_us: None }
}

fn seconds(time: Duration) -> Figure {
    Figure { value: time.as_secs_f64(), unit: Unit::Seconds, p99_us: None }
}

/// Runs one closure per job at once; the first error, if any.
fn at_once(jobs: usize, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs)
            .map(|job| {
                let work = &work;
                scope.spawn(move || work(job))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a job panicked"))))
            .fold(Ok(()), anyhow::Result::and)
    })
}

/// Memory aligned to a page, as O_DIRECT wants it, filled with noise.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(crate) fn new(length: usize) -> Self {
        const ALIGNMENT: usize = 4096;
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let mut aligned = Self { memory, start, length };
        // Filled once the start is known, so that two of one length have the same content.
        Random::new(length as u64).fill(aligned.bytes_mut());
        aligned
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Stub {
        forgot_count: usize,
    }

    impl System for Stub {
        fn name(&self) -> &str {
            "stub"
        }

        fn cold_by(&self) -> &'static str {
            "nothing"
        }

        fn forget(&mut self) -> anyhow::Result<()> {
            self.forgot_count += 1;
            anyhow::bail!("not here")
        }

        fn hang_breaker(&self) -> Box<dyn Fn() + Send> {
            Box::new(|| {})
        }
    }

    fn options(only: &[&str]) -> Options {
        let only = only.iter().map(|name| (*name).to_owned()).collect();
        Options { size_mb: 4, files: 16, runtime: 0.01, only, hang_timeout: 60, tar: None }
    }

    #[test]
    fn buffers_of_one_length_have_one_content() {
        let buffers: Vec<_> = (0..5).map(|_| Aligned::new(4096)).collect();
        assert!(buffers.iter().all(|buffer| buffer.bytes() == buffers[0].bytes()));
        assert!(buffers.iter().all(|buffer| buffer.bytes().as_ptr().align_offset(4096) == 0));
    }

    #[test]
    fn a_failed_workload_is_reported_and_the_others_run_and_the_directory_is_left_empty() {
        let directory = std::env::temp_dir().join(format!("holdfast-bench-test-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mut stub = Stub::default();
        let options = options(&["unlink_8p", "seq_read_1m_cold", "rename_1t"]);
        let report = run(&directory, &options, &mut stub).unwrap();
        fs::remove_dir(&directory).unwrap();
        let names: Vec<_> = report.figures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["seq_read_1m_cold", "unlink_8p", "rename_1t"]);
        assert_eq!((report.failures(), stub.forgot_count), (1, 1));
        assert!(matches!(&report.figures[0].1, Outcome::Failed { error } if error == "not here"));
    }

    #[test]
    fn a_hang_is_broken_and_progress_is_none() {
        let (sender, broken) = mpsc::channel();
        let hangs = HangWatch::start(
            Duration::from_millis(20),
            Box::new(move || {
                let _ = sender.send(());
            }),
        );
        broken.recv_timeout(Duration::from_secs(10)).expect("nothing ended for 20 ms");
        drop(hangs);
        let (sender, broken) = mpsc::channel();
        let hangs = HangWatch::start(
            Duration::from_secs(60),
            Box::new(move || {
                let _ = sender.send(());
            }),
        );
        hangs.progress();
        drop(hangs);
        assert_eq!(broken.recv(), Err(mpsc::RecvError), "the thread ended without breaking anything");
    }

    #[test]
    fn options_survive_being_arguments() {
        #[derive(clap::Parser)]
        struct Outer {
            #[command(flatten)]
            options: Options,
        }
        let mut before = options(&["seq_write_1m", "untar"]);
        before.tar = Some("/tmp/x y.tar".into());
        let arguments = std::iter::once("bench".to_owned()).chain(before.arguments());
        let after = <Outer as clap::Parser>::parse_from(arguments).options;
        assert_eq!(format!("{after:?}"), format!("{before:?}"));
    }

    #[test]
    fn an_unknown_figure_is_refused_before_anything_starts() {
        let figures: Vec<_> = names().collect();
        assert!(options(&["seq_wrte"]).check(&figures).unwrap_err().to_string().contains("seq_write_1m"));
        assert!(options(&[]).check(&figures).is_ok());
    }
}
